//! How a plan encodes values between hosts: by the wish and the measured errors, with encodings
//! that the agents on both sides support.

use super::Case;
use crate::state::cluster::Host;
use lamina_crds::placement::{Crossing, Plan, Segment};
use lamina_crds::{Encoding, WireType};
use lamina_model::{self as model, Manifest};
use lamina_profile as profile;
use lamina_profile::Activations;

const fn of_crds(dtype: model::WireType) -> WireType {
    match dtype {
        model::WireType::Fp16 => WireType::Fp16,
        model::WireType::Bf16 => WireType::Bf16,
        model::WireType::Int8 => WireType::Int8,
    }
}

/// Whether an agent that supports `known` supports `dtype`.
fn has(known: &[String], dtype: model::WireType) -> bool {
    known.iter().any(|name| name == dtype.as_str())
}

/// The encoding that a question assumes for each block that may begin a segment. If one of `hosts`
/// that could compute does not support a type yet, no crossing is assumed to use it.
pub(super) fn for_question(
    manifest: &Manifest,
    asked: &Activations,
    hosts: &[&Host],
) -> Vec<profile::Crossing> {
    let fit = hosts.iter().filter(|h| h.unfit.is_none());
    let knows = |dtype| fit.clone().all(|h| has(&h.encodings, dtype));
    let blocks = 0..manifest.blocks.len();
    blocks
        .map(|b| profile::crossing(manifest, b, asked, knows))
        .collect()
}

/// The crossing into each of `segments` that receives values from another host.
fn of_path(
    manifest: &Manifest,
    asked: &Activations,
    entry: &str,
    segments: &[Segment],
    knows: impl Fn(&str, model::WireType) -> bool,
) -> Vec<Crossing> {
    let mut at = entry;
    let mut crossings = Vec::new();
    for (index, segment) in (0..).zip(segments) {
        let to = segment.host.node.as_str();
        let first = segment.blocks.first();
        let first = first.and_then(|b| usize::try_from(*b).ok());
        if let Some(first) = first.filter(|_| to != at) {
            let both = |dtype| [at, to].iter().all(|host| knows(host, dtype));
            let chosen = profile::crossing(manifest, first, asked, both);
            crossings.push(crossing(index, chosen));
        }
        at = to;
    }
    crossings
}

fn crossing(segment: u32, chosen: profile::Crossing) -> Crossing {
    let values = chosen.values;
    Crossing {
        segment,
        encoding: chosen.dtype.map(|dtype| Encoding {
            dtype: of_crds(dtype),
            values,
        }),
        error: chosen.error,
        bytes: chosen.bytes,
        raw_bytes: chosen.raw_bytes,
        reason: chosen.reason,
    }
}

/// Whether both use the same encodings for the same reasons.
fn is_same(a: &[Crossing], b: &[Crossing]) -> bool {
    fn told(c: &Crossing) -> (u32, Option<&Encoding>, &str) {
        (c.segment, c.encoding.as_ref(), &c.reason)
    }
    a.iter().map(told).eq(b.iter().map(told))
}

impl Case<'_> {
    /// The crossings of a path of `segments`.
    pub(super) fn crossings(&self, segments: &[Segment]) -> Vec<Crossing> {
        let Some(asked) = &self.wanted.wish.activations else {
            return Vec::new();
        };
        let knows = |host: &str, dtype| {
            let node = self.snapshot.compute_nodes.get(host);
            let status = node.and_then(|n| n.status.as_ref());
            status.is_some_and(|s| has(&s.encodings, dtype))
        };
        let manifest = &self.wanted.manifest;
        of_path(manifest, asked, self.entry(), segments, knows)
    }

    /// Whether `plan`, which places the wanted model, uses other encodings than the wish and its
    /// hosts allow.
    pub(super) fn is_sent_otherwise(&self, plan: &Plan) -> bool {
        let is_this_model = plan.manifest == self.wanted.digest;
        is_this_model && !is_same(&plan.crossings, &self.crossings(&plan.segments))
    }
}

#[cfg(test)]
mod tests;

//! Turns a window of telemetry into messages. Pure.

use crate::blobs::{InboundTransfer, InventoryChanges};
use crate::measure::{median, percentile};
use crate::telemetry::{Outcome, RequestSample, SegmentSample, Window};
use lamina_model::Digest;
use lamina_proto::control::agent_message::Message;
use lamina_proto::control::{
    BlobInventory, LinkSample, LinkSamples, ModelRequests, RequestStats, SegmentTiming,
    SegmentTimings,
};
use std::collections::BTreeSet;

/// Smaller chunks of blobs say nothing about bandwidth.
const LEAST_INBOUND_BYTES: u64 = 32 * 1024;
/// A time below this is scheduling, not transfer.
const LEAST_INBOUND_SECONDS: f64 = 1.5e-3;

/// Messages about everything since the last ones; empty if nothing happened.
pub(super) fn messages(window: &Window, links: Vec<LinkSample>) -> Vec<Message> {
    let mut all = Vec::new();
    if !links.is_empty() {
        all.push(Message::Links(LinkSamples { samples: links }));
    }
    if !window.segments.is_empty() {
        all.push(Message::Segments(segments(window)));
    }
    if !window.requests.is_empty() {
        all.push(Message::Requests(requests(window)));
    }
    all
}

/// Digests per message, to keep it small.
const DIGESTS: usize = 1000;

/// Messages for all blobs held: the first replaces the list, the others add to it.
pub(super) fn whole_inventory(held: BTreeSet<Digest>) -> impl Iterator<Item = BlobInventory> {
    let mut chunks = chunked(held);
    // There is one even if nothing is held.
    let first = chunks.next().unwrap_or_default();
    let first = BlobInventory {
        held: first,
        complete: true,
        gone: Vec::new(),
    };
    [first].into_iter().chain(chunks.map(came))
}

/// Messages for the blobs that came and went.
pub(super) fn changed_inventory(changes: InventoryChanges) -> impl Iterator<Item = BlobInventory> {
    let gone = chunked(changes.gone).map(|gone| BlobInventory {
        gone,
        ..BlobInventory::default()
    });
    gone.chain(chunked(changes.came).map(came))
}

fn came(held: Vec<String>) -> BlobInventory {
    BlobInventory {
        held,
        ..BlobInventory::default()
    }
}

fn chunked(digests: BTreeSet<Digest>) -> impl Iterator<Item = Vec<String>> {
    let mut digests = digests.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<String> = digests
            .by_ref()
            .take(DIGESTS)
            .map(|d| d.to_string())
            .collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// The link from the operator's node, from the chunks of blobs that arrived; the fastest counts,
/// because requests on the link only slow the others down.
pub(super) fn inbound_sample(
    operator_node: &str,
    arrived: &[InboundTransfer],
    rtt_seconds: f64,
) -> Option<LinkSample> {
    if operator_node.is_empty() {
        return None;
    }
    let (rate, bytes) = arrived
        .iter()
        .map(|t| (t.bytes, t.seconds - rtt_seconds))
        .filter(|&(bytes, s)| bytes >= LEAST_INBOUND_BYTES && s >= LEAST_INBOUND_SECONDS)
        .map(|(bytes, s)| (bytes as f64 / s, bytes))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(LinkSample {
        peer: operator_node.to_owned(),
        inbound: true,
        bytes_per_second: rate,
        bytes,
        passive: true,
        // The store may serve others at the same time, and requests share the link.
        contended: true,
        ..LinkSample::default()
    })
}

fn segments(window: &Window) -> SegmentTimings {
    let timings = window
        .segments
        .iter()
        .map(|(key, samples)| {
            let mut compute: Vec<f64> = samples.iter().map(|s| s.compute_s).collect();
            let mut queue: Vec<f64> = samples.iter().map(|s| s.queue_s).collect();
            let row = |s: &SegmentSample| s.compute_s / s.rows.max(1) as f64;
            let mut rows: Vec<f64> = samples.iter().map(row).collect();
            SegmentTiming {
                placement_uid: key.placement_uid.clone(),
                revision: key.revision,
                segment: key.segment,
                count: samples.len() as u64,
                compute_p50_seconds: median(&mut compute),
                queue_p50_seconds: median(&mut queue),
                row_p50_seconds: median(&mut rows),
            }
        })
        .collect();
    SegmentTimings { timings }
}

fn requests(window: &Window) -> RequestStats {
    let models = window
        .requests
        .iter()
        .map(|(key, samples)| {
            let answered = || samples.iter().filter(|s| s.outcome == Outcome::Answered);
            let count = answered().count();
            // A retried request also waited for an older revision.
            let straight = answered().filter(|s| s.retried == 0);
            let mut latencies: Vec<f64> = straight.map(|s| s.latency_s).collect();
            if latencies.is_empty() {
                latencies = answered().map(|s| s.latency_s).collect();
            }
            ModelRequests {
                placement_uid: key.placement_uid.clone(),
                revision: key.revision,
                answered: count as u64,
                failed: (samples.len() - count) as u64,
                retried: samples.iter().map(|s| u64::from(s.retried)).sum(),
                latency_p50_seconds: median(&mut latencies),
                latency_p95_seconds: percentile(&mut latencies, 0.95),
                rows_by_exit: rows_by_exit(samples),
                rows: answered().map(|s| s.rows.max(1)).sum(),
            }
        })
        .collect();
    RequestStats { models }
}

fn rows_by_exit(samples: &[RequestSample]) -> Vec<u64> {
    let mut rows: Vec<u64> = Vec::new();
    for sample in samples {
        let exits = sample.rows_by_exit.len().max(rows.len());
        rows.resize(exits, 0);
        for (sum, more) in rows.iter_mut().zip(&sample.rows_by_exit) {
            *sum += u64::from(*more);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{RequestKey, SegmentKey};

    #[test]
    fn a_quiet_second_sends_nothing() {
        assert_eq!(messages(&Window::default(), Vec::new()), Vec::new());
    }

    #[test]
    fn requests_and_segments_are_summed_up() {
        let mut window = Window::default();
        let key = RequestKey {
            placement_uid: "u".into(),
            revision: 3,
        };
        let sample = |latency_s, outcome, retried| RequestSample {
            outcome,
            latency_s,
            retried,
            rows_by_exit: vec![1, 2],
            rows: 4,
        };
        window.requests.insert(
            key,
            vec![
                sample(0.1, Outcome::Answered, 0),
                sample(0.3, Outcome::Answered, 2),
                sample(9.0, Outcome::Failed, 1),
            ],
        );
        let segment = SegmentKey {
            placement_uid: "u".into(),
            revision: 3,
            segment: 1,
        };
        let run = SegmentSample {
            queue_s: 0.0,
            compute_s: 0.02,
            rows: 8,
        };
        window.segments.insert(segment, vec![run]);
        let all = messages(&window, Vec::new());
        let [Message::Segments(segments), Message::Requests(requests)] = &all[..] else {
            panic!("{all:?}");
        };
        let timing = &segments.timings[0];
        assert_eq!((timing.count, timing.compute_p50_seconds), (1, 0.02));
        assert_eq!(timing.row_p50_seconds, 0.0025);
        let model = &requests.models[0];
        assert_eq!((model.answered, model.failed, model.retried), (2, 1, 3));
        assert_eq!((&model.rows_by_exit[..], model.rows), (&[3, 6][..], 8));
        // The other waited for an older revision before.
        assert_eq!(model.latency_p95_seconds, 0.1);
    }

    #[test]
    fn blobs_that_arrived_tell_the_link_from_the_operator() {
        let piece = |bytes, seconds| InboundTransfer { bytes, seconds };
        let arrived = [piece(100_000, 0.22), piece(100_000, 0.12), piece(10, 0.5)];
        let sample = inbound_sample("cloud-1", &arrived, 0.02).unwrap();
        assert!(sample.inbound && sample.passive && sample.contended);
        assert!((sample.bytes_per_second - 1e6).abs() < 1.0);
        assert_eq!(inbound_sample("", &arrived, 0.02), None);
        assert_eq!(inbound_sample("cloud-1", &arrived[2..], 0.02), None);
    }

    #[test]
    fn an_inventory_comes_in_small_messages() {
        let digest = |i: usize| Digest::of(&i.to_le_bytes());
        let held: BTreeSet<Digest> = (0..2001).map(digest).collect();
        let all: Vec<BlobInventory> = whole_inventory(held.clone()).collect();
        let shape = |all: &[BlobInventory]| {
            let one = |m: &BlobInventory| (m.complete, m.held.len(), m.gone.len());
            all.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(
            shape(&all),
            [(true, 1000, 0), (false, 1000, 0), (false, 1, 0)]
        );
        let told: BTreeSet<String> = all.into_iter().flat_map(|m| m.held).collect();
        assert_eq!(told, held.iter().map(ToString::to_string).collect());
        let none: Vec<BlobInventory> = whole_inventory(BTreeSet::new()).collect();
        assert_eq!(shape(&none), [(true, 0, 0)]);

        assert_eq!(changed_inventory(InventoryChanges::default()).count(), 0);
        let changes = InventoryChanges {
            came: held,
            gone: [digest(5000)].into(),
        };
        let changes: Vec<BlobInventory> = changed_inventory(changes).collect();
        assert_eq!(
            shape(&changes),
            [
                (false, 0, 1),
                (false, 1000, 0),
                (false, 1000, 0),
                (false, 1, 0)
            ]
        );
    }
}

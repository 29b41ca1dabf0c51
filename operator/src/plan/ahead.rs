//! Blocks that hosts fetch before a move needs them: while a Placement is stable, its strategy is
//! occasionally asked what it would do if a host or its links failed, and hosts fetch the blocks
//! that they would get then.

use super::{Case, Planned};
use crate::state::decision::{Question, Supposed};
use crate::state::memory::{Memory, PlacementMemory};
use crate::state::plans::{self, Phase};
use crate::state::snapshot::{Ahead, Need, QuestionView};
use lamina_crds::compute_node::Blob;
use lamina_crds::dnn_model::AdaptationPolicy;
use std::collections::{BTreeMap, BTreeSet};

/// A revision must have served for this long before the first question ahead.
const SETTLED_SECONDS: f64 = 5.0;
/// Time between two questions ahead; longer with many Placements.
const PERIOD_SECONDS: f64 = 60.0;
/// Limit over all Placements, so that hosts start fetching one after the other.
const ASKED_PER_SECOND: f64 = 0.5;
/// By which factors links are assumed to slow down: the best cut depends on the factor, and factors
/// vary.
const SLOWER: [u32; 2] = [10, 30];
/// Most scenarios per path.
const MOST_SUPPOSED: usize = 6;

impl Case<'_> {
    /// Asks a question ahead if it is time and nothing else is being asked.
    pub(super) fn ask_ahead_when_due(&self, memory: &Memory, own: &mut PlacementMemory) -> Planned {
        let last = memory.asked_ahead;
        let is_turn =
            last.is_none_or(|at| self.snapshot.seconds_since(at) >= 1.0 / ASKED_PER_SECOND);
        if !is_turn || !self.is_due_ahead(own) {
            return Planned::default();
        }
        let Some(plan) = self.current else {
            return Planned::default();
        };
        own.standby.asked = Some((self.snapshot.now, plan.revision));
        let supposed = self.supposed();
        if supposed.is_empty() {
            own.standby.hosts = Some(BTreeMap::new());
            return Planned::default();
        }
        let question = Question {
            supposed,
            ..self.question(memory, own, Need::Ahead)
        };
        Planned {
            ask: Some(self.ask_about(Need::Ahead, question)),
            ..Planned::default()
        }
    }

    fn is_due_ahead(&self, own: &PlacementMemory) -> bool {
        let wish = &self.wanted.wish;
        // Plugins are asked only for plans that are needed: their cost is unknown.
        if !wish.adaptation.standby || wish.adaptation.paused || wish.strategy.is_plugin {
            return false;
        }
        let Some(plan) = self.current else {
            return false;
        };
        let is_quiet = matches!(self.site.phase, Phase::Serving)
            && self.is_asked
            && self.broken.is_none()
            && own.candidate.is_none()
            && own.trial.is_none()
            && plan.manifest == self.wanted.digest
            && !self.snapshot.is_starting();
        let settled = own
            .settling
            .filter(|(revision, _)| *revision == plan.revision);
        let is_settled =
            settled.is_some_and(|(_, since)| self.snapshot.seconds_since(since) >= SETTLED_SECONDS);
        let is_new = own.standby.asked.is_none_or(|(at, revision)| {
            revision != plan.revision || self.snapshot.seconds_since(at) >= self.ahead_period()
        });
        is_quiet && is_settled && is_new
    }

    fn ahead_period(&self) -> f64 {
        let placements = self.snapshot.placements.len() as f64;
        let period = PERIOD_SECONDS.max(placements / ASKED_PER_SECOND);
        period * (0.85 + 0.3 * self.site.key().spread())
    }

    /// What may happen to the present path: the links of a sending host slow down, the entry's
    /// first; or one of the other hosts is lost.
    fn supposed(&self) -> Vec<Supposed> {
        let Some(plan) = self.current else {
            return Vec::new();
        };
        let moves_for_gain = self.wanted.wish.adaptation.policy != AdaptationPolicy::Never;
        let links = plans::links(self.entry(), plan);
        let senders = links.iter().filter(|_| moves_for_gain);
        let slow = senders.flat_map(|(host, _)| {
            SLOWER.map(|times| Supposed::Slow {
                host: host.clone(),
                times,
            })
        });
        let lost = plans::hosts(plan).filter(|host| *host != self.entry());
        let lost = lost.map(|host| Supposed::Lost(host.to_owned()));
        let mut all: Vec<Supposed> = Vec::new();
        // Alternate, so that a long path gets some of both.
        let (mut slow, mut lost) = (slow, lost);
        loop {
            let next = [slow.next(), lost.next()];
            if next.iter().all(Option::is_none) {
                break;
            }
            for one in next.into_iter().flatten() {
                if !all.contains(&one) {
                    all.push(one);
                }
            }
        }
        all.truncate(MOST_SUPPOSED);
        all
    }

    /// Handles the answer to a question ahead; anything else that is due goes first.
    pub(super) fn heard_ahead(
        &self,
        memory: &Memory,
        own: &mut PlacementMemory,
        question: &QuestionView,
        is_news: bool,
    ) -> Planned {
        let planned = self.ask_when_due(memory, own, is_news);
        self.take_ahead(own, question);
        if planned.ask.is_some() {
            if question.ahead.is_none() {
                // It was replaced: ask again when things are stable.
                own.standby.asked = None;
            }
            return planned;
        }
        Planned {
            answered: question.ahead.is_some(),
            ..planned
        }
    }

    fn take_ahead(&self, own: &mut PlacementMemory, question: &QuestionView) {
        let Some(ahead) = &question.ahead else {
            return;
        };
        let found = self.blobs(ahead);
        // Cuts move a little with each measurement: do not drop fetched blocks for a subset of
        // them.
        let known = own.standby.hosts.as_ref();
        let known = known.filter(|known| self.is_of_model(known));
        if known.is_none_or(|known| !is_within(&found, known)) {
            own.standby.hosts = Some(found);
        }
    }

    /// Whether all of `hosts` are blocks of the model's current manifest.
    fn is_of_model(&self, hosts: &BTreeMap<String, Vec<Blob>>) -> bool {
        let blocks = self.wanted.manifest.blocks.iter();
        let blocks: BTreeSet<&str> = blocks.map(|b| b.digest.as_str()).collect();
        let mut blobs = hosts.values().flatten();
        blobs.all(|blob| blocks.contains(blob.digest.as_str()))
    }

    fn blobs(&self, ahead: &Ahead) -> BTreeMap<String, Vec<Blob>> {
        let blocks = &self.wanted.manifest.blocks;
        let blob = |at: &usize| {
            let block = blocks.get(*at)?;
            Some(Blob {
                digest: block.digest.to_string(),
                bytes: block.file_bytes,
            })
        };
        let hosts = ahead.iter();
        hosts
            .map(|(host, ordinals)| (host.clone(), ordinals.iter().filter_map(blob).collect()))
            .collect()
    }
}

/// Whether `known` has everything of `found`.
fn is_within(found: &BTreeMap<String, Vec<Blob>>, known: &BTreeMap<String, Vec<Blob>>) -> bool {
    found.iter().all(|(host, blobs)| {
        let known = known.get(host).map_or(&[][..], Vec::as_slice);
        blobs.iter().all(|blob| known.contains(blob))
    })
}

#[cfg(test)]
mod tests;

//! Backs off from objects that could not be written; their Events are published after the
//! next write that succeeds.

use crate::state::decision::Change;
use crate::state::notice::Notice;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// First pause after a failed write; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Events kept for this long are dropped: their object is most likely gone.
const FORGET: Duration = Duration::from_secs(600);

/// An object that is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    kind: &'static str,
    namespace: String,
    name: String,
}

impl Target {
    /// What `change` writes, if anything.
    pub(crate) fn of(change: &Change) -> Option<Self> {
        let (kind, namespace, name) = match change {
            Change::ComputeNode { name, .. } | Change::ComputeNodeConditions { name, .. } => {
                ("ComputeNode", "", name)
            }
            Change::Placement { id, .. }
            | Change::PlacementStatus { id, .. }
            | Change::DeletePlacement { id } => ("Placement", id.namespace.as_str(), &id.name),
            Change::ModelStatus { id, .. } => ("DnnModel", id.namespace.as_str(), &id.name),
            Change::Nothing => return None,
        };
        Some(Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.clone(),
        })
    }
}

/// Objects whose writes are paused.
#[derive(Debug, Default)]
pub(crate) struct Retries(BTreeMap<Target, Retry>);

#[derive(Debug, Clone, Copy)]
struct Retry {
    failures: u32,
    not_before: Instant,
}

impl Retries {
    /// Whether `target` may be written now.
    pub(crate) fn may(&self, target: &Target, now: Instant) -> bool {
        self.0.get(target).is_none_or(|r| now >= r.not_before)
    }

    /// A write failed.
    pub(crate) fn failed(&mut self, target: Target, now: Instant) {
        self.0
            .retain(|_, r| now.saturating_duration_since(r.not_before) < FORGET);
        let failures = self.0.get(&target).map_or(0, |r| r.failures);
        let pause = LONGEST_PAUSE.min(FIRST_PAUSE * (1 << failures.min(8)));
        let retry = Retry {
            failures: failures + 1,
            not_before: now + pause,
        };
        self.0.insert(target, retry);
    }

    /// A write succeeded.
    pub(crate) fn succeeded(&mut self, target: &Target) {
        self.0.remove(target);
    }

    /// The earliest time after `now` at which a target may be written again.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let moments = self.0.values().map(|r| r.not_before);
        moments.filter(|at| *at > now).min()
    }
}

/// Events of failed writes. What a look decides only once would be lost otherwise.
#[derive(Debug, Default)]
pub(crate) struct Owed(BTreeMap<Target, (Vec<Notice>, Instant)>);

impl Owed {
    /// Keeps `notices` of `target`; of two with the same reason the newer.
    pub(crate) fn keep(&mut self, target: Target, notices: Vec<Notice>, now: Instant) {
        self.0
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < FORGET);
        if notices.is_empty() {
            return;
        }
        let (kept, at) = self.0.entry(target).or_insert((Vec::new(), now));
        *at = now;
        merge(kept, notices);
    }

    /// The Events to publish for `target`: kept ones, then `notices`.
    pub(crate) fn with(&mut self, target: &Target, notices: Vec<Notice>) -> Vec<Notice> {
        let mut all = self.0.remove(target).map_or(Vec::new(), |(kept, _)| kept);
        merge(&mut all, notices);
        all
    }
}

fn merge(all: &mut Vec<Notice>, newer: Vec<Notice>) {
    all.retain(|old| {
        !newer
            .iter()
            .any(|new| (new.reason, &new.regarding) == (old.reason, &old.regarding))
    });
    all.extend(newer);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ids::ObjectId;
    use crate::state::notice::Regarding;

    fn target(name: &str) -> Target {
        Target {
            kind: "DnnModel",
            namespace: "default".into(),
            name: name.into(),
        }
    }

    fn notice(reason: &'static str, note: &str) -> Notice {
        Notice {
            regarding: Regarding::model(ObjectId::default()),
            warning: false,
            reason,
            action: "Deploy",
            note: note.into(),
        }
    }

    #[test]
    fn a_failed_object_is_left_alone_for_longer_and_longer() {
        let (mut retries, start) = (Retries::default(), Instant::now());
        let net = target("net");
        assert!(retries.may(&net, start));
        retries.failed(net.clone(), start);
        assert!(!retries.may(&net, start + Duration::from_millis(400)));
        assert!(retries.may(&net, start + FIRST_PAUSE));
        assert!(retries.may(&target("other"), start));
        for _ in 0..40 {
            retries.failed(net.clone(), start);
        }
        assert_eq!(retries.next(start), Some(start + LONGEST_PAUSE));
        retries.succeeded(&net);
        assert!(retries.may(&net, start));
        assert_eq!(retries.next(start), None);
    }

    #[test]
    fn what_is_owed_is_told_once_and_in_its_newest_words() {
        let (mut owed, now) = (Owed::default(), Instant::now());
        let net = target("net");
        owed.keep(net.clone(), vec![notice("A", "1"), notice("B", "1")], now);
        owed.keep(net.clone(), vec![notice("A", "2")], now);
        let told = owed.with(&net, vec![notice("C", "1"), notice("B", "2")]);
        let words: Vec<(&str, &str)> = told.iter().map(|n| (n.reason, n.note.as_str())).collect();
        assert_eq!(words, [("A", "2"), ("C", "1"), ("B", "2")]);
        assert!(owed.with(&net, Vec::new()).is_empty());
    }
}

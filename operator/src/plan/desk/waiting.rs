//! Questions that wait for a thread: the most urgent first, and the oldest of those. Among
//! namespaces whatever is waited for is as urgent, and they take turns: else one with many
//! models, or with one at many entries, would keep the others from an answer.

use crate::state::ids::PlacementKey;
use crate::state::snapshot::Need;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// The questions, by namespace.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    lines: BTreeMap<String, Line>,
    turn: u64,
}

#[derive(Debug, Default)]
struct Line {
    questions: BinaryHeap<(Need, Reverse<u64>, PlacementKey)>,
    /// When it had its last turn.
    turn: u64,
}

impl Waiting {
    /// Question `number` of `namespace` waits, too.
    pub(super) fn push(&mut self, namespace: &str, need: Need, number: u64, key: PlacementKey) {
        let line = self.lines.entry(namespace.to_owned()).or_default();
        line.questions.push((need, Reverse(number), key));
    }

    /// The next question that `is_wanted` still, with its number.
    pub(super) fn pop(
        &mut self,
        is_wanted: impl Fn(&PlacementKey, u64) -> bool,
    ) -> Option<(PlacementKey, u64)> {
        for line in self.lines.values_mut() {
            line.skip(&is_wanted);
        }
        let lines = self.lines.iter();
        let first = lines.filter_map(|(namespace, line)| Some((line.rank()?, namespace)));
        let Some((_, namespace)) = first.max() else {
            // Who comes next owes nothing to those that are gone.
            self.lines.clear();
            return None;
        };
        let namespace = namespace.clone();
        let line = self.lines.get_mut(&namespace)?;
        self.turn += 1;
        line.turn = self.turn;
        let (_, Reverse(number), key) = line.questions.pop()?;
        Some((key, number))
    }
}

impl Line {
    /// Drops what nobody wants any more and would be next.
    fn skip(&mut self, is_wanted: &impl Fn(&PlacementKey, u64) -> bool) {
        while let Some((_, Reverse(number), key)) = self.questions.peek() {
            if is_wanted(key, *number) {
                return;
            }
            self.questions.pop();
        }
    }

    /// The line of the highest rank is next.
    fn rank(&self) -> Option<(Need, Reverse<u64>)> {
        let (need, ..) = self.questions.peek()?;
        Some(((*need).min(Need::Leave), Reverse(self.turn)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(waiting: &mut Waiting, namespace: &str, need: Need, numbers: std::ops::Range<u64>) {
        for number in numbers {
            let key = PlacementKey::new(&format!("model-{number}"), "cam-1");
            waiting.push(namespace, need, number, key);
        }
    }

    #[test]
    fn namespaces_take_turns_however_much_one_of_them_asks() {
        let mut waiting = Waiting::default();
        push(&mut waiting, "many", Need::First, 0..100);
        push(&mut waiting, "few", Need::Leave, 100..103);
        push(&mut waiting, "calm", Need::Period, 103..104);
        let mut next = |count: usize| -> Vec<u64> {
            let all = (0..count).map_while(|_| waiting.pop(|_, _| true));
            all.map(|(_, number)| number).collect()
        };
        assert_eq!(next(7), [0, 100, 1, 101, 2, 102, 3]);
        // Nobody waits for what time alone asks.
        assert_eq!(next(97)[96], 103);
        assert_eq!(next(1), [0; 0]);
    }

    #[test]
    fn what_nobody_wants_any_more_is_skipped_and_leaves_nothing() {
        let mut waiting = Waiting::default();
        push(&mut waiting, "a", Need::First, 0..5);
        push(&mut waiting, "b", Need::Change, 5..7);
        let (_, number) = waiting.pop(|_, number| number > 5).unwrap();
        assert_eq!(number, 6);
        assert_eq!(waiting.pop(|_, _| true), None);
        assert!(waiting.lines.is_empty());
    }
}

//! Thresholds of exits that a strategy chose: those in force, and those of a new plan.

use super::Case;
use crate::state::decision::Question;
use crate::state::wish::Wish;
use lamina_crds::placement::Plan;
use lamina_model::{Exit, Manifest};
use lamina_placement::Solution;
use lamina_profile::InForce;
use std::collections::BTreeMap;

/// Thresholds closer than this are equal: they travel as text.
const SAME: f64 = 1e-9;

/// What is in force at `exit` while the question's plan serves.
pub(super) fn in_force(question: &Question, exit: &Exit) -> InForce {
    let chosen = question.current.as_ref().map(|plan| &plan.thresholds);
    of(&question.wish, chosen, exit)
}

/// The threshold of `exit` by the spec, else as `chosen`, else by the model's file.
pub(super) fn of(wish: &Wish, chosen: Option<&BTreeMap<String, f64>>, exit: &Exit) -> InForce {
    let asked = wish.exits.as_ref();
    let asked = asked.and_then(|early| early.thresholds.get(&exit.name));
    let chosen = chosen.and_then(|chosen| chosen.get(&exit.name));
    InForce {
        threshold: asked.or(chosen).copied().or(exit.threshold),
        is_fixed: asked.is_some(),
    }
}

/// What `solution` chose, by the exit's name; empty if it had no choice.
fn chosen(wish: &Wish, manifest: &Manifest, solution: &Solution) -> BTreeMap<String, f64> {
    let names = lamina_profile::choosable(manifest);
    let placement = solution.placements.first();
    let thresholds = placement.map_or(&[][..], |placement| &placement.thresholds);
    if wish.min_accuracy().is_none() || names.len() != thresholds.len() {
        return BTreeMap::new();
    }
    let pairs = names.into_iter().zip(thresholds);
    let free = pairs.filter(|(name, _)| is_free(wish, name));
    free.map(|(name, threshold)| (name.to_owned(), *threshold))
        .collect()
}

/// Whether the spec leaves the threshold of that exit to the strategy.
fn is_free(wish: &Wish, exit: &str) -> bool {
    let asked = wish.exits.as_ref();
    asked.is_none_or(|early| !early.thresholds.contains_key(exit))
}

fn are_same(a: &BTreeMap<String, f64>, b: &BTreeMap<String, f64>) -> bool {
    let near = |(a, b): (f64, f64)| (a - b).abs() <= SAME;
    a.keys().eq(b.keys()) && a.values().copied().zip(b.values().copied()).all(near)
}

impl Case<'_> {
    /// The thresholds that `solution` chose.
    pub(super) fn thresholds(&self, solution: &Solution) -> BTreeMap<String, f64> {
        chosen(&self.wanted.wish, &self.wanted.manifest, solution)
    }

    /// Whether `plan` has the thresholds that `solution` chose.
    pub(super) fn has_thresholds_of(&self, plan: &Plan, solution: &Solution) -> bool {
        are_same(&plan.thresholds, &self.thresholds(solution))
    }

    /// Whether the strategy of `plan` chose thresholds that it may not, or failed to choose those
    /// that it must.
    pub(super) fn is_chosen_otherwise(&self, plan: &Plan) -> bool {
        let is_this_model = plan.manifest == self.wanted.digest;
        let (wish, manifest) = (&*self.wanted.wish, &*self.wanted.manifest);
        let chooses = wish.min_accuracy().is_some() && lamina_profile::can_choose(manifest);
        let names = lamina_profile::choosable(manifest).into_iter();
        let mut expected: Vec<&str> = names.filter(|n| chooses && is_free(wish, n)).collect();
        expected.sort_unstable();
        is_this_model && !plan.thresholds.keys().eq(expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_that_travelled_as_text_are_the_same() {
        let of = |a: f64, name: &str| BTreeMap::from([(name.to_owned(), a)]);
        assert!(are_same(&of(0.1 + 0.2, "side"), &of(0.3, "side")));
        assert!(!are_same(&of(0.3, "side"), &of(0.31, "side")));
        assert!(!are_same(&of(0.3, "side"), &of(0.3, "other")));
        assert!(!are_same(&of(0.3, "side"), &BTreeMap::new()));
    }
}

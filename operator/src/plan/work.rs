//! The work-function policy, which needs no horizon: it remembers what each path would have cost
//! until now and moves accordingly.

use super::judge::figures_of;
use super::{Case, Planned};
use crate::state::memory::{PlacementMemory, Work};
use crate::state::snapshot::Answer;
use lamina_crds::dnn_model::AdaptationPolicy;
use lamina_crds::placement::{Plan, Segment, format_path};
use lamina_placement::Solution;
use lamina_placement::adapt::WorkFunction;

/// Paths whose cost is counted, the present one included. Where more were found, counting
/// begins anew.
const MOST_PATHS: usize = 8;

impl Case<'_> {
    /// Counts what each known path has cost since the last answer, also where nothing better
    /// was found now: time in which the present path was the best one speaks for it. Gives
    /// the path to be on, where that is another one.
    pub(super) fn count_work(
        &self,
        own: &mut PlacementMemory,
        answer: &Answer,
    ) -> Option<Vec<Segment>> {
        let current = self.current?;
        let is_asked = self.wanted.wish.adaptation.policy == AdaptationPolicy::WorkFunction;
        let known = own.work.take();
        let known = known.filter(|w| is_asked && w.paths.first() == Some(&current.segments));
        let work = own.work.insert(known?);
        let elapsed = self.snapshot.seconds_since(work.at);
        work.at = self.snapshot.now;
        // A path with unknown links costs as much as the worst known one.
        let latency: Vec<Option<f64>> = work
            .paths
            .iter()
            .map(|path| Some(figures_of(&answer.problem, path)?.latency_seconds))
            .collect();
        let worst = latency.iter().flatten().copied().fold(0.0, f64::max);
        let rate = self.rate_per_second();
        let costs: Vec<f64> = latency
            .iter()
            .map(|l| l.unwrap_or(worst) * rate * elapsed)
            .collect();
        let paths = &work.paths;
        let at = work.function.advance(&costs, 0, |from, to| {
            self.moving(answer, &paths[from], &paths[to])
        });
        (at > 0).then(|| paths[at].clone())
    }

    /// Moves to `best` if that is the path that the work function wants to be on.
    pub(super) fn by_work(
        &self,
        own: &mut PlacementMemory,
        answer: &Answer,
        solution: &Solution,
        current: &Plan,
        best: Vec<Segment>,
        to_be_on: Option<Vec<Segment>>,
    ) -> Planned {
        self.know_path(own, answer, current, &best);
        // What a strategy did not find now may break a limit.
        if to_be_on.as_ref() != Some(&best) {
            own.candidate = None;
            return Planned::default();
        }
        let path = format_path(&best);
        if self.waits_for_links(own, solution, path, None) {
            return Planned::default();
        }
        own.work = None;
        self.go(own, answer, solution, current, best)
    }

    /// Has the cost of `best` counted from now on, beside that of `current`.
    fn know_path(
        &self,
        own: &mut PlacementMemory,
        answer: &Answer,
        current: &Plan,
        best: &[Segment],
    ) {
        let alone = || WorkFunction::new(1, 0, |_, _| 0.0);
        let work = own.work.get_or_insert_with(|| Work {
            paths: vec![current.segments.clone()],
            function: alone(),
            at: self.snapshot.now,
        });
        if work.paths.iter().any(|path| path.as_slice() == best) {
            return;
        }
        if work.paths.len() >= MOST_PATHS {
            work.paths.truncate(1);
            work.function = alone();
        }
        let paths = &work.paths;
        work.function
            .add(|from| self.moving(answer, &paths[from], best));
        work.paths.push(best.to_vec());
    }
}

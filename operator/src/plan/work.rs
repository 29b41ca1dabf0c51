//! The work-function policy, which needs no horizon: it remembers what each path would have cost
//! until now and moves accordingly.

use super::judge::figures_of;
use super::{Case, Planned};
use crate::state::memory::{PlacementMemory, Work};
use crate::state::snapshot::Answer;
use lamina_crds::placement::{Plan, Segment, format_path};
use lamina_placement::Solution;
use lamina_placement::adapt::WorkFunction;

impl Case<'_> {
    /// Moves if the work function says so.
    pub(super) fn by_work(
        &self,
        own: &mut PlacementMemory,
        answer: &Answer,
        solution: &Solution,
        current: &Plan,
        best: Vec<Segment>,
        network_seconds: f64,
    ) -> Planned {
        let rate = self.rate_per_second();
        let moving = |from: &[Segment], to: &[Segment]| {
            rate * network_seconds * self.fetch_seconds(from, to)
        };
        let work = self.work(own, current, &best, &moving);
        let elapsed = self.snapshot.seconds_since(work.at);
        work.at = self.snapshot.now;
        // A path with unknown links costs as much as the worst known one.
        let latency: Vec<Option<f64>> = work
            .paths
            .iter()
            .map(|path| Some(figures_of(&answer.problem, path)?.latency_seconds))
            .collect();
        let worst = latency.iter().flatten().copied().fold(0.0, f64::max);
        let costs: Vec<f64> = latency
            .iter()
            .map(|l| l.unwrap_or(worst) * rate * elapsed)
            .collect();
        let paths = &work.paths;
        let at = work
            .function
            .advance(&costs, 0, |from, to| moving(&paths[from], &paths[to]));
        // A path that a strategy did not find now may break a limit.
        if at == 0 || work.paths[at] != best {
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

    /// The paths with `current` in the first place and `best` among them.
    fn work<'m>(
        &self,
        own: &'m mut PlacementMemory,
        current: &Plan,
        best: &[Segment],
        moving: &impl Fn(&[Segment], &[Segment]) -> f64,
    ) -> &'m mut Work {
        let known = own.work.take().filter(|w| {
            w.paths.first() == Some(&current.segments) && w.paths.iter().any(|p| p == best)
        });
        let work = known.unwrap_or_else(|| {
            let paths = vec![current.segments.clone(), best.to_vec()];
            let function =
                WorkFunction::new(paths.len(), 0, |from, to| moving(&paths[from], &paths[to]));
            Work {
                paths,
                function,
                at: self.snapshot.now,
            }
        });
        own.work.insert(work)
    }
}

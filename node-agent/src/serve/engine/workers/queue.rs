//! Which run is next, and which need not wait at all. Pure: it is told the time.
//!
//! Each model has a line, and all lines have the same share of the worker's time, so that a
//! flood on one model costs the others no more than its share. A line that had less than the
//! others is served first; one that was empty gets nothing for the time that it was. In a line
//! the earliest deadline comes first. What would wait longer than its caller does is refused
//! at once, and what has become hopeless makes room for what has not.

use super::super::EngineError;
use super::group::Group;
use super::runs::RunJob;
use crate::serve::deadline::Deadline;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Runs that may wait in one line.
pub(super) const QUEUED_RUNS: usize = 256;
/// How much of a new time goes into what is expected of the next run.
const NEWS: f64 = 0.2;
/// The longest time of a run that is believed, in seconds for each of its rows.
const LONGEST_SECONDS: f64 = 3600.0;
/// When who was refused may find room: a moment at least, and a while at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What waits for one worker and what runs there.
#[derive(Debug)]
pub(super) struct Queue {
    /// Runs at the same time.
    lanes: usize,
    lines: BTreeMap<Arc<str>, Line>,
    /// The time that each line was given which waited all along, in seconds.
    given: f64,
    /// How many came, so that they stay in order.
    came: u64,
    running: usize,
    /// Seconds that what runs takes in all, as was expected when it began.
    running_seconds: f64,
    /// Seconds of a run for each of its rows, by slice.
    paces: BTreeMap<u64, f64>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: BTreeMap<(Deadline, u64), RunJob>,
    /// The time that it was given, in seconds.
    given: f64,
}

/// Why a run does not wait here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Refused {
    /// So many of its model wait; where it may find room, and when.
    Full { waiting: usize, again: Duration },
    /// It would wait too long.
    Crowded { wait: Duration, again: Duration },
    /// The worker is gone.
    Closed,
}

/// What a group was charged for when it began.
#[derive(Debug)]
pub(super) struct Work {
    model: Arc<str>,
    slice: u64,
    rows: f64,
    seconds: f64,
}

impl Queue {
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            lanes: lanes.max(1),
            lines: BTreeMap::new(),
            given: 0.0,
            came: 0,
            running: 0,
            running_seconds: 0.0,
            paces: BTreeMap::new(),
        }
    }

    /// Whether something waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.values().all(|line| line.waiting.is_empty())
    }

    /// Takes `job` in.
    ///
    /// # Errors
    /// There is no room for it, or it would wait too long.
    pub(super) fn admit(&mut self, mut job: RunJob, now: Instant) -> Result<(), Refused> {
        let (model, given) = (Arc::clone(&job.model), self.given);
        let line = self.lines.entry(model).or_default();
        if line.waiting.len() >= QUEUED_RUNS {
            // Who gave up takes no place.
            line.waiting.retain(|_, waits| !waits.reply.is_closed());
        }
        if line.waiting.is_empty() {
            line.given = line.given.max(given);
        }
        let waiting = line.waiting.len();
        let wait = self.wait_of(&job);
        if waiting >= QUEUED_RUNS {
            let again = bounded(wait / 4.0);
            return Err(Refused::Full { waiting, again });
        }
        let late = wait + self.seconds(&job) - job.deadline.left_at(now).as_secs_f64();
        if wait > 0.0 && late > 0.0 {
            return Err(Refused::Crowded {
                wait: Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX),
                again: bounded(late),
            });
        }
        self.came += 1;
        job.came = self.came;
        self.put_back(vec![job]);
        Ok(())
    }

    /// The next run, with a group for those that are computed with it.
    pub(super) fn take(&mut self, now: Instant) -> Option<Group> {
        loop {
            let waiting = self.lines.iter().filter(|(_, l)| !l.waiting.is_empty());
            let next = waiting.min_by(|(_, a), (_, b)| a.given.total_cmp(&b.given));
            let model = Arc::clone(next?.0);
            let line = self.lines.get_mut(&model)?;
            self.given = self.given.max(line.given);
            let (_, job) = line.waiting.pop_first()?;
            let others = line.waiting.len();
            if job.reply.is_closed() {
                continue;
            }
            // What is expected may be wrong: a run that nobody stands behind is tried.
            let left = job.deadline.left_at(now).as_secs_f64();
            if left <= 0.0 || others > 0 && left < self.seconds(&job) / 2.0 {
                let _ = job.reply.send(Err(EngineError::Late));
                continue;
            }
            return Some(Group::of(job));
        }
    }

    /// Has those join `group` that may be computed with it, and says whether anything else
    /// waits.
    pub(super) fn fill(&mut self, group: &mut Group) -> bool {
        let Some(model) = group.first().map(|job| Arc::clone(&job.model)) else {
            return !self.is_empty();
        };
        if let Some(line) = self.lines.get_mut(&model)
            && !group.is_full()
        {
            let waiting = std::mem::take(&mut line.waiting);
            for (place, job) in waiting {
                if let Err(other) = group.join(job) {
                    line.waiting.insert(place, other);
                }
            }
        }
        !self.is_empty()
    }

    /// Gives back what was taken out of a line, to the same places.
    pub(super) fn put_back(&mut self, jobs: Vec<RunJob>) {
        for job in jobs {
            let line = self.lines.entry(Arc::clone(&job.model)).or_default();
            line.waiting.insert((job.deadline, job.came), job);
        }
    }

    /// `group` is computed from now on.
    pub(super) fn begin(&mut self, group: &Group) -> Option<Work> {
        let first = group.first()?;
        let rows: f64 = group.jobs().iter().map(|job| job.rows).sum();
        let seconds: f64 = group.jobs().iter().map(|job| self.seconds(job)).sum();
        self.running += 1;
        self.running_seconds += seconds;
        if let Some(line) = self.lines.get_mut(&first.model) {
            line.given += seconds;
        }
        let given = self.given;
        self.lines
            .retain(|_, line| !line.waiting.is_empty() || line.given > given);
        Some(Work {
            model: Arc::clone(&first.model),
            slice: first.slice,
            rows,
            seconds,
        })
    }

    /// `work` took `took`.
    pub(super) fn done(&mut self, work: &Work, took: Duration) {
        let took = took.as_secs_f64();
        self.running = self.running.saturating_sub(1);
        self.running_seconds = (self.running_seconds - work.seconds).max(0.0);
        if let Some(line) = self.lines.get_mut(&work.model) {
            line.given += took - work.seconds;
        }
        let pace = (took / work.rows.max(1.0)).clamp(0.0, LONGEST_SECONDS);
        let known = work.seconds / work.rows.max(1.0);
        self.paces.insert(work.slice, known + NEWS * (pace - known));
        if self.running == 0 && self.is_empty() {
            // Who comes next owes nothing to those that are gone.
            self.lines.clear();
            self.given = 0.0;
        }
    }

    /// `slice` is gone.
    pub(super) fn forget(&mut self, slice: u64) {
        self.paces.remove(&slice);
    }

    /// All that waits, which is lost.
    pub(super) fn clear(&mut self) -> Vec<RunJob> {
        let lines = std::mem::take(&mut self.lines);
        let jobs = lines.into_values().flat_map(|line| line.waiting);
        jobs.map(|(_, job)| job).collect()
    }

    /// Seconds that `job` is expected to take.
    fn seconds(&self, job: &RunJob) -> f64 {
        let pace = self.paces.get(&job.slice).copied();
        let seconds = pace.unwrap_or(job.usual_seconds) * job.rows;
        seconds.clamp(0.0, LONGEST_SECONDS)
    }

    /// Seconds until `job` would begin: what comes before it in its line, as much of each
    /// other line, and the rest of what runs.
    fn wait_of(&self, job: &RunJob) -> f64 {
        if self.running < self.lanes && self.is_empty() {
            return 0.0;
        }
        let own = self.lines.get(&job.model);
        let own = own.into_iter().flat_map(|line| &line.waiting);
        let before = own.filter(|((deadline, _), _)| *deadline <= job.deadline);
        let before: f64 = before.map(|(_, waits)| self.seconds(waits)).sum();
        let share = before + self.seconds(job);
        let others = self.lines.iter().filter(|(model, _)| **model != job.model);
        let others: f64 = others
            .map(|(_, line)| {
                let all: f64 = line.waiting.values().map(|waits| self.seconds(waits)).sum();
                all.min(share)
            })
            .sum();
        (before + others + self.running_seconds / 2.0) / self.lanes as f64
    }
}

fn bounded(seconds: f64) -> Duration {
    let (least, most) = AGAIN;
    let said = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(most);
    said.clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::super::runs::testing::{Answer, job};
    use super::*;

    const RUN: Duration = Duration::from_millis(10);

    struct Bench {
        queue: Queue,
        begin: Instant,
        answers: Vec<Answer>,
    }

    impl Bench {
        fn new(lanes: usize) -> Self {
            Self {
                queue: Queue::new(lanes),
                begin: Instant::now(),
                answers: Vec::new(),
            }
        }

        /// A run of `model` that takes ten milliseconds and has `left` from the beginning on.
        fn admit(&mut self, model: &str, left: Duration) -> Result<(), Refused> {
            let (mut job, answer) = job(model);
            job.usual_seconds = RUN.as_secs_f64();
            job.deadline = Deadline::at(self.begin + left);
            self.answers.push(answer);
            self.queue.admit(job, self.begin)
        }

        /// The models of the next runs, each of which takes as long as expected; with what is
        /// left of its deadline.
        fn run(&mut self, count: usize) -> Vec<(String, u128)> {
            let mut ran = Vec::new();
            for _ in 0..count {
                let Some(group) = self.queue.take(self.begin) else {
                    break;
                };
                let first = group.first().unwrap();
                let left = first.deadline.left_at(self.begin).as_millis();
                ran.push((first.model.to_string(), left));
                let work = self.queue.begin(&group).unwrap();
                self.queue.done(&work, RUN);
            }
            ran
        }

        fn models(&mut self, count: usize) -> String {
            self.run(count)
                .into_iter()
                .map(|(model, _)| model)
                .collect()
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn two_thousand_runs_of_one_model_cost_another_one_run() {
        let mut bench = Bench::new(1);
        let refused = (0..2000)
            .filter(|_| bench.admit("a", LONG).is_err())
            .count();
        assert_eq!(refused, 2000 - QUEUED_RUNS);
        assert_eq!(bench.models(5), "aaaaa");
        for _ in 0..3 {
            bench.admit("b", LONG).unwrap();
        }
        assert_eq!(bench.models(7), "bababaa");
    }

    #[test]
    fn long_runs_get_no_more_time_than_short_ones() {
        let mut bench = Bench::new(1);
        for _ in 0..9 {
            bench.admit("short", LONG).unwrap();
            let (mut long, answer) = job("long");
            long.slice = 2;
            long.usual_seconds = 3.0 * RUN.as_secs_f64();
            long.deadline = Deadline::at(bench.begin + LONG);
            bench.queue.admit(long, bench.begin).unwrap();
            bench.answers.push(answer);
        }
        let mut seconds = BTreeMap::new();
        for _ in 0..8 {
            let group = bench.queue.take(bench.begin).unwrap();
            let work = bench.queue.begin(&group).unwrap();
            let took = Duration::from_secs_f64(work.seconds);
            bench.queue.done(&work, took);
            *seconds.entry(work.model.to_string()).or_insert(0) += took.as_millis();
        }
        assert_eq!(seconds, [("long".into(), 60), ("short".into(), 60)].into());
    }

    #[test]
    fn the_earliest_deadline_comes_first() {
        let mut bench = Bench::new(1);
        for seconds in [9, 5, 7, 5] {
            bench.admit("a", Duration::from_secs(seconds)).unwrap();
        }
        let left: Vec<u128> = bench.run(4).into_iter().map(|(_, left)| left).collect();
        assert_eq!(left, [5000, 5000, 7000, 9000]);
    }

    #[test]
    fn what_cannot_be_answered_in_time_is_refused_at_once() {
        let mut bench = Bench::new(1);
        // Nobody is before it: it is tried, whatever is expected.
        assert_eq!(bench.admit("a", RUN / 2), Ok(()));
        let left = 10 * RUN + RUN / 2;
        for _ in 0..9 {
            assert_eq!(bench.admit("a", left), Ok(()));
        }
        let Err(Refused::Crowded { wait, again }) = bench.admit("a", left) else {
            panic!("there is no time left for it");
        };
        assert!((wait.as_secs_f64() - 0.1).abs() < 1e-6, "{wait:?}");
        assert_eq!(again, AGAIN.0);
        // One that has more time, one with less that overtakes those, and one that has none.
        assert_eq!(bench.admit("a", 2 * left), Ok(()));
        assert_eq!(bench.admit("a", 5 * RUN), Ok(()));
        // A model that asks for little waits for no more than that of the others.
        assert_eq!(bench.admit("b", 3 * RUN), Ok(()));
        let refused = bench.admit("b", RUN + RUN / 2);
        assert!(
            matches!(refused, Err(Refused::Crowded { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn lanes_shorten_the_wait() {
        let admitted = |lanes| {
            let mut bench = Bench::new(lanes);
            let left = RUN * 106 / 10;
            (0..100).filter(|_| bench.admit("a", left).is_ok()).count()
        };
        assert_eq!((admitted(1), admitted(4)), (10, 39));
    }

    #[test]
    fn what_has_become_hopeless_makes_room() {
        let mut bench = Bench::new(1);
        bench.admit("a", RUN).unwrap();
        bench.admit("a", 9 * RUN).unwrap();
        // Somebody else had the worker.
        let now = bench.begin + 8 * RUN / 10;
        let group = bench.queue.take(now).unwrap();
        let left = group.first().unwrap().deadline.left_at(bench.begin);
        assert_eq!(left, 9 * RUN);
        let late = bench.answers[0].try_recv().unwrap();
        assert_eq!(late.unwrap_err(), EngineError::Late);
    }

    #[test]
    fn what_is_expected_follows_what_was_measured() {
        let mut bench = Bench::new(1);
        for _ in 0..40 {
            bench.admit("a", LONG).unwrap();
            let group = bench.queue.take(bench.begin).unwrap();
            let work = bench.queue.begin(&group).unwrap();
            bench.queue.done(&work, RUN / 10);
        }
        let pace = bench.queue.paces[&1];
        assert!((pace - 1e-3).abs() < 1e-4, "{pace}");
        bench.queue.forget(1);
        assert!(bench.queue.paces.is_empty());
    }

    #[test]
    fn nothing_is_kept_of_models_that_are_done() {
        let mut bench = Bench::new(1);
        for at in 0..50 {
            bench.admit(&format!("model-{at}"), LONG).unwrap();
            bench.run(1);
        }
        bench.admit("last", LONG).unwrap();
        bench.run(1);
        assert!(bench.queue.lines.is_empty() && bench.queue.running == 0);
    }
}

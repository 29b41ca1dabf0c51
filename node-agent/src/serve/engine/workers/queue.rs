//! Which run is next, and which need not wait at all. Pure: the time is passed in.
//!
//! Each model has a line, and all lines have an equal share of the worker's time, so that a
//! flood on one model costs the others no more than its share. The line that had least time
//! is next; an empty line accumulates no claim. Within a line the earliest deadline comes
//! first. A run that would wait longer than its caller does is refused at once, and runs that
//! became hopeless make room for others.

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
/// Weight of a new time in the expected time of the next run.
const NEWS: f64 = 0.2;
/// The longest plausible time of a run, in seconds per row.
const LONGEST_SECONDS: f64 = 3600.0;
/// Bounds of the retry delay for refused runs.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The runs that wait for one worker and those that it computes.
#[derive(Debug)]
pub(super) struct Queue {
    /// Concurrent runs.
    lanes: usize,
    lines: BTreeMap<Arc<str>, Line>,
    /// The time given to each line that has waited throughout, in seconds.
    given: f64,
    /// Number of arrivals, to keep their order.
    came: u64,
    running: usize,
    /// Expected seconds of all current runs, as of their start.
    running_seconds: f64,
    /// Seconds per row, by slice.
    paces: BTreeMap<u64, f64>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: BTreeMap<(Deadline, u64), RunJob>,
    /// The time that it was given, in seconds.
    given: f64,
}

/// Why a run is not queued.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Refused {
    /// How many of its model are waiting, and when there may be room.
    Full { waiting: usize, again: Duration },
    /// It would wait too long.
    Crowded { wait: Duration, again: Duration },
    /// The worker is gone.
    Closed,
}

/// What a group was charged at its start.
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

    /// Whether anything is waiting.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.values().all(|line| line.waiting.is_empty())
    }

    /// Queues `job`.
    ///
    /// # Errors
    /// There is no room for it, or it would wait too long.
    pub(super) fn admit(&mut self, mut job: RunJob, now: Instant) -> Result<(), Refused> {
        let (model, given) = (Arc::clone(&job.model), self.given);
        let line = self.lines.entry(model).or_default();
        if line.waiting.len() >= QUEUED_RUNS {
            // Abandoned runs take no place.
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

    /// The next run, as a group that others may join.
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
            // Expectations may be wrong: a run that delays no other is tried.
            let left = job.deadline.left_at(now).as_secs_f64();
            if left <= 0.0 || others > 0 && left < self.seconds(&job) / 2.0 {
                let _ = job.reply.send(Err(EngineError::Late));
                continue;
            }
            return Some(Group::of(job));
        }
    }

    /// Adds to `group` the runs that may be computed with it; returns whether anything else waits.
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

    /// Returns runs to their places in a line.
    pub(super) fn put_back(&mut self, jobs: Vec<RunJob>) {
        for job in jobs {
            let line = self.lines.entry(Arc::clone(&job.model)).or_default();
            line.waiting.insert((job.deadline, job.came), job);
        }
    }

    /// `group` starts.
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
            // The next runs owe nothing to those that are gone.
            self.lines.clear();
            self.given = 0.0;
        }
    }

    /// `slice` was unloaded.
    pub(super) fn forget(&mut self, slice: u64) {
        self.paces.remove(&slice);
    }

    /// Removes and returns all waiting runs.
    pub(super) fn clear(&mut self) -> Vec<RunJob> {
        let lines = std::mem::take(&mut self.lines);
        let jobs = lines.into_values().flat_map(|line| line.waiting);
        jobs.map(|(_, job)| job).collect()
    }

    /// Expected seconds of `job`.
    fn seconds(&self, job: &RunJob) -> f64 {
        let pace = self.paces.get(&job.slice).copied();
        let seconds = pace.unwrap_or(job.usual_seconds) * job.rows;
        seconds.clamp(0.0, LONGEST_SECONDS)
    }

    /// Seconds until `job` would start: the runs before it in its line, as much of each other line,
    /// and the rest of the current ones.
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

        /// Queues a run of `model` that takes ten milliseconds and has `left` from the start.
        fn admit(&mut self, model: &str, left: Duration) -> Result<(), Refused> {
            let (mut job, answer) = job(model);
            job.usual_seconds = RUN.as_secs_f64();
            job.deadline = Deadline::at(self.begin + left);
            self.answers.push(answer);
            self.queue.admit(job, self.begin)
        }

        /// The models of the next runs, each taking its expected time; with the time left until its
        /// deadline.
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
        // Nothing is before it: it is tried, whatever is expected.
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
        // One with more time, one with less that overtakes those, and one with none.
        assert_eq!(bench.admit("a", 2 * left), Ok(()));
        assert_eq!(bench.admit("a", 5 * RUN), Ok(()));
        // A model with few requests waits no longer than that for the others.
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
        // Another one had the worker.
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

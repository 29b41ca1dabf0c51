//! Runs that wait for a worker: a line for each model, taken in turn, so that a flood on one
//! model costs the others one run of it each time.

use super::group;
use super::runs::RunJob;
use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Runs that may wait in one line. Beyond it an answer would come too late anyway.
pub(super) const QUEUED_RUNS: usize = 256;
/// How long one waits for a place in its line.
const WAIT: Duration = Duration::from_millis(50);

/// The lines before one worker. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    came: Notify,
    left: Notify,
}

#[derive(Debug, Default)]
struct State {
    by_model: BTreeMap<Arc<str>, VecDeque<RunJob>>,
    /// Each model that has a line, once.
    turns: VecDeque<Arc<str>>,
    is_closed: bool,
}

/// Why a run does not wait here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// So many of its model wait.
    Full(usize),
    /// The worker is gone.
    Closed,
}

/// The end at which runs are taken; what waits is dropped with it.
#[derive(Debug)]
pub(super) struct Taker {
    lines: Lines,
}

impl Lines {
    pub(super) fn new() -> (Self, Taker) {
        let lines = Self::default();
        let taker = Taker {
            lines: lines.clone(),
        };
        (lines, taker)
    }

    /// Stands in line, for whose shortening it waits a moment.
    ///
    /// # Errors
    /// See [`Refused`].
    pub(super) async fn push(&self, mut job: RunJob) -> Result<(), Refused> {
        let until = Instant::now() + WAIT;
        loop {
            let mut left = pin!(self.shared.left.notified());
            // Or what leaves between the try and the wait is not noticed.
            left.as_mut().enable();
            match self.try_push(job) {
                Ok(()) => return Ok(()),
                Err((Refused::Closed, _)) => return Err(Refused::Closed),
                Err((full, back)) => {
                    job = *back;
                    timeout_at(until, left).await.map_err(|_| full)?;
                }
            }
        }
    }

    fn try_push(&self, job: RunJob) -> Result<(), (Refused, Box<RunJob>)> {
        let mut state = self.lock();
        let State {
            by_model,
            turns,
            is_closed,
        } = &mut *state;
        if *is_closed {
            return Err((Refused::Closed, Box::new(job)));
        }
        match by_model.get_mut(&job.model) {
            Some(line) => {
                if line.len() >= QUEUED_RUNS {
                    // Who gave up takes no place.
                    line.retain(|waiting| !waiting.reply.is_closed());
                }
                if line.len() >= QUEUED_RUNS {
                    return Err((Refused::Full(line.len()), Box::new(job)));
                }
                line.push_back(job);
            }
            None => {
                turns.push_back(Arc::clone(&job.model));
                by_model.insert(Arc::clone(&job.model), VecDeque::from([job]));
            }
        }
        drop(state);
        self.shared.came.notify_one();
        Ok(())
    }

    fn try_take(&self) -> Option<RunJob> {
        let mut state = self.lock();
        while let Some(model) = state.turns.pop_front() {
            let Some(line) = state.by_model.get_mut(&model) else {
                continue;
            };
            let job = line.pop_front();
            if line.is_empty() {
                state.by_model.remove(&model);
            } else {
                state.turns.push_back(model);
            }
            if job.is_some() {
                drop(state);
                self.shared.left.notify_waiters();
                return job;
            }
        }
        None
    }

    /// Moves those that may be computed with `group` behind it, and says whether anything
    /// else waits.
    fn take_mates(&self, group: &mut Vec<RunJob>) -> bool {
        let mut state = self.lock();
        let State {
            by_model, turns, ..
        } = &mut *state;
        let Some(model) = group.first().map(|job| Arc::clone(&job.model)) else {
            return false;
        };
        let before = group.len();
        if let Some(line) = by_model.get_mut(&model) {
            let waiting = std::mem::take(line);
            for job in waiting {
                if group::may_join(group, &job) {
                    group.push(job);
                } else {
                    line.push_back(job);
                }
            }
            if line.is_empty() {
                by_model.remove(&model);
                turns.retain(|turn| *turn != model);
            }
        }
        let others_wait = !by_model.is_empty();
        drop(state);
        if group.len() > before {
            self.shared.left.notify_waiters();
        }
        others_wait
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taker {
    /// The next run.
    pub(super) async fn next(&mut self) -> RunJob {
        loop {
            // One that comes now leaves a permit.
            let came = self.lines.shared.came.notified();
            if let Some(job) = self.lines.try_take() {
                return job;
            }
            came.await;
        }
    }

    /// The next run, with those that may be computed with it. For more of them it waits as
    /// long as the first one allows, while nobody else wants the worker.
    pub(super) async fn next_group(&mut self) -> Vec<RunJob> {
        let first = self.next().await;
        let until = first
            .together
            .map(|together| Instant::from_std(first.queued) + together.max_delay);
        let mut group = vec![first];
        let Some(until) = until else {
            return group;
        };
        loop {
            let came = self.lines.shared.came.notified();
            let others_wait = self.lines.take_mates(&mut group);
            if others_wait || group::is_full(&group) || timeout_at(until, came).await.is_err() {
                return group;
            }
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        let mut state = self.lines.lock();
        state.is_closed = true;
        state.turns.clear();
        let lost = std::mem::take(&mut state.by_model);
        drop(state);
        drop(lost);
        self.lines.shared.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{EngineError, Run, Together};
    use super::*;
    use futures::FutureExt as _;
    use lamina_model::{DataType, Tensor};
    use tokio::sync::oneshot;

    type Answer = oneshot::Receiver<Result<Run, EngineError>>;

    fn job(model: &str) -> (RunJob, Answer) {
        let (reply, answer) = oneshot::channel();
        let job = RunJob {
            model: model.into(),
            slice: 1,
            inputs: Vec::new(),
            together: None,
            limit: Duration::from_secs(1),
            answer_bytes: Arc::default(),
            begun: Arc::default(),
            queued: std::time::Instant::now(),
            reply,
        };
        (job, answer)
    }

    /// Answers of so many runs of `model` that stand in line, and refusals.
    async fn flood(lines: &Lines, model: &str, runs: usize) -> (Vec<Answer>, usize) {
        let mut inside = Vec::new();
        let mut refused = 0;
        for _ in 0..runs {
            let (job, answer) = job(model);
            match lines.push(job).await {
                Ok(()) => inside.push(answer),
                Err(Refused::Full(QUEUED_RUNS)) => refused += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        (inside, refused)
    }

    #[tokio::test(start_paused = true)]
    async fn two_thousand_runs_of_one_model_cost_another_one_run() {
        let (lines, mut taker) = Lines::new();
        let (_answers, refused) = flood(&lines, "a", 2000).await;
        assert_eq!(refused, 2000 - QUEUED_RUNS);
        let (mut others, refused) = flood(&lines, "b", 3).await;
        assert_eq!(refused, 0);
        let mut taken = Vec::new();
        for _ in 0..7 {
            taken.push(taker.next().await.model.to_string());
        }
        assert_eq!(taken, ["a", "b", "a", "b", "a", "b", "a"]);
        assert!(others.iter_mut().all(|answer| answer.try_recv().is_err()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_the_line_full_waits_a_moment() {
        let (lines, mut taker) = Lines::new();
        let (mut answers, _) = flood(&lines, "a", QUEUED_RUNS).await;
        let takes = async {
            tokio::time::sleep(WAIT / 2).await;
            taker.next().await
        };
        let (next, answer) = job("a");
        answers.push(answer);
        let (pushed, _) = tokio::join!(lines.push(next), takes);
        assert_eq!(pushed, Ok(()));
        let begin = Instant::now();
        let refused = lines.push(job("a").0).await;
        assert_eq!(refused, Err(Refused::Full(QUEUED_RUNS)));
        assert_eq!(begin.elapsed(), WAIT);
        // Who gave up makes room.
        answers.pop();
        assert_eq!(lines.push(job("a").0).await, Ok(()));
    }

    fn row(model: &str, delay: Duration) -> (RunJob, Answer) {
        let (mut job, answer) = job(model);
        job.inputs = vec![Tensor {
            datatype: DataType::Uint8,
            shape: vec![1],
            data: vec![0].into(),
        }];
        job.together = Some(Together {
            max_rows: 3,
            max_delay: delay,
        });
        (job, answer)
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_one_slice_is_taken_together() {
        let (lines, mut taker) = Lines::new();
        let mut answers = Vec::new();
        for model in ["a", "a", "b", "a", "a"] {
            let (job, answer) = row(model, Duration::ZERO);
            answers.push(answer);
            lines.push(job).await.unwrap();
        }
        let mut taken = Vec::new();
        for _ in 0..3 {
            let group = taker.next_group().await;
            taken.push((group[0].model.to_string(), group.len()));
        }
        assert_eq!(taken, [("a".into(), 3), ("b".into(), 1), ("a".into(), 1)]);
        // Each line has one turn still.
        let (job, _answer) = row("a", Duration::ZERO);
        lines.push(job).await.unwrap();
        assert_eq!(lines.lock().turns.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_free_worker_waits_for_mates_as_long_as_nobody_else_comes() {
        let (lines, mut taker) = Lines::new();
        let delay = Duration::from_millis(20);
        let (first, _first) = row("a", delay);
        lines.push(first).await.unwrap();
        let later = async {
            tokio::time::sleep(delay / 2).await;
            let (second, answer) = row("a", delay);
            lines.push(second).await.unwrap();
            (answer,)
        };
        let (group, (_second,)) = tokio::join!(taker.next_group(), later);
        assert_eq!(group.len(), 2);

        let (first, _first) = row("a", Duration::from_secs(60));
        lines.push(first).await.unwrap();
        let (other, _other) = row("b", delay);
        lines.push(other).await.unwrap();
        let begin = Instant::now();
        assert_eq!(taker.next_group().await.len(), 1);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn with_the_worker_what_waits_is_lost_and_nothing_comes_any_more() {
        let (lines, mut taker) = Lines::new();
        assert!(taker.next().now_or_never().is_none());
        let (waiting, mut answer) = job("a");
        lines.push(waiting).await.unwrap();
        drop(taker);
        assert!(matches!(
            answer.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        ));
        assert_eq!(lines.push(job("a").0).await, Err(Refused::Closed));
    }
}

//! The queue of a worker, for those that add runs and those that take them.

use super::group::Group;
use super::queue::{Queue, Refused, Work};
use super::runs::RunJob;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Where runs wait for one worker. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// `None` once the worker is gone.
    queue: Mutex<Option<Queue>>,
    came: Notify,
}

/// The end from which one lane takes runs; dropping it drops the waiting ones.
#[derive(Debug)]
pub(super) struct Taker {
    shared: Arc<Shared>,
}

impl Lines {
    /// A queue, and an end of it for each of `lanes`.
    pub(super) fn new(lanes: usize) -> (Self, Vec<Taker>) {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Some(Queue::new(lanes))),
            came: Notify::new(),
        });
        let taker = || Taker {
            shared: Arc::clone(&shared),
        };
        let takers = std::iter::repeat_with(taker).take(lanes).collect();
        (Self { shared }, takers)
    }

    /// Queues a run.
    ///
    /// # Errors
    /// See [`Refused`].
    pub(super) fn push(&self, job: RunJob) -> Result<(), Refused> {
        let mut queue = self.shared.lock();
        let queue = queue.as_mut().ok_or(Refused::Closed)?;
        queue.admit(job, Instant::now())?;
        self.shared.came.notify_one();
        Ok(())
    }

    /// `slice` was unloaded.
    pub(super) fn forget(&self, slice: u64) {
        if let Some(queue) = self.shared.lock().as_mut() {
            queue.forget(slice);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Queue>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taker {
    async fn next(&mut self) -> Group {
        loop {
            // One that comes now leaves a permit.
            let came = self.shared.came.notified();
            let next = self.queue(|queue| queue.take(Instant::now()));
            if let Some(group) = next.flatten() {
                return group;
            }
            came.await;
        }
    }

    /// The next run, with those that may be computed with it. Waits for more of them as long as the
    /// first one allows, while nobody else needs the worker.
    pub(super) async fn next_group(&mut self) -> Group {
        let mut group = self.next().await;
        let until = group.first().and_then(|first| {
            let together = first.together?;
            Some(Instant::from_std(first.queued) + together.max_delay)
        });
        while let Some(until) = until {
            let came = self.shared.came.notified();
            let others_wait = self.queue(|queue| queue.fill(&mut group));
            let is_wanted = others_wait.unwrap_or(true);
            if is_wanted || group.is_full() || timeout_at(until, came).await.is_err() {
                break;
            }
        }
        let surplus = group.cut();
        self.queue(|queue| queue.put_back(surplus));
        // Another lane may have taken it meanwhile.
        if self.queue(|queue| !queue.is_empty()) == Some(true) {
            self.shared.came.notify_one();
        }
        group
    }

    /// `group` starts.
    pub(super) fn begin(&self, group: &Group) -> Option<Work> {
        self.queue(|queue| queue.begin(group)).flatten()
    }

    /// `work` took this long.
    pub(super) fn done(&self, work: &Work, took: Duration) {
        self.queue(|queue| queue.done(work, took));
    }

    fn queue<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        self.shared.lock().as_mut().map(change)
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        // Their callers are notified without the lock.
        let lost = self.shared.lock().take().map(|mut queue| queue.clear());
        drop(lost);
    }
}

#[cfg(test)]
mod tests {
    use super::super::runs::testing::{Answer, job};
    use super::*;
    use crate::serve::engine::{Batches, Together};
    use futures::FutureExt as _;
    use lamina_model::{DataType, Tensor};
    use tokio::sync::oneshot;

    fn row(model: &str, delay: Duration) -> (RunJob, Answer) {
        let (mut job, answer) = job(model);
        job.inputs = vec![Tensor {
            datatype: DataType::Uint8,
            shape: vec![1],
            data: vec![0].into(),
        }];
        job.together = Some(Together {
            rows: Batches::of([2]),
            max_delay: delay,
        });
        (job, answer)
    }

    fn lines(lanes: usize) -> (Lines, Vec<Taker>) {
        Lines::new(lanes)
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_one_slice_is_taken_together() {
        let (lines, mut takers) = lines(1);
        let mut answers = Vec::new();
        for model in ["a", "a", "b", "a", "a"] {
            let (job, answer) = row(model, Duration::ZERO);
            answers.push(answer);
            lines.push(job).unwrap();
        }
        let mut taken = Vec::new();
        for _ in 0..3 {
            let group = takers[0].next_group().await;
            takers[0].begin(&group).unwrap();
            taken.push((group.jobs()[0].model.to_string(), group.jobs().len()));
        }
        assert_eq!(taken, [("a".into(), 2), ("b".into(), 1), ("a".into(), 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_free_worker_waits_for_mates_as_long_as_nobody_else_comes() {
        let (lines, mut takers) = lines(1);
        let delay = Duration::from_millis(20);
        let (first, _first) = row("a", delay);
        lines.push(first).unwrap();
        let (second, _second) = row("a", delay);
        let later = async {
            tokio::time::sleep(delay / 2).await;
            lines.push(second).unwrap();
        };
        let (group, ()) = tokio::join!(takers[0].next_group(), later);
        assert_eq!(group.jobs().len(), 2);

        let (first, _first) = row("a", Duration::from_secs(60));
        lines.push(first).unwrap();
        let (other, _other) = row("b", delay);
        lines.push(other).unwrap();
        let begin = Instant::now();
        assert_eq!(takers[0].next_group().await.jobs().len(), 1);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn no_lane_sleeps_while_runs_wait() {
        let (lines, takers) = lines(3);
        let taken = takers.into_iter().map(|mut taker| {
            tokio::spawn(async move {
                let group = taker.next_group().await;
                (group, taker)
            })
        });
        let taken: Vec<_> = taken.collect();
        tokio::task::yield_now().await;
        // All three come before any lane wakes.
        let answers: Vec<Answer> = (0..3)
            .map(|_| {
                let (job, answer) = job("a");
                lines.push(job).unwrap();
                answer
            })
            .collect();
        let mut ends = Vec::new();
        for lane in taken {
            let lane = tokio::time::timeout(Duration::from_secs(1), lane).await;
            ends.push(lane.unwrap().unwrap());
        }
        assert_eq!(answers.len(), ends.len());
    }

    #[tokio::test]
    async fn with_the_worker_what_waits_is_lost_and_nothing_comes_any_more() {
        let (lines, mut takers) = lines(1);
        assert!(takers[0].next_group().now_or_never().is_none());
        let (waiting, mut answer) = job("a");
        lines.push(waiting).unwrap();
        drop(takers);
        assert!(matches!(
            answer.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        ));
        assert_eq!(lines.push(job("a").0), Err(Refused::Closed));
    }
}

use super::{Failure, Step, StepName};
use lamina_model::Digest;
use lamina_proto::control::{
    PrepareDone, PrepareFailed, PrepareProgress, PrepareUpdate, prepare_update::Update,
};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// People do not read faster.
const INTERVAL: Duration = Duration::from_millis(300);

/// Sends the progress of a job to the session.
#[derive(Debug)]
pub(super) struct Updates {
    job: String,
    sender: mpsc::Sender<PrepareUpdate>,
    last: Option<(Instant, StepName)>,
}

impl Updates {
    pub(super) const fn new(job: String, sender: mpsc::Sender<PrepareUpdate>) -> Self {
        Self {
            job,
            sender,
            last: None,
        }
    }

    /// Forwards progress, at most every 300 ms within a step. Never waits: if the session's queue
    /// is full, it is dropped.
    pub(super) fn progress(&mut self, step: Step) {
        let now = Instant::now();
        if !is_due(self.last, now, step.step) {
            return;
        }
        self.last = Some((now, step.step));
        let update = self.update(Update::Progress(PrepareProgress {
            step: step.step.as_str().to_owned(),
            done: step.done,
            total: step.total,
            bytes: step.step == StepName::Fetching,
        }));
        if self.sender.try_send(update).is_err() {
            tracing::debug!(job = self.job, "progress is not taken");
        }
    }

    /// The last message of the job.
    pub(super) async fn end(self, outcome: Result<Digest, Failure>) {
        let update = self.update(match outcome {
            Ok(manifest) => Update::Done(PrepareDone {
                manifest_digest: manifest.to_string(),
            }),
            Err(failure) => Update::Failed(failed(failure)),
        });
        if self.sender.send(update).await.is_err() {
            tracing::warn!(job = self.job, "nobody hears how the job ended");
        }
    }

    fn update(&self, update: Update) -> PrepareUpdate {
        PrepareUpdate {
            job: self.job.clone(),
            update: Some(update),
        }
    }
}

fn failed(failure: Failure) -> PrepareFailed {
    PrepareFailed {
        reason: failure.reason.as_str().to_owned(),
        message: failure.message,
        retryable: failure.retryable,
    }
}

fn is_due(last: Option<(Instant, StepName)>, now: Instant, step: StepName) -> bool {
    last.is_none_or(|(at, last)| last != step || now.duration_since(at) >= INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_step_is_told_at_once_and_a_known_one_now_and_then() {
        let now = Instant::now();
        let last = Some((now, StepName::Fetching));
        let soon = now + Duration::from_millis(299);
        assert!(is_due(None, now, StepName::Fetching));
        assert!(!is_due(last, soon, StepName::Fetching));
        assert!(is_due(last, soon, StepName::Slicing));
        assert!(is_due(last, now + INTERVAL, StepName::Fetching));
    }
}

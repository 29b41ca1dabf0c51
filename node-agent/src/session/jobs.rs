use lamina_proto::control::{Prepare, PrepareUpdate};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Starts a job elsewhere and returns at once. The job sends its updates, the last of them Done or
/// Failed, and ends early if cancelled.
pub(crate) type JobStarter =
    Arc<dyn Fn(Prepare, mpsc::UnboundedSender<PrepareUpdate>, CancellationToken) + Send + Sync>;

/// The prepare jobs of this agent. They outlive sessions: an operator that reconnects joins the job
/// that it started before.
#[derive(Clone)]
pub(crate) struct Jobs {
    start: JobStarter,
    updates: mpsc::UnboundedSender<PrepareUpdate>,
    incoming: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<PrepareUpdate>>>,
    held: Arc<Mutex<BTreeMap<String, Job>>>,
}

struct Job {
    cancel: CancellationToken,
    last: Option<PrepareUpdate>,
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

impl Jobs {
    /// Without jobs.
    pub(crate) fn new(start: JobStarter) -> Self {
        let (updates, incoming) = mpsc::unbounded_channel();
        Self {
            start,
            updates,
            incoming: Arc::new(tokio::sync::Mutex::new(incoming)),
            held: Arc::default(),
        }
    }

    /// Starts `job`, or joins the one of that name: its last update is sent again.
    pub(crate) fn begin(&self, job: Prepare) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = held.get(&job.job) {
            if let Some(last) = known.last.clone() {
                // The receiver lives as long as this does.
                let _ = self.updates.send(last);
            }
            return;
        }
        let cancel = CancellationToken::new();
        held.insert(
            job.job.clone(),
            Job {
                cancel: cancel.clone(),
                last: None,
            },
        );
        (self.start)(job, self.updates.clone(), cancel);
    }

    /// Ends `job` and forgets it, so that it can be started again.
    pub(crate) fn cancel(&self, job: &str) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = held.remove(job) {
            job.cancel.cancel();
        }
    }

    /// The next update of any job.
    pub(crate) async fn next(&self) -> Option<PrepareUpdate> {
        let update = self.incoming.lock().await.recv().await?;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = held.get_mut(&update.job) {
            job.last = Some(update.clone());
        }
        Some(update)
    }

    /// The last update of every job, for an operator that just connected.
    pub(crate) fn last_updates(&self) -> Vec<PrepareUpdate> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.values().filter_map(|j| j.last.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_proto::control::prepare_update::Update;
    use lamina_proto::control::{PrepareDone, PrepareProgress};
    use std::sync::atomic::{AtomicU32, Ordering};

    fn job(name: &str) -> Prepare {
        Prepare {
            job: name.to_owned(),
            ..Prepare::default()
        }
    }

    fn update(name: &str, update: Update) -> PrepareUpdate {
        PrepareUpdate {
            job: name.to_owned(),
            update: Some(update),
        }
    }

    #[tokio::test]
    async fn a_job_is_started_once_and_joined_afterwards() {
        let starts = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&starts);
        let jobs = Jobs::new(Arc::new(move |job, updates, _| {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = updates.send(update(
                &job.job,
                Update::Progress(PrepareProgress::default()),
            ));
            let _ = updates.send(update(&job.job, Update::Done(PrepareDone::default())));
        }));
        jobs.begin(job("a"));
        assert!(matches!(
            jobs.next().await.unwrap().update,
            Some(Update::Progress(_))
        ));
        assert!(matches!(
            jobs.next().await.unwrap().update,
            Some(Update::Done(_))
        ));
        jobs.begin(job("a"));
        assert!(matches!(
            jobs.next().await.unwrap().update,
            Some(Update::Done(_))
        ));
        assert_eq!(jobs.last_updates().len(), 1);
        assert_eq!(starts.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_cancelled_job_is_told_and_may_start_anew() {
        let starts = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&starts);
        let token = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&token);
        let jobs = Jobs::new(Arc::new(move |_, _, cancel| {
            count.fetch_add(1, Ordering::Relaxed);
            *seen.lock().unwrap() = Some(cancel);
        }));
        jobs.begin(job("a"));
        jobs.cancel("a");
        assert!(token.lock().unwrap().as_ref().unwrap().is_cancelled());
        jobs.begin(job("a"));
        assert_eq!(starts.load(Ordering::Relaxed), 2);
    }
}

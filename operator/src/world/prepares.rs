//! Prepare jobs: which agent runs them, and their progress.

use super::types::{PrepareRequest, PrepareState, WorldError};
use lamina_proto::control::operator_message::Message;
use lamina_proto::control::prepare_update::Update;
use lamina_proto::control::{CancelPrepare, Prepare, PrepareUpdate};
use std::collections::BTreeMap;

/// Longest step name and longest message kept from an agent.
const LONGEST_WORD: usize = 64;
const LONGEST_MESSAGE: usize = 2000;

/// Every job that was started and not forgotten.
#[derive(Debug, Default)]
pub(super) struct Prepares {
    jobs: BTreeMap<String, Job>,
}

#[derive(Debug)]
struct Job {
    request: PrepareRequest,
    state: PrepareState,
}

/// The result of an agent's report on a job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The job's state changed.
    Changed,
    /// Nothing changed.
    Same,
    /// Nobody wants this job of that agent: it should stop.
    Unwanted,
}

impl Prepares {
    /// Starts a job, or restarts one that ended without a result. Returns the message for the
    /// node's agent; `None` if it already runs there.
    pub(super) fn start(&mut self, request: PrepareRequest) -> Result<Option<Message>, WorldError> {
        if let Some(job) = self.jobs.get(&request.job)
            && let PrepareState::Running { node, .. } = &job.state
        {
            if *node == request.node && job.request == request {
                return Ok(None);
            }
            return Err(WorldError::Running {
                job: request.job,
                node: node.clone(),
            });
        }
        let message = to_message(&request);
        let state = just_started(&request.node);
        self.jobs
            .insert(request.job.clone(), Job { request, state });
        Ok(Some(message))
    }

    /// Notes that a job cannot be given to its node's agent, with `message` for people.
    pub(super) fn refuse(&mut self, request: PrepareRequest, message: String) {
        let state = PrepareState::Failed {
            node: request.node.clone(),
            reason: lamina_crds::reasons::FETCH_FAILED.to_owned(),
            message,
            retryable: true,
        };
        self.jobs
            .insert(request.job.clone(), Job { request, state });
    }

    /// The state of a job.
    pub(super) fn state(&self, job: &str) -> Option<PrepareState> {
        self.jobs.get(job).map(|j| j.state.clone())
    }

    /// Every job with its state.
    pub(super) fn all(&self) -> BTreeMap<String, PrepareState> {
        self.jobs
            .iter()
            .map(|(name, job)| (name.clone(), job.state.clone()))
            .collect()
    }

    /// Drops a job. Returns the node that must stop it, and the message for it.
    pub(super) fn forget(&mut self, job: &str) -> Option<(String, Message)> {
        match self.jobs.remove(job)?.state {
            PrepareState::Running { node, .. } => Some((node, cancel(job))),
            _ => None,
        }
    }

    /// The messages for an agent that opened a session: a job continues, or starts again if the
    /// agent restarted.
    pub(super) fn running_on(&self, node: &str) -> Vec<Message> {
        self.jobs
            .values()
            .filter(|job| matches!(&job.state, PrepareState::Running { node: n, .. } if n == node))
            .map(|job| to_message(&job.request))
            .collect()
    }

    /// Marks the jobs of a lost node as lost, and returns them.
    pub(super) fn node_lost(&mut self, node: &str) -> Vec<String> {
        let mut lost = Vec::new();
        for (name, job) in &mut self.jobs {
            if matches!(&job.state, PrepareState::Running { node: n, .. } if n == node) {
                job.state = PrepareState::Lost {
                    node: node.to_owned(),
                };
                lost.push(name.clone());
            }
        }
        lost
    }

    /// Drops and returns the unfinished jobs of a host that is gone. Finished ones are in the
    /// store, and may still be asked for.
    pub(super) fn forget_node(&mut self, node: &str) -> Vec<String> {
        let is_gone = |state: &PrepareState| match state {
            PrepareState::Running { node: n, .. }
            | PrepareState::Failed { node: n, .. }
            | PrepareState::Lost { node: n } => n == node,
            PrepareState::Done { .. } => false,
        };
        let gone = self.jobs.extract_if(.., |_, job| is_gone(&job.state));
        gone.map(|(name, _)| name).collect()
    }

    /// Handles a report of the agent of `node` on a job.
    pub(super) fn update(&mut self, node: &str, update: PrepareUpdate) -> Outcome {
        let (Some(job), Some(news)) = (self.jobs.get_mut(&update.job), update.update) else {
            return Outcome::Unwanted;
        };
        match &job.state {
            // Ended jobs stay ended; an agent may repeat this after a reconnect.
            PrepareState::Done { .. } | PrepareState::Failed { .. } => return Outcome::Same,
            PrepareState::Running { node: n, .. } | PrepareState::Lost { node: n } if n != node => {
                return Outcome::Unwanted;
            }
            PrepareState::Running { .. } | PrepareState::Lost { .. } => {}
        }
        let state = to_state(node, news);
        if job.state == state {
            return Outcome::Same;
        }
        if !matches!(state, PrepareState::Running { .. }) {
            // No longer needed.
            job.request.secret = None;
        }
        job.state = state;
        Outcome::Changed
    }
}

/// The message that stops a job.
pub(super) fn cancel(job: &str) -> Message {
    Message::CancelPrepare(CancelPrepare {
        job: job.to_owned(),
    })
}

fn just_started(node: &str) -> PrepareState {
    PrepareState::Running {
        node: node.to_owned(),
        step: String::new(),
        done: 0,
        total: 0,
        bytes: false,
    }
}

fn to_message(request: &PrepareRequest) -> Message {
    let samples = request.samples.clone();
    let (samples_uri, samples_sha256) = samples.map(|s| (s.uri, s.sha256)).unwrap_or_default();
    Message::Prepare(Prepare {
        job: request.job.clone(),
        uri: request.uri.clone(),
        sha256: request.sha256.clone(),
        inputs_json: request.inputs_json.clone(),
        secret: request.secret.clone(),
        samples_uri,
        samples_sha256,
    })
}

/// At most `most` bytes of `text`, in whole characters.
fn shortened(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|i| text.is_char_boundary(*i));
        text.truncate(end.unwrap_or_default());
    }
    text
}

fn to_state(node: &str, news: Update) -> PrepareState {
    let node = node.to_owned();
    match news {
        Update::Progress(p) => PrepareState::Running {
            node,
            step: shortened(p.step, LONGEST_WORD),
            done: p.done,
            total: p.total,
            bytes: p.bytes,
        },
        Update::Done(d) => PrepareState::Done {
            node,
            manifest_digest: shortened(d.manifest_digest, LONGEST_WORD),
        },
        Update::Failed(f) => PrepareState::Failed {
            node,
            reason: shortened(f.reason, LONGEST_WORD),
            message: shortened(f.message, LONGEST_MESSAGE),
            retryable: f.retryable,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_proto::control::SourceSecret;

    fn request(node: &str) -> PrepareRequest {
        PrepareRequest {
            job: "j".into(),
            node: node.into(),
            uri: "http://files/m.pt".into(),
            sha256: String::new(),
            inputs_json: "[]".into(),
            secret: None,
            samples: None,
        }
    }

    fn done() -> PrepareUpdate {
        PrepareUpdate {
            job: "j".into(),
            update: Some(Update::Done(lamina_proto::control::PrepareDone {
                manifest_digest: "m".into(),
            })),
        }
    }

    #[test]
    fn a_job_runs_on_one_node_until_it_ends() {
        let mut jobs = Prepares::default();
        assert!(jobs.start(request("a")).unwrap().is_some());
        assert_eq!(jobs.start(request("a")), Ok(None), "it goes on");
        assert!(matches!(
            jobs.start(request("b")),
            Err(WorldError::Running { .. })
        ));
        assert_eq!(jobs.running_on("a").len(), 1);
        assert_eq!(jobs.update("b", done()), Outcome::Unwanted);
        assert_eq!(jobs.update("a", done()), Outcome::Changed);
        assert_eq!(jobs.update("a", done()), Outcome::Same);
        assert!(jobs.running_on("a").is_empty());
        assert_eq!(jobs.forget("j"), None, "nobody is at it");
        assert_eq!(jobs.update("a", done()), Outcome::Unwanted);
    }

    #[test]
    fn a_job_that_is_refused_failed_and_may_begin_anew() {
        let mut jobs = Prepares::default();
        jobs.refuse(request("a"), "no Secret".into());
        let state = jobs.state("j");
        assert!(
            matches!(&state, Some(PrepareState::Failed { message, retryable: true, .. })
                if message == "no Secret"),
            "{state:?}"
        );
        assert_eq!(jobs.forget("j"), None, "no agent knows of it");
        assert!(jobs.start(request("a")).unwrap().is_some());
    }

    #[test]
    fn what_a_source_wants_to_see_reaches_the_agent_and_no_log() {
        let entry = ("token".to_owned(), bytes::Bytes::from_static(b"hidden"));
        let request = PrepareRequest {
            secret: Some(SourceSecret {
                entries: [entry].into(),
            }),
            ..request("a")
        };
        let mut jobs = Prepares::default();
        let message = jobs.start(request.clone()).unwrap().unwrap();
        let shown = format!("{message:?} {request:?} {jobs:?}");
        assert!(
            shown.contains("token") && !shown.contains("hidden"),
            "{shown}"
        );
        let Message::Prepare(prepare) = message else {
            panic!("{message:?}");
        };
        assert_eq!(prepare.secret.unwrap().entries["token"], b"hidden"[..]);
    }

    #[test]
    fn samples_are_told_where_there_are_some() {
        let told = |samples: Option<lamina_crds::dnn_model::Samples>| {
            let request = PrepareRequest {
                samples,
                ..request("a")
            };
            match to_message(&request) {
                Message::Prepare(told) => (told.samples_uri, told.samples_sha256),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(told(None), (String::new(), String::new()));
        let samples = lamina_crds::dnn_model::Samples {
            uri: "http://files/s".into(),
            sha256: "ab".into(),
        };
        assert_eq!(told(Some(samples)), ("http://files/s".into(), "ab".into()));
    }

    #[test]
    fn a_lost_node_may_still_finish_before_another_begins() {
        let mut jobs = Prepares::default();
        jobs.start(request("a")).unwrap();
        assert_eq!(jobs.node_lost("a"), ["j"]);
        assert!(matches!(jobs.state("j"), Some(PrepareState::Lost { .. })));
        assert_eq!(jobs.update("a", done()), Outcome::Changed);
        assert!(matches!(jobs.state("j"), Some(PrepareState::Done { .. })));
    }

    #[test]
    fn a_host_that_is_gone_takes_what_it_did_not_finish_along() {
        let mut jobs = Prepares::default();
        jobs.start(request("a")).unwrap();
        assert_eq!(jobs.forget_node("b"), [""; 0]);
        assert_eq!(jobs.forget_node("a"), ["j"]);
        jobs.start(request("a")).unwrap();
        jobs.update("a", done());
        assert_eq!(jobs.forget_node("a"), [""; 0]);
        assert!(jobs.state("j").is_some());
    }

    #[test]
    fn what_an_agent_says_is_kept_in_bounds() {
        let mut jobs = Prepares::default();
        jobs.start(request("a")).unwrap();
        let failed = PrepareUpdate {
            job: "j".into(),
            update: Some(Update::Failed(lamina_proto::control::PrepareFailed {
                reason: "x".repeat(1 << 20),
                message: "é".repeat(1 << 20),
                retryable: true,
            })),
        };
        assert_eq!(jobs.update("a", failed), Outcome::Changed);
        let Some(PrepareState::Failed {
            reason, message, ..
        }) = jobs.state("j")
        else {
            panic!("not failed");
        };
        assert_eq!(
            (reason.len(), message.len()),
            (LONGEST_WORD, LONGEST_MESSAGE)
        );
    }

    #[test]
    fn forgetting_stops_the_agent_that_is_at_it() {
        let mut jobs = Prepares::default();
        jobs.start(request("a")).unwrap();
        assert_eq!(jobs.forget("j"), Some(("a".to_owned(), cancel("j"))));
    }
}

//! From the entry along the path, again where a host fails on the way.

use super::error::{FrontError, Setback};
use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::hop::Forwarder;
use crate::routes::{Model, Routes, Ticket};
use crate::shared::{Outcome, RequestKey, RequestSample};
use lamina_proto::hop::{ForwardReply, ForwardRequest, Tensor};
use std::time::{Duration, Instant};
use tonic::Code;

/// Pauses between tries: a host that restarts or a route that moves takes some
/// hundred milliseconds at least.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Sends requests of models whose entry is this host.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    pub(super) routes: Routes,
    pub(super) forwarder: Forwarder,
}

/// A request on its way into the path.
#[derive(Debug, Clone)]
pub(super) struct Inbound {
    pub(super) id: String,
    pub(super) traceparent: String,
    pub(super) tensors: Vec<Tensor>,
}

/// An answer with the revision that gave it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) revision: i64,
    pub(super) path: String,
    pub(super) reply: ForwardReply,
}

/// Whether another try on the route as it then is may succeed. Inference is
/// pure, so it may be made.
pub(super) const fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::FailedPrecondition | Code::Cancelled
    )
}

/// Counts tries and pauses between them.
pub(super) struct Tries {
    deadline: Deadline,
    pauses: Backoff,
    pub(super) failed: u32,
}

impl Tries {
    pub(super) const fn until(deadline: Deadline) -> Self {
        Self {
            deadline,
            pauses: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            failed: 0,
        }
    }

    /// Waits after a try that met `setback`.
    ///
    /// # Errors
    /// No time is left for another one.
    pub(super) async fn pause(&mut self, setback: Setback) -> Result<(), FrontError> {
        self.failed += 1;
        let pause = tokio::time::sleep(self.pauses.next_wait());
        let paused = self.deadline.bound(pause).await;
        paused.ok_or(FrontError::OutOfTime {
            tries: self.failed,
            last: setback,
        })
    }
}

impl Dispatcher {
    /// The answer to `inbound`.
    ///
    /// # Errors
    /// The model does not serve, the request does not fit, or no try succeeded
    /// before the deadline.
    pub(super) async fn answer(
        &self,
        model: &Model,
        inbound: &Inbound,
        deadline: Deadline,
    ) -> Result<Answered, FrontError> {
        let begin = Instant::now();
        let mut tries = Tries::until(deadline);
        let mut revision = 0;
        let outcome = self.try_on(model, inbound, &mut tries, &mut revision).await;
        let outcome_kind = match &outcome {
            Ok(_) => Outcome::Answered,
            Err(error) if is_clients_doing(error) => return outcome,
            Err(_) => Outcome::Failed,
        };
        let key = RequestKey {
            placement_uid: model.placement_uid.clone(),
            revision,
        };
        let sample = RequestSample {
            outcome: outcome_kind,
            latency_s: begin.elapsed().as_secs_f64(),
            retried: tries.failed,
        };
        self.forwarder.telemetry.request_done(key, sample);
        outcome
    }

    async fn try_on(
        &self,
        model: &Model,
        inbound: &Inbound,
        tries: &mut Tries,
        revision: &mut i64,
    ) -> Result<Answered, FrontError> {
        loop {
            let setback = match self.routes.begin(&model.placement_uid) {
                None if tries.failed == 0 => {
                    return Err(FrontError::NotServing(model.full_name.clone()));
                }
                None => Setback::NotServing,
                Some(ticket) => {
                    *revision = ticket.revision;
                    match self
                        .attempt(&model.placement_uid, ticket, inbound, tries.deadline)
                        .await
                    {
                        Ok(answered) => return Ok(answered),
                        Err(Setback::Hop(error)) if !is_passing(error.code()) => {
                            return Err(error.into());
                        }
                        Err(setback) => setback,
                    }
                }
            };
            tracing::debug!(id = inbound.id, revision = *revision, %setback, "trying again");
            tries.pause(setback).await?;
        }
    }

    /// One try; the ticket ends with it.
    async fn attempt(
        &self,
        placement_uid: &str,
        ticket: Ticket,
        inbound: &Inbound,
        deadline: Deadline,
    ) -> Result<Answered, Setback> {
        let request = ForwardRequest {
            placement_uid: placement_uid.to_owned(),
            revision: ticket.revision,
            segment: 0,
            request_id: inbound.id.clone(),
            traceparent: inbound.traceparent.clone(),
            tensors: inbound.tensors.clone(),
        };
        let reply = tokio::select! {
            reply = self.forwarder.send(&ticket.first, request, deadline) => reply?,
            () = ticket.abandoned.cancelled() => return Err(Setback::Abandoned(ticket.revision)),
        };
        Ok(Answered {
            revision: ticket.revision,
            path: ticket.path.clone(),
            reply,
        })
    }
}

const fn is_clients_doing(error: &FrontError) -> bool {
    matches!(error.code(), Code::InvalidArgument)
}

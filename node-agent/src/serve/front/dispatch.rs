//! From the entry along the path, again where a host fails on the way.

use super::error::{FrontError, Setback};
use super::trouble::{PAUSES, Troubles, Turn};
use crate::net::Backoff;
use crate::serve::deadline::Deadline;
use crate::serve::hop::Forwarder;
use crate::serve::routes::{Model, Routes, Ticket};
use crate::telemetry::{Outcome, RequestKey, RequestSample};
use lamina_proto::hop::{ForwardReply, ForwardRequest, Tensor};
use std::future::Future;
use std::time::Instant;
use tonic::Code;

/// Sends requests of models whose entry is this host.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    pub(super) routes: Routes,
    pub(super) forwarder: Forwarder,
    pub(super) troubles: Troubles,
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
            pauses: PAUSES,
            failed: 0,
        }
    }

    /// Waits after a try that met `setback`.
    ///
    /// # Errors
    /// No time is left for another one.
    pub(super) async fn pause(&mut self, setback: Setback) -> Result<(), FrontError> {
        let pause = tokio::time::sleep(self.pauses.next_wait());
        self.wait(setback, pause).await
    }

    /// Waits for `pause` after a try that met `setback`.
    async fn wait(
        &mut self,
        setback: Setback,
        pause: impl Future<Output = ()>,
    ) -> Result<(), FrontError> {
        self.failed += 1;
        let paused = self.deadline.bound(pause).await;
        paused.ok_or_else(|| self.out_of_time(setback))
    }

    const fn out_of_time(&self, last: Setback) -> FrontError {
        FrontError::OutOfTime {
            tries: self.failed,
            last,
        }
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
        let uid = model.placement_uid.as_str();
        loop {
            let turn = self.turn(uid, tries, revision).await?;
            // Once may be chance.
            let again = turn.is_some() || tries.failed > 0;
            let tried = self.try_once(model, inbound, tries.deadline, again, revision);
            let setback = match tried.await? {
                Ok(answered) => return Ok(answered),
                Err(setback) => setback,
            };
            tracing::debug!(id = inbound.id, revision = *revision, %setback, "trying again");
            let _waits = self.forwarder.telemetry.request_waits();
            match turn {
                Some(turn) => tries.wait(setback, turn.pause()).await?,
                None => tries.pause(setback).await?,
            }
        }
    }

    /// Waits until the request may try, which it may at once while its path works.
    async fn turn(
        &self,
        placement_uid: &str,
        tries: &Tries,
        revision: &mut i64,
    ) -> Result<Option<Turn>, FrontError> {
        let _waits = self.forwarder.telemetry.request_waits();
        let turn = self.troubles.turn(placement_uid, tries.deadline).await;
        turn.map_err(|last| {
            let route = self.routes.route(placement_uid);
            *revision = route.map_or(*revision, |r| r.active_revision);
            tries.out_of_time(last)
        })
    }

    /// The answer, or what was met on the path. `again`: a try before failed.
    async fn try_once(
        &self,
        model: &Model,
        inbound: &Inbound,
        deadline: Deadline,
        again: bool,
        revision: &mut i64,
    ) -> Result<Result<Answered, Setback>, FrontError> {
        let uid = model.placement_uid.as_str();
        let Some(ticket) = self.routes.begin(uid) else {
            return match again {
                true => Ok(Err(Setback::NotServing)),
                false => Err(FrontError::NotServing(model.full_name.clone())),
            };
        };
        *revision = ticket.revision;
        let superseded = ticket.superseded.clone();
        match self.attempt(uid, ticket, inbound, deadline).await {
            Ok(answered) => {
                self.troubles.answered(uid);
                Ok(Ok(answered))
            }
            Err(Setback::Hop(error)) if !is_passing(error.code()) => Err(error.into()),
            Err(setback) => {
                if again {
                    self.troubles.failed(uid, &superseded, setback.clone());
                }
                Ok(Err(setback))
            }
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

//! Sends a request from the entry along the path, and again if a host fails.

use super::error::{FrontError, InputError, Setback};
use super::journey::Journey;
use super::output::AtEntry;
use super::statistics::Spent;
use super::trouble::{Troubles, Turn};
use crate::serve::batches::{Batches, rows_of};
use crate::serve::hop::{Forwarder, total_us};
use crate::serve::routes::{Model, NoTicket, Routes, Signature, Ticket};
use crate::telemetry::RequestKey;
use lamina_proto::hop::{ExitRules, ForwardReply, ForwardRequest, RowExit};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Code;

/// Sends requests of models that enter at this host.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    pub(super) routes: Routes,
    pub(super) forwarder: Forwarder,
    pub(super) troubles: Troubles,
    pub(super) batches: Batches,
}

/// An answer with the revision that gave it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) revision: i64,
    pub(super) path: String,
    /// Names of the outputs that the client wants, in its order.
    pub(super) wanted: Vec<String>,
    /// Names of the exits at which rows could leave; empty if all ran to the end.
    pub(super) exits: Vec<String>,
    pub(super) entry: AtEntry,
    /// Of the revision that answered.
    pub(super) signature: Arc<Signature>,
    pub(super) reply: ForwardReply,
}

/// Whether a retry on the current route may succeed. Inference is pure, so retrying is safe.
const fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::FailedPrecondition | Code::Cancelled
    )
}

impl Dispatcher {
    /// The answer to the request, or `None` if the model does not serve here any more.
    ///
    /// # Errors
    /// The request is refused or does not fit its revision, or no try succeeded
    /// before the deadline.
    pub(super) async fn answer(
        &self,
        model: &Model,
        journey: &mut Journey,
    ) -> Result<Option<Answered>, FrontError> {
        let uid = model.placement_uid.as_str();
        loop {
            let turn = self.turn(model, journey).await?;
            let ticket = match self.routes.begin(uid) {
                Ok(ticket) => ticket,
                Err(NoTicket::Gone | NoTicket::NotServing) => return Ok(None),
                Err(NoTicket::Refused(reason)) => {
                    let model = model.full_name.clone();
                    return Err(FrontError::Refused { model, reason });
                }
            };
            // Once may be chance.
            let again = turn.is_some() || journey.tries.failed > 0;
            let setback = match self.try_once(model, ticket, journey, again).await? {
                Ok(answered) => return Ok(Some(answered)),
                Err(setback) => setback,
            };
            tracing::debug!(id = journey.id, %setback, "trying again");
            let _waits = self.forwarder.telemetry.request_waits();
            match turn {
                Some(turn) => journey.tries.wait(setback, turn.pause()).await?,
                None => journey.tries.pause(setback).await?,
            }
        }
    }

    /// Waits until the request may try: at once while its path works, or if this host may answer
    /// without the path.
    async fn turn(&self, model: &Model, journey: &mut Journey) -> Result<Option<Turn>, FrontError> {
        let placement_uid = model.placement_uid.as_str();
        if model.answers_when_cut_off() {
            return Ok(None);
        }
        let _waits = self.forwarder.telemetry.request_waits();
        let deadline = journey.tries.deadline;
        let turn = self.troubles.turn(placement_uid, deadline).await;
        turn.map_err(|last| {
            let revision = self.routes.active_revision(placement_uid);
            journey.counted_as = Some(key(placement_uid, revision));
            journey.tries.out_of_time(last)
        })
    }

    /// The answer, or the failure on the path. `again`: an earlier try failed.
    async fn try_once(
        &self,
        model: &Model,
        ticket: Ticket,
        journey: &mut Journey,
        again: bool,
    ) -> Result<Result<Answered, Setback>, FrontError> {
        let uid = model.placement_uid.as_str();
        journey.counted_as = Some(key(uid, ticket.revision()));
        let reading = journey.reading(model, &ticket)?.clone();
        let shapes = reading.tensors.iter().map(|tensor| &tensor.shape[..]);
        let rows = rows_of(&ticket.signature.inputs, shapes);
        journey.rows = rows;
        let slices = &self.forwarder.slices;
        let most = self.batches.largest(uid, &ticket.signature, slices);
        if rows > most {
            let model = model.name.clone();
            return Err(InputError::Batch { model, rows, most }.into());
        }
        let request = ForwardRequest {
            placement_uid: uid.to_owned(),
            revision: ticket.revision(),
            segment: 0,
            request_id: journey.id.clone(),
            traceparent: journey.traceparent.clone(),
            tensors: reading.tensors,
            exits: reading.exits,
        };
        let exits = names_of_exits(&ticket, request.exits.as_ref());
        let superseded = ticket.superseded.clone();
        let deadline = journey.tries.deadline;
        let sent = Instant::now();
        let outcome = tokio::select! {
            reply = self.forwarder.send(&ticket.first, ticket.encoding.as_ref(), request, deadline) => reply.map_err(Setback::from),
            () = ticket.abandoned.cancelled() => Err(Setback::Abandoned(ticket.revision())),
        };
        match outcome {
            Ok(reply) => {
                let rows_by_exit = counted(exits.len(), &reply.rows);
                if is_of_the_end(&rows_by_exit) {
                    self.troubles.answered(uid);
                }
                journey.rows_by_exit = rows_by_exit;
                journey.spent = Spent::of(&reply.timings, rows);
                let (took, inside) = (micros(sent.elapsed()), total_us(&reply));
                let is_first = *ticket.first.node == *self.forwarder.node;
                let entry = AtEntry {
                    node: self.forwarder.node.to_string(),
                    total_us: micros(journey.began.elapsed()),
                    wait_us: micros(sent - journey.began),
                    transfer_us: if is_first {
                        0
                    } else {
                        took.saturating_sub(inside)
                    },
                };
                Ok(Ok(Answered {
                    exits,
                    entry,
                    revision: ticket.revision(),
                    path: ticket.path.clone(),
                    signature: Arc::clone(&ticket.signature),
                    wanted: reading.wanted,
                    reply,
                }))
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
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn names_of_exits(ticket: &Ticket, rules: Option<&ExitRules>) -> Vec<String> {
    let exits = ticket.signature.exits.as_ref().filter(|_| rules.is_some());
    let names = exits.iter().flat_map(|e| &e.exits).map(|e| e.name.clone());
    names.collect()
}

/// Whether the whole path took part in an answer: rows that left before the last exit tell nothing
/// of the hosts behind. A model without exits has no counts.
fn is_of_the_end(rows_by_exit: &[u32]) -> bool {
    rows_by_exit.last().is_none_or(|rows| *rows > 0)
}

/// How many of `rows` left at each of `exits` exits.
fn counted(exits: usize, rows: &[RowExit]) -> Vec<u32> {
    let mut counts = vec![0; exits];
    for row in rows {
        let exit = usize::try_from(row.exit).unwrap_or(usize::MAX);
        if let Some(count) = counts.get_mut(exit) {
            *count += 1;
        }
    }
    counts
}

fn key(placement_uid: &str, revision: i64) -> RequestKey {
    RequestKey {
        placement_uid: placement_uid.to_owned(),
        revision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_leave_early_tell_nothing_of_the_hosts_behind() {
        let left = |exit| RowExit {
            exit,
            ..RowExit::default()
        };
        let is_whole = |exits, rows: &[RowExit]| is_of_the_end(&counted(exits, rows));
        assert!(is_whole(0, &[]), "a model without exits");
        assert!(!is_whole(3, &[left(0), left(1)]));
        assert!(is_whole(3, &[left(0), left(2)]));
    }
}

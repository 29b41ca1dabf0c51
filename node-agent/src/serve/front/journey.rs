//! One request during its time on this agent.

use super::error::{FrontError, InputError, Setback};
use super::input::{self, Reading};
use super::statistics::Spent;
use super::trouble::PAUSES;
use crate::net::Backoff;
use crate::serve::deadline::Deadline;
use crate::serve::routes::{Model, Signature, Ticket};
use crate::serve::trace;
use crate::telemetry::RequestKey;
use lamina_proto::inference::ModelInferRequest;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;
use tonic::metadata::MetadataMap;

/// A request and its progress.
#[derive(Debug)]
pub(super) struct Journey {
    pub(super) request: ModelInferRequest,
    /// `namespace/name` of its model.
    pub(super) full_name: String,
    /// The client's id; generated if it sent none, so that logs can distinguish requests.
    pub(super) id: String,
    /// From the client; empty if it sent none that is valid.
    pub(super) traceparent: String,
    pub(super) began: Instant,
    pub(super) tries: Tries,
    /// Where it is counted once it ends: the placement and the revision tried last. `None` if it
    /// never was on a path of this host.
    pub(super) counted_as: Option<RequestKey>,
    /// Rows that left at each exit; empty if the model has none.
    pub(super) rows_by_exit: Vec<u32>,
    /// Its rows, once it was read.
    pub(super) rows: u64,
    /// Its times on the hosts of its path, once it is answered.
    pub(super) spent: Spent,
    /// Its place among waiting requests.
    pub(super) seat: Option<OwnedSemaphorePermit>,
    read: Option<(Arc<Signature>, Reading)>,
}

impl Journey {
    pub(super) fn new(
        request: ModelInferRequest,
        full_name: String,
        metadata: &MetadataMap,
        deadline: Deadline,
    ) -> Self {
        let id = if request.id.is_empty() {
            format!("{:016x}", rand::random::<u64>())
        } else {
            request.id.clone()
        };
        Self {
            request,
            full_name,
            id,
            traceparent: trace::traceparent(metadata).unwrap_or_default().to_owned(),
            began: Instant::now(),
            tries: Tries::until(deadline),
            counted_as: None,
            rows_by_exit: Vec::new(),
            rows: 0,
            spent: Spent::default(),
            seat: None,
            read: None,
        }
    }

    /// Added to all log lines about it.
    pub(super) fn span(&self) -> tracing::Span {
        let Self { id, full_name, .. } = self;
        trace::span(id, &self.traceparent, full_name)
    }

    /// The request as the revision of `ticket` reads it. It is read again only if this
    /// revision's signature differs.
    ///
    /// # Errors
    /// It does not fit.
    pub(super) fn reading(
        &mut self,
        model: &Model,
        ticket: &Ticket,
    ) -> Result<&Reading, InputError> {
        let signature = &ticket.signature;
        let reading = match self.read.take() {
            Some((known, reading)) if known.takes_the_same(signature) => reading,
            _ => input::read(
                &model.name,
                signature,
                ticket.earlier.as_deref(),
                model.early.as_ref(),
                &self.request,
            )?,
        };
        let (_, reading) = self.read.insert((Arc::clone(signature), reading));
        Ok(reading)
    }

    /// Its approximate size in bytes.
    pub(super) fn bytes(&self) -> usize {
        let raw = self
            .request
            .raw_input_contents
            .iter()
            .map(bytes::Bytes::len);
        let typed = self
            .request
            .inputs
            .iter()
            .filter_map(|i| i.contents.as_ref());
        let typed = typed.map(|c| {
            let narrow = c.int_contents.len() + c.uint_contents.len() + c.fp32_contents.len();
            let wide = c.int64_contents.len() + c.uint64_contents.len() + c.fp64_contents.len();
            c.bool_contents.len() + 4 * narrow + 8 * wide
        });
        raw.chain(typed).sum()
    }
}

/// Counts tries and the pauses between them.
#[derive(Debug)]
pub(super) struct Tries {
    pub(super) deadline: Deadline,
    pauses: Backoff,
    pub(super) failed: u32,
}

impl Tries {
    const fn until(deadline: Deadline) -> Self {
        Self {
            deadline,
            pauses: PAUSES,
            failed: 0,
        }
    }

    /// Waits after a try that failed with `setback`.
    ///
    /// # Errors
    /// No time is left for another one.
    pub(super) async fn pause(&mut self, setback: Setback) -> Result<(), FrontError> {
        let pause = tokio::time::sleep(self.pauses.next_wait());
        self.wait(setback, pause).await
    }

    /// As [`Tries::pause`], but no longer than until `change`.
    pub(super) async fn pause_or(
        &mut self,
        setback: Setback,
        change: impl Future<Output = ()>,
    ) -> Result<(), FrontError> {
        let pause = tokio::time::sleep(self.pauses.next_wait());
        let either = async {
            tokio::select! {
                () = pause => {}
                () = change => {}
            }
        };
        self.wait(setback, either).await
    }

    /// Waits for `pause` after a try that failed with `setback`.
    pub(super) async fn wait(
        &mut self,
        setback: Setback,
        pause: impl Future<Output = ()>,
    ) -> Result<(), FrontError> {
        self.failed += 1;
        let paused = self.deadline.bound(pause).await;
        paused.ok_or_else(|| self.out_of_time(setback))
    }

    pub(super) const fn out_of_time(&self, last: Setback) -> FrontError {
        FrontError::OutOfTime {
            tries: self.failed,
            last,
        }
    }
}

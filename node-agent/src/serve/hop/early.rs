//! Requests whose rows may leave early: confident rows are answered here, the others continue.

use super::forward::key_of;
use super::{CallError, Forwarder, HopError, bytes_of};
use crate::serve::deadline::Deadline;
use crate::serve::exits::{MeetError, Rules, Standing, part};
use crate::serve::slices::Serving;
use lamina_crds::Hop;
use lamina_proto::hop::{ForwardReply, ForwardRequest, Tensor};
use std::time::Duration;
use tonic::Code;

/// A slice's results for a request with rules.
pub(super) struct Onward<'a> {
    pub(super) serving: &'a Serving,
    pub(super) rules: &'a Rules,
    /// All live values after the slice.
    pub(super) live: Vec<Tensor>,
}

impl Onward<'_> {
    fn logits(&self, exit: usize) -> Option<&Tensor> {
        let output = &self.rules.exits().get(exit)?.output;
        self.live.iter().find(|t| t.name == *output)
    }

    /// The rows after the exits that this slice computed.
    fn judged(&self, given: &[Tensor], segment: u32) -> Result<Standing, MeetError> {
        let mut standing = Standing::default();
        for (exit, rule) in self.rules.exits().iter().enumerate() {
            // Logits that came in were judged where they were computed.
            let is_new = !given.iter().any(|t| t.name == rule.output);
            if let Some(logits) = self.logits(exit).filter(|_| is_new) {
                standing.meet(self.rules, exit, logits, segment, false)?;
            }
        }
        Ok(standing)
    }

    /// The last exit whose logits are here.
    fn last_met(&self) -> Option<usize> {
        let exits = 0..self.rules.exits().len();
        exits.rev().find(|exit| self.logits(*exit).is_some())
    }

    /// The tensors for the next host, and the rows they hold.
    fn parted(&self, standing: &Standing) -> (Vec<Tensor>, Vec<usize>) {
        let (rows, open) = (standing.rows(), standing.open());
        if open.len() < rows
            && let Some(tensors) = part(&self.live, &self.serving.outputs, rows, &open)
        {
            return (tensors, open);
        }
        (self.live.clone(), (0..rows).collect())
    }
}

/// Whether the other host did not answer, rather than refuse.
const fn is_silence(error: &CallError) -> bool {
    match error {
        CallError::Late { .. } | CallError::Lost { .. } => true,
        CallError::Refused { code, .. } => {
            matches!(code, Code::Unavailable | Code::DeadlineExceeded)
        }
    }
}

impl Forwarder {
    /// The answer of every row, and the time of the next host, zero if all rows left here. The
    /// time for encoding values is added to `coding`.
    pub(super) async fn leave_or_go_on(
        &self,
        onward: Onward<'_>,
        request: ForwardRequest,
        deadline: Deadline,
        coding: &mut Duration,
    ) -> Result<(ForwardReply, Duration), HopError> {
        let segment = request.segment;
        let wrong = |reason| HopError::Exit {
            node: self.node.to_string(),
            segment,
            reason,
        };
        let mut standing = onward.judged(&request.tensors, segment).map_err(wrong)?;
        let mut went_on = ForwardReply::default();
        let mut took = Duration::ZERO;
        let has_open = !standing.has_met() || !standing.open().is_empty();
        if let Some(next) = onward.serving.next.as_ref().filter(|_| has_open) {
            let (tensors, sent) = onward.parted(&standing);
            let encoding = onward.serving.encoding.as_deref();
            let (tensors, encoding) = self.encode(tensors, encoding).await;
            *coding += encoding;
            let request = ForwardRequest {
                segment: segment + 1,
                tensors,
                ..request
            };
            match self.ask(&onward, next, request, deadline).await? {
                Some((reply, time)) if standing.has_met() => {
                    standing.take(onward.rules, &sent, &reply).map_err(wrong)?;
                    (went_on, took) = (reply, time);
                }
                // No row left here: its answer is the whole answer.
                Some(whole) => return Ok(whole),
                None => self
                    .cut_off(&onward, &mut standing, segment)
                    .map_err(wrong)?,
            }
        }
        let (answer, rows) = standing.finish(onward.rules).map_err(wrong)?;
        let reply = ForwardReply {
            tensors: vec![answer],
            timings: went_on.timings,
            rows,
        };
        Ok((reply, took))
    }

    /// The reply of `next`; `None` if it is away and an exit here may answer instead.
    async fn ask(
        &self,
        onward: &Onward<'_>,
        next: &Hop,
        request: ForwardRequest,
        deadline: Deadline,
    ) -> Result<Option<(ForwardReply, Duration)>, HopError> {
        let may_answer = onward.rules.answers_when_cut_off && onward.last_met().is_some();
        if !may_answer {
            return Ok(Some(self.pass_on(next, request, deadline).await?));
        }
        if self.away.is_away(next) {
            return Ok(None);
        }
        let (segment, bytes) = (key_of(&request), bytes_of(&request.tensors));
        let patience = self.away.patience(&segment, bytes);
        let spare = deadline.with_time_to_spare().min(Deadline::after(patience));
        match self.pass_on(next, request, spare).await {
            Ok((reply, took)) => {
                self.away.answered(&segment, bytes, took);
                Ok(Some((reply, took)))
            }
            Err(error) if is_silence(&error) => {
                tracing::info!(next = next.node, %error, "cut off; answering at the last exit met");
                self.away.mark(next, &self.hops);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Open rows leave at the last exit met.
    fn cut_off(
        &self,
        onward: &Onward<'_>,
        standing: &mut Standing,
        segment: u32,
    ) -> Result<(), MeetError> {
        let met = onward.last_met();
        let met = met.and_then(|exit| Some((exit, onward.logits(exit)?)));
        let (exit, logits) = met.ok_or(MeetError::Open(0))?;
        standing.meet(onward.rules, exit, logits, segment, true)
    }
}

use super::early::Onward;
use super::{Away, CallError, HopError, Hops, bytes_of, encodings, tensors};
use crate::serve::batches::rows_of;
use crate::serve::deadline::Deadline;
use crate::serve::engine::Run;
use crate::serve::exits::Rules;
use crate::serve::slices::{Serving, Slices};
use crate::telemetry::{SegmentKey, SegmentSample, Telemetry, Transfer};
use lamina_crds::{Encoding, Hop};
use lamina_proto::hop::{ForwardReply, ForwardRequest, HopTiming, Tensor};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs slices of this host and calls other hosts for the rest.
#[derive(Clone)]
pub(crate) struct Forwarder {
    pub(crate) node: Arc<str>,
    pub(crate) slices: Slices,
    pub(crate) telemetry: Telemetry,
    pub(crate) hops: Hops,
    pub(crate) away: Away,
}

/// The result of one slice.
struct Computed {
    /// All live values after the slice.
    live: Vec<Tensor>,
    queue: Duration,
    compute: Duration,
    /// Number of computed rows.
    rows: u64,
}

impl Forwarder {
    /// Runs the addressed segment and everything after it, starting at the host
    /// `first`, to which values are sent by `encoding`.
    ///
    /// # Errors
    /// See [`HopError`].
    pub(crate) async fn send(
        &self,
        first: &Hop,
        encoding: Option<&Encoding>,
        request: ForwardRequest,
        deadline: Deadline,
    ) -> Result<ForwardReply, HopError> {
        if *first.node == *self.node {
            return self.run(request, Instant::now(), deadline).await;
        }
        let (tensors, _) = self.encode(request.tensors, encoding).await;
        let request = ForwardRequest { tensors, ..request };
        Ok(self.pass_on(first, request, deadline).await?.0)
    }

    /// `tensors` encoded by `encoding`, and the time that this took.
    pub(super) async fn encode(
        &self,
        tensors: Vec<Tensor>,
        encoding: Option<&Encoding>,
    ) -> (Vec<Tensor>, Duration) {
        let begin = Instant::now();
        let (tensors, sent) = encodings::encoded(tensors, encoding).await;
        for dtype in sent {
            self.telemetry.value_encoded(dtype);
        }
        (tensors, begin.elapsed())
    }

    /// `request` with decoded values.
    async fn decode(&self, request: ForwardRequest) -> Result<ForwardRequest, HopError> {
        let decoded = encodings::decoded(request.tensors).await;
        let tensors = decoded.map_err(|reason| HopError::Tensor {
            node: self.node.to_string(),
            segment: request.segment,
            reason,
        })?;
        Ok(ForwardRequest { tensors, ..request })
    }

    /// Names of the hosts that may send `request`; `None` if not given, or if its slice does not
    /// serve here.
    pub(crate) fn callers(&self, request: &ForwardRequest) -> Option<Arc<[String]>> {
        self.slices.get(&key_of(request))?.callers
    }

    /// Runs the addressed segment, which is this host's, and everything after it.
    /// Dropping the future removes a waiting run from the queue and cancels the call
    /// to the next host.
    ///
    /// # Errors
    /// See [`HopError`].
    pub(crate) async fn run(
        &self,
        request: ForwardRequest,
        arrived: Instant,
        deadline: Deadline,
    ) -> Result<ForwardReply, HopError> {
        let key = key_of(&request);
        let serving = self.slices.get(&key).ok_or_else(|| HopError::NotHeld {
            node: self.node.to_string(),
            revision: key.revision,
            segment: key.segment,
        })?;
        let rules = self.rules(&request)?;
        // Compute nothing for a missing host, unless rows may leave before it.
        if let (None, Some(next)) = (&rules, &serving.next) {
            self.hops.reach(next, deadline).await?;
        }
        let bytes_in = bytes_of(&request.tensors);
        let begin = Instant::now();
        let request = self.decode(request).await?;
        let mut coding = begin.elapsed();
        let computed = self
            .compute(&serving, key.segment, &request, deadline)
            .await?;
        let sample = SegmentSample {
            queue_s: computed.queue.as_secs_f64(),
            compute_s: computed.compute.as_secs_f64(),
            rows: computed.rows,
        };
        self.telemetry.segment_run(key, sample);
        let mut timing = HopTiming {
            node: self.node.to_string(),
            segment: request.segment,
            queue_us: micros(computed.queue),
            compute_us: micros(computed.compute),
            bytes_in,
            bytes_out: bytes_of(&computed.live),
            ..HopTiming::default()
        };
        let (mut reply, took) = match (rules, &serving.next) {
            (Some(rules), _) => {
                let onward = Onward {
                    serving: &serving,
                    rules: &rules,
                    live: computed.live,
                };
                let coding = &mut coding;
                self.leave_or_go_on(onward, request, deadline, coding)
                    .await?
            }
            (None, None) => {
                let tensors = computed.live;
                let reply = ForwardReply {
                    tensors,
                    ..ForwardReply::default()
                };
                (reply, Duration::ZERO)
            }
            (None, Some(next)) => {
                let encoding = serving.encoding.as_deref();
                let (tensors, took) = self.encode(computed.live, encoding).await;
                coding += took;
                timing.bytes_out = bytes_of(&tensors);
                let onward = ForwardRequest {
                    segment: request.segment + 1,
                    tensors,
                    ..request
                };
                self.pass_on(next, onward, deadline).await?
            }
        };
        timing.encode_us = micros(coding);
        timing.downstream_us = micros(took);
        timing.total_us = micros(arrived.elapsed());
        reply.timings.insert(0, timing);
        Ok(reply)
    }

    fn rules(&self, request: &ForwardRequest) -> Result<Option<Rules>, HopError> {
        let rules = request.exits.as_ref().map(Rules::read).transpose();
        rules.map_err(|reason| HopError::Rules {
            node: self.node.to_string(),
            segment: request.segment,
            reason,
        })
    }

    async fn compute(
        &self,
        serving: &Serving,
        segment: u32,
        request: &ForwardRequest,
        deadline: Deadline,
    ) -> Result<Computed, HopError> {
        let node = || self.node.to_string();
        let inputs = tensors::take(&serving.inputs, &request.tensors).map_err(|reason| {
            HopError::Tensor {
                node: node(),
                segment,
                reason,
            }
        })?;
        let rows = rows_of(&serving.inputs, inputs.iter().map(|t| &t.shape[..]));
        let run = deadline.bound(serving.run(inputs, deadline)).await;
        let run = run.ok_or_else(|| HopError::Late {
            node: node(),
            segment,
        })?;
        let Run {
            outputs,
            queue,
            compute,
        } = run.map_err(|reason| HopError::Engine {
            node: node(),
            segment,
            reason,
        })?;
        let got = outputs.len();
        let live = tensors::live_behind(&serving.outputs, &request.tensors, outputs).map_err(
            |expected| HopError::Outputs {
                node: node(),
                segment,
                expected,
                got,
            },
        )?;
        Ok(Computed {
            live,
            queue,
            compute,
            rows,
        })
    }

    /// The reply of `next` and its time.
    pub(super) async fn pass_on(
        &self,
        next: &Hop,
        request: ForwardRequest,
        deadline: Deadline,
    ) -> Result<(ForwardReply, Duration), CallError> {
        let bytes_out = bytes_of(&request.tensors);
        let replied = self.hops.forward(next, request, deadline).await?;
        let (reply, took) = (replied.reply, replied.took);
        let inside = Duration::from_micros(total_us(&reply));
        self.telemetry.hop_transfer(Transfer {
            peer: next.node.clone(),
            bytes_out,
            bytes_in: bytes_of(&reply.tensors),
            seconds: took.saturating_sub(inside).as_secs_f64(),
        });
        Ok((reply, took))
    }
}

pub(super) fn key_of(request: &ForwardRequest) -> SegmentKey {
    SegmentKey {
        placement_uid: request.placement_uid.clone(),
        revision: request.revision,
        segment: request.segment,
    }
}

/// Microseconds that `reply` spent inside the host that sent it.
pub(crate) fn total_us(reply: &ForwardReply) -> u64 {
    reply.timings.first().map_or(0, |t| t.total_us)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

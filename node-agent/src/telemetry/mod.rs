//! Observations of the data plane, for the operator and for Prometheus.

mod activity;
mod metrics;

pub(crate) use activity::Activity;

use lamina_model::WireType;
use metrics::Metrics;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Samples of one kind kept between two drains; more than that pile up only while the session is
/// down.
const KEPT_SAMPLES: usize = 4096;

/// Observations of the data plane since the last drain. Clones share their content.
#[derive(Debug, Clone, Default)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    window: Mutex<Window>,
    in_flight: AtomicU32,
    waiting: AtomicU32,
    hops: AtomicU64,
    blobs: Activity,
    metrics: Metrics,
}

/// Observations between two drains.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Window {
    /// Transfers to peers on real requests.
    pub transfers: Vec<Transfer>,
    /// Runs of segments.
    pub segments: BTreeMap<SegmentKey, Vec<SegmentSample>>,
    /// Requests that this host answered as their entry.
    pub requests: BTreeMap<RequestKey, Vec<RequestSample>>,
}

/// One request and its reply between this host and the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Transfer {
    /// Name of the other node.
    pub peer: String,
    /// Bytes of tensors to it.
    pub bytes_out: u64,
    /// Bytes of tensors from it.
    pub bytes_in: u64,
    /// From sending to the reply, minus the time inside the peer: both transfers and one round
    /// trip.
    pub seconds: f64,
}

/// A segment of a revision of a placement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentKey {
    /// UID of the Placement.
    pub placement_uid: String,
    /// Revision of the plan.
    pub revision: i64,
    /// Place in the path, from 0.
    pub segment: u32,
}

/// One run of a segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegmentSample {
    /// Waiting for the compute thread, in seconds.
    pub queue_s: f64,
    /// Inside the engine, in seconds.
    pub compute_s: f64,
    /// Rows of the request; 1 if it has no batch.
    pub rows: u64,
}

/// A revision of a placement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey {
    /// UID of the Placement.
    pub placement_uid: String,
    /// Revision that answered, or was tried last.
    pub revision: i64,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer.
    Answered,
    /// With an error that is not the client's fault.
    Failed,
}

/// One request at its entry.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestSample {
    /// How it ended.
    pub outcome: Outcome,
    /// From its arrival to its end, in seconds.
    pub latency_s: f64,
    /// How often it was retried.
    pub retried: u32,
    /// Rows that left at each exit; empty if the model has none.
    pub rows_by_exit: Vec<u32>,
    /// Its rows; 0 if it was not read.
    pub rows: u64,
}

/// Counts a request as inside this agent, or as waiting there, until it is dropped.
#[derive(Debug)]
pub struct RequestToken {
    inner: Arc<Inner>,
    counter: fn(&Inner) -> &AtomicU32,
}

impl RequestToken {
    fn new(inner: &Arc<Inner>, counter: fn(&Inner) -> &AtomicU32) -> Self {
        counter(inner).fetch_add(1, Ordering::Relaxed);
        Self {
            inner: Arc::clone(inner),
            counter,
        }
    }
}

impl Drop for RequestToken {
    fn drop(&mut self) {
        (self.counter)(&self.inner).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Telemetry {
    /// Registers the counts since the start with Prometheus.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
    }

    /// Sets the expiry of this host's certificate, in seconds since 1970.
    pub fn certificate_ends(&self, at: i64) {
        self.inner.metrics.certificate_ends("agent", at);
    }

    /// Sets the expiry of the given certificate for clients, in seconds since 1970.
    pub fn clients_certificate_ends(&self, at: i64) {
        self.inner.metrics.certificate_ends("clients", at);
    }

    /// Notes a transfer.
    pub fn hop_transfer(&self, transfer: Transfer) {
        self.inner.metrics.transfer(&transfer);
        self.note(|w| push(&mut w.transfers, transfer));
    }

    /// Notes a value that was due to be encoded, and its encoding: `None` if it was sent unchanged.
    pub(crate) fn value_encoded(&self, dtype: Option<WireType>) {
        let dtype = dtype.map_or("fp32", WireType::as_str);
        self.inner.metrics.encoded(dtype);
    }

    /// Notes a run of a segment.
    pub fn segment_run(&self, key: SegmentKey, sample: SegmentSample) {
        self.inner.metrics.segment(&sample);
        self.note(|w| push(w.segments.entry(key).or_default(), sample));
    }

    /// Notes the end of a request at its entry.
    pub fn request_done(&self, key: RequestKey, sample: RequestSample) {
        self.inner.metrics.request(&sample);
        self.note(|w| push(w.requests.entry(key).or_default(), sample));
    }

    /// Counts a request that was refused because of its sender.
    pub fn denied(&self, reason: &'static str) {
        self.inner.metrics.denied(reason);
    }

    /// Counts a request that arrived from another agent.
    pub fn hop_began(&self) -> RequestToken {
        self.inner.hops.fetch_add(1, Ordering::Relaxed);
        self.request_began()
    }

    /// Requests that ever arrived from other agents.
    pub fn hops_seen(&self) -> u64 {
        self.inner.hops.load(Ordering::Relaxed)
    }

    /// Counts a request that arrived, whether from a client or a hop.
    pub fn request_began(&self) -> RequestToken {
        RequestToken::new(&self.inner, |inner| &inner.in_flight)
    }

    /// Counts a request in progress that waits for its path.
    pub fn request_waits(&self) -> RequestToken {
        RequestToken::new(&self.inner, |inner| &inner.waiting)
    }

    /// Blob transfers to or from this host.
    pub fn blobs(&self) -> &Activity {
        &self.inner.blobs
    }

    /// Requests inside this agent.
    pub fn requests_in_flight(&self) -> u32 {
        self.inner.in_flight.load(Ordering::Relaxed)
    }

    /// Those of them that need this host or its links now.
    pub fn requests_under_way(&self) -> u32 {
        let waiting = self.inner.waiting.load(Ordering::Relaxed);
        self.requests_in_flight().saturating_sub(waiting)
    }

    /// Everything since the last drain.
    pub fn drain(&self) -> Window {
        let mut window = self
            .inner
            .window
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *window)
    }

    fn note(&self, change: impl FnOnce(&mut Window)) {
        let mut window = self
            .inner
            .window
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut window);
    }
}

fn push<T>(samples: &mut Vec<T>, sample: T) {
    if samples.len() < KEPT_SAMPLES {
        samples.push(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_takes_everything_once() {
        let telemetry = Telemetry::default();
        let key = SegmentKey {
            placement_uid: "u".into(),
            revision: 1,
            segment: 0,
        };
        let sample = SegmentSample {
            queue_s: 0.0,
            compute_s: 0.5,
            rows: 1,
        };
        telemetry.clone().segment_run(key.clone(), sample);
        assert_eq!(telemetry.drain().segments[&key], [sample]);
        assert_eq!(telemetry.drain(), Window::default());
    }

    #[test]
    fn a_window_that_nobody_drains_stays_small() {
        let telemetry = Telemetry::default();
        for _ in 0..KEPT_SAMPLES + 10 {
            telemetry.hop_transfer(Transfer {
                peer: "a".into(),
                bytes_out: 1,
                bytes_in: 1,
                seconds: 1.0,
            });
        }
        assert_eq!(telemetry.drain().transfers.len(), KEPT_SAMPLES);
    }

    #[test]
    fn requests_in_flight_are_those_whose_token_lives() {
        let telemetry = Telemetry::default();
        let first = telemetry.request_began();
        let second = telemetry.request_began();
        drop(first);
        let waits = telemetry.request_waits();
        assert_eq!(telemetry.requests_in_flight(), 1);
        assert_eq!(telemetry.requests_under_way(), 0);
        drop(waits);
        assert_eq!(telemetry.requests_under_way(), 1);
        drop(second);
        assert_eq!(telemetry.requests_in_flight(), 0);
    }
}

use super::{Outcome, RequestSample, SegmentSample, Transfer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Counts for Prometheus since the start. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    requests: Family<OutcomeLabel, Counter>,
    retries: Counter,
    latency: Histogram,
    compute: Histogram,
    queue: Histogram,
    transfer: Family<PeerLabel, Histogram>,
    bytes: Family<DirectionLabels, Counter>,
    exits: Family<ExitLabel, Counter>,
    encodings: Family<DtypeLabel, Counter>,
    denied: Family<ReasonLabel, Counter>,
    certificate: Family<OfLabel, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    peer: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExitLabel {
    exit: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DtypeLabel {
    dtype: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLabel {
    of: &'static str,
}

/// From half a millisecond to a minute, in steps of a factor of two.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 18))
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            retries: Counter::default(),
            latency: seconds(),
            compute: seconds(),
            queue: seconds(),
            transfer: Family::new_with_constructor(seconds),
            bytes: Family::default(),
            exits: Family::default(),
            encodings: Family::default(),
            denied: Family::default(),
            certificate: Family::default(),
        }
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Requests that ended at this entry",
            self.requests.clone(),
        );
        registry.register(
            "request_retries",
            "Times that a request was sent again on another route",
            self.retries.clone(),
        );
        registry.register(
            "request_duration_seconds",
            "From arrival at the entry to the answer",
            self.latency.clone(),
        );
        registry.register(
            "segment_compute_seconds",
            "Inside torch",
            self.compute.clone(),
        );
        registry.register(
            "segment_queue_seconds",
            "Waiting for the compute thread",
            self.queue.clone(),
        );
        registry.register(
            "hop_transfer_seconds",
            "To the next host and back, less the time inside it",
            self.transfer.clone(),
        );
        registry.register(
            "hop_bytes",
            "Bytes of tensors to and from other hosts",
            self.bytes.clone(),
        );
        registry.register(
            "exit_rows",
            "Rows that left at each exit of models with early exits",
            self.exits.clone(),
        );
        registry.register(
            "hop_values_encoded",
            "Values that were to be sent in fewer bits, by how they were sent",
            self.encodings.clone(),
        );
        registry.register(
            "requests_denied",
            "Requests refused for who sent them",
            self.denied.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When this host's certificate, or the one given for its clients, ends, since 1970",
            self.certificate.clone(),
        );
    }

    /// `of` is its owner.
    pub(super) fn certificate_ends(&self, of: &'static str, at: i64) {
        let of = OfLabel { of };
        self.certificate.get_or_create(&of).set(at);
    }

    pub(super) fn request(&self, sample: &RequestSample) {
        let outcome = match sample.outcome {
            Outcome::Answered => "answered",
            Outcome::Failed => "failed",
        };
        self.requests.get_or_create(&OutcomeLabel { outcome }).inc();
        self.retries.inc_by(sample.retried.into());
        self.latency.observe(sample.latency_s);
        for (exit, rows) in (0..).zip(&sample.rows_by_exit) {
            let count = self.exits.get_or_create(&ExitLabel { exit });
            count.inc_by(u64::from(*rows));
        }
    }

    pub(super) fn encoded(&self, dtype: &'static str) {
        self.encodings.get_or_create(&DtypeLabel { dtype }).inc();
    }

    pub(super) fn denied(&self, reason: &'static str) {
        self.denied.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn segment(&self, sample: &SegmentSample) {
        self.compute.observe(sample.compute_s);
        self.queue.observe(sample.queue_s);
    }

    pub(super) fn transfer(&self, transfer: &Transfer) {
        let peer = || transfer.peer.clone();
        self.transfer
            .get_or_create(&PeerLabel { peer: peer() })
            .observe(transfer.seconds);
        for (direction, bytes) in [("out", transfer.bytes_out), ("in", transfer.bytes_in)] {
            let peer = peer();
            self.bytes
                .get_or_create(&DirectionLabels { peer, direction })
                .inc_by(bytes);
        }
    }
}

//! Requests that a fleet pretends to answer: the figures each host reports. Pure.

use lamina_proto::control::{ModelRequests, SegmentTiming};
use std::collections::BTreeMap;

/// Requests per second at each entry: the default of a spec.
const REQUESTS: u64 = 1;
/// Time of a request between two hosts.
const HOP_SECONDS: f64 = 0.012;
/// The 95th percentile over the median.
const TAIL: f64 = 1.3;

/// What hosts know of each other's part in a request; in a real cluster the request itself carries
/// it.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Requests arrive.
    pub(super) flows: bool,
    serving: BTreeMap<String, i64>,
    /// Seconds of each segment, by Placement and revision.
    seconds: BTreeMap<(String, i64), BTreeMap<u32, f64>>,
}

impl Traffic {
    /// A host holds a segment with this run time.
    pub(super) fn holds(&mut self, uid: &str, revision: i64, segment: u32, seconds: f64) {
        let of = self.seconds.entry((uid.to_owned(), revision)).or_default();
        of.insert(segment, seconds);
    }

    /// An entry uses `revision`, and no request of an older one is left.
    pub(super) fn serves(&mut self, uid: &str, revision: i64) {
        self.serving.insert(uid.to_owned(), revision);
        self.seconds
            .retain(|(of, held), _| of != uid || *held >= revision);
    }

    /// The segment's figures, if requests reach it.
    pub(super) fn segment(&self, uid: &str, revision: i64, segment: u32) -> Option<SegmentTiming> {
        let is_serving = self.flows && self.serving.get(uid) == Some(&revision);
        let seconds = self
            .seconds
            .get(&(uid.to_owned(), revision))?
            .get(&segment)?;
        is_serving.then(|| SegmentTiming {
            placement_uid: uid.to_owned(),
            revision,
            segment,
            count: REQUESTS,
            compute_p50_seconds: *seconds,
            queue_p50_seconds: 0.0,
            row_p50_seconds: *seconds,
        })
    }

    /// The entry's figures, if requests arrive.
    pub(super) fn requests(&self, uid: &str, revision: i64) -> Option<ModelRequests> {
        let segments = self.seconds.get(&(uid.to_owned(), revision))?;
        let hops = segments.len().saturating_sub(1) as f64;
        let latency = segments.values().sum::<f64>() + hops * HOP_SECONDS;
        self.flows.then(|| ModelRequests {
            placement_uid: uid.to_owned(),
            revision,
            answered: REQUESTS,
            failed: 0,
            retried: 0,
            latency_p50_seconds: latency,
            latency_p95_seconds: latency * TAIL,
            rows_by_exit: Vec::new(),
            rows: REQUESTS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_serves_is_told_of_and_only_while_requests_arrive() {
        let mut traffic = Traffic::default();
        traffic.holds("p", 1, 0, 0.01);
        traffic.holds("p", 1, 1, 0.03);
        traffic.holds("p", 2, 0, 0.02);
        traffic.serves("p", 1);
        assert_eq!(traffic.segment("p", 1, 0), None);
        traffic.flows = true;
        assert!(traffic.segment("p", 1, 1).is_some());
        assert_eq!(traffic.segment("p", 2, 0), None);
        let requests = traffic.requests("p", 1).unwrap();
        assert!((requests.latency_p50_seconds - 0.052).abs() < 1e-9);
        traffic.serves("p", 2);
        assert_eq!(traffic.segment("p", 1, 1), None);
        assert!(traffic.segment("p", 2, 0).is_some());
    }
}

//! Timings of requests reported by agents, over the last minute. Of requests only the entry is
//! heard: whoever else speaks of them could turn every other model's plan.

use super::types::{RequestEstimate, SegmentTimingEstimate};
use lamina_proto::control::{ModelRequests, SegmentTiming};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// The window of all figures.
const WINDOW: Duration = Duration::from_secs(60);
/// Share of a report's requests that is assumed to have its 95th percentile as latency; the rest
/// has its median. A mixture of reports then gives back both figures if all reports agree, or if
/// each is of one request.
const TAIL_SHARE: f64 = 0.1;
/// Most reports of one kind in a window: one comes each second, of two revisions at a flip.
const MOST_REPORTS: usize = 240;
/// Segments of one host that are kept.
const MOST_SEGMENTS_OF_HOST: usize = 4096;
/// Highest count in one report: more is an error or a lie.
const MOST_COUNTED: u64 = 1_000_000_000;
/// Most rows of a request.
const MOST_ROWS: u64 = 65_536;
/// Most exits of a report.
const MOST_EXITS: usize = 64;
const LONGEST_SECONDS: f64 = 3600.0;

/// Live figures of segments and of requests.
#[derive(Debug, Default)]
pub(super) struct Timings {
    segments: BTreeMap<SegmentKey, Window<SegmentTiming>>,
    requests: BTreeMap<String, Window<ModelRequests>>,
    totals: BTreeMap<String, RequestTotals>,
    /// Entries of the placements that there are, by UID.
    placements: BTreeMap<String, String>,
    /// Keys of `segments` by host.
    of_host: BTreeMap<String, usize>,
}

/// Requests of a placement since the operator's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RequestTotals {
    /// Answered.
    pub(crate) answered: u64,
    /// Failed.
    pub(crate) failed: u64,
    /// Retried.
    pub(crate) retried: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct SegmentKey {
    placement_uid: String,
    revision: i64,
    segment: u32,
    node: String,
}

/// Reports of the last minute with their arrival times.
#[derive(Debug)]
struct Window<T> {
    reports: VecDeque<(Duration, T)>,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self {
            reports: VecDeque::new(),
        }
    }
}

impl<T> Window<T> {
    fn add(&mut self, report: T, now: Duration) {
        if self.reports.len() == MOST_REPORTS {
            self.reports.pop_front();
        }
        self.reports.push_back((now, report));
        self.expire(now);
    }

    fn expire(&mut self, now: Duration) {
        let old = |at: Duration| now.saturating_sub(at) > WINDOW;
        while self.reports.front().is_some_and(|(at, _)| old(*at)) {
            self.reports.pop_front();
        }
    }

    fn within(&self, now: Duration) -> impl DoubleEndedIterator<Item = &(Duration, T)> {
        self.reports
            .iter()
            .filter(move |(at, _)| now.saturating_sub(*at) <= WINDOW)
    }
}

impl Timings {
    /// Takes in an agent's times of a segment.
    pub(super) fn add_segment(&mut self, node: &str, timing: SegmentTiming, now: Duration) {
        let Some(timing) = bounded_timing(timing) else {
            return;
        };
        if !self.placements.contains_key(&timing.placement_uid) {
            return;
        }
        let key = SegmentKey {
            placement_uid: timing.placement_uid.clone(),
            revision: timing.revision,
            segment: timing.segment,
            node: node.to_owned(),
        };
        if !self.segments.contains_key(&key) {
            let held = self.of_host.entry(node.to_owned()).or_default();
            if *held >= MOST_SEGMENTS_OF_HOST {
                return;
            }
            *held += 1;
        }
        self.segments.entry(key).or_default().add(timing, now);
    }

    /// Takes in what `node` counted of requests, where it is their entry.
    pub(super) fn add_requests(&mut self, node: &str, requests: ModelRequests, now: Duration) {
        let Some(requests) = bounded_requests(requests) else {
            return;
        };
        let entry = self.placements.get(&requests.placement_uid);
        if entry.is_none_or(|entry| *entry != *node) {
            return;
        }
        let uid = requests.placement_uid.clone();
        let total = self.totals.entry(uid.clone()).or_default();
        total.answered = total.answered.saturating_add(requests.answered);
        total.failed = total.failed.saturating_add(requests.failed);
        total.retried = total.retried.saturating_add(requests.retried);
        self.requests.entry(uid).or_default().add(requests, now);
    }

    /// Keeps nothing of placements other than these, whose entries stand beside their UIDs.
    pub(super) fn retain(&mut self, placements: &BTreeMap<String, String>) {
        if self.placements == *placements {
            return;
        }
        self.totals.retain(|uid, _| placements.contains_key(uid));
        self.requests.retain(|uid, _| placements.contains_key(uid));
        let is_kept = |key: &SegmentKey| placements.contains_key(&key.placement_uid);
        self.segments.retain(|key, _| is_kept(key));
        self.placements.clone_from(placements);
        self.count();
    }

    /// Recounts the segments of each host.
    fn count(&mut self) {
        self.of_host.clear();
        for key in self.segments.keys() {
            match self.of_host.get_mut(&key.node) {
                Some(held) => *held += 1,
                None => {
                    self.of_host.insert(key.node.clone(), 1);
                }
            }
        }
    }

    /// Drops what is older than the window.
    pub(super) fn expire(&mut self, now: Duration) {
        let before = self.segments.len();
        self.segments.retain(|_, window| {
            window.expire(now);
            !window.reports.is_empty()
        });
        if self.segments.len() < before {
            self.count();
        }
        self.requests.retain(|_, window| {
            window.expire(now);
            !window.reports.is_empty()
        });
    }

    /// Times of the segments of a revision, in order.
    pub(super) fn segment_timings(
        &self,
        placement_uid: &str,
        revision: i64,
        now: Duration,
    ) -> Vec<SegmentTimingEstimate> {
        let first = SegmentKey {
            placement_uid: placement_uid.to_owned(),
            revision,
            segment: 0,
            node: String::new(),
        };
        self.segments
            .range(first..)
            .take_while(|(key, _)| key.placement_uid == placement_uid && key.revision == revision)
            .filter_map(|(key, window)| summarize_segment(key, window, now))
            .collect()
    }

    /// Requests of a placement.
    pub(super) fn request_stats(
        &self,
        placement_uid: &str,
        now: Duration,
    ) -> Option<RequestEstimate> {
        summarize_requests(self.requests.get(placement_uid)?, now)
    }

    /// Counts since the start by placement UID.
    pub(super) const fn totals(&self) -> &BTreeMap<String, RequestTotals> {
        &self.totals
    }
}

/// A report within bounds; `None` if it is empty.
fn bounded_timing(timing: SegmentTiming) -> Option<SegmentTiming> {
    (timing.count > 0).then(|| SegmentTiming {
        count: timing.count.min(MOST_COUNTED),
        compute_p50_seconds: seconds(timing.compute_p50_seconds),
        queue_p50_seconds: seconds(timing.queue_p50_seconds),
        row_p50_seconds: row_seconds(&timing),
        ..timing
    })
}

/// A report within bounds; `None` if it is empty.
fn bounded_requests(requests: ModelRequests) -> Option<ModelRequests> {
    let bounded = ModelRequests {
        answered: requests.answered.min(MOST_COUNTED),
        failed: requests.failed.min(MOST_COUNTED),
        retried: requests.retried.min(MOST_COUNTED),
        latency_p50_seconds: seconds(requests.latency_p50_seconds),
        latency_p95_seconds: seconds(requests.latency_p95_seconds),
        rows_by_exit: bounded_rows(&requests.rows_by_exit),
        ..requests
    };
    (bounded.answered > 0 || bounded.failed > 0 || bounded.retried > 0).then_some(bounded)
}

fn bounded_rows(told: &[u64]) -> Vec<u64> {
    let rows = told.iter().take(MOST_EXITS);
    rows.map(|rows| (*rows).min(MOST_COUNTED)).collect()
}

/// The time of a row. Agents that do not report rows are assumed to get one per request, and no row
/// takes longer than its request.
fn row_seconds(timing: &SegmentTiming) -> f64 {
    let request = seconds(timing.compute_p50_seconds);
    let row = seconds(timing.row_p50_seconds);
    if row > 0.0 { row.min(request) } else { request }
}

/// A time within bounds; 0 if it is invalid.
fn seconds(told: f64) -> f64 {
    if told.is_finite() {
        told.clamp(0.0, LONGEST_SECONDS)
    } else {
        0.0
    }
}

fn summarize_segment(
    key: &SegmentKey,
    window: &Window<SegmentTiming>,
    now: Duration,
) -> Option<SegmentTimingEstimate> {
    let reports: Vec<_> = window.within(now).collect();
    let (newest, _) = reports.last()?;
    let p50 = |of: fn(&SegmentTiming) -> f64| {
        let points = reports.iter().map(|(_, t)| (of(t), weight(t.count)));
        quantile(points.collect(), 0.5)
    };
    Some(SegmentTimingEstimate {
        segment: key.segment,
        node: key.node.clone(),
        count: reports.iter().map(|(_, t)| t.count).sum(),
        compute_p50_seconds: p50(|t| t.compute_p50_seconds)?,
        queue_p50_seconds: p50(|t| t.queue_p50_seconds)?,
        row_p50_seconds: p50(|t| t.row_p50_seconds)?,
        age: now.saturating_sub(*newest),
    })
}

fn summarize_requests(window: &Window<ModelRequests>, now: Duration) -> Option<RequestEstimate> {
    // At the flip an entry reports both revisions at once; the higher is newer.
    let (newest, revision) = window.within(now).map(|(at, r)| (*at, r.revision)).max()?;
    let reports: Vec<_> = window
        .within(now)
        .filter(|(_, r)| r.revision == revision)
        .collect();
    let points: Vec<_> = reports
        .iter()
        .flat_map(|(_, r)| latency_points(r))
        .collect();
    let answered: u64 = reports.iter().map(|(_, r)| r.answered).sum();
    let (first, _) = reports.first()?;
    let span = now.saturating_sub(*first).max(Duration::from_secs(1));
    Some(RequestEstimate {
        revision,
        p50_seconds: quantile(points.clone(), 0.5).unwrap_or(0.0),
        p95_seconds: quantile(points, 0.95).unwrap_or(0.0),
        answered_per_second: weight(answered) / span.as_secs_f64(),
        answered,
        failed: reports.iter().map(|(_, r)| r.failed).sum(),
        retried: reports.iter().map(|(_, r)| r.retried).sum(),
        rows_by_exit: rows_by_exit(&reports),
        rows: mean_rows(&reports),
        age: now.saturating_sub(newest),
    })
}

fn rows_by_exit(reports: &[&(Duration, ModelRequests)]) -> Vec<u64> {
    let exits = reports.iter().map(|(_, r)| r.rows_by_exit.len()).max();
    let of = |exit| {
        reports
            .iter()
            .filter_map(move |(_, r)| r.rows_by_exit.get(exit))
    };
    (0..exits.unwrap_or(0)).map(|exit| of(exit).sum()).collect()
}

/// Each request has at least one row.
fn mean_rows(reports: &[&(Duration, ModelRequests)]) -> f64 {
    let answered: u64 = reports.iter().map(|(_, r)| r.answered).sum();
    let rows = |r: &ModelRequests| {
        let most = r.answered.saturating_mul(MOST_ROWS);
        r.rows.clamp(r.answered, most)
    };
    let rows: u64 = reports.iter().map(|(_, r)| rows(r)).sum();
    weight(rows.max(1)) / weight(answered.max(1))
}

fn latency_points(report: &ModelRequests) -> [(f64, f64); 2] {
    let count = weight(report.answered);
    [
        (report.latency_p50_seconds, count * (1.0 - TAIL_SHARE)),
        (report.latency_p95_seconds, count * TAIL_SHARE),
    ]
}

#[allow(clippy::cast_precision_loss)] // counts of one minute are far below 2^53
const fn weight(count: u64) -> f64 {
    count as f64
}

/// The smallest value that at least the share `q` of the weight does not exceed; `None` if the
/// total weight is 0.
fn quantile(mut points: Vec<(f64, f64)>, q: f64) -> Option<f64> {
    points.retain(|(value, weight)| value.is_finite() && *weight > 0.0);
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let wanted = q * points.iter().map(|(_, w)| w).sum::<f64>();
    let mut reached = 0.0;
    for (value, weight) in &points {
        reached += weight;
        // Sums of the same weights in a different order differ in the last digits.
        if reached >= wanted * (1.0 - 1e-9) {
            return Some(*value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn requests(revision: i64, answered: u64, p50: f64, p95: f64) -> ModelRequests {
        ModelRequests {
            placement_uid: "p".into(),
            revision,
            answered,
            failed: 1,
            retried: 2,
            latency_p50_seconds: p50,
            latency_p95_seconds: p95,
            rows_by_exit: vec![answered, 1],
            rows: 0,
        }
    }

    fn timing(count: u64, seconds: f64) -> SegmentTiming {
        SegmentTiming {
            placement_uid: "p".into(),
            revision: 1,
            segment: 0,
            count,
            compute_p50_seconds: seconds,
            queue_p50_seconds: 0.0,
            row_p50_seconds: 0.0,
        }
    }

    fn entries(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        let all = all.iter().copied();
        all.map(|(uid, entry)| (uid.to_owned(), entry.to_owned()))
            .collect()
    }

    /// Of the placement `p`, whose requests enter at `entry`.
    fn timings() -> Timings {
        let mut timings = Timings::default();
        timings.retain(&entries(&[("p", "entry")]));
        timings
    }

    #[test]
    fn reports_that_agree_give_back_what_they_say() {
        let mut timings = timings();
        for second in 0..10 {
            timings.add_requests("entry", requests(1, 3, 0.1, 0.2), at(second));
        }
        let stats = timings.request_stats("p", at(10)).unwrap();
        assert_eq!((stats.p50_seconds, stats.p95_seconds), (0.1, 0.2));
        assert_eq!((stats.answered, stats.failed, stats.retried), (30, 10, 20));
        assert!((stats.answered_per_second - 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_newest_revision_counts_and_old_reports_go() {
        let mut timings = timings();
        timings.add_requests("entry", requests(1, 9, 0.9, 0.9), at(0));
        timings.add_requests("entry", requests(2, 1, 0.1, 0.1), at(5));
        let stats = timings.request_stats("p", at(5)).unwrap();
        assert_eq!((stats.revision, stats.p50_seconds), (2, 0.1));
        timings.expire(at(70));
        assert_eq!(timings.request_stats("p", at(70)), None);
        assert_eq!(timings.totals()["p"].answered, 10, "totals stay");
    }

    #[test]
    fn placements_that_are_gone_leave_nothing_and_unknown_ones_do_not_come() {
        let mut timings = Timings::default();
        timings.add_requests("entry", requests(1, 1, 0.1, 0.1), at(0));
        timings.add_segment("a", timing(1, 0.1), at(0));
        let held = |timings: &Timings| {
            let windows = timings.requests.len() + timings.segments.len();
            timings.totals.len() + windows + timings.of_host.len()
        };
        assert_eq!(held(&timings), 0, "nobody said yet which ones there are");
        timings.retain(&entries(&[("p", "entry"), ("q", "entry")]));
        timings.add_requests("entry", requests(1, 1, 0.1, 0.1), at(1));
        timings.add_segment("a", timing(1, 0.1), at(1));
        assert_eq!(held(&timings), 4);
        timings.retain(&entries(&[("q", "entry")]));
        assert_eq!(held(&timings), 0);
    }

    #[test]
    fn of_requests_their_entry_alone_is_heard() {
        let mut timings = timings();
        timings.add_requests("entry", requests(1, 3, 0.1, 0.1), at(0));
        for revision in [1, 2, i64::MAX] {
            timings.add_requests("other", requests(revision, MOST_COUNTED, 9.0, 9.0), at(0));
        }
        let stats = timings.request_stats("p", at(0)).unwrap();
        assert_eq!((stats.revision, stats.answered), (1, 3));
        assert_eq!(stats.p95_seconds, 0.1);
        assert_eq!(timings.totals()["p"].answered, 3);
    }

    #[test]
    fn a_host_that_makes_up_segments_fills_its_own_room_only() {
        let mut timings = timings();
        for revision in 0..10_000 {
            let made_up = SegmentTiming {
                revision,
                ..timing(1, 0.1)
            };
            timings.add_segment("a", made_up, at(0));
        }
        assert_eq!(timings.segments.len(), MOST_SEGMENTS_OF_HOST);
        timings.add_segment("b", timing(1, 0.2), at(0));
        assert_eq!(timings.segment_timings("p", 1, at(0)).len(), 2);
        timings.expire(at(61));
        assert_eq!((timings.segments.len(), timings.of_host.len()), (0, 0));
        for _ in 0..10_000 {
            timings.add_segment("a", timing(1, 0.1), at(62));
        }
        let reports = timings.segments.values().map(|w| w.reports.len());
        assert_eq!(reports.sum::<usize>(), MOST_REPORTS);
    }

    #[test]
    fn numbers_out_of_bounds_do_no_harm() {
        let mut timings = timings();
        for _ in 0..3 {
            timings.add_requests(
                "entry",
                requests(1, u64::MAX, f64::NAN, f64::INFINITY),
                at(0),
            );
            timings.add_segment("a", timing(u64::MAX, -1.0), at(0));
        }
        let stats = timings.request_stats("p", at(0)).unwrap();
        assert_eq!((stats.p50_seconds, stats.p95_seconds), (0.0, 0.0));
        assert_eq!(stats.answered, 3 * MOST_COUNTED);
        let told = timings.segment_timings("p", 1, at(0));
        assert_eq!(told[0].compute_p50_seconds, 0.0);
    }

    #[test]
    fn large_batches_are_told_from_slow_hosts() {
        let mut timings = timings();
        let batches = |count, rows: u64| SegmentTiming {
            row_p50_seconds: 0.1,
            ..timing(count, 0.1 * rows as f64)
        };
        timings.add_segment("a", batches(3, 32), at(0));
        timings.add_segment("a", batches(2, 1), at(1));
        let told = &timings.segment_timings("p", 1, at(1))[0];
        assert_eq!((told.compute_p50_seconds, told.row_p50_seconds), (3.2, 0.1));
        // An older agent does not report rows, and one that lies gains nothing.
        timings.add_segment("b", timing(1, 0.4), at(1));
        let lie = SegmentTiming {
            row_p50_seconds: f64::INFINITY,
            ..timing(1, 0.4)
        };
        timings.add_segment("c", lie, at(1));
        let told = timings.segment_timings("p", 1, at(1));
        assert_eq!(
            (told[1].row_p50_seconds, told[2].row_p50_seconds),
            (0.4, 0.4)
        );
        let of = |answered, rows| ModelRequests {
            rows,
            ..requests(1, answered, 0.1, 0.1)
        };
        timings.add_requests("entry", of(3, 96), at(0));
        timings.add_requests("entry", of(1, 0), at(1));
        assert_eq!(timings.request_stats("p", at(1)).unwrap().rows, 97.0 / 4.0);
        timings.add_requests("entry", of(2, u64::MAX), at(70));
        let most = timings.request_stats("p", at(70)).unwrap().rows;
        assert_eq!(most, MOST_ROWS as f64);
    }

    #[test]
    fn segments_are_weighed_by_their_runs() {
        let mut timings = timings();
        timings.add_segment("a", timing(0, 9.0), at(0));
        timings.add_segment("a", timing(1, 0.5), at(0));
        timings.add_segment("a", timing(9, 0.1), at(1));
        let told = timings.segment_timings("p", 1, at(1));
        assert_eq!((told.len(), told[0].count), (1, 10));
        assert_eq!(told[0].compute_p50_seconds, 0.1);
        assert_eq!(timings.segment_timings("p", 2, at(1)), []);
    }
}

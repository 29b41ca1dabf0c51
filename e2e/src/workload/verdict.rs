use super::{Outcome, Reference, Request, Summary};
use std::collections::BTreeSet;

/// Evidence of a run with one redeploy.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The proof that answers distinguish images.
    pub reference: Reference,
    /// Every request.
    pub requests: Vec<Request>,
    /// The client's own count.
    pub summary: Summary,
    /// When the link was made slow, seconds since 1970.
    pub slow_at: f64,
    /// When the router's count on the new path was first read, seconds since 1970.
    pub moved_at: f64,
    /// Rate of the slow link in bits per second.
    pub slow_bits_per_second: f64,
    /// Requests in flight at the entry when its route flipped.
    pub in_flight_at_flip: u32,
    /// Bytes carried by the router from the entry to other hosts' agents before the change of the
    /// link, and afterwards on the new path.
    pub router_bytes_before: u64,
    /// See `router_bytes_before`.
    pub router_bytes_after: u64,
}

/// The correct requests by phase.
#[derive(Debug, Clone, Default)]
pub struct Phases<'a> {
    /// Answered before the link changed, by the path active then.
    pub before: Vec<&'a Request>,
    /// Sent on the slow link and answered by that path.
    pub during: Vec<&'a Request>,
    /// Sent once the router's count on the last path began, and answered by it.
    pub after: Vec<&'a Request>,
}

/// One check, and whether it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it holds.
    pub passed: bool,
    /// What was checked, with figures.
    pub text: String,
}

impl Evidence {
    /// Sorts the correct requests into phases.
    pub fn phases(&self) -> Phases<'_> {
        let mut phases = Phases::default();
        let answered = || {
            self.requests
                .iter()
                .filter(|r| r.outcome == Outcome::Correct)
        };
        let is_before = |r: &Request| r.at + r.seconds <= self.slow_at;
        // Blocks may have moved before, for another reason.
        let (Some(old), Some(last)) = (
            answered()
                .filter(|r| is_before(r))
                .map(|r| r.revision)
                .max(),
            answered().map(|r| r.revision).max(),
        ) else {
            return phases;
        };
        for request in answered() {
            if request.revision == old && is_before(request) {
                phases.before.push(request);
            } else if request.revision == old && request.at >= self.slow_at {
                phases.during.push(request);
            } else if request.revision == last && last != old && request.at >= self.moved_at {
                phases.after.push(request);
            }
        }
        phases
    }
}

/// Median latency in milliseconds; `None` if empty.
pub fn median_ms(requests: &[&Request]) -> Option<f64> {
    let mut all: Vec<f64> = requests.iter().map(|r| r.seconds * 1e3).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

/// Every check of a redeploy under load.
pub fn judge(evidence: &Evidence) -> Vec<Finding> {
    let phases = evidence.phases();
    vec![
        telling(&evidence.reference),
        nothing_lost(evidence),
        crossed("before", &phases.before, evidence.router_bytes_before),
        crossed("after", &phases.after, evidence.router_bytes_after),
        path_changed(&phases),
        faster(&phases),
        in_flight(evidence.in_flight_at_flip),
        below_capacity(evidence, &phases),
    ]
}

fn finding(passed: bool, text: String) -> Finding {
    Finding { passed, text }
}

fn telling(reference: &Reference) -> Finding {
    let ratio = reference.smallest_difference / reference.tolerance;
    finding(
        ratio >= 100.0,
        format!(
            "{} images' answers differ by at least {:.2e}, {ratio:.0} times the tolerance of {:.0e}",
            reference.images, reference.smallest_difference, reference.tolerance
        ),
    )
}

fn nothing_lost(evidence: &Evidence) -> Finding {
    let s = evidence.summary;
    let seen = evidence.requests.len() as u64;
    let worst = evidence
        .requests
        .iter()
        .filter_map(|r| r.max_abs_diff)
        .fold(0.0, f64::max);
    let first_loss = evidence
        .requests
        .iter()
        .find_map(|r| r.error.as_deref())
        .map(|e| format!("; the first: {e}"))
        .unwrap_or_default();
    finding(
        s.sent > 0 && s.correct == s.sent && s.lost == 0 && s.wrong == 0 && seen == s.sent,
        format!(
            "{} requests sent, {} correct, {} lost, {} wrong (largest difference from PyTorch {worst:.1e}){first_loss}",
            s.sent, s.correct, s.lost, s.wrong
        ),
    )
}

/// Both witnesses: the hosts' own timing lists, and the router between them.
fn crossed(when: &str, requests: &[&Request], router_bytes: u64) -> Finding {
    let hosts = |r: &Request| {
        r.timing
            .iter()
            .filter(|h| h.compute_us > 0)
            .map(|h| h.node.as_str())
            .collect::<BTreeSet<_>>()
            .len()
    };
    let fewest = requests.iter().map(|r| hosts(r)).min().unwrap_or(0);
    let said: u64 = requests
        .iter()
        .filter_map(|r| r.timing.first())
        .map(|h| h.bytes_out)
        .sum();
    finding(
        fewest >= 2 && said > 0 && router_bytes >= said,
        format!(
            "{when}: each of {} answers computed on at least {fewest} hosts; they sent {} KB, the router carried {} KB",
            requests.len(),
            said / 1000,
            router_bytes / 1000
        ),
    )
}

fn path_changed(phases: &Phases<'_>) -> Finding {
    let path = |requests: &[&Request]| requests.last().map(|r| r.path.clone()).unwrap_or_default();
    let (old, new) = (path(&phases.before), path(&phases.after));
    finding(
        !old.is_empty() && !new.is_empty() && old != new,
        format!("path: {old} then {new}"),
    )
}

fn faster(phases: &Phases<'_>) -> Finding {
    let (before, during, after) = (
        median_ms(&phases.before),
        median_ms(&phases.during),
        median_ms(&phases.after),
    );
    let show = |v: Option<f64>| v.map_or_else(|| "none".to_owned(), |v| format!("{v:.0} ms"));
    finding(
        matches!((during, after), (Some(d), Some(a)) if a < d),
        format!(
            "median latency: {} before, {} with the old path on the slow link, {} after",
            show(before),
            show(during),
            show(after)
        ),
    )
}

fn in_flight(count: u32) -> Finding {
    finding(
        count >= 3,
        format!("{count} requests were in flight when the route flipped"),
    )
}

/// Requests per second since the link became slow, bursts included.
fn rate_on_the_slow_link(evidence: &Evidence) -> f64 {
    let sent = || evidence.requests.iter().map(|r| r.at);
    let sent_slow = sent().filter(|at| *at >= evidence.slow_at).count();
    let last = sent().fold(evidence.slow_at, f64::max);
    sent_slow as f64 / (last - evidence.slow_at).max(1.0)
}

fn below_capacity(evidence: &Evidence, phases: &Phases<'_>) -> Finding {
    let bytes = phases
        .before
        .iter()
        .filter_map(|r| r.timing.first())
        .map(|h| h.bytes_out)
        .max()
        .unwrap_or(0);
    let rate = rate_on_the_slow_link(evidence);
    let used = rate * bytes as f64 * 8.0 / evidence.slow_bits_per_second;
    finding(
        bytes > 0 && used < 0.8,
        format!(
            "{rate:.1} requests/s of {} KB, bursts included, are {:.0} % of what the slow link carries",
            bytes / 1000,
            used * 100.0
        ),
    )
}

#[cfg(test)]
mod tests;

//! What changed on the links of a path.

use crate::state::decision::Doubt;
use crate::state::links::{LinkChange, LinkView, Pair};
use crate::state::memory::{LinkReference, PlacementMemory};
use crate::state::plans;
use crate::state::snapshot::Snapshot;
use crate::state::text::{millis, rate_change};
use lamina_crds::placement::Plan;
use lamina_crds::reasons;

/// A change of bandwidth by this factor causes another look at the plan.
const LOOK_FACTOR: f64 = 1.25;
/// A change of bandwidth by this factor is reported.
const TELL_FACTOR: f64 = 2.0;
/// A smaller change of a round trip is noise, whatever the factor.
const RTT_NOISE_SECONDS: f64 = 0.01;
/// Least time between two reports on a link: estimates take a few samples to settle.
const TELL_PAUSE_SECONDS: f64 = 10.0;

/// How long a link that became slower casts doubt on the other links of its hosts: after that, all
/// measured links have been measured again.
const DOUBT_SECONDS: f64 = 120.0;

/// An impossible link counts as unmeasured, not as a change.
fn reference(view: LinkView) -> Option<LinkReference> {
    let (rtt_seconds, bytes_per_second) = view.figures()?;
    Some(LinkReference {
        bytes_per_second,
        rtt_seconds,
    })
}

/// Whether `after` differs from `before` by `factor`, in bandwidth or round trip.
fn changed_by(before: LinkReference, after: LinkReference, factor: f64) -> bool {
    let ratio = after.bytes_per_second / before.bytes_per_second;
    let rtt = after.rtt_seconds / before.rtt_seconds;
    let rtt_moved = (after.rtt_seconds - before.rtt_seconds).abs() > RTT_NOISE_SECONDS;
    ratio >= factor
        || ratio <= 1.0 / factor
        || (rtt_moved && (rtt >= factor || rtt <= 1.0 / factor))
}

/// `cam-1→edge-1 50→5.1 Mbit/s`, with the round trip if that changed.
fn describe((from, to): &Pair, before: LinkReference, after: LinkReference) -> String {
    let ratio = after.bytes_per_second / before.bytes_per_second;
    if ratio >= LOOK_FACTOR || ratio <= 1.0 / LOOK_FACTOR {
        let change = rate_change(before.bytes_per_second, after.bytes_per_second);
        format!("{from}→{to} {change}")
    } else {
        let (a, b) = (before.rtt_seconds * 1e3, after.rtt_seconds * 1e3);
        format!("{from}→{to} round trip {}→{}", millis(a), millis(b))
    }
}

/// What changed on the path since `plan` was chosen; `None` if nothing did. Links seen for the
/// first time are remembered.
pub(crate) fn change_since_plan(
    snapshot: &Snapshot,
    memory: &mut PlacementMemory,
    entry: &str,
    plan: &Plan,
) -> Option<String> {
    if memory.links_of != plan.revision {
        memory.links_of = plan.revision;
        memory.links.clear();
    }
    let mut change = None;
    for pair in plans::links(entry, plan) {
        let Some(now) = snapshot.links.get(&pair.0, &pair.1).and_then(reference) else {
            continue;
        };
        let before = *memory.links.entry(pair.clone()).or_insert(now);
        if change.is_none() && changed_by(before, now, LOOK_FACTOR) {
            change = Some(describe(&pair, before, now));
        }
    }
    change
}

/// `cam-1→edge-1 5.1→50 Mbit/s`, if that is better by so much that a path over it may be the
/// better one now; `None` if not. A link that became worse makes no other path better, and one
/// that was only estimated before is measured because a planner already counts on it.
pub(crate) fn faster(change: &LinkChange) -> Option<String> {
    let after = reference(change.after)?;
    let (from, to) = &change.pair;
    let Some(before) = reference(change.before) else {
        let is_back = !change.before.reachable;
        return is_back.then(|| format!("{from}→{to} is back"));
    };
    let gained = after.bytes_per_second >= before.bytes_per_second * LOOK_FACTOR;
    let rtt_gained = before.rtt_seconds - after.rtt_seconds > RTT_NOISE_SECONDS
        && before.rtt_seconds >= after.rtt_seconds * LOOK_FACTOR;
    (gained || rtt_gained).then(|| describe(&change.pair, before, after))
}

/// Doubt about links: if one of the path became slower, others of its hosts have not been measured
/// since. It outlives the resulting move, so that no second move follows over an unmeasured link.
pub(crate) fn doubt(
    snapshot: &Snapshot,
    memory: &mut PlacementMemory,
    entry: &str,
    plan: &Plan,
) -> Option<Doubt> {
    if let Some((link, ratio)) = slowest(snapshot, memory, entry, plan)
        && let Some(noticed) = memory.noticed
    {
        memory.slowed = Some((link, ratio, noticed));
    }
    standing_doubt(snapshot, memory)
}

/// What is doubted of links by now, as it was noticed.
pub(crate) fn standing_doubt(snapshot: &Snapshot, memory: &PlacementMemory) -> Option<Doubt> {
    let (link, ratio, noticed) = memory.slowed.as_ref()?;
    let since_seconds = snapshot.seconds_since(*noticed);
    (since_seconds <= DOUBT_SECONDS).then(|| Doubt {
        link: link.clone(),
        ratio: *ratio,
        since_seconds,
    })
}

/// The link of the path that slowed down most since `plan` was chosen.
fn slowest(
    snapshot: &Snapshot,
    memory: &PlacementMemory,
    entry: &str,
    plan: &Plan,
) -> Option<(Pair, f64)> {
    let slower = plans::links(entry, plan).into_iter().filter_map(|pair| {
        let before = memory.links.get(&pair)?;
        let now = snapshot.links.get(&pair.0, &pair.1).and_then(reference)?;
        let ratio = now.bytes_per_second / before.bytes_per_second;
        (ratio <= 1.0 / TELL_FACTOR).then_some((pair, ratio))
    });
    slower.min_by(|a, b| a.1.total_cmp(&b.1))
}

/// News about the path's links: whether it is bad news, the reason and the note.
pub(crate) fn news(
    snapshot: &Snapshot,
    memory: &mut PlacementMemory,
    entry: &str,
    plan: &Plan,
) -> Vec<(bool, &'static str, String)> {
    let mut news = Vec::new();
    for pair in plans::links(entry, plan) {
        let Some(now) = snapshot.links.get(&pair.0, &pair.1).and_then(reference) else {
            continue;
        };
        let fresh = (now, None);
        let (before, told) = *memory.told_links.entry(pair.clone()).or_insert(fresh);
        let is_recent = told.is_some_and(|t| snapshot.seconds_since(t) < TELL_PAUSE_SECONDS);
        if is_recent || !changed_by(before, now, TELL_FACTOR) {
            continue;
        }
        let worse = now.bytes_per_second < before.bytes_per_second / TELL_FACTOR
            || (now.bytes_per_second < before.bytes_per_second * TELL_FACTOR
                && now.rtt_seconds > before.rtt_seconds);
        let reason = if worse {
            reasons::LINK_DEGRADED
        } else {
            reasons::LINK_RECOVERED
        };
        news.push((worse, reason, describe(&pair, before, now)));
        memory.told_links.insert(pair, (now, Some(snapshot.now)));
    }
    news
}

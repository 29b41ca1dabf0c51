//! What a host does with its ComputeNode's spec, like a real agent but without
//! computing: which slices it holds when, and how its routes proceed. Pure.
//!
//! Specs are read as plain JSON, so that the fleet works with operators of more
//! than one version.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Bytes per second at which blocks are fetched.
const FETCH_BYTES_PER_SECOND: f64 = 12_500_000.0;
/// Bytes per second at which blocks are merged, optimized and warmed up.
const LOAD_BYTES_PER_SECOND: f64 = 40_000_000.0;
/// The minimum of either.
const STEP: Duration = Duration::from_millis(150);
/// Round trip of the probe over the path.
const VERIFY: Duration = Duration::from_millis(250);
/// Time that requests in flight at a flip need.
const DRAIN: Duration = Duration::from_millis(120);

/// UID of the Placement, revision, segment.
pub(super) type SliceKey = (String, i64, u32);

/// The operator's wish for a host.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wish {
    pub(super) uid: String,
    pub(super) generation: i64,
    /// Where the operator listens.
    pub(super) operator: String,
    pub(super) slices: Vec<SliceWish>,
    pub(super) routes: Vec<RouteWish>,
}

/// A slice to hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SliceWish {
    pub(super) key: SliceKey,
    /// Digests of its blocks with their sizes.
    pub(super) blocks: Vec<(String, u64)>,
}

/// A route to follow.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RouteWish {
    pub(super) placement_uid: String,
    pub(super) active: i64,
    pub(super) verify: Option<i64>,
    /// Requests for the model enter here.
    pub(super) is_entry: bool,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

impl Wish {
    /// The wish in the ComputeNode `meta` of a host, which has this `spec`.
    pub(super) fn read(meta: &ObjectMeta, spec: &Value) -> Self {
        let node = meta.name.as_deref().unwrap_or_default();
        let slice = |slice: &Value| SliceWish {
            key: (
                text(&slice["placementUid"]),
                slice["revision"].as_i64().unwrap_or_default(),
                u32::try_from(slice["segment"].as_u64().unwrap_or_default()).unwrap_or_default(),
            ),
            blocks: list(&slice["blocks"])
                .map(|b| (text(&b["digest"]), b["bytes"].as_u64().unwrap_or_default()))
                .collect(),
        };
        let route = |route: &Value| RouteWish {
            placement_uid: text(&route["placementUid"]),
            active: route["activeRevision"].as_i64().unwrap_or_default(),
            verify: route["verifyRevision"].as_i64(),
            // If the operator sends the route to all hosts, it names the entry.
            is_entry: route["entry"]["node"].as_str().is_none_or(|n| n == node),
        };
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            operator: text(&spec["operator"]),
            slices: list(&spec["slices"]).map(slice).collect(),
            routes: list(&spec["routes"]).map(route).collect(),
        }
    }
}

/// A slice that is held or being loaded.
#[derive(Debug, Clone, Copy)]
struct Held {
    fetched: Duration,
    ready: Duration,
    run_ms: f64,
    bytes: u64,
}

/// A route that is followed.
#[derive(Debug, Clone, Default)]
struct Followed {
    active: i64,
    /// Revision before the last flip, and when its requests have ended.
    before: Option<(i64, Duration)>,
    in_flight_at_flip: u32,
    /// Revision being probed, and when the result is due.
    proved: Option<(i64, Duration)>,
    is_entry: bool,
}

/// The slices and routes of a host.
#[derive(Debug, Default)]
pub(super) struct Duty {
    slices: BTreeMap<SliceKey, Held>,
    routes: BTreeMap<String, Followed>,
    /// Blocks on this host, which are not fetched again.
    blocks: BTreeSet<String>,
}

/// A host's report at one moment.
#[derive(Debug, PartialEq)]
pub(super) struct Report {
    /// As `status.slices`.
    pub(super) slices: Vec<Value>,
    /// As `status.routes`.
    pub(super) routes: Vec<Value>,
    /// Slices that are ready.
    pub(super) ready: u32,
    /// When the report changes next, if nothing else happens.
    pub(super) next: Option<Duration>,
}

impl Duty {
    /// Adopts `wish`. `milliseconds` gives the time of a block on this host.
    pub(super) fn follow(
        &mut self,
        wish: &Wish,
        now: Duration,
        milliseconds: impl Fn(&str) -> f64,
    ) {
        let wanted: BTreeSet<&SliceKey> = wish.slices.iter().map(|slice| &slice.key).collect();
        self.slices.retain(|key, _| wanted.contains(key));
        for slice in &wish.slices {
            if self.slices.contains_key(&slice.key) {
                continue;
            }
            let all: u64 = slice.blocks.iter().map(|(_, bytes)| bytes).sum();
            let lacking: u64 = slice
                .blocks
                .iter()
                .filter(|(digest, _)| self.blocks.insert(digest.clone()))
                .map(|(_, bytes)| bytes)
                .sum();
            let fetched = now + step(lacking, FETCH_BYTES_PER_SECOND);
            let held = Held {
                fetched,
                ready: fetched + step(all, LOAD_BYTES_PER_SECOND),
                run_ms: slice.blocks.iter().map(|(d, _)| milliseconds(d)).sum(),
                bytes: all,
            };
            self.slices.insert(slice.key.clone(), held);
        }
        let wanted: BTreeSet<&String> = wish.routes.iter().map(|r| &r.placement_uid).collect();
        self.routes.retain(|uid, _| wanted.contains(uid));
        for route in &wish.routes {
            let uid = route.placement_uid.clone();
            self.routes.entry(uid).or_default().follow(route, now);
        }
    }

    /// The report at `now`.
    pub(super) fn report(&self, now: Duration, clock: impl Fn(Duration) -> String) -> Report {
        let slices: Vec<Value> = self.slices.iter().map(|(k, h)| slice(k, h, now)).collect();
        let moments = self
            .slices
            .values()
            .flat_map(|held| [held.fetched, held.ready])
            .chain(self.routes.values().flat_map(Followed::moments));
        Report {
            ready: u32::try_from(self.slices.values().filter(|h| h.ready <= now).count())
                .unwrap_or(u32::MAX),
            routes: self
                .routes
                .iter()
                .map(|(uid, route)| route.status(uid, now, &clock))
                .collect(),
            next: moments.filter(|at| *at > now).min(),
            slices,
        }
    }

    /// Slices that are ready, each with the milliseconds of a run.
    pub(super) fn ready(&self, now: Duration) -> impl Iterator<Item = (&SliceKey, f64)> {
        let ready = self
            .slices
            .iter()
            .filter(move |(_, held)| held.ready <= now);
        ready.map(|(key, held)| (key, held.run_ms))
    }

    /// Bytes of the blocks of every slice.
    pub(super) fn bytes(&self) -> u64 {
        self.slices.values().map(|held| held.bytes).sum()
    }

    /// Placements whose requests enter here, with the active revision.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, i64)> {
        let served = self
            .routes
            .iter()
            .filter(|(_, r)| r.is_entry && r.active > 0);
        served.map(|(uid, route)| (uid.as_str(), route.active))
    }
}

fn step(bytes: u64, bytes_per_second: f64) -> Duration {
    STEP + Duration::from_secs_f64(bytes as f64 / bytes_per_second)
}

fn slice((uid, revision, segment): &SliceKey, held: &Held, now: Duration) -> Value {
    let mut status = json!({
        "placementUid": uid,
        "revision": revision,
        "segment": segment,
        "state": "Fetching",
    });
    if held.ready <= now {
        status["state"] = json!("Ready");
        status["runMs"] = json!(held.run_ms);
    } else if held.fetched <= now {
        status["state"] = json!("Loading");
    }
    status
}

impl Followed {
    fn follow(&mut self, wish: &RouteWish, now: Duration) {
        if wish.active != self.active {
            self.before = (self.active > 0).then_some((self.active, now + DRAIN));
            self.in_flight_at_flip = u32::from(self.active > 0 && wish.is_entry);
            self.active = wish.active;
        }
        self.is_entry = wish.is_entry;
        if let Some(revision) = wish.verify.filter(|_| wish.is_entry)
            && self.proved.is_none_or(|(proved, _)| proved != revision)
        {
            self.proved = Some((revision, now + VERIFY));
        }
    }

    fn moments(&self) -> impl Iterator<Item = Duration> {
        let proved = self.proved.map(|(_, at)| at);
        self.before.map(|(_, at)| at).into_iter().chain(proved)
    }

    fn status(&self, uid: &str, now: Duration, clock: impl Fn(Duration) -> String) -> Value {
        let lingers = self.before.filter(|(_, at)| *at > now);
        let oldest = lingers.map_or(self.active, |(before, _)| before.min(self.active));
        let mut status = json!({
            "placementUid": uid,
            "activeRevision": self.active,
            "oldestInFlight": oldest,
            "inFlightAtFlip": self.in_flight_at_flip,
        });
        if let Some((revision, at)) = self.proved.filter(|(_, at)| *at <= now) {
            status["verified"] = json!({
                "revision": revision,
                "passed": true,
                "message": "largest difference 0",
                "latencyMs": VERIFY.as_secs_f64() * 1e3,
                "time": clock(at),
            });
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn wish(node: &str, routes: Value) -> Wish {
        let meta = ObjectMeta {
            name: Some(node.to_owned()),
            ..ObjectMeta::default()
        };
        let spec = json!({
            "operator": "10.0.0.3:9000",
            "slices": [{
                "placementUid": "p", "revision": 2, "segment": 1,
                "blocks": [{"digest": "d", "bytes": 12_500_000}],
            }],
            "routes": routes,
        });
        Wish::read(&meta, &spec)
    }

    fn state(duty: &Duty, now: Duration) -> Value {
        duty.report(now, |_| String::new()).slices[0]["state"].clone()
    }

    #[test]
    fn a_slice_is_fetched_then_loaded_then_ready() {
        let mut duty = Duty::default();
        let wish = wish("a", json!([]));
        duty.follow(&wish, at(0), |_| 7.0);
        assert_eq!(state(&duty, at(1000)), "Fetching");
        assert_eq!(state(&duty, at(1200)), "Loading");
        let report = duty.report(at(1700), |_| String::new());
        assert_eq!(report.slices[0]["state"], "Ready");
        assert_eq!(report.slices[0]["runMs"], 7.0);
        assert_eq!((report.ready, report.next), (1, None));
        // Blocks on this host are not fetched again.
        let mut next = wish;
        next.slices[0].key.1 = 3;
        duty.follow(&next, at(2000), |_| 7.0);
        assert_eq!(state(&duty, at(2150)), "Loading");
    }

    #[test]
    fn a_route_is_proved_then_flipped_and_drains() {
        let route = |active: i64, verify: Option<i64>| json!([{"placementUid": "p", "activeRevision": active, "verifyRevision": verify}]);
        let mut duty = Duty::default();
        let mut follow = |active, verify, now| {
            duty.follow(&wish("a", route(active, verify)), now, |_| 1.0);
            duty.report(now + at(1), |_| "then".to_owned()).routes[0].clone()
        };
        let first = follow(1, Some(2), at(0));
        assert!(first.get("verified").is_none());
        let proved = follow(1, Some(2), at(300));
        assert_eq!(proved["verified"]["revision"], 2);
        let flipped = follow(2, None, at(400));
        assert_eq!(
            (&flipped["activeRevision"], &flipped["oldestInFlight"]),
            (&json!(2), &json!(1))
        );
        let drained = follow(2, None, at(600));
        assert_eq!(drained["oldestInFlight"], 2);
        assert_eq!(drained["inFlightAtFlip"], 1);
    }

    #[test]
    fn only_the_entry_proves_and_answers_whichever_way_it_is_told() {
        let told_all = json!([{
            "placementUid": "p", "activeRevision": 1, "verifyRevision": 2,
            "entry": {"node": "b", "address": ""},
        }]);
        let mut duty = Duty::default();
        duty.follow(&wish("a", told_all.clone()), at(0), |_| 1.0);
        assert_eq!(duty.entries().count(), 0);
        let report = duty.report(at(900), |_| String::new());
        assert!(report.routes[0].get("verified").is_none());
        duty.follow(&wish("b", told_all), at(0), |_| 1.0);
        assert_eq!(duty.entries().collect::<Vec<_>>(), [("p", 1)]);
    }
}

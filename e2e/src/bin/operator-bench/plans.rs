//! The Placements as a watch shows them, and when each plan was first seen.

use futures::StreamExt as _;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use lamina_crds::Placement;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// One Placement.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) model: String,
    pub(crate) entry: String,
    /// Revision of the newest plan; 0 before the first.
    pub(crate) planned: i64,
    /// When that revision was first seen.
    pub(crate) planned_at: Option<Instant>,
    /// When the first plan was seen, which later ones do not replace.
    pub(crate) first_planned_at: Option<Instant>,
    /// Active revision; 0 if none.
    pub(crate) active: i64,
    /// Revision being deployed; 0 if none.
    pub(crate) target: i64,
    /// Hosts of the active revision, in order.
    pub(crate) hosts: Vec<String>,
    /// Why that revision was planned.
    pub(crate) trigger: String,
    /// Its latency over that of the one it replaces; 0 if either is unknown.
    pub(crate) ratio: f64,
}

impl View {
    /// The newest plan is active.
    pub(crate) const fn is_settled(&self) -> bool {
        self.active > 0 && self.target == 0 && self.active == self.planned
    }
}

#[derive(Default)]
struct Inner {
    views: Mutex<BTreeMap<String, View>>,
    /// Plans that replace another.
    moves: Mutex<Vec<Move>>,
    changed: Notify,
}

/// A plan that replaces another.
struct Move {
    /// When it was first seen.
    at: Instant,
    /// The kind of its trigger.
    why: String,
    /// Promised latency over the latency then expected of the replaced plan; 0 if either is
    /// unknown.
    ratio: f64,
}

/// Plans that replaced others with one trigger.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    pub(crate) count: usize,
    /// Latencies promised over those replaced, unordered.
    pub(crate) ratios: Vec<f64>,
}

/// Every Placement, by name.
pub(crate) struct Plans {
    inner: Arc<Inner>,
    watching: JoinHandle<()>,
}

impl Drop for Plans {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Plans {
    pub(crate) fn watch(client: Client) -> Self {
        let inner = Arc::<Inner>::default();
        let watching = tokio::spawn(follow(client, Arc::clone(&inner)));
        Self { inner, watching }
    }

    pub(crate) fn all(&self) -> BTreeMap<String, View> {
        self.inner.lock().clone()
    }

    /// How many plans replaced another since then, by trigger.
    pub(crate) fn moves_since(&self, since: Instant) -> BTreeMap<String, Moves> {
        let moves = self.inner.moves.lock();
        let moves = moves.unwrap_or_else(PoisonError::into_inner);
        let mut by_kind: BTreeMap<String, Moves> = BTreeMap::new();
        for made in moves.iter().filter(|made| made.at >= since) {
            let of_kind = by_kind.entry(made.why.clone()).or_default();
            of_kind.count += 1;
            of_kind.ratios.extend(Some(made.ratio).filter(|r| *r > 0.0));
        }
        by_kind
    }

    pub(crate) fn get(&self, name: &str) -> View {
        self.inner.lock().get(name).cloned().unwrap_or_default()
    }

    /// Waits until `is_so`; false on timeout.
    pub(crate) async fn until(
        &self,
        within: Duration,
        is_so: impl Fn(&BTreeMap<String, View>) -> bool,
    ) -> bool {
        let wait = async {
            loop {
                let changed = self.inner.changed.notified();
                if is_so(&self.inner.lock()) {
                    return;
                }
                changed.await;
            }
        };
        timeout(within, wait).await.is_ok()
    }

    /// When a plan of `name` newer than `since` was first seen; `None` on timeout.
    pub(crate) async fn plan_since(
        &self,
        name: &str,
        since: Instant,
        within: Duration,
    ) -> Option<Instant> {
        let newer = |view: &View| view.planned_at.filter(|at| *at >= since);
        self.until(within, |all| all.get(name).and_then(newer).is_some())
            .await;
        newer(&self.get(name))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, View>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: watcher::Event<DynamicObject>) {
        let mut views = self.lock();
        match event {
            watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                let known = views.entry(object.name_any()).or_default();
                let before = known.planned;
                known.update(&object.data);
                if before > 0 && known.planned > before {
                    let moves = self.moves.lock();
                    let mut moves = moves.unwrap_or_else(PoisonError::into_inner);
                    moves.push(Move {
                        at: Instant::now(),
                        why: kind(&known.trigger),
                        ratio: known.ratio,
                    });
                }
            }
            watcher::Event::Delete(object) => drop(views.remove(&object.name_any())),
            // Nothing is deleted while a watch is down in a benchmark.
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
        drop(views);
        self.changed.notify_waiters();
    }
}

impl View {
    fn update(&mut self, object: &Value) {
        let (spec, status) = (&object["spec"], &object["status"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let number = |value: &Value| value.as_i64().unwrap_or_default();
        let planned = number(&spec["plan"]["revision"]);
        let latency = |of: &str| spec["plan"][of].as_f64().filter(|ms| *ms > 0.0);
        let (promised, replaced) = (latency("estimatedLatencyMs"), latency("replacedLatencyMs"));
        if planned > self.planned {
            self.planned_at = Some(Instant::now());
        }
        let first_planned_at = self.first_planned_at.or(self.planned_at);
        let segments = status["active"]["segments"].as_array();
        *self = Self {
            model: text(&spec["model"]),
            entry: text(&spec["entry"]),
            planned,
            trigger: text(&spec["plan"]["trigger"]),
            ratio: promised.zip(replaced).map_or(0.0, |(p, r)| p / r),
            planned_at: self.planned_at,
            first_planned_at,
            active: number(&status["activeRevision"]),
            target: number(&status["targetRevision"]),
            hosts: segments
                .into_iter()
                .flatten()
                .map(|segment| text(&segment["host"]["node"]))
                .collect(),
        };
    }
}

/// The kind of a trigger, without its names and figures.
fn kind(trigger: &str) -> String {
    let plain = |word: &&str| word.bytes().all(|b| b.is_ascii_lowercase());
    let words: Vec<&str> = trigger.split(' ').filter(plain).collect();
    if words.is_empty() {
        "a link changed".to_owned()
    } else {
        words.join(" ")
    }
}

async fn follow(client: Client, inner: Arc<Inner>) {
    let resource = ApiResource::erase::<Placement>(&());
    let api = Api::<DynamicObject>::all_with(client, &resource);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => inner.take(event),
            Err(error) => tracing::warn!(%error, "cannot watch Placements; trying again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_plan_is_told_from_the_newest() {
        let mut view = View::default();
        view.update(&json!({"spec": {"model": "m", "entry": "e"}}));
        assert_eq!(view.first_planned_at, None);
        view.update(&json!({"spec": {"plan": {"revision": 1}}}));
        let first = view.first_planned_at;
        assert!(first.is_some() && first == view.planned_at);
        view.update(&json!({"spec": {"plan": {"revision": 2}}}));
        assert_eq!(view.first_planned_at, first);
        assert!(view.planned_at >= first);
    }

    #[test]
    fn triggers_of_a_kind_are_counted_together() {
        assert_eq!(kind("d-1→e-1 48→4.7 Mbit/s"), "a link changed");
        assert_eq!(kind("edge-7 is lost"), "is lost");
        assert_eq!(kind("d-1→e-1 is back"), "is back");
        let gain = "a better placement was found";
        assert_eq!(kind(gain), gain);
    }
}

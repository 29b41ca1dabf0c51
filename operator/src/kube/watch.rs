//! Copies of the objects in the API server, kept up to date.
//!
//! The operator's own writes are put into the copy at once, so that the next look does not
//! repeat a decision because its watch is late.

use crate::kube::lenient::{Bad, Lenient, Salvage};
use crate::state::listed::Unreadable;
use crate::text::with_causes;
use futures::{Stream, StreamExt};
use kube::core::ObjectMeta;
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// First pause after a watch failed; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two tries at a watch.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A watch that did not fail for this long works.
const WORKS: Duration = Duration::from_secs(20);

/// Namespace and name.
type Key = (String, String);

/// The copies of one kind.
#[derive(Debug)]
pub(crate) struct Copies<K> {
    inner: Mutex<Inner<K>>,
}

#[derive(Debug)]
struct Inner<K> {
    present: BTreeMap<Key, Arc<K>>,
    /// Objects of a list in progress.
    listing: BTreeMap<Key, Arc<K>>,
    /// UIDs that this process removed; a late watch must not bring them back.
    removed: Vec<String>,
    is_complete: bool,
    /// Objects that cannot be read, with the error. Their last readable version, if any, is among
    /// those present.
    unreadable: BTreeMap<Key, Unreadable>,
    /// The same, of a list in progress.
    listing_unreadable: BTreeMap<Key, Unreadable>,
    /// The watch's last error, until it works.
    complaint: Option<String>,
}

impl<K> Default for Copies<K> {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                present: BTreeMap::new(),
                listing: BTreeMap::new(),
                removed: Vec::new(),
                is_complete: false,
                unreadable: BTreeMap::new(),
                listing_unreadable: BTreeMap::new(),
                complaint: None,
            }),
        }
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Versions of one resource are comparable numbers.
fn version<K: Resource>(object: &K) -> u64 {
    version_of(object.meta())
}

fn version_of(meta: &ObjectMeta) -> u64 {
    meta.resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// The object without managed fields, which are often larger than the rest.
fn slim<K: Resource + Salvage>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object.slim();
    object
}

impl<K: Resource<DynamicType = ()> + Salvage> Copies<K> {
    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        // Every change of the maps is a single step, so they are intact even after a panic
        // elsewhere.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every object, once the first list is complete.
    pub(crate) fn all(&self) -> Option<Vec<Arc<K>>> {
        let inner = self.lock();
        inner
            .is_complete
            .then(|| inner.present.values().cloned().collect())
    }

    /// Whether the first list is complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.lock().is_complete
    }

    /// As after a first list of `objects`.
    #[cfg(test)]
    pub(crate) fn list(&self, objects: impl IntoIterator<Item = K>) {
        self.apply(watcher::Event::Init);
        for object in objects {
            self.apply(watcher::Event::InitApply(object));
        }
        self.apply(watcher::Event::InitDone);
    }

    /// The object of that name; an empty namespace means cluster-scoped.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.lock().present.get(&key).cloned()
    }

    /// Objects that exist but cannot be read, with the error.
    pub(crate) fn unreadable(&self) -> BTreeMap<(String, String), Unreadable> {
        self.lock().unreadable.clone()
    }

    /// `kind` with its watch's last error, as long as the first list is not complete.
    pub(crate) fn missing(&self, kind: &str) -> Option<String> {
        let inner = self.lock();
        let why = inner.complaint.as_ref().map(|c| format!(" ({c})"));
        (!inner.is_complete).then(|| format!("{kind}{}", why.unwrap_or_default()))
    }

    /// Stores an object from a watch or a write, unless a newer version is here; returns whether
    /// anything relevant changed.
    pub(crate) fn observe(&self, object: K) -> bool {
        let object = slim(object);
        let mut inner = self.lock();
        let uid = object.meta().uid.clone().unwrap_or_default();
        if inner.removed.contains(&uid) {
            return false;
        }
        let key = key(&object);
        let (old, new) = (inner.present.get(&key), version(&object));
        if old.is_some_and(|old| version(old.as_ref()) > new) {
            return false;
        }
        // A watch repeats what this process wrote.
        let is_known = old.is_some_and(|old| version(old.as_ref()) == new || object.is_same(old));
        let was_unreadable = inner.unreadable.remove(&key).is_some();
        inner.present.insert(key, Arc::new(object));
        was_unreadable || !is_known
    }

    /// Stores an object from a watch or a write, readable or not.
    pub(crate) fn observe_any(&self, object: Lenient<K>) {
        match object.0 {
            Ok(object) => {
                self.observe(object);
            }
            Err(bad) => self.cannot_read(&bad, false),
        }
    }

    /// An object exists but cannot be read: that does not mean that it is gone.
    fn cannot_read(&self, bad: &Bad, is_listed: bool) {
        let meta = &bad.metadata;
        let key = (
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        );
        let mut inner = self.lock();
        let uid = meta.uid.clone().unwrap_or_default();
        if inner.removed.contains(&uid) {
            return;
        }
        // A recreated object of the same name is another one.
        let known = inner.present.get(&key).filter(|k| k.meta().uid == meta.uid);
        if let Some(newer) = known.filter(|k| version::<K>(k) > version_of(meta)) {
            if is_listed {
                let newer = Arc::clone(newer);
                let what = inner.unreadable.get(&key).cloned();
                inner.listing.insert(key.clone(), newer);
                inner
                    .listing_unreadable
                    .extend(what.map(|what| (key, what)));
            }
            return;
        }
        let kept = K::salvage(bad, known.map(|k| &**k)).map(Arc::new);
        let what = Unreadable {
            uid,
            error: bad.error.clone(),
            status: K::status(bad),
        };
        let (objects, unreadable) = if is_listed {
            let inner = &mut *inner;
            (&mut inner.listing, &mut inner.listing_unreadable)
        } else {
            let inner = &mut *inner;
            (&mut inner.present, &mut inner.unreadable)
        };
        unreadable.insert(key.clone(), what);
        match kept {
            Some(kept) => objects.insert(key, kept),
            None => objects.remove(&key),
        };
    }

    /// An object that cannot be read was deleted.
    fn gone(&self, bad: &Bad) {
        let meta = &bad.metadata;
        let key = (
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        );
        let mut inner = self.lock();
        inner.present.remove(&key);
        inner.unreadable.remove(&key);
    }

    /// Drops an object that this process removed.
    pub(crate) fn remove(&self, namespace: &str, name: &str, uid: &str) {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        if inner
            .present
            .get(&key)
            .is_some_and(|o| o.meta().uid.as_deref() == Some(uid))
        {
            inner.present.remove(&key);
        }
        inner.removed.push(uid.to_owned());
    }

    /// Applies a watch event; returns whether anything relevant changed.
    fn apply(&self, event: watcher::Event<K>) -> bool {
        match event {
            watcher::Event::Apply(object) => return self.observe(object),
            watcher::Event::Delete(object) => {
                let mut inner = self.lock();
                let uid = object.meta().uid.clone();
                let key = key(&object);
                if inner.present.get(&key).is_some_and(|o| o.meta().uid == uid) {
                    inner.present.remove(&key);
                }
                inner.unreadable.remove(&key);
                inner.removed.retain(|r| Some(r) != uid.as_ref());
            }
            watcher::Event::Init => {
                let mut inner = self.lock();
                inner.listing.clear();
                inner.listing_unreadable.clear();
                return false;
            }
            watcher::Event::InitApply(object) => {
                let object = slim(object);
                self.lock().listing.insert(key(&object), Arc::new(object));
                return false;
            }
            watcher::Event::InitDone => {
                let mut inner = self.lock();
                let mut listed = std::mem::take(&mut inner.listing);
                for (key, object) in &mut listed {
                    if let Some(ours) = inner.present.get(key)
                        && version(ours.as_ref()) > version(object.as_ref())
                    {
                        *object = Arc::clone(ours);
                    }
                }
                let removed = std::mem::take(&mut inner.removed);
                listed.retain(|_, o| !o.meta().uid.as_ref().is_some_and(|u| removed.contains(u)));
                inner.removed = removed;
                inner.present = listed;
                inner.unreadable = std::mem::take(&mut inner.listing_unreadable);
                inner.is_complete = true;
                inner.complaint = None;
            }
        }
        true
    }
}

/// Objects that a watch delivers, readable or not.
fn events<K>(
    api: Api<Lenient<K>>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<watcher::Event<Lenient<K>>>> + Send
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    // Each try begins with an event, so only time can tell that a watch works.
    let pauses = ResetTimerBackoff::new(Pause(FIRST_PAUSE), WORKS);
    watcher(api, config).backoff(pauses)
}

/// Pauses between tries at a watch. kube's own grow to half a minute, during which the operator is
/// blind after the API server returns.
struct Pause(Duration);

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        Some(pause.mul_f64(rand::random_range(0.8..1.2)))
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        self.0 = FIRST_PAUSE;
    }
}

/// Keeps `copies` up to date until the watch ends, which only a shutdown does. Notifies `changed`
/// of each relevant change.
pub(crate) async fn keep<K>(
    api: Api<Lenient<K>>,
    config: watcher::Config,
    copies: Arc<Copies<K>>,
    changed: Arc<Notify>,
) where
    K: Resource<DynamicType = ()> + Salvage + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let kind = K::kind(&()).into_owned();
    let mut events = std::pin::pin!(events(api, config));
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if readable(&kind, &copies, event).is_some_and(|event| copies.apply(event)) {
                    changed.notify_one();
                }
            }
            Err(error) => {
                let error = with_causes(&error);
                let mut inner = copies.lock();
                if inner.is_complete {
                    tracing::warn!(kind, error, "watch failed; trying again");
                } else {
                    tracing::warn!(
                        kind,
                        error,
                        "cannot list; trying again. Are the CRDs installed, and may the operator list them?"
                    );
                }
                inner.complaint = Some(error);
                drop(inner);
                changed.notify_one();
            }
        }
    }
}

/// The event, if its object can be read. Otherwise the object is noted here, so that it does not
/// block all others.
fn readable<K: Resource<DynamicType = ()> + Salvage>(
    kind: &str,
    copies: &Copies<K>,
    event: watcher::Event<Lenient<K>>,
) -> Option<watcher::Event<K>> {
    let noted = |object: Lenient<K>, is_listed: bool| {
        let read = object.0.map_err(|bad| {
            let (namespace, name) = (&bad.metadata.namespace, &bad.metadata.name);
            let error = &bad.error;
            tracing::warn!(
                kind,
                namespace,
                name,
                error,
                "object cannot be read; update the CRDs or correct it"
            );
            copies.cannot_read(&bad, is_listed);
        });
        read.ok()
    };
    Some(match event {
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitDone => watcher::Event::InitDone,
        watcher::Event::InitApply(object) => watcher::Event::InitApply(noted(object, true)?),
        watcher::Event::Apply(object) => watcher::Event::Apply(noted(object, false)?),
        watcher::Event::Delete(object) => match object.0 {
            Ok(object) => watcher::Event::Delete(object),
            Err(bad) => {
                copies.gone(&bad);
                return None;
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::lenient::tests::too_large;
    use k8s_openapi::api::core::v1::{Node, NodeStatus, Pod, PodStatus};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
    use lamina_crds::DnnModel;
    use serde_json::{Value, json};

    fn pod(name: &str, uid: &str, version: u64) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                uid: Some(uid.into()),
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        }
    }

    fn versions(copies: &Copies<Pod>) -> Vec<(String, u64)> {
        let all = copies.all().unwrap();
        all.iter()
            .map(|p| (p.name_any(), version(p.as_ref())))
            .collect()
    }

    fn listed(pods: &[Pod]) -> Copies<Pod> {
        let copies = Copies::default();
        copies.apply(watcher::Event::Init);
        for p in pods {
            copies.apply(watcher::Event::InitApply(p.clone()));
        }
        copies.apply(watcher::Event::InitDone);
        copies
    }

    #[test]
    fn nothing_is_known_before_the_first_list_is_complete() {
        let copies = Copies::<Pod>::default();
        copies.apply(watcher::Event::Init);
        copies.apply(watcher::Event::InitApply(pod("a", "1", 5)));
        assert!(copies.all().is_none());
        copies.apply(watcher::Event::InitDone);
        assert_eq!(versions(&copies), [("a".to_owned(), 5)]);
    }

    #[test]
    fn who_set_which_field_is_not_kept() {
        let managed = |version| {
            let mut pod = pod("a", "1", version);
            pod.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
            pod
        };
        let copies = listed(&[managed(5)]);
        let is_slim = || {
            let all = copies.all().unwrap();
            all.iter().all(|p| p.metadata.managed_fields.is_none())
        };
        assert!(is_slim());
        copies.observe(managed(6));
        assert_eq!(versions(&copies), [("a".to_owned(), 6)]);
        assert!(is_slim());
    }

    #[test]
    fn a_late_watch_does_not_undo_our_own_write() {
        let copies = listed(&[pod("a", "1", 5)]);
        copies.observe(pod("a", "1", 9));
        copies.apply(watcher::Event::Apply(pod("a", "1", 7)));
        assert_eq!(versions(&copies), [("a".to_owned(), 9)]);
        copies.apply(watcher::Event::Init);
        copies.apply(watcher::Event::InitApply(pod("a", "1", 8)));
        copies.apply(watcher::Event::InitDone);
        assert_eq!(versions(&copies), [("a".to_owned(), 9)]);
    }

    #[test]
    fn what_says_nothing_new_wakes_nobody() {
        let copies = listed(&[pod("a", "1", 5)]);
        let apply = |pod: Pod| copies.apply(watcher::Event::Apply(pod));
        copies.observe(pod("a", "1", 7));
        assert!(!apply(pod("a", "1", 7)), "our own write comes back");
        assert!(!apply(pod("a", "1", 6)));
        let with = |version, phase: &str, message: &str| {
            let mut pod = pod("a", "1", version);
            pod.status = Some(PodStatus {
                phase: Some(phase.into()),
                message: Some(message.into()),
                ..PodStatus::default()
            });
            pod
        };
        assert!(apply(with(8, "Running", "")));
        assert!(!apply(with(9, "Running", "of no interest")));
        assert_eq!(versions(&copies), [("a".to_owned(), 9)]);
        assert!(apply(with(10, "Failed", "")));
        assert!(apply(pod("b", "2", 11)));
        assert!(copies.apply(watcher::Event::Delete(pod("b", "2", 12))));
    }

    #[test]
    fn of_a_node_its_labels_its_processors_and_whether_it_is_cordoned_count() {
        let node = |version: u64, change: fn(&mut Node)| {
            let mut node = Node::default();
            node.metadata.name = Some("a".into());
            node.metadata.resource_version = Some(version.to_string());
            change(&mut node);
            node
        };
        let copies = Copies::<Node>::default();
        let apply = |node: Node| copies.apply(watcher::Event::Apply(node));
        assert!(apply(node(1, |_| {})));
        let heartbeat = |n: &mut Node| n.status = Some(NodeStatus::default());
        assert!(!apply(node(2, heartbeat)));
        let cordon = |n: &mut Node| n.spec.get_or_insert_default().unschedulable = Some(true);
        assert!(apply(node(3, cordon)));
        let label = |n: &mut Node| n.metadata.labels = Some([("k".into(), "v".into())].into());
        assert!(apply(node(4, label)));
        let sized = |n: &mut Node| {
            let quantity = |text: &str| Quantity(text.to_owned());
            let capacity = [("cpu", quantity("4")), ("memory", quantity("8Gi"))];
            let capacity = capacity.map(|(name, count)| (name.to_owned(), count));
            n.status.get_or_insert_default().capacity = Some(capacity.into());
        };
        assert!(apply(node(5, sized)));
        assert!(!apply(node(6, sized)));
    }

    #[test]
    fn what_we_removed_stays_away_and_its_successor_comes() {
        let copies = listed(&[pod("a", "1", 5)]);
        copies.remove("", "a", "1");
        copies.apply(watcher::Event::Apply(pod("a", "1", 6)));
        assert_eq!(versions(&copies), []);
        copies.apply(watcher::Event::Apply(pod("a", "2", 8)));
        copies.apply(watcher::Event::Delete(pod("a", "1", 7)));
        assert_eq!(versions(&copies), [("a".to_owned(), 8)]);
    }

    fn model(version: u64) -> DnnModel {
        let mut model = crate::testing::model();
        model.metadata.resource_version = Some(version.to_string());
        model
    }

    fn tell(copies: &Copies<DnnModel>, event: watcher::Event<Value>) {
        let read = |value: Value| serde_json::from_value(value).unwrap();
        let event = match event {
            watcher::Event::Apply(o) => watcher::Event::Apply(read(o)),
            watcher::Event::Delete(o) => watcher::Event::Delete(read(o)),
            watcher::Event::Init => watcher::Event::Init,
            watcher::Event::InitApply(o) => watcher::Event::InitApply(read(o)),
            watcher::Event::InitDone => watcher::Event::InitDone,
        };
        if let Some(event) = readable("DnnModel", copies, event) {
            copies.apply(event);
        }
    }

    #[test]
    fn a_model_that_cannot_be_read_stays_as_it_was_read_last() {
        let copies = Copies::<DnnModel>::default();
        let good = |version| serde_json::to_value(model(version)).unwrap();
        tell(&copies, watcher::Event::Init);
        tell(&copies, watcher::Event::InitApply(good(5)));
        tell(&copies, watcher::Event::InitDone);
        let kept = || {
            let all = copies.all().unwrap();
            all.iter().map(|m| m.spec.clone()).collect::<Vec<_>>()
        };
        let bad = too_large(&model(6));
        tell(&copies, watcher::Event::Apply(bad.clone()));
        assert_eq!(kept(), [model(5).spec]);
        let told = || {
            copies
                .unreadable()
                .into_values()
                .map(|u| u.error)
                .collect::<Vec<_>>()
        };
        assert!(told()[0].starts_with("spec.constraints.keepOnEntry: "));
        // While a list is repeated, the object stays known.
        tell(&copies, watcher::Event::Init);
        assert_eq!((kept().len(), told().len()), (1, 1));
        tell(&copies, watcher::Event::InitApply(bad.clone()));
        assert_eq!((kept().len(), told().len()), (1, 1));
        tell(&copies, watcher::Event::InitDone);
        assert_eq!((kept(), told().len()), (vec![model(5).spec], 1));
        // What was since written into its status is known.
        let mut written = too_large(&model(8));
        written["status"] = json!({"stage": "Serving"});
        copies.observe_any(serde_json::from_value(written).unwrap());
        let stage = |m: &DnnModel| m.status.as_ref().map(|s| s.stage.clone());
        assert_eq!(stage(&copies.all().unwrap()[0]).as_deref(), Some("Serving"));
        // A list older than the write loses nothing.
        tell(&copies, watcher::Event::Init);
        tell(&copies, watcher::Event::InitApply(bad));
        tell(&copies, watcher::Event::InitDone);
        assert_eq!((kept().len(), told().len()), (1, 1));
        tell(&copies, watcher::Event::Apply(good(9)));
        assert_eq!((kept().len(), told().len()), (1, 0));
        tell(&copies, watcher::Event::Apply(too_large(&model(10))));
        tell(&copies, watcher::Event::Delete(too_large(&model(11))));
        assert_eq!((kept().len(), told().len()), (0, 0));
    }
}

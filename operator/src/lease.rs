//! Leader election by a Lease, so that a rolling update never has two writers.
//!
//! A holder renews every [`RETRY`]; one that could not for [`Terms::renew_within`] ends its
//! process, before others may take the Lease after [`Terms::duration`]. By then it starts no
//! writes, and those in flight are cancelled: see [`Tenure`]. Whether a holder is gone is
//! judged by this machine's clock alone: the Lease did not change for its whole duration.

use crate::health::Health;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The times of a Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Others may take a Lease that did not change for this long.
    duration: Duration,
    /// A holder that could not renew for this long gives up.
    renew_within: Duration,
}

impl Terms {
    /// Time between a holder's last write and the first one of its successor.
    const GAP: Duration = Duration::from_secs(5);
    /// The shortest Lease in seconds: a holder must be able to miss a renewal.
    pub const LEAST_SECONDS: u16 = 12;
    /// For one replica. Longer than usual: after a restart it recognizes its own Lease, in an
    /// update it frees it, and an API server that is away for some seconds, as is common at the
    /// edge, must not end the process that agents talk to.
    pub const ALONE_SECONDS: u16 = 40;

    /// A Lease of this many seconds, at least [`Terms::LEAST_SECONDS`]. Its holder gives up after
    /// three quarters of it, and 5 s before its end.
    pub fn of_seconds(seconds: u16) -> Self {
        let duration = Duration::from_secs(seconds.max(Self::LEAST_SECONDS).into());
        let gap = (duration / 4).max(Self::GAP);
        Self {
            duration,
            renew_within: duration - gap,
        }
    }
}

/// A Lease whose holder's pod is gone, as after an uninstall that took its token before it could
/// free the Lease, may be taken once it did not change for this long: a pod that was removed by
/// force may still run, and then renews it.
const ORPHAN_WAIT: Duration = Duration::from_secs(6);
/// Time between two tries.
const RETRY: Duration = Duration::from_secs(2);
/// A request to the API server that takes longer has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// Name of this loop's heartbeat.
pub const PULSE: &str = "lease";

/// Prefix of the identity of a process that runs in no pod.
pub const LOCAL: &str = "local-";

/// Why the election ended.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum LeaseError {
    #[error("`{0}` took the lease; this process exits so that only one writes")]
    Taken(String),
    #[error("the lease could not be renewed for {0:?}; check the API server")]
    Expired(Duration),
}

/// Until when this process may write, because no other may hold the Lease. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Tenure(Arc<Mutex<Option<Instant>>>);

impl Tenure {
    /// Until when, if it may at all.
    pub fn until(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// A permanent one, for tests without a Lease.
    #[cfg(test)]
    pub(crate) fn lasting() -> Self {
        let tenure = Self::default();
        tenure.set(Some(Instant::now() + Duration::from_secs(3600)));
        tenure
    }
}

/// One candidate.
pub struct Elector {
    leases: Api<Lease>,
    pods: Api<Pod>,
    name: String,
    identity: String,
    terms: Terms,
    health: Health,
    tenure: Tenure,
}

/// What to do about the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There is none: create it.
    Create,
    /// It is free, or its holder is gone: take it.
    Acquire,
    /// It is ours: renew it.
    Renew,
    /// Another holds it.
    Wait,
}

/// Decides about a Lease that has not changed for `unchanged_for`; `is_orphan` says whether its
/// holder's pod is gone.
fn decide(me: &str, lease: Option<&LeaseSpec>, unchanged_for: Duration, is_orphan: bool) -> Step {
    let Some(lease) = lease else {
        return Step::Create;
    };
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    let seconds = lease.lease_duration_seconds.unwrap_or_default();
    let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    if holder == me {
        Step::Renew
    } else if holder.is_empty()
        || unchanged_for > duration
        || is_orphan && unchanged_for >= ORPHAN_WAIT
    {
        Step::Acquire
    } else {
        Step::Wait
    }
}

/// The Lease's new content after `step`.
fn renewed(
    me: &str,
    terms: Terms,
    old: Option<&LeaseSpec>,
    step: Step,
    now: Timestamp,
) -> LeaseSpec {
    let old = old.cloned().unwrap_or_default();
    let changes_hands = step != Step::Renew;
    let transitions = old.lease_transitions.unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(terms.duration.as_secs()).ok(),
        acquire_time: if changes_hands {
            Some(MicroTime(now))
        } else {
            old.acquire_time
        },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if step == Step::Acquire {
            transitions.saturating_add(1)
        } else {
            transitions
        }),
        ..LeaseSpec::default()
    }
}

/// The last seen version of the Lease, and when it changed.
#[derive(Debug, Default)]
struct Seen {
    version: Option<String>,
    changed: Option<Instant>,
}

impl Seen {
    /// Notes the Lease's version; returns for how long it has not changed.
    fn note(&mut self, version: Option<&str>, now: Instant) -> Duration {
        if self.changed.is_none() || self.version.as_deref() != version {
            self.version = version.map(str::to_owned);
            self.changed = Some(now);
        }
        self.changed.map_or(Duration::ZERO, |at| now - at)
    }
}

impl Elector {
    /// A candidate `identity` for the Lease `name` in `namespace`, on `terms`; it sends heartbeats
    /// to `health`.
    pub fn new(
        client: Client,
        (namespace, name): (&str, &str),
        identity: String,
        terms: Terms,
        health: Health,
    ) -> Self {
        Self {
            pods: Api::namespaced(client.clone(), namespace),
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            terms,
            health,
            tenure: Tenure::default(),
        }
    }

    /// Until when this process may write.
    pub fn tenure(&self) -> Tenure {
        self.tenure.clone()
    }

    /// Takes part until `shutdown`, then frees the Lease. `leads` says whether
    /// this process holds it.
    ///
    /// # Errors
    /// The Lease was held and is lost: the process must end at once.
    pub async fn run(
        &self,
        leads: &watch::Sender<bool>,
        shutdown: &CancellationToken,
    ) -> Result<(), LeaseError> {
        let renew_within = self.terms.renew_within;
        let mut seen = Seen::default();
        let mut renewed_at: Option<Instant> = None;
        loop {
            let began = Instant::now();
            match self.turn(&mut seen).await {
                Ok(Turn::Holds) => {
                    renewed_at = Some(began);
                    self.tenure.set(Some(began + renew_within));
                    self.become_leader(leads);
                }
                Ok(Turn::HeldBy { holder, .. }) if renewed_at.is_some() => {
                    self.tenure.set(None);
                    return Err(LeaseError::Taken(holder));
                }
                // Nobody does the work of a holder that is gone.
                Ok(Turn::HeldBy {
                    holder,
                    is_gone: true,
                }) => {
                    let why = format!("the lease of `{holder}`, which is gone, runs out soon");
                    self.health.waits(PULSE, why);
                }
                Ok(Turn::HeldBy { .. }) => self.health.ready(PULSE),
                Err(error) => {
                    // Another process may lead by now.
                    self.tenure.set(None);
                    let error = crate::text::with_causes(&*error);
                    if renewed_at.is_none() {
                        self.health.waits(PULSE, error.as_str());
                    }
                    tracing::warn!(
                        error,
                        "the lease could not be read or renewed; trying again"
                    );
                }
            }
            self.health.beat(PULSE);
            if renewed_at.is_some_and(|at| at.elapsed() >= renew_within) {
                return Err(LeaseError::Expired(renew_within));
            }
            let pause = RETRY.mul_f64(rand::random_range(0.9..1.1));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => break,
            }
        }
        Ok(())
    }

    /// Frees the Lease, if this process holds it, so that another need not wait. Call it when
    /// nothing writes any more.
    pub async fn release(&self) {
        if let Err(error) = self.try_release().await {
            let error = crate::text::with_causes(&*error);
            tracing::warn!(error, "the lease stays until it expires");
        }
    }

    fn become_leader(&self, leads: &watch::Sender<bool>) {
        self.health.ready(PULSE);
        let first = leads.send_if_modified(|held| !std::mem::replace(held, true));
        if first {
            tracing::info!(lease = self.name, identity = self.identity, "leading");
        }
    }

    async fn turn(&self, seen: &mut Seen) -> Result<Turn, BoxError> {
        let lease = in_time(self.leases.get_opt(&self.name)).await?;
        let version = lease
            .as_ref()
            .and_then(|l| l.metadata.resource_version.as_deref());
        let unchanged_for = seen.note(version, Instant::now());
        let spec = lease.as_ref().and_then(|l| l.spec.as_ref());
        // A Lease without a spec is free.
        let free = LeaseSpec::default();
        let spec = lease.as_ref().map(|_| spec.unwrap_or(&free));
        let mut step = decide(&self.identity, spec, unchanged_for, false);
        if step == Step::Wait {
            let holder = spec.and_then(|s| s.holder_identity.clone());
            let holder = holder.unwrap_or_default();
            let is_gone = self.is_gone(&holder).await;
            step = decide(&self.identity, spec, unchanged_for, is_gone);
            if step == Step::Wait {
                return Ok(Turn::HeldBy { holder, is_gone });
            }
        }
        let content = renewed(&self.identity, self.terms, spec, step, Timestamp::now());
        self.write(lease, content, step).await?;
        Ok(Turn::Holds)
    }

    /// Whether no pod of that name exists. False if that is unknown or the holder was not a pod.
    async fn is_gone(&self, holder: &str) -> bool {
        if holder.starts_with(LOCAL) {
            return false;
        }
        matches!(in_time(self.pods.get_opt(holder)).await, Ok(None))
    }

    /// Writes with the version that was read, so that of two candidates one fails.
    async fn write(&self, old: Option<Lease>, spec: LeaseSpec, step: Step) -> Result<(), BoxError> {
        let params = PostParams::default();
        let named = || ObjectMeta {
            name: Some(self.name.clone()),
            ..ObjectMeta::default()
        };
        let lease = Lease {
            metadata: old.map_or_else(named, |o| o.metadata),
            spec: Some(spec),
        };
        if step == Step::Create {
            in_time(self.leases.create(&params, &lease)).await?;
        } else {
            in_time(self.leases.replace(&self.name, &params, &lease)).await?;
        }
        Ok(())
    }

    async fn try_release(&self) -> Result<(), BoxError> {
        let Some(mut lease) = in_time(self.leases.get_opt(&self.name)).await? else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            return Ok(());
        }
        spec.holder_identity = None;
        in_time(
            self.leases
                .replace(&self.name, &PostParams::default(), &lease),
        )
        .await?;
        Ok(())
    }
}

/// Outcome of one check of the Lease.
#[derive(Debug)]
enum Turn {
    Holds,
    HeldBy {
        holder: String,
        /// Its pod no longer exists.
        is_gone: bool,
    },
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn in_time<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, BoxError> {
    Ok(tokio::time::timeout(REQUEST_TIMEOUT, request).await??)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Duration = Duration::from_secs(7);
    const OVER: Duration = Duration::from_secs(41);

    fn terms() -> Terms {
        Terms::of_seconds(40)
    }

    fn held_by(holder: &str) -> LeaseSpec {
        renewed(holder, terms(), None, Step::Create, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_holder_gives_up_before_another_may_take_the_lease() {
        let seconds = Duration::from_secs;
        let of = |s| {
            let terms = Terms::of_seconds(s);
            (terms.duration, terms.renew_within)
        };
        assert_eq!(of(40), (seconds(40), seconds(30)));
        assert_eq!(of(17), (seconds(17), seconds(12)));
        // One of two renewals may fail, taking its full time.
        assert_eq!(of(0), (seconds(12), seconds(7)));
        assert!(of(0).1 > REQUEST_TIMEOUT + RETRY);
        assert!(Terms::GAP > REQUEST_TIMEOUT);
    }

    #[test]
    fn a_candidate_takes_what_is_free_and_leaves_what_is_held() {
        fn decide(lease: Option<&LeaseSpec>, unchanged: Duration) -> Step {
            super::decide("a", lease, unchanged, false)
        }
        assert_eq!(decide(None, Duration::ZERO), Step::Create);
        assert_eq!(decide(Some(&LeaseSpec::default()), HALF), Step::Acquire);
        assert_eq!(decide(Some(&held_by("b")), HALF), Step::Wait);
        assert_eq!(decide(Some(&held_by("b")), OVER), Step::Acquire);
        assert_eq!(decide(Some(&held_by("a")), OVER), Step::Renew);
        let freed = LeaseSpec {
            holder_identity: None,
            ..held_by("b")
        };
        assert_eq!(decide(Some(&freed), Duration::ZERO), Step::Acquire);
    }

    #[test]
    fn what_a_pod_that_is_gone_held_is_taken_soon_but_not_from_under_a_live_one() {
        let orphan = |unchanged| decide("a", Some(&held_by("b")), unchanged, true);
        assert_eq!(orphan(RETRY * 2), Step::Wait);
        assert_eq!(orphan(ORPHAN_WAIT), Step::Acquire);
    }

    #[test]
    fn a_lease_records_when_it_changed_hands() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = renewed("a", terms(), None, Step::Create, at(1));
        let kept = renewed("a", terms(), Some(&first), Step::Renew, at(3));
        assert_eq!(kept.acquire_time, Some(MicroTime(at(1))));
        assert_eq!(kept.renew_time, Some(MicroTime(at(3))));
        assert_eq!(kept.lease_transitions, Some(0));
        let taken = renewed("b", terms(), Some(&kept), Step::Acquire, at(30));
        assert_eq!(taken.holder_identity.as_deref(), Some("b"));
        assert_eq!(taken.acquire_time, Some(MicroTime(at(30))));
        assert_eq!(taken.lease_transitions, Some(1));
        assert_eq!(taken.lease_duration_seconds, Some(40));
    }

    #[test]
    fn a_holder_is_judged_by_when_the_lease_last_changed_here() {
        let start = Instant::now();
        let after = |s| start + Duration::from_secs(s);
        let mut seen = Seen::default();
        assert_eq!(seen.note(Some("1"), start), Duration::ZERO);
        assert_eq!(seen.note(Some("1"), after(14)), Duration::from_secs(14));
        assert_eq!(seen.note(Some("2"), after(15)), Duration::ZERO);
        assert_eq!(seen.note(Some("2"), after(31)), Duration::from_secs(16));
    }

    fn failure(reason: &str, code: u16) -> String {
        format!(
            r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","reason":"{reason}","message":"","code":{code}}}"#
        )
    }

    /// Accepts the first write, and fails from then on.
    fn server_that_goes_away() -> Client {
        use http::{Request, Response, StatusCode};
        use kube::client::Body;
        use std::sync::atomic::{AtomicBool, Ordering};
        let is_away = Arc::new(AtomicBool::new(false));
        let service = tower::service_fn(move |request: Request<Body>| {
            let is_away = Arc::clone(&is_away);
            async move {
                let is_write = request.method() == http::Method::POST;
                let body = request
                    .into_body()
                    .collect_bytes()
                    .await
                    .unwrap_or_default();
                let was_away = is_away.fetch_or(is_write, Ordering::Relaxed);
                let (status, body) = match (was_away, is_write) {
                    (false, true) => (StatusCode::CREATED, body),
                    (false, false) => (StatusCode::NOT_FOUND, failure("NotFound", 404).into()),
                    (true, _) => {
                        let body = failure("ServiceUnavailable", 503);
                        (StatusCode::SERVICE_UNAVAILABLE, body.into())
                    }
                };
                let response = Response::builder().status(status).body(Body::from(body));
                Ok::<_, std::convert::Infallible>(response.unwrap())
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_renew_may_write_no_more() {
        let client = server_that_goes_away();
        let identity = "local-a".to_owned();
        let place = ("lamina", "lease");
        let elector = Elector::new(client, place, identity, terms(), Health::default());
        let tenure = elector.tenure();
        assert_eq!(tenure.until(), None, "before it leads");
        let (lead, mut leads) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let running = elector.run(&lead, &shutdown);
        let watching = async {
            leads.wait_for(|leads| *leads).await.unwrap();
            let until = tenure.until().unwrap();
            assert!(until <= Instant::now() + terms().renew_within);
            while tenure.until().is_some() {
                tokio::time::sleep(RETRY / 4).await;
            }
            shutdown.cancel();
        };
        let (done, ()) = tokio::join!(running, watching);
        done.unwrap();
    }

    /// Holds one Lease, and takes what is written of it.
    fn server_with(lease: &Arc<Mutex<Lease>>) -> Client {
        use http::{Request, Response};
        use kube::client::Body;
        let lease = Arc::clone(lease);
        let service = tower::service_fn(move |request: Request<Body>| {
            let lease = Arc::clone(&lease);
            async move {
                let is_write = request.method() == http::Method::PUT;
                let written = request
                    .into_body()
                    .collect_bytes()
                    .await
                    .unwrap_or_default();
                let mut lease = lease.lock().unwrap();
                if is_write {
                    *lease = serde_json::from_slice(&written).unwrap();
                }
                let body = serde_json::to_vec(&*lease).unwrap();
                Ok::<_, std::convert::Infallible>(Response::new(Body::from(body)))
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn who_ends_frees_its_own_lease_and_no_other() {
        for (holder, is_freed) in [("local-a", true), ("local-b", false)] {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some("lease".to_owned()),
                    resource_version: Some("1".to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(held_by(holder)),
            };
            let lease = Arc::new(Mutex::new(lease));
            let (client, place) = (server_with(&lease), ("lamina", "lease"));
            let identity = "local-a".to_owned();
            let elector = Elector::new(client, place, identity, terms(), Health::default());
            elector.release().await;
            let spec = lease.lock().unwrap().spec.clone().unwrap();
            assert_eq!(spec.holder_identity.is_none(), is_freed, "{holder}");
        }
    }
}

//! The keeper against an API server that holds one Secret and one ConfigMap.

use super::*;
use crate::health::Health;
use http::{Method, Request, Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use lamina_identity::authority::request;
use lamina_identity::{Credentials, certificates, is_issued_by, read};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const HOUR: i64 = 3600;

/// Objects by the last part of their path, `secrets/ca`.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<BTreeMap<String, Value>>>);

impl Server {
    fn with(kinds: &[&str]) -> Self {
        let server = Self::default();
        for kind in kinds {
            let object = json!({"metadata": {"name": "ca", "resourceVersion": "1"}});
            server
                .0
                .lock()
                .unwrap()
                .insert(format!("{kind}/ca"), object);
        }
        server
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let (status, body) = server.answer(&head.method, head.uri.path(), &body);
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                let response = Response::builder().status(status).body(body);
                Ok::<_, std::convert::Infallible>(response.unwrap())
            }
        });
        Client::new(service, "lamina")
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (StatusCode, Value) {
        let key = path.rsplitn(3, '/').take(2).collect::<Vec<_>>();
        let key = format!("{}/{}", key[1], key[0]);
        let mut held = self.0.lock().unwrap();
        let Some(object) = held.get_mut(&key) else {
            let gone = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "not found", "reason": "NotFound", "code": 404,
            });
            return (StatusCode::NOT_FOUND, gone);
        };
        if method == Method::PUT {
            let mut new: Value = serde_json::from_slice(body).unwrap();
            let version = object["metadata"]["resourceVersion"].clone();
            assert_eq!(new["metadata"]["resourceVersion"], version, "a blind write");
            let next: u32 = version.as_str().unwrap().parse().unwrap();
            new["metadata"]["resourceVersion"] = json!((next + 1).to_string());
            *object = new;
        }
        (StatusCode::OK, object.clone())
    }

    fn bundle(&self) -> String {
        let held = self.0.lock().unwrap();
        let bundle = held.get("configmaps/ca").map(|map| &map["data"]["ca.crt"]);
        bundle
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    }

    fn edit(&self, change: impl FnOnce(&mut Value)) {
        change(self.0.lock().unwrap().get_mut("secrets/ca").unwrap());
    }
}

fn workload(account: &str) -> Workload {
    Workload {
        trust_domain: "lamina".into(),
        namespace: "lamina".into(),
        account: account.into(),
    }
}

/// A keeper that leads, and its objects.
struct Kept {
    identity: Identity,
    health: Health,
    stop: CancellationToken,
    _lead: watch::Sender<bool>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn keep(server: &Server, source: Source, leads: bool) -> Kept {
    let identity = Identity::new(
        workload("agent"),
        Duration::from_secs(24 * 3600),
        Plain::Refused,
    );
    let options = Options {
        namespace: "lamina".into(),
        source,
        bundle: "ca".into(),
        operator: workload("operator"),
        address: [127, 0, 0, 1].into(),
    };
    let (health, stop) = (Health::default(), CancellationToken::new());
    let told = Box::new(|_, _| {});
    let client = server.client();
    let keeper = Keeper::new(options, identity.clone(), client, health.clone(), told);
    let (lead, watched) = watch::channel(leads);
    tokio::spawn(keeper.run(watched, stop.clone()));
    Kept {
        identity,
        health,
        stop,
        _lead: lead,
    }
}

fn own() -> Source {
    Source::Secret("ca".into())
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("not in time: {what}");
}

/// The first certificate that `identity` gives to cam-1.
async fn enrolled(identity: &Identity) -> String {
    until("an authority", || identity.acceptor().is_set()).await;
    let (_, csr) = request().unwrap();
    for _ in 0..500 {
        if let Ok(issued) = identity.enroll("cam-1".into(), &csr, &[], now()) {
            return issued;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing was issued");
}

fn authorities(bundle: &str) -> usize {
    certificates(bundle.as_bytes()).map_or(0, |all| all.len())
}

#[tokio::test]
async fn the_leader_makes_one_authority_and_the_next_leader_goes_on_with_it() {
    let server = Server::with(&["secrets", "configmaps"]);
    let first = keep(&server, own(), true);
    let issued = enrolled(&first.identity).await;
    let bundle = server.bundle();
    assert_eq!(authorities(&bundle), 1);
    let issued = certificates(issued.as_bytes()).unwrap().swap_remove(0);
    let facts = read(&issued).unwrap();
    assert_eq!(facts.node.as_deref(), Some("cam-1"));
    let left = facts.validity.not_after - now();
    assert!((23 * HOUR..=24 * HOUR).contains(&left), "{left}");
    assert!(first.health.readyz().ok);
    drop(first);
    let second = keep(&server, own(), true);
    let again = enrolled(&second.identity).await;
    assert_eq!(server.bundle(), bundle);
    let by = certificates(bundle.as_bytes()).unwrap().swap_remove(0);
    let again = certificates(again.as_bytes()).unwrap().swap_remove(0);
    assert!(is_issued_by(&again, &by) && is_issued_by(&issued, &by));
}

#[tokio::test]
async fn who_does_not_lead_writes_nothing_and_gives_nothing() {
    let server = Server::with(&["secrets", "configmaps"]);
    let kept = keep(&server, own(), false);
    until("it is ready for others", || kept.health.readyz().ok).await;
    sleep(Duration::from_millis(50)).await;
    let (_, csr) = request().unwrap();
    let refused = kept.identity.enroll("cam-1".into(), &csr, &[], now());
    assert!(matches!(refused, Err(EnrollError::NotYet)));
    assert_eq!(server.bundle(), "");
}

#[tokio::test]
async fn a_new_authority_that_is_asked_for_is_believed_before_it_signs() {
    let server = Server::with(&["secrets", "configmaps"]);
    drop({
        let kept = keep(&server, own(), true);
        enrolled(&kept.identity).await;
        kept
    });
    let old = server.bundle();
    server.edit(|secret| {
        secret["metadata"]["annotations"] = json!({"serving.lamina.dev/rotate": "yes"});
    });
    let kept = keep(&server, own(), true);
    let issued = enrolled(&kept.identity).await;
    let both = server.bundle();
    assert_eq!(authorities(&both), 2);
    assert!(both.starts_with(old.trim()));
    let issued = certificates(issued.as_bytes()).unwrap().swap_remove(0);
    let by = certificates(old.as_bytes()).unwrap().swap_remove(0);
    assert!(is_issued_by(&issued, &by), "the old one signs still");
    server.edit(|secret| {
        let asked = &secret["metadata"]["annotations"]["serving.lamina.dev/rotate"];
        assert!(asked.is_null(), "asked once");
    });
}

#[tokio::test]
async fn what_is_missing_or_damaged_is_named_and_never_written_over() {
    for kinds in [&["configmaps"][..], &["secrets"]] {
        let server = Server::with(kinds);
        let kept = keep(&server, own(), true);
        until("it is told", || kept.health.readyz().text.contains("`ca`")).await;
        assert!(!kept.identity.acceptor().is_set());
    }
    let server = Server::with(&["secrets", "configmaps"]);
    let damaged = json!({"authorities.json": "AAAA"});
    server.edit(|secret| secret["data"] = damaged.clone());
    let kept = keep(&server, own(), true);
    until("it is told", || {
        kept.health.readyz().text.contains("holds no authorities")
    })
    .await;
    server.edit(|secret| assert_eq!(secret["data"], damaged));
}

#[tokio::test]
async fn an_authority_that_is_given_signs_and_the_one_before_it_is_believed_on() {
    let folder = tempfile::tempdir().unwrap();
    let give = || {
        let times = Validity {
            not_before: now() - HOUR,
            not_after: now() + 48 * HOUR,
        };
        let authority = Authority::new(times).unwrap();
        std::fs::write(folder.path().join("tls.crt"), authority.certificate()).unwrap();
        std::fs::write(folder.path().join("tls.key"), authority.key()).unwrap();
        authority.certificate().to_owned()
    };
    let first = give();
    let server = Server::with(&["configmaps"]);
    let source = || Source::Folder(folder.path().to_owned());
    let kept = keep(&server, source(), true);
    enrolled(&kept.identity).await;
    assert_eq!(server.bundle().trim(), first.trim());
    drop(kept);
    let second = give();
    let kept = keep(&server, source(), true);
    let issued = enrolled(&kept.identity).await;
    let expected = format!("{}\n{}\n", second.trim(), first.trim());
    assert_eq!(server.bundle(), expected);
    let issued = certificates(issued.as_bytes()).unwrap().swap_remove(0);
    let by = certificates(second.as_bytes()).unwrap().swap_remove(0);
    assert!(is_issued_by(&issued, &by));
    assert!(Credentials::from_pem(second.as_bytes(), b"").is_err());
}

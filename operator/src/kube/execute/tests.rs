//! Against an API server of a few lines.

use super::*;
use crate::state::notice::Regarding;
use http::{Request, Response, StatusCode};
use kube::client::Body;
use lamina_crds::PlacementStatus;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Accepts every write, or none; records the requests.
#[derive(Clone, Default)]
struct Server {
    is_broken: Arc<AtomicBool>,
    asked: Arc<std::sync::Mutex<Vec<String>>>,
    version: Arc<AtomicU64>,
}

impl Server {
    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let body = request.into_body().collect_bytes().await.unwrap();
        let mut object: Value = serde_json::from_slice(&body).unwrap();
        let what = object["note"].as_str().unwrap_or_default();
        self.asked
            .lock()
            .unwrap()
            .push(format!("{method} {path} {what}").trim().to_owned());
        if self.is_broken.load(Ordering::Relaxed) {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "etcd is away", "reason": "InternalError", "code": 500,
            });
            return reply(StatusCode::INTERNAL_SERVER_ERROR, &status);
        }
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if object["kind"] == "Placement" && object["spec"].is_null() {
            object["spec"] = json!({ "model": "net", "entry": "cam-1" });
        }
        if object["kind"] == "ComputeNode" && object["spec"].is_null() {
            object["spec"] = json!({});
        }
        reply(StatusCode::OK, &object)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    let body = Body::from(serde_json::to_vec(body).unwrap());
    Response::builder().status(status).body(body).unwrap()
}

fn write(note: &str) -> Write {
    Write {
        haste: Haste::Step,
        change: Change::PlacementStatus {
            id: ObjectId {
                namespace: "default".into(),
                name: "net-cam-1".into(),
                uid: "1".into(),
            },
            status: Box::new(PlacementStatus::default()),
        },
        events: vec![Notice {
            regarding: Regarding::model(ObjectId {
                namespace: "default".into(),
                name: "net".into(),
                uid: "1".into(),
            }),
            warning: false,
            reason: lamina_crds::reasons::REDEPLOY_COMPLETED,
            action: "Deploy",
            note: note.into(),
        }],
    }
}

fn node(name: String) -> Write {
    Write {
        haste: Haste::Report,
        change: Change::ComputeNodeConditions {
            name,
            conditions: Vec::new(),
        },
        events: Vec::new(),
    }
}

const STATUS: &str =
    "PATCH /apis/serving.lamina.dev/v1alpha1/namespaces/default/placements/net-cam-1/status";
const EVENT: &str = "POST /apis/events.k8s.io/v1/namespaces/default/events";

#[tokio::test]
async fn a_failed_write_is_put_off_and_its_event_told_with_the_next() {
    let server = Server::default();
    let objects = Objects::default();
    let mut executor = Executor::new(
        server.client(),
        objects.clone(),
        "op-1".into(),
        Tenure::lasting(),
    );
    server.is_broken.store(true, Ordering::Relaxed);
    let outcome = executor.run(vec![write("first")]).await;
    assert_eq!((outcome.written, outcome.failed), (0, 1));
    assert_eq!(server.asked(), [STATUS]);
    server.is_broken.store(false, Ordering::Relaxed);
    let outcome = executor.run(vec![write("second")]).await;
    assert_eq!(outcome, Outcome::default());
    assert!(server.asked().is_empty(), "it is left alone for a while");
    let again = executor.next_retry().unwrap();
    tokio::time::sleep_until(again.into()).await;
    let mut without = write("");
    without.events.clear();
    let outcome = executor.run(vec![without]).await;
    assert_eq!((outcome.written, outcome.failed), (1, 0));
    assert_eq!(executor.next_retry(), None);
    executor.finish().await;
    assert_eq!(
        server.asked(),
        [STATUS.to_owned(), format!("{EVENT} second")]
    );
}

#[tokio::test]
async fn writes_of_one_object_keep_their_order() {
    let server = Server::default();
    let mut executor = Executor::new(
        server.client(),
        Objects::default(),
        "op-1".into(),
        Tenure::lasting(),
    );
    let mut writes = vec![write("1")];
    writes.extend((0..20).map(|i| node(format!("n{i}"))));
    writes.push(write("2"));
    let outcome = executor.run(writes).await;
    assert_eq!((outcome.written, outcome.failed), (22, 0));
    executor.finish().await;
    let asked = server.asked();
    let events: Vec<&String> = asked.iter().filter(|a| a.starts_with(EVENT)).collect();
    assert_eq!(events, [&format!("{EVENT} 1"), &format!("{EVENT} 2")]);
}

#[tokio::test]
async fn what_was_left_out_comes_before_what_is_new() {
    let server = Server::default();
    let mut executor = Executor::new(
        server.client(),
        Objects::default(),
        "op-1".into(),
        Tenure::lasting(),
    );
    let writes = |first: &str| -> Vec<Write> {
        let early = (0..OBJECTS_A_LOOK).map(|i| node(format!("{first}-{i}")));
        early.chain([node("late".into())]).collect()
    };
    let outcome = executor.run(writes("a")).await;
    assert!(outcome.is_cut);
    let is_late = |asked: &[String]| asked.iter().any(|a| a.ends_with("/late/status"));
    assert!(!is_late(&server.asked()));
    executor.run(writes("b")).await;
    assert!(is_late(&server.asked()), "it waits behind whatever is new");
}

#[tokio::test]
async fn plans_come_before_steps_and_steps_before_reports_however_long_they_wait() {
    let server = Server::default();
    let mut executor = Executor::new(
        server.client(),
        Objects::default(),
        "op-1".into(),
        Tenure::lasting(),
    );
    let of = |haste: Haste, name: String| Write {
        haste,
        ..node(name)
    };
    let all = |haste, name: &str| -> Vec<Write> {
        let names = (0..OBJECTS_A_LOOK).map(|i| format!("{name}-{i}"));
        names.map(|name| of(haste, name)).collect()
    };
    let (reports, steps) = (all(Haste::Report, "report"), all(Haste::Step, "step"));
    let plans = all(Haste::Plan, "plan");
    let waiting = [reports.clone(), steps.clone()].concat();
    executor.run(waiting).await;
    let count = |asked: &[String], what: &str| asked.iter().filter(|a| a.contains(what)).count();
    assert_eq!(count(&server.asked(), "step-"), OBJECTS_A_LOOK);
    executor.run([reports, steps, plans].concat()).await;
    assert_eq!(count(&server.asked(), "plan-"), OBJECTS_A_LOOK);
}

#[tokio::test]
async fn who_does_not_lead_any_more_writes_nothing() {
    let (server, objects) = (Server::default(), Objects::default());
    let tenure = Tenure::default();
    let mut executor = Executor::new(server.client(), objects, "op-1".into(), tenure);
    let outcome = executor.run(vec![write("late")]).await;
    assert_eq!((outcome.written, outcome.failed), (0, 1));
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[test]
fn a_burst_of_reports_leaves_writes_to_plans_and_steps() {
    let now = Instant::now();
    let mut budget = Budget::new(now);
    let reports = (0..1000).filter(|_| budget.take(1, Haste::Report, now));
    assert_eq!(reports.count() as f64, BURST - RESERVE);
    assert!(budget.take(50, Haste::Step, now) && budget.take(50, Haste::Plan, now));
    assert!(!budget.take(1, Haste::Plan, now), "it has an end");
    let later = now + Duration::from_secs(1);
    assert!(budget.take(WRITES_A_SECOND as usize, Haste::Plan, later));
    assert!(!budget.take(1, Haste::Plan, later));
}

//! The model index and statistics that clients see.

use super::testing::{Folder, Host, deploy, listed, parameter, request, route_to};
use crate::serve::access::AuthMode;
use crate::serve::access::testing::{Gatekeeper, key};
use lamina_proto::control::DirectoryModel;
use lamina_proto::inference::{
    InferStatistics, ModelStatistics, ModelStatisticsRequest, RepositoryIndexRequest,
    RepositoryModelLoadRequest, RepositoryModelUnloadRequest, StatisticDuration,
};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::{Code, Request, Status};

const KEY: &str = "a-key-of-default";
const FOREIGN: &str = "a-key-of-lab";
const NARROW: &str = "a-key-of-one-model";

/// An entry of `default/m` over two hosts, of which the second takes `run_time`, and an agent that
/// knows its entry, and more models.
struct Site {
    cam: Host,
    edge: Host,
    other: Host,
}

fn model(namespace: &str, name: &str, coming: bool, reason: &str) -> DirectoryModel {
    DirectoryModel {
        namespace: namespace.into(),
        name: name.into(),
        coming,
        reason: reason.into(),
        ..DirectoryModel::default()
    }
}

impl Site {
    async fn start(gatekeeper: &Gatekeeper, run_time: Duration) -> Self {
        let folder = Folder::new();
        let mut cam = Host::guarded("cam-1", &folder, gatekeeper);
        let mut edge = Host::slow("edge-1", &folder, run_time);
        let other = Host::guarded("cloud-1", &folder, gatekeeper);
        deploy(1, &mut [(&mut cam, (2.0, 0.0)), (&mut edge, (1.0, 1.0))]).await;
        cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
        let known = [
            listed(&[(&cam, true)]),
            model("default", "soon", true, "Preparing"),
            model("lab", "broken", false, "Failed: InvalidModel"),
            model("lab", "secret", true, ""),
        ];
        cam.hear(&known);
        other.hear(&known);
        Self { cam, edge, other }
    }
}

fn shown<M>(message: M, key: &str) -> Request<M> {
    let mut request = Request::new(message);
    let headers = request.metadata_mut();
    headers.insert("x-api-key", key.parse().unwrap());
    request
}

async fn statistics(host: &Host, name: &str, key: &str) -> Result<Vec<ModelStatistics>, Status> {
    let asked = ModelStatisticsRequest {
        name: name.into(),
        version: String::new(),
    };
    let told = host.client().model_statistics(shown(asked, key)).await?;
    Ok(told.into_inner().model_stats)
}

/// Names with states.
async fn index(host: &Host, namespace: &str, ready: bool, key: &str) -> Vec<String> {
    let asked = RepositoryIndexRequest {
        repository_name: namespace.into(),
        ready,
    };
    let told = host.client().repository_index(shown(asked, key)).await;
    let models = told.unwrap().into_inner().models.into_iter();
    models
        .map(|m| format!("{} {} {}", m.name, m.state, m.reason))
        .collect()
}

async fn over_http(host: &Host, method: reqwest::Method, path: &str, key: &str) -> (u16, Value) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}{path}", host.http_address);
    let asked = client.request(method, url).header("x-api-key", key);
    let response = asked.send().await.unwrap();
    let status = response.status().as_u16();
    let body = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn requests_are_counted_where_they_enter_and_told_everywhere() {
    let open = Gatekeeper::by(AuthMode::None);
    let mut site = Site::start(&open, Duration::from_millis(5)).await;
    for host in [&site.cam, &site.other] {
        for values in [&[1.0, 2.0][..], &[1.0, 2.0, 3.0, 4.0]] {
            host.client()
                .model_infer(request("", values))
                .await
                .unwrap();
        }
        // The client's fault.
        host.client()
            .model_infer(request("", &[]))
            .await
            .unwrap_err();
    }
    site.edge.kill();
    let mut late = Request::new(request("", &[1.0, 2.0]));
    late.set_timeout(Duration::from_millis(200));
    site.cam.client().model_infer(late).await.unwrap_err();
    for host in [&site.cam, &site.other] {
        let told = statistics(host, "m", "").await.unwrap();
        let [told] = &told[..] else {
            panic!("{told:?}");
        };
        assert_eq!((told.name.as_str(), told.version.as_str()), ("m", "1"));
        assert_eq!((told.execution_count, told.inference_count), (4, 6));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.as_millis() as u64 - told.last_inference;
        assert!(age < 60_000, "{age}");
        let InferStatistics {
            success,
            fail,
            queue,
            compute_infer,
            ..
        } = told.inference_stats.unwrap();
        let of = |d: Option<StatisticDuration>| d.map(|d| (d.count, d.ns)).unwrap();
        let ((answered, whole), (failed, lost)) = (of(success), of(fail));
        assert_eq!((answered, failed), (4, 1));
        assert!(lost > 100_000_000, "{lost}");
        let ((_, waited), (computed, inside)) = (of(queue), of(compute_infer));
        assert_eq!(computed, 4);
        assert!(inside >= 4 * 5_000_000 && waited + inside <= whole);
    }
    let all = statistics(&site.cam, "", "").await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].name, "default/m");
    assert!(statistics(&site.other, "", "").await.unwrap().is_empty());
    for (name, code) in [("n", Code::NotFound), ("soon", Code::Unavailable)] {
        let status = statistics(&site.other, name, "").await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
}

#[tokio::test]
async fn nobody_learns_of_the_models_of_others() {
    let gatekeeper = Gatekeeper::by(AuthMode::ApiKey);
    gatekeeper.say(&[
        key(KEY, "default", &[]),
        key(FOREIGN, "lab", &[]),
        key(NARROW, "default", &["soon", "gone"]),
    ]);
    let site = Site::start(&gatekeeper, Duration::ZERO).await;
    let failed = "lab/broken UNAVAILABLE model `lab/broken` does not serve: Failed: InvalidModel";
    for host in [&site.cam, &site.other] {
        assert_eq!(
            index(host, "", false, KEY).await,
            ["default/m READY ", "default/soon LOADING Preparing"]
        );
        assert_eq!(index(host, "", true, KEY).await, ["default/m READY "]);
        let lab = index(host, "lab", false, FOREIGN).await;
        assert_eq!(lab, [failed, "lab/secret LOADING "]);
        let narrow = index(host, "", false, NARROW).await;
        assert_eq!(narrow, ["default/soon LOADING Preparing"]);
        assert!(index(host, "default", false, FOREIGN).await.is_empty());
        let status = statistics(host, "default/m", FOREIGN).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(statistics(host, "", FOREIGN).await.unwrap().is_empty());
        for path in ["/v2/repository/index", "/v2/repository/models/m/load"] {
            let (status, _) = over_http(host, reqwest::Method::POST, path, "another").await;
            assert_eq!(status, 401, "{path}");
        }
        let path = "/v2/repository/index";
        let (status, told) = over_http(host, reqwest::Method::POST, path, NARROW).await;
        let soon = json!({"name": "default/soon", "version": "1", "state": "LOADING",
                          "reason": "Preparing"});
        assert_eq!((status, told), (200, json!([soon])));
        for (path, key, expected) in [
            ("/v2/models/m/stats", KEY, 200),
            ("/v2/models/default/m/versions/1/stats", KEY, 200),
            ("/v2/models/m/stats", "another", 401),
            ("/v2/models/stats", "another", 401),
            ("/v2/models/stats", FOREIGN, 200),
            ("/v2/models/default/m/stats", FOREIGN, 403),
        ] {
            let (status, told) = over_http(host, reqwest::Method::GET, path, key).await;
            assert_eq!(status, expected, "{path}: {told}");
            if path == "/v2/models/stats" && key == FOREIGN {
                assert_eq!(told, json!({"model_stats": []}));
            }
        }
    }
    let asked = RepositoryIndexRequest::default();
    let status = site.cam.client().repository_index(asked).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
}

#[tokio::test]
async fn models_are_loaded_elsewhere() {
    let open = Gatekeeper::by(AuthMode::None);
    let site = Site::start(&open, Duration::ZERO).await;
    let mut client = site.cam.client();
    let load = client.repository_model_load(RepositoryModelLoadRequest::default());
    let load = load.await.unwrap_err();
    let unload = client.repository_model_unload(RepositoryModelUnloadRequest::default());
    let unload = unload.await.unwrap_err();
    for status in [load, unload] {
        assert_eq!(status.code(), Code::Unimplemented, "{status}");
        assert!(status.message().contains("DnnModel"), "{status}");
    }
    let path = "/v2/repository/models/default/m/unload";
    let (status, told) = over_http(&site.cam, reqwest::Method::POST, path, "").await;
    assert_eq!(status, 501);
    assert!(
        told["error"].as_str().unwrap().contains("DnnModel"),
        "{told}"
    );
}

#[tokio::test]
async fn an_answer_says_what_of_its_time_passed_at_the_entry() {
    let open = Gatekeeper::by(AuthMode::None);
    let site = Site::start(&open, Duration::from_millis(20)).await;
    let entry = async |host: &Host| -> Value {
        let answer = host.client().model_infer(request("", &[1.0, 2.0])).await;
        let entry = parameter(answer.unwrap().get_ref(), "lamina_entry");
        serde_json::from_str(&entry).unwrap()
    };
    let told = entry(&site.other).await;
    let us = |told: &Value, key: &str| told[key].as_u64().unwrap();
    assert_eq!(
        (&told["node"], us(&told, "transfer_us")),
        (&json!("cam-1"), 0)
    );
    assert!(
        us(&told, "total_us") >= 20_000 + us(&told, "wait_us"),
        "{told}"
    );
    // If the first host is another one, the transfer time counts, but not its own time.
    site.cam
        .routes
        .apply(&[route_to(1, &[(1, &site.edge)])])
        .unwrap();
    let mut edge = site.edge;
    deploy(1, &mut [(&mut edge, (2.0, 0.0))]).await;
    let told = entry(&site.cam).await;
    assert!((1..20_000).contains(&us(&told, "transfer_us")), "{told}");
    assert!(us(&told, "total_us") >= 20_000, "{told}");
}

//! Which clients are admitted, over gRPC and HTTP, at the entry and at a forwarding agent.

use super::testing::{Folder, Host, deploy, listed, request, route_to, values};
use crate::serve::access::testing::{Gatekeeper, key};
use crate::serve::access::{AuthMode, FORWARDED};
use crate::serve::guard::testing::{Frames, framed};
use bytes::Bytes;
use lamina_proto::control::ApiKey;
use lamina_proto::inference::{
    ModelConfigRequest, ModelInferRequest, ModelMetadataRequest, ModelReadyRequest,
    ServerLiveRequest, ServerMetadataRequest, ServerReadyRequest,
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;
use tonic::{Code, Request, Status};
use tower::{Service as _, ServiceExt as _};

const KEY: &str = "a-key-of-default";
const FOREIGN: &str = "a-key-of-lab";

/// An agent that serves `default/m` as 2x+1, and one that knows its entry.
struct Site {
    cam: Host,
    edge: Host,
    gatekeeper: Gatekeeper,
}

impl Site {
    async fn guarded(gatekeeper: Gatekeeper) -> Self {
        let folder = Folder::new();
        let mut cam = Host::guarded("cam-1", &folder, &gatekeeper);
        let edge = Host::guarded("edge-1", &folder, &gatekeeper);
        deploy(1, &mut [(&mut cam, (2.0, 1.0))]).await;
        cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
        edge.hear(&[listed(&[(&cam, true)])]);
        Self {
            cam,
            edge,
            gatekeeper,
        }
    }

    async fn with_keys() -> Self {
        let gatekeeper = Gatekeeper::by(AuthMode::ApiKey);
        gatekeeper.say(&[key(KEY, "default", &["m"]), key(FOREIGN, "lab", &[])]);
        Self::guarded(gatekeeper).await
    }
}

fn with_key<M>(message: M, key: &str) -> Request<M> {
    let mut request = Request::new(message);
    if !key.is_empty() {
        request
            .metadata_mut()
            .insert("x-api-key", key.parse().unwrap());
    }
    request
}

fn with_token<M>(message: M, token: &str) -> Request<M> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

/// Calls `model` with `key`; returns the answer's values.
async fn asked(host: &Host, model: &str, key: &str) -> Result<Vec<f32>, Status> {
    let request = ModelInferRequest {
        model_name: model.to_owned(),
        ..request("", &[1.0, 2.0])
    };
    let reply = host.client().model_infer(with_key(request, key)).await?;
    Ok(values(reply.get_ref()))
}

async fn code(host: &Host, model: &str, key: &str) -> Code {
    asked(host, model, key)
        .await
        .map_or_else(|s| s.code(), |_| Code::Ok)
}

#[tokio::test]
async fn whoever_shows_no_key_is_told_how_and_health_is_everybodys() {
    let site = Site::with_keys().await;
    let mut client = site.cam.client();
    let (name, version) = ("m".to_owned(), String::new());
    let infer = client.model_infer(request("", &[1.0, 2.0])).await;
    let ready = ModelReadyRequest {
        name: name.clone(),
        version: version.clone(),
    };
    let ready = client.model_ready(ready).await;
    let metadata = ModelMetadataRequest {
        name: name.clone(),
        version: version.clone(),
    };
    let metadata = client.model_metadata(metadata).await;
    let config = client
        .model_config(ModelConfigRequest { name, version })
        .await;
    let refused = [
        infer.map(drop),
        ready.map(drop),
        metadata.map(drop),
        config.map(drop),
    ];
    for refused in refused {
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        for way in ["authorization: Bearer", "x-api-key"] {
            assert!(status.message().contains(way), "{status}");
        }
    }
    assert_eq!(code(&site.cam, "m", "another").await, Code::Unauthenticated);
    client.server_live(ServerLiveRequest {}).await.unwrap();
    client.server_ready(ServerReadyRequest {}).await.unwrap();
    client
        .server_metadata(ServerMetadataRequest {})
        .await
        .unwrap();
}

#[tokio::test]
async fn a_key_reaches_the_models_of_its_namespace_and_learns_of_no_others() {
    let site = Site::with_keys().await;
    for host in [&site.cam, &site.edge] {
        for name in ["m", "default/m"] {
            assert_eq!(asked(host, name, KEY).await.unwrap(), [3.0, 5.0]);
        }
        // The answer is the same whether or not the model exists.
        for name in ["default/m", "default/n", "other/m", "//"] {
            let status = asked(host, name, FOREIGN).await.unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{status}");
            let said = format!("these credentials are not for model `{name}`");
            assert_eq!(status.message(), said);
        }
        // Its own namespace has none of that name, and no other stands in.
        assert_eq!(code(host, "m", FOREIGN).await, Code::NotFound);
        // One that is not among the models of its key.
        assert_eq!(code(host, "n", KEY).await, Code::PermissionDenied);
    }
}

#[tokio::test]
async fn a_key_that_is_gone_works_no_more_on_connections_that_are_open() {
    let site = Site::with_keys().await;
    let mut client = site.cam.client();
    let ask = || with_key(request("", &[1.0, 2.0]), KEY);
    client.model_infer(ask()).await.unwrap();
    site.gatekeeper.say(&[key(FOREIGN, "lab", &[])]);
    let status = client.model_infer(ask()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    site.gatekeeper.say(&[key(KEY, "default", &[])]);
    client.model_infer(ask()).await.unwrap();
}

#[tokio::test]
async fn nobody_is_let_in_for_saying_that_another_agent_has_looked() {
    let site = Site::with_keys().await;
    let forged = |key: &str| {
        let named = ModelInferRequest {
            model_name: "default/m".into(),
            ..request("", &[1.0, 2.0])
        };
        let mut request = with_key(named, key);
        request
            .metadata_mut()
            .insert(FORWARDED, "1".parse().unwrap());
        request
    };
    let mut client = site.cam.client();
    for (key, expected) in [
        ("", Code::Unauthenticated),
        ("another", Code::Unauthenticated),
        (FOREIGN, Code::PermissionDenied),
    ] {
        let status = client.model_infer(forged(key)).await.unwrap_err();
        assert_eq!(status.code(), expected, "{status}");
    }
    client.model_infer(forged(KEY)).await.unwrap();
}

/// The host's answer to a request whose message stops after `bytes`.
async fn unfinished(host: &Host, key: &str, bytes: &[u8]) -> Code {
    let body = Frames {
        frames: [Bytes::copy_from_slice(bytes)].into(),
        ends: false,
    };
    let request = http::Request::post("http://host/inference.GRPCInferenceService/ModelInfer")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-api-key", key)
        .body(tonic::body::Body::new(body))
        .unwrap();
    let mut channel = host.channel();
    let answering = channel.ready().await.unwrap().call(request);
    // Before a server that waits for the rest would give up.
    let response = timeout(Duration::from_secs(10), answering).await;
    let response = response.unwrap().unwrap();
    let code = response.headers().get("grpc-status");
    code.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

#[tokio::test]
async fn who_is_not_let_in_is_told_before_its_message_is_there() {
    let site = Site::with_keys().await;
    // 32 MiB that never arrive, of a request whose first field names the model.
    let mut begun = framed(0, 32 << 20, b"\x0a\x09default/m");
    begun.extend_from_slice(b"\x1a");
    let unknown = unfinished(&site.cam, "another", &begun).await;
    assert_eq!(unknown, Code::Unauthenticated);
    let foreign = unfinished(&site.cam, FOREIGN, &begun).await;
    assert_eq!(foreign, Code::PermissionDenied);
}

fn limited(secret: &str, requests_per_second: u32) -> ApiKey {
    ApiKey {
        requests_per_second,
        ..key(secret, "default", &[])
    }
}

/// Sends requests until one is refused.
async fn refused_by_and_by(host: &Host, key: &str) -> Status {
    for _ in 0..50 {
        if let Err(status) = asked(host, "m", key).await {
            return status;
        }
    }
    panic!("fifty requests at once were answered");
}

#[tokio::test]
async fn a_key_has_a_rate_of_its_own() {
    let gatekeeper = Gatekeeper::by(AuthMode::ApiKey);
    gatekeeper.say(&[limited("slow", 1), limited("fast", 1_000_000)]);
    let site = Site::guarded(gatekeeper).await;
    let status = refused_by_and_by(&site.cam, "slow").await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let after = status.metadata().get("retry-after-ms").unwrap();
    let after: u64 = after.to_str().unwrap().parse().unwrap();
    assert!((1..=1000).contains(&after), "{after}");
    for _ in 0..50 {
        asked(&site.cam, "m", "fast").await.unwrap();
    }
}

#[tokio::test]
async fn an_address_has_a_rate_which_other_agents_do_not_share() {
    let gatekeeper = Gatekeeper::by(AuthMode::None).pacing(1);
    let site = Site::guarded(gatekeeper).await;
    let status = refused_by_and_by(&site.cam, "").await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    // Claiming to be an agent is not enough; being known as one is.
    let forwarded = || {
        let mut request = Request::new(ModelInferRequest {
            model_name: "default/m".into(),
            ..request("", &[1.0, 2.0])
        });
        request
            .metadata_mut()
            .insert(FORWARDED, "1".parse().unwrap());
        request
    };
    let mut client = site.cam.client();
    let mut refused = 0;
    for _ in 0..50 {
        refused += u32::from(client.model_infer(forwarded()).await.is_err());
    }
    assert!(refused > 0);
    site.gatekeeper.knows_agent_at([127, 0, 0, 1].into());
    for _ in 0..50 {
        client.model_infer(forwarded()).await.unwrap();
    }
}

#[tokio::test]
async fn a_token_gets_the_models_that_its_holder_may_get() {
    let site = Site::guarded(Gatekeeper::by(AuthMode::Token)).await;
    let ask = async |host: &Host, model: &str, token: &str| {
        let request = ModelInferRequest {
            model_name: model.to_owned(),
            ..request("", &[1.0, 2.0])
        };
        let reply = host.client().model_infer(with_token(request, token)).await;
        reply.map_or_else(|s| s.code(), |_| Code::Ok)
    };
    for host in [&site.cam, &site.edge] {
        for (model, token, expected) in [
            ("m", "a.default.c", Code::Ok),
            ("default/m", "a.default.c", Code::Ok),
            ("secret", "a.default.c", Code::PermissionDenied),
            ("default/m", "a.lab.c", Code::PermissionDenied),
            ("m", "a.bad.c", Code::Unauthenticated),
            ("m", "no-token", Code::Unauthenticated),
        ] {
            let code = ask(host, model, token).await;
            assert_eq!(code, expected, "{model} with {token}");
        }
    }
    assert_eq!(code(&site.cam, "m", KEY).await, Code::Unauthenticated);
    // While the API server is away, admitted clients continue, and nobody else is admitted.
    site.gatekeeper.api_server_away(true);
    assert_eq!(ask(&site.cam, "m", "a.default.c").await, Code::Ok);
    let new = ask(&site.cam, "m", "new.default.c").await;
    assert_eq!(new, Code::Unavailable);
}

fn http_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

async fn posted(host: &Host, path: &str, header: (&str, &str)) -> (StatusCode, Value, String) {
    let client = http_client();
    let image = json!({"name": "image", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]});
    let response = client
        .post(format!("http://{}{path}", host.http_address))
        .header(header.0, header.1)
        .body(json!({"inputs": [image]}).to_string())
        .send()
        .await
        .unwrap();
    let headers = response.headers();
    let said = ["www-authenticate", "retry-after"].map(|name| headers.get(name).cloned());
    let said = said.into_iter().flatten();
    let said: Vec<String> = said.map(|v| v.to_str().unwrap().to_owned()).collect();
    let status = response.status();
    let body = response.bytes().await.unwrap();
    let body = serde_json::from_slice(&body).unwrap();
    (status, body, said.join(" "))
}

#[tokio::test]
async fn over_http_it_is_the_same() {
    let gatekeeper = Gatekeeper::by(AuthMode::ApiKey);
    gatekeeper.say(&[
        key(KEY, "default", &[]),
        key(FOREIGN, "lab", &[]),
        limited("slow", 1),
    ]);
    let site = Site::guarded(gatekeeper).await;
    let bearer = format!("Bearer {KEY}");
    for host in [&site.cam, &site.edge] {
        for (path, header, expected) in [
            ("m", ("x-api-key", KEY), StatusCode::OK),
            (
                "default/m",
                ("authorization", bearer.as_str()),
                StatusCode::OK,
            ),
            ("default/m", ("x-api-key", FOREIGN), StatusCode::FORBIDDEN),
            ("m", ("x-api-key", FOREIGN), StatusCode::NOT_FOUND),
            ("m", ("x-api-key", "another"), StatusCode::UNAUTHORIZED),
            ("m", ("x-other", "x"), StatusCode::UNAUTHORIZED),
        ] {
            let path = format!("/v2/models/{path}/infer");
            let (status, body, said) = posted(host, &path, header).await;
            assert_eq!(status, expected, "{path} {header:?}: {body}");
            let is_refused = status == StatusCode::UNAUTHORIZED;
            assert_eq!(said == "Bearer", is_refused, "{said}");
            if is_refused {
                let error = body["error"].as_str().unwrap();
                assert!(error.contains("x-api-key"), "{error}");
            }
        }
    }
    let mut last = StatusCode::OK;
    for _ in 0..50 {
        let (status, _, said) =
            posted(&site.cam, "/v2/models/m/infer", ("x-api-key", "slow")).await;
        last = status;
        if status != StatusCode::OK {
            assert_eq!(said, "1");
            break;
        }
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
    for open in ["/v2", "/v2/health/live", "/v2/health/ready"] {
        let url = format!("http://{}{open}", site.cam.http_address);
        let response = http_client().get(url).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{open}");
    }
    let url = format!("http://{}/v2/models/m", site.cam.http_address);
    let response = http_client().get(url).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

//! The port as clients use and misuse it, over real sockets.

use super::body::testing::alone;
use super::compression::Coding;
use crate::serve::data_plane::testing::{Folder, Host, deploy, listed, part, route_to};
use bytes::Bytes;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const MS: fn(u64) -> Duration = Duration::from_millis;
const HEADER_LENGTH: &str = "inference-header-content-length";

/// An entry that serves model `m`, which maps x to 2x + 1 over two hosts.
struct Served {
    cam: Host,
    edge: Host,
    client: Client,
}

impl Served {
    async fn start() -> Self {
        Self::with_run_time(Duration::ZERO).await
    }

    async fn with_run_time(run_time: Duration) -> Self {
        let folder = Folder::new();
        let mut cam = Host::start("cam-1", &folder);
        let mut edge = Host::slow("edge-1", &folder, run_time);
        deploy(1, &mut [(&mut cam, (2.0, 0.0)), (&mut edge, (1.0, 1.0))]).await;
        cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
        Self {
            cam,
            edge,
            client: client(),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.cam.http_address)
    }

    fn infer(&self) -> RequestBuilder {
        self.client.post(self.url("/v2/models/m/infer"))
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.client.get(self.url(path))).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.cam.http_address).await.unwrap()
    }
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().unwrap()
}

async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let body = response.bytes().await.unwrap();
    let json = serde_json::from_slice(&body);
    (status, json.unwrap_or_else(|e| panic!("{e}: {body:?}")))
}

fn row(values: &[f32]) -> Value {
    json!({"name": "image", "datatype": "FP32", "shape": [1, 2], "data": values})
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[tokio::test]
async fn a_client_learns_what_is_served() {
    let served = Served::start().await;
    assert_eq!(
        served.get("/v2/health/live").await,
        (StatusCode::OK, json!({"live": true}))
    );
    let (status, ready) = served.get("/v2/health/ready").await;
    assert_eq!((status, &ready["ready"]), (StatusCode::OK, &json!(true)));
    let (_, server) = served.get("/v2").await;
    assert_eq!(server["extensions"][0], "binary_tensor_data");
    for path in [
        "/v2/models/m",
        "/v2/models/default%2Fm",
        "/v2/models/default/m/versions/1",
    ] {
        let (status, model) = served.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {model}");
        assert_eq!(model["versions"], json!(["1"]));
        let input = json!({"name": "image", "datatype": "FP32", "shape": [-1, 2]});
        assert_eq!(model["inputs"], json!([input]));
    }
    let (_, config) = served.get("/v2/models/m/config").await;
    assert_eq!(config["input"][0]["data_type"], "TYPE_FP32");
    assert_eq!(config["input"][0]["dims"], json!([-1, 2]));
    let (status, ready) = served.get("/v2/models/m/ready").await;
    assert_eq!(
        (status, ready),
        (StatusCode::OK, json!({"name": "m", "ready": true}))
    );
}

#[tokio::test]
async fn json_is_answered_in_json() {
    let served = Served::start().await;
    let body = json!({"id": "seven", "inputs": [row(&[1.0, 2.5])]});
    let (status, answer) = answer(served.infer().body(body.to_string())).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["id"], "seven");
    assert_eq!(
        (&answer["model_name"], &answer["model_version"]),
        (&json!("m"), &json!("1"))
    );
    let output = json!({"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [3.0, 6.0]});
    assert_eq!(answer["outputs"], json!([output]));
    assert_eq!(answer["parameters"]["lamina_placement_revision"], 1);
}

/// The JSON, i.e. the first bytes of the body, and the rest.
async fn split(request: RequestBuilder) -> (Value, Bytes) {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let length = response.headers().get(HEADER_LENGTH);
    let length: usize = length.unwrap().to_str().unwrap().parse().unwrap();
    let mut body = response.bytes().await.unwrap();
    let json = body.split_to(length);
    (serde_json::from_slice(&json).unwrap(), body)
}

#[tokio::test]
async fn binary_goes_in_and_comes_out() {
    let served = Served::start().await;
    let tensor = bytes_of(&[1.0, 2.5]);
    let json = json!({
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 2],
                    "parameters": {"binary_data_size": tensor.len()}}],
        "parameters": {"binary_data_output": true},
    });
    let json = json.to_string();
    let body = [json.as_bytes(), &tensor].concat();
    let request = served.infer().header(HEADER_LENGTH, json.len()).body(body);
    let (answer, behind) = split(request).await;
    assert_eq!(answer["outputs"][0]["parameters"]["binary_data_size"], 8);
    assert_eq!(behind, bytes_of(&[3.0, 6.0]));
    // Only the bytes, whose number determines the rows.
    let request = served.infer().header(HEADER_LENGTH, 0);
    let body = bytes_of(&[0.0, 1.0, 2.0, 3.0]);
    let (answer, behind) = split(request.body(body)).await;
    assert_eq!(answer["outputs"][0]["shape"], json!([2, 2]));
    assert_eq!(behind, bytes_of(&[1.0, 3.0, 5.0, 7.0]));
}

#[tokio::test]
async fn bodies_are_packed_in_both_directions() {
    let served = Served::start().await;
    let values: Vec<f32> = (0..2000_u16).map(f32::from).collect();
    let input = json!({"name": "image", "datatype": "FP32", "shape": [1000, 2], "data": values});
    let json = Bytes::from(json!({ "inputs": [input] }).to_string());
    for (coding, name) in [(Coding::Gzip, "gzip"), (Coding::Deflate, "deflate")] {
        let body = coding.pack(std::slice::from_ref(&json)).unwrap();
        let request = served.infer().body(body);
        let request = request.header("content-encoding", name);
        let response = request
            .header("accept-encoding", name)
            .send()
            .await
            .unwrap();
        assert_eq!(response.headers()["content-encoding"], name);
        let packed = response.bytes().await.unwrap();
        let unpacked = coding
            .unpack(&packed, 1 << 20, &mut alone(64 << 20).await)
            .unwrap();
        let answer: Value = serde_json::from_slice(&unpacked).unwrap();
        assert_eq!(answer["outputs"][0]["data"][1999], 3999.0);
    }
    // Errors and other answers are not compressed.
    let request = served.infer().header("accept-encoding", "gzip").body("{");
    let (status, error) = answer(request).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
}

#[tokio::test]
async fn a_bomb_is_unpacked_no_further_than_the_limit() {
    let served = Served::start().await;
    let zeros = vec![Bytes::from(vec![b' '; 8 << 20]); 9];
    let bomb = Coding::Gzip.pack(&zeros).unwrap();
    let request = served.infer().header("content-encoding", "gzip").body(bomb);
    let (status, error) = answer(request).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{error}");
    let error = error["error"].as_str().unwrap();
    assert!(error.contains("bytes, unpacked"), "{error}");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_told_so_at_its_end() {
    let served = Served::start().await;
    let request = served.infer().body(vec![b' '; (64 << 20) + 1]);
    let (status, error) = answer(request).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{error}");
    let body = json!({"inputs": [row(&[1.0, 2.0])]});
    let (status, _) = answer(served.infer().body(body.to_string())).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn what_the_model_does_not_take_is_refused_by_name() {
    let served = Served::start().await;
    let input = |name: &str, datatype: &str, shape: Value, data: Value| json!({"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]});
    for (body, status, cause) in [
        (
            input("picture", "FP32", json!([1, 2]), json!([1, 2])),
            400,
            "unknown input `picture`",
        ),
        (
            input("image", "INT32", json!([1, 2]), json!([1, 2])),
            400,
            "expected datatype FP32",
        ),
        (
            input("image", "FP32", json!([1, 3]), json!([1, 2, 3])),
            400,
            "expected shape [-1, 2]",
        ),
        (
            input("image", "FP32", json!([1, 2]), json!([1])),
            400,
            "has 1 elements",
        ),
        (
            input("image", "BYTES", json!([1]), json!(["a"])),
            400,
            "BYTES tensors cannot be sent",
        ),
        (
            input("image", "FP8", json!([1]), json!([1])),
            400,
            "unknown datatype `FP8`",
        ),
        (
            input("image", "FP16", json!([1, 2]), json!([1, 2])),
            400,
            "binary_data_size",
        ),
        (json!({"inputs": []}), 400, "missing input `image`"),
        (
            json!({"inputs": [row(&[1.0, 2.0]), row(&[1.0, 2.0])]}),
            400,
            "named twice",
        ),
        (
            json!({"inputs": [row(&[1.0, 2.0])], "outputs": [{"name": "y"}]}),
            400,
            "unknown output",
        ),
        (
            json!({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 2],
                               "parameters": {"shared_memory_region": "r"}}]}),
            501,
            "shared_memory_region",
        ),
    ] {
        let (got, error) = answer(served.infer().body(body.to_string())).await;
        assert_eq!(got, status, "{body}: {error}");
        let error = error["error"].as_str().unwrap();
        assert!(error.contains(cause), "{body}: {error}");
    }
}

#[tokio::test]
async fn unknown_models_versions_paths_and_methods_are_named() {
    let served = Served::start().await;
    served.cam.hear(&[listed(&[(&served.cam, true)])]);
    let (status, error) = served.get("/v2/models/none").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(error["error"].as_str().unwrap().contains("none"), "{error}");
    for path in [
        "/v2/models/none/ready",
        "/v2/models/none/config",
        "/v2/models/m/versions/2",
        "/v2/models/m/versions/2/ready",
        "/v1/models/m",
        "/v2/models",
        "/v2/systemsharedmemory/status",
        "/",
    ] {
        let (status, error) = served.get(path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {error}");
        assert!(error["error"].is_string(), "{path}: {error}");
    }
    let body = json!({"inputs": [row(&[1.0, 2.0])]});
    let post = |path: &str| served.client.post(served.url(path)).body(body.to_string());
    let (status, _) = answer(post("/v2/models/m/versions/2/infer")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = answer(post("/v2/models/m")).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let (status, error) = served.get("/v2/models/m/infer").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(
        error["error"].as_str().unwrap().contains("use POST"),
        "{error}"
    );
}

#[tokio::test]
async fn a_host_that_is_not_the_entry_answers_as_well() {
    let served = Served::start().await;
    served.edge.hear(&[listed(&[(&served.cam, true)])]);
    let url = |path: &str| format!("http://{}/v2/models/m{path}", served.edge.http_address);
    let body = json!({"inputs": [row(&[1.0, 2.5])]});
    let (status, answered) = answer(served.client.post(url("/infer")).body(body.to_string())).await;
    assert_eq!(status, StatusCode::OK, "{answered}");
    assert_eq!(answered["outputs"][0]["data"], json!([3.0, 6.0]));
    let (_, model) = answer(served.client.get(url(""))).await;
    assert_eq!(model["properties"]["lamina_entry"], "cam-1");
}

#[tokio::test]
async fn a_model_that_does_not_serve_may_be_asked_again() {
    let served = Served::start().await;
    served.edge.hear(&[listed(&[(&served.cam, false)])]);
    let url = format!("http://{}/v2/models/m/ready", served.edge.http_address);
    let response = served.client.get(url).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "1");
}

#[tokio::test]
async fn a_timeout_in_microseconds_is_kept() {
    let served = Served::with_run_time(MS(3000)).await;
    let body = json!({"inputs": [row(&[1.0, 2.0])], "parameters": {"timeout": 200_000}});
    let began = std::time::Instant::now();
    let (status, error) = answer(served.infer().body(body.to_string())).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{error}");
    assert!(began.elapsed() < MS(1000));
}

#[tokio::test]
async fn a_client_that_vanishes_drops_the_work_on_every_host() {
    let served = Served::with_run_time(MS(20_000)).await;
    let body = json!({"inputs": [row(&[1.0, 2.0])]}).to_string();
    let mut stream = served.connect().await;
    let head = format!(
        "POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let inside = || [&served.cam, &served.edge].map(|h| h.telemetry.requests_in_flight());
    let wait = async |wanted: bool| {
        let reached = async {
            while inside().iter().any(|n| (*n > 0) != wanted) {
                sleep(MS(5)).await;
            }
        };
        timeout(MS(5000), reached).await.unwrap();
    };
    wait(true).await;
    drop(stream);
    wait(false).await;
}

#[tokio::test]
async fn requests_in_flight_are_answered_at_a_shutdown() {
    let served = Served::with_run_time(MS(300)).await;
    let body = json!({"inputs": [row(&[1.0, 2.5])]});
    let answering = tokio::spawn(answer(served.infer().body(body.to_string())));
    while served.cam.telemetry.requests_in_flight() == 0 {
        sleep(MS(2)).await;
    }
    served.cam.shutdown.cancel();
    let (status, answered) = answering.await.unwrap();
    assert_eq!(status, StatusCode::OK, "{answered}");
    let refused = async {
        while TcpStream::connect(&served.cam.http_address).await.is_ok() {
            sleep(MS(5)).await;
        }
    };
    timeout(MS(2000), refused).await.unwrap();
}

#[tokio::test]
async fn nonsense_is_answered_and_leaves_the_next_client_alone() {
    let served = Served::start().await;
    for nonsense in [
        &b"GET\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\xff\xfe\x00\x00",
    ] {
        let mut stream = served.connect().await;
        stream.write_all(nonsense).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = Vec::new();
        let read = timeout(MS(5000), stream.read_to_end(&mut said)).await;
        let _ = read.unwrap();
        let said = String::from_utf8_lossy(&said);
        assert!(
            said.is_empty() || said.contains(" 400 "),
            "{nonsense:?}: {said}"
        );
    }
    let (status, _) = served.get("/v2/health/live").await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn no_text_makes_the_server_fail() {
    let served = Served::start().await;
    let good =
        json!({"id": "a", "parameters": {"timeout": 1_000_000}, "outputs": [{"name": "scores"}],
                      "inputs": [row(&[1.0, 2.5])]})
        .to_string();
    // Each prefix, and each text with one byte changed into what JSON gives a meaning.
    let mut texts: Vec<Vec<u8>> = (0..good.len())
        .map(|n| good.as_bytes()[..n].to_vec())
        .collect();
    for place in (0..good.len()).step_by(3) {
        for byte in *b"[{\"-9n\xff" {
            let mut text = good.clone().into_bytes();
            text[place] = byte;
            texts.push(text);
        }
    }
    for text in texts {
        let shown = String::from_utf8_lossy(&text).into_owned();
        let (status, answer) = answer(served.infer().body(text)).await;
        let is_told = status.is_client_error() && answer["error"].is_string();
        assert!(
            is_told || status == StatusCode::OK,
            "{shown}: {status} {answer}"
        );
    }
    assert_eq!(served.cam.telemetry.requests_in_flight(), 0);
}

#[tokio::test]
async fn an_answer_tells_its_revision() {
    let mut served = Served::start().await;
    let folder = std::sync::Arc::clone(&served.cam.folder);
    served.cam.hold(part(&folder, 2, 0, (5.0, 0.0), None)).await;
    let route = route_to(2, &[(1, &served.cam), (2, &served.cam)]);
    served.cam.routes.apply(&[route]).unwrap();
    let body = json!({"inputs": [row(&[1.0, 2.0])]});
    let (_, answer) = answer(served.infer().body(body.to_string())).await;
    assert_eq!(answer["outputs"][0]["data"], json!([5.0, 10.0]));
    assert_eq!(answer["parameters"]["lamina_placement_revision"], 2);
}

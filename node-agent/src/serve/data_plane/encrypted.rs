//! Clients with TLS, over gRPC and HTTP, of agents that authenticate each other by certificates.

use super::testing::{Folder, Host, listed, part, request, route_to, values};
use crate::net::{FrontMode, FrontTls, TlsMode};
use crate::serve::access::testing::{Gatekeeper, open};
use crate::serve::access::{Access, AuthMode, FORWARDED};
use crate::testing::{authority, front_credentials, trust};
use hyper_util::rt::TokioIo;
use lamina_identity::authority::Authority;
use lamina_identity::{ConnectError, client_config, connect};
use lamina_proto::inference::ModelInferRequest;
use lamina_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use reqwest::StatusCode;
use serde_json::json;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use tokio::net::TcpStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// The name of every agent for clients here.
const NAME: &str = "lamina.example";

/// `cam-1` serves `m` as 2x on itself and 10x on `edge-1`; both show clients certificates of one
/// authority, and hosts those of another.
struct Site {
    given: Authority,
    cam: Host,
    edge: Host,
    front: FrontTls,
}

impl Site {
    async fn start(is_optional: bool, access: &dyn Fn() -> Access) -> Self {
        let (by, given) = (authority(), authority());
        let folder = Folder::new();
        let host = |name: &str| {
            let trust = trust(TlsMode::Required, &by, name, &[&by]);
            let front = FrontTls::new(FrontMode::Given, is_optional, &trust);
            let names = [NAME, "127.0.0.1"];
            front.set(&front_credentials(&given, &names)).unwrap();
            let host = Host::fronted(name, &folder, access(), trust, front.clone());
            (host, front)
        };
        let ((mut cam, front), (mut edge, _)) = (host("cam-1"), host("edge-1"));
        let first = part(&folder, 1, 0, (2.0, 0.0), Some(&edge));
        cam.hold(first).await;
        edge.hold(part(&folder, 1, 1, (10.0, 0.0), None)).await;
        cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
        edge.hear(&[listed(&[(&cam, true)])]);
        Self {
            given,
            cam,
            edge,
            front,
        }
    }
}

/// Over gRPC with TLS, for a client that trusts `by`.
fn client(host: &Host, by: &Authority) -> GrpcInferenceServiceClient<Channel> {
    let config = client_config(None, &[by.der().clone()]).unwrap();
    let address = host.hop.address.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (config, address) = (Arc::clone(&config), address.clone());
        async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let stream = connect(config, NAME, stream).await?;
            Ok::<_, ConnectError>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://agent");
    GrpcInferenceServiceClient::new(endpoint.connect_with_connector_lazy(connector))
}

/// The host's answer over HTTP, by `scheme`, to a client that trusts `by`.
async fn posted(host: &Host, scheme: &str, by: &Authority) -> Result<StatusCode, reqwest::Error> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = reqwest::Certificate::from_pem(by.certificate().as_bytes()).unwrap();
    let address: SocketAddr = host.http_address.parse().unwrap();
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([root])
        .resolve(NAME, address)
        .build()
        .unwrap();
    let image = json!({"name": "image", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]});
    let url = format!("{scheme}://{NAME}:{}/v2/models/m/infer", address.port());
    let sent = client
        .post(url)
        .body(json!({"inputs": [image]}).to_string())
        .send();
    Ok(sent.await?.status())
}

#[tokio::test]
async fn with_tls_clients_are_answered_at_the_entry_and_elsewhere_and_without_they_are_told() {
    let site = Site::start(false, &open).await;
    for host in [&site.cam, &site.edge] {
        let mut over_grpc = client(host, &site.given);
        let reply = over_grpc.model_infer(request("a", &[1.0, 2.0])).await;
        assert_eq!(values(reply.unwrap().get_ref()), [20.0, 40.0]);
        let over_http = posted(host, "https", &site.given).await;
        assert_eq!(over_http.unwrap(), StatusCode::OK);
        let plain = posted(host, "http", &site.given).await;
        assert_eq!(plain.unwrap(), StatusCode::BAD_REQUEST);
        let plain = host.client().model_infer(request("a", &[1.0, 2.0])).await;
        assert!(plain.is_err());
        let stranger = authority();
        assert!(posted(host, "https", &stranger).await.is_err());
        let mut stranger = client(host, &stranger);
        let refused = stranger.model_infer(request("a", &[1.0, 2.0])).await;
        assert!(refused.is_err());
    }
}

/// Calls over gRPC and HTTP, trusting the authorities in a file.
const ASK: &str = "
import sys
import numpy
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
grpc_url, http_url, authorities = sys.argv[1:]
for triton, url, believed in [
    (over_grpc, grpc_url, {'root_certificates': authorities}),
    (over_http, http_url, {'ssl_options': {'ca_certs': authorities}}),
]:
    client = triton.InferenceServerClient(url, ssl=True, **believed)
    image = triton.InferInput('image', [1, 2], 'FP32')
    image.set_data_from_numpy(numpy.array([[1, 2]], numpy.float32))
    print(client.infer('m', [image]).as_numpy('scores').tolist())
";

#[tokio::test]
async fn clients_that_others_wrote_believe_the_certificate_by_its_address() {
    let site = Site::start(false, &open).await;
    let folder = tempfile::tempdir().unwrap();
    let ask = |by: &Authority| {
        let file = folder.path().join("ca.crt");
        std::fs::write(&file, by.certificate()).unwrap();
        let python = std::env::var_os("LAMINA_CLIENTS");
        let python = python.expect("LAMINA_CLIENTS is not set: run `cargo xtask test`");
        let mut command = Command::new(python);
        command.args(["-W", "ignore", "-c", ASK, &site.edge.hop.address]);
        let output = command.arg(&site.edge.http_address).arg(file).output();
        let output = output.unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let (is_answered, said) = ask(&site.given);
    assert!(is_answered, "{said}");
    assert_eq!(said.matches("[[20.0, 40.0]]").count(), 2, "{said}");
    let (is_answered, said) = ask(&authority());
    assert!(!is_answered, "{said}");
}

#[tokio::test]
async fn while_clients_are_changed_over_both_ways_are_open() {
    let site = Site::start(true, &open).await;
    // Other agents still need certificates.
    for host in [&site.cam, &site.edge] {
        let plain = host.client().model_infer(request("a", &[1.0, 2.0])).await;
        assert_eq!(values(plain.unwrap().get_ref()), [20.0, 40.0]);
        let mut with_tls = client(host, &site.given);
        with_tls
            .model_infer(request("a", &[1.0, 2.0]))
            .await
            .unwrap();
        for scheme in ["http", "https"] {
            let answered = posted(host, scheme, &site.given).await;
            assert_eq!(answered.unwrap(), StatusCode::OK, "{scheme}");
        }
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_while_connections_go_on() {
    let site = Site::start(false, &open).await;
    let mut open = client(&site.cam, &site.given);
    open.model_infer(request("a", &[1.0, 2.0])).await.unwrap();
    let next = authority();
    site.front.set(&front_credentials(&next, &[NAME])).unwrap();
    open.model_infer(request("b", &[1.0, 2.0])).await.unwrap();
    let ask = |by: &Authority| {
        let mut client = client(&site.cam, by);
        async move { client.model_infer(request("c", &[1.0, 2.0])).await }
    };
    ask(&next).await.unwrap();
    assert!(ask(&site.given).await.is_err());
    assert_eq!(
        posted(&site.cam, "https", &next).await.unwrap(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn who_says_that_an_agent_passes_it_on_is_believed_by_its_certificate_alone() {
    // The address is that of a known agent.
    let gatekeeper = Gatekeeper::by(AuthMode::None).pacing(1);
    gatekeeper.knows_agent_at([127, 0, 0, 1].into());
    let site = Site::start(false, &|| gatekeeper.access()).await;
    let mut forging = client(&site.cam, &site.given);
    let mut refused = 0;
    for _ in 0..50 {
        let mut forged = Request::new(ModelInferRequest {
            model_name: "default/m".into(),
            ..request("", &[1.0, 2.0])
        });
        let headers = forged.metadata_mut();
        headers.insert(FORWARDED, "1".parse().unwrap());
        refused += u32::from(forging.model_infer(forged).await.is_err());
    }
    assert!(refused > 0);
}

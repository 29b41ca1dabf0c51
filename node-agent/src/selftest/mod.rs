//! `lamina-node-agent selftest`: serves a built-in model, sends it one request and removes
//! it. `helm test` runs this.

use crate::causes::with_causes;
use anyhow::{Context as _, Result, bail, ensure};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use clap::Args;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use lamina_crds::DnnModel;
use lamina_crds::conditions::{READY, is_true};
use lamina_model::Digest;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

/// `B relu(2x + 1)`, made by `model.py`.
const MODEL: &[u8] = include_bytes!("model.torchscript");
const INPUT: [f64; 4] = [1.0, 2.0, 3.0, 4.0];
const ANSWER: [f64; 2] = [24.0, -4.0];
const TOLERANCE: f64 = 1e-4;
const LOOK: Duration = Duration::from_millis(500);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest file with credentials.
const CREDENTIALS: usize = 16 << 10;

/// Serve a tiny model on the cluster and send it one request.
#[derive(Debug, Clone, Args)]
pub struct SelftestArgs {
    /// Node at which the model enters; its label kubernetes.io/hostname must be its name.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Namespace in which the model is created for the duration of the test. If clients
    /// need a key, it is the key's.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Address at which agents fetch the model's file from this process.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: IpAddr,
    /// Port for it.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Name or address that accepts requests over HTTP.
    #[arg(long)]
    pub host: String,
    /// Port for them.
    #[arg(long, default_value_t = 8000)]
    pub rest_port: u16,
    /// File with the key or the token to send, if clients need one.
    #[arg(long)]
    pub credentials: Option<PathBuf>,
    /// Use TLS there and accept every certificate: neither the request nor the answer is
    /// secret, and the certificate need not name the address.
    #[arg(long)]
    pub tls: bool,
    /// Time limit of the whole test, in seconds.
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout_seconds: u64,
}

/// Runs the test and prints its progress.
///
/// # Errors
/// What does not work.
pub fn selftest(args: &SelftestArgs) -> Result<()> {
    // Fails if one is installed already, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    runtime.block_on(test(args))
}

async fn test(args: &SelftestArgs) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(args.timeout_seconds);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, args.port)).await;
    let listener = listener.with_context(|| format!("cannot listen on port {}", args.port))?;
    let app = Router::new().route("/model.torchscript", get(async || MODEL));
    let _serving = AbortOnDropHandle::new(tokio::spawn(
        async move { axum::serve(listener, app).await },
    ));
    let client = Client::try_default()
        .await
        .context("no access to the Kubernetes API: run in a pod, or set KUBECONFIG")?;
    let models: Api<DnnModel> = Api::namespaced(client, &args.namespace);
    let model = serde_json::from_value(manifest(args)).context("the manifest is wrong")?;
    let made = models.create(&PostParams::default(), &model).await;
    let name = made.context("the model could not be made")?.name_any();
    println!("made the model {}/{name}", args.namespace);
    let mut awaited = String::new();
    let outcome = timeout_at(until, async {
        become_ready(&models, &name, &mut awaited).await?;
        answered(args, &name, &mut awaited).await
    })
    .await;
    let outcome =
        outcome.unwrap_or_else(|_| bail!("not done within {} s: {awaited}", args.timeout_seconds));
    let removed = models.delete(&name, &DeleteParams::default()).await;
    outcome?;
    removed.context("the model could not be removed")?;
    println!("ok");
    Ok(())
}

fn manifest(args: &SelftestArgs) -> Value {
    let here = SocketAddr::new(args.pod_ip, args.port);
    json!({
        "apiVersion": "serving.lamina.dev/v1alpha1",
        "kind": "DnnModel",
        "metadata": {"generateName": "selftest-", "namespace": args.namespace},
        "spec": {
            "source": {
                "uri": format!("http://{here}/model.torchscript"),
                "sha256": Digest::of(MODEL),
            },
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, INPUT.len()]}],
            "entry": {"nodeSelector": {"kubernetes.io/hostname": args.node_name}},
        },
    })
}

/// Prints what is waited for, if that changed.
fn tell(awaited: &mut String, now: String) {
    if now != *awaited {
        println!("{now}");
        *awaited = now;
    }
}

/// Returns once the model serves; prints what it waits for.
async fn become_ready(models: &Api<DnnModel>, name: &str, awaited: &mut String) -> Result<()> {
    loop {
        let model = models.get(name).await.context("the model cannot be read")?;
        let status = model.status.unwrap_or_default();
        if is_true(&status.conditions, READY) {
            return Ok(());
        }
        let ready = status.conditions.iter().find(|c| c.type_ == READY);
        let why = ready.map_or("nobody has looked at it yet", |ready| &ready.message);
        ensure!(status.stage != "Failed", "the model failed: {why}");
        tell(awaited, format!("{}: {why}", status.stage));
        sleep(LOOK).await;
    }
}

/// Returns once a request is answered correctly. A refusal is not final: keys and rights take a
/// moment to reach the agent.
async fn answered(args: &SelftestArgs, name: &str, awaited: &mut String) -> Result<()> {
    loop {
        match ask(args, name).await? {
            Answer::Values(values) => {
                ensure!(
                    is_right(&values),
                    "the answer is {values:?} instead of {ANSWER:?}"
                );
                println!("the answer is right: {values:?}");
                return Ok(());
            }
            Answer::NotYet(why) => tell(awaited, why),
        }
        sleep(LOOK).await;
    }
}

enum Answer {
    Values(Vec<f64>),
    NotYet(String),
}

/// Address for requests to the model.
fn url(args: &SelftestArgs, name: &str) -> String {
    let host = match args.host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]"),
        Err(_) => args.host.clone(),
    };
    let scheme = if args.tls { "https" } else { "http" };
    format!(
        "{scheme}://{host}:{}/v2/models/{}/{name}/infer",
        args.rest_port, args.namespace
    )
}

/// The credentials for the agent. Read for each request: a kubelet renews tokens.
fn bearer(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("the credentials in {} cannot be read", file.display()))?;
    ensure!(
        text.len() <= CREDENTIALS,
        "{} is too long for credentials",
        file.display()
    );
    Ok(format!("Bearer {}", text.trim()))
}

/// Whether the same request may succeed later.
fn may_change(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE
    )
}

/// One request with a known answer.
async fn ask(args: &SelftestArgs, name: &str) -> Result<Answer> {
    let url = url(args, name);
    let request = json!({
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, INPUT.len()], "data": INPUT}],
    });
    let client = reqwest::Client::builder()
        .timeout(REQUEST_TIMEOUT)
        .tls_danger_accept_invalid_certs(args.tls)
        .build()
        .context("cannot make a client")?;
    let mut request = client
        .post(&url)
        .header("content-type", "application/json")
        .body(request.to_string());
    if let Some(file) = &args.credentials {
        request = request.header("authorization", bearer(file)?);
    }
    let answer = match request.send().await {
        Ok(answer) => answer,
        // No agent of this node is ready, or one is being replaced.
        Err(error) => {
            let error = with_causes(&error);
            return Ok(Answer::NotYet(format!("{url} does not answer: {error}")));
        }
    };
    let status = answer.status();
    let body = answer.text().await.context("the answer breaks off")?;
    if may_change(status) {
        return Ok(Answer::NotYet(format!("{url} answers {status}: {body}")));
    }
    ensure!(status.is_success(), "{url} answers {status}: {body}");
    let values = values(&body).with_context(|| format!("no answer of the protocol: {body}"))?;
    Ok(Answer::Values(values))
}

/// The first output of an answer in JSON.
fn values(body: &str) -> Option<Vec<f64>> {
    let answer: Value = serde_json::from_str(body).ok()?;
    let data = answer["outputs"][0]["data"].as_array()?;
    data.iter().map(Value::as_f64).collect()
}

fn is_right(values: &[f64]) -> bool {
    let pairs = values.iter().zip(&ANSWER);
    values.len() == ANSWER.len() && pairs.into_iter().all(|(a, b)| (a - b).abs() < TOLERANCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderMap;
    use lamina_crds::dnn_model::Dimension;
    use std::sync::{Arc, Mutex};

    fn args() -> SelftestArgs {
        SelftestArgs {
            node_name: "cam-1".into(),
            namespace: "lamina-system".into(),
            pod_ip: "fd12::1".parse().unwrap(),
            port: 8080,
            host: "lamina".into(),
            rest_port: 8000,
            credentials: None,
            tls: false,
            timeout_seconds: 1,
        }
    }

    #[test]
    fn the_manifest_is_one() {
        let args = args();
        let model: DnnModel = serde_json::from_value(manifest(&args)).unwrap();
        assert_eq!(
            model.spec.source.uri,
            "http://[fd12::1]:8080/model.torchscript"
        );
        assert_eq!(
            model.spec.source.sha256,
            Some(Digest::of(MODEL).to_string())
        );
        assert_eq!(model.spec.inputs[0].shape, Dimension::sizes(&[-1, 4]));
    }

    #[test]
    fn services_have_names_and_addresses_of_either_kind() {
        let of = |host: &str| {
            let host = host.to_owned();
            url(&SelftestArgs { host, ..args() }, "m")
        };
        let behind = ":8000/v2/models/lamina-system/m/infer";
        assert_eq!(of("lamina"), format!("http://lamina{behind}"));
        assert_eq!(of("10.96.0.7"), format!("http://10.96.0.7{behind}"));
        assert_eq!(of("fd12::2"), format!("http://[fd12::2]{behind}"));
    }

    /// Answers one request after the other, and returns their credentials.
    async fn agent(answers: Vec<(StatusCode, &'static str)>) -> (u16, Arc<Mutex<Vec<String>>>) {
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (seen, left) = (Arc::clone(&shown), Arc::new(Mutex::new(answers)));
        let answer = async move |headers: HeaderMap| {
            let value = headers.get("authorization").cloned().unwrap();
            seen.lock()
                .unwrap()
                .push(value.to_str().unwrap().to_owned());
            left.lock().unwrap().remove(0)
        };
        let app = Router::new().fallback(answer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, app).await });
        (port, shown)
    }

    #[tokio::test]
    async fn a_key_that_has_not_arrived_yet_is_shown_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "abc\n").unwrap();
        let right = r#"{"outputs":[{"name":"y","data":[24,-4]}]}"#;
        let (rest_port, shown) = agent(vec![
            (StatusCode::UNAUTHORIZED, "no such key"),
            (StatusCode::OK, right),
            (StatusCode::BAD_REQUEST, "what?"),
        ])
        .await;
        let args = SelftestArgs {
            host: "127.0.0.1".into(),
            rest_port,
            credentials: Some(file),
            ..args()
        };
        let mut awaited = String::new();
        answered(&args, "m", &mut awaited).await.unwrap();
        assert!(awaited.contains("401"), "{awaited}");
        assert_eq!(*shown.lock().unwrap(), ["Bearer abc"; 2]);
        let error = answered(&args, "m", &mut awaited).await.unwrap_err();
        assert!(error.to_string().contains("400"), "{error}");
    }

    #[test]
    fn only_the_known_answer_is_right() {
        let answer = |data: &str| format!(r#"{{"outputs":[{{"name":"y","data":{data}}}]}}"#);
        assert!(is_right(&values(&answer("[24.00001, -4]")).unwrap()));
        for wrong in ["[24]", "[24, -4, 0]", "[24, 4]", "[]"] {
            assert!(!is_right(&values(&answer(wrong)).unwrap()), "{wrong}");
        }
        assert_eq!(values(r#"{"error":"x"}"#), None);
        assert_eq!(values(&answer(r#"["a"]"#)), None);
    }
}

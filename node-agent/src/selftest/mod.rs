//! `lamina-node-agent selftest`: serves a model that is built in, asks it once and removes
//! it. What `helm test` runs.

use anyhow::{Context as _, Result, bail, ensure};
use axum::Router;
use axum::routing::get;
use clap::Args;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use lamina_crds::DnnModel;
use lamina_crds::conditions::{READY, is_true};
use lamina_model::Digest;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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

/// Serve a tiny model through the whole cluster, and ask it once.
#[derive(Debug, Clone, Args)]
pub struct SelftestArgs {
    /// Node at which the model enters; its label kubernetes.io/hostname must be its name.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Namespace in which the model is made, for as long as the test takes.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Address at which agents fetch the model's file from this process.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: IpAddr,
    /// Port for it.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Where requests over HTTP are taken, `http://lamina:8000`.
    #[arg(long)]
    pub address: String,
    /// Speak TLS there, and believe every certificate: what is asked is no secret, nor is the
    /// answer, and the address need not be among the names of the certificate.
    #[arg(long)]
    pub tls: bool,
    /// Seconds that all of it may take.
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout_seconds: u64,
}

/// Runs the test and says how it went.
///
/// # Errors
/// What does not work.
pub fn selftest(args: &SelftestArgs) -> Result<()> {
    // Fails where one is installed already, which is as good.
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
    let outcome = timeout_at(until, async {
        become_ready(&models, &name).await?;
        ask(args, &name).await
    })
    .await
    .unwrap_or_else(|_| bail!("not done within {} s", args.timeout_seconds));
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

/// Returns once the model serves; says what it waits for.
async fn become_ready(models: &Api<DnnModel>, name: &str) -> Result<()> {
    let mut said = String::new();
    loop {
        let model = models.get(name).await.context("the model cannot be read")?;
        let status = model.status.unwrap_or_default();
        if is_true(&status.conditions, READY) {
            return Ok(());
        }
        let ready = status.conditions.iter().find(|c| c.type_ == READY);
        let why = ready.map_or("nobody has looked at it yet", |ready| &ready.message);
        let now = format!("{}: {why}", status.stage);
        ensure!(status.stage != "Failed", "the model failed: {why}");
        if now != said {
            println!("{now}");
            said = now;
        }
        sleep(LOOK).await;
    }
}

/// One request, whose answer is known.
async fn ask(args: &SelftestArgs, name: &str) -> Result<()> {
    let url = format!(
        "{}/v2/models/{}/{name}/infer",
        args.address.trim_end_matches('/'),
        args.namespace
    );
    let request = json!({
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, INPUT.len()], "data": INPUT}],
    });
    let client = reqwest::Client::builder()
        .timeout(REQUEST_TIMEOUT)
        .tls_danger_accept_invalid_certs(args.tls)
        .build()
        .context("cannot make a client")?;
    let answer = client
        .post(&url)
        .header("content-type", "application/json")
        .body(request.to_string())
        .send()
        .await
        .with_context(|| format!("{url} does not answer"))?;
    let status = answer.status();
    let body = answer.text().await.context("the answer breaks off")?;
    ensure!(status.is_success(), "{url} answers {status}: {body}");
    let values = values(&body).with_context(|| format!("no answer of the protocol: {body}"))?;
    ensure!(
        is_right(&values),
        "the answer is {values:?} instead of {ANSWER:?}"
    );
    println!("asked {url}: {values:?}");
    Ok(())
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

    #[test]
    fn the_manifest_is_one() {
        let args = SelftestArgs {
            node_name: "cam-1".into(),
            namespace: "lamina-system".into(),
            pod_ip: "fd12::1".parse().unwrap(),
            port: 8080,
            address: "http://lamina:8000".into(),
            tls: false,
            timeout_seconds: 1,
        };
        let model: DnnModel = serde_json::from_value(manifest(&args)).unwrap();
        assert_eq!(
            model.spec.source.uri,
            "http://[fd12::1]:8080/model.torchscript"
        );
        assert_eq!(
            model.spec.source.sha256,
            Some(Digest::of(MODEL).to_string())
        );
        assert_eq!(model.spec.inputs[0].shape, [-1, 4]);
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

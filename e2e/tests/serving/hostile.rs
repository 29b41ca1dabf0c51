//! A tenant with its own namespace and an attacker with network access do their worst, beside a
//! client of another namespace that loses nothing.

use crate::faults::{all_answered, load};
use crate::good::serve;
use anyhow::{Context, Result, ensure};
use lamina_e2e::scene::redeploy;
use lamina_e2e::scene::{FILE_PORT, Scene, Step, poll};
use std::path::Path;
use std::time::Duration;

/// The tenant's namespace.
const TENANT: &str = "mallory";

/// Ten kilobytes that decompress to ten megabytes of zeros, to methods for users and for agents,
/// and the same over HTTP; prints the responses.
const BOMBS: &str = r#"
import gzip, sys, urllib.error, urllib.request
import grpc
host = sys.argv[1]
bomb = b"\x2a\x00" * 5_000_000
for path in ("/inference.GRPCInferenceService/ModelInfer", "/lamina.hop.v1.Hop/Forward"):
    for _ in range(5):
        options = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(f"{host}:8001", options) as channel:
            try:
                channel.unary_unary(path)(bomb, compression=grpc.Compression.Gzip, timeout=30)
                print(path, "TAKEN")
            except grpc.RpcError as error:
                print(path, error.code().name)
body = gzip.compress(b'{"inputs": [' + b'{},' * 3_000_000 + b'{}]}')
headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
request = urllib.request.Request(f"http://{host}:8000/v2/models/mobilenet-v2/infer", body, headers)
try:
    urllib.request.urlopen(request, timeout=30)
    print("http TAKEN")
except urllib.error.HTTPError as error:
    print("http", error.code)
"#;

/// Opens connections on which nothing is said, `HOST:PORT:COUNT` each, and keeps them for a
/// while; prints how many it got.
const SILENT: &str = r#"
import resource, socket, sys, time
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = []
for target in sys.argv[1:]:
    host, port, count = target.split(":")
    for _ in range(int(count)):
        connection = socket.socket()
        connection.settimeout(5)
        try:
            connection.connect((host, int(port)))
            held.append(connection)
        except OSError:
            connection.close()
time.sleep(25)
print(len(held))
"#;

/// A model of the tenant's with these lines in its spec.
fn model(scene: &Scene, name: &str, uri: &str, more: &str) -> Result<String> {
    let files = format!("http://{}:{FILE_PORT}", scene.lab.address("cloud-1")?);
    let uri = uri.replace("FILES", &files);
    Ok(format!(
        "apiVersion: serving.lamina.dev/v1alpha1
kind: DnnModel
metadata: {{name: {name}, namespace: {TENANT}}}
spec:
  source: {{uri: '{uri}'}}
  inputs:
    - {{name: image, datatype: FP32, shape: [-1, 3, 224, 224], range: {{min: -2.2, max: 2.7}}}}
  entry: {{nodeSelector: {{kubernetes.io/hostname: cam-2}}}}
{more}"
    ))
}

/// Waits until Ready of the tenant's model has this status and reason; returns the message.
async fn ready(scene: &Scene, name: &str, status: &str, reason: &str) -> Result<String> {
    let query =
        r#"{range .status.conditions[?(@.type=="Ready")]}{.status}|{.reason}|{.message}{end}"#;
    let output = format!("--output=jsonpath={query}");
    let arguments = ["get", "dnnmodel", name, "--namespace", TENANT, &output];
    let wanted = format!("{status}|{reason}|");
    let what = format!("{name}: Ready {status} with {reason}");
    let said = poll(&what, Duration::from_secs(120), async || {
        let said = scene.lab.kubectl(&arguments).await?;
        Ok(match said.strip_prefix(&wanted) {
            Some(message) => Step::Done(message.to_owned()),
            None => Step::NotYet(said),
        })
    });
    Ok(said.await?)
}

/// Number of container restarts of the release.
async fn restarts(scene: &Scene) -> Result<String> {
    let query = "--output=jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].restartCount};{end}";
    let pods = ["get", "pods", "--namespace", "lamina-system", query];
    Ok(scene.lab.kubectl(&pods).await?)
}

/// What a script says that runs on `host`.
async fn script(scene: &Scene, host: &str, code: &str, arguments: &[String]) -> Result<String> {
    let python = std::env::var("LAMINA_PYTHON")?;
    let mut command = scene.lab.command_without_limits(host, Path::new(&python))?;
    let command = command.args(["-W", "ignore", "-c", code]).args(arguments);
    let output = command.output().await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn bombs(scene: &Scene, host: &str) -> Result<()> {
    let address = scene.lab.address(host)?.to_string();
    let said = script(scene, host, BOMBS, &[address]).await?;
    ensure!(said.lines().count() == 11, "{said}");
    ensure!(!said.contains("TAKEN"), "{said}");
    ensure!(
        said.matches("ModelInfer RESOURCE_EXHAUSTED").count() == 5,
        "{said}"
    );
    Ok(())
}

pub(crate) async fn a_tenant_and_the_network_do_their_worst(scene: &Scene) -> Result<()> {
    if scene.model("mobilenet-v2").await?.is_none() {
        serve(scene, "mobilenet-v2").await?;
    }
    let lab = &scene.lab;
    lab.kubectl(&["create", "namespace", TENANT]).await?;
    let before = restarts(scene).await?;
    let client = redeploy::start(scene, &load(4.0)).await?;

    // The name of another tenant's model, and a rate that would occupy every host.
    let greedy = "  objective: {requestsPerSecond: 100000}\n";
    let twin = model(scene, "mobilenet-v2", "FILES/resnet18.pt", greedy)?;
    scene.apply(&twin).await?;
    // A source inside the host, a missing one with very many pins, a number that the operator
    // cannot read, and a strategy with a thousand parameters.
    let inside = model(scene, "inside", "http://127.0.0.1:9091/metrics", "")?;
    scene.apply(&inside).await?;
    let pins = "  constraints: {pins: [{first: 0, last: 65535, node: cam-1}]}\n";
    scene
        .apply(&model(scene, "pins", "FILES/nowhere.pt", pins)?)
        .await?;
    let beyond = "  constraints: {keepOnEntry: 99999999999}\n";
    let many: Vec<String> = (0..1000).map(|n| format!("k{n}: x")).collect();
    let many = format!(
        "  strategy: {{name: optimal, parameters: {{{}}}}}\n",
        many.join(", ")
    );
    for (name, spec) in [("beyond", beyond), ("many", &many)] {
        let refused = scene
            .apply(&model(scene, name, "FILES/resnet18.pt", spec)?)
            .await;
        ensure!(refused.is_err(), "the API server took {name}");
    }
    for host in ["cam-1", "cloud-1"] {
        bombs(scene, host).await.context(host)?;
    }
    let said = ready(scene, "inside", "False", "FetchFailed").await?;
    ensure!(said.contains("127.0.0.1"), "{said}");
    ready(scene, "pins", "False", "FetchFailed").await?;
    // No host computes at that rate; with a feasible one, it is served.
    ready(scene, "mobilenet-v2", "False", "NoFeasiblePlacement").await?;
    let twin = ["patch", "dnnmodel", "mobilenet-v2", "--namespace", TENANT];
    let patch = async |patch: &str| {
        let patch = format!("--patch={patch}");
        lab.kubectl(&[&twin[..], &["--type=merge", &patch]].concat())
            .await
    };
    patch(r#"{"spec": {"objective": {"requestsPerSecond": 1}}}"#).await?;
    ready(scene, "mobilenet-v2", "True", "Serving").await?;
    // An active model gets very many pins, too: the error names it, and it stays active.
    patch(r#"{"spec": {"constraints": {"pins": [{"first": 0, "last": 65535, "node": "cam-2"}]}, "source": {"uri": "http://127.0.0.1/"}}}"#)
        .await?;
    ready(scene, "mobilenet-v2", "False", "FetchFailed").await?;

    all_answered(client).await?;
    let after = restarts(scene).await?;
    ensure!(before == after, "before: {before}\nafter: {after}");
    lab.kubectl(&["delete", "namespace", TENANT, "--timeout=60s"])
        .await?;
    Ok(())
}

pub(crate) async fn connections_that_say_nothing_cost_others_nothing(scene: &Scene) -> Result<()> {
    if scene.model("mobilenet-v2").await?.is_none() {
        serve(scene, "mobilenet-v2").await?;
    }
    let before = restarts(scene).await?;
    let client = redeploy::start(scene, &load(4.0)).await?;
    // More than each port takes, of the operator and of the client's entry.
    let operator = scene.lab.address("cloud-1")?;
    let entry = scene.lab.address("cam-1")?;
    let targets = [format!("{operator}:9000:400"), format!("{entry}:8001:1200")];
    let held = script(scene, "cam-2", SILENT, &targets).await?;
    let held: u32 = held.trim().parse().context("it does not say how many")?;
    ensure!(held > 500, "{held}");
    all_answered(client).await?;
    scene.wait_nodes(5, Duration::from_secs(10)).await?;
    let after = restarts(scene).await?;
    ensure!(before == after, "before: {before}\nafter: {after}");
    Ok(())
}

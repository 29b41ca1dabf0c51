//! A tenant with its own namespace and an attacker with network access do their worst, beside a
//! client of another namespace that loses nothing.

use crate::faults::{all_answered, load};
use crate::good::serve;
use anyhow::{Context, Result, ensure};
use lamina_e2e::rights::count;
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

/// Valid batches that the entry has no memory for, and then an ordinary request; prints the answers.
const BATCHES: &str = r#"
import sys
import numpy
import tritonclient.grpc as triton
url, model = sys.argv[1:]
client = triton.InferenceServerClient(url)
for rows in (150, 100, 1):
    image = triton.InferInput('image', [rows, 3, 224, 224], 'FP32')
    image.set_data_from_numpy(numpy.zeros([rows, 3, 224, 224], numpy.float32))
    try:
        client.infer(model, [image], client_timeout=60)
        print(rows, 'answered')
    except triton.InferenceServerException as error:
        print(rows, error.status(), ' '.join(error.message().split()))
"#;

/// Calls a method three thousand times, each with another token of the right form; prints how many
/// calls had which outcome. With authorities to trust, it calls the operator.
const BAD_TOKENS: &str = r#"
import asyncio, base64, collections, json, sys
import grpc
address, method, authorities = sys.argv[1:]
def part(content):
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip('=')
def connect():
    if not authorities:
        return grpc.aio.insecure_channel(address)
    with open(authorities, 'rb') as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    named = [('grpc.ssl_target_name_override', 'operator.lamina')]
    return grpc.aio.secure_channel(address, credentials, named)
async def main():
    said = collections.Counter()
    async with connect() as channel:
        call = channel.unary_unary(method)
        async def ask(n):
            token = '.'.join([part({'alg': 'RS256'}), part({'sub': n}), 'c2lnbmF0dXJl'])
            try:
                await call(b'', metadata=[('authorization', 'Bearer ' + token)], timeout=60)
                said['OK'] += 1
            except grpc.RpcError as error:
                said[error.code().name] += 1
        await asyncio.gather(*(ask(n) for n in range(3000)))
    for code, count in said.items():
        print(code, count)
asyncio.run(main())
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

/// The tenant's clients send batches that are too large to its model's entry.
async fn batches(scene: &Scene) -> Result<()> {
    let entry = format!("{}:8001", scene.lab.address("cam-2")?);
    let model = format!("{TENANT}/mobilenet-v2");
    let said = script(scene, "cam-2", BATCHES, &[entry, model]).await?;
    let answers: Vec<&str> = said.lines().collect();
    let [message, rows, one] = answers[..] else {
        anyhow::bail!("{said}");
    };
    // Larger than a message may be, and then than a run.
    ensure!(message.contains("RESOURCE_EXHAUSTED"), "{said}");
    ensure!(rows.contains("INVALID_ARGUMENT"), "{said}");
    ensure!(one == "1 answered", "{said}");
    Ok(())
}

/// Three thousand bad tokens from cam-2; returns how many of them `asking`, a ServiceAccount of the
/// chart, asked the API server about.
pub(crate) async fn bad_tokens(
    scene: &Scene,
    (address, method): (String, &str),
    authorities: Option<&Path>,
    asking: &str,
) -> Result<usize> {
    let reviews = || count(&scene.lab.audit_log(), asking, "tokenreviews");
    let authorities = authorities.map_or("", |path| path.to_str().unwrap_or_default());
    let before = reviews()?;
    let arguments = [address, method.to_owned(), authorities.to_owned()];
    let said = script(scene, "cam-2", BAD_TOKENS, &arguments).await?;
    let outcomes = said.lines().filter_map(|line| line.split_once(' '));
    let mut refused = 0;
    for (code, count) in outcomes {
        ensure!(
            ["UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"].contains(&code),
            "{said}"
        );
        refused += count.parse::<u32>()?;
    }
    ensure!(refused == 3000, "{said}");
    Ok(reviews()? - before)
}

/// Whoever reaches the operator's port shows it bad tokens.
async fn bad_tokens_for_the_operator(scene: &Scene) -> Result<()> {
    let bundle = [
        "get",
        "configmap",
        "lamina-ca",
        "--namespace",
        "lamina-system",
    ];
    let bundle = [&bundle[..], &["--output", "jsonpath={.data.ca\\.crt}"]].concat();
    let authorities = tempfile::NamedTempFile::new()?;
    std::fs::write(authorities.path(), scene.lab.kubectl(&bundle).await?)?;
    let operator = format!("{}:9000", scene.lab.address("cloud-1")?);
    // The one method that needs no certificate.
    let enroll = (operator, "/lamina.control.v1.Control/Enroll");
    let file = Some(authorities.path());
    let asked = bad_tokens(scene, enroll, file, "lamina-operator").await?;
    ensure!(
        (1..100).contains(&asked),
        "{asked} questions to the API server"
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
    bad_tokens_for_the_operator(scene).await?;
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
    // Its first blocks stay on the entry, which has to have memory for their activations.
    patch(
        r#"{"spec": {"objective": {"requestsPerSecond": 1}, "constraints": {"keepOnEntry": 2}}}"#,
    )
    .await?;
    ready(scene, "mobilenet-v2", "True", "Serving").await?;
    batches(scene).await?;
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

//! Client authentication by keys of Secrets and tokens of ServiceAccounts, with a third-party
//! client, at an agent that is not the model's entry. Each case reinstalls the chart in its mode,
//! and restores it.

use crate::clients::both_ways;
use crate::good::serve;
use crate::hostile::bad_tokens;
use crate::rights::unused;
use anyhow::{Result, ensure};
use lamina_e2e::scene::{AGENT_PORT, Scene, Step, poll};
use std::ffi::OsStr;
use std::time::Duration;

const MODEL: &str = "mobilenet-v2";
/// Another tenant's namespace.
const OTHER: &str = "access-other";
const KEY: &str = "a-key-of-the-namespace-default";
const FOREIGN: &str = "a-key-of-another-namespace";
/// Time for five agents to be replaced, each of which waits until it is no longer needed.
const ROLLOUT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(20);

/// Calls over gRPC and over HTTP with a header; prints a line for each.
const ASK: &str = "
import sys
import numpy
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
grpc_url, http_url, model, header, secret = sys.argv[1:]
headers = {header: secret} if secret else {}
for triton, url in [(over_grpc, grpc_url), (over_http, http_url)]:
    image = triton.InferInput('image', [1, 3, 224, 224], 'FP32')
    image.set_data_from_numpy(numpy.zeros([1, 3, 224, 224], numpy.float32))
    client = triton.InferenceServerClient(url)
    assert client.is_server_live()
    try:
        client.infer(model, [image], headers=headers)
        print('answered')
    except triton.InferenceServerException as error:
        print(error.status(), error.message())
";

/// The answers of `edge-2`'s agent, over gRPC and over HTTP.
async fn ask(scene: &Scene, model: &str, (header, secret): (&str, &str)) -> Result<Vec<String>> {
    let more = [model, header, secret].map(OsStr::new);
    both_ways(scene, "edge-2", ASK, &more).await
}

/// Calls until both answer as expected: agents get updates with a delay.
async fn says(
    scene: &Scene,
    model: &str,
    shown: (&str, &str),
    over_grpc: &str,
    over_http: &str,
) -> Result<()> {
    let what = format!(
        "`{over_grpc}` and `{over_http}` for {model} with {}",
        shown.1
    );
    let said = poll(&what, SOON, async || {
        let said = ask(scene, model, shown).await;
        let said = said.unwrap_or_else(|error| vec![error.to_string(), String::new()]);
        let is_it = said[0].contains(over_grpc) && said[1].contains(over_http);
        Ok(if is_it {
            Step::Done(())
        } else {
            Step::NotYet(said.join("; "))
        })
    });
    Ok(said.await?)
}

/// Installs the chart with `values`, does `work`, and restores it.
pub(crate) async fn with_values(
    scene: &Scene,
    values: &[(&str, &str)],
    work: impl Future<Output = Result<()>>,
) -> Result<()> {
    if scene.model(MODEL).await?.is_none() {
        serve(scene, MODEL).await?;
    }
    scene.install_with(values, ROLLOUT).await?;
    scene.wait_nodes(5, Duration::from_secs(60)).await?;
    scene
        .wait_ready(MODEL, Duration::from_secs(120), &mut |_| ())
        .await?;
    let outcome = work.await;
    scene.install_with(&[], ROLLOUT).await?;
    scene.wait_nodes(5, Duration::from_secs(60)).await?;
    scene
        .wait_ready(MODEL, Duration::from_secs(120), &mut |_| ())
        .await?;
    outcome
}

/// Uses the additional features of this mode.
async fn uses(scene: &Scene, what: &str) -> Result<()> {
    let unused = unused(scene).await?;
    let unused: Vec<_> = unused
        .iter()
        .filter(|r| r.resource.contains(what))
        .collect();
    ensure!(unused.is_empty(), "given, and used by nobody: {unused:#?}");
    Ok(())
}

fn secret(namespace: &str, key: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: v1
kind: Secret
metadata:
  name: access-key
  namespace: {namespace}
  labels: {{serving.lamina.dev/api-key: \"true\"}}
  annotations: {{serving.lamina.dev/requests-per-second: \"1000\"}}
stringData: {{key: {key}}}
"
    )
}

pub(crate) async fn a_key_gets_the_models_of_its_namespace(scene: &Scene) -> Result<()> {
    scene.apply(&secret("default", KEY)).await?;
    scene.apply(&secret(OTHER, FOREIGN)).await?;
    let namespaces = format!("{{default,{OTHER}}}");
    let values = [
        ("auth.mode", "apiKey"),
        ("auth.namespaces", namespaces.as_str()),
    ];
    let work = async {
        let bearer = format!("Bearer {KEY}");
        for (header, shown) in [("x-api-key", KEY), ("authorization", bearer.as_str())] {
            says(scene, MODEL, (header, shown), "answered", "answered").await?;
        }
        says(scene, MODEL, ("x-api-key", ""), "UNAUTHENTICATED", "401").await?;
        let wrong = ("x-api-key", "a-key-that-nobody-has-given");
        says(scene, MODEL, wrong, "UNAUTHENTICATED", "401").await?;
        let full_name = format!("default/{MODEL}");
        let foreign = ("x-api-key", FOREIGN);
        says(scene, &full_name, foreign, "PERMISSION_DENIED", "403").await?;
        says(scene, MODEL, foreign, "NOT_FOUND", "404").await?;
        // While the operator is away, keys remain valid.
        scene
            .kill("operator", None, nix::sys::signal::Signal::SIGKILL)
            .await?;
        says(scene, MODEL, ("x-api-key", KEY), "answered", "answered").await?;
        // Hot: without a restart of any agent.
        let delete = ["delete", "secret", "access-key", "--namespace", "default"];
        scene.lab.kubectl(&delete).await?;
        says(scene, MODEL, ("x-api-key", KEY), "UNAUTHENTICATED", "401").await?;
        uses(scene, "secrets").await
    };
    let outcome = with_values(scene, &values, work).await;
    scene
        .lab
        .kubectl(&["delete", "namespace", OTHER, "--wait=false"])
        .await?;
    outcome
}

const ACCOUNTS: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: access-may, namespace: default}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: access-may-not, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: access-may, namespace: default}
rules:
  - apiGroups: [serving.lamina.dev]
    resources: [dnnmodels]
    resourceNames: [mobilenet-v2]
    verbs: [get]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: access-may, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: access-may}
subjects:
  - {kind: ServiceAccount, name: access-may, namespace: default}
";

async fn token(scene: &Scene, account: &str, audience: &str) -> Result<String> {
    let create = ["create", "token", account, "--audience", audience];
    let token = scene.lab.kubectl(&create).await?;
    Ok(format!("Bearer {}", token.trim()))
}

/// A client floods the agent with bad tokens; one whose token is good loses nothing.
async fn bad_tokens_keep_nobody_out(scene: &Scene, good: (&str, &str)) -> Result<()> {
    let agent = format!("{}:{AGENT_PORT}", scene.lab.address("edge-2")?);
    let infer = (agent, "/inference.GRPCInferenceService/ModelInfer");
    let flood = async {
        let asked = bad_tokens(scene, infer, None, "lamina-agent").await?;
        ensure!(
            (1..200).contains(&asked),
            "{asked} questions to the API server"
        );
        anyhow::Ok(())
    };
    let is_answered = async || {
        let answers = ask(scene, MODEL, good).await?;
        ensure!(answers.iter().all(|a| a == "answered"), "{answers:?}");
        anyhow::Ok(())
    };
    let client = async {
        loop {
            is_answered().await?;
        }
    };
    tokio::select! {
        flooded = flood => flooded?,
        lost = client => return lost,
    }
    is_answered().await
}

pub(crate) async fn a_token_gets_what_its_holder_may_get(scene: &Scene) -> Result<()> {
    scene.apply(ACCOUNTS).await?;
    let work = async {
        let may = token(scene, "access-may", "lamina").await?;
        let may = ("authorization", may.as_str());
        says(scene, MODEL, may, "answered", "answered").await?;
        let may_not = token(scene, "access-may-not", "lamina").await?;
        let may_not = ("authorization", may_not.as_str());
        says(scene, MODEL, may_not, "PERMISSION_DENIED", "403").await?;
        let elsewhere = token(scene, "access-may", "another-audience").await?;
        let elsewhere = ("authorization", elsewhere.as_str());
        says(scene, MODEL, elsewhere, "UNAUTHENTICATED", "401").await?;
        uses(scene, "reviews").await?;
        bad_tokens_keep_nobody_out(scene, may).await?;
        says(
            scene,
            MODEL,
            ("authorization", ""),
            "UNAUTHENTICATED",
            "401",
        )
        .await?;
        // While the API server is away, admitted clients go on.
        scene.api_server_away(true)?;
        tokio::time::sleep(Duration::from_secs(65)).await;
        let outcome = says(scene, MODEL, may, "answered", "answered").await;
        scene.api_server_away(false)?;
        outcome
    };
    with_values(scene, &[("auth.mode", "token")], work).await
}

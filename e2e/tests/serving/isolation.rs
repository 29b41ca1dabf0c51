//! Models that harm their host once a request triggers it: they share hosts, and at first a worker,
//! with a good model whose clients notice nothing.

use crate::faults::{all_answered, load};
use crate::good::serve;
use anyhow::{Context, Result, ensure};
use lamina_e2e::scene::redeploy;
use lamina_e2e::scene::{FILE_PORT, Scene};
use std::path::Path;
use std::time::Duration;

const EXPORT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../node-agent/tests/fixtures/crashing.py"
);
/// Above this value the models do harm.
const HARMFUL: f32 = 2000.0;

/// One request filled with `value`; prints the answer's first number or the error.
const ASK: &str = "
import sys
import numpy
import tritonclient.grpc as triton
url, model, value = sys.argv[1:]
x = triton.InferInput('x', [1, 8], 'FP32')
x.set_data_from_numpy(numpy.full([1, 8], float(value), numpy.float32))
try:
    result = triton.InferenceServerClient(url).infer(model, [x], client_timeout=60)
    print(result.as_numpy(result.get_response().outputs[0].name).flat[0])
except triton.InferenceServerException as error:
    print('refused:', error.message())
";

/// Two thousand requests at once, over eight connections; prints how many had which outcome.
const FLOOD: &str = "
import asyncio, collections, sys
import grpc
import numpy
from tritonclient.grpc import service_pb2
url, model = sys.argv[1:]
request = service_pb2.ModelInferRequest(model_name=model)
request.inputs.add(name='x', datatype='FP32', shape=[1, 8])
request.raw_input_contents.append(numpy.ones([1, 8], numpy.float32).tobytes())
request = request.SerializeToString()
async def main():
    said = collections.Counter()
    own = [('grpc.use_local_subchannel_pool', 1)]
    channels = [grpc.aio.insecure_channel(url, own) for _ in range(8)]
    async def ask(n):
        infer = channels[n % 8].unary_unary('/inference.GRPCInferenceService/ModelInfer')
        try:
            await infer(request, timeout=60)
            said['OK'] += 1
        except grpc.RpcError as error:
            said[error.code().name] += 1
    await asyncio.gather(*(ask(n) for n in range(2000)))
    for code, count in said.items():
        print(code, count)
asyncio.run(main())
";

/// A harmful model that is active on the entry of the good one.
struct Harmful<'a> {
    scene: &'a Scene,
    name: &'static str,
}

impl<'a> Harmful<'a> {
    async fn serve(scene: &'a Scene, name: &'static str) -> Result<Self> {
        if scene.model("mobilenet-v2").await?.is_none() {
            serve(scene, "mobilenet-v2").await?;
        }
        let folder = tempfile::tempdir()?;
        python(&[Path::new(EXPORT), folder.path()]).await?;
        let file = format!("{name}.pt");
        std::fs::copy(folder.path().join(&file), scene.models.join(&file))?;
        let manifest = format!(
            "apiVersion: serving.lamina.dev/v1alpha1
kind: DnnModel
metadata: {{name: {name}, namespace: default}}
spec:
  source: {{uri: http://{}:{FILE_PORT}/{file}}}
  inputs:
    - {{name: x, datatype: FP32, shape: [1, 8], range: {{min: 0, max: 1}}}}
  entry: {{nodeSelector: {{kubernetes.io/hostname: cam-1}}}}
",
            scene.lab.address("cloud-1")?
        );
        scene.apply(&manifest).await?;
        scene
            .wait_ready(name, Duration::from_secs(120), &mut |_| ())
            .await?;
        Ok(Self { scene, name })
    }

    async fn ask(&self, value: f32) -> Result<String> {
        self.client(ASK, &[&value.to_string()]).await
    }

    /// What a client of the model says.
    async fn client(&self, script: &str, more: &[&str]) -> Result<String> {
        let python = std::env::var("LAMINA_PYTHON")?;
        let lab = &self.scene.lab;
        let url = format!("{}:8001", lab.address("cam-1")?);
        let output = lab
            .command_without_limits("cam-1", Path::new(&python))?
            .args(["-W", "ignore", "-c", script, &url, self.name])
            .args(more)
            .output()
            .await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{errors}");
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Each of very many requests is answered, or refused because there are too many.
    async fn is_flooded(&self) -> Result<()> {
        let said = self.client(FLOOD, &[]).await?;
        let mut count = 0;
        for (code, of_code) in said.lines().filter_map(|line| line.split_once(' ')) {
            ensure!(["OK", "RESOURCE_EXHAUSTED"].contains(&code), "{said}");
            count += of_code.parse::<u32>()?;
        }
        ensure!(count == 2000 && said.contains("OK"), "{said}");
        Ok(())
    }

    /// Triggers the harm and expects the error, then sends ordinary requests.
    async fn harms(&self, wanted: &str) -> Result<()> {
        let said = self.ask(HARMFUL).await?;
        ensure!(said.contains(wanted), "{}: {said}", self.name);
        let said = self.ask(1.0).await?;
        ensure!(said.parse::<f32>().is_ok(), "{}: {said}", self.name);
        Ok(())
    }

    /// An Event must report a crash with this cause.
    async fn is_told(&self, cause: &str) -> Result<()> {
        for _ in 0..100 {
            let events = self.scene.events().await?;
            let is_it = |(reason, note): &(String, String)| {
                reason == "EngineCrashed" && note.contains(cause)
            };
            if events.iter().any(is_it) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::bail!("no Event says that {} crashed: {cause}", self.name)
    }

    async fn delete(self) -> Result<()> {
        let lab = &self.scene.lab;
        lab.kubectl(&["delete", "dnn", self.name]).await?;
        Ok(())
    }
}

async fn python(arguments: &[&Path]) -> Result<()> {
    let made = tokio::process::Command::new(std::env::var("LAMINA_PYTHON")?)
        .args(["-W", "ignore"])
        .args(arguments)
        .output()
        .await
        .context("no Python")?;
    ensure!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    Ok(())
}

pub(crate) async fn a_model_that_is_flooded_and_crashes_costs_others_nothing(
    scene: &Scene,
) -> Result<()> {
    let wild = Harmful::serve(scene, "wild").await?;
    let client = redeploy::start(scene, &load(4.0)).await?;
    wild.is_flooded().await?;
    for _ in 0..2 {
        wild.harms("crashes on this request: SIGSEGV").await?;
    }
    wild.is_told("SIGSEGV").await?;
    all_answered(client).await?;
    wild.delete().await
}

pub(crate) async fn a_model_that_never_ends_costs_others_nothing(scene: &Scene) -> Result<()> {
    let endless = Harmful::serve(scene, "endless").await?;
    let client = redeploy::start(scene, &load(4.0)).await?;
    endless.harms("did not end within").await?;
    endless.is_told("did not end within").await?;
    all_answered(client).await?;
    endless.delete().await
}

pub(crate) async fn a_model_that_takes_all_memory_costs_others_nothing(
    scene: &Scene,
) -> Result<()> {
    let greedy = Harmful::serve(scene, "greedy").await?;
    let client = redeploy::start(scene, &load(4.0)).await?;
    greedy.harms("out of memory").await?;
    all_answered(client).await?;
    greedy.delete().await
}

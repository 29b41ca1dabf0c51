//! Models that cannot be served: each reports why, and nothing else is affected.

use crate::good::{photographs, serve};
use anyhow::{Context, Result, ensure};
use lamina_e2e::scene::{FILE_PORT, Scene};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// A manifest named `bad` with these changes to a good one.
struct Bad<'a> {
    file: &'a str,
    sha256: Option<String>,
    shape: &'a str,
    entry: &'a str,
    more: &'a str,
}

impl Default for Bad<'_> {
    fn default() -> Self {
        Self {
            file: "resnet18.pt",
            sha256: None,
            shape: "[-1, 3, 224, 224]",
            entry: "cam-2",
            more: "",
        }
    }
}

impl Bad<'_> {
    fn manifest(&self, scene: &Scene) -> Result<String> {
        let sha = self
            .sha256
            .as_ref()
            .map(|s| format!("\n    sha256: '{s}'"))
            .unwrap_or_default();
        Ok(format!(
            "apiVersion: serving.lamina.dev/v1alpha1
kind: DnnModel
metadata: {{name: bad, namespace: default}}
spec:
  source:
    uri: http://{}:{FILE_PORT}/{}{sha}
  inputs:
    - {{name: image, datatype: FP32, shape: {}, range: {{min: -2.2, max: 2.7}}}}
  entry: {{nodeSelector: {{kubernetes.io/hostname: {}}}}}
{}",
            scene.lab.address("cloud-1")?,
            self.file,
            self.shape,
            self.entry,
            self.more
        ))
    }

    /// Applies it and expects Ready=False with `reason`; returns the message.
    async fn refused(&self, scene: &Scene, reason: &str) -> Result<String> {
        // If the case runs alone, no model is ready.
        if scene.model("mobilenet-v2").await?.is_none() {
            serve(scene, "mobilenet-v2").await?;
        }
        scene.apply(&self.manifest(scene)?).await?;
        let message = scene
            .wait_condition("bad", "Ready", "False", reason, PATIENCE)
            .await?;
        let seen = async {
            for _ in 0..50 {
                let events = scene.events().await?;
                if events.iter().any(|(r, _)| r == reason) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            anyhow::bail!("no event with reason {reason}")
        };
        seen.await?;
        scene.lab.kubectl(&["delete", "dnn", "bad"]).await?;
        // Active models are not affected.
        photographs(scene, "cam-1", "mobilenet-v2").await?;
        Ok(message)
    }
}

fn names(message: &str, wanted: &[&str]) -> Result<()> {
    for word in wanted {
        ensure!(message.contains(word), "lacks `{word}`: {message}");
    }
    Ok(())
}

fn write(folder: &Path, name: &str, content: &[u8]) -> Result<()> {
    std::fs::write(folder.join(name), content).with_context(|| name.to_owned())
}

pub(crate) async fn missing_source(scene: &Scene) -> Result<()> {
    let bad = Bad {
        file: "nowhere.pt",
        ..Bad::default()
    };
    names(
        &bad.refused(scene, "FetchFailed").await?,
        &["nowhere.pt", "404"],
    )
}

pub(crate) async fn wrong_hash(scene: &Scene) -> Result<()> {
    let bad = Bad {
        sha256: Some("0".repeat(64)),
        ..Bad::default()
    };
    names(
        &bad.refused(scene, "ChecksumMismatch").await?,
        &["spec.source.sha256"],
    )
}

pub(crate) async fn no_torchscript(scene: &Scene) -> Result<()> {
    write(&scene.models, "text.pt", b"this is not a model\n")?;
    let bad = Bad {
        file: "text.pt",
        ..Bad::default()
    };
    names(&bad.refused(scene, "InvalidModel").await?, &["TorchScript"])
}

pub(crate) async fn inputs_that_do_not_fit(scene: &Scene) -> Result<()> {
    let bad = Bad {
        shape: "[-1, 4, 224, 224]",
        ..Bad::default()
    };
    names(&bad.refused(scene, "InputMismatch").await?, &["image"])
}

/// One branch over everything, so it cannot be cut.
const WHOLE: &str = "
import sys, torch
class Whole(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.sum() > 0:
            return torch.nn.functional.adaptive_avg_pool2d(image, 1).flatten(1)
        return torch.nn.functional.adaptive_max_pool2d(image, 1).flatten(1)
torch.jit.save(torch.jit.script(Whole()), sys.argv[1])
";

pub(crate) async fn uncuttable_model_is_served_whole(scene: &Scene) -> Result<()> {
    let target = scene.models.join("whole.pt");
    let python = std::env::var("LAMINA_PYTHON")?;
    // TorchScript reads the source, so it must be in a file.
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("whole.py");
    std::fs::write(&source, WHOLE)?;
    let made = tokio::process::Command::new(python)
        .args(["-W", "ignore"])
        .arg(&source)
        .arg(&target)
        .output()
        .await?;
    ensure!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let bad = Bad {
        file: "whole.pt",
        ..Bad::default()
    };
    scene.apply(&bad.manifest(scene)?).await?;
    scene
        .wait_ready("bad", Duration::from_secs(120), &mut |_| ())
        .await?;
    let profile = scene
        .model("bad")
        .await?
        .and_then(|m| m.status)
        .and_then(|s| s.profile)
        .context("no profile")?;
    ensure!(
        profile.blocks == 1 && profile.rung == "whole",
        "{profile:?}"
    );
    ensure!(
        profile.rung_reason.is_some_and(|r| !r.is_empty()),
        "no reason"
    );
    scene.lab.kubectl(&["delete", "dnn", "bad"]).await?;
    Ok(())
}

pub(crate) async fn no_entry_node(scene: &Scene) -> Result<()> {
    let bad = Bad {
        entry: "cam-9",
        ..Bad::default()
    };
    names(&bad.refused(scene, "NoEntryNode").await?, &["cam-9"])
}

pub(crate) async fn unknown_strategy(scene: &Scene) -> Result<()> {
    let bad = Bad {
        more: "  strategy: {name: oracle}\n",
        ..Bad::default()
    };
    names(
        &bad.refused(scene, "InvalidSpec").await?,
        &["oracle", "optimal", "cloud-only"],
    )
}

pub(crate) async fn hosts_too_small(scene: &Scene) -> Result<()> {
    let limit = |tier: &str| format!("      - {{tier: {tier}, limit: 100k}}\n");
    let more = format!(
        "  constraints:\n    sliceMemory:\n{}{}{}",
        limit("device"),
        limit("edge"),
        limit("cloud")
    );
    let bad = Bad {
        more: &more,
        ..Bad::default()
    };
    names(
        &bad.refused(scene, "NoFeasiblePlacement").await?,
        &["0/5 nodes can host blocks"],
    )
}

pub(crate) async fn a_broken_update_leaves_the_last_good_one_serving(scene: &Scene) -> Result<()> {
    let good = scene.example("mobilenet-v2")?;
    scene
        .apply(&good.replace("mobilenet-v2.pt", "nowhere.pt"))
        .await?;
    let message = scene
        .wait_condition("mobilenet-v2", "Fetched", "False", "FetchFailed", PATIENCE)
        .await?;
    names(&message, &["nowhere.pt"])?;
    photographs(scene, "cam-1", "mobilenet-v2").await?;
    scene.apply(&good).await?;
    scene
        .wait_ready("mobilenet-v2", PATIENCE, &mut |_| ())
        .await?;
    photographs(scene, "cam-1", "mobilenet-v2").await?;
    Ok(())
}

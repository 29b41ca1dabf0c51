//! Validation of manifests by the API server, before the operator sees them.

use anyhow::{Context, Result, ensure};
use lamina_e2e::scene::{Scene, objects};

const BAD: &str = "
apiVersion: serving.lamina.dev/v1alpha1
kind: DnnModel
metadata: {name: bad, namespace: default}
spec:
  source: {uri: 'ftp://host/model.pt', sha256: abc}
  inputs:
    - {name: image, datatype: FP32, shape: [-1, 0], range: {min: 2, max: 1}}
  entry: {nodeSelector: {}}
  objective: {requestsPerSecond: -1}
  constraints:
    sliceMemory: [{tier: device, limit: 8MB}]
    pins: [{first: 3, last: 1, node: cam-1}]
";

pub(crate) async fn every_mistake_is_named(scene: &Scene) -> Result<()> {
    let Err(error) = scene.apply(BAD).await else {
        anyhow::bail!("the API server took a manifest full of mistakes");
    };
    let said = format!("{:?}", anyhow::Error::from(error));
    for wanted in [
        "the uri must start with https://, http://, s3://",
        "sha256 must be 64 lower-case hexadecimal digits",
        "each dimension must be at least 1, -1 (any batch, first) or NAME:MIN..MAX",
        "range.min must not be above range.max",
        "name at least one label",
        "requestsPerSecond must be above 0",
        "limit must be a quantity of bytes such as 8M or 64Mi",
        "first must not be above last",
    ] {
        ensure!(said.contains(wanted), "lacks `{wanted}`: {said}");
    }
    Ok(())
}

pub(crate) async fn explain_and_columns(scene: &Scene) -> Result<()> {
    for kind in ["dnnmodels", "computenodes", "placements"] {
        for part in ["spec", "status"] {
            let text = scene
                .lab
                .kubectl(&["explain", &format!("{kind}.{part}"), "--recursive"])
                .await?;
            ensure!(text.contains("FIELDS:"), "{kind}.{part}: {text}");
        }
    }
    let all = scene.lab.kubectl(&["get", "lamina"]).await?;
    ensure!(
        all.contains("computenode.serving.lamina.dev/cam-1"),
        "{all}"
    );
    let nodes = scene.lab.kubectl(&["get", "cnode"]).await?;
    let header = nodes.lines().next().context("no header")?;
    let columns: Vec<&str> = header.split_whitespace().collect();
    let wanted = [
        "NAME", "TIER", "READY", "GFLOPS", "MEM-FREE", "SLICES", "HELD", "AGE",
    ];
    ensure!(columns == wanted, "{header}");
    let camera = nodes
        .lines()
        .find(|l| l.starts_with("cam-1 "))
        .context("no cam-1")?;
    ensure!(
        camera.contains("device") && camera.contains("True"),
        "{camera}"
    );
    Ok(())
}

/// The chart's admission policy limits each agent to its own objects.
pub(crate) async fn agents_write_only_their_own_node(scene: &Scene) -> Result<()> {
    // Written as by agents: without reading first, which they may not.
    let dir = tempfile::tempdir()?;
    let patch = async |node: &str, own: &str| {
        let file = dir.path().join("status.yaml");
        let text = format!(
            "apiVersion: serving.lamina.dev/v1alpha1\nkind: ComputeNode\n\
             metadata: {{name: {node}}}\nstatus: {{agentVersion: forged}}\n"
        );
        std::fs::write(&file, text)?;
        let said = scene
            .lab
            .kubectl(&[
                "apply",
                "--server-side",
                "--force-conflicts",
                "--subresource=status",
                "--dry-run=server",
                &format!("--filename={}", file.display()),
                "--as=system:serviceaccount:lamina-system:lamina-agent",
                &format!("--as-user-extra=authentication.kubernetes.io/node-name={own}"),
            ])
            .await?;
        anyhow::Ok(said)
    };
    patch("cam-1", "cam-1")
        .await
        .context("an agent may write its own node")?;
    let Err(error) = patch("cam-1", "edge-1").await else {
        anyhow::bail!("the agent of edge-1 could write cam-1");
    };
    let said = format!("{error:?}");
    ensure!(
        said.contains("only the ComputeNode of its own node"),
        "{said}"
    );
    Ok(())
}

/// A user with write access to every object of a namespace still cannot change the operator's
/// record of the prepared manifest or the active blocks. A model is active by now.
pub(crate) async fn what_the_operator_decided_is_written_by_it_alone(scene: &Scene) -> Result<()> {
    let placement = objects::placement(&scene.lab.client(), "mobilenet-v2").await?;
    let placement = placement.context("no Placement of mobilenet-v2")?;
    let name = placement.metadata.name.as_deref().context("no name")?;
    let forged = "0".repeat(64);
    let patch = async |kind: &str, name: &str, subresource: &[&str], patch: &str| {
        let patch = format!("--patch={patch}");
        let fixed = [
            "patch",
            kind,
            name,
            "--type=merge",
            "--dry-run=server",
            &patch,
        ];
        scene.lab.kubectl(&[&fixed[..], subresource].concat()).await
    };
    let (status, whole): (&[&str], &[&str]) = (&["--subresource=status"], &[]);
    let profile = format!(r#"{{"status": {{"profile": {{"manifest": "{forged}"}}}}}}"#);
    let active = format!(r#"{{"status": {{"active": {{"manifest": "{forged}"}}}}}}"#);
    let plan = format!(r#"{{"spec": {{"plan": {{"manifest": "{forged}"}}}}}}"#);
    let cases = [
        ("dnnmodel", "mobilenet-v2", status, profile.as_str()),
        ("placement", name, status, active.as_str()),
        ("placement", name, whole, plan.as_str()),
        (
            "computenode",
            "cam-1",
            whole,
            r#"{"spec": {"tier": "cloud-of-mine"}}"#,
        ),
    ];
    for (kind, name, subresource, change) in cases {
        // As an administrator, whom no role restricts.
        let Err(error) = patch(kind, name, subresource, change).await else {
            anyhow::bail!("anybody may write {kind} {name}: {change}");
        };
        let said = format!("{error:?}");
        ensure!(said.contains("the operator alone writes this"), "{said}");
    }
    let made = "apiVersion: serving.lamina.dev/v1alpha1\nkind: Placement\n\
                metadata: {name: made-up, namespace: default}\n\
                spec: {model: mobilenet-v2, entry: cam-1}\n";
    let Err(error) = scene.apply(made).await else {
        anyhow::bail!("anybody may make a Placement");
    };
    let said = format!("{:?}", anyhow::Error::from(error));
    ensure!(said.contains("the operator alone writes this"), "{said}");
    // What others may need to change, they can: labels, finalizers, owners.
    let label = r#"{"metadata": {"labels": {"seen": "yes"}}}"#;
    patch("placement", name, whole, label).await?;
    patch("computenode", "cam-1", whole, label).await?;
    Ok(())
}

//! `helm test`, in each mode of client authentication.

use crate::changes::{OPERATOR_PLACE, all_rolled_out};
use anyhow::{Context as _, Result, ensure};
use lamina_e2e::scene::SYSTEM;
use lamina_e2e::site::{RELEASE, Site};
use std::time::Instant;

const POD: &str = "lamina-selftest";

pub(crate) async fn passes_without_credentials(site: &mut Site) -> Result<String> {
    passes(site).await
}

/// With its own ServiceAccount's token.
pub(crate) async fn passes_with_a_token(site: &mut Site) -> Result<String> {
    let values = ["--set", OPERATOR_PLACE, "--set", "auth.mode=token"];
    site.install(&values).await?;
    all_rolled_out(site).await?;
    passes(site).await
}

/// With its own key, in the one namespace that has keys.
pub(crate) async fn passes_with_a_key(site: &mut Site) -> Result<String> {
    let values = ["--set", OPERATOR_PLACE, "--set", "auth.mode=apiKey"];
    site.install(&values).await?;
    all_rolled_out(site).await?;
    let told = passes(site).await?;
    let keys = ["get", "secrets", "-n", "default", "-o", "name"];
    let left = site.cluster.kubectl(&keys).await?;
    ensure!(!left.contains(POD), "the key stays: {left}");
    Ok(told)
}

async fn passes(site: &Site) -> Result<String> {
    let begin = Instant::now();
    let test = ["test", RELEASE, "--namespace", SYSTEM, "--timeout=150s"];
    let tested = site.cluster.helm(&test).await;
    let seconds = begin.elapsed().as_secs_f64();
    let log = ["logs", "-n", SYSTEM, POD];
    let log = site.cluster.kubectl(&log).await.unwrap_or_default();
    tested.with_context(|| format!("the pod said:\n{log}"))?;
    ensure!(
        log.contains("the answer is right"),
        "no answer, though helm is content: {log}"
    );
    let models = ["get", "dnnmodels", "-A", "-o", "name"];
    let left = site.cluster.kubectl(&models).await?;
    ensure!(!left.contains("selftest"), "its model stays: {left}");
    Ok(format!("tested in {seconds:.1} s"))
}

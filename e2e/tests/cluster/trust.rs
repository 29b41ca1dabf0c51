//! Certificates with a short lifetime.

use crate::changes::{OPERATOR_PLACE, all_rolled_out, rolled_out};
use anyhow::Result;
use lamina_e2e::scene::SYSTEM;
use lamina_e2e::site::Site;
use std::time::Duration;
use tokio::time::sleep;

/// Lifetime of certificates in these cases, in seconds.
const LIFETIME: u64 = 60;
const SHORT_LIVED: &str = "operator.extraEnv[0].value=60";
const OF_THE_VALUE: &str = "operator.extraEnv[0].name=LAMINA_TLS_CERTIFICATE_SECONDS";

/// Each agent gets more than one certificate while requests flow.
pub(crate) async fn certificates_renewed(site: &mut Site) -> Result<String> {
    let value = ["--set", OF_THE_VALUE, "--set-string", SHORT_LIVED];
    site.install(&[["--set", OPERATOR_PLACE].as_slice(), &value].concat())
        .await?;
    all_rolled_out(site).await?;
    sleep(Duration::from_secs(LIFETIME * 3 / 2)).await;
    Ok(format!("good for {LIFETIME} s"))
}

/// The operator is away for longer than the lifetime of certificates.
pub(crate) async fn certificates_expired(site: &mut Site) -> Result<String> {
    let scale = |replicas| {
        [
            "scale",
            "-n",
            SYSTEM,
            "deployment/lamina-operator",
            replicas,
        ]
    };
    site.cluster.kubectl(&scale("--replicas=0")).await?;
    sleep(Duration::from_secs(LIFETIME * 3 / 2)).await;
    site.cluster.kubectl(&scale("--replicas=1")).await?;
    rolled_out(site, "deployment/lamina-operator").await?;
    Ok(format!("the operator away for {} s", LIFETIME * 3 / 2))
}

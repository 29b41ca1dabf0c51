//! The chart's roles against the audit log of operator and agents: no unneeded right is granted,
//! and no needed one is missing.

use anyhow::{Result, ensure};
use lamina_e2e::rights::{Calls, Right, granted};
use lamina_e2e::scene::Scene;
use std::collections::BTreeSet;

const RELEASE: &str = "lamina";
/// Needed rights that the log does not show or that this run may not use.
const UNSEEN: [(&str, &str, &str); 3] = [
    // Server-side apply is a patch in the log; of a new object it asks for this, too.
    ("create", "serving.lamina.dev", "placements"),
    ("create", "serving.lamina.dev", "computenodes"),
    // Only an Event that recurs is patched.
    ("patch", "events.k8s.io", "events"),
];

fn is_unseen(right: &Right) -> bool {
    let what = (
        right.verb.as_str(),
        right.group.as_str(),
        right.resource.as_str(),
    );
    UNSEEN.contains(&what)
}

/// Rights of the current roles that have not been used so far.
pub(crate) async fn unused(scene: &Scene) -> Result<Vec<Right>> {
    let calls = Calls::read(&scene.lab.audit_log())?;
    let granted = granted(&scene.lab.client(), RELEASE).await?;
    ensure!(!granted.is_empty(), "the release has no roles");
    let unused = granted.difference(&calls.answered);
    Ok(unused.filter(|right| !is_unseen(right)).cloned().collect())
}

pub(crate) async fn every_rule_is_used_and_no_call_is_refused(scene: &Scene) -> Result<()> {
    let unused = unused(scene).await?;
    ensure!(unused.is_empty(), "given, and used by nobody: {unused:#?}");
    let calls = Calls::read(&scene.lab.audit_log())?;
    let granted = granted(&scene.lab.client(), RELEASE).await?;
    // A pod that outlives its roles, while the release is uninstalled or its mode changes, is
    // refused otherwise allowed calls.
    let may_be: BTreeSet<&Right> = granted.iter().chain(&calls.answered).collect();
    let refused = calls.refused.iter().filter(|right| !may_be.contains(right));
    let refused: Vec<&Right> = refused.collect();
    ensure!(refused.is_empty(), "refused: {refused:#?}");
    Ok(())
}

//! The chart's roles against what operator and agents did, as the API server has it: what
//! nobody needs is not given, and nothing that is needed is refused.

use anyhow::{Result, ensure};
use lamina_e2e::rights::{Calls, Right, granted};
use lamina_e2e::scene::Scene;
use std::collections::BTreeSet;

const RELEASE: &str = "lamina";
/// What is needed, though the log does not show it or this run may not have led to it.
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

/// Rights of the present roles that nobody has used so far.
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
    // A pod that outlives its roles while the release is uninstalled or its mode changes is
    // refused what it may do otherwise.
    let may_be: BTreeSet<&Right> = granted.iter().chain(&calls.answered).collect();
    let refused = calls.refused.iter().filter(|right| !may_be.contains(right));
    let refused: Vec<&Right> = refused.collect();
    ensure!(refused.is_empty(), "refused: {refused:#?}");
    Ok(())
}

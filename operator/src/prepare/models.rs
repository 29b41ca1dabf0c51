//! Preparing: from the file that a DnnModel names to a manifest in the store.
//!
//! There is one job per source and inputs. Transient failures are retried, on another host if
//! there is one, after a growing pause; others wait for the spec to change. The active plan
//! keeps serving meanwhile.

use super::{queue, spec};
use crate::state::decision::{Decisions, PrepareNeed, StartPrepare, WaitingPrepare};
use crate::state::ids::{JobId, SecretId};
use crate::state::memory::{ModelMemory, Tries};
use crate::state::preparation::{Preparation, Step};
use crate::state::snapshot::{PrepareView, Snapshot};
use crate::state::wish::ValidModel;
use k8s_openapi::jiff::SignedDuration;
use lamina_crds::conditions::{SERVING, is_true};
use lamina_crds::dnn_model::{ProfileSummary, Progress};
use lamina_crds::quantity::format_bytes;
use lamina_crds::{DnnModel, reasons};
use lamina_model::{Block, Manifest, Rung};
use std::sync::Arc;

/// First pause after a failure; it doubles.
const RETRY_SECONDS: f64 = 5.0;
/// Longest pause.
const RETRY_LIMIT_SECONDS: f64 = 300.0;
/// The largest integer that a status can hold.
const LARGEST_SUM: u64 = (1 << 53) - 1;

/// The next step of preparing and its progress; `valid` is the model, or why its spec is invalid.
pub(crate) fn prepare(
    snapshot: &Snapshot,
    model: &DnnModel,
    valid: &Result<Arc<ValidModel>, String>,
    memory: &mut ModelMemory,
    out: &mut Decisions,
) -> Preparation {
    let valid = match valid {
        Ok(valid) => valid,
        Err(message) => return invalid(model, message.clone()),
    };
    let job = JobId {
        model_uid: valid.id.uid.clone(),
        source: valid.wish.source_hash.clone(),
    };
    if memory.tries.job != job {
        let tries = Tries {
            job: job.clone(),
            ..Tries::default()
        };
        let old = std::mem::replace(&mut memory.tries, tries);
        if old.job != JobId::default() {
            out.forget_prepares.push(old.job);
        }
    }
    if let Some(profile) = accepted(snapshot, model, valid) {
        if let Some(manifest) = snapshot.manifests.get(&profile.manifest) {
            if let Err(e) = spec::check_blocks(&valid.wish, manifest) {
                return invalid(model, e.to_string());
            }
            if snapshot.prepares.contains_key(&job) {
                out.forget_prepares.push(job);
            }
            return Preparation::Ready {
                profile: profile.clone(),
                fresh: false,
            };
        }
        if let Some(waiting) = recovering(snapshot, profile) {
            return waiting;
        }
    }
    work(snapshot, model, valid, memory, out)
}

/// The profile of exactly this source and these inputs. A model once accepted does not change: the
/// same address may have another file tomorrow. For a model that can no longer be read, nothing
/// else is known.
fn accepted<'a>(
    snapshot: &Snapshot,
    model: &'a DnnModel,
    valid: &ValidModel,
) -> Option<&'a ProfileSummary> {
    let profile = model.status.as_ref()?.profile.as_ref()?;
    let is_of_it = profile.wish == valid.wish.source_hash || snapshot.is_unreadable(&valid.id);
    is_of_it.then_some(profile)
}

/// Blocks missing from the store are coming back from agents.
fn recovering(snapshot: &Snapshot, profile: &ProfileSummary) -> Option<Preparation> {
    let is_coming = snapshot.recovering.contains(&profile.manifest);
    (snapshot.is_starting() || is_coming).then(|| Preparation::Working {
        step: Step::Fetching,
        progress: None,
        message: "the store lacks blocks; fetching them from the hosts that hold them".to_owned(),
    })
}

fn invalid(model: &DnnModel, message: String) -> Preparation {
    let failure = model.status.as_ref().and_then(|s| s.last_failure.as_ref());
    let told = failure.is_some_and(|f| f.reason == reasons::INVALID_SPEC && f.message == message);
    Preparation::Failed {
        reason: reasons::INVALID_SPEC,
        message,
        permanent: true,
        fresh: !told,
    }
}

fn work(
    snapshot: &Snapshot,
    model: &DnnModel,
    valid: &ValidModel,
    memory: &mut ModelMemory,
    out: &mut Decisions,
) -> Preparation {
    let job = memory.tries.job.clone();
    match snapshot.prepares.get(&job) {
        Some(PrepareView::Running {
            step,
            done,
            total,
            bytes,
            node,
        }) => Preparation::Working {
            step: Step::of(step),
            progress: progress(*done, *total, *bytes).map(|p| {
                // Storing has its own count within the step that users see.
                let stored = step == "Storing";
                let text = if stored {
                    format!("{} stored", p.text)
                } else {
                    p.text
                };
                Progress { text, ..p }
            }),
            message: format!("{node} prepares the model: {}", step.to_lowercase()),
        },
        Some(PrepareView::Done { node, manifest }) => {
            done(snapshot, valid, memory, node, manifest, out)
        }
        Some(PrepareView::Failed {
            node,
            reason,
            message,
            retryable,
        }) => {
            memory.tries.nodes.insert(node.clone());
            // The message may contain an address with a password.
            let message = &crate::text::without_secrets_in(message);
            failed(
                snapshot,
                memory,
                known_reason(reason),
                message,
                *retryable,
                out,
            )
        }
        Some(PrepareView::Lost { node }) => {
            memory.tries.nodes.insert(node.clone());
            out.forget_prepares.push(job);
            Preparation::Working {
                step: Step::Fetching,
                progress: None,
                message: format!(
                    "{node} was lost while it prepared the model; another host takes over"
                ),
            }
        }
        None => start(snapshot, model, valid, memory, out),
    }
}

fn done(
    snapshot: &Snapshot,
    valid: &ValidModel,
    memory: &mut ModelMemory,
    node: &str,
    digest: &str,
    out: &mut Decisions,
) -> Preparation {
    let Some(manifest) = snapshot.manifests.get(digest) else {
        let message =
            format!("{node} reported the manifest {digest}, which cannot be read from the store");
        memory.tries.nodes.insert(node.to_owned());
        return failed(
            snapshot,
            memory,
            reasons::PREPARE_FAILED,
            &message,
            true,
            out,
        );
    };
    // The spec's blocks are checked once the profile is known.
    Preparation::Ready {
        profile: summary(valid, manifest, digest, node),
        fresh: true,
    }
}

fn failed(
    snapshot: &Snapshot,
    memory: &mut ModelMemory,
    reason: &'static str,
    message: &str,
    retryable: bool,
    out: &mut Decisions,
) -> Preparation {
    let tries = &mut memory.tries;
    let failure = Some((reason.to_owned(), message.to_owned()));
    if !retryable {
        let fresh = tries.failure != failure;
        tries.failure = failure;
        return Preparation::Failed {
            reason,
            message: message.to_owned(),
            permanent: true,
            fresh,
        };
    }
    let pause = RETRY_SECONDS * f64::from(1_u32 << tries.failed.min(10));
    let pause = pause.min(RETRY_LIMIT_SECONDS);
    tries.failed += 1;
    tries.not_before = Some(snapshot.now.plus(pause));
    let seconds = SignedDuration::try_from_secs_f64(pause).unwrap_or_default();
    let at = snapshot.wall + seconds;
    let message = format!("{message}; next attempt at {}", at.strftime("%H:%M:%SZ"));
    tries.failure = Some((reason.to_owned(), message.clone()));
    out.forget_prepares.push(tries.job.clone());
    Preparation::Failed {
        reason,
        message,
        permanent: false,
        fresh: true,
    }
}

fn start(
    snapshot: &Snapshot,
    model: &DnnModel,
    valid: &ValidModel,
    memory: &mut ModelMemory,
    out: &mut Decisions,
) -> Preparation {
    let tries = &memory.tries;
    if let (Some(again), Some((reason, message))) = (tries.not_before, &tries.failure)
        && snapshot.now < again
    {
        return Preparation::Failed {
            reason: known_reason(reason),
            message: message.clone(),
            permanent: false,
            fresh: false,
        };
    }
    let wish = &valid.wish;
    // The file that was accepted, not one that may be there now.
    let known = accepted(snapshot, model, valid).map(|p| p.source.clone());
    let need = match &known {
        Some(_) if serves(model) => PrepareNeed::Lost,
        None if serves(model) => PrepareNeed::Update,
        _ => PrepareNeed::First,
    };
    out.waiting.push(WaitingPrepare {
        need,
        namespace: valid.id.namespace.clone(),
        tried: tries.nodes.clone(),
        job: StartPrepare {
            node: String::new(),
            job: tries.job.clone(),
            uri: wish.uri.clone(),
            sha256: wish.sha256.clone().or(known).unwrap_or_default(),
            inputs_json: serde_json::json!(wish.inputs).to_string(),
            secret: wish.secret.clone().map(|name| SecretId {
                namespace: valid.id.namespace.clone(),
                name,
            }),
            samples: wish.samples.clone(),
        },
    });
    let message = if queue::is_any_able(snapshot) {
        "waiting for a host to prepare the model".to_owned()
    } else if let Some(most) = queue::lacks_memory(snapshot) {
        format!(
            "waiting for a host with memory to prepare the model: no host has more than {} free",
            format_bytes(most)
        )
    } else {
        let connected = snapshot.live.values().filter(|n| n.alive).count();
        format!(
            "waiting for an agent that can prepare the model: {connected}/{} connected",
            snapshot.compute_nodes.len()
        )
    };
    Preparation::Working {
        step: Step::Fetching,
        progress: None,
        message,
    }
}

fn serves(model: &DnnModel) -> bool {
    let status = model.status.as_ref();
    status.is_some_and(|s| is_true(&s.conditions, SERVING))
}

fn known_reason(reason: &str) -> &'static str {
    [
        reasons::FETCH_FAILED,
        reasons::CHECKSUM_MISMATCH,
        reasons::INVALID_MODEL,
        reasons::INPUT_MISMATCH,
    ]
    .into_iter()
    .find(|r| *r == reason)
    .unwrap_or(reasons::PREPARE_FAILED)
}

fn progress(done: u64, total: u64, bytes: bool) -> Option<Progress> {
    if done == 0 && total == 0 {
        return None;
    }
    let text = match (bytes, total) {
        (true, 0) => format_bytes(done),
        (true, _) => format!("{}/{}", format_bytes(done), format_bytes(total)),
        (false, 0) => done.to_string(),
        (false, _) => format!("{done}/{total}"),
    };
    Some(Progress { done, total, text })
}

fn summary(valid: &ValidModel, manifest: &Manifest, digest: &str, node: &str) -> ProfileSummary {
    // A host reported these sizes: any sum must fit the status.
    let sum = |of: fn(&Block) -> u64| {
        let all = manifest.blocks.iter().map(of);
        all.fold(0, u64::saturating_add).min(LARGEST_SUM)
    };
    // Weights shared by several blocks count once for the model.
    let of_blocks = sum(|b| b.weight_bytes);
    let weight_bytes = manifest
        .weight_bytes
        .map_or(of_blocks, |once| once.min(of_blocks));
    ProfileSummary {
        source: manifest.source.to_string(),
        manifest: digest.to_owned(),
        wish: valid.wish.source_hash.clone(),
        generation: valid.generation,
        blocks: u32::try_from(manifest.blocks.len()).unwrap_or(u32::MAX),
        rung: rung(manifest.rung).to_owned(),
        rung_reason: manifest.rung_reason.clone(),
        size: format_bytes(weight_bytes),
        weight_bytes,
        flops: sum(|b| b.flops),
        node: node.to_owned(),
        max_abs_diff: manifest.check.max_abs_diff,
    }
}

const fn rung(rung: Rung) -> &'static str {
    match rung {
        Rung::Direct => "direct",
        Rung::Typed => "typed",
        Rung::Retraced => "retraced",
        Rung::Whole => "whole",
    }
}

#[cfg(test)]
mod tests;

//! Preparing: from the file that a DnnModel names to a manifest in the store.
//!
//! One job per source and inputs. Failures that may pass are tried again, on
//! another host where there is one, after a growing pause; others wait for the
//! spec to change. What served before goes on serving all the while.

use super::decision::{Decisions, StartPrepare};
use super::memory::{Memory, ModelMemory, Tries};
use super::snapshot::{PrepareView, Snapshot};
use super::spec;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lamina_crds::conditions::{BENCHMARKED, is_true};
use lamina_crds::dnn_model::{ProfileSummary, Progress};
use lamina_crds::quantity::format_bytes;
use lamina_crds::{DnnModel, reasons};
use lamina_model::{Manifest, Rung};
use std::sync::Arc;

/// First pause after a failure; it doubles.
const RETRY_SECONDS: i64 = 5;
/// Longest pause.
const RETRY_LIMIT_SECONDS: i64 = 300;
/// A host with less free memory prepares only where no other can.
const PREPARE_MEMORY_BYTES: u64 = 512 << 20;

/// How far preparing is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Preparation {
    /// The manifest answers the spec and every block is in the store.
    Ready {
        /// What it found.
        profile: ProfileSummary,
        /// It was found just now.
        fresh: bool,
    },
    /// A step is at work.
    Working {
        /// The step.
        step: Step,
        /// How far it is.
        progress: Option<Progress>,
        /// What is awaited, for people.
        message: String,
    },
    /// It failed.
    Failed {
        /// A reason of [`reasons`].
        reason: &'static str,
        /// What happened and what to do.
        message: String,
        /// Only another spec can help.
        permanent: bool,
        /// It failed just now.
        fresh: bool,
    },
}

/// A step of preparing, as the columns show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// The file is on its way.
    Fetching,
    /// It is cut, and the cuts are checked.
    Slicing,
    /// Blocks are measured and stored.
    Profiling,
}

impl Step {
    fn of(agents_word: &str) -> Self {
        match agents_word {
            "Slicing" | "Checking" => Self::Slicing,
            "Profiling" | "Storing" => Self::Profiling,
            _ => Self::Fetching,
        }
    }

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fetching => "Fetching",
            Self::Slicing => "Slicing",
            Self::Profiling => "Profiling",
        }
    }
}

/// What preparing is about to do and how far it is.
pub(crate) fn prepare(
    snapshot: &Snapshot,
    model: &DnnModel,
    memory: &mut Memory,
    out: &mut Decisions,
) -> Preparation {
    let uid = model.metadata.uid.clone().unwrap_or_default();
    let memory = memory.models.entry(uid.clone()).or_default();
    if let Err(e) = spec::check(&model.spec, &snapshot.plugins) {
        return invalid(model, e.to_string());
    }
    let hash = spec::source_hash(&model.spec);
    let job = format!("{uid}/{hash}");
    if memory.tries.job != job {
        let old = std::mem::replace(
            &mut memory.tries,
            Tries {
                job: job.clone(),
                ..Tries::default()
            },
        );
        if !old.job.is_empty() {
            out.forget_prepares.push(old.job);
        }
    }
    if let Some((profile, manifest)) = present(snapshot, model, memory, &hash) {
        if let Err(e) = spec::check_blocks(&model.spec, &manifest) {
            return invalid(model, e.to_string());
        }
        if snapshot.prepares.contains_key(&job) {
            out.forget_prepares.push(job);
        }
        return Preparation::Ready {
            profile,
            fresh: false,
        };
    }
    work(snapshot, model, memory, &hash, out)
}

/// UID of the model that a job is for.
pub(crate) fn owner_of(job: &str) -> &str {
    job.split('/').next().unwrap_or_default()
}

fn invalid(model: &DnnModel, message: String) -> Preparation {
    let told = model
        .status
        .as_ref()
        .and_then(|s| s.last_failure.as_ref())
        .is_some_and(|f| f.reason == reasons::INVALID_SPEC && f.message == message);
    Preparation::Failed {
        reason: reasons::INVALID_SPEC,
        message,
        permanent: true,
        fresh: !told,
    }
}

/// The profile in status, if it answers this spec and its blocks are in the store.
fn present(
    snapshot: &Snapshot,
    model: &DnnModel,
    memory: &mut ModelMemory,
    hash: &str,
) -> Option<(ProfileSummary, Arc<Manifest>)> {
    let profile = model.status.as_ref()?.profile.as_ref()?;
    let manifest = snapshot.manifests.get(&profile.manifest)?;
    let generation = model.metadata.generation.unwrap_or_default();
    if memory.profiled.is_none()
        && (profile.generation == generation
            || spec::surely_of(&model.spec, &profile.source, manifest))
    {
        memory.profiled = Some((hash.to_owned(), profile.manifest.clone()));
    }
    let (of, digest) = memory.profiled.as_ref()?;
    if of != hash || *digest != profile.manifest {
        return None;
    }
    let profile = ProfileSummary {
        generation,
        ..profile.clone()
    };
    Some((profile, Arc::clone(manifest)))
}

fn work(
    snapshot: &Snapshot,
    model: &DnnModel,
    memory: &mut ModelMemory,
    hash: &str,
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
                // Storing counts anew within the step that people see.
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
            done(snapshot, model, memory, hash, node, manifest, out)
        }
        Some(PrepareView::Failed {
            node,
            reason,
            message,
            retryable,
        }) => {
            memory.tries.nodes.insert(node.clone());
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
        None => start(snapshot, model, memory, out),
    }
}

fn done(
    snapshot: &Snapshot,
    model: &DnnModel,
    memory: &mut ModelMemory,
    hash: &str,
    node: &str,
    digest: &str,
    out: &mut Decisions,
) -> Preparation {
    let Some(manifest) = snapshot.manifests.get(digest) else {
        let message = format!("{node} reported the manifest {digest}, which the store cannot give");
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
    if let Err(e) = spec::check_blocks(&model.spec, manifest) {
        return invalid(model, e.to_string());
    }
    memory.profiled = Some((hash.to_owned(), digest.to_owned()));
    Preparation::Ready {
        profile: summary(model, manifest, digest, node),
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
    let pause = RETRY_LIMIT_SECONDS.min(RETRY_SECONDS << tries.failed.min(10));
    tries.failed += 1;
    let again = snapshot.now + SignedDuration::from_secs(pause);
    tries.not_before = Some(again);
    tries.failure = failure;
    out.forget_prepares.push(tries.job.clone());
    Preparation::Failed {
        reason,
        message: format!("{message}; {}", next_try(again)),
        permanent: false,
        fresh: true,
    }
}

fn next_try(at: Timestamp) -> String {
    format!("next try at {}", at.strftime("%H:%M:%SZ"))
}

fn start(
    snapshot: &Snapshot,
    model: &DnnModel,
    memory: &mut ModelMemory,
    out: &mut Decisions,
) -> Preparation {
    let tries = &mut memory.tries;
    if let (Some(again), Some((reason, message))) = (tries.not_before, &tries.failure)
        && snapshot.now < again
    {
        return Preparation::Failed {
            reason: known_reason(reason),
            message: format!("{message}; {}", next_try(again)),
            permanent: false,
            fresh: false,
        };
    }
    let Some(node) = preparer(snapshot, tries) else {
        let connected = snapshot.live.values().filter(|n| n.alive).count();
        return Preparation::Working {
            step: Step::Fetching,
            progress: None,
            message: format!(
                "waiting for an agent that can prepare the model: {connected}/{} connected",
                snapshot.compute_nodes.len()
            ),
        };
    };
    let inputs = spec::inputs(&model.spec);
    out.prepares.push(StartPrepare {
        node: node.clone(),
        job: tries.job.clone(),
        uri: model.spec.source.uri.clone(),
        sha256: model.spec.source.sha256.clone().unwrap_or_default(),
        inputs_json: serde_json::json!(inputs).to_string(),
    });
    Preparation::Working {
        step: Step::Fetching,
        progress: None,
        message: format!("{node} prepares the model"),
    }
}

/// The fastest connected host with enough free memory that has not tried yet;
/// once all have, the fastest.
fn preparer(snapshot: &Snapshot, tries: &mut Tries) -> Option<String> {
    let mut able: Vec<(bool, bool, f64, &str)> = snapshot
        .compute_nodes
        .iter()
        .filter_map(|(name, node)| {
            let live = snapshot.live.get(name).filter(|l| l.alive)?;
            let status = node.status.as_ref()?;
            let gflops = status.capacity.as_ref()?.gflops;
            is_true(&status.conditions, BENCHMARKED).then_some((
                !tries.nodes.contains(name),
                live.memory_free_bytes >= PREPARE_MEMORY_BYTES,
                gflops,
                name.as_str(),
            ))
        })
        .collect();
    able.sort_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)).then(b.2.total_cmp(&a.2)));
    able.first().map(|(.., name)| (*name).to_owned())
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

fn summary(model: &DnnModel, manifest: &Manifest, digest: &str, node: &str) -> ProfileSummary {
    let weight_bytes = manifest.blocks.iter().map(|b| b.weight_bytes).sum();
    ProfileSummary {
        source: manifest.source.to_string(),
        manifest: digest.to_owned(),
        generation: model.metadata.generation.unwrap_or_default(),
        blocks: u32::try_from(manifest.blocks.len()).unwrap_or(u32::MAX),
        rung: rung(manifest.rung).to_owned(),
        rung_reason: manifest.rung_reason.clone(),
        size: format_bytes(weight_bytes),
        weight_bytes,
        flops: manifest.blocks.iter().map(|b| b.flops).sum(),
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

use crate::as_written;
use crate::bind;
use crate::check::{self, Faults, fails};
use crate::cuts;
use crate::draw;
use crate::encodings;
use crate::exits;
use crate::ffi::{self, Analysis, Block, Cost, Source, TorchError, Watched};
use crate::forward::torch_tensors;
use crate::metadata::{self, Metadata};
use crate::operators::{is_allowed, is_asynchronous};
use crate::profile::{self, BlockProfile};
use crate::progress::{Progress, Report, count};
use crate::retrace;
use crate::rows;
use crate::rungs::{FEW, Plan, Step, Trial, WELL};
use crate::sized::Sizes;
use crate::{PrepareError, store};
use lamina_model::{
    Block as ManifestBlock, BlockKind, BoundaryCheck, FixedArgument, InputSpec, Manifest, Probe,
    Rung, TORCH_SCRIPT_VERSION, Tensor, ValueSpec,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// How often a rung is retried without the cuts found to be bad.
const MOST_BARRINGS: usize = 4;

/// The shim's error for a file without one.
const NO_FORWARD: &str = "the model has no `forward`";

/// How to prepare a model.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// The model's inputs in the order of `forward`, with the user's names. A number is an input of
    /// one element, a tuple of tensors is one input each. Trailing arguments with a default may be
    /// omitted.
    pub inputs: Vec<InputSpec>,
    /// Fixed arguments, by name.
    pub fixed: Vec<FixedArgument>,
    /// The user's own requests, of batch 1, as [`lamina_model::samples`] reads them: the first two
    /// replace random ones, and on the others the chain must also match the model. Empty if all are
    /// random.
    pub samples: Vec<Vec<Tensor>>,
    /// By the place of an input, what it is in the two requests that are drawn where there are
    /// no samples: what it looks like is known better than its range tells. Of batch 1.
    pub known: BTreeMap<usize, [Tensor; 2]>,
    /// Timed runs per measured graph, after warm-up; at least 3 are made. With 0 nothing is measured,
    /// and the manifest's times are FLOPs at the speed `prepared_gflops`.
    pub timing_runs: u32,
    /// Approximate time for profiling; runs are dropped, never blocks.
    pub profile_budget: Duration,
    /// [`crate::ReferenceSpeed::peak_gflops`] of this host, written into the manifest.
    pub prepared_gflops: f64,
    /// Seed of the random inputs for the checks and the probe.
    pub seed: u64,
}

/// Slices `model` into `out_dir` (created if missing): one `<digest>.pt` per block
/// and the probe as `<digest>.safetensors`. The same model gives the same bytes.
/// Runs on one thread.
///
/// Tries the rungs of [`Rung`] from the best down. The chain of the written blocks
/// is compared with the whole model, boundary value for boundary value, bit for
/// bit, on two requests (the first two of `options.samples`, or random ones from
/// `options.seed`), on both as a batch if that is free, and on the other samples;
/// cuts after which it differs are dropped, and if that does not help the next rung
/// is tried. The manifest has the rung that held, and why better ones failed.
///
/// # Errors
/// See [`PrepareError`]; a model that cannot be cut is one block, not an error.
pub fn prepare(
    model: &Path,
    out_dir: &Path,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, PrepareError> {
    progress(Progress::Loading);
    let source_digest = store::digest_of_file(model)?;
    store::make_dir(out_dir)?;
    let inputs = draw::with_ranges(&options.inputs, &options.samples);
    let sizes = Sizes::declared(&inputs).map_err(|reason| mismatch(options, reason))?;
    let (mut trial, metadata) = open(model, options, &inputs, sizes)?;
    let (plan, reason, chain) = climb_down(&mut trial, out_dir, options.seed, progress)?;
    as_written::check(&mut trial, &plan)?;
    let exits = match &metadata {
        Some(metadata) => exits::place(&trial.analysis, metadata, &plan.cuts, plan.outputs()),
        None => Ok(Vec::new()),
    };
    let exits = exits.map_err(|reason| PrepareError::Metadata { reason })?;
    let total = count(chain.blocks.len());
    progress(Progress::Profiling { done: 0, total });
    let profiles = if options.timing_runs == 0 {
        profile::estimated(&chain.costs, options.prepared_gflops)
    } else {
        profile::profile(
            &chain.blocks,
            &chain.boundaries,
            &chain.costs,
            options.timing_runs,
            options.profile_budget,
            |done| progress(Progress::Profiling { done, total }),
        )
        .map_err(torch("profiling the blocks"))?
    };
    progress(Progress::Profiling { done: total, total });
    let probe = Probe {
        inputs: trial.requests[0].clone(),
        outputs: plan.answers(0).to_vec(),
    };
    let probe = store::write_probe(out_dir, &probe)?;
    Ok(Manifest {
        version: TORCH_SCRIPT_VERSION,
        source: source_digest,
        runtime: format!("libtorch {}", ffi::version()),
        rung: plan.rung,
        rung_reason: reason,
        inputs: plan.inputs.clone(),
        arguments: trial.bindings(),
        outputs: plan.outputs().to_vec(),
        output_structure: Some(plan.structure.clone()),
        exits,
        blocks: manifest_blocks(&plan, &chain.files, &profiles),
        probe: probe.digest,
        probe_bytes: probe.bytes,
        check: BoundaryCheck {
            compared: count(plan.values.iter().map(Vec::len).sum()),
            max_abs_diff: 0.0,
            telling_diff: plan.telling_diff(),
            sizes: trial.sizes.tried(),
        },
        prepared_gflops: options.prepared_gflops,
        weight_bytes: weight_bytes(&trial.analysis, &profiles),
        lopsided_share: chain.lopsided,
        rows_are_independent: rows::are_independent(&plan, trial.watched.may_differ),
        encoding_errors: encodings::errors(&plan, &chain.blocks),
    })
}

/// Bytes of the weights, each counted once even if several blocks hold it. Weights that a model
/// keeps in attributes are not in its graph.
fn weight_bytes(analysis: &Analysis, profiles: &[BlockProfile]) -> Option<u64> {
    let blocks = profiles.iter().map(|p| p.cost.constant_bytes);
    let sum = blocks.fold(0, u64::saturating_add);
    (!analysis.reads_self).then_some(analysis.weight_bytes.min(sum))
}

/// The written blocks, loaded again.
struct Chain {
    files: Vec<store::Stored>,
    blocks: Vec<Block>,
    /// Values of the first request that cross into each block.
    boundaries: Vec<Vec<tch::Tensor>>,
    /// Costs of one forward of each block.
    costs: Vec<Cost>,
    /// See [`cuts::lopsided`].
    lopsided: Option<f64>,
}

/// The two requests that a model is first tried with, and more that must give the same answers.
/// `typical` are the inputs with typical sizes.
fn requests(options: &PrepareOptions, typical: &[InputSpec]) -> Result<Asked, PrepareError> {
    match options.samples.as_slice() {
        [first, second, more @ ..] => Ok(Asked {
            two: vec![first.clone(), second.clone()],
            more: more.to_vec(),
            are_samples: true,
        }),
        _ => {
            let drawn = [0, 1].map(|number| draw::request(typical, options.seed, number));
            let drawn: Result<Vec<Vec<Tensor>>, _> = drawn.into_iter().collect();
            let mut two = drawn.map_err(|e| mismatch(options, e.0))?;
            for (place, values) in &options.known {
                for (request, value) in two.iter_mut().zip(values) {
                    if let Some(drawn) = request.get_mut(*place) {
                        drawn.clone_from(value);
                    }
                }
            }
            Ok(Asked {
                two,
                more: Vec::new(),
                are_samples: false,
            })
        }
    }
}

/// See [`requests`].
struct Asked {
    two: Vec<Vec<Tensor>>,
    more: Vec<Vec<Tensor>>,
    are_samples: bool,
}

fn open<'a>(
    model: &Path,
    options: &PrepareOptions,
    inputs: &'a [InputSpec],
    mut sizes: Sizes,
) -> Result<(Trial<'a>, Option<Metadata>), PrepareError> {
    let typical = sizes.typical(inputs);
    let mut asked = requests(options, &typical)?;
    sizes.take_samples(inputs, &mut asked.more);
    let (mut source, signature) = Source::open(model).map_err(|e| unreadable(model, &e))?;
    let bindings = bind::bindings(&signature.arguments, &options.inputs, &options.fixed)
        .map_err(|reason| mismatch(options, reason))?;
    let wrong = |reason: String| PrepareError::Metadata { reason };
    let metadata = signature.metadata.as_deref().map(metadata::parse);
    let metadata = metadata.transpose().map_err(wrong)?;
    let mut analysis = source
        .analyse(&bindings, metadata.is_some())
        .map_err(|e| PrepareError::Unsupported { reason: e.reason() })?;
    check_operators(&analysis)?;
    if let Some(metadata) = &metadata {
        exits::restrict(&mut analysis, metadata).map_err(wrong)?;
    }
    sizes.try_out(&mut source, inputs, &asked.two[0], options.seed)?;
    let mut trial = Trial {
        source,
        analysis,
        declared: typical.iter().map(|i| i.value.clone()).collect(),
        inputs,
        typical,
        sizes,
        requests: asked.two,
        more: asked.more,
        are_samples: asked.are_samples,
        failed: Vec::new(),
        lopsided: Vec::new(),
        unsent: None,
        structure: None,
        watched: Watched::default(),
        unlike: Default::default(),
        bindings,
    };
    trial.watch(options.seed)?;
    Ok((trial, metadata))
}

/// The first rung whose chain matches the model, and why better ones failed.
fn climb_down(
    trial: &mut Trial<'_>,
    out_dir: &Path,
    seed: u64,
    progress: Report<'_>,
) -> Result<(Plan, Option<String>, Chain), PrepareError> {
    let mut why = None;
    if let Some((plan, chain)) = first_to_hold(trial, &WELL, &mut why, out_dir, progress)? {
        return Ok((plan, why, chain));
    }
    let reason = why.unwrap_or_default();
    let refusal = match trial.retraced(seed)? {
        // Lopsided cuts with a free batch are better than others without.
        Ok((_, Some(why))) if trial.best_share() < 1.0 => {
            format!("it would hold for a batch of 1 alone ({why})")
        }
        Ok((mut traced, fixed_batch)) => {
            let mut why = None;
            let mut held = first_to_hold(&mut traced, &WELL, &mut why, out_dir, progress);
            if matches!(held, Ok(None)) && traced.best_share() < trial.best_share() {
                held = first_to_hold(&mut traced, &FEW, &mut why, out_dir, progress);
            }
            match held {
                Ok(Some((plan, chain))) => {
                    let reason = retrace::reason_for_trace(&reason, fixed_batch.as_deref());
                    let reason = told(Some(reason), &plan, &chain);
                    let plan = Plan {
                        rung: Rung::Retraced,
                        ..plan
                    };
                    return Ok((plan, reason, chain));
                }
                Ok(None) => why.unwrap_or_default(),
                Err(error @ (PrepareError::Io { .. } | PrepareError::DiskFull { .. })) => {
                    return Err(error);
                }
                Err(error) => error.to_string(),
            }
        }
        Err(refusal) => refusal,
    };
    let mut why = Some(retrace::reason_against_trace(&reason, &refusal));
    if let Some((plan, chain)) = first_to_hold(trial, &FEW, &mut why, out_dir, progress)? {
        let why = told(why, &plan, &chain);
        return Ok((plan, why, chain));
    }
    let held = first_to_hold(trial, &[Step::Whole], &mut why, out_dir, progress)?;
    let Some((plan, chain)) = held else {
        // Unreachable: the last rung holds or is an error.
        return Err(PrepareError::Unsupported {
            reason: why.unwrap_or_default(),
        });
    };
    Ok((plan, why, chain))
}

/// The first of `steps` whose chain matches the model; `why` is the reason of the last one that
/// does not.
fn first_to_hold(
    trial: &mut Trial<'_>,
    steps: &[Step],
    why: &mut Option<String>,
    out_dir: &Path,
    progress: Report<'_>,
) -> Result<Option<(Plan, Chain)>, PrepareError> {
    // The reason after barring bad cuts may read as if there had been none.
    let mut first_fault = None;
    for step in steps {
        for attempt in 0..=MOST_BARRINGS {
            let plan = match trial.plan(*step)? {
                Ok(plan) => plan,
                Err(reason) => {
                    let reason = Some(reason).filter(|r| !r.is_empty());
                    *why = first_fault.clone().or(reason).or(why.take());
                    break;
                }
            };
            let mut files = Vec::new();
            let fault = match cut(trial, &plan, out_dir, &mut files, progress)? {
                Ok(chain) => match chain.lopsided {
                    Some(share) if WELL.contains(step) => {
                        store::remove(&files);
                        *why = Some(leaves(plan.rung, share));
                        first_fault = None;
                        trial.lopsided.push((plan.rung, share));
                        break;
                    }
                    _ => return Ok(Some((plan, chain))),
                },
                Err(fault) if plan.rung == Rung::Whole => return Err(fault.first.into_error()),
                Err(fault) => fault,
            };
            store::remove(&files);
            let reason = fault.first.reason();
            *why = Some(reason.clone());
            first_fault.get_or_insert(reason);
            if fault.bad_cuts.is_empty() || attempt == MOST_BARRINGS {
                trial.failed.push(plan.cuts);
                break;
            }
            trial.bar(&fault.bad_cuts);
        }
    }
    Ok(None)
}

/// `why`, extended if the cuts are lopsided.
fn told(why: Option<String>, plan: &Plan, chain: &Chain) -> Option<String> {
    let Some(share) = chain.lopsided else {
        return why;
    };
    let left = leaves(plan.rung, share);
    Some(match why {
        Some(why) if why.contains(&left) => why,
        Some(why) => format!("{left}: {why}"),
        None => left,
    })
}

fn leaves(rung: Rung, share: f64) -> String {
    let live = match rung {
        Rung::Typed => "several values are",
        _ => "one tensor alone is",
    };
    format!(
        "cut where {live} live, {:.0} % of the FLOPs are in one block",
        share * 100.0
    )
}

/// Writes the blocks of `plan`, loads them again and runs its requests through them. `files` lists
/// those written, whatever the result.
fn cut(
    trial: &mut Trial<'_>,
    plan: &Plan,
    out_dir: &Path,
    files: &mut Vec<store::Stored>,
    progress: Report<'_>,
) -> Result<Result<Chain, Faults>, PrepareError> {
    let total = count(plan.values.len());
    progress(Progress::Slicing { done: 0, total });
    let mut blocks = Vec::new();
    for (from, to) in borders(&plan.cuts) {
        let archive = match trial.source.block(from, to) {
            Ok(archive) => archive,
            Err(e) => return Ok(Err(fails("writing a block", &e).into())),
        };
        files.push(store::write(out_dir, &archive, "pt")?);
        match Block::load(&files[files.len() - 1].path) {
            Ok(block) => blocks.push(block),
            Err(e) => return Ok(Err(fails("reading a block back", &e).into())),
        }
        progress(Progress::Slicing {
            done: count(files.len()),
            total,
        });
    }
    if let Some(faults) = check::all(trial, plan, &blocks, progress)? {
        return Ok(Err(faults));
    }
    let first = plan.known().next();
    let boundaries = (0..blocks.len())
        .map(|block| torch_tensors(first.map_or(&[][..], |known| known.crossing(block))))
        .collect::<Result<Vec<_>, _>>()?;
    let costs = match profile::costs(&blocks, &boundaries) {
        Ok(costs) => costs,
        Err(e) => return Ok(Err(fails("measuring a block", &e).into())),
    };
    let is_cut = !plan.cuts.is_empty();
    let lopsided = cuts::lopsided(&trial.analysis, &plan.cuts, &costs);
    Ok(Ok(Chain {
        files: files.clone(),
        blocks,
        boundaries,
        costs,
        lopsided: lopsided.filter(|_| is_cut),
    }))
}

/// Boundaries of the blocks made by `cuts`.
fn borders(cuts: &[usize]) -> Vec<(Option<usize>, Option<usize>)> {
    let starts = std::iter::once(None).chain(cuts.iter().copied().map(Some));
    let ends = cuts.iter().copied().map(Some).chain(std::iter::once(None));
    starts.zip(ends).collect()
}

fn manifest_blocks(
    plan: &Plan,
    files: &[store::Stored],
    profiles: &[BlockProfile],
) -> Vec<ManifestBlock> {
    let mut inputs: Vec<String> = names(&plan.inputs);
    files
        .iter()
        .zip(profiles)
        .zip(&plan.values)
        .map(|((file, profile), outputs)| {
            let outputs = outputs.clone();
            ManifestBlock {
                kind: BlockKind::TorchScript,
                digest: file.digest.clone(),
                file_bytes: file.bytes,
                weight_bytes: profile.cost.constant_bytes,
                peak_activation_bytes: profile.cost.peak_bytes,
                flops: profile.cost.flops,
                time: profile.time,
                cut_penalty_seconds: profile.cut_penalty_seconds,
                inputs: std::mem::replace(&mut inputs, names(&outputs)),
                outputs,
            }
        })
        .collect()
}

fn names(values: &[ValueSpec]) -> Vec<String> {
    values.iter().map(|v| v.name.clone()).collect()
}

/// A block must not have operators with outside effects.
fn check_operators(analysis: &Analysis) -> Result<(), PrepareError> {
    let reason = match analysis.operators.iter().find(|name| !is_allowed(name)) {
        None => return Ok(()),
        Some(name) if is_asynchronous(name) => format!(
            "it uses the operator {name}, which runs beside the rest: export it without \
             torch.jit.fork"
        ),
        Some(name) => format!("it uses the operator {name}"),
    };
    Err(PrepareError::Unsupported { reason })
}

fn unreadable(model: &Path, error: &TorchError) -> PrepareError {
    let reason = error.reason();
    if reason.contains(NO_FORWARD) {
        let reason = format!("{reason}: export the module whose forward answers requests");
        return PrepareError::Unsupported { reason };
    }
    match error.unknown_operator() {
        Some(name) => PrepareError::Unsupported {
            reason: format!("it uses the operator {name}, which libtorch does not have"),
        },
        None => PrepareError::NotTorchScript {
            path: model.to_owned(),
            reason,
        },
    }
}

fn mismatch(options: &PrepareOptions, reason: String) -> PrepareError {
    PrepareError::input_mismatch(&options.inputs, reason)
}

fn torch(step: &'static str) -> impl Fn(TorchError) -> PrepareError {
    move |error| PrepareError::Torch {
        step,
        reason: error.reason(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_cover_the_model_without_gaps() {
        assert_eq!(borders(&[]), [(None, None)]);
        let want = [(None, Some(2)), (Some(2), Some(7)), (Some(7), None)];
        assert_eq!(borders(&[2, 7]), want);
    }
}

use crate::cuts;
use crate::draw;
use crate::ffi::{self, Analysis, Block, Graph, Signature, Source, TorchError};
use crate::profile::{self, BlockProfile};
use crate::retrace::{self, Original};
use crate::shapes::{self, Shapes};
use crate::tensors::{from_torch, max_abs_diff, to_torch};
use crate::{PrepareError, store};
use lamina_model::{
    Block as ManifestBlock, BoundaryCheck, InputSpec, MANIFEST_VERSION, Manifest, Probe, Rung,
    Tensor, ValueSpec,
};
use std::path::Path;
use std::time::Duration;

/// How to prepare a model.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// The model's inputs in the order of `forward`; names are the user's.
    /// Arguments that have a default may be left out at the end.
    pub inputs: Vec<InputSpec>,
    /// Timed runs per measured graph, after warm-up; at least 3 are made.
    pub timing_runs: u32,
    /// Time that profiling may take, about; runs are dropped, never blocks.
    pub profile_budget: Duration,
    /// [`crate::ReferenceSpeed::peak_gflops`] of this host, written into the manifest.
    pub prepared_gflops: f64,
    /// Seed of the inputs drawn for the checks and the probe.
    pub seed: u64,
}

/// What [`prepare`] is doing; `done` counts up to `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Reading and freezing the model.
    Loading,
    /// Writing blocks.
    Slicing {
        /// Blocks written.
        done: u32,
        /// Blocks to write.
        total: u32,
    },
    /// Running the chain of blocks and comparing every boundary value with the
    /// whole model's.
    Checking {
        /// Blocks checked.
        done: u32,
        /// Blocks to check.
        total: u32,
    },
    /// Measuring blocks.
    Profiling {
        /// Blocks measured.
        done: u32,
        /// Blocks to measure.
        total: u32,
    },
}

type Report<'a> = &'a mut dyn FnMut(Progress);

/// Slices `model` into `out_dir` (made where it is missing): one `<digest>.pt`
/// per block and the probe as `<digest>.safetensors`. The same model gives the
/// same bytes. Runs on one thread.
///
/// The chain of the written blocks is compared with the whole model, boundary
/// value for boundary value, bit for bit, on two requests drawn from
/// `options.seed`. Where it differs, or where no cut is legal, the model
/// becomes one block and the manifest says why.
///
/// # Errors
/// See [`PrepareError`]; a model that cannot be cut is one block, no error.
pub fn prepare(
    model: &Path,
    out_dir: &Path,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, PrepareError> {
    progress(Progress::Loading);
    let source_digest = store::digest_of_file(model)?;
    store::make_dir(out_dir)?;
    let requests = [0, 1]
        .into_iter()
        .map(|number| draw::request(&options.inputs, options.seed, number))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| mismatch(options, e.0))?;
    let mut original = Cutter::open(model, options, requests)?;
    let mut plan = original.plan()?;
    let mut traced = None;
    if plan.rung == Rung::Whole {
        match original.retraced(&plan)? {
            Ok((cutter, cut)) => {
                traced = Some(cutter);
                plan = cut;
            }
            Err(reason) => plan.reason = Some(reason),
        }
    }
    let cutter = traced.as_mut().unwrap_or(&mut original);
    let mut chain = cutter.cut(&plan, out_dir, progress)?;
    if let Some((value, difference)) = &chain.differs
        && plan.rung != Rung::Whole
    {
        let reason = format!("cut, its value `{value}` would differ by {difference:e}");
        store::remove(&chain.files);
        plan = original.whole_plan(reason)?;
        chain = original.cut(&plan, out_dir, progress)?;
    }
    if let Some((value, max_abs_diff)) = chain.differs {
        return Err(PrepareError::Unequal {
            value,
            max_abs_diff,
        });
    }
    let total = count(chain.blocks.len());
    progress(Progress::Profiling { done: 0, total });
    let profiles = profile::profile(
        &chain.blocks,
        &chain.boundaries,
        options.timing_runs,
        options.profile_budget,
        |done| progress(Progress::Profiling { done, total }),
    )
    .map_err(torch("profiling the blocks"))?;
    progress(Progress::Profiling { done: total, total });
    let probe = Probe {
        inputs: original.requests[0].clone(),
        outputs: plan.reference[0][plan.cuts.len()..].to_vec(),
    };
    let probe = store::write_probe(out_dir, &probe)?;
    Ok(Manifest {
        version: MANIFEST_VERSION,
        source: source_digest,
        runtime: format!("libtorch {}", ffi::version()),
        rung: plan.rung,
        rung_reason: plan.reason.clone(),
        inputs: plan.shapes.inputs.clone(),
        outputs: plan.shapes.outputs.clone(),
        blocks: manifest_blocks(&plan, &chain.files, &profiles),
        probe: probe.digest,
        probe_bytes: probe.bytes,
        check: BoundaryCheck {
            compared: count(plan.cuts.len() + plan.shapes.outputs.len()),
            max_abs_diff: 0.0,
            telling_diff: plan.telling_diff(),
        },
        prepared_gflops: options.prepared_gflops,
    })
}

/// A model with the requests that it is tried with.
struct Cutter<'a> {
    source: Source,
    analysis: Analysis,
    options: &'a PrepareOptions,
    /// The inputs, as far as they are known to take any batch.
    declared: Vec<ValueSpec>,
    /// Two different requests of batch 1.
    requests: Vec<Vec<Tensor>>,
}

/// Where to cut, and what the whole model gives there.
struct Plan {
    rung: Rung,
    reason: Option<String>,
    cuts: Vec<usize>,
    shapes: Shapes,
    /// Per request: the value at each cut, then the outputs.
    reference: Vec<Vec<Tensor>>,
}

/// The written blocks, loaded again.
struct Chain {
    files: Vec<store::Stored>,
    blocks: Vec<Block>,
    /// Values of the first request that cross into each block.
    boundaries: Vec<Vec<tch::Tensor>>,
    /// The first value that is not the whole model's, and by how much.
    differs: Option<(String, f64)>,
}

impl<'a> Cutter<'a> {
    fn open(
        model: &Path,
        options: &'a PrepareOptions,
        requests: Vec<Vec<Tensor>>,
    ) -> Result<Self, PrepareError> {
        let (mut source, signature) = Source::open(model).map_err(|e| unreadable(model, &e))?;
        check_signature(&signature, options)?;
        let analysis = source
            .analyse(options.inputs.len())
            .map_err(|e| PrepareError::Unsupported { reason: e.reason() })?;
        check_operators(&analysis)?;
        Ok(Self {
            source,
            analysis,
            options,
            declared: options.inputs.iter().map(|i| i.value.clone()).collect(),
            requests,
        })
    }

    fn plan(&mut self) -> Result<Plan, PrepareError> {
        let candidates = cuts::choose(&self.analysis);
        if let Some(reason) = cuts::reason_for_whole(&self.analysis, &candidates) {
            return self.whole_plan(reason);
        }
        let (reference, shapes) = self.reference(&candidates)?;
        let kept: Vec<usize> = (0..candidates.len())
            .filter(|&i| shapes.at_cuts[i].is_some())
            .collect();
        if kept.is_empty() {
            return self.whole_plan("no value between its blocks has the batch first".into());
        }
        Ok(Plan {
            rung: Rung::Direct,
            reason: None,
            cuts: kept.iter().map(|&i| candidates[i]).collect(),
            reference: reference
                .into_iter()
                .map(|values| without_dropped(values, &kept, candidates.len()))
                .collect(),
            shapes: Shapes {
                at_cuts: kept.iter().map(|&i| shapes.at_cuts[i].clone()).collect(),
                ..shapes
            },
        })
    }

    fn whole_plan(&mut self, reason: String) -> Result<Plan, PrepareError> {
        let (reference, shapes) = self.reference(&[])?;
        Ok(Plan {
            rung: Rung::Whole,
            reason: Some(reason),
            cuts: Vec::new(),
            shapes,
            reference,
        })
    }

    /// The model traced again and its plan, which has cuts and answers like
    /// `whole`; the reason for one block otherwise.
    #[allow(clippy::type_complexity)] // taken apart at once
    fn retraced(&mut self, whole: &Plan) -> Result<Result<(Self, Plan), String>, PrepareError> {
        let reason = whole.reason.clone().unwrap_or_default();
        if self.analysis.writes_constants {
            return Ok(Err(reason));
        }
        let original = Original {
            source: &mut self.source,
            inputs: &whole.shapes.inputs,
            requests: &self.requests,
            answers: whole.reference.iter().map(Vec::as_slice).collect(),
        };
        let traced = match original.trace() {
            Ok(traced) => traced,
            Err(refusal) => return Ok(Err(retrace::reason_for_whole(&reason, &refusal))),
        };
        let mut declared = whole.shapes.inputs.clone();
        if traced.fixed_batch.is_some() {
            declared = declared.iter().map(shapes::at_batch_one).collect();
        }
        let mut cutter = Self {
            source: traced.source,
            analysis: traced.analysis,
            options: self.options,
            declared,
            requests: self.requests.clone(),
        };
        let mut plan = cutter.plan()?;
        if plan.rung == Rung::Whole {
            let refusal = plan.reason.unwrap_or_default();
            return Ok(Err(retrace::reason_for_whole(&reason, &refusal)));
        }
        plan.rung = Rung::Retraced;
        plan.reason = Some(retrace::reason_for_trace(
            &reason,
            traced.fixed_batch.as_deref(),
        ));
        Ok(Ok((cutter, plan)))
    }

    /// The values of the whole model at `cuts` and its outputs for both
    /// requests, and what their shapes are at any batch.
    fn reference(&mut self, cuts: &[usize]) -> Result<(Vec<Vec<Tensor>>, Shapes), PrepareError> {
        let graph = self
            .source
            .graph(cuts)
            .map_err(torch("building the whole model"))?;
        let answers = self
            .requests
            .iter()
            .map(|request| run(&graph, request).map_err(|reason| mismatch(self.options, reason)))
            .collect::<Result<Vec<_>, _>>()?;
        if answers[0].len() == cuts.len() {
            return Err(PrepareError::Unsupported {
                reason: "it gives no tensor".into(),
            });
        }
        let again = run(&graph, &self.requests[0]).map_err(|r| mismatch(self.options, r))?;
        if let Some(difference) = first_difference(&answers[0], &again) {
            return Err(PrepareError::Unsupported {
                reason: format!(
                    "two equal requests get answers that differ by {:e}: it keeps state or \
                     draws random numbers",
                    difference.1
                ),
            });
        }
        let rows: Vec<&Vec<Tensor>> = self.requests.iter().collect();
        let pair = shapes::batch(&self.declared, &rows);
        let at_two = pair.and_then(|request| run(&graph, &request).ok());
        let shapes = shapes::generalize(&self.declared, cuts.len(), &answers, at_two.as_deref());
        Ok((answers, shapes))
    }

    /// Writes the blocks of `plan`, loads them again and runs both requests
    /// through them.
    fn cut(
        &mut self,
        plan: &Plan,
        out_dir: &Path,
        progress: Report<'_>,
    ) -> Result<Chain, PrepareError> {
        let total = count(plan.cuts.len() + 1);
        progress(Progress::Slicing { done: 0, total });
        let mut files = Vec::new();
        let mut blocks = Vec::new();
        for (from, to) in borders(&plan.cuts) {
            let archive = self
                .source
                .block(from, to)
                .map_err(torch("writing a block"))?;
            let stored = store::write(out_dir, &archive, "pt")?;
            blocks.push(Block::load(&stored.path).map_err(torch("reading a block back"))?);
            files.push(stored);
            progress(Progress::Slicing {
                done: count(files.len()),
                total,
            });
        }
        let (boundaries, differs) = self.check(plan, &blocks, progress)?;
        Ok(Chain {
            files,
            blocks,
            boundaries,
            differs,
        })
    }

    /// Runs both requests block by block, each value through its wire form, and
    /// compares with the whole model. Gives the first request's values.
    #[allow(clippy::type_complexity)] // boundaries and the first difference, used at once
    fn check(
        &self,
        plan: &Plan,
        blocks: &[Block],
        progress: Report<'_>,
    ) -> Result<(Vec<Vec<tch::Tensor>>, Option<(String, f64)>), PrepareError> {
        let total = count(blocks.len());
        progress(Progress::Checking { done: 0, total });
        let mut crossing = self.requests.clone();
        let mut boundaries = Vec::new();
        for (i, block) in blocks.iter().enumerate() {
            let graph = Graph::merge(std::slice::from_ref(block), false)
                .map_err(torch("reading a block back"))?;
            boundaries.push(torch_tensors(&crossing[0])?);
            let last = i + 1 == blocks.len();
            for (request, values) in crossing.iter_mut().enumerate() {
                *values = run(&graph, values).map_err(|reason| PrepareError::Torch {
                    step: "running a block",
                    reason,
                })?;
                let reference = &plan.reference[request];
                let expected = if last {
                    &reference[i..]
                } else {
                    &reference[i..=i]
                };
                if let Some((place, difference)) = first_difference(expected, values) {
                    let specs = plan.outputs_of(i);
                    let name = specs.get(place).map_or("output count", |s| s.name.as_str());
                    return Ok((boundaries, Some((name.to_owned(), difference))));
                }
            }
            progress(Progress::Checking {
                done: count(i + 1),
                total,
            });
        }
        Ok((boundaries, None))
    }
}

impl Plan {
    /// What block `i` gives.
    fn outputs_of(&self, i: usize) -> Vec<ValueSpec> {
        match self.shapes.at_cuts.get(i) {
            Some(value) => value.iter().cloned().collect(),
            None => self.shapes.outputs.clone(),
        }
    }

    /// Largest difference between the answers to the two requests.
    fn telling_diff(&self) -> f64 {
        let outputs = |request: usize| &self.reference[request][self.cuts.len()..];
        let differences = outputs(0)
            .iter()
            .zip(outputs(1))
            .map(|(a, b)| max_abs_diff(a, b));
        let largest = differences.fold(0.0, f64::max);
        // Outputs whose shapes depend on the values differ for sure; JSON has
        // no infinity.
        largest.min(f64::MAX)
    }
}

/// Borders of the blocks that `cuts` make.
fn borders(cuts: &[usize]) -> Vec<(Option<usize>, Option<usize>)> {
    let starts = std::iter::once(None).chain(cuts.iter().copied().map(Some));
    let ends = cuts.iter().copied().map(Some).chain(std::iter::once(None));
    starts.zip(ends).collect()
}

/// The values at the `kept` ones of `candidates` cuts, and the outputs.
fn without_dropped(values: Vec<Tensor>, kept: &[usize], candidates: usize) -> Vec<Tensor> {
    values
        .into_iter()
        .enumerate()
        .filter(|(i, _)| *i >= candidates || kept.contains(i))
        .map(|(_, value)| value)
        .collect()
}

fn manifest_blocks(
    plan: &Plan,
    files: &[store::Stored],
    profiles: &[BlockProfile],
) -> Vec<ManifestBlock> {
    let mut inputs: Vec<String> = names(&plan.shapes.inputs);
    files
        .iter()
        .zip(profiles)
        .enumerate()
        .map(|(i, (file, profile))| {
            let outputs = plan.outputs_of(i);
            ManifestBlock {
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

/// The first place where two lists of tensors differ in a bit, and by how much.
pub(crate) fn first_difference(expected: &[Tensor], got: &[Tensor]) -> Option<(usize, f64)> {
    if expected.len() != got.len() {
        return Some((expected.len().min(got.len()), f64::INFINITY));
    }
    let place = expected.iter().zip(got).position(|(a, b)| a != b)?;
    Some((place, max_abs_diff(&expected[place], &got[place])))
}

fn torch_tensors(tensors: &[Tensor]) -> Result<Vec<tch::Tensor>, PrepareError> {
    let converted: Result<Vec<_>, _> = tensors.iter().map(to_torch).collect();
    converted.map_err(|e| PrepareError::Unsupported {
        reason: format!("a value has the type {}", e.0),
    })
}

/// One forward on one thread; the error is the reason.
pub(crate) fn run(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let mut inputs: Vec<tch::Tensor> = inputs
        .iter()
        .map(to_torch)
        .collect::<Result<_, _>>()
        .map_err(|e| e.0)?;
    let outputs = graph.run(&mut inputs, 1).map_err(|e| e.reason())?;
    outputs
        .iter()
        .map(|t| from_torch(t).map_err(|e| format!("a value has the type {}", e.0)))
        .collect()
}

fn check_signature(signature: &Signature, options: &PrepareOptions) -> Result<(), PrepareError> {
    let arguments = &signature.arguments;
    let needed = arguments.iter().filter(|a| !a.has_default).count();
    let declared = options.inputs.len();
    if declared < needed || declared > arguments.len() {
        let names: Vec<&str> = arguments.iter().map(|a| a.name.as_str()).collect();
        return Err(mismatch(
            options,
            format!(
                "its forward takes {} ({})",
                arguments.len(),
                names.join(", ")
            ),
        ));
    }
    let strange = arguments[..declared]
        .iter()
        .find(|a| a.kind != "Tensor" && a.kind != "Optional[Tensor]");
    match strange {
        Some(a) => Err(mismatch(
            options,
            format!("its argument `{}` is a {}, no tensor", a.name, a.kind),
        )),
        None => Ok(()),
    }
}

/// Operators that reach outside the forward have no place in a block.
fn check_operators(analysis: &Analysis) -> Result<(), PrepareError> {
    match analysis.operators.iter().find(|name| !is_allowed(name)) {
        Some(name) => Err(PrepareError::Unsupported {
            reason: format!("it uses the operator {name}"),
        }),
        None => Ok(()),
    }
}

/// Operators of libtorch itself, without those that touch files, other hosts
/// or Python.
fn is_allowed(operator: &str) -> bool {
    const NAMESPACES: [&str; 3] = ["aten::", "prim::", "quantized::"];
    const FORBIDDEN: [&str; 4] = [
        "aten::save",
        "aten::from_file",
        "prim::rpc_",
        "prim::Python",
    ];
    NAMESPACES.iter().any(|n| operator.starts_with(n))
        && !FORBIDDEN.iter().any(|f| operator.starts_with(f))
}

fn unreadable(model: &Path, error: &TorchError) -> PrepareError {
    match error.unknown_operator() {
        Some(name) => PrepareError::Unsupported {
            reason: format!("it uses the operator {name}, which libtorch does not have"),
        },
        None => PrepareError::NotTorchScript {
            path: model.to_owned(),
            reason: error.reason(),
        },
    }
}

fn mismatch(options: &PrepareOptions, reason: String) -> PrepareError {
    let declared: Vec<String> = options
        .inputs
        .iter()
        .map(|i| format!("{} {} {:?}", i.value.name, i.value.datatype, i.value.shape))
        .collect();
    PrepareError::InputMismatch {
        declared: declared.join(", "),
        reason,
    }
}

fn torch(step: &'static str) -> impl Fn(TorchError) -> PrepareError {
    move |error| PrepareError::Torch {
        step,
        reason: error.reason(),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_that_reach_outside_are_refused() {
        for good in ["aten::conv2d", "prim::If", "quantized::linear"] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in [
            "aten::save",
            "aten::from_file",
            "prim::rpc_sync",
            "prim::PythonOp",
            "my::op",
        ] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }

    #[test]
    fn borders_cover_the_model_without_gaps() {
        assert_eq!(borders(&[]), [(None, None)]);
        let want = [(None, Some(2)), (Some(2), Some(7)), (Some(7), None)];
        assert_eq!(borders(&[2, 7]), want);
    }

    #[test]
    fn dropped_cuts_lose_their_values_and_outputs_stay() {
        let value = |v: u8| Tensor {
            datatype: lamina_model::DataType::Uint8,
            shape: vec![1],
            data: vec![v].into(),
        };
        let kept = without_dropped((0..4).map(value).collect(), &[0, 2], 3);
        assert_eq!(kept, [value(0), value(2), value(3)]);
    }
}

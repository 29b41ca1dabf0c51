//! Whether the blocks of a plan compute the same as the whole model.

use crate::PrepareError;
use crate::ffi::{Block, Gear, Graph, TorchError};
use crate::forward::{first_difference, run};
use crate::progress::{Progress, Report, count};
use crate::rungs::{Known, Plan, Trial};
use crate::sized::SizedRequest;
use lamina_model::{Tensor, ValueSpec};

/// Why the blocks of a plan are unusable.
pub(crate) struct Faults {
    pub(crate) first: Fault,
    /// The cuts whose values, when copied, change the output of the next block: without them the
    /// rest may hold. Empty if that does not help.
    pub(crate) bad_cuts: Vec<usize>,
}

impl From<Fault> for Faults {
    fn from(first: Fault) -> Self {
        Self {
            first,
            bad_cuts: Vec::new(),
        }
    }
}

/// A fault of a block.
pub(crate) enum Fault {
    /// The first value that differs from the whole model's.
    Differs {
        value: String,
        max_abs_diff: f64,
    },
    Fails {
        step: &'static str,
        reason: String,
    },
}

impl Fault {
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Differs {
                value,
                max_abs_diff,
            } => format!("cut, its value `{value}` would differ by {max_abs_diff:e}"),
            Self::Fails { step, reason } => format!("cut, it fails while {step}: {reason}"),
        }
    }

    /// The same, with the sizes of `label`.
    fn with(self, label: &str) -> Self {
        match self {
            Self::Differs {
                value,
                max_abs_diff,
            } => Self::Differs {
                value: format!("{value} (with {label})"),
                max_abs_diff,
            },
            Self::Fails { step, reason } => Self::Fails {
                step,
                reason: format!("with {label}: {reason}"),
            },
        }
    }

    pub(crate) fn into_error(self) -> PrepareError {
        match self {
            Self::Differs {
                value,
                max_abs_diff,
            } => PrepareError::Unequal {
                value,
                max_abs_diff,
            },
            Self::Fails { step, reason } => PrepareError::Torch { step, reason },
        }
    }
}

/// Compares the chain of `blocks` with the whole model: on the requests of `plan`, on the
/// user's further ones, and on those of other than typical sizes.
///
/// # Errors
/// The model itself fails.
pub(crate) fn all(
    trial: &mut Trial<'_>,
    plan: &Plan,
    blocks: &[Block],
    progress: Report<'_>,
) -> Result<Option<Faults>, PrepareError> {
    if let Some(faults) = check_plan(plan, blocks, progress) {
        return Ok(Some(faults));
    }
    if let Some(faults) = check_more(trial, plan, blocks)? {
        return Ok(Some(faults));
    }
    check_sizes(trial, plan, blocks)
}

/// libtorch's error.
pub(crate) fn fails(step: &'static str, error: &TorchError) -> Fault {
    Fault::Fails {
        step,
        reason: error.reason(),
    }
}

/// Runs the requests of `plan` block by block, each value through its wire form, and compares with
/// the whole model. Every block gets the whole model's values, which the previous block must have
/// produced.
fn check_plan(plan: &Plan, blocks: &[Block], progress: Report<'_>) -> Option<Faults> {
    let total = count(blocks.len());
    progress(Progress::Checking { done: 0, total });
    let known: Vec<Known<'_>> = plan.known().collect();
    let mut faults: Option<Faults> = None;
    for (i, block) in blocks.iter().enumerate() {
        if let Some(fault) = check_block(plan, i, block, &known) {
            let Some(before) = i.checked_sub(1) else {
                // The model's inputs do not cross a cut.
                return Some(fault.into());
            };
            let faults = faults.get_or_insert_with(|| fault.into());
            faults.bad_cuts.push(plan.cuts[before]);
        }
        progress(Progress::Checking {
            done: count(i + 1),
            total,
        });
    }
    faults
}

/// The same for the user's own requests that are not in `plan`, one at a time: the values at its
/// cuts may be large.
fn check_more(
    trial: &mut Trial<'_>,
    plan: &Plan,
    blocks: &[Block],
) -> Result<Option<Faults>, PrepareError> {
    for number in 0..trial.more.len() {
        let reference = trial.answer_to_more(number, plan)?;
        let known = Known {
            request: &trial.more[number],
            reference: &reference,
        };
        let faults = check_known(plan, blocks, known);
        if faults.is_some() {
            return Ok(faults);
        }
    }
    Ok(None)
}

/// The same for requests of other than typical sizes, and for batches of them if the batch is free;
/// for the largest only the answers.
fn check_sizes(
    trial: &mut Trial<'_>,
    plan: &Plan,
    blocks: &[Block],
) -> Result<Option<Faults>, PrepareError> {
    let any_batch = plan.inputs.iter().any(ValueSpec::has_rows);
    for sized in trial.sizes.requests.clone() {
        let SizedRequest { label, request, .. } = &sized;
        if sized.answers_only {
            let fault = trial
                .outputs(request)
                .map(|want| check_answers(blocks, request, &want));
            let fault = fault.map_err(|r| trial.mismatch(format!("with {label}: {r}")))?;
            if let Some(fault) = fault {
                return Ok(Some(fault.with(label).into()));
            }
            continue;
        }
        // The model need not accept a batch of these.
        let pair = sized.pair.as_ref().filter(|_| any_batch);
        for (request, must) in [(Some(request), true), (pair, false)] {
            let Some(request) = request else { continue };
            let reference = match trial.answer(request, plan)? {
                Ok(reference) => reference,
                Err(_) if !must => continue,
                Err(reason) => return Err(trial.mismatch(format!("with {label}: {reason}"))),
            };
            let known = Known {
                request,
                reference: &reference,
            };
            if let Some(Faults { first, bad_cuts }) = check_known(plan, blocks, known) {
                let first = first.with(label);
                return Ok(Some(Faults { first, bad_cuts }));
            }
        }
    }
    Ok(None)
}

/// How the answers of the chain differ, if they do.
fn check_answers(blocks: &[Block], request: &[Tensor], want: &[Tensor]) -> Option<Fault> {
    let mut values = request.to_vec();
    for block in blocks {
        let graph = match Graph::merge(std::slice::from_ref(block), Gear::Plain) {
            Ok(graph) => graph,
            Err(e) => return Some(fails("reading a block back", &e)),
        };
        values = match run(&graph, &values) {
            Ok(values) => values,
            Err(reason) => {
                let step = "running a block";
                return Some(Fault::Fails { step, reason });
            }
        };
    }
    let (place, max_abs_diff) = first_difference(want, &values)?;
    Some(Fault::Differs {
        value: format!("output {place}"),
        max_abs_diff,
    })
}

/// The first block that fails on one request, and the cut before it.
fn check_known(plan: &Plan, blocks: &[Block], known: Known<'_>) -> Option<Faults> {
    let mut found = blocks.iter().enumerate().filter_map(|(i, block)| {
        let first = check_block(plan, i, block, &[known])?;
        let before = i.checked_sub(1).map(|before| plan.cuts[before]);
        Some(Faults {
            first,
            bad_cuts: before.into_iter().collect(),
        })
    });
    found.next()
}

/// The fault of block `i` of `plan`, if any.
fn check_block(plan: &Plan, i: usize, block: &Block, known: &[Known<'_>]) -> Option<Fault> {
    let graph = match Graph::merge(std::slice::from_ref(block), Gear::Plain) {
        Ok(graph) => graph,
        Err(e) => return Some(fails("reading a block back", &e)),
    };
    for known in known {
        let values = match run(&graph, known.crossing(i)) {
            Ok(values) => values,
            Err(reason) => {
                return Some(Fault::Fails {
                    step: "running a block",
                    reason,
                });
            }
        };
        if let Some((place, max_abs_diff)) = first_difference(&known.reference[i], &values) {
            let name = plan.values[i].get(place);
            return Some(Fault::Differs {
                value: name.map_or("output count", |s| s.name.as_str()).to_owned(),
                max_abs_diff,
            });
        }
    }
    None
}

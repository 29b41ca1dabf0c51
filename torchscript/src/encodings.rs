//! The effect of encodings on a model's answers, cut by cut.
//!
//! Everything that agents would encode at a cut is encoded and decoded with the same
//! arithmetic, and the blocks after the cut run on the result.

use crate::ffi::{Block, Gear, Graph};
use crate::forward::run;
use crate::rungs::{Known, Plan};
use crate::tensors::relative_difference;
use lamina_model::wire::{self, is_encodable};
use lamina_model::{EncodingErrors, Tensor, ValueSpec, WireType};
use std::time::{Duration, Instant};

/// Approximate time limit. Cuts with the fewest bytes are measured first, since placements cut
/// there; the others may have no errors.
const BUDGET: Duration = Duration::from_secs(2);
/// Number of requests used.
const REQUESTS: usize = 2;

/// The errors of encodings on the answers of `plan`, by the block that receives the values.
pub(crate) fn errors(plan: &Plan, blocks: &[Block]) -> Vec<EncodingErrors> {
    let began = Instant::now();
    let mut errors = vec![EncodingErrors::default(); blocks.len()];
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|b| bytes(before(plan, *b)));
    for b in order {
        if began.elapsed() > BUDGET {
            break;
        }
        let specs = before(plan, b);
        if !specs.iter().any(|s| is_encodable(s, plan.outputs())) {
            continue;
        }
        let Ok(graph) = Graph::merge(&blocks[b..], Gear::Plain) else {
            continue;
        };
        for (number, known) in plan.known().take(REQUESTS).enumerate() {
            if number > 0 && began.elapsed() > BUDGET / 2 {
                break;
            }
            for dtype in WireType::ALL {
                let error = errors[b].of_mut(dtype);
                // An encoding that one request rules out is ruled out.
                if number == 0 || error.is_some() {
                    let found = change(plan, &graph, b, &known, dtype);
                    *error = found.map(|found| error.unwrap_or(0.0).max(found));
                }
            }
        }
    }
    errors
}

/// The values that cross into block `b`.
fn before(plan: &Plan, b: usize) -> &[ValueSpec] {
    match b.checked_sub(1) {
        None => &plan.inputs,
        Some(before) => &plan.values[before],
    }
}

fn bytes(specs: &[ValueSpec]) -> u64 {
    let bytes = specs.iter().filter_map(|s| s.bytes(1));
    bytes.fold(0, u64::saturating_add)
}

/// The largest difference of an answer to `known`, relative to that answer's largest magnitude.
/// `None` if `dtype` cannot represent a value, or an answer is NaN or a different integer.
fn change(plan: &Plan, graph: &Graph, b: usize, known: &Known<'_>, dtype: WireType) -> Option<f64> {
    let crossing = known.crossing(b);
    let specs = before(plan, b);
    let sent = crossing.iter().zip(specs).map(|(tensor, spec)| {
        if is_encodable(spec, plan.outputs()) {
            sent(tensor, dtype)
        } else {
            Some(tensor.clone())
        }
    });
    let sent: Vec<Tensor> = sent.collect::<Option<_>>()?;
    let got = run(graph, &sent).ok()?;
    let expected = known.reference.last()?;
    if got.len() != expected.len() {
        return None;
    }
    let mut largest = 0.0_f64;
    for (got, expected) in got.iter().zip(expected) {
        let difference = relative_difference(got, expected);
        let is_whole = !expected.datatype.is_float();
        if !difference.is_finite() || (is_whole && difference > 0.0) {
            return None;
        }
        largest = largest.max(difference);
    }
    Some(largest)
}

/// `tensor` as received.
fn sent(tensor: &Tensor, dtype: WireType) -> Option<Tensor> {
    let encoded = wire::encode(dtype, &tensor.data)?;
    let data = encoded.decode(tensor.data.len() as u64).ok()?;
    Some(Tensor {
        data,
        ..tensor.clone()
    })
}

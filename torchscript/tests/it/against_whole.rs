//! Compares the blocks' answers with those of the model file, run by libtorch alone.

use crate::common::*;
use lamina_model::{DataType, Tensor};
use lamina_torchscript::{RunError, Slice, largest_difference};
use std::path::Path;
use tch::{CModule, IValue};

/// Requests of one to eight rows: noise of three strengths, and rows of sevens.
pub(crate) fn requests(seed: u64) -> Vec<Tensor> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    let mut requests = Vec::new();
    for rows in 1..=8 {
        for strength in [1.0, 4.0, 12.0] {
            let values: Vec<f32> = (0..rows * 8).map(|_| noise() * strength).collect();
            requests.push(fp32(&[rows, 8], &values));
        }
        let values: Vec<f32> = (0..rows)
            .flat_map(|row| [if row % 2 == 0 { 7.0 } else { -0.5 }; 8])
            .collect();
        requests.push(fp32(&[rows, 8], &values));
    }
    requests
}

/// The tensors of an answer, in order.
fn flat(value: IValue, tensors: &mut Vec<tch::Tensor>) {
    match value {
        IValue::Tensor(tensor) => tensors.push(tensor),
        IValue::Tuple(items) | IValue::GenericList(items) => {
            items.into_iter().for_each(|item| flat(item, tensors));
        }
        IValue::TensorList(items) => tensors.extend(items),
        IValue::GenericDict(entries) => {
            entries
                .into_iter()
                .for_each(|(_, item)| flat(item, tensors));
        }
        _ => (),
    }
}

/// The file's own answer; none if it throws.
pub(crate) fn answer(model: &CModule, request: &Tensor) -> Option<Vec<Tensor>> {
    let x = tch::Tensor::from_slice(&floats(request)).reshape(&request.shape);
    let mut tensors = Vec::new();
    // As written: libtorch's optimizer, which uses our fuser in this process, rounds differently.
    // So do linear layers with gradients.
    tch::jit::set_graph_executor_optimize(false);
    let answer = tch::no_grad(|| model.forward_is(&[IValue::Tensor(x)]));
    tch::jit::set_graph_executor_optimize(true);
    flat(answer.ok()?, &mut tensors);
    let carried = |t: tch::Tensor| {
        let t = t.contiguous();
        let datatype = match t.kind() {
            tch::Kind::Float => DataType::Fp32,
            tch::Kind::Int64 => DataType::Int64,
            other => panic!("{other:?}"),
        };
        let mut data = vec![0; t.numel() * datatype.size_bytes()];
        t.copy_data_u8(&mut data, t.numel());
        Tensor {
            datatype,
            shape: t.size(),
            data: data.into(),
        }
    };
    Some(tensors.into_iter().map(carried).collect())
}

/// Whether both are the same up to rounding.
fn are_close(got: &[Tensor], expected: &[Tensor]) -> bool {
    let largest = |tensor: &Tensor| {
        let values = floats(tensor);
        values
            .iter()
            .fold(0.0, |m: f64, v| m.max(f64::from(v.abs())))
    };
    got.len() == expected.len()
        && got.iter().zip(expected).all(|(a, b)| {
            if a.datatype != DataType::Fp32 {
                return a == b;
            }
            let apart = largest_difference(b, a);
            apart.is_some_and(|apart| apart <= ROUNDING * largest(b).max(1e-3))
        })
}

/// Whether `got` is the file's answer to a request that differs by rounding alone: a branch on a sum
/// that is zero but for rounding goes either way.
fn is_decided_by_rounding(model: &CModule, request: &Tensor, got: &[Tensor]) -> bool {
    (1..=16).any(|step| {
        let factor = 1.0 + (step as f32 - 8.5) * 2e-7;
        let values: Vec<f32> = floats(request).iter().map(|v| v * factor).collect();
        let nearby = answer(model, &fp32(&request.shape, &values));
        nearby.is_some_and(|expected| are_close(got, &expected))
    })
}

/// Counts of right answers, and of requests refused with a reason.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) answered: u64,
    pub(crate) refused: u64,
}

/// Largest difference of the optimized slice's answer, relative to its largest value.
const ROUNDING: f64 = 1e-3;

/// The chain of single blocks and the merged whole answer like `file`, or refuse the request as not
/// covered, and so does the merged whole as a host optimizes it, up to rounding; otherwise the error
/// says where they differ.
pub(crate) fn compared(prepared: &Prepared, file: &Path, seed: u64) -> Result<Compared, String> {
    let blocks = prepared.manifest.blocks.len();
    let slices: Vec<Slice> = (0..blocks)
        .map(|b| prepared.slice(b, b + 1, false).0)
        .collect();
    let (merged, _) = prepared.slice(0, blocks, false);
    let (optimized, _) = prepared.slice(0, blocks, true);
    let model = CModule::load(file).unwrap();
    let any_batch = prepared.manifest.inputs[0].shape[0] == -1;
    let mut count = Compared::default();
    for request in requests(seed) {
        if !any_batch && request.shape[0] > 1 {
            continue;
        }
        let Some(expected) = answer(&model, &request) else {
            continue;
        };
        let chain = slices
            .iter()
            .try_fold(vec![request.clone()], |values, slice| slice.run(&values));
        let request = std::slice::from_ref(&request);
        for (way, got) in [
            ("chain", chain),
            ("merged", merged.run(request)),
            ("optimized", optimized.run(request)),
        ] {
            let place = format!(
                "{way} of {blocks} blocks, {:?}, batch {}",
                prepared.manifest.rung, request[0].shape[0]
            );
            match got {
                Ok(got) if got == expected => count.answered += 1,
                Ok(got)
                    if way == "optimized"
                        && (are_close(&got, &expected)
                            || is_decided_by_rounding(&model, &request[0], &got)) =>
                {
                    count.answered += 1;
                }
                Err(RunError::OtherWay { .. }) => count.refused += 1,
                Err(error) => return Err(format!("{place}: {error}")),
                Ok(got) => {
                    let mut pairs = got.iter().zip(&expected);
                    let differs = pairs.find(|(a, b)| a != b);
                    let by = differs.map(|(a, b)| largest_difference(b, a));
                    return Err(format!(
                        "{place}: {} tensors, expected {}, the first that differs by {by:?}",
                        got.len(),
                        expected.len(),
                    ));
                }
            }
        }
    }
    Ok(count)
}

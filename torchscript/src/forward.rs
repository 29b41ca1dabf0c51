//! Forwards of tensors as they are on the wire.

use crate::PrepareError;
use crate::ffi::Graph;
use crate::tensors::{from_torch, max_abs_diff, to_torch};
use lamina_model::Tensor;

/// The first place where two lists of tensors differ in a bit, and by how much.
pub(crate) fn first_difference(expected: &[Tensor], got: &[Tensor]) -> Option<(usize, f64)> {
    if expected.len() != got.len() {
        return Some((expected.len().min(got.len()), f64::INFINITY));
    }
    let place = expected.iter().zip(got).position(|(a, b)| a != b)?;
    Some((place, max_abs_diff(&expected[place], &got[place])))
}

pub(crate) fn torch_tensors(tensors: &[Tensor]) -> Result<Vec<tch::Tensor>, PrepareError> {
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
        .into_iter()
        .map(|t| from_torch(t).map_err(|e| format!("a value has the type {}", e.0)))
        .collect()
}

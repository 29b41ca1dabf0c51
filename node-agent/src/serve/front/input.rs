//! A client's inputs, checked against what the model takes.

use super::error::InputError;
use super::typed;
use crate::serve::hop::to_wire;
use crate::serve::routes::Model;
use bytes::Bytes;
use lamina_model::{DataType, Tensor, ValueSpec};
use lamina_proto::hop::Tensor as WireTensor;
use lamina_proto::inference::ModelInferRequest;
use lamina_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use std::collections::BTreeSet;

/// Parameters that ask for what would silently not be done.
const EXTENSIONS: [&str; 2] = ["shared_memory_region", "classification"];

/// The model's inputs out of `request`, in the model's order.
///
/// # Errors
/// The first thing that does not fit, by name.
pub(super) fn inputs(
    model: &Model,
    request: &ModelInferRequest,
) -> Result<Vec<WireTensor>, InputError> {
    let raw = &request.raw_input_contents;
    let given = &request.inputs;
    if !raw.is_empty() && raw.len() != given.len() {
        return Err(InputError::RawCount {
            inputs: given.len(),
            raw: raw.len(),
        });
    }
    refuse_misnamed(model, given)?;
    let one = |spec: &ValueSpec| {
        let place = given.iter().position(|i| i.name == spec.name);
        let place = place.ok_or_else(|| InputError::Missing {
            name: spec.name.clone(),
            model: model.name.clone(),
            takes: describe(&model.inputs),
        })?;
        let tensor = decode(&given[place], raw.get(place))?;
        tensor.check(spec)?;
        Ok(to_wire(&spec.name, tensor))
    };
    model.inputs.iter().map(one).collect()
}

fn refuse_misnamed(model: &Model, given: &[InferInputTensor]) -> Result<(), InputError> {
    let mut seen = BTreeSet::new();
    for input in given {
        if !model.inputs.iter().any(|spec| spec.name == input.name) {
            return Err(InputError::Unknown {
                name: input.name.clone(),
                model: model.name.clone(),
                takes: describe(&model.inputs),
            });
        }
        if !seen.insert(&input.name) {
            return Err(InputError::Twice {
                kind: "input",
                name: input.name.clone(),
            });
        }
        refuse_extensions(&input.name, |key| input.parameters.contains_key(key))?;
    }
    Ok(())
}

fn refuse_extensions(tensor: &str, has: impl Fn(&str) -> bool) -> Result<(), InputError> {
    match EXTENSIONS.into_iter().find(|key| has(key)) {
        None => Ok(()),
        Some(parameter) => Err(InputError::Extension {
            tensor: tensor.to_owned(),
            parameter,
        }),
    }
}

fn decode(input: &InferInputTensor, raw: Option<&Bytes>) -> Result<Tensor, InputError> {
    let name = || input.name.clone();
    if input.datatype == "BYTES" {
        return Err(InputError::Bytes { name: name() });
    }
    let datatype = input.datatype.parse();
    let datatype: DataType = datatype.map_err(|reason| InputError::DataType {
        name: name(),
        reason,
    })?;
    let data = match (raw, &input.contents) {
        (Some(_), Some(contents)) if *contents != Default::default() => {
            return Err(InputError::Both { name: name() });
        }
        (Some(raw), _) => raw.clone(),
        (None, Some(contents)) => typed::to_bytes(&input.name, datatype, contents)?,
        (None, None) => Bytes::new(),
    };
    Ok(Tensor {
        datatype,
        shape: input.shape.clone(),
        data,
    })
}

/// Names of the outputs that the client wants, in its order; all of them, in the
/// model's order, where it names none.
///
/// # Errors
/// A name that the model does not give, or one given twice.
pub(super) fn wanted_outputs(
    model: &Model,
    requested: &[InferRequestedOutputTensor],
) -> Result<Vec<String>, InputError> {
    if requested.is_empty() {
        return Ok(model.outputs.iter().map(|o| o.name.clone()).collect());
    }
    let mut names: Vec<String> = Vec::with_capacity(requested.len());
    for output in requested {
        if !model.outputs.iter().any(|spec| spec.name == output.name) {
            return Err(InputError::UnknownOutput {
                name: output.name.clone(),
                model: model.name.clone(),
                gives: describe(&model.outputs),
            });
        }
        if names.contains(&output.name) {
            return Err(InputError::Twice {
                kind: "output",
                name: output.name.clone(),
            });
        }
        refuse_extensions(&output.name, |key| output.parameters.contains_key(key))?;
        names.push(output.name.clone());
    }
    Ok(names)
}

/// `` `image` FP32 [-1, 3, 224, 224] ``.
fn describe(specs: &[ValueSpec]) -> String {
    let one = |s: &ValueSpec| format!("`{}` {} {:?}", s.name, s.datatype, s.shape);
    specs.iter().map(one).collect::<Vec<_>>().join(", ")
}

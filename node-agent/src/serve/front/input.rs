//! A client's inputs, checked against the model's.

use super::error::InputError;
use super::{files, typed};
use crate::serve::exits::{self, Asked};
use crate::serve::hop::to_wire;
use crate::serve::routes::Signature;
use bytes::Bytes;
use lamina_crds::dnn_model::EarlyExits;
use lamina_model::{DataType, Tensor, ValueSpec, check_sizes};
use lamina_proto::hop::{ExitRules, Tensor as WireTensor};
use lamina_proto::inference::ModelInferRequest;
use lamina_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use std::collections::BTreeSet;

/// Parameters for features that would silently be ignored.
const EXTENSIONS: [&str; 2] = ["shared_memory_region", "classification"];

/// A request, as one revision reads it.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// Its inputs, in the revision's order.
    pub(super) tensors: Vec<WireTensor>,
    /// Names of the outputs that the client wants, in its order.
    pub(super) wanted: Vec<String>,
    /// Its exits.
    pub(super) exits: Option<ExitRules>,
}

/// `request` for the model `model`, as the revision with `signature` reads it.
/// `earlier` is the previous revision's signature, if different; `early` has the user's
/// settings for exits.
///
/// # Errors
/// The first mismatch, by name; if it fits the earlier revision, the current
/// inputs.
pub(super) fn read(
    model: &str,
    signature: &Signature,
    earlier: Option<&Signature>,
    early: Option<&EarlyExits>,
    request: &ModelInferRequest,
) -> Result<Reading, InputError> {
    let reader = |signature| Reader {
        model,
        signature,
        early,
    };
    reader(signature).read(request).map_err(|reason| {
        let fitted = |signature| reader(signature).read(request).is_ok();
        if !earlier.is_some_and(fitted) {
            return reason;
        }
        InputError::Updated {
            model: model.to_owned(),
            revision: signature.revision,
            takes: describe(&signature.inputs),
            gives: describe(&signature.outputs),
            reason: Box::new(reason),
        }
    })
}

struct Reader<'a> {
    model: &'a str,
    signature: &'a Signature,
    early: Option<&'a EarlyExits>,
}

impl Reader<'_> {
    fn read(&self, request: &ModelInferRequest) -> Result<Reading, InputError> {
        let tensors = self.inputs(request)?;
        let wanted = self.wanted_outputs(&request.outputs)?;
        let leaving = self.leaving(request)?;
        let (exits, answer) = leaving.unzip();
        Ok(Reading {
            tensors,
            wanted: answer.map_or(wanted, |answer| vec![answer]),
            exits,
        })
    }

    /// Where rows may leave, and the output that then has the answer.
    fn leaving(
        &self,
        request: &ModelInferRequest,
    ) -> Result<Option<(ExitRules, String)>, InputError> {
        let asked = Asked::of(&request.parameters)?;
        let wanted: Vec<&str> = request.outputs.iter().map(|o| o.name.as_str()).collect();
        let exits = self.signature.exits.as_ref();
        Ok(exits::wish(exits, self.early, &asked, &wanted)?)
    }

    fn inputs(&self, request: &ModelInferRequest) -> Result<Vec<WireTensor>, InputError> {
        let raw = &request.raw_input_contents;
        let given = &request.inputs;
        if !raw.is_empty() && raw.len() != given.len() {
            return Err(InputError::RawCount {
                inputs: given.len(),
                raw: raw.len(),
            });
        }
        self.refuse_misnamed(given)?;
        let one = |spec: &ValueSpec| {
            let place = given.iter().position(|i| i.name == spec.name);
            let place = place.ok_or_else(|| InputError::Missing {
                name: spec.name.clone(),
                model: self.model.to_owned(),
                takes: describe(&self.signature.inputs),
            })?;
            let tensor = match spec.file_bytes() {
                Some(most) => files::rows(spec, most, &given[place], raw.get(place))?,
                None => decode(&given[place], raw.get(place))?,
            };
            tensor.check(spec)?;
            Ok(to_wire(&spec.name, tensor))
        };
        let specs = &self.signature.inputs;
        let tensors: Vec<WireTensor> = specs.iter().map(one).collect::<Result<_, InputError>>()?;
        refuse_uneven(specs, &tensors)?;
        check_sizes(specs, tensors.iter().map(|t| &t.shape[..]))?;
        Ok(tensors)
    }

    fn refuse_misnamed(&self, given: &[InferInputTensor]) -> Result<(), InputError> {
        let specs = &self.signature.inputs;
        let mut seen = BTreeSet::new();
        for input in given {
            if !specs.iter().any(|spec| spec.name == input.name) {
                return Err(InputError::Unknown {
                    name: input.name.clone(),
                    model: self.model.to_owned(),
                    takes: describe(specs),
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

    /// All outputs, in the revision's order, if the client names none.
    fn wanted_outputs(
        &self,
        requested: &[InferRequestedOutputTensor],
    ) -> Result<Vec<String>, InputError> {
        let specs = &self.signature.outputs;
        if requested.is_empty() {
            return Ok(specs.iter().map(|o| o.name.clone()).collect());
        }
        let mut names: Vec<String> = Vec::with_capacity(requested.len().min(specs.len()));
        for output in requested {
            if !specs.iter().any(|spec| spec.name == output.name) {
                return Err(InputError::UnknownOutput {
                    name: output.name.clone(),
                    model: self.model.to_owned(),
                    gives: describe(specs),
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
}

/// Inputs with a free first dimension have one row per row of the batch; a single row beside
/// several would silently be used for all of them.
fn refuse_uneven(specs: &[ValueSpec], tensors: &[WireTensor]) -> Result<(), InputError> {
    let mut batches = specs.iter().zip(tensors).filter_map(|(spec, tensor)| {
        let rows = tensor.shape.first()?;
        spec.has_rows().then_some((&spec.name, *rows))
    });
    let Some((one, of_one)) = batches.next() else {
        return Ok(());
    };
    match batches.find(|(_, rows)| *rows != of_one) {
        None => Ok(()),
        Some((other, of_other)) => Err(InputError::Batches {
            one: one.clone(),
            of_one,
            other: other.clone(),
            of_other,
        }),
    }
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
    if input.datatype == files::BYTES {
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

/// `` `image` FP32 [-1, 3, 224, 224] ``.
fn describe(specs: &[ValueSpec]) -> String {
    let one = |s: &ValueSpec| format!("`{}` {} {}", s.name, s.public_datatype(), s.shape_text());
    specs.iter().map(one).collect::<Vec<_>>().join(", ")
}

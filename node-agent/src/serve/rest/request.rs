//! The body of a request as the protocol's own message, with all contents raw. Pure.

use super::data::{self, Wanted};
use super::error::RequestError;
use super::head::{AtMost, Head, Input, Output, Parameters};
use bytes::Bytes;
use lamina_model::DataType;
use lamina_proto::inference::infer_parameter::ParameterChoice;
use lamina_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use lamina_proto::inference::model_metadata_response::TensorMetadata;
use lamina_proto::inference::{ModelInferRequest, ModelMetadataResponse};
use std::collections::BTreeMap;

const BINARY_SIZE: &str = "binary_data_size";
/// The type of files.
const FILES: &str = "BYTES";
const BINARY: &str = "binary_data";
const ALL_BINARY: &str = "binary_data_output";
/// An input with this has no contents; the front reports what is supported.
const SHARED_MEMORY: &str = "shared_memory_region";

/// A request, and the form of its answer.
#[derive(Debug)]
pub(super) struct Parsed {
    /// Without the model's name and version, which are in the path.
    pub(super) request: ModelInferRequest,
    pub(super) binary: BinaryOutputs,
}

/// Which outputs the client wants in binary.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct BinaryOutputs {
    /// All that are not named below.
    pub(super) all: bool,
    pub(super) named: BTreeMap<String, bool>,
}

impl BinaryOutputs {
    pub(super) fn has(&self, output: &str) -> bool {
        self.named.get(output).copied().unwrap_or(self.all)
    }
}

/// Reads a body. Its first `header_length` bytes are JSON, or all of it if that is
/// not given.
///
/// # Errors
/// Malformed parts, by name. Whether the model accepts such inputs is not checked.
pub(super) fn parse(body: &Bytes, header_length: Option<usize>) -> Result<Parsed, RequestError> {
    let json_bytes = header_length.unwrap_or(body.len());
    let json = body.get(..json_bytes).ok_or(RequestError::HeaderBeyond {
        given: json_bytes,
        body: body.len(),
    })?;
    let Head {
        id,
        mut parameters,
        inputs: AtMost(inputs),
        outputs,
    } = serde_json::from_slice(json)?;
    let mut binary = BinaryOutputs {
        all: flag(&mut parameters, ALL_BINARY)?.unwrap_or_default(),
        named: BTreeMap::new(),
    };
    let outputs = outputs.map(|AtMost(outputs)| outputs).unwrap_or_default();
    let outputs = outputs
        .into_iter()
        .map(|output| requested(output, &mut binary))
        .collect::<Result<_, _>>()?;
    let behind = body.slice(json_bytes..);
    let (inputs, raw_input_contents) = contents(json, inputs, &behind)?;
    Ok(Parsed {
        request: ModelInferRequest {
            id: id.unwrap_or_default(),
            parameters: parameters.0,
            inputs,
            outputs,
            raw_input_contents,
            ..ModelInferRequest::default()
        },
        binary,
    })
}

fn requested(
    output: Output,
    binary: &mut BinaryOutputs,
) -> Result<InferRequestedOutputTensor, RequestError> {
    let Output {
        name,
        mut parameters,
    } = output;
    if let Some(is_binary) = flag(&mut parameters, BINARY)? {
        binary.named.insert(name.clone(), is_binary);
    }
    Ok(InferRequestedOutputTensor {
        name,
        parameters: parameters.0,
    })
}

fn flag(parameters: &mut Parameters, name: &'static str) -> Result<Option<bool>, RequestError> {
    match parameters.take(name) {
        None => Ok(None),
        Some(ParameterChoice::BoolParam(value)) => Ok(Some(value)),
        Some(_) => Err(RequestError::Flag(name)),
    }
}

/// Where the contents of an input are.
enum Source {
    Json,
    /// This many of the bytes after the JSON.
    Behind(usize),
    Nowhere,
}

type Contents = (Vec<InferInputTensor>, Vec<Bytes>);

fn contents(json: &[u8], inputs: Vec<Input>, behind: &Bytes) -> Result<Contents, RequestError> {
    let mut tensors = Vec::with_capacity(inputs.len());
    let mut sources = Vec::with_capacity(inputs.len());
    for input in inputs {
        let (tensor, source) = tensor(input)?;
        tensors.push(tensor);
        sources.push(source);
    }
    refuse_other_size(&sources, behind.len())?;
    let typed = typed(json, &tensors, &sources)?;
    let mut at = 0;
    let mut take = |bytes: usize| {
        at += bytes;
        behind.slice(at - bytes..at)
    };
    let raw = sources.into_iter().zip(typed).map(|source| match source {
        (Source::Behind(bytes), _) => take(bytes),
        (_, Some(typed)) => typed.into(),
        _ => Bytes::new(),
    });
    let raw = raw.collect();
    Ok((tensors, raw))
}

fn tensor(input: Input) -> Result<(InferInputTensor, Source), RequestError> {
    let Input {
        name,
        datatype,
        shape: AtMost(shape),
        mut parameters,
        data,
    } = input;
    let size = match parameters.take(BINARY_SIZE) {
        None => None,
        Some(ParameterChoice::Int64Param(size)) if size >= 0 => usize::try_from(size).ok(),
        Some(_) => return Err(RequestError::BinarySize(name)),
    };
    let source = match (size, data) {
        (Some(_), Some(_)) => return Err(RequestError::Both(name)),
        (Some(size), None) => Source::Behind(size),
        (None, Some(_)) => Source::Json,
        (None, None) if parameters.has(SHARED_MEMORY) => Source::Nowhere,
        (None, None) => return Err(RequestError::Neither(name)),
    };
    let tensor = InferInputTensor {
        name,
        datatype,
        shape,
        parameters: parameters.0,
        contents: None,
    };
    Ok((tensor, source))
}

/// The sizes must add up exactly to the given bytes.
fn refuse_other_size(sources: &[Source], given: usize) -> Result<(), RequestError> {
    let sizes = sources.iter().map(|source| match source {
        Source::Behind(bytes) => *bytes as u128,
        _ => 0,
    });
    let sizes: u128 = sizes.sum();
    if sizes == given as u128 {
        return Ok(());
    }
    Err(RequestError::BinarySizes {
        sizes: sizes.to_string(),
        given,
    })
}

fn typed(
    json: &[u8],
    tensors: &[InferInputTensor],
    sources: &[Source],
) -> Result<Vec<Option<Vec<u8>>>, RequestError> {
    let wanted = tensors
        .iter()
        .zip(sources)
        .map(|(tensor, source)| match source {
            Source::Json => wanted(tensor),
            _ => Ok(None),
        });
    let wanted: Vec<Option<Wanted<'_>>> = wanted.collect::<Result<_, _>>()?;
    if wanted.iter().all(Option::is_none) {
        return Ok(vec![None; wanted.len()]);
    }
    Ok(data::read(json, &wanted)?)
}

/// The type of its elements; `None` if the front refuses the datatype anyway.
fn wanted(tensor: &InferInputTensor) -> Result<Option<Wanted<'_>>, RequestError> {
    let Ok(datatype) = tensor.datatype.parse::<DataType>() else {
        return Ok(None);
    };
    let name = || tensor.name.clone();
    if matches!(datatype, DataType::Fp16 | DataType::Bf16) {
        return Err(RequestError::OnlyBinary {
            name: name(),
            datatype: datatype.to_string(),
        });
    }
    let bytes = datatype.checked_bytes(&tensor.shape);
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| RequestError::Overflow {
        name: name(),
        shape: tensor.shape.clone(),
    })?;
    Ok(Some(Wanted {
        name: &tensor.name,
        datatype,
        shape: &tensor.shape,
        elements: bytes / datatype.size_bytes(),
    }))
}

/// A body that has only the bytes of a single input.
///
/// # Errors
/// The model has more inputs, or the bytes do not determine its shape.
pub(super) fn raw(body: Bytes, model: &ModelMetadataResponse) -> Result<Parsed, RequestError> {
    let [input] = model.inputs.as_slice() else {
        return Err(RequestError::RawInputs {
            model: model.name.clone(),
            inputs: model.inputs.len(),
        });
    };
    // One file is the whole body, without a length before it.
    let is_file = input.datatype == FILES && u32::try_from(body.len()).is_ok();
    let (shape, body) = if is_file {
        (Some(vec![1]), with_length(&body))
    } else {
        (told_by_size(input, body.len()), body)
    };
    let shape = shape.ok_or_else(|| RequestError::RawShape {
        name: input.name.clone(),
        datatype: input.datatype.clone(),
        shape: input.shape.clone(),
        bytes: body.len(),
    })?;
    let tensor = InferInputTensor {
        name: input.name.clone(),
        datatype: input.datatype.clone(),
        shape,
        ..InferInputTensor::default()
    };
    Ok(Parsed {
        request: ModelInferRequest {
            inputs: vec![tensor],
            raw_input_contents: vec![body],
            ..ModelInferRequest::default()
        },
        binary: BinaryOutputs {
            all: true,
            named: BTreeMap::new(),
        },
    })
}

/// `file` as an element of BYTES.
fn with_length(file: &Bytes) -> Bytes {
    // Checked before.
    let length = u32::try_from(file.len()).unwrap_or(0);
    [&length.to_le_bytes()[..], file].concat().into()
}

/// The input's shape, with its free dimension, if any, derived from `bytes`.
fn told_by_size(input: &TensorMetadata, bytes: usize) -> Option<Vec<i64>> {
    let datatype: DataType = input.datatype.parse().ok()?;
    let is_free = |dimension: &i64| *dimension < 0;
    if input.shape.iter().filter(|d| is_free(d)).count() > 1 {
        return None;
    }
    let mut shape = input.shape.clone();
    let place = shape.iter().position(is_free);
    if let Some(place) = place {
        *shape.get_mut(place)? = 1;
        let one = usize::try_from(datatype.checked_bytes(&shape)?).ok()?;
        *shape.get_mut(place)? = i64::try_from(bytes.checked_div(one)?).ok()?;
    }
    let fits = datatype.checked_bytes(&shape) == u64::try_from(bytes).ok();
    fits.then_some(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(json: &str) -> Result<Parsed, RequestError> {
        parse(&Bytes::from(json.to_owned()), None)
    }

    /// With the bytes of `behind` after the JSON.
    fn parse_binary(json: &str, behind: &[u8]) -> Result<Parsed, RequestError> {
        let body = [json.as_bytes(), behind].concat();
        parse(&body.into(), Some(json.len()))
    }

    fn input(more: &str) -> String {
        format!(r#"{{"name":"x","datatype":"UINT8","shape":[2],{more}}}"#)
    }

    #[test]
    fn json_and_binary_inputs_may_stand_side_by_side() {
        let json = format!(
            r#"{{"id":"7","parameters":{{"a":true,"b":-1,"c":1.5,"d":"e"}},"inputs":[{},{},{}]}}"#,
            input(r#""parameters":{"binary_data_size":2}"#),
            input(r#""data":[1,2]"#),
            input(r#""parameters":{"binary_data_size":2,"other":1}"#),
        );
        let parsed = parse_binary(&json, &[5, 6, 7, 8]).unwrap();
        let request = parsed.request;
        assert_eq!(request.id, "7");
        assert_eq!(
            request.raw_input_contents,
            [&[5_u8, 6][..], &[1, 2], &[7, 8]]
        );
        assert_eq!(request.parameters.len(), 4);
        assert!(request.inputs[0].parameters.is_empty());
        assert_eq!(request.inputs[2].parameters.len(), 1);
        assert_eq!(request.inputs[1].shape, [2]);
        assert!(!parsed.binary.all);
    }

    #[test]
    fn outputs_are_binary_where_the_client_says_so() {
        let json = format!(
            r#"{{"inputs":[{}],"parameters":{{"binary_data_output":true}},
               "outputs":[{{"name":"a"}},{{"name":"b","parameters":{{"binary_data":false}}}}]}}"#,
            input(r#""data":[1,2]"#)
        );
        let parsed = parse_text(&json).unwrap();
        assert!(parsed.binary.has("a") && !parsed.binary.has("b"));
        assert!(parsed.request.parameters.is_empty());
        let names: Vec<&str> = parsed
            .request
            .outputs
            .iter()
            .map(|o| o.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let one = |more: &str| format!(r#"{{"inputs":[{}]}}"#, input(more));
        let with = |more: &str| format!(r#"{{"inputs":[{}],{more}}}"#, input(r#""data":[1,2]"#));
        for (json, cause) in [
            (String::new(), "EOF"),
            ("[]".to_owned(), "expected struct"),
            ("{}".to_owned(), "missing field `inputs`"),
            (r#"{"inputs":{}}"#.to_owned(), "a list of at most 256"),
            (
                r#"{"inputs":[{"name":"x"}]}"#.to_owned(),
                "missing field `datatype`",
            ),
            (one(r#""data":[1,2],"data":[1,2]"#), "duplicate field"),
            (
                one(r#""data":[1,2],"parameters":{"binary_data_size":0}"#),
                "both",
            ),
            (one(r#""data":null"#), "neither"),
            (
                one(r#""parameters":{"binary_data_size":-1}"#),
                "whole number",
            ),
            (
                one(r#""parameters":{"binary_data_size":"2"}"#),
                "whole number",
            ),
            (
                one(r#""parameters":{"binary_data_size":2}"#),
                "come to 2 bytes, but 0",
            ),
            (
                one(r#""parameters":{"a":[1]},"data":[1,2]"#),
                "expected a parameter",
            ),
            (
                one(r#""parameters":[1],"data":[1,2]"#),
                "an object of at most 64",
            ),
            (with(r#""id":5"#), "expected a string"),
            (
                with(r#""parameters":{"binary_data_output":1}"#),
                "true or false",
            ),
            (with(r#""outputs":[{}]"#), "missing field `name`"),
            (with(r#""outputs":[]"#) + "x", "trailing characters"),
        ] {
            let error = parse_text(&json).unwrap_err().to_string();
            assert!(error.contains(cause), "{json}: {error}");
        }
    }

    #[test]
    fn sizes_must_come_to_what_is_there() {
        let size = |bytes: &str| {
            let more = format!(r#""parameters":{{"binary_data_size":{bytes}}}"#);
            format!(r#"{{"inputs":[{0},{0}]}}"#, input(&more))
        };
        assert!(parse_binary(&size("2"), &[0; 4]).is_ok());
        for (bytes, behind) in [("2", 3), ("2", 5), ("0", 1), ("9223372036854775807", 4)] {
            let error = parse_binary(&size(bytes), &vec![0; behind]).unwrap_err();
            let is_named =
                matches!(error, RequestError::BinarySizes { given, .. } if given == behind);
            assert!(is_named, "{bytes}: {error}");
        }
        let error = parse(&Bytes::from_static(b"{}"), Some(3)).unwrap_err();
        assert!(error.to_string().contains("has 2 bytes"), "{error}");
    }

    #[test]
    fn half_floats_travel_in_binary_and_shapes_do_not_overflow() {
        let of = |datatype: &str, shape: &str| {
            format!(
                r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":[1]}}]}}"#
            )
        };
        for datatype in ["FP16", "BF16"] {
            let error = parse_text(&of(datatype, "[1]")).unwrap_err().to_string();
            assert!(error.contains("binary_data_size"), "{error}");
        }
        for shape in ["[-1]", "[4611686018427387904,4]"] {
            let error = parse_text(&of("FP32", shape)).unwrap_err().to_string();
            assert!(error.contains("overflowing"), "{error}");
        }
        // The front has the messages for these.
        for datatype in ["BYTES", "FP8"] {
            assert!(parse_text(&of(datatype, "[1]")).is_ok());
        }
        let dimensions = vec!["1"; 65].join(",");
        let error = parse_text(&of("FP32", &format!("[{dimensions}]")));
        assert!(error.unwrap_err().to_string().contains("at most 64"));
    }

    #[test]
    fn no_list_of_the_client_is_unbounded() {
        let tensor = input(r#""data":[1,2]"#);
        let inputs = vec![tensor.as_str(); 257].join(",");
        let error = parse_text(&format!(r#"{{"inputs":[{inputs}]}}"#)).unwrap_err();
        assert!(error.to_string().contains("at most 256"), "{error}");
        let parameters: Vec<String> = (0..65).map(|n| format!(r#""{n}":{n}"#)).collect();
        let json = format!(
            r#"{{"inputs":[],"parameters":{{{}}}}}"#,
            parameters.join(",")
        );
        let error = parse_text(&json).unwrap_err();
        assert!(error.to_string().contains("at most 64"), "{error}");
    }

    #[test]
    fn bytes_alone_are_the_only_input() {
        let model = |shapes: &[&[i64]]| ModelMetadataResponse {
            name: "m".into(),
            inputs: shapes
                .iter()
                .map(|shape| TensorMetadata {
                    name: "x".into(),
                    datatype: "FP32".into(),
                    shape: shape.to_vec(),
                })
                .collect(),
            ..ModelMetadataResponse::default()
        };
        let told = |shapes: &[&[i64]], bytes: usize| {
            let parsed = raw(vec![0; bytes].into(), &model(shapes))?;
            assert!(parsed.binary.has("anything"));
            Ok::<_, RequestError>(parsed.request.inputs[0].shape.clone())
        };
        assert_eq!(told(&[&[-1, 2]], 24).unwrap(), [3, 2]);
        assert_eq!(told(&[&[1, 2]], 8).unwrap(), [1, 2]);
        for (shapes, bytes) in [
            (&[&[-1_i64, 2][..]][..], 20),
            (&[&[1, 2]], 16),
            (&[&[-1, -1]], 8),
            (&[&[-1, 0]], 8),
            (&[&[-1, 2], &[-1, 2]], 8),
            (&[], 8),
        ] {
            assert!(told(shapes, bytes).is_err(), "{shapes:?} {bytes}");
        }
    }

    #[test]
    fn a_body_that_is_a_file_is_the_only_element() {
        let model = ModelMetadataResponse {
            inputs: vec![TensorMetadata {
                name: "image".into(),
                datatype: FILES.into(),
                shape: vec![-1],
            }],
            ..ModelMetadataResponse::default()
        };
        let request = raw(Bytes::from_static(b"jpeg"), &model).unwrap().request;
        assert_eq!(request.inputs[0].shape, [1]);
        assert_eq!(request.raw_input_contents, [&b"\x04\0\0\0jpeg"[..]]);
    }
}

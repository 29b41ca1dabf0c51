//! The answer over HTTP: JSON, followed by the outputs that the client wants in binary. Pure.

use super::error::RestError;
use super::request::BinaryOutputs;
use bytes::Bytes;
use lamina_model::DataType;
use lamina_proto::inference::infer_parameter::ParameterChoice;
use lamina_proto::inference::{InferParameter, ModelInferResponse};
use serde::Serialize;
use serde::ser::Serializer;
use std::collections::{BTreeMap, HashMap};

/// A body before compression.
#[derive(Debug)]
pub(super) struct Rendered {
    /// The JSON first.
    pub(super) parts: Vec<Bytes>,
    /// Length of the JSON if binary outputs follow.
    pub(super) header_length: Option<usize>,
}

#[derive(Serialize)]
struct Answer<'a> {
    model_name: &'a str,
    model_version: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<&'a str, Parameter<'a>>,
    outputs: Vec<Output<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Parameter<'a> {
    Bool(bool),
    Int(i64),
    Unsigned(u64),
    Double(f64),
    Text(&'a str),
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [i64],
    #[serde(flatten)]
    contents: Contents<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Contents<'a> {
    Parameters(BinarySize),
    Data(Elements<'a>),
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

/// Elements of a tensor, as a flat list. NaN and infinities become null, since JSON cannot express
/// them.
struct Elements<'a> {
    datatype: DataType,
    data: &'a [u8],
}

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let data = self.data;
        match self.datatype {
            DataType::Bool => serializer.collect_seq(data.iter().map(|byte| *byte != 0)),
            DataType::Uint8 => serializer.collect_seq(data),
            DataType::Int8 => serializer.collect_seq(each(data, i8::from_le_bytes)),
            DataType::Int16 => serializer.collect_seq(each(data, i16::from_le_bytes)),
            DataType::Int32 => serializer.collect_seq(each(data, i32::from_le_bytes)),
            DataType::Int64 => serializer.collect_seq(each(data, i64::from_le_bytes)),
            DataType::Fp32 => serializer.collect_seq(each(data, f32::from_le_bytes)),
            DataType::Fp64 => serializer.collect_seq(each(data, f64::from_le_bytes)),
            // Sent in binary or refused.
            DataType::Fp16 | DataType::Bf16 => serializer.collect_seq([0_u8; 0]),
        }
    }
}

fn each<T, const N: usize>(data: &[u8], from: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    data.chunks_exact(N)
        .filter_map(|chunk| chunk.try_into().ok())
        .map(from)
}

/// Writes `response`, with the outputs named in `binary` after the JSON.
///
/// # Errors
/// An output that JSON cannot express is not among those.
pub(super) fn render(
    response: &ModelInferResponse,
    binary: &BinaryOutputs,
) -> Result<Rendered, RestError> {
    let mut parts = vec![Bytes::new()];
    let mut outputs = Vec::with_capacity(response.outputs.len());
    for (output, data) in response.outputs.iter().zip(&response.raw_output_contents) {
        let contents = if binary.has(&output.name) {
            parts.push(data.clone());
            Contents::Parameters(BinarySize {
                binary_data_size: data.len(),
            })
        } else {
            Contents::Data(Elements {
                datatype: in_json(&output.name, &output.datatype)?,
                data,
            })
        };
        outputs.push(Output {
            name: &output.name,
            datatype: &output.datatype,
            shape: &output.shape,
            contents,
        });
    }
    let answer = Answer {
        model_name: &response.model_name,
        model_version: &response.model_version,
        id: &response.id,
        parameters: parameters(&response.parameters),
        outputs,
    };
    let json =
        serde_json::to_vec(&answer).map_err(|error| RestError::Internal(error.to_string()))?;
    let header_length = (parts.len() > 1).then_some(json.len());
    if let Some(first) = parts.first_mut() {
        *first = json.into();
    }
    Ok(Rendered {
        parts,
        header_length,
    })
}

fn in_json(name: &str, datatype: &str) -> Result<DataType, RestError> {
    let parsed = datatype.parse().ok();
    let in_json = parsed.filter(|d| !matches!(d, DataType::Fp16 | DataType::Bf16));
    in_json.ok_or_else(|| RestError::OnlyBinaryOutput {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
    })
}

fn parameters(given: &HashMap<String, InferParameter>) -> BTreeMap<&str, Parameter<'_>> {
    let parameters = given.iter().filter_map(|(name, parameter)| {
        let value = match parameter.parameter_choice.as_ref()? {
            ParameterChoice::BoolParam(value) => Parameter::Bool(*value),
            ParameterChoice::Int64Param(value) => Parameter::Int(*value),
            ParameterChoice::Uint64Param(value) => Parameter::Unsigned(*value),
            ParameterChoice::DoubleParam(value) => Parameter::Double(*value),
            ParameterChoice::StringParam(value) => Parameter::Text(value),
        };
        Some((name.as_str(), value))
    });
    parameters.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_proto::inference::model_infer_response::InferOutputTensor;
    use serde_json::{Value, json};

    fn response(outputs: &[(&str, &str, Vec<u8>)]) -> ModelInferResponse {
        let parameter = |choice| InferParameter {
            parameter_choice: Some(choice),
        };
        ModelInferResponse {
            model_name: "m".into(),
            model_version: "1".into(),
            id: "\"7".into(),
            parameters: HashMap::from([
                ("revision".into(), parameter(ParameterChoice::Int64Param(3))),
                (
                    "path".into(),
                    parameter(ParameterChoice::StringParam("a→b".into())),
                ),
            ]),
            outputs: outputs
                .iter()
                .map(|(name, datatype, _)| InferOutputTensor {
                    name: (*name).into(),
                    datatype: (*datatype).into(),
                    shape: vec![-1],
                    ..InferOutputTensor::default()
                })
                .collect(),
            raw_output_contents: outputs.iter().map(|o| o.2.clone().into()).collect(),
        }
    }

    fn rendered(outputs: &[(&str, &str, Vec<u8>)], binary: &BinaryOutputs) -> (Value, Rendered) {
        let rendered = render(&response(outputs), binary).unwrap();
        let json = serde_json::from_slice(&rendered.parts[0]).unwrap();
        (json, rendered)
    }

    #[test]
    fn every_datatype_has_its_json() {
        for (datatype, data, wanted) in [
            ("BOOL", vec![1, 0], json!([true, false])),
            ("UINT8", vec![200], json!([200])),
            ("INT8", vec![0xfe], json!([-2])),
            ("INT16", vec![0xfe, 0xff], json!([-2])),
            ("INT32", (-2_i32).to_le_bytes().to_vec(), json!([-2])),
            ("INT64", i64::MIN.to_le_bytes().to_vec(), json!([i64::MIN])),
            ("FP32", 0.1_f32.to_le_bytes().to_vec(), json!([0.1])),
            ("FP32", f32::NAN.to_le_bytes().to_vec(), json!([null])),
            ("FP64", 1e300_f64.to_le_bytes().to_vec(), json!([1e300])),
            ("FP64", f64::INFINITY.to_le_bytes().to_vec(), json!([null])),
        ] {
            let (json, rendered) = rendered(&[("y", datatype, data)], &BinaryOutputs::default());
            assert_eq!(json["outputs"][0]["data"], wanted, "{datatype}");
            assert_eq!(json["outputs"][0]["datatype"], datatype);
            assert_eq!((rendered.header_length, rendered.parts.len()), (None, 1));
        }
    }

    #[test]
    fn binary_outputs_stand_behind_the_json_in_order() {
        let binary = BinaryOutputs {
            all: true,
            named: [("b".to_owned(), false)].into(),
        };
        let outputs = [
            ("a", "FP16", vec![1, 2]),
            ("b", "UINT8", vec![3]),
            ("c", "UINT8", vec![4, 5]),
        ];
        let (json, rendered) = rendered(&outputs, &binary);
        assert_eq!(rendered.header_length, Some(rendered.parts[0].len()));
        assert_eq!(rendered.parts[1..], [&[1_u8, 2][..], &[4, 5]]);
        assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 2);
        assert_eq!(json["outputs"][1]["data"], json!([3]));
        assert_eq!(json["outputs"][2]["parameters"]["binary_data_size"], 2);
        let rest = json!({"path": "a→b", "revision": 3});
        assert_eq!((&json["id"], &json["parameters"]), (&json!("\"7"), &rest));
    }

    #[test]
    fn half_floats_are_refused_in_json() {
        for datatype in ["FP16", "BF16"] {
            let response = response(&[("y", datatype, vec![0; 2])]);
            let error = render(&response, &BinaryOutputs::default()).unwrap_err();
            assert!(error.to_string().contains("binary_data"), "{error}");
        }
    }
}

//! The answer in the protocol's form. Always raw, the only form that common clients read.

use super::dispatch::Answered;
use super::error::FrontError;
use lamina_model::ValueSpec;
use lamina_proto::hop::{HopTiming, RowExit, Tensor};
use lamina_proto::inference::infer_parameter::ParameterChoice;
use lamina_proto::inference::model_infer_response::InferOutputTensor;
use lamina_proto::inference::{InferParameter, ModelInferResponse};
use serde::Serialize;
use std::collections::HashMap;

/// The only version of a model: a redeploy changes only where it runs, which
/// `lamina_placement_revision` shows.
pub(super) const VERSION: &str = "1";

/// One host's entry in `lamina_timing`.
#[derive(Debug, Serialize)]
struct TimingLine<'a> {
    node: &'a str,
    segment: u32,
    queue_us: u64,
    compute_us: u64,
    /// Decoding values that came in fewer bytes, and encoding those for the next host.
    encode_us: u64,
    /// To the next host and back, without the time there; 0 on the last.
    transfer_us: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// The content of `lamina_entry`: the part of a request's time before it was on its path.
#[derive(Debug, Serialize)]
pub(super) struct AtEntry {
    pub(super) node: String,
    /// From the request's arrival to the answer.
    pub(super) total_us: u64,
    /// Until it was last sent.
    pub(super) wait_us: u64,
    /// To the first host and back, without the time there; 0 if that is the entry.
    pub(super) transfer_us: u64,
}

/// One row's entry in `lamina_exits`.
#[derive(Debug, Serialize)]
struct ExitLine<'a> {
    exit: &'a str,
    /// By the model's criterion: confidence, or normalised entropy.
    measure: f64,
    /// The host of that exit.
    node: &'a str,
    /// It was not confident, but the next host was away.
    #[serde(rename = "cutOff", skip_serializing_if = "std::ops::Not::not")]
    is_cut_off: bool,
}

/// The outputs that the client wants, in its order.
///
/// # Errors
/// The path did not give one of them.
pub(super) fn response(
    model_name: String,
    id: String,
    answered: Answered,
) -> Result<ModelInferResponse, FrontError> {
    let parameters = parameters(&answered);
    let mut outputs = Vec::with_capacity(answered.wanted.len());
    let mut raw = Vec::with_capacity(answered.wanted.len());
    for name in &answered.wanted {
        let found = answered.reply.tensors.iter().find(|t| t.name == *name);
        let tensor = found.ok_or_else(|| FrontError::NoOutput(name.clone()))?;
        let mut declared = answered.signature.outputs.iter();
        if let Some(spec) = declared.find(|s| s.name == *name && !is_readable(tensor, s)) {
            return Err(FrontError::Output {
                name: name.clone(),
                datatype: tensor.datatype.clone(),
                shape: tensor.shape.clone(),
                bytes: tensor.data.len(),
                declared: (spec.datatype, spec.shape.clone()),
            });
        }
        outputs.push(InferOutputTensor {
            name: name.clone(),
            datatype: tensor.datatype.clone(),
            shape: tensor.shape.clone(),
            ..InferOutputTensor::default()
        });
        raw.push(tensor.data.clone());
    }
    Ok(ModelInferResponse {
        model_name,
        model_version: VERSION.to_owned(),
        id,
        parameters,
        outputs,
        raw_output_contents: raw,
    })
}

/// Whether a client can read `tensor`, which comes from another host, as the output of `spec`. Its
/// sizes are the model's own affair: what it finds depends on its inputs.
fn is_readable(tensor: &Tensor, spec: &ValueSpec) -> bool {
    tensor.datatype.parse() == Ok(spec.datatype)
        && spec.datatype.checked_bytes(&tensor.shape) == Some(tensor.data.len() as u64)
}

/// Bytes of the tensors in `response`, which are most of it.
pub(super) fn bytes_of(response: &ModelInferResponse) -> u64 {
    let tensors = response.raw_output_contents.iter();
    tensors.map(|raw| raw.len() as u64).sum()
}

fn parameters(answered: &Answered) -> HashMap<String, InferParameter> {
    let reply = &answered.reply;
    let timing = timing_json(&reply.timings);
    // Names and numbers alone; there is nothing that cannot be written.
    let entry = serde_json::to_string(&answered.entry).unwrap_or_default();
    let exits = (!answered.exits.is_empty()).then(|| {
        let lines = exits_json(&answered.exits, &reply.rows, &reply.timings);
        ("lamina_exits", ParameterChoice::StringParam(lines))
    });
    [
        (
            "lamina_placement_revision",
            ParameterChoice::Int64Param(answered.revision),
        ),
        (
            "lamina_path",
            ParameterChoice::StringParam(answered.path.clone()),
        ),
        ("lamina_timing", ParameterChoice::StringParam(timing)),
        ("lamina_entry", ParameterChoice::StringParam(entry)),
    ]
    .into_iter()
    .chain(exits)
    .map(|(key, choice)| {
        let parameter = InferParameter {
            parameter_choice: Some(choice),
        };
        (key.to_owned(), parameter)
    })
    .collect()
}

fn exits_json(exits: &[String], rows: &[RowExit], timings: &[HopTiming]) -> String {
    let line = |row: &RowExit| {
        let exit = usize::try_from(row.exit).ok().and_then(|e| exits.get(e));
        let on = timings.iter().find(|t| t.segment == row.segment);
        ExitLine {
            exit: exit.map_or("", String::as_str),
            measure: row.measure,
            node: on.map_or("", |t| t.node.as_str()),
            is_cut_off: row.is_cut_off,
        }
    };
    let lines: Vec<ExitLine<'_>> = rows.iter().map(line).collect();
    // What is no number is written as null.
    serde_json::to_string(&lines).unwrap_or_default()
}

fn timing_json(timings: &[HopTiming]) -> String {
    let behind = |i: usize| timings.get(i + 1).map_or(0, |next| next.total_us);
    let line = |(i, t): (usize, &HopTiming)| {
        serde_json::to_string(&TimingLine {
            node: &t.node,
            segment: t.segment,
            queue_us: t.queue_us,
            compute_us: t.compute_us,
            encode_us: t.encode_us,
            transfer_us: t.downstream_us.saturating_sub(behind(i)),
            bytes_in: t.bytes_in,
            bytes_out: t.bytes_out,
        })
        // Names and numbers alone; there is nothing that cannot be written.
        .unwrap_or_default()
    };
    let lines: Vec<String> = timings.iter().enumerate().map(line).collect();
    format!("[{}]", lines.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::DataType;

    #[test]
    fn each_row_says_where_it_left_and_why() {
        let on = |node: &str, segment| HopTiming {
            node: node.into(),
            segment,
            ..HopTiming::default()
        };
        let row = |exit, segment, is_cut_off| RowExit {
            exit,
            measure: 0.75,
            is_cut_off,
            segment,
        };
        let lines = exits_json(
            &["early".to_owned(), "final".to_owned()],
            &[row(0, 0, false), row(1, 1, false), row(0, 0, true)],
            &[on("cam-1", 0), on("edge-1", 1)],
        );
        let lines: serde_json::Value = serde_json::from_str(&lines).unwrap();
        let expected = serde_json::json!([
            {"exit": "early", "measure": 0.75, "node": "cam-1"},
            {"exit": "final", "measure": 0.75, "node": "edge-1"},
            {"exit": "early", "measure": 0.75, "node": "cam-1", "cutOff": true},
        ]);
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_another_host_answers_is_held_against_the_signature() {
        let spec = ValueSpec {
            name: "boxes".into(),
            datatype: DataType::Fp32,
            shape: vec![-1, 4],
            sizes: Vec::new(),
        };
        let is_fit = |datatype: &str, shape: &[i64], bytes: usize| {
            let tensor = Tensor {
                name: "boxes".into(),
                datatype: datatype.into(),
                shape: shape.to_vec(),
                data: vec![0; bytes].into(),
                ..Tensor::default()
            };
            is_readable(&tensor, &spec)
        };
        assert!(is_fit("FP32", &[2, 4], 32));
        assert!(is_fit("FP32", &[0, 4], 0), "nothing was found");
        assert!(!is_fit("FP16", &[2, 4], 16));
        assert!(!is_fit("FP99", &[2, 4], 32));
        assert!(!is_fit("FP32", &[2, 4], 31));
        assert!(!is_fit("FP32", &[-1, 4], 0));
        assert!(!is_fit("FP32", &[i64::MAX, 4], 0));
    }

    #[test]
    fn a_transfer_is_what_the_next_host_did_not_take() {
        let timings = [
            HopTiming {
                node: "cam-1".into(),
                downstream_us: 900,
                total_us: 1000,
                ..HopTiming::default()
            },
            HopTiming {
                node: "edge-1".into(),
                segment: 1,
                total_us: 600,
                ..HopTiming::default()
            },
        ];
        let lines: serde_json::Value = serde_json::from_str(&timing_json(&timings)).unwrap();
        assert_eq!(lines[0]["transfer_us"], 300);
        assert_eq!(lines[1]["transfer_us"], 0);
        assert_eq!(lines[1]["node"], "edge-1");
        assert_eq!(lines[1]["segment"], 1);
    }
}

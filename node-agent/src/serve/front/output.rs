//! The answer as the protocol has it. Always raw: common clients read nothing
//! else.

use super::dispatch::Answered;
use super::error::FrontError;
use lamina_proto::hop::HopTiming;
use lamina_proto::inference::infer_parameter::ParameterChoice;
use lamina_proto::inference::model_infer_response::InferOutputTensor;
use lamina_proto::inference::{InferParameter, ModelInferResponse};
use serde::Serialize;
use std::collections::HashMap;

/// The only version of a model: what a redeploy changes is where it runs, which
/// `lamina_placement_revision` tells.
pub(super) const VERSION: &str = "1";

/// One host's line of `lamina_timing`.
#[derive(Debug, Serialize)]
struct TimingLine<'a> {
    node: &'a str,
    segment: u32,
    queue_us: u64,
    compute_us: u64,
    /// To the next host and back, without what that host took; 0 on the last.
    transfer_us: u64,
    bytes_in: u64,
    bytes_out: u64,
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

fn parameters(answered: &Answered) -> HashMap<String, InferParameter> {
    let timing = timing_json(&answered.reply.timings);
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
    ]
    .into_iter()
    .map(|(key, choice)| {
        let parameter = InferParameter {
            parameter_choice: Some(choice),
        };
        (key.to_owned(), parameter)
    })
    .collect()
}

fn timing_json(timings: &[HopTiming]) -> String {
    let behind = |i: usize| timings.get(i + 1).map_or(0, |next| next.total_us);
    let line = |(i, t): (usize, &HopTiming)| {
        serde_json::to_string(&TimingLine {
            node: &t.node,
            segment: t.segment,
            queue_us: t.queue_us,
            compute_us: t.compute_us,
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

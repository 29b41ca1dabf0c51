//! Statistics of requests, in HTTP's terms. Pure.

use lamina_proto::inference::{ModelStatisticsResponse, StatisticDuration};
use serde_json::{Value, json};

/// For benchmark clients: no member is ever omitted.
pub(super) fn render(told: &ModelStatisticsResponse) -> Value {
    let models = told.model_stats.iter().map(|model| {
        let stats = model.inference_stats.unwrap_or_default();
        let of = |total: Option<StatisticDuration>| {
            let StatisticDuration { count, ns } = total.unwrap_or_default();
            json!({ "count": count, "ns": ns })
        };
        json!({
            "name": model.name,
            "version": model.version,
            "last_inference": model.last_inference,
            "inference_count": model.inference_count,
            "execution_count": model.execution_count,
            "inference_stats": {
                "success": of(stats.success),
                "fail": of(stats.fail),
                "queue": of(stats.queue),
                "compute_input": of(stats.compute_input),
                "compute_infer": of(stats.compute_infer),
                "compute_output": of(stats.compute_output),
            },
            "batch_stats": [],
        })
    });
    json!({ "model_stats": models.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_proto::inference::{InferStatistics, ModelStatistics};

    #[test]
    fn what_was_not_told_is_zero() {
        let told = ModelStatisticsResponse {
            model_stats: vec![ModelStatistics {
                name: "m".into(),
                inference_stats: Some(InferStatistics {
                    queue: Some(StatisticDuration { count: 2, ns: 7 }),
                    ..InferStatistics::default()
                }),
                ..ModelStatistics::default()
            }],
        };
        let json = render(&told);
        let stats = &json["model_stats"][0]["inference_stats"];
        assert_eq!(stats["queue"], json!({ "count": 2, "ns": 7 }));
        assert_eq!(stats["fail"], json!({ "count": 0, "ns": 0 }));
    }
}

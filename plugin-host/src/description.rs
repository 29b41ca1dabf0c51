//! The handshake: whether a plugin is the intended one and supports the problem.

use crate::error::PluginError;
use lamina_placement::{Objective, Problem};
use lamina_proto::strategy::{DescribeReply, PROTOCOL_VERSION, StrategyInfo};

/// Whether `reply` offers strategy `name` for `problem`.
pub(crate) fn check(
    reply: &DescribeReply,
    name: &str,
    problem: &Problem,
) -> Result<(), PluginError> {
    if reply.protocol_version != PROTOCOL_VERSION {
        return Err(PluginError::Version {
            theirs: reply.protocol_version,
            ours: PROTOCOL_VERSION,
        });
    }
    let Some(info) = reply.strategies.iter().find(|s| s.name == name) else {
        return Err(PluginError::not_offered(name, &reply.strategies));
    };
    match lack(info, problem) {
        Some(lack) => Err(PluginError::Unable(lack)),
        None => Ok(()),
    }
}

/// The first requirement of `problem` that the strategy does not support.
fn lack(info: &StrategyInfo, problem: &Problem) -> Option<String> {
    let workloads = problem.workloads.len();
    if workloads > 1 && !info.several_workloads {
        return Some(format!("it places one workload, here are {workloads}"));
    }
    if !info.exits && problem.workloads.iter().any(|w| !w.exits.is_empty()) {
        return Some("it chooses no thresholds, and the model has side exits".to_owned());
    }
    if info.objectives.is_empty() {
        return None;
    }
    let needed = objective_words(&problem.objective);
    let missing = needed.into_iter().find(|w| !info.objectives.contains(w))?;
    Some(format!("it does not make {missing} small"))
}

/// The objective and its criteria, spelled as in JSON.
fn objective_words(objective: &Objective) -> Vec<String> {
    let kind = match objective {
        Objective::Weighted(_) => Some("weighted"),
        Objective::Lexicographic(_) => Some("lexicographic"),
        _ => None,
    };
    let criteria = objective.criteria();
    let words = criteria.iter().filter_map(|c| {
        let json = serde_json::to_value(c).ok()?;
        json.as_str().map(str::to_owned)
    });
    kind.map(str::to_owned).into_iter().chain(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_placement::{Criterion, RankedCriterion, Workload};

    fn workload() -> Workload {
        serde_json::from_str(
            r#"{"name": "net", "entry": "cam", "ratePerSecond": 0, "values": [], "blocks": [],
                "outputs": []}"#,
        )
        .unwrap()
    }

    fn problem() -> Problem {
        Problem {
            workloads: vec![workload()],
            ..Problem::default()
        }
    }

    fn reply(info: StrategyInfo) -> DescribeReply {
        DescribeReply {
            protocol_version: PROTOCOL_VERSION,
            version: "0.1".into(),
            strategies: vec![StrategyInfo {
                name: "greedy".into(),
                ..info
            }],
        }
    }

    fn refused(info: StrategyInfo, problem: &Problem) -> String {
        check(&reply(info), "greedy", problem)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_simple_strategy_is_asked_simple_questions_only() {
        let plain = StrategyInfo::default;
        check(&reply(plain()), "greedy", &problem()).unwrap();
        let mut two = problem();
        two.workloads.push(workload());
        assert_eq!(
            refused(plain(), &two),
            "does not apply: it places one workload, here are 2"
        );
        let mut exits = problem();
        exits.workloads[0].exits.push(
            serde_json::from_str(r#"{"afterBlock": 0, "replyBytes": 4, "table": []}"#).unwrap(),
        );
        assert!(refused(plain(), &exits).contains("side exits"));
        let able = StrategyInfo {
            exits: true,
            several_workloads: true,
            ..plain()
        };
        exits.workloads.push(workload());
        check(&reply(able), "greedy", &exits).unwrap();
    }

    #[test]
    fn objectives_are_asked_for_with_what_they_are_made_of() {
        let only = |words: &[&str]| StrategyInfo {
            objectives: words.iter().map(|w| (*w).to_owned()).collect(),
            ..StrategyInfo::default()
        };
        check(&reply(only(&["latency"])), "greedy", &problem()).unwrap();
        let mut ranked = problem();
        ranked.objective = Objective::Lexicographic(vec![
            RankedCriterion {
                criterion: Criterion::TailLatency,
                tolerance: 0.1,
            },
            RankedCriterion {
                criterion: Criterion::Money,
                tolerance: 0.0,
            },
        ]);
        let given = ["lexicographic", "tailLatency", "money"];
        check(&reply(only(&given)), "greedy", &ranked).unwrap();
        for (left_out, word) in given.iter().enumerate() {
            let mut words = given.to_vec();
            words.remove(left_out);
            assert_eq!(
                refused(only(&words), &ranked),
                format!("does not apply: it does not make {word} small")
            );
        }
    }

    #[test]
    fn another_version_or_name_is_refused() {
        let mut old = reply(StrategyInfo::default());
        old.protocol_version = 0;
        assert_eq!(
            check(&old, "greedy", &problem()).unwrap_err().to_string(),
            "speaks version 0 of the protocol, this is version 1; update the older one"
        );
        let error = check(&reply(StrategyInfo::default()), "other", &problem()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "has no strategy `other`, it offers `greedy`; correct the name in operator.plugins"
        );
    }
}

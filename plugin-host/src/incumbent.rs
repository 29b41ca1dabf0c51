//! An answer of a plugin as placements that the checker accepts.

use crate::error::PluginError;
use lamina_placement::check::{check_answer, evaluate};
use lamina_placement::{
    Answer, Certificate, Metrics, Placement, Problem, Segment, Stats, Status, Workload,
};
use lamina_proto::strategy as wire;

/// An answer without violations or false claims.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Incumbent {
    pub(crate) placements: Vec<Placement>,
    /// The checker's metrics.
    pub(crate) metrics: Metrics,
    /// The plugin's claim, which is not proved.
    pub(crate) claimed_lower_bound: Option<f64>,
}

/// Checks `reply`; `None` if it has no placement.
pub(crate) fn check(
    problem: &Problem,
    reply: wire::SolveReply,
) -> Result<Option<Incumbent>, PluginError> {
    if reply.placements.is_empty() {
        return Ok(None);
    }
    let placements = placements(problem, reply.placements)?;
    let metrics = evaluate(problem, &placements).map_err(|v| PluginError::wrong(&v))?;
    // Only actual claims are tested; optimality cannot be claimed at all.
    let answer = Answer {
        placements,
        objective: Some(reply.objective.unwrap_or(metrics.objective)),
        certificate: Certificate {
            status: Status::Feasible,
            lower_bound: reply.lower_bound,
            gap: None,
        },
        stats: Stats::default(),
    };
    check_answer(problem, &answer).map_err(|v| PluginError::wrong(&v))?;
    Ok(Some(Incumbent {
        placements: answer.placements,
        metrics,
        claimed_lower_bound: reply.lower_bound,
    }))
}

fn placements(
    problem: &Problem,
    given: Vec<wire::Placement>,
) -> Result<Vec<Placement>, PluginError> {
    let given = given.into_iter().enumerate();
    given
        .map(|(i, placement)| {
            // An extra placement has no exits; the checker reports it.
            let workload = problem.workloads.get(i);
            Ok(Placement {
                thresholds: thresholds(workload, &placement)?,
                workload: placement.workload,
                segments: placement.segments.into_iter().map(segment).collect(),
            })
        })
        .collect()
}

fn segment(given: wire::Segment) -> Segment {
    Segment {
        node: given.node,
        blocks: given.blocks.iter().map(|b| *b as usize).collect(),
    }
}

fn thresholds(
    workload: Option<&Workload>,
    given: &wire::Placement,
) -> Result<Vec<f64>, PluginError> {
    let exits = workload.map_or(&[][..], |w| &w.exits);
    let rows = &given.exit_rows;
    let chosen: Option<Vec<f64>> = exits
        .iter()
        .zip(rows)
        .map(|(exit, row)| exit.table.get(*row as usize).map(|r| r.threshold))
        .collect();
    match chosen {
        Some(thresholds) if exits.len() == rows.len() => Ok(thresholds),
        _ => {
            let tables: Vec<usize> = exits.iter().map(|e| e.table.len()).collect();
            let fault = format!(
                "{}: exit_rows {rows:?} do not choose a row of each exit's table, which have {tables:?} rows",
                given.workload
            );
            Err(PluginError::wrong(&[fault]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../examples/plugins/problem.json");

    fn problem() -> Problem {
        let mut problem: Problem = serde_json::from_str(EXAMPLE).unwrap();
        problem.workloads[0].previous = None;
        problem
    }

    fn reply(segments: &[(&str, &[u32])], exit_rows: &[u32]) -> wire::SolveReply {
        wire::SolveReply {
            placements: vec![wire::Placement {
                workload: "net".into(),
                segments: segments
                    .iter()
                    .map(|(node, blocks)| wire::Segment {
                        node: (*node).to_owned(),
                        blocks: blocks.to_vec(),
                    })
                    .collect(),
                exit_rows: exit_rows.to_vec(),
            }],
            ..wire::SolveReply::default()
        }
    }

    fn good() -> wire::SolveReply {
        reply(&[("cam-1", &[0]), ("edge-1", &[1, 2])], &[0])
    }

    fn refused(reply: wire::SolveReply) -> String {
        let error = check(&problem(), reply).unwrap_err();
        assert_eq!(error.kind(), "Wrong");
        error.to_string()
    }

    #[test]
    fn the_figures_are_the_checkers_own() {
        let incumbent = check(&problem(), good()).unwrap().unwrap();
        let expected = evaluate(&problem(), &incumbent.placements).unwrap();
        assert_eq!(incumbent.metrics, expected);
        let claimed = wire::SolveReply {
            objective: Some(expected.objective),
            lower_bound: Some(0.0),
            ..good()
        };
        let incumbent = check(&problem(), claimed).unwrap().unwrap();
        assert_eq!(incumbent.claimed_lower_bound, Some(0.0));
        let nothing = wire::SolveReply::default();
        assert_eq!(check(&problem(), nothing).unwrap(), None);
    }

    #[test]
    fn numbers_that_are_not_so_refute_the_answer() {
        for objective in [0.001, f64::NAN, f64::INFINITY, -1.0] {
            let lie = wire::SolveReply {
                objective: Some(objective),
                ..good()
            };
            let text = refused(lie);
            assert!(text.contains("objective"), "{text}");
        }
        for bound in [1e9, f64::NAN, f64::INFINITY] {
            let lie = wire::SolveReply {
                lower_bound: Some(bound),
                ..good()
            };
            let text = refused(lie);
            assert!(text.contains("lower bound"), "{text}");
        }
    }

    #[test]
    fn placements_that_break_something_are_named() {
        let nobody = refused(reply(&[("moon", &[0, 1, 2])], &[0]));
        assert!(nobody.contains("unknown node"), "{nobody}");
        let missing = refused(reply(&[("cam-1", &[0, 1])], &[0]));
        assert!(missing.contains("blocks 0..3"), "{missing}");
        let huge = refused(reply(&[("cam-1", &[0, 1, u32::MAX])], &[0]));
        assert!(huge.contains("blocks 0..3"), "{huge}");
        let mut two = good();
        two.placements.push(two.placements[0].clone());
        two.placements[1].exit_rows.clear();
        assert!(refused(two).contains("expected [\"net\"]"));
    }

    #[test]
    fn a_row_is_chosen_for_each_exit() {
        for rows in [&[][..], &[0, 0], &[7]] {
            let text = refused(reply(&[("cam-1", &[0, 1, 2])], rows));
            assert!(text.contains("exit_rows"), "{text}");
        }
    }
}

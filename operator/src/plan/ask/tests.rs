use super::*;
use crate::testing::Bench;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lamina_crds::conditions::SOLVED;
use lamina_crds::dnn_model::SliceMemory;
use lamina_placement::check::evaluate;
use lamina_placement::{Certificate, Placement, Segment, Stats, Status};
use std::time::Duration;

fn ctx() -> Ctx {
    Ctx::until(Instant::now() + Duration::from_secs(5))
}

/// The strategy's answer to the last question, with this path.
fn answer(
    bench: &Bench,
    strategy: &str,
    path: &[(&str, &[usize])],
    remark: Option<Remark>,
) -> Answer {
    let asked = bench.asked.as_ref().expect("a plugin was asked");
    let problem = problem::build(&asked.question);
    let placements = vec![Placement {
        workload: problem.workloads[0].name.clone(),
        segments: path
            .iter()
            .map(|(node, blocks)| Segment {
                node: (*node).to_owned(),
                blocks: blocks.to_vec(),
            })
            .collect(),
        thresholds: Vec::new(),
    }];
    let placements = if path.is_empty() {
        Vec::new()
    } else {
        placements
    };
    let solution = Solution {
        strategy: strategy.to_owned(),
        metrics: evaluate(&problem, &placements).ok(),
        placements,
        certificate: Certificate {
            status: Status::Feasible,
            lower_bound: None,
            gap: None,
        },
        stats: Stats::default(),
    };
    judged(
        &asked.question,
        Arc::new(problem),
        Ok(solution),
        0.2,
        remark,
        &ctx(),
    )
}

fn good(bench: &Bench, path: &[(&str, &[usize])]) -> Answer {
    answer(bench, "plugin/mine", path, None)
}

fn fallen_back(bench: &Bench, path: &[(&str, &[usize])], text: &str) -> Answer {
    let remark = Remark {
        kind: "Wrong",
        fell_back: true,
        text: text.to_owned(),
    };
    answer(bench, "optimal", path, Some(remark))
}

/// A served model that is to be placed by a plugin from now on.
fn asking() -> Bench {
    let mut bench = Bench::serving();
    bench.edit(|m| m.spec.strategy.name = "plugin/mine".into());
    bench.run(5);
    assert!(bench.asked.is_some());
    bench
}

fn solved(bench: &Bench) -> Condition {
    let conditions = bench.status().conditions;
    let solved = conditions.into_iter().find(|c| c.type_ == SOLVED);
    solved.expect("a condition")
}

fn times_told(bench: &Bench, reason: &str) -> usize {
    bench.reasons().iter().filter(|r| **r == reason).count()
}

#[test]
fn a_plugin_is_asked_once_and_its_answer_taken() {
    let mut bench = asking();
    let asked = bench.asked.take().unwrap();
    assert_eq!(
        (asked.about.strategy.as_str(), asked.about.generation),
        ("plugin/mine", 2)
    );
    bench.run(10);
    assert!(bench.asked.is_none(), "asked again while it computes");
    assert_eq!(bench.status().active_revision, 1, "what serves goes on");
    bench.asked = Some(asked);
    let said = good(&bench, &[("edge-1", &[0, 1, 2, 3])]);
    bench.answer(said);
    bench.run(8);
    assert_eq!(bench.status().path, "edge-1[0-3]");
    let note = bench.note(reasons::REDEPLOY_STARTED);
    assert!(
        note.starts_with("strategy optimal → plugin/mine; "),
        "{note}"
    );
    assert_eq!(times_told(&bench, reasons::STRATEGY_FELL_BACK), 0);
    // Asked again after a while; the same answer changes nothing.
    bench.run(12);
    let said = good(&bench, &[("edge-1", &[0, 1, 2, 3])]);
    bench.answer(said);
    bench.expect_fixpoint();
    assert_eq!(bench.status().active_revision, 2);
}

#[test]
fn parameters_are_the_plugins_own_business() {
    let mut bench = Bench::serving();
    bench.edit(|m| {
        m.spec.strategy.name = "plugin/mine".into();
        m.spec.strategy.parameters = [("depth", "8"), ("mood", "bold")]
            .map(|(k, v)| (k.into(), v.into()))
            .into();
    });
    bench.run(5);
    let asked = bench.asked.unwrap();
    assert_eq!(
        asked.question.wish.strategy.parameters["depth"],
        serde_json::json!(8)
    );
    assert_eq!(
        asked.question.wish.strategy.parameters["mood"],
        serde_json::json!("bold")
    );
    assert_eq!(problem::build(&asked.question).workloads[0].blocks.len(), 4);
}

#[test]
fn a_fallback_is_told_once_and_shown() {
    let mut bench = asking();
    let text = "strategy plugin/mine fell back to optimal: 1";
    let at = [("cloud-1", &[0, 1, 2, 3][..])];
    assert_eq!(bench.status().path, "cloud-1[0-3]");
    let said = fallen_back(&bench, &at, text);
    bench.answer(said);
    let decisions = bench.look();
    assert!(decisions.solves[0].fell_back);
    assert_eq!(decisions.solves[0].strategy, "plugin/mine");
    assert_eq!(bench.note(reasons::STRATEGY_FELL_BACK), text);
    bench.run(1);
    let condition = solved(&bench);
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("True", reasons::STRATEGY_FELL_BACK)
    );
    assert!(condition.message.ends_with(text), "{}", condition.message);
    let failure = bench.model().status.clone().unwrap().last_failure.unwrap();
    assert_eq!(failure.message, text);
    assert_eq!(
        bench.status().active_revision,
        1,
        "the same path is no other revision"
    );
    // It falls back again and again, each time with other figures.
    for round in 0..3 {
        bench.run(12);
        let text = format!("strategy plugin/mine fell back to optimal: 2.{round}");
        let said = fallen_back(&bench, &at, &text);
        bench.answer(said);
        bench.look();
    }
    assert_eq!(times_told(&bench, reasons::STRATEGY_FELL_BACK), 1);
    assert_eq!(solved(&bench), condition);
    bench.expect_fixpoint();
    // Until the plugin answers.
    bench.run(12);
    let said = good(&bench, &[("edge-1", &[0, 1, 2, 3])]);
    bench.answer(said);
    bench.run(8);
    assert_eq!(bench.status().path, "edge-1[0-3]");
    assert_eq!(solved(&bench).reason, reasons::PLACEMENT_SOLVED);
}

#[test]
fn the_first_placement_waits_for_the_plugin() {
    let mut bench = Bench::new();
    bench.edit(|m| m.spec.strategy.name = "plugin/mine".into());
    bench.look();
    bench.finish_prepare();
    bench.run(5);
    assert_eq!(bench.stage(), "Solving");
    let said = good(&bench, &[("edge-1", &[0, 1, 2, 3])]);
    bench.answer(said);
    bench.run(12);
    assert_eq!(
        (bench.stage(), bench.status().path.as_str()),
        ("Serving", "edge-1[0-3]")
    );
    assert!(bench.note(reasons::PLACEMENT_SOLVED).ends_with("Feasible"));
}

#[test]
fn an_answer_that_the_world_has_overtaken_is_asked_for_again() {
    let mut bench = asking();
    let said = good(&bench, &[("edge-1", &[0, 1, 2, 3])]);
    bench.lose("edge-1");
    bench.answer(said);
    bench.asked = None;
    bench.run(12);
    assert!(bench.asked.is_some());
    assert_eq!(bench.status().active_revision, 1);
}

#[test]
fn another_spec_drops_the_question() {
    let mut bench = asking();
    bench.edit(|m| m.spec.strategy.name = "device-only".into());
    let decisions = bench.look();
    assert_eq!(decisions.forget_asks.len(), 1);
    assert!(bench.snapshot.questions.is_empty());
    bench.run(8);
    assert_eq!(bench.status().path, "cam-1[0-3]");
    let mut bench = asking();
    bench.snapshot.models.clear();
    assert_eq!(bench.look().forget_asks.len(), 1);
}

#[test]
fn an_unknown_plugin_is_named_with_those_there_are() {
    let mut bench = Bench::serving();
    bench.edit(|m| m.spec.strategy.name = "plugin/yours".into());
    bench.run(3);
    let note = bench.note(reasons::INVALID_SPEC);
    assert!(
        note.starts_with("spec.strategy: unknown strategy `plugin/yours`; use one of: optimal, "),
        "{note}"
    );
    assert!(note.ends_with("throughput, plugin/mine"), "{note}");
    assert_eq!(bench.status().active_revision, 1);
}

#[test]
fn no_placement_at_all_is_explained() {
    let mut bench = asking();
    bench.edit(|m| m.spec.constraints.keep_on_entry = 4);
    bench.edit(|m| {
        m.spec.constraints.slice_memory = vec![SliceMemory {
            tier: "device".into(),
            limit: "1M".into(),
        }];
    });
    bench.run(5);
    let said = fallen_back(&bench, &[], "strategy plugin/mine fell back to optimal: x");
    bench.answer(said);
    bench.look();
    assert!(
        bench.reasons().contains(&reasons::NO_FEASIBLE_PLACEMENT),
        "{:?}",
        bench.told
    );
}

#[test]
fn time_that_ran_out_is_not_taken_for_a_proof() {
    let bench = asking();
    let asked = bench.asked.as_ref().unwrap();
    let nothing = |status| Solution {
        strategy: "optimal".into(),
        placements: Vec::new(),
        metrics: None,
        certificate: Certificate {
            status,
            lower_bound: None,
            gap: None,
        },
        stats: Stats::default(),
    };
    let why = |status| {
        let over = Ctx::until(Instant::now());
        let problem = Arc::new(problem::build(&asked.question));
        let said = judged(
            &asked.question,
            problem,
            Ok(nothing(status)),
            3.0,
            None,
            &over,
        );
        said.solution.unwrap_err().1
    };
    assert!(why(Status::Unknown).contains("found no placement within its time"));
    assert!(why(Status::Infeasible).contains("no placement respects every limit"));
}

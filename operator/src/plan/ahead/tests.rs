use crate::state::snapshot::{Held, Need, QuestionView};
use crate::testing::{Bench, manifest};
use lamina_crds::compute_node::Standby;
use lamina_crds::dnn_model::AdaptationPolicy;
use lamina_model::Digest;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// A served model whose hosts may prefetch, before the first question.
fn quiet() -> Bench {
    let mut bench = Bench::serving();
    assert_eq!(bench.status().path, "cloud-1[0-3]");
    bench.edit(|m| m.spec.adaptation.standby = true);
    bench
}

fn standby<'b>(bench: &'b Bench, node: &str) -> &'b [Standby] {
    &bench.snapshot.compute_nodes[node].spec.standby
}

fn blocks_ahead(bench: &Bench, node: &str) -> usize {
    standby(bench, node).iter().map(|s| s.blocks.len()).sum()
}

#[test]
fn hosts_are_told_what_they_would_be_given_if_one_were_lost() {
    let mut bench = quiet();
    bench.run(10);
    let told = standby(&bench, "edge-1");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].placement_uid, "placement-1");
    let digests: Vec<&str> = told[0].blocks.iter().map(|b| b.digest.as_str()).collect();
    let manifest = manifest(4);
    let expected: Vec<&str> = manifest.blocks.iter().map(|b| b.digest.as_str()).collect();
    assert_eq!(digests, expected);
    assert_eq!(blocks_ahead(&bench, "cloud-1"), 0, "it runs them");
    assert_eq!(bench.status().active_revision, 1, "nothing moves");
    bench.expect_fixpoint();
    // Asked once a minute, beside the six regular questions.
    let before = bench.solves;
    bench.run(60);
    let ahead = bench.solves - before;
    assert!((6..=8).contains(&ahead), "{ahead}");
    assert_eq!(blocks_ahead(&bench, "edge-1"), 4);
}

#[test]
fn nobody_is_asked_while_blocks_must_stay_or_a_plugin_places_them() {
    for change in [
        (|m| m.spec.adaptation.standby = false) as fn(&mut lamina_crds::DnnModel),
        |m| m.spec.adaptation.paused = true,
        |m| m.spec.strategy.name = "plugin/mine".into(),
    ] {
        let mut bench = quiet();
        bench.edit(change);
        bench.run(20);
        assert_eq!(blocks_ahead(&bench, "edge-1"), 0);
    }
}

#[test]
fn one_that_moves_for_no_gain_still_prepares_for_a_loss() {
    let mut bench = quiet();
    bench.edit(|m| m.spec.adaptation.policy = AdaptationPolicy::Never);
    bench.run(10);
    assert_eq!(blocks_ahead(&bench, "edge-1"), 4);
}

#[test]
fn a_restarted_operator_lets_hosts_keep_what_they_were_told() {
    let mut bench = quiet();
    bench.run(10);
    bench.restart();
    let looked = bench.look();
    assert_eq!(looked.asks.len(), 0);
    assert_eq!(blocks_ahead(&bench, "edge-1"), 4);
    bench.run(30);
    assert_eq!(blocks_ahead(&bench, "edge-1"), 4);
    bench.edit(|m| m.spec.adaptation.standby = false);
    bench.run(2);
    assert_eq!(blocks_ahead(&bench, "edge-1"), 0, "switched off");
}

#[test]
fn what_happened_goes_before_what_may_happen() {
    let mut bench = quiet();
    bench.run(10);
    let asked = bench.memory.placements.values().next().unwrap();
    assert!(asked.standby.asked.is_some());
    let key = bench.memory.placements.keys().next().unwrap().clone();
    let plan = bench.status().active.unwrap();
    let under_way = QuestionView {
        about: crate::state::snapshot::About {
            strategy: "optimal".into(),
            generation: 2,
            manifest: plan.manifest.clone(),
            revision: plan.revision,
        },
        need: Need::Ahead,
        answer: None,
        ahead: None,
    };
    bench.snapshot.questions.insert(key, under_way);
    bench.lose("cloud-1");
    bench.pass(2000);
    let looked = bench.look_once();
    assert_eq!(looked.asks.len(), 1);
    assert_eq!(looked.asks[0].need, Need::Leave);
    bench.run(8);
    assert_eq!(bench.status().path, "edge-1[0-3]");
}

#[test]
fn blocks_on_a_disk_are_not_fetched_and_cost_a_move_nothing() {
    let mut bench = quiet();
    bench.run(10);
    let blocks = manifest(4).blocks;
    let held: HashSet<Digest> = blocks.into_iter().map(|b| b.digest).collect();
    let held = BTreeMap::from([("edge-1".to_owned(), Arc::new(held))]);
    bench.snapshot.held = Held(Arc::new(held));
    bench.lose("cloud-1");
    let mut asks = Vec::new();
    for _ in 0..8 {
        let looked = bench.look();
        asks.extend(looked.asks);
        bench.agents();
        bench.pass(1000);
    }
    assert_eq!(bench.status().path, "edge-1[0-3]");
    let question = asks.iter().find(|a| a.need == Need::Leave).unwrap();
    let ctx = lamina_placement::Ctx::default();
    let answer = crate::plan::desk::solve(&question.question, &ctx);
    let metrics = answer.solution.unwrap().metrics.clone().unwrap();
    assert_eq!(metrics.workloads[0].moved_bytes, 0);
}

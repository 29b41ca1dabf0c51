use super::*;
use crate::testing::chain;
use crate::{Link, Tier};

#[test]
fn the_sentence_counts_every_node_once() {
    let tiers = [
        Tier::Device,
        Tier::Edge,
        Tier::Edge,
        Tier::Edge,
        Tier::Cloud,
    ];
    let row: &[f64] = &[0.1; 5];
    let mut p = chain(&tiers, &[row; 4], &[9; 5], 300 << 20, Link::new(0.01, 1e6));
    p.workloads[0].constraints.allowed_tiers = Some([Tier::Edge, Tier::Cloud].into());
    p.nodes[1].memory_bytes = 100 << 20;
    p.nodes[2].memory_bytes = 299 << 20;
    p.nodes[3].excluded = Some("not ready".into());
    p.links.get_mut("n0").unwrap().remove("n4");
    let found: Vec<String> = explain_infeasible(&p)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "0/5 nodes can host blocks 0..3 (1.2Gi): 2 insufficient memory, 1 link n0→n4 \
          unmeasured, 1 not ready, 1 tier=device excluded"
        ]
    );
}

#[test]
fn a_model_larger_than_all_nodes_together_is_told() {
    let row: &[f64] = &[0.1; 2];
    let tiers = [Tier::Device, Tier::Cloud];
    let mut p = chain(&tiers, &[row; 4], &[9; 5], 100, Link::new(0.01, 1e6));
    p.nodes[0].memory_bytes = 150;
    p.nodes[1].memory_bytes = 150;
    let found = explain_infeasible(&p);
    assert_eq!(
        found[0].to_string(),
        "0/2 nodes can host blocks 0..3 (400): 2 insufficient memory"
    );
    p.nodes[1].memory_bytes = 1000;
    assert!(explain_infeasible(&p).is_empty());
}

#[test]
fn limits_that_are_too_much_together_are_named() {
    let row: &[f64] = &[0.1; 3];
    let tiers = [Tier::Device, Tier::Edge, Tier::Cloud];
    let link = Link::new(0.01, 1e6);
    let mut p = chain(&tiers, &[row; 4], &[9; 5], 100, link);
    for node in &mut p.nodes {
        node.memory_bytes = 200;
    }
    assert!(explain_infeasible(&p).is_empty());
    let ctx = crate::Ctx::unlimited();
    assert_eq!(what_helps(&p, Some(f64::MIN_POSITIVE), &ctx), []);
    p.workloads[0].constraints.latency_limit_seconds = Some(0.405);
    assert_eq!(
        why_infeasible(&p, &ctx),
        [
            "each block fits somewhere, but not all together; there is a placement without the \
          latency limit, or without the memory of the nodes"
        ]
    );
    let helps = what_helps(&p, None, &ctx);
    assert_eq!(helps[1].limit, Limit::Memory);
    assert!((helps[1].objective - 0.4).abs() < 1e-9, "{helps:?}");
    assert!(helps[0].objective > 0.405);
}

#[test]
fn a_switch_for_which_there_is_no_room_is_told() {
    let row: &[f64] = &[0.1; 2];
    let tiers = [Tier::Device, Tier::Cloud];
    let mut p = chain(&tiers, &[row; 2], &[9; 3], 100, Link::new(0.01, 1e6));
    p.nodes[0].memory_bytes = 250;
    p.nodes[1].excluded = Some("not ready".into());
    p.nodes[0].resident_bytes = 200;
    assert_eq!(
        explain_infeasible(&p)[0].to_string(),
        "0/2 nodes can host blocks 0..1 (200): 1 insufficient memory during the switch, 1 not ready"
    );
    p.transition = crate::Transition::Drain;
    assert!(explain_infeasible(&p).is_empty());
}

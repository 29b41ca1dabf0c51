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

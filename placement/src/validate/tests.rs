use super::*;
use crate::testing::chain;
use crate::{BlockOnNode, Exit, ExitPoint, Link, Node, Previous, Segment, Tier};

fn good() -> Problem {
    chain(
        &[Tier::Device, Tier::Cloud],
        &[&[0.1, 0.01], &[0.1, 0.01], &[0.1, 0.01]],
        &[100, 50, 20, 4],
        10,
        Link::new(0.01, 1e6),
    )
}

/// The invalid fields after `break_it`.
fn fields(break_it: impl FnOnce(&mut Problem)) -> Vec<String> {
    let mut problem = good();
    break_it(&mut problem);
    match validate(&problem) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.0.into_iter().map(|e| e.field).collect(),
    }
}

fn exit(after_block: usize, thresholds: &[f64]) -> Exit {
    Exit {
        after_block,
        reply_bytes: 4,
        table: thresholds
            .iter()
            .map(|t| ExitPoint {
                threshold: *t,
                rate: 0.5,
                accuracy: 0.9,
            })
            .collect(),
    }
}

fn at(block: usize, node: &str) -> BlockOnNode {
    BlockOnNode {
        block,
        node: node.into(),
    }
}

#[test]
fn objectives_and_prices_are_named_with_their_field() {
    let weighted = |weights: &[(crate::Criterion, f64)]| {
        let terms = weights
            .iter()
            .map(|(criterion, weight)| crate::WeightedCriterion {
                criterion: *criterion,
                weight: *weight,
            });
        Objective::Weighted(terms.collect())
    };
    use crate::Criterion::{Energy, Fairness, Latency, Throughput};
    let wrong = |objective| fields(|p| p.objective = objective);
    assert_eq!(wrong(weighted(&[(Latency, 1.0), (Energy, 0.5)])), [""; 0]);
    assert_eq!(wrong(weighted(&[])), ["objective"]);
    assert_eq!(
        wrong(weighted(&[
            (Latency, -1.0),
            (Energy, f64::NAN),
            (Latency, 1.0)
        ])),
        [
            "objective",
            "objective.weighted[0].weight",
            "objective.weighted[1].weight"
        ]
    );
    assert_eq!(
        wrong(weighted(&[(Throughput, 1.0), (Fairness, 1.0)])),
        ["objective.weighted"]
    );
    let ranked = Objective::Lexicographic(vec![crate::RankedCriterion {
        criterion: Latency,
        tolerance: -0.1,
    }]);
    assert_eq!(wrong(ranked), ["objective.lexicographic[0].tolerance"]);
    let priced = fields(|p| {
        p.nodes[0].active_watts = -1.0;
        p.nodes[1].price_per_second = f64::NAN;
        let row = p.links.values_mut().next().unwrap();
        let link = row.values_mut().next().unwrap();
        link.joules_per_byte = f64::INFINITY;
        link.price_per_byte = -2.0;
    });
    assert_eq!(
        priced,
        [
            "nodes[n0].activeWatts",
            "nodes[n1].pricePerSecond",
            "links[n0][n1].joulesPerByte",
            "links[n0][n1].pricePerByte"
        ]
    );
    let json = r#"{"weighted": [{"criterion": "latency", "weight": 1, "unit": "s"}]}"#;
    assert!(
        serde_json::from_str::<Objective>(json).is_err(),
        "unknown fields"
    );
    let json = serde_json::to_string(&Objective::TailLatency).unwrap();
    assert_eq!(json, "\"tailLatency\"");
}

#[test]
fn a_good_problem_passes_and_survives_json() {
    let problem = good();
    assert_eq!(validate(&problem), Ok(()));
    let json = serde_json::to_string(&problem).unwrap();
    assert_eq!(serde_json::from_str::<Problem>(&json).unwrap(), problem);
}

#[test]
fn nodes_and_links_are_named_with_their_field() {
    assert_eq!(fields(|p| p.nodes.clear())[..2], ["nodes", "links[n0]"]);
    assert_eq!(
        fields(|p| p.nodes[1].name = "n0".into())[0],
        "nodes[1].name"
    );
    assert_eq!(
        fields(|p| p.nodes[0].load_share = f64::NAN),
        ["nodes[n0].loadShare"]
    );
    assert_eq!(
        fields(|p| p.nodes[0].load_share = 1.0),
        ["nodes[n0].loadShare"]
    );
    assert_eq!(
        fields(|p| p.nodes[0].utilisation_cap = 0.0),
        ["nodes[n0].utilisationCap"]
    );
    assert_eq!(
        fields(|p| p.nodes[0].concurrency = 0),
        ["nodes[n0].concurrency"]
    );
    let link = |l: Link| fields(|p| p.set_link("n0", "n1", l));
    assert_eq!(link(Link::new(-1.0, 1.0)), ["links[n0][n1].latencySeconds"]);
    assert_eq!(link(Link::new(0.0, 0.0)), ["links[n0][n1].bytesPerSecond"]);
    assert_eq!(
        link(Link {
            share: f64::NAN,
            ..Link::new(0.0, 1.0)
        }),
        ["links[n0][n1].share"]
    );
    assert_eq!(
        fields(|p| p.set_link("n0", "nowhere", Link::new(0.0, 1.0))),
        ["links[n0][nowhere]"]
    );
    assert_eq!(
        fields(|p| p.set_link("n1", "n1", Link::new(0.0, 1.0))),
        ["links[n1][n1]"]
    );
    let many = fields(|p| {
        p.nodes = (0..100_000)
            .map(|i| Node::new(format!("n{i}"), Tier::Edge, 1))
            .collect();
    });
    assert_eq!(many, ["nodes"]);
}

#[test]
fn workloads_are_named_with_their_field() {
    let one = |f: fn(&mut Workload)| fields(|p| f(&mut p.workloads[0]));
    assert_eq!(fields(|p| p.workloads.clear()), ["workloads"]);
    assert_eq!(one(|w| w.entry = "x".into()), ["workloads[net].entry"]);
    assert_eq!(
        one(|w| w.rate_per_second = f64::INFINITY),
        ["workloads[net].ratePerSecond"]
    );
    assert_eq!(one(|w| w.weight = -1.0), ["workloads[net].weight"]);
    assert!(one(|w| w.blocks.clear()).contains(&"workloads[net].blocks".to_owned()));
    assert_eq!(
        one(|w| w.blocks[1].costs.get_mut("n0").unwrap().seconds = -0.1),
        ["workloads[net].blocks[1].costs[n0].seconds"]
    );
    assert_eq!(
        one(|w| w.blocks[1].inputs.push("ghost".into())),
        ["workloads[net].blocks[1].inputs"]
    );
    assert_eq!(
        one(|w| w.blocks[0].inputs.push("v2".into())),
        ["workloads[net].blocks[0].inputs"]
    );
    assert_eq!(
        one(|w| w.blocks[2].outputs.push("v1".into())),
        ["workloads[net].blocks[2].outputs"]
    );
    assert_eq!(
        one(|w| w.outputs.push("ghost".into())),
        ["workloads[net].outputs"]
    );
    assert_eq!(
        one(|w| w.previous = Some(Previous {
            segments: vec![Segment {
                node: "gone".into(),
                blocks: vec![7]
            }],
            on_disk: vec![Segment {
                node: "n0".into(),
                blocks: vec![9]
            }],
            move_seconds_per_byte: f64::NAN,
        })),
        [
            "workloads[net].previous.moveSecondsPerByte",
            "workloads[net].previous.segments",
            "workloads[net].previous.onDisk"
        ]
    );
}

#[test]
fn exits_are_named_with_their_field() {
    let one = |exits: Vec<Exit>| fields(|p| p.workloads[0].exits = exits);
    assert!(one(vec![exit(0, &[0.5])]).is_empty());
    assert_eq!(
        one(vec![exit(2, &[0.5])]),
        ["workloads[net].exits[0].afterBlock"]
    );
    assert_eq!(
        one(vec![exit(1, &[0.5]), exit(0, &[0.5])]),
        ["workloads[net].exits[1].afterBlock"]
    );
    assert_eq!(one(vec![exit(0, &[])]), ["workloads[net].exits[0].table"]);
    assert_eq!(
        one(vec![exit(0, &[0.5, 0.9])]),
        ["workloads[net].constraints.minAccuracy"]
    );
    let mut bad = exit(0, &[0.5]);
    bad.table[0].rate = 1.5;
    assert_eq!(one(vec![bad]), ["workloads[net].exits[0].table[0].rate"]);
    assert_eq!(
        fields(|p| p.workloads[0].constraints.min_accuracy = Some(0.5)),
        ["workloads[net].finalAccuracy"]
    );
}

#[test]
fn contradictory_constraints_are_told_all_at_once() {
    let found = fields(|p| {
        let c = &mut p.workloads[0].constraints;
        c.keep_first_on_entry = 1;
        c.pins = vec![at(0, "n1"), at(1, "n1"), at(1, "n0"), at(9, "nowhere")];
        c.forbidden = vec![at(1, "n1")];
        c.allowed_tiers = Some(BTreeSet::from([Tier::Cloud]));
        c.latency_limit_seconds = Some(f64::NAN);
    });
    let at = |f: &str| format!("workloads[net].constraints.{f}");
    for field in [
        "keepFirstOnEntry",
        "pins[0]",
        "pins[1]",
        "pins[2]",
        "pins[3]",
        "latencyLimitSeconds",
    ] {
        assert!(found.contains(&at(field)), "{field} not in {found:?}");
    }
    assert!(fields(|p| p.workloads[0].constraints.keep_first_on_entry = 4).len() == 1);
}

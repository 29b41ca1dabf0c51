use super::*;
use crate::testing::chain;
use crate::{Certificate, Exit, ExitPoint, Previous, Stats, Tier};

fn two_nodes() -> Problem {
    chain(
        &[Tier::Device, Tier::Cloud],
        &[&[0.1, 0.01], &[0.2, 0.02], &[0.3, 0.03]],
        &[1000, 100, 500, 10],
        10,
        Link::new(0.005, 1000.0),
    )
}

fn place(segments: &[(&str, &[usize])]) -> Vec<Placement> {
    vec![Placement {
        workload: "net".into(),
        segments: segments
            .iter()
            .map(|(node, blocks)| Segment {
                node: (*node).into(),
                blocks: blocks.to_vec(),
            })
            .collect(),
        thresholds: Vec::new(),
    }]
}

fn close_to(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-12
}

#[test]
fn latency_is_compute_plus_both_ways_of_every_crossing() {
    let p = two_nodes();
    let m = evaluate(&p, &place(&[("n0", &[0]), ("n1", &[1, 2])])).unwrap();
    // 0.1 + 0.05 compute; RTT 0.01; 100 B there and 10 B back at 1000 B/s.
    assert!(close_to(m.objective, 0.15 + 0.01 + 0.1 + 0.01), "{m:?}");
    assert!(close_to(m.workloads[0].longest_seconds, m.objective));
    let m = evaluate(&p, &place(&[("n1", &[0, 1, 2])])).unwrap();
    assert!(close_to(m.objective, 0.06 + 0.01 + 1.0 + 0.01), "{m:?}");
    assert_eq!(m.workloads[0].crossings[0].before_block, 0);
}

#[test]
fn exits_weigh_what_lies_behind_them() {
    let mut p = two_nodes();
    p.workloads[0].exits = vec![Exit {
        after_block: 0,
        reply_bytes: 4,
        table: vec![ExitPoint {
            threshold: 0.7,
            rate: 0.6,
            accuracy: 0.9,
        }],
    }];
    p.workloads[0].final_accuracy = Some(0.95);
    let mut split = place(&[("n0", &[0]), ("n1", &[1, 2])]);
    assert!(matches!(
        evaluate(&p, &split).unwrap_err()[0],
        Violation::Thresholds { .. }
    ));
    split[0].thresholds = vec![0.7];
    let m = evaluate(&p, &split).unwrap();
    assert!(close_to(
        m.objective,
        0.1 + 0.4 * (0.05 + 0.01 + 0.1 + 0.01)
    ));
    assert!(close_to(
        m.workloads[0].accuracy.unwrap(),
        0.6 * 0.9 + 0.4 * 0.95
    ));
    // After the crossing, both replies travel back.
    let mut cloud = place(&[("n1", &[0, 1, 2])]);
    cloud[0].thresholds = vec![0.7];
    let m = evaluate(&p, &cloud).unwrap();
    let reply = 0.6 * 0.004 + 0.4 * 0.01;
    assert!(close_to(
        m.objective,
        1.0 + 0.01 + reply + 0.01 + 0.4 * 0.05
    ));
}

#[test]
fn load_cut_penalty_and_concurrency_count() {
    let mut p = two_nodes();
    p.nodes[0].load_share = 0.5;
    p.nodes[0].concurrency = 2;
    p.workloads[0].rate_per_second = 2.0;
    let costs = &mut p.workloads[0].blocks[0].costs;
    costs.get_mut("n0").unwrap().cut_penalty_seconds = 0.02;
    let m = evaluate(&p, &place(&[("n0", &[0]), ("n1", &[1, 2])])).unwrap();
    assert!(close_to(m.workloads[0].segments[0].compute_seconds, 0.24));
    assert!(close_to(m.nodes[0].utilisation, 0.5 + 2.0 * 0.12 / 2.0));
    let to = |a: &str| m.links.iter().find(|l| l.from == a).unwrap().utilisation;
    assert!(close_to(to("n0"), 0.2) && close_to(to("n1"), 0.02));
    let slowest = m.bottleneck.unwrap();
    assert_eq!(slowest.place, "n0");
    assert!(close_to(slowest.seconds, 0.06 / 0.3), "{slowest:?}");
    p.workloads[0].rate_per_second = 20.0;
    let wrong = evaluate(&p, &place(&[("n0", &[0]), ("n1", &[1, 2])])).unwrap_err();
    let busy: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    assert_eq!(busy.len(), 3, "{busy:?}");
    assert!(busy[2].contains("n0→n1"));
}

#[test]
fn values_that_skip_blocks_cross_every_cut_between() {
    let mut p = two_nodes();
    p.workloads[0].blocks[2].inputs.push("v1".into());
    let bytes = |from: usize| {
        let all: Vec<usize> = (0..3).collect();
        let m = evaluate(&p, &place(&[("n0", &all[..from]), ("n1", &all[from..])])).unwrap();
        m.workloads[0].crossings[0].bytes
    };
    assert_eq!(bytes(1), 100);
    assert_eq!(bytes(2), 600);
}

#[test]
fn memory_counts_old_and_new_during_the_switch() {
    let mut p = two_nodes();
    p.nodes[1].memory_bytes = 25;
    p.workloads[0].previous = Some(Previous {
        segments: place(&[("n0", &[0]), ("n1", &[1, 2])])[0].segments.clone(),
        on_disk: Vec::new(),
        move_seconds_per_byte: 0.001,
    });
    let same = place(&[("n0", &[0]), ("n1", &[1, 2])]);
    let m = evaluate(&p, &same).unwrap();
    assert_eq!(
        (m.nodes[1].memory_bytes, m.nodes[1].transition_bytes),
        (20, 20)
    );
    assert_eq!(m.workloads[0].moved_bytes, 0);
    let shrink = place(&[("n0", &[0, 1]), ("n1", &[2])]);
    let m = evaluate(&p, &shrink).unwrap();
    assert!(close_to(m.objective - m.latency_seconds, 0.01));
    // Blocks on disk are not fetched, but still loaded.
    if let Some(previous) = &mut p.workloads[0].previous {
        previous.on_disk = place(&[("n0", &[1])])[0].segments.clone();
    }
    let at_hand = evaluate(&p, &shrink).unwrap();
    assert_eq!(at_hand.workloads[0].moved_bytes, 0);
    assert!(close_to(at_hand.objective, at_hand.latency_seconds));
    assert_eq!(at_hand.nodes, m.nodes);
    let swap = place(&[("n1", &[0]), ("n0", &[1, 2])]);
    let wrong = evaluate(&p, &swap).unwrap_err();
    assert!(
        wrong[0]
            .to_string()
            .contains("during the switch takes 30 bytes of 25"),
        "{wrong:?}"
    );
    p.transition = Transition::Drain;
    assert!(evaluate(&p, &swap).is_ok());
    p.transition = Transition::Separate;
    assert!(evaluate(&p, &same).is_ok());
    assert!(evaluate(&p, &shrink).is_err());
}

#[test]
fn every_constraint_is_enforced() {
    let spread = place(&[("n0", &[0]), ("n1", &[1, 2])]);
    let broken = |f: &dyn Fn(&mut Problem)| {
        let mut p = two_nodes();
        f(&mut p);
        evaluate(&p, &spread).is_err()
    };
    assert!(!broken(&|_| ()));
    assert!(broken(&|p| p.nodes[1].excluded = Some("not ready".into())));
    assert!(broken(&|p| p.nodes[1].memory_bytes = 19));
    assert!(broken(&|p| p.workloads[0]
        .constraints
        .keep_first_on_entry = 2));
    assert!(broken(&|p| {
        let limits = &mut p.workloads[0].constraints.tier_slice_limit_bytes;
        limits.insert(Tier::Cloud, 19);
    }));
    assert!(broken(&|p| {
        p.workloads[0].constraints.allowed_tiers = Some([Tier::Cloud].into());
    }));
    assert!(broken(&|p| {
        p.workloads[0].constraints.latency_limit_seconds = Some(0.1);
    }));
    assert!(broken(&|p| {
        p.workloads[0].blocks[1].costs.remove("n1");
    }));
    assert!(broken(&|p| {
        p.links.get_mut("n1").unwrap().remove("n0");
    }));
    let down = place(&[("n1", &[0, 1]), ("n0", &[2])]);
    let mut p = two_nodes();
    assert!(evaluate(&p, &down).is_ok());
    p.workloads[0].constraints.monotone_tiers = true;
    assert!(evaluate(&p, &down).is_err());
}

#[test]
fn malformed_placements_are_refused() {
    let p = two_nodes();
    for wrong in [
        place(&[]),
        place(&[("n0", &[0, 1])]),
        place(&[("n0", &[0, 2]), ("n1", &[1])]),
        place(&[("n0", &[0]), ("n0", &[1, 2])]),
        place(&[("n0", &[0]), ("n9", &[1, 2])]),
        place(&[("n0", &[0, 1, 2]), ("n1", &[])]),
        Vec::new(),
    ] {
        assert!(evaluate(&p, &wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn lies_are_caught() {
    let p = two_nodes();
    let placements = place(&[("n0", &[0]), ("n1", &[1, 2])]);
    let value = evaluate(&p, &placements).unwrap().objective;
    let honest = Answer {
        placements,
        objective: Some(value),
        certificate: Certificate::of(value, Some(value), 0.0),
        stats: Stats::default(),
    };
    assert!(check_answer(&p, &honest).is_ok());
    let lie = |f: &dyn Fn(&mut Answer)| {
        let mut answer = honest.clone();
        f(&mut answer);
        check_answer(&p, &answer).is_err()
    };
    assert!(lie(&|a| a.objective = Some(value * 0.9)));
    assert!(lie(&|a| a.objective = None));
    for number in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
        assert!(lie(&|a| a.objective = Some(number)));
        assert!(lie(&|a| a.certificate.lower_bound = Some(number)));
    }
    assert!(lie(&|a| a.certificate.lower_bound = Some(value * 0.9)));
    assert!(lie(&|a| a.certificate.lower_bound = Some(value * 1.1)));
    assert!(lie(&|a| a.certificate.status = Status::Infeasible));
    assert!(lie(&|a| a.placements[0].segments[0].node = "n1".into()));
    assert!(lie(&|a| {
        a.placements.clear();
        a.certificate = Certificate::INFEASIBLE;
    }));
    // Everything on the device takes 0.6 s, less than this "optimum".
    let worse = place(&[("n1", &[0, 1, 2])]);
    let value = evaluate(&p, &worse).unwrap().objective;
    let claimed = Answer {
        placements: worse,
        objective: Some(value),
        certificate: Certificate::of(value, Some(value), 0.0),
        stats: Stats::default(),
    };
    assert!(check_answer(&p, &claimed).is_err());
}

//! Capabilities and limits of each strategy, on small problems.

use crate::nasty::{Dice, FEATURES, problem};
use crate::testing::chain;
use crate::{
    Ctx, Exit, ExitPoint, Link, Objective, Parameters, Problem, Solution, SolveError, SolveOptions,
    Status, Tier, solve_checked, strategy, validate,
};

fn ask(p: &Problem, name: &str, parameters: &str) -> Result<Solution, SolveError> {
    let parameters: Parameters = serde_json::from_str(parameters).unwrap();
    let chosen = strategy(name, &parameters)?;
    solve_checked(
        p,
        chosen.as_ref(),
        &SolveOptions::default(),
        &Ctx::unlimited(),
    )
}

fn why_not(p: &Problem, name: &str) -> String {
    match ask(p, name, "{}") {
        Err(SolveError::NotApplicable { reason, .. }) => reason,
        other => panic!("{name}: {other:?}"),
    }
}

/// A slow camera, an edge host and a cloud, with two exits.
fn three_tiers() -> Problem {
    let mut p = chain(
        &[Tier::Device, Tier::Edge, Tier::Cloud],
        &[
            &[0.04, 0.02, 0.01],
            &[0.08, 0.02, 0.01],
            &[0.30, 0.10, 0.02],
            &[0.30, 0.10, 0.02],
        ],
        &[1000, 400, 300, 300, 10],
        100,
        Link::new(0.01, 10_000.0),
    );
    let exit = |after_block, rows: &[(f64, f64, f64)]| Exit {
        after_block,
        reply_bytes: 10,
        table: rows
            .iter()
            .map(|(threshold, rate, accuracy)| ExitPoint {
                threshold: *threshold,
                rate: *rate,
                accuracy: *accuracy,
            })
            .collect(),
    };
    let w = &mut p.workloads[0];
    w.exits = vec![
        exit(0, &[(0.9, 0.2, 0.95), (0.5, 0.8, 0.7)]),
        exit(1, &[(0.9, 0.5, 0.9)]),
    ];
    w.final_accuracy = Some(0.95);
    w.constraints.min_accuracy = Some(0.5);
    p
}

fn nodes(solution: &Solution) -> Vec<&str> {
    let segments = solution.placements.iter().flat_map(|p| &p.segments);
    segments
        .flat_map(|s| s.blocks.iter().map(|_| s.node.as_str()))
        .collect()
}

/// Small valid problems of one workload, for a sum as in the literature.
fn small(cases: u64, nodes: usize, keep: impl Fn(&Problem) -> bool) -> Vec<Problem> {
    (0..cases)
        .map(|seed| {
            let mut dice = Dice(seed.wrapping_mul(131));
            let features = dice.roll(1 << FEATURES) & dice.roll(1 << FEATURES);
            problem(seed, nodes, 4, features as u32 & !(1 << 11))
        })
        .filter(|p| validate(p).is_ok() && keep(p))
        .collect()
}

#[test]
fn a_minimum_cut_is_the_optimum_of_two_hosts_or_says_why_not() {
    let (mut proved, mut refused) = (0, 0);
    let sums = |p: &Problem| !p.objective.criteria().iter().any(|c| c.is_worst());
    for p in small(1500, 2, |p| sums(p) && p.nodes.len() == 2) {
        let best = ask(&p, "optimal", "{}").unwrap();
        match ask(&p, "dads", "{}") {
            Ok(found) if found.certificate.status == Status::Optimal => {
                let value = |s: &Solution| s.metrics.as_ref().map(|m| m.objective);
                let (a, b) = (value(&best).unwrap(), value(&found).unwrap());
                assert!((a - b).abs() <= 1e-7 * a.abs() + 1e-12, "{a} {b}");
                proved += 1;
            }
            Ok(found) if found.placements.is_empty() => {
                assert_eq!(best.certificate.status, Status::Infeasible);
            }
            Ok(_) => {}
            Err(SolveError::NotApplicable { reason, .. }) => {
                assert!(reason.contains("limit"), "{reason}");
                refused += 1;
            }
            Err(e) => panic!("{e}"),
        }
    }
    assert!(proved > 300 && refused > 20, "{proved} {refused}");
}

#[test]
fn no_single_split_beats_neurosurgeon() {
    let mut found = 0;
    for p in small(800, 4, |p| p.objective.ranks().len() < 2) {
        let best = best_split(&p);
        let answer = ask(&p, "neurosurgeon", "{}").unwrap();
        let value = answer.metrics.map(|m| m.objective);
        match (best, value) {
            (Some(a), Some(b)) => {
                assert!((a - b).abs() <= 1e-7 * a.abs() + 1e-12, "{a} {b}");
                found += 1;
            }
            (a, b) => assert_eq!(a, b),
        }
    }
    assert!(found > 200, "{found}");
}

/// By the checker, over all cuts, hosts and thresholds.
fn best_split(p: &Problem) -> Option<f64> {
    let w = &p.workloads[0];
    let mut thresholds: Vec<Vec<f64>> = vec![Vec::new()];
    for exit in &w.exits {
        let longer = |t: &Vec<f64>| {
            let t = t.clone();
            let rows = exit.table.iter().map(|r| r.threshold);
            rows.map(|r| [t.clone(), vec![r]].concat())
                .collect::<Vec<_>>()
        };
        thresholds = thresholds.iter().flat_map(longer).collect();
    }
    let mut best: Option<f64> = None;
    for host in &p.nodes {
        for cut in 0..=w.blocks.len() {
            let path: Vec<String> = (0..w.blocks.len())
                .map(|b| if b < cut { &w.entry } else { &host.name }.clone())
                .collect();
            for t in &thresholds {
                let placement = crate::Placement {
                    workload: w.name.clone(),
                    segments: crate::nasty::segments(&path),
                    thresholds: t.clone(),
                };
                if let Ok(m) = crate::check::evaluate(p, &[placement]) {
                    best = Some(best.map_or(m.objective, |b: f64| b.min(m.objective)));
                }
            }
        }
    }
    best
}

#[test]
fn edgent_takes_the_most_accurate_that_meets_the_deadline() {
    let mut p = three_tiers();
    assert!(why_not(&p, "edgent").contains("latencyLimitSeconds"));
    p.workloads[0].constraints.latency_limit_seconds = Some(10.0);
    let relaxed = ask(&p, "edgent", "{}").unwrap();
    assert_eq!(relaxed.placements[0].thresholds, [0.9, 0.9]);
    p.workloads[0].constraints.latency_limit_seconds = Some(0.08);
    let hasty = ask(&p, "edgent", "{}").unwrap();
    assert_eq!(hasty.placements[0].thresholds, [0.5, 0.9]);
    assert!(!nodes(&hasty).contains(&"n2"), "the cloud is not for it");
    p.workloads[0].constraints.latency_limit_seconds = Some(0.001);
    assert_eq!(
        ask(&p, "edgent", "{}").unwrap().certificate.status,
        Status::Unknown
    );
    p.nodes[1].tier = Tier::Cloud;
    assert!(why_not(&p, "edgent").contains("edge"));
}

#[test]
fn spinn_keeps_an_exit_on_the_entry_and_chooses_thresholds() {
    let mut p = three_tiers();
    let fast = ask(&p, "spinn", "{}").unwrap();
    assert_eq!(nodes(&fast)[0], "n0");
    assert_eq!(fast.placements[0].thresholds[0], 0.5);
    p.workloads[0].constraints.min_accuracy = Some(0.9);
    let exact = ask(&p, "spinn", "{}").unwrap();
    assert_eq!(exact.placements[0].thresholds[0], 0.9);
    p.workloads[0].exits.clear();
    assert!(why_not(&p, "spinn").contains("no side exit"));
}

#[test]
fn ddnn_parts_tiers_behind_exits() {
    let mut p = three_tiers();
    let found = ask(&p, "ddnn", "{}").unwrap();
    let path = nodes(&found);
    let three: [&str; 4] = ["n0", "n1", "n2", "n2"];
    let two = [
        ["n0", "n1", "n1", "n1"],
        ["n0", "n2", "n2", "n2"],
        ["n0", "n0", "n2", "n2"],
    ];
    assert!(path == three || two.iter().any(|t| path == t), "{path:?}");
    for node in &mut p.nodes {
        node.tier = Tier::Device;
    }
    assert!(why_not(&p, "ddnn").contains("device"));
}

#[test]
fn energy_saves_joules_within_its_slowdown() {
    let mut p = three_tiers();
    p.workloads[0].exits.clear();
    assert!(why_not(&p, "energy").contains("activeWatts"));
    for (node, watts) in p.nodes.iter_mut().zip([2.0, 20.0, 300.0]) {
        node.active_watts = watts;
    }
    let fast = ask(&p, "optimal", "{}").unwrap().metrics.unwrap();
    let mut joules = f64::INFINITY;
    for slowdown in [1.0, 1.5, 4.0, 1000.0] {
        let parameters = format!("{{\"slowdown\": {slowdown}}}");
        let m = ask(&p, "energy", &parameters).unwrap().metrics.unwrap();
        assert!(m.latency_seconds <= slowdown * fast.latency_seconds * (1.0 + 1e-6));
        assert!(m.energy_joules <= joules * (1.0 + 1e-9));
        joules = m.energy_joules;
    }
    assert!(joules < fast.energy_joules);
    p.objective = Objective::Energy;
    p.workloads[0].constraints.latency_limit_seconds = Some(1.0);
    let proved = ask(&p, "energy", "{}").unwrap();
    assert_eq!(proved.certificate.status, Status::Optimal);
    let wrong = ask(&p, "energy", "{\"slowdown\": 0.5}").unwrap_err();
    assert!(wrong.to_string().contains("from 1 to"), "{wrong}");
}

#[test]
fn fair_spreads_load_and_throughput_widens_the_narrowest() {
    let mut p = three_tiers();
    p.workloads[0].exits.clear();
    assert!(why_not(&p, "fair").contains("ratePerSecond"));
    p.workloads[0].rate_per_second = 1.5;
    let metrics =
        |name: &str, parameters: &str| ask(&p, name, parameters).unwrap().metrics.unwrap();
    let fast = metrics("optimal", "{}");
    let fair = metrics("fair", "{\"slowdown\": 10}");
    assert!(fair.utilisation <= fast.utilisation);
    let alike = metrics("fair", "{\"slowdown\": 10, \"measure\": \"proportional\"}");
    assert!(alike.proportional_utilisation <= fast.proportional_utilisation);
    let wide = metrics("throughput", "{}");
    let seconds = |m: &crate::Metrics| m.bottleneck.as_ref().unwrap().seconds;
    assert!(seconds(&wide) <= seconds(&fast));
}

#[test]
fn the_genetic_algorithm_finds_the_optimum_of_small_problems_and_is_seeded() {
    let p = three_tiers();
    let best = ask(&p, "optimal", "{}").unwrap().metrics.unwrap().objective;
    for preset in ["paper", "tuned"] {
        let parameters = format!("{{\"preset\": \"{preset}\"}}");
        let found = ask(&p, "genetic", &parameters).unwrap();
        assert_eq!(found.certificate.status, Status::Feasible);
        let value = found.metrics.as_ref().unwrap().objective;
        assert!(value <= best * 1.001, "{preset}: {value}, best is {best}");
        assert_eq!(found, ask(&p, "genetic", &parameters).unwrap());
    }
    let wrong = ask(&p, "genetic", "{\"population\": 1}").unwrap_err();
    assert!(wrong.to_string().contains("population"), "{wrong}");
}

#[test]
fn first_fit_fills_the_fastest_first() {
    let mut p = three_tiers();
    p.workloads[0].exits.clear();
    assert_eq!(nodes(&ask(&p, "first-fit", "{}").unwrap()), ["n2"; 4]);
    p.nodes[2].memory_bytes = 200;
    assert_eq!(
        nodes(&ask(&p, "first-fit", "{}").unwrap()),
        ["n2", "n2", "n1", "n1"]
    );
}

#[test]
fn a_node_that_others_fill_beyond_its_cap_is_left_alone_and_stops_nothing_else() {
    let mut p = chain(
        &[Tier::Device, Tier::Edge, Tier::Cloud],
        &[&[0.04, 0.02, 0.01], &[0.08, 0.02, 0.01]],
        &[1000, 400, 10],
        10,
        Link::new(0.01, 10_000.0),
    );
    p.workloads[0].rate_per_second = 0.5;
    // The device alone could not sustain that rate.
    p.nodes[0].load_share = 0.77;
    p.nodes[2].load_share = 0.95;
    let found = ask(&p, "optimal", "{}").unwrap();
    assert_eq!(found.certificate.status, Status::Optimal);
    let segments = found.placements.iter().flat_map(|p| &p.segments);
    let mut nodes = segments.map(|s| s.node.as_str());
    assert!(nodes.all(|node| node != p.nodes[2].name));
}

//! Times strategies on device–edge–cloud worlds of growing size.
//!
//! `cargo run --release -p lamina-placement --example solve_times -- \
//!    [PROFILE.json|synthL] [real|tight|packed] [N,N,…] [worlds] [seconds] [strategy,…]`
//!
//! A profile is `{"input_bytes": …, "blocks": [{"ms": …, "weight": …, "act": …,
//! "out": …}]}`: milliseconds on the reference host, bytes of weights and
//! activations, bytes given to the next block. `synthL` draws a deep network of
//! L blocks. Strategies take turns on each world, so that a busy machine slows
//! all of them.

use lamina_placement::{
    Block, BlockCost, Constraints, Ctx, Link, Node, Parameters, Problem, SolveOptions, Status,
    Tier, Value, Workload, solve_checked, strategy,
};
use serde::Deserialize;
use std::error::Error;
use std::time::{Duration, Instant};

#[derive(Deserialize)]
struct Profile {
    input_bytes: f64,
    blocks: Vec<Measured>,
}

#[derive(Deserialize)]
struct Measured {
    ms: f64,
    weight: f64,
    act: f64,
    out: f64,
}

/// How scarce memory and compute time are.
#[derive(Clone, Copy)]
enum Regime {
    /// Devices hold 20–80 % of the model, edges 40–120 %, the cloud all.
    Real,
    /// No node holds more than 5–70 %.
    Tight,
    /// Every node holds about 12 %: bin packing.
    Packed,
}

/// A small deterministic generator (splitmix64).
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Even on a logarithmic scale.
    fn scale(&mut self, low: f64, high: f64) -> f64 {
        self.between(low.ln(), high.ln()).exp()
    }
}

fn synthetic(blocks: usize) -> Profile {
    let mut dice = Dice(42);
    let measured = |i: usize, dice: &mut Dice| Measured {
        ms: dice.scale(0.5, 4.0),
        weight: dice.scale(2e5, 4e6),
        act: 1e6,
        out: 2.5e6 * (-3.0 * i as f64 / blocks as f64).exp() * dice.scale(0.4, 1.6),
    };
    Profile {
        input_bytes: 602_112.0,
        blocks: (0..blocks).map(|i| measured(i, &mut dice)).collect(),
    }
}

fn world(profile: &Profile, n: usize, regime: Regime, seed: u64) -> Problem {
    let mut dice = Dice(seed.wrapping_mul(7919).wrapping_add(17));
    let clouds = (n / 10).max(1);
    let edges = (3 * n / 10).max(1);
    let tier = |i: usize| match i {
        _ if i < n - clouds - edges => Tier::Device,
        _ if i < n - clouds => Tier::Edge,
        _ => Tier::Cloud,
    };
    let total: f64 = profile.blocks.iter().map(|b| b.weight + b.act).sum();
    let mut problem = Problem::default();
    let mut speed = Vec::new();
    for i in 0..n {
        let (slow, fast) = match tier(i) {
            Tier::Device => (0.08, 0.35),
            Tier::Edge => (0.8, 4.0),
            Tier::Cloud => (6.0, 25.0),
        };
        speed.push(dice.scale(slow, fast));
        let share = match (regime, tier(i)) {
            (Regime::Real, Tier::Device) => dice.between(0.2, 0.8),
            (Regime::Real, Tier::Edge) => dice.between(0.4, 1.2),
            (Regime::Real, Tier::Cloud) => 2.0,
            (Regime::Tight, Tier::Device) => dice.between(0.05, 0.3),
            (Regime::Tight, Tier::Edge) => dice.between(0.15, 0.5),
            (Regime::Tight, Tier::Cloud) => dice.between(0.3, 0.7),
            (Regime::Packed, _) => dice.between(0.8, 1.3) * (2.2 / n as f64).max(0.12),
        };
        let mut node = Node::new(format!("n{i:04}"), tier(i), (total * share) as u64);
        node.load_share = dice.between(0.0, 0.6);
        node.utilisation_cap = 1.0;
        problem.nodes.push(node);
    }
    links(&mut problem, n, &mut dice);
    let uplink = problem.links["n0000"]
        .values()
        .map(|l| l.bytes_per_second)
        .fold(0.0, f64::max);
    // Most instances would be infeasible for the entry's uplink alone.
    let rate = dice.scale(1.0, 6.0).min(0.5 * uplink / profile.input_bytes);
    problem.workloads = vec![workload(profile, &problem, &speed, rate)];
    problem
}

fn links(problem: &mut Problem, n: usize, dice: &mut Dice) {
    let access: Vec<f64> = (0..n).map(|_| dice.scale(8.0, 120.0)).collect();
    for i in 0..n {
        for j in (0..n).filter(|j| *j != i) {
            let (a, b) = (problem.nodes[i].tier, problem.nodes[j].tier);
            let device = if a == Tier::Device { i } else { j };
            let (ms, mbit) = match (a.min(b), a.max(b)) {
                (Tier::Device, Tier::Device) => {
                    (dice.between(4.0, 30.0), access[i].min(access[j]) * 0.7)
                }
                (Tier::Device, Tier::Edge) => (
                    dice.between(2.0, 20.0),
                    access[device] * dice.between(0.6, 1.0),
                ),
                (Tier::Device, Tier::Cloud) => (
                    dice.between(25.0, 60.0),
                    access[device] * dice.between(0.3, 0.7),
                ),
                (Tier::Edge, Tier::Edge) => (dice.scale(0.3, 15.0), dice.scale(300.0, 9000.0)),
                (Tier::Edge, _) => (dice.between(15.0, 40.0), dice.scale(150.0, 600.0)),
                _ => (dice.between(0.3, 2.0), 10_000.0),
            };
            let mut link = Link::new(ms / 1e3, mbit * 1e6 / 8.0);
            link.share = 0.9;
            problem.set_link(format!("n{i:04}"), format!("n{j:04}"), link);
        }
    }
}

fn workload(profile: &Profile, problem: &Problem, speed: &[f64], rate: f64) -> Workload {
    let value = |i: usize, bytes: f64| Value {
        name: format!("v{i}"),
        bytes: bytes as u64,
    };
    let outs = profile.blocks.iter().map(|b| b.out);
    let last = profile.blocks.len();
    let blocks = profile.blocks.iter().enumerate().map(|(b, block)| Block {
        inputs: vec![format!("v{b}")],
        outputs: vec![format!("v{}", b + 1)],
        memory_bytes: (block.weight + block.act) as u64,
        slice_bytes: block.weight as u64,
        costs: problem
            .nodes
            .iter()
            .zip(speed)
            .map(|(n, s)| (n.name.clone(), BlockCost::new(block.ms / 1e3 / s + 2e-5)))
            .collect(),
    });
    Workload {
        name: "net".into(),
        entry: "n0000".into(),
        rate_per_second: rate,
        weight: 1.0,
        values: std::iter::once(profile.input_bytes)
            .chain(outs)
            .enumerate()
            .map(|(i, bytes)| value(i, if i == last { 4000.0 } else { bytes }))
            .collect(),
        blocks: blocks.collect(),
        outputs: vec![format!("v{last}")],
        final_accuracy: None,
        exits: Vec::new(),
        constraints: Constraints::default(),
        previous: None,
    }
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, usual: &'static str| args.get(i).map_or(usual, String::as_str);
    let name = arg(0, "synth18");
    let profile: Profile = match name.strip_prefix("synth") {
        Some(blocks) => synthetic(blocks.parse()?),
        None => serde_json::from_str(&std::fs::read_to_string(name)?)?,
    };
    let regime = match arg(1, "tight") {
        "real" => Regime::Real,
        "tight" => Regime::Tight,
        "packed" => Regime::Packed,
        other => return Err(format!("unknown regime `{other}`: real, tight or packed").into()),
    };
    let worlds: u64 = arg(3, "7").parse()?;
    let limit = Duration::from_secs_f64(arg(4, "10").parse()?);
    let names: Vec<&str> = arg(5, "optimal").split(',').collect();
    println!("nodes strategy        median ms     max ms  statuses (o f i u)  max gap");
    for n in arg(2, "5,10,20,50").split(',') {
        let n: usize = n.parse()?;
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
        let mut statuses = vec![[0u32; 4]; names.len()];
        let mut gaps = vec![0.0f64; names.len()];
        for seed in 0..worlds {
            let problem = world(&profile, n, regime, seed);
            for (z, name) in names.iter().enumerate() {
                let chosen = strategy(name, &Parameters::new())?;
                let options = SolveOptions {
                    work_limit: None,
                    ..SolveOptions::default()
                };
                let start = Instant::now();
                let ctx = Ctx::until(start + limit);
                let solution = solve_checked(&problem, chosen.as_ref(), &options, &ctx)?;
                let ms = start.elapsed().as_secs_f64() * 1e3;
                times[z].push(ms);
                statuses[z][match solution.certificate.status {
                    Status::Optimal => 0,
                    Status::Feasible => 1,
                    Status::Infeasible => 2,
                    Status::Unknown => 3,
                }] += 1;
                gaps[z] = gaps[z].max(solution.certificate.gap.unwrap_or(0.0));
                if std::env::var_os("VERBOSE").is_some() {
                    let value = solution.metrics.map(|m| m.objective * 1e3);
                    println!(
                        "  world {seed} {name}: {ms:.2} ms {value:?} {:?} {:?}",
                        solution.certificate, solution.stats
                    );
                }
            }
        }
        for (z, name) in names.iter().enumerate() {
            times[z].sort_by(f64::total_cmp);
            let worst = times[z].last().copied().unwrap_or(f64::NAN);
            println!(
                "{n:5} {name:14} {:10.3} {worst:10.3}  {:?}  {:.2} %",
                median(&times[z]),
                statuses[z],
                gaps[z] * 100.0
            );
        }
    }
    Ok(())
}

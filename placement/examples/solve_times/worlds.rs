//! Seeded device–edge–cloud worlds.

use lamina_placement::{Block, BlockCost, Constraints, Link, Node, Problem, Tier, Value, Workload};
use serde::Deserialize;

/// What a network costs, block by block.
#[derive(Deserialize)]
pub(crate) struct Profile {
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
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Regime {
    /// Devices hold 20–80 % of the model, edges 40–120 %, the cloud all.
    Real,
    /// No node holds more than 5–70 %.
    Tight,
    /// Every node holds about 12 %: bin packing.
    Packed,
    /// So many workloads from several entries share what edges and clouds hold,
    /// about all of them together.
    Joint(usize),
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

pub(crate) fn synthetic(blocks: usize) -> Profile {
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

/// A world of `n` nodes for the first profile; of several workloads each draws
/// its own.
pub(crate) fn world(profiles: &[Profile], n: usize, regime: Regime, seed: u64) -> Problem {
    let mut dice = Dice(seed.wrapping_mul(7919).wrapping_add(17));
    let clouds = (n / 10).max(1);
    let edges = (3 * n / 10).max(1);
    let tier = |i: usize| match i {
        _ if i < n - clouds - edges => Tier::Device,
        _ if i < n - clouds => Tier::Edge,
        _ => Tier::Cloud,
    };
    let chosen = drawn(profiles, regime, seed);
    let total: f64 = chosen.iter().map(|p| p.bytes()).sum();
    let largest = chosen.iter().map(|p| p.largest_bytes()).fold(0.0, f64::max);
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
            (Regime::Joint(k), Tier::Device) => dice.between(0.1, 0.5) / k as f64,
            (Regime::Joint(_), at) => {
                let nodes = if at == Tier::Edge { 2.4 } else { 3.2 };
                let least = 1.15 * largest / total;
                (dice.between(0.5, 1.5) * nodes / n as f64).max(least)
            }
        };
        let mut node = Node::new(format!("n{i:04}"), tier(i), (total * share) as u64);
        node.load_share = dice.between(0.0, 0.6);
        node.utilisation_cap = match (regime, node.tier) {
            (Regime::Joint(_), Tier::Cloud) => node.load_share + 0.25,
            _ => 1.0,
        };
        problem.nodes.push(node);
    }
    links(&mut problem, n, &mut dice);
    let devices = n - clouds - edges;
    for (k, profile) in chosen.iter().enumerate() {
        let entry = if k == 0 {
            0
        } else {
            (dice.unit() * devices as f64) as usize
        };
        let named = Named {
            k,
            entry: &format!("n{entry:04}"),
        };
        let uplink = uplink(&problem, named.entry);
        // Most instances would be infeasible for the entry's uplink alone.
        let rate = match regime {
            Regime::Joint(_) => dice
                .scale(0.5, 4.0)
                .min(0.22 * uplink / profile.input_bytes),
            _ => dice.scale(1.0, 6.0).min(0.5 * uplink / profile.input_bytes),
        };
        let workload = workload(profile, &problem, &speed, rate, &named);
        problem.workloads.push(workload);
    }
    problem
}

/// What each workload runs.
fn drawn(profiles: &[Profile], regime: Regime, seed: u64) -> Vec<&Profile> {
    let mut dice = Dice(seed.wrapping_mul(31).wrapping_add(5));
    let count = if let Regime::Joint(k) = regime { k } else { 1 };
    (0..count)
        .map(|k| match k {
            0 => &profiles[0],
            _ => &profiles[(dice.unit() * profiles.len() as f64) as usize],
        })
        .collect()
}

/// Bytes per second of the fastest link from a node.
fn uplink(problem: &Problem, from: &str) -> f64 {
    problem.links[from]
        .values()
        .map(|l| l.bytes_per_second)
        .fold(0.0, f64::max)
}

impl Profile {
    fn bytes(&self) -> f64 {
        self.blocks.iter().map(|b| b.weight + b.act).sum()
    }

    fn largest_bytes(&self) -> f64 {
        self.blocks
            .iter()
            .map(|b| b.weight + b.act)
            .fold(0.0, f64::max)
    }
}

/// Which workload it is, and where its requests arise.
struct Named<'a> {
    k: usize,
    entry: &'a str,
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

fn workload(
    profile: &Profile,
    problem: &Problem,
    speed: &[f64],
    rate: f64,
    named: &Named<'_>,
) -> Workload {
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
        name: format!("net-{}", named.k),
        entry: named.entry.into(),
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

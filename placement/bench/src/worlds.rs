//! Random device–edge–cloud worlds in which capacities bind.
//!
//! Three fifths are devices, three tenths edge nodes, a tenth cloud nodes, at
//! sites of about four edge nodes. Links are directed: a device receives twice as
//! fast as it sends.

use crate::dice::Dice;
use crate::profile::{Encoding, Measured, Profile};
use anyhow::Result;
use lamina_placement::{Link, Node, Problem, Tier};

/// Scarcity of memory and compute time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Regime {
    /// Devices hold 20–80 % of the network, edge nodes 40–120 %, the cloud all.
    Real,
    /// No node holds or computes more than 5–70 % of it.
    Tight,
    /// Every node holds and computes about 12 %: bin packing.
    Packed,
}

/// Overhead of a call in seconds.
const CALL_SECONDS: f64 = 2e-5;
/// Share of a link that requests may fill.
const LINK_SHARE: f64 = 0.9;
/// Networks of a joint placement are drawn from these.
const MIX: [&str; 5] = [
    "googlenet_coarse",
    "resnet50_coarse",
    "mobilenet_v2_coarse",
    "vgg16_coarse",
    "vit_b_16_coarse",
];

/// Nodes and links, and how fast each node computes relative to the profiling machine.
struct World {
    problem: Problem,
    speed: Vec<f64>,
}

/// One network placed alone.
pub(crate) fn alone(profile: &Profile, n: usize, regime: Regime, seed: u64) -> Problem {
    let mut dice = Dice::new(seed);
    let World { mut problem, speed } = world(n, &mut dice);
    let seconds = whole_seconds(profile);
    let input = profile.input_bytes(Encoding::FP32) as f64;
    // Otherwise most instances would be infeasible because of the entry's uplink alone.
    let rate = dice
        .scale(1.0, 6.0)
        .min(0.6 * fastest_link(&problem, 0) / input);
    for (node, speed) in problem.nodes.iter_mut().zip(&speed) {
        let (memory, compute) = shares(regime, node.tier, n, &mut dice);
        node.memory_bytes = (profile.memory_bytes() as f64 * memory) as u64;
        let whole = rate * seconds / speed;
        node.utilisation_cap = (node.load_share + compute * whole).min(1.0);
    }
    let mut workload = workload(profile, "net", 0, &problem, &speed);
    workload.rate_per_second = rate;
    problem.workloads = vec![workload];
    problem
}

/// Several networks with different entries that share the nodes.
pub(crate) fn joint(networks: usize, n: usize, seed: u64) -> Result<Problem> {
    let mut dice = Dice::new(seed);
    let World { mut problem, speed } = world(n, &mut dice);
    let devices = problem
        .nodes
        .iter()
        .filter(|x| x.tier == Tier::Device)
        .count();
    let mut total = 0.0;
    let mut largest: u64 = 0;
    let mut workloads = Vec::new();
    for k in 0..networks {
        let profile = Profile::named(MIX[dice.below(MIX.len())])?;
        let entry = dice.below(devices);
        let input = profile.input_bytes(Encoding::FP32) as f64;
        let uplink = 0.22 * fastest_link(&problem, entry) / input;
        let rate = dice.scale(0.25, 2.0).min(uplink);
        total += profile.memory_bytes() as f64;
        let blocks = profile.blocks.iter().map(Measured::memory_bytes);
        largest = largest.max(blocks.max().unwrap_or(0));
        let mut workload = workload(&profile, &format!("net-{k}"), entry, &problem, &speed);
        workload.rate_per_second = rate;
        workloads.push(workload);
    }
    problem.workloads = workloads;
    // The largest block must fit somewhere: on every cloud and every other edge node.
    let room = 1.15 * largest as f64;
    for (i, node) in problem.nodes.iter_mut().enumerate() {
        let fair = total / n as f64;
        let memory = match node.tier {
            Tier::Device => total / networks as f64 * dice.between(0.1, 0.5),
            Tier::Edge => {
                let least = if i % 2 == 0 { room } else { 0.0 };
                (3.0 * fair * dice.between(0.5, 1.5)).max(least)
            }
            Tier::Cloud => (4.0 * fair * dice.between(0.5, 1.5)).max(room),
        };
        node.memory_bytes = memory as u64;
        if node.tier == Tier::Cloud {
            node.utilisation_cap = (node.load_share + 0.25).min(1.0);
        }
    }
    Ok(problem)
}

/// A node's share of the whole network's memory, and of its compute time.
fn shares(regime: Regime, tier: Tier, n: usize, dice: &mut Dice) -> (f64, f64) {
    match (regime, tier) {
        (Regime::Real, Tier::Device) => (dice.between(0.2, 0.8), f64::INFINITY),
        (Regime::Real, Tier::Edge) => (dice.between(0.4, 1.2), f64::INFINITY),
        (Regime::Real, Tier::Cloud) => (2.0, f64::INFINITY),
        (Regime::Tight, Tier::Device) => (dice.between(0.05, 0.3), dice.between(0.05, 0.3)),
        (Regime::Tight, Tier::Edge) => (dice.between(0.15, 0.5), dice.between(0.2, 0.6)),
        (Regime::Tight, Tier::Cloud) => (dice.between(0.3, 0.7), dice.between(0.3, 0.7)),
        (Regime::Packed, _) => {
            let share = (2.2 / n as f64).max(0.12);
            (
                share * dice.between(0.8, 1.3),
                share * dice.between(0.8, 1.4),
            )
        }
    }
}

fn workload(
    profile: &Profile,
    name: &str,
    entry: usize,
    problem: &Problem,
    speed: &[f64],
) -> lamina_placement::Workload {
    let entry = &problem.nodes[entry].name;
    profile.workload(
        name,
        entry,
        Encoding::FP32,
        &problem.nodes,
        |block, i| block.seconds / speed[i] + CALL_SECONDS,
        &[],
    )
}

fn whole_seconds(profile: &Profile) -> f64 {
    profile
        .blocks
        .iter()
        .map(|b| b.seconds + CALL_SECONDS)
        .sum()
}

fn fastest_link(problem: &Problem, from: usize) -> f64 {
    let links = problem.links.get(&problem.nodes[from].name);
    let rates = links
        .into_iter()
        .flat_map(|row| row.values().map(|l| l.bytes_per_second));
    rates.fold(0.0, f64::max)
}

fn world(n: usize, dice: &mut Dice) -> World {
    let clouds = ((0.1 * n as f64).round() as usize).max(1);
    let edges = ((0.3 * n as f64).round() as usize).max(1);
    let sites = edges.div_ceil(4);
    let mut problem = Problem::default();
    let (mut speed, mut site, mut access) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..n {
        let tier = match i {
            _ if i < n - clouds - edges => Tier::Device,
            _ if i < n - clouds => Tier::Edge,
            _ => Tier::Cloud,
        };
        let (slow, fast) = match tier {
            Tier::Device => (0.08, 0.35),
            Tier::Edge => (0.8, 4.0),
            Tier::Cloud => (6.0, 25.0),
        };
        let mut node = Node::new(format!("n{i:04}"), tier, 0);
        node.load_share = dice.between(0.0, 0.6);
        node.utilisation_cap = 1.0;
        problem.nodes.push(node);
        speed.push(dice.scale(slow, fast));
        site.push(dice.below(sites));
        access.push(dice.scale(8.0, 120.0));
    }
    for i in 0..n {
        for j in (0..n).filter(|j| *j != i) {
            let pair = [i, j].map(|x| (problem.nodes[x].tier, access[x]));
            let (ms, mbit) = link(pair, site[i] == site[j], dice);
            let mut link = Link::new(ms / 1e3, mbit * 1e6 / 8.0);
            link.share = LINK_SHARE;
            problem.set_link(format!("n{i:04}"), format!("n{j:04}"), link);
        }
    }
    World { problem, speed }
}

/// Milliseconds one way and Mbit/s between two nodes of these tiers and, for
/// devices, these speeds of wireless access.
fn link(pair: [(Tier, f64); 2], same_site: bool, dice: &mut Dice) -> (f64, f64) {
    let [(from, from_access), (to, to_access)] = pair;
    let access = if from == Tier::Device {
        from_access
    } else {
        to_access
    };
    let down = if to == Tier::Device { 2.0 } else { 1.0 };
    match (from.min(to), from.max(to)) {
        (Tier::Device, Tier::Device) => {
            let (low, high) = if same_site { (4.0, 12.0) } else { (12.0, 30.0) };
            let access = from_access.min(to_access);
            (dice.between(low, high), access * dice.between(0.5, 0.9))
        }
        (Tier::Device, Tier::Edge) if same_site => (
            dice.between(2.0, 6.0),
            access * down * dice.between(0.9, 1.0),
        ),
        (Tier::Device, Tier::Edge) => (
            dice.between(8.0, 20.0),
            access * down * dice.between(0.6, 0.9),
        ),
        (Tier::Device, Tier::Cloud) => (
            dice.between(25.0, 60.0),
            access * down * dice.between(0.3, 0.7),
        ),
        (Tier::Edge, Tier::Edge) if same_site => (dice.between(0.3, 1.0), dice.scale(900.0, 9e3)),
        (Tier::Edge, Tier::Edge) => (dice.between(5.0, 15.0), dice.scale(300.0, 1e3)),
        (Tier::Edge, _) => (dice.between(15.0, 40.0), dice.scale(150.0, 600.0)),
        _ => (dice.between(0.3, 2.0), 1e4),
    }
}

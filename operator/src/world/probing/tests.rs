use super::*;
use crate::world::links::{Links, Sample};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::time::Instant;

type Pairs = BTreeSet<(String, String)>;
type Plan = BTreeMap<String, Vec<ProbePeer>>;

struct Scene {
    hosts: Vec<ProbeHost>,
    paths: Pairs,
    entries: BTreeSet<String>,
    candidates: Pairs,
    links: Links,
}

fn name(i: usize) -> String {
    format!("host-{i:04}")
}

fn tier(i: usize) -> Tier {
    match i % 20 {
        0 => Tier::Cloud,
        1..5 => Tier::Edge,
        _ => Tier::Device,
    }
}

impl Scene {
    fn new(hosts: usize) -> Self {
        let hosts = (0..hosts).map(|i| ProbeHost {
            name: name(i),
            address: format!("10.0.0.{i}:8001"),
            tier: tier(i),
            alive: true,
        });
        Self {
            hosts: hosts.collect(),
            paths: Pairs::new(),
            entries: BTreeSet::new(),
            candidates: Pairs::new(),
            links: Links::default(),
        }
    }

    /// Random paths, candidates and dead hosts, with some popular hosts.
    fn random(seed: u64, hosts: usize) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut scene = Self::new(hosts);
        let popular = dice.random_range(0..hosts);
        for _ in 0..dice.random_range(0..4 * hosts) {
            let (a, b) = (dice.random_range(0..hosts), dice.random_range(0..hosts));
            let b = if dice.random_bool(0.3) { popular } else { b };
            let a = if dice.random_bool(0.1) { popular } else { a };
            let pairs = if dice.random_bool(0.3) {
                scene.entries.insert(name(a));
                &mut scene.paths
            } else {
                &mut scene.candidates
            };
            pairs.insert((name(a), name(b)));
            if dice.random_bool(0.5) {
                scene.measure(a, b, dice.random_range(0.001..0.2));
            }
        }
        for _ in 0..hosts / 10 {
            scene.hosts[dice.random_range(0..hosts)].alive = false;
        }
        scene
    }

    fn measure(&mut self, a: usize, b: usize, rtt: f64) {
        let sample = Sample {
            rtt_seconds: Some(rtt),
            bytes_per_second: Some(1e6),
            bytes: 1 << 20,
            ..Sample::default()
        };
        self.links.add(&name(a), &name(b), sample, Duration::ZERO);
    }

    fn plan(&self) -> Plan {
        self.plan_at(0)
    }

    fn plan_at(&self, second: u64) -> Plan {
        plan(&Situation {
            hosts: &self.hosts,
            paths: &self.paths,
            entries: &self.entries,
            candidates: &self.candidates,
            links: &self.links.table(Duration::from_secs(second)),
        })
    }

    fn is_alive(&self, host: &str) -> bool {
        self.hosts.iter().any(|h| h.name == host && h.alive)
    }
}

fn every(plan: &Plan, from: usize, to: usize) -> Option<u32> {
    let peers = plan.get(&name(from))?;
    let peer = peers.iter().find(|p| p.node == name(to))?;
    Some(peer.every_ms)
}

fn inbound(plan: &Plan) -> BTreeMap<&str, usize> {
    let mut inbound = BTreeMap::new();
    for peer in plan.values().flatten() {
        *inbound.entry(peer.node.as_str()).or_insert(0) += 1;
    }
    inbound
}

#[test]
fn bounds_hold_whatever_is_wished_for() {
    for seed in 0..60 {
        let scene = Scene::random(seed, [2, 12, 13, 40, 300][seed as usize % 5]);
        let plan = scene.plan();
        assert_eq!(
            plan,
            scene.plan(),
            "an unchanged world gives the same peers"
        );
        for (host, peers) in &plan {
            assert!(scene.is_alive(host));
            assert!(
                peers
                    .iter()
                    .all(|p| p.node != *host && scene.is_alive(&p.node))
            );
            assert!(peers.len() <= MOST_PEERS, "seed {seed}");
            let probes: f64 = peers.iter().map(|p| 1000.0 / f64::from(p.every_ms)).sum();
            assert!(
                probes <= MOST_PROBES_A_SECOND + 1e-6,
                "seed {seed}: {probes}"
            );
        }
        for (host, count) in inbound(&plan) {
            let paths = scene.paths.iter().filter(|(_, to)| to == host).count();
            assert!(count <= MOST_INBOUND.max(paths), "seed {seed}: {count}");
        }
    }
}

#[test]
fn few_hosts_measure_all_pairs_and_a_path_each_second() {
    let mut scene = Scene::new(ALL_PAIRS);
    scene.paths.insert((name(0), name(1)));
    let plan = scene.plan();
    let peers: usize = plan.values().map(Vec::len).sum();
    assert_eq!(peers, ALL_PAIRS * (ALL_PAIRS - 1));
    assert_eq!(every(&plan, 0, 1), Some(PATH_MS));
    assert_eq!(every(&plan, 1, 0), Some(PATH_MS));
    assert_eq!(every(&plan, 2, 3), Some(UNKNOWN_MS));
}

#[test]
fn every_path_is_watched_each_second_though_all_lead_to_one_host() {
    let mut scene = Scene::new(300);
    for entry in 1..=200 {
        scene.paths.insert((name(entry), name(0)));
    }
    let plan = scene.plan();
    for entry in 1..=200 {
        assert_eq!(every(&plan, entry, 0), Some(PATH_MS));
    }
}

#[test]
fn ways_back_on_paths_are_all_measured_in_turn() {
    let mut scene = Scene::new(300);
    for entry in 1..=200 {
        scene.paths.insert((name(entry), name(0)));
    }
    let mut rounds = 0;
    let is_measured = |scene: &Scene, entry: usize| {
        let table = scene.links.table(Duration::ZERO);
        table.get(&name(0), &name(entry)).is_some()
    };
    while (1..=200).any(|entry| !is_measured(&scene, entry)) {
        for peer in scene.plan()[&name(0)].clone() {
            let peer = scene.hosts.iter().position(|h| h.name == peer.node);
            scene.measure(0, peer.unwrap(), 0.02);
        }
        rounds += 1;
        assert!(rounds < 40, "some are never measured");
    }
}

#[test]
fn a_host_with_many_next_hosts_asks_each_of_them_less_often() {
    let mut scene = Scene::new(60);
    scene.paths = (1..=27).map(|to| (name(0), name(to))).collect();
    let plan = scene.plan();
    for to in 1..=27 {
        assert_eq!(every(&plan, 0, to), Some(1500));
    }
}

#[test]
fn a_wish_is_measured_soon_and_then_slowly_until_it_is_stale() {
    let mut scene = Scene::new(100);
    scene.candidates.insert((name(3), name(50)));
    assert_eq!(every(&scene.plan(), 3, 50), Some(UNKNOWN_MS));
    scene.measure(3, 50, 0.02);
    assert!(every(&scene.plan(), 3, 50).unwrap() > UNKNOWN_MS);
    assert_eq!(every(&scene.plan_at(700), 3, 50), Some(UNKNOWN_MS));
}

/// Hosts on a line, a millisecond apart, that measured neighbours and some random ones.
fn line(hosts: usize) -> Scene {
    let mut scene = Scene::new(hosts);
    for _ in 0..40 {
        for a in 0..hosts {
            for b in [a + 1, a + 7, 37 * a + 11, 53 * a + 29, 71 * a + 3] {
                let b = b % hosts;
                let rtt = 0.002 + 0.001 * a.abs_diff(b) as f64;
                scene.measure(a, b, rtt);
                scene.measure(b, a, rtt);
            }
        }
    }
    scene
}

#[test]
fn gateways_of_every_tier_are_near() {
    let scene = line(200);
    let plan = scene.plan();
    for tier in [Tier::Cloud, Tier::Edge, Tier::Device] {
        let mut near = 0;
        for own in &scene.hosts {
            let of_tier = scene
                .hosts
                .iter()
                .filter(|h| h.tier == tier && h.name != own.name);
            let place = |name: &str| name[5..].parse::<i64>().unwrap();
            let away = |to: &str| (place(to) - place(&own.name)).abs();
            let best = of_tier.map(|h| away(&h.name)).min().unwrap();
            let peers = plan[&own.name].iter();
            near += usize::from(peers.clone().any(|p| {
                away(&p.node) <= best + 5
                    && scene
                        .hosts
                        .iter()
                        .any(|h| h.name == p.node && h.tier == tier)
            }));
        }
        assert!(near >= 190, "{tier:?}: {near} of 200 hosts have one nearby");
    }
}

#[test]
fn a_host_that_goes_changes_the_peers_of_few() {
    let mut scene = Scene::new(500);
    let before = scene.plan();
    scene.hosts[77].alive = false;
    let after = scene.plan();
    let changed = after
        .iter()
        .filter(|(host, peers)| before[*host] != **peers);
    let changed = changed.count();
    assert!(changed <= 60, "{changed}");
}

#[test]
fn a_thousand_hosts_ask_little_in_all() {
    let mut scene = line(1000);
    scene.entries = (0..200).map(name).collect();
    let plan = scene.plan();
    let probes: f64 = plan
        .values()
        .flatten()
        .map(|p| 1000.0 / f64::from(p.every_ms))
        .sum();
    let inbound = inbound(&plan).into_values().max();
    println!("{probes:.0} probes a second in all, {inbound:?} into one host at most");
    assert!(probes < 2000.0, "{probes}");
}

/// Prints the duration of a plan: `cargo test --release -p lamina-operator --lib probing --
/// --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn time_of_a_plan_for_a_thousand_hosts() {
    let mut scene = line(1000);
    for entry in 0..200 {
        scene.entries.insert(name(entry));
        scene.paths.insert((name(entry), name(1000 - 1 - entry)));
        for n in 1..9 {
            scene
                .candidates
                .insert((name(entry), name((entry * 7 + 31 * n) % 1000)));
        }
    }
    scene.plan();
    let begin = Instant::now();
    for _ in 0..20 {
        std::hint::black_box(scene.plan());
    }
    println!("{:?} for a plan of 1000 hosts", begin.elapsed() / 20);
    let begin = Instant::now();
    for _ in 0..1000 {
        std::hint::black_box(scene.links.table(Duration::ZERO));
    }
    println!(
        "{:?} for a table of {} links",
        begin.elapsed() / 1000,
        scene.links.table(Duration::ZERO).len()
    );
}

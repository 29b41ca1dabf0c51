use super::*;

/// Numbers in [0, 1) from a seed.
struct Dice(u64, usize);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.1 += 1;
        unit(&self.0.to_string(), self.1)
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.roll()
    }

    fn below(&mut self, n: usize) -> usize {
        ((self.roll() * n as f64) as usize).min(n - 1)
    }
}

/// A tree: distant data centres, edges attached to them, devices attached to edges.
struct Network {
    sites: Vec<[f64; 2]>,
    /// Site and distance to it, then the distance to the edge below.
    hosts: Vec<Place>,
}

#[derive(Clone, Copy)]
struct Place {
    site: usize,
    edge: Option<usize>,
    to_site: f64,
    access: f64,
}

impl Network {
    fn new(dice: &mut Dice, hosts: usize) -> Self {
        let sites: Vec<_> = (0..4)
            .map(|_| [dice.between(0.0, 0.12), dice.between(0.0, 0.06)])
            .collect();
        let edges: Vec<_> = (0..hosts / 12)
            .map(|_| (dice.below(sites.len()), dice.between(0.003, 0.02)))
            .collect();
        let place = |i: usize, dice: &mut Dice| match i % 12 {
            0 if i.is_multiple_of(36) => Place {
                site: dice.below(4),
                edge: None,
                to_site: 0.0,
                access: dice.between(0.0002, 0.001),
            },
            n => {
                let edge = dice.below(edges.len());
                let (site, to_site) = edges[edge];
                let access = if n < 2 {
                    dice.between(0.0002, 0.001)
                } else {
                    dice.between(0.002, 0.03)
                };
                Place {
                    site,
                    edge: Some(edge),
                    to_site,
                    access,
                }
            }
        };
        let hosts = (0..hosts).map(|i| place(i, dice)).collect();
        Self { sites, hosts }
    }

    fn rtt(&self, a: usize, b: usize) -> f64 {
        let (a, b) = (self.hosts[a], self.hosts[b]);
        let access = a.access + b.access;
        if a.edge.is_some() && a.edge == b.edge {
            return access;
        }
        let (x, y) = (self.sites[a.site], self.sites[b.site]);
        let wide = ((x[0] - y[0]).powi(2) + (x[1] - y[1]).powi(2)).sqrt();
        access + a.to_site + b.to_site + wide
    }
}

struct Scene {
    network: Network,
    hosts: Vec<Tracked>,
    neighbours: Vec<Vec<usize>>,
}

/// Rounds of probing; `lie` replaces a host's reported round trip.
fn run(seed: u64, count: usize, rounds: usize, lie: impl Fn(usize, f64) -> f64) -> Scene {
    let mut dice = Dice(seed, 0);
    let network = Network::new(&mut dice, count);
    let mut hosts: Vec<_> = (0..count).map(|i| Tracked::new(&i.to_string())).collect();
    let neighbours: Vec<Vec<usize>> = (0..count)
        .map(|i| {
            let n = 8 + dice.below(9);
            (0..n)
                .map(|_| (i + 1 + dice.below(count - 1)) % count)
                .collect()
        })
        .collect();
    for _ in 0..rounds {
        for (i, neighbours) in neighbours.iter().enumerate() {
            for &j in neighbours {
                let rtt = network.rtt(i, j) * dice.between(1.0, 1.1);
                measure(&mut hosts, i, j, lie(i, rtt));
            }
        }
    }
    Scene {
        network,
        hosts,
        neighbours,
    }
}

fn measure(hosts: &mut [Tracked], i: usize, j: usize, rtt: f64) -> Option<Coordinate> {
    let [host, other] = hosts.get_disjoint_mut([i, j]).unwrap();
    host.measured(other, rtt)
}

/// Median relative error over pairs that did not measure each other.
fn unmeasured_error(scene: &Scene, is_honest: impl Fn(usize) -> bool) -> f64 {
    let mut dice = Dice(99, 0);
    let count = scene.hosts.len();
    let mut errors = Vec::new();
    while errors.len() < 20_000 {
        let (a, b) = (dice.below(count), dice.below(count));
        let is_measured = scene.neighbours[a].contains(&b) || scene.neighbours[b].contains(&a);
        if a == b || is_measured || !is_honest(a) || !is_honest(b) {
            continue;
        }
        let (Some(x), Some(y)) = (scene.hosts[a].told, scene.hosts[b].told) else {
            continue;
        };
        let rtt = scene.network.rtt(a, b);
        errors.push((x.distance(&y) - rtt).abs() / rtt);
    }
    errors.sort_by(f64::total_cmp);
    errors[errors.len() / 2]
}

#[test]
fn round_trips_that_nobody_measured_are_predicted() {
    for seed in 0..8 {
        let scene = run(seed, 1000, 40, |_, rtt| rtt);
        let error = unmeasured_error(&scene, |_| true);
        println!("seed {seed}: median relative error {error:.3}");
        assert!(error < 0.3, "seed {seed}: {error}");
    }
}

#[test]
fn hosts_that_lie_do_not_misplace_the_others() {
    let liar = |i: usize| i.is_multiple_of(20);
    for (what, factor) in [("inflate", 20.0), ("deflate", 0.01)] {
        let lie = |i: usize, rtt: f64| if liar(i) { rtt * factor } else { rtt };
        let scene = run(3, 1000, 40, lie);
        let error = unmeasured_error(&scene, |i| !liar(i));
        println!("{what}: median relative error {error:.3}");
        assert!(error < 0.3, "{what}: {error}");
    }
    let jumps = |i: usize, rtt: f64| {
        if liar(i) {
            60.0 * rtt.sin().abs().max(1e-6)
        } else {
            rtt
        }
    };
    let error = unmeasured_error(&run(3, 1000, 40, jumps), |i| !liar(i));
    assert!(error < 0.3, "{error}");
}

#[test]
fn the_same_samples_give_the_same_coordinates() {
    let told = |scene: Scene| scene.hosts.iter().map(|h| h.told).collect::<Vec<_>>();
    assert_eq!(
        told(run(5, 60, 10, |_, rtt| rtt)),
        told(run(5, 60, 10, |_, rtt| rtt))
    );
}

#[test]
fn one_sample_moves_a_host_a_bounded_way_and_everything_stays_finite() {
    let mut host = Tracked::new("a");
    let mut other = Tracked::new("b");
    for rtt in [60.0, 1e-9, 60.0, 1e-9] {
        let before = host.now;
        host.measured(&mut other, rtt);
        assert!(before.moved(&host.now) <= 2.0 * LONGEST_MOVE_SECONDS);
        assert!(host.now.distance(&other.now).is_finite());
    }
}

#[test]
fn a_settled_world_is_told_rarely() {
    let mut scene = run(1, 200, 60, |_, rtt| rtt);
    let mut told = 0;
    for _ in 0..10 {
        for i in 0..200 {
            for j in scene.neighbours[i].clone() {
                let rtt = scene.network.rtt(i, j);
                told += usize::from(measure(&mut scene.hosts, i, j, rtt).is_some());
            }
        }
    }
    let samples = 10 * scene.neighbours.iter().map(Vec::len).sum::<usize>();
    println!("{told} of {samples} samples moved what is told");
    assert!(told * 20 < samples, "{told} of {samples}");
}

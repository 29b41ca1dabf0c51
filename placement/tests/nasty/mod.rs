//! Small nasty problems (ties, gaps, tight capacities, conflicts between near and fast).

use lamina_placement::{
    Block, BlockCost, BlockOnNode, Constraints, Criterion, Exit, ExitPoint, Link, Node, Objective,
    Previous, Problem, RankedCriterion, Segment, Tier, Transition, Value, WeightedCriterion,
    Workload,
};

/// Number of nasty features, a bit each.
pub(crate) const FEATURES: u32 = 16;

/// A small deterministic generator (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    /// A whole number of at most `most`, for seconds etc.: ties abound.
    fn whole(&mut self, most: u64) -> f64 {
        self.roll(most + 1) as f64
    }
}

/// A problem of at most `n` nodes and `l` blocks with the features of the mask.
pub(crate) fn problem(seed: u64, n: usize, l: usize, features: u32) -> Problem {
    let mut dice = Dice(seed);
    let has = |bit: u32| features & (1 << bit) != 0;
    let two = has(11);
    let (n, l) = if two { (n.min(3), l.min(2)) } else { (n, l) };
    let tiers = [Tier::Device, Tier::Edge, Tier::Cloud];
    let mut problem = Problem {
        objective: if has(10) {
            Objective::Throughput
        } else {
            Objective::Latency
        },
        ..Problem::default()
    };
    for i in 0..n {
        let memory = if has(0) { dice.roll(8) } else { 100 };
        let mut node = Node::new(format!("n{i}"), tiers[dice.roll(3) as usize], memory);
        node.utilisation_cap = 1.0;
        if has(13) {
            node.load_share = dice.whole(3) / 4.0;
            node.concurrency = 1 + dice.roll(2) as u32;
        }
        if has(14) {
            node.active_watts = dice.whole(4);
            node.price_per_second = dice.whole(2) / 4.0;
        }
        if has(9) && dice.one_in(6) {
            node.excluded = Some("not ready".into());
        }
        problem.nodes.push(node);
    }
    for i in 0..n {
        for j in (0..n).filter(|j| *j != i) {
            if has(3) && dice.one_in(4) {
                continue;
            }
            let mut link = Link::new(dice.whole(3) / 2.0, 1.0 + dice.whole(3));
            link.share = (1.0 + dice.whole(1)) / 2.0;
            if has(14) {
                link.joules_per_byte = dice.whole(2) / 2.0;
                link.price_per_byte = dice.whole(1);
            }
            problem.set_link(format!("n{i}"), format!("n{j}"), link);
        }
    }
    if has(15) {
        problem.objective = objective(&mut dice);
    }
    for w in 0..if two { 2 } else { 1 } {
        let workload = workload(&mut dice, w, n, l, features);
        problem.workloads.push(workload);
    }
    problem.transition = [Transition::Drain, Transition::Shared, Transition::Separate]
        [dice.roll(if two { 2 } else { 3 }) as usize];
    problem
}

/// One criterion, a sum, or a few by rank.
fn objective(dice: &mut Dice) -> Objective {
    const ALL: [Criterion; 7] = [
        Criterion::Latency,
        Criterion::TailLatency,
        Criterion::Throughput,
        Criterion::Energy,
        Criterion::Fairness,
        Criterion::ProportionalFairness,
        Criterion::Money,
    ];
    let mut left = ALL.to_vec();
    let mut draw = |dice: &mut Dice| left.swap_remove(dice.roll(left.len() as u64) as usize);
    match dice.roll(3) {
        0 => draw(dice).into(),
        1 => {
            let mut terms: Vec<WeightedCriterion> = (0..1 + dice.roll(3))
                .map(|_| WeightedCriterion {
                    criterion: draw(dice),
                    weight: dice.whole(3) / 2.0,
                })
                .collect();
            let mut worst = 0;
            terms.retain(|t| {
                worst += usize::from(t.criterion.is_worst());
                !t.criterion.is_worst() || worst == 1
            });
            Objective::Weighted(terms)
        }
        _ => Objective::Lexicographic(
            (0..1 + dice.roll(4))
                .map(|_| RankedCriterion {
                    criterion: draw(dice),
                    tolerance: dice.whole(1) / 4.0,
                })
                .collect(),
        ),
    }
}

fn workload(dice: &mut Dice, w: usize, n: usize, l: usize, features: u32) -> Workload {
    let has = |bit: u32| features & (1 << bit) != 0;
    let node = |dice: &mut Dice| format!("n{}", dice.roll(n as u64));
    let mut workload = Workload {
        name: format!("w{w}"),
        entry: node(dice),
        rate_per_second: if has(4) { dice.whole(8) / 32.0 } else { 0.0 },
        weight: if has(11) { dice.whole(2) } else { 1.0 },
        values: (0..=l)
            .map(|i| Value {
                name: format!("v{i}"),
                bytes: dice.roll(5),
            })
            .collect(),
        blocks: Vec::new(),
        outputs: vec![format!("v{l}")],
        final_accuracy: None,
        exits: Vec::new(),
        constraints: Constraints::default(),
        previous: None,
    };
    for b in 0..l {
        let mut block = Block {
            inputs: vec![format!("v{b}")],
            outputs: vec![format!("v{}", b + 1)],
            memory_bytes: dice.roll(4),
            slice_bytes: dice.roll(4),
            costs: Default::default(),
        };
        if has(12) && b > 1 && dice.one_in(2) {
            block.inputs.push(format!("v{}", dice.roll(b as u64 - 1)));
        }
        for i in 0..n {
            if has(9) && dice.one_in(10) {
                continue;
            }
            let cost = BlockCost {
                seconds: dice.whole(4),
                cut_penalty_seconds: if has(7) { dice.whole(2) / 2.0 } else { 0.0 },
            };
            block.costs.insert(format!("n{i}"), cost);
        }
        workload.blocks.push(block);
    }
    constraints(dice, &mut workload, n, l, features);
    if has(5) && l > 1 {
        exits(dice, &mut workload, l);
    }
    if has(6) {
        let mut path: Vec<String> = (0..l).map(|_| node(dice)).collect();
        if dice.one_in(4) {
            path[0] = "gone".into();
        }
        let move_seconds_per_byte = dice.whole(2) / 2.0;
        let on_disk: Vec<String> = (0..l).map(|_| node(dice)).collect();
        workload.previous = Some(Previous {
            segments: segments(&path),
            on_disk: segments(&on_disk),
            move_seconds_per_byte,
        });
    }
    workload
}

fn constraints(dice: &mut Dice, workload: &mut Workload, n: usize, l: usize, features: u32) {
    let has = |bit: u32| features & (1 << bit) != 0;
    let c = &mut workload.constraints;
    if has(1) {
        c.tier_slice_limit_bytes.insert(Tier::Device, dice.roll(8));
        let name = format!("n{}", dice.roll(n as u64));
        c.node_slice_limit_bytes.insert(name, dice.roll(8));
    }
    if has(2) {
        if dice.one_in(2) {
            c.keep_first_on_entry = dice.roll(l as u64) as usize;
        }
        let pin = BlockOnNode {
            block: l - 1,
            node: format!("n{}", dice.roll(n as u64)),
        };
        if dice.one_in(2) {
            c.pins.push(pin);
        } else {
            c.forbidden.push(pin);
        }
    }
    if has(8) {
        c.latency_limit_seconds = Some(2.0 + dice.whole(4 * l as u64));
    }
    if has(9) {
        c.monotone_tiers = dice.one_in(2);
    }
}

fn exits(dice: &mut Dice, workload: &mut Workload, l: usize) {
    workload.final_accuracy = Some(0.75 + dice.whole(1) / 4.0);
    workload.constraints.min_accuracy = Some(0.5 + dice.whole(3) / 8.0);
    for after_block in 0..l - 1 {
        if dice.one_in(2) || workload.exits.len() == 2 {
            continue;
        }
        workload.exits.push(Exit {
            after_block,
            reply_bytes: dice.roll(3),
            table: (0..1 + dice.roll(2))
                .map(|row| ExitPoint {
                    threshold: row as f64,
                    rate: dice.whole(4) / 4.0,
                    accuracy: 0.5 + dice.whole(4) / 8.0,
                })
                .collect(),
        });
    }
}

/// A node per block as segments.
pub(crate) fn segments(path: &[String]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for (b, node) in path.iter().enumerate() {
        match segments.last_mut() {
            Some(last) if last.node == *node => last.blocks.push(b),
            _ => segments.push(Segment {
                node: node.clone(),
                blocks: vec![b],
            }),
        }
    }
    segments
}

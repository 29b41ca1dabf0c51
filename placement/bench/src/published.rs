//! The published scenario `iot_edge_cloud` (Reisinger, Frangoudis and Dustdar,
//! IC2E 2021, by the parameters of its code, addnn): a third of the nodes each
//! are Raspberry Pi A+, Raspberry Pi 4B and Xeon E5-2620v4, of which 10–100 % is
//! free; the entry is the first Pi.
//!
//! As there, a block takes its multiply-adds over the node's rate, links differ
//! between tiers only, no request rate is given, and the exits have not been
//! taken yet: their heads are computed, and every request goes on.

use crate::dice::Dice;
use crate::profile::{Encoding, Input, Profile};
use lamina_placement::{Link, Node, Problem, Tier};

/// Maximum capacity of a tier's nodes.
struct Kind {
    tier: Tier,
    memory_bytes: f64,
    storage_bytes: f64,
    operations_per_second: f64,
}

const KINDS: [Kind; 3] = [
    Kind {
        tier: Tier::Device,
        memory_bytes: 256e6,
        storage_bytes: 1e9,
        operations_per_second: 218e6,
    },
    Kind {
        tier: Tier::Edge,
        memory_bytes: 4e9,
        storage_bytes: 4e9,
        operations_per_second: 10.3e9,
    },
    Kind {
        tier: Tier::Cloud,
        memory_bytes: 32e9,
        storage_bytes: 100e9,
        operations_per_second: 184e9,
    },
];

/// Everything in fp32, a reply of one class number.
pub(crate) const ENCODING: Encoding = Encoding {
    input: Input::Elements(4),
    wire: 4,
    reply: 4,
};

/// The scenario with `n` nodes, at least 3.
pub(crate) fn problem(profile: &Profile, n: usize, seed: u64) -> Problem {
    let mut dice = Dice::new(seed);
    let mut problem = Problem::default();
    let mut rates = Vec::new();
    let mut storage = Vec::new();
    for i in 0..n {
        let kind = &KINDS[(i / (n / 3)).min(2)];
        let mut free = |most: f64| most * dice.between(0.1, 1.0);
        let memory = free(kind.memory_bytes) as u64;
        let mut node = Node::new(format!("{}-{i:04}", kind.tier), kind.tier, memory);
        node.utilisation_cap = 1.0;
        storage.push((node.name.clone(), free(kind.storage_bytes) as u64));
        rates.push(free(kind.operations_per_second));
        problem.nodes.push(node);
    }
    for i in 0..n {
        for j in 0..i {
            let (a, b) = (&problem.nodes[i], &problem.nodes[j]);
            let link = link(a.tier.min(b.tier), a.tier.max(b.tier), &mut dice);
            let (a, b) = (a.name.clone(), b.name.clone());
            problem.set_link(a.clone(), b.clone(), link);
            problem.set_link(b, a, link);
        }
    }
    let multiply_adds = |flops: u64| flops as f64 / 2.0;
    let entry = problem.nodes[0].name.clone();
    let mut workload = profile.workload(
        "net",
        &entry,
        ENCODING,
        &problem.nodes,
        |block, i| multiply_adds(block.flops) / rates[i],
        &[],
    );
    workload.constraints.monotone_tiers = true;
    workload.constraints.node_slice_limit_bytes = storage.into_iter().collect();
    problem.workloads = vec![workload];
    problem
}

/// A symmetric link; half of the published round trip each way.
fn link(low: Tier, high: Tier, dice: &mut Dice) -> Link {
    let (round_trip_ms, bits) = match (low, high) {
        (Tier::Device, Tier::Edge) => (25.0, 50e6 * dice.between(0.1, 1.0)),
        (Tier::Device, Tier::Cloud) => (50.0, 5e6 * dice.between(0.1, 1.0)),
        (Tier::Edge, Tier::Cloud) => (25.0, 100e6 * dice.between(0.1, 1.0)),
        _ => (0.0, 1e9),
    };
    let mut link = Link::new(round_trip_ms / 2e3, bits / 8.0);
    link.share = 1.0;
    link
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_placement::validate;

    #[test]
    fn a_third_of_the_nodes_are_of_each_tier() {
        let profile = Profile::named("googlenet_units").unwrap();
        let problem = problem(&profile, 10, 0);
        validate(&problem).unwrap();
        let count = |tier| problem.nodes.iter().filter(|n| n.tier == tier).count();
        assert_eq!(
            [Tier::Device, Tier::Edge, Tier::Cloud].map(count),
            [3, 3, 4]
        );
        assert_eq!(problem.workloads[0].blocks.len(), 22);
    }
}

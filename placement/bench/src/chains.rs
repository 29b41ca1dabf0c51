//! Random chains of a device, an edge node and a cloud, on which splits are
//! counted, to find out when splitting pays.
//!
//! The cloud computes as fast as the profiling machine, the edge node 1–5 times
//! slower, the device 2–20 times. From the device to the cloud requests pass
//! the edge node's links: latencies add up, and the slower one limits. A request
//! never goes back to a lower tier, so that a placement is two cuts at most.

use crate::dice::Dice;
use crate::profile::{Encoding, Input, Measured, Profile};
use lamina_placement::{Link, Node, Objective, Problem, Tier};

/// Why a split may pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Latency only.
    Latency,
    /// The sustainable rate.
    Throughput,
    /// Every host has 20–200 % of the network's memory free.
    Memory,
    /// The first tenth of the blocks stays on the device.
    Privacy,
    /// 35 % of the requests leave at the first exit and 40 % of the others at the second.
    Exits,
    /// The same, optimized for throughput.
    ExitsThroughput,
    /// The device computes convolutions 5–30 times faster than the rest.
    Kinds,
}

impl Reason {
    /// Whether side exits are taken.
    pub(crate) const fn is_exits(self) -> bool {
        matches!(self, Self::Exits | Self::ExitsThroughput)
    }
}

/// A reason and an encoding.
pub(crate) struct Question {
    pub name: &'static str,
    pub reason: Reason,
    pub encoding: Encoding,
}

const fn encoding(input: u64, wire: u64) -> Encoding {
    Encoding {
        input: Input::Elements(input),
        wire,
        ..Encoding::FP32
    }
}

const fn question(name: &'static str, reason: Reason, encoding: Encoding) -> Question {
    Question {
        name,
        reason,
        encoding,
    }
}

const JPEG: Encoding = Encoding {
    input: Input::Compressed(30_000),
    wire: 1,
    ..Encoding::FP32
};

pub(crate) const QUESTIONS: [Question; 13] = [
    question(
        "latency, fp32 input, fp32 wire",
        Reason::Latency,
        encoding(4, 4),
    ),
    question(
        "latency, uint8 input, fp32 wire",
        Reason::Latency,
        encoding(1, 4),
    ),
    question(
        "latency, uint8 input, fp16 wire",
        Reason::Latency,
        encoding(1, 2),
    ),
    question(
        "latency, uint8 input, int8 wire",
        Reason::Latency,
        encoding(1, 1),
    ),
    question("latency, 30 kB JPEG, int8 wire", Reason::Latency, JPEG),
    question(
        "throughput, uint8 input, fp32 wire",
        Reason::Throughput,
        encoding(1, 4),
    ),
    question(
        "throughput, uint8 input, fp16 wire",
        Reason::Throughput,
        encoding(1, 2),
    ),
    question(
        "throughput, uint8 input, int8 wire",
        Reason::Throughput,
        encoding(1, 1),
    ),
    question(
        "memory 20–200 % (latency, uint8, fp16)",
        Reason::Memory,
        encoding(1, 2),
    ),
    question(
        "privacy (latency, uint8, fp16)",
        Reason::Privacy,
        encoding(1, 2),
    ),
    question(
        "side exits (latency, uint8, fp16)",
        Reason::Exits,
        encoding(1, 2),
    ),
    question(
        "side exits (throughput, uint8, fp16)",
        Reason::ExitsThroughput,
        encoding(1, 2),
    ),
    question(
        "convolutions fast on the device (latency, uint8, fp16)",
        Reason::Kinds,
        encoding(1, 2),
    ),
];

/// Share of the requests reaching an exit that leave there.
const EXIT_RATES: [f64; 2] = [0.35, 0.4];

/// One draw; the device is the entry.
pub(crate) fn problem(profile: &Profile, question: &Question, seed: u64) -> Problem {
    let mut dice = Dice::new(seed);
    let slower = [dice.scale(2.0, 20.0), dice.scale(1.0, 5.0), 1.0];
    let near = (dice.scale(1.0, 200.0), dice.between(1.0, 30.0));
    let far = (dice.scale(1.0, 316.0), dice.between(5.0, 60.0));
    let accelerated = dice.scale(5.0, 30.0);
    let whole = profile.memory_bytes() as f64;
    let mut problem = Problem::default();
    for tier in [Tier::Device, Tier::Edge, Tier::Cloud] {
        let share = if question.reason == Reason::Memory {
            dice.scale(0.2, 2.0)
        } else {
            2.0
        };
        let mut node = Node::new(tier.to_string(), tier, (whole * share) as u64);
        node.utilisation_cap = 1.0;
        problem.nodes.push(node);
    }
    let through = (near.0.min(far.0), near.1 + far.1);
    for (a, b, link) in [(0, 1, near), (1, 2, far), (0, 2, through)] {
        let (mbit, ms) = link;
        let mut link = Link::new(ms / 1e3, mbit * 1e6 / 8.0);
        link.share = 1.0;
        let (a, b) = (problem.nodes[a].name.clone(), problem.nodes[b].name.clone());
        problem.set_link(a.clone(), b.clone(), link);
        problem.set_link(b, a, link);
    }
    let seconds = |block: &Measured, i: usize| {
        let plain = block.seconds * slower[i];
        if question.reason == Reason::Kinds && i == 0 {
            plain - block.convolution_seconds * slower[i] * (1.0 - accelerated.recip())
        } else {
            plain
        }
    };
    let rates: &[f64] = if question.reason.is_exits() {
        &EXIT_RATES
    } else {
        &[]
    };
    let entry = problem.nodes[0].name.clone();
    let nodes = problem.nodes.clone();
    let mut workload = profile.workload("net", &entry, question.encoding, &nodes, seconds, rates);
    workload.constraints.monotone_tiers = true;
    if question.reason == Reason::Privacy {
        workload.constraints.keep_first_on_entry = profile.blocks.len().div_ceil(10);
    }
    problem.workloads = vec![workload];
    if matches!(
        question.reason,
        Reason::Throughput | Reason::ExitsThroughput
    ) {
        problem.objective = Objective::Throughput;
    }
    problem
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_placement::validate;

    #[test]
    fn every_question_is_valid() {
        let profile = Profile::named("googlenet_units").unwrap();
        for question in &QUESTIONS {
            let problem = problem(&profile, question, 1);
            validate(&problem).unwrap_or_else(|e| panic!("{}: {e}", question.name));
        }
    }

    #[test]
    fn an_accelerator_speeds_up_convolutions_alone() {
        let profile = Profile::named("vit_b_16_fine").unwrap();
        let with = |reason: Reason| {
            let question = question("", reason, encoding(1, 2));
            let problem = problem(&profile, &question, 3);
            let blocks = problem.workloads[0].blocks.iter();
            let on_device = blocks.map(|b| b.costs["device"].seconds);
            on_device.collect::<Vec<f64>>()
        };
        let (plain, fast) = (with(Reason::Latency), with(Reason::Kinds));
        assert!(fast[0] < plain[0], "the patch embedding is a convolution");
        assert_eq!(fast[2..], plain[2..]);
    }
}

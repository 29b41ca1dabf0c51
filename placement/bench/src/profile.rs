//! Profiles of networks, measured by `python/profile_models.py` and committed with their
//! provenance; and deep synthetic ones.

use crate::dice::Dice;
use anyhow::{Context, Result, bail, ensure};
use lamina_placement::{Block, BlockCost, Constraints, Exit, ExitPoint, Node, Value, Workload};
use serde::Deserialize;
use std::fmt;

macro_rules! committed {
    ($name:literal) => {
        ($name, include_str!(concat!("../profiles/", $name, ".json")))
    };
}

/// Name and text of every committed profile.
const COMMITTED: [(&str, &str); 11] = [
    committed!("googlenet_units"),
    committed!("googlenet_coarse"),
    committed!("googlenet_fine"),
    committed!("mobilenet_v2_coarse"),
    committed!("mobilenet_v2_fine"),
    committed!("resnet50_coarse"),
    committed!("resnet50_fine"),
    committed!("vgg16_coarse"),
    committed!("vgg16_fine"),
    committed!("vit_b_16_coarse"),
    committed!("vit_b_16_fine"),
];

/// A network as a chain of blocks.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Profile {
    pub name: String,
    pub provenance: Provenance,
    pub input_elements: u64,
    pub blocks: Vec<Measured>,
    pub exits: Vec<Head>,
}

/// How a profile was made.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Provenance {
    pub command: String,
    pub date: String,
    pub torch: String,
    pub torchvision: String,
    pub python: String,
    pub cpu: String,
    pub threads: u32,
    pub runs: u32,
    pub weights: String,
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` of {}: torch {}, torchvision {}, Python {}, {}, threads {}, fastest of {} runs, {} weights",
            self.command,
            self.date,
            self.torch,
            self.torchvision,
            self.python,
            self.cpu,
            self.threads,
            self.runs,
            self.weights
        )
    }
}

/// One block.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Measured {
    pub name: String,
    /// Two per multiply-add.
    pub flops: u64,
    /// On one thread of the profiling machine.
    pub seconds: f64,
    /// The convolutions' part of `seconds`.
    pub convolution_seconds: f64,
    pub weight_bytes: u64,
    /// Peak, fp32.
    pub activation_bytes: u64,
    /// Elements of all tensors crossing a cut behind it.
    pub output_elements: u64,
}

impl Measured {
    pub(crate) const fn memory_bytes(&self) -> u64 {
        self.weight_bytes + self.activation_bytes
    }
}

/// A side exit whose head is part of a block.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Head {
    pub name: String,
    pub after_block: usize,
}

/// Bytes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Encoding {
    pub input: Input,
    /// Bytes per element of an activation.
    pub wire: u64,
    /// Bytes of the reply, also of side exits.
    pub reply: u64,
}

/// Encoding of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Bytes per element.
    Elements(u64),
    /// Bytes of a compressed image.
    Compressed(u64),
}

impl Encoding {
    /// Everything in fp32, a reply of 1,000 of them.
    pub(crate) const FP32: Self = Self {
        input: Input::Elements(4),
        wire: 4,
        reply: 4000,
    };
}

impl Profile {
    /// A committed profile by name, or `synthL`: a deep network of L blocks.
    pub(crate) fn named(name: &str) -> Result<Self> {
        if let Some(blocks) = name.strip_prefix("synth") {
            let blocks = blocks.parse().context("after `synth` comes a number")?;
            return Ok(Self::synthetic(blocks));
        }
        let Some((_, text)) = COMMITTED.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = COMMITTED.iter().map(|(known, _)| *known).collect();
            bail!(
                "unknown profile `{name}`; use synthL or one of: {}",
                known.join(", ")
            );
        };
        let profile: Self =
            serde_json::from_str(text).with_context(|| format!("profile {name}"))?;
        profile.check().with_context(|| format!("profile {name}"))?;
        Ok(profile)
    }

    fn synthetic(blocks: usize) -> Self {
        let mut dice = Dice::new(42);
        let block = |i: usize, dice: &mut Dice| Measured {
            name: format!("b{i}"),
            flops: 0,
            seconds: dice.scale(0.5e-3, 4e-3),
            convolution_seconds: 0.0,
            weight_bytes: dice.scale(2e5, 4e6) as u64,
            activation_bytes: 1_000_000,
            output_elements: (6e5 * (-3.0 * i as f64 / blocks as f64).exp() * dice.scale(0.4, 1.6))
                as u64,
        };
        Self {
            name: format!("synth{blocks}"),
            provenance: Provenance::default(),
            input_elements: 150_528,
            blocks: (0..blocks).map(|i| block(i, &mut dice)).collect(),
            exits: Vec::new(),
        }
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.blocks.is_empty(), "there is no block");
        ensure!(self.input_elements > 0, "the input is empty");
        for block in &self.blocks {
            let times = 0.0..=block.seconds;
            ensure!(
                block.seconds.is_finite() && times.contains(&block.convolution_seconds),
                "block {}: times must be finite, and the convolutions' a part",
                block.name
            );
            ensure!(
                block.output_elements > 0,
                "block {} gives nothing",
                block.name
            );
        }
        for (i, head) in self.exits.iter().enumerate() {
            let ordered = i == 0 || self.exits[i - 1].after_block < head.after_block;
            ensure!(
                ordered && head.after_block + 1 < self.blocks.len(),
                "exit {} must follow the one before and leave blocks behind it",
                head.name
            );
        }
        Ok(())
    }

    /// Bytes of the whole network in memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.blocks.iter().map(Measured::memory_bytes).sum()
    }

    /// Bytes of the input on the wire.
    pub(crate) const fn input_bytes(&self, encoding: Encoding) -> u64 {
        match encoding.input {
            Input::Elements(bytes) => self.input_elements * bytes,
            Input::Compressed(bytes) => bytes,
        }
    }

    /// Its workload with entry `entry`; `seconds` gives the time of a block on a node, `rates` the
    /// share of the requests reaching an exit that leave there (none if empty).
    pub(crate) fn workload(
        &self,
        name: &str,
        entry: &str,
        encoding: Encoding,
        nodes: &[Node],
        seconds: impl Fn(&Measured, usize) -> f64,
        rates: &[f64],
    ) -> Workload {
        let last = self.blocks.len();
        let blocks = self.blocks.iter().enumerate().map(|(b, block)| Block {
            inputs: vec![format!("v{b}")],
            outputs: vec![format!("v{}", b + 1)],
            memory_bytes: block.memory_bytes(),
            slice_bytes: block.weight_bytes,
            costs: nodes
                .iter()
                .enumerate()
                .map(|(i, n)| (n.name.clone(), BlockCost::new(seconds(block, i))))
                .collect(),
        });
        let between = self.blocks[..last - 1]
            .iter()
            .map(|b| b.output_elements * encoding.wire);
        let bytes = std::iter::once(self.input_bytes(encoding)).chain(between);
        let values = bytes
            .chain([encoding.reply])
            .enumerate()
            .map(|(i, bytes)| Value {
                name: format!("v{i}"),
                bytes,
            });
        let exits = self.exits.iter().enumerate().map(|(i, head)| Exit {
            after_block: head.after_block,
            reply_bytes: encoding.reply,
            table: vec![ExitPoint {
                threshold: 0.8,
                rate: rates.get(i).copied().unwrap_or(0.0),
                accuracy: 1.0,
            }],
        });
        Workload {
            name: name.into(),
            entry: entry.into(),
            rate_per_second: 0.0,
            weight: 1.0,
            values: values.collect(),
            blocks: blocks.collect(),
            outputs: vec![format!("v{last}")],
            final_accuracy: None,
            exits: exits.collect(),
            constraints: Constraints::default(),
            previous: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_profiles_are_what_they_say() {
        for (name, _) in COMMITTED {
            let profile = Profile::named(name).unwrap();
            assert_eq!(profile.name, name);
            assert!(!profile.provenance.torch.is_empty(), "{name}");
        }
    }

    #[test]
    fn googlenet_has_the_papers_units_and_known_size() {
        let units = Profile::named("googlenet_units").unwrap();
        assert_eq!(units.blocks.len(), 22);
        let after: Vec<usize> = units.exits.iter().map(|e| e.after_block).collect();
        assert_eq!(after, [9, 13]);
        // 1.498 G multiply-adds of the published network, and its two heads.
        let heads = units
            .exits
            .iter()
            .map(|e| units.blocks[e.after_block].flops);
        let trunk = units.blocks.iter().map(|b| b.flops).sum::<u64>() - heads.sum::<u64>();
        assert_eq!(trunk, 2 * 1_498_376_192);
        assert_eq!(Profile::named("googlenet_coarse").unwrap().blocks.len(), 18);
        assert_eq!(Profile::named("googlenet_fine").unwrap().blocks.len(), 81);
    }
}

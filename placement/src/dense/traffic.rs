//! Traffic over each cut, for the chosen thresholds.

use super::kinds::Rows;
use crate::problem::Workload;
use std::collections::HashMap;

/// Expected traffic over each cut.
pub(super) struct Traffic {
    /// Probability of reaching block `b`.
    pub reach: Vec<f64>,
    /// Expected request bytes at the cut before block `b`.
    pub bytes: Vec<f64>,
    /// Expected reply bytes at the cut before block `b`.
    pub reply: Vec<f64>,
    /// Request bytes of a request that reaches block `b`.
    pub live: Vec<f64>,
    /// Reply bytes of a request that takes no exit.
    pub output: f64,
}

impl Traffic {
    pub(super) fn new(workload: &Workload, rows: &Rows) -> Self {
        let l = workload.blocks.len();
        let size: HashMap<&str, f64> = workload
            .values
            .iter()
            .map(|v| (v.name.as_str(), v.bytes as f64))
            .collect();
        let mut reach = vec![1.0; l];
        let mut leaving = vec![0.0; l];
        let mut left = 1.0;
        for b in 0..l {
            reach[b] = left;
            for (exit, row) in workload.exits.iter().zip(rows) {
                if exit.after_block == b {
                    let rate = exit.table[*row].rate;
                    leaving[b] += left * rate * exit.reply_bytes as f64;
                    left *= 1.0 - rate;
                }
            }
        }
        let mut outputs: Vec<&str> = workload.outputs.iter().map(String::as_str).collect();
        outputs.sort_unstable();
        outputs.dedup();
        let reply: f64 = outputs.iter().filter_map(|v| size.get(v)).sum();
        leaving[l - 1] += left * reply;
        for b in (0..l - 1).rev() {
            leaving[b] += leaving[b + 1];
        }
        // A value is live from its producer (or the start) to its last consumer.
        let mut first: HashMap<&str, usize> = HashMap::new();
        let mut last: HashMap<&str, usize> = HashMap::new();
        for (b, block) in workload.blocks.iter().enumerate() {
            for v in &block.inputs {
                last.insert(v, b);
            }
            for v in &block.outputs {
                first.insert(v, b + 1);
            }
        }
        for v in outputs {
            last.insert(v, l);
        }
        let mut bytes = vec![0.0; l];
        for (v, end) in last {
            let start = first.get(v).copied().unwrap_or(0);
            let range = start..=end.min(l - 1);
            for b in bytes.get_mut(range).unwrap_or_default() {
                *b += size.get(v).copied().unwrap_or(0.0);
            }
        }
        let live = bytes.clone();
        for (bytes, reach) in bytes.iter_mut().zip(&reach) {
            *bytes *= reach;
        }
        Self {
            reach,
            bytes,
            reply: leaving,
            live,
            output: reply,
        }
    }
}

//! Results of a run, as stored and printed.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One run of the benchmark.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Machine and date.
    pub(crate) machine: String,
    pub(crate) commit: String,
    pub(crate) profile: String,
    pub(crate) models: usize,
    /// By number of nodes.
    pub(crate) sizes: BTreeMap<usize, Size>,
}

/// Results at one size.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Size {
    /// Many models, each at an entry of its own.
    pub(crate) many: Scene,
    /// One model at many entries.
    pub(crate) one: Scene,
}

/// Results of one scene.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Scene {
    /// Hosts that became Ready, of all, and the seconds until then.
    pub(crate) hosts: Option<Progress>,
    /// Placements that became active.
    pub(crate) served: Option<Progress>,
    /// Reconciles by what happened meanwhile.
    pub(crate) looks: BTreeMap<String, Looks>,
    /// Time from a change to the plan that answers it, by kind of change.
    pub(crate) wishes: BTreeMap<String, Wishes>,
    pub(crate) redeploy: Option<Redeploy>,
    /// While nothing happened.
    pub(crate) idle: Option<Idle>,
    /// Peak megabytes over all processes of the operator.
    pub(crate) peak_mb: Option<f64>,
    pub(crate) restarts: u32,
    pub(crate) failed_probes: u32,
    /// What could not be measured, and other remarks.
    pub(crate) notes: Vec<String>,
}

/// How many of all arrived, and when the last did.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) done: usize,
    pub(crate) all: usize,
    pub(crate) seconds: f64,
}

/// Durations of reconciles, in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Looks {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Times from a change to the plan that is written for it, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wishes {
    /// Changes that were made.
    pub(crate) changes: usize,
    /// Those that a new plan answered in time.
    pub(crate) answered: usize,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) most: f64,
}

/// What one redeploy costs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Redeploy {
    /// Number of redeploys measured.
    pub(crate) count: usize,
    /// Median seconds until the new path served.
    pub(crate) seconds: f64,
    /// Writes and bytes per redeploy, by resource.
    pub(crate) written: BTreeMap<String, (f64, f64)>,
}

/// Resource use while nothing happens.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Idle {
    pub(crate) seconds: f64,
    /// Shares of a core.
    pub(crate) operator_cpu: f64,
    pub(crate) api_server_cpu: f64,
    pub(crate) fleet_cpu: f64,
    /// Megabytes of the operator.
    pub(crate) rss_mb: f64,
    /// Writes of the operator.
    pub(crate) writes: u64,
}

impl Wishes {
    /// Summarizes the answered ones of `changes` changes.
    pub(crate) fn of(changes: usize, mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let rank = (q * seconds.len() as f64).ceil() as usize;
            let index = rank.saturating_sub(1);
            seconds.get(index).copied().unwrap_or_default()
        };
        Self {
            changes,
            answered: seconds.len(),
            p50: at(0.5),
            p99: at(0.99),
            most: at(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_answered_changes() {
        let seconds: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        let wishes = Wishes::of(12, seconds);
        assert_eq!((wishes.changes, wishes.answered), (12, 10));
        assert_eq!((wishes.p50, wishes.p99, wishes.most), (5.0, 10.0, 10.0));
        assert_eq!(Wishes::of(3, Vec::new()).p50, 0.0);
    }
}

//! The objective: one criterion, a weighted sum of several, or several in order of rank.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A metric of a placement that can be minimized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Criterion {
    /// Weighted sum of the workloads' expected latencies in seconds, plus the charge for moving
    /// blocks.
    Latency,
    /// The same with the latency of a request that takes no exit: the longest path, which the tail
    /// of the requests sees.
    TailLatency,
    /// Seconds per request at the slowest node or link: the reciprocal of the highest sustainable
    /// rate in the given mix.
    Throughput,
    /// Joules per request of the mix, of nodes and links.
    Energy,
    /// Highest utilisation of a node in use, including the load of others.
    Fairness,
    /// Highest use, over the nodes in use, relative to what others leave free and the cap allows.
    ProportionalFairness,
    /// Money per request of the mix.
    Money,
}

impl Criterion {
    /// Whether it is the worst of several places rather than a sum over blocks
    /// and crossings.
    pub const fn is_worst(self) -> bool {
        matches!(
            self,
            Self::Throughput | Self::Fairness | Self::ProportionalFairness
        )
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Latency => "latency",
            Self::TailLatency => "tail latency",
            Self::Throughput => "throughput",
            Self::Energy => "energy",
            Self::Fairness => "fairness",
            Self::ProportionalFairness => "proportional fairness",
            Self::Money => "money",
        })
    }
}

/// A criterion with its weight in a sum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightedCriterion {
    /// The criterion.
    pub criterion: Criterion,
    /// Its weight per unit (second, joule, money, share), at least 0.
    pub weight: f64,
}

/// A criterion with its rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RankedCriterion {
    /// The criterion.
    pub criterion: Criterion,
    /// Share of its best value that later criteria may give up, at least 0.
    #[serde(default)]
    pub tolerance: f64,
}

/// What is minimized.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Objective {
    /// [`Criterion::Latency`].
    #[default]
    Latency,
    /// [`Criterion::TailLatency`].
    TailLatency,
    /// [`Criterion::Throughput`]. Among placements with the same bottleneck any may be returned.
    Throughput,
    /// [`Criterion::Energy`].
    Energy,
    /// [`Criterion::Fairness`].
    Fairness,
    /// [`Criterion::ProportionalFairness`].
    ProportionalFairness,
    /// [`Criterion::Money`].
    Money,
    /// The sum of weight times criterion. At most one of them may be the worst
    /// of several places (throughput, fairness).
    Weighted(Vec<WeightedCriterion>),
    /// The first criterion, then among placements within its tolerance the second, and so on. Value
    /// and bound are those of the first.
    Lexicographic(Vec<RankedCriterion>),
}

impl From<Criterion> for Objective {
    fn from(criterion: Criterion) -> Self {
        match criterion {
            Criterion::Latency => Self::Latency,
            Criterion::TailLatency => Self::TailLatency,
            Criterion::Throughput => Self::Throughput,
            Criterion::Energy => Self::Energy,
            Criterion::Fairness => Self::Fairness,
            Criterion::ProportionalFairness => Self::ProportionalFairness,
            Criterion::Money => Self::Money,
        }
    }
}

impl Objective {
    /// The single criterion; `None` for several.
    pub const fn single(&self) -> Option<Criterion> {
        Some(match self {
            Self::Latency => Criterion::Latency,
            Self::TailLatency => Criterion::TailLatency,
            Self::Throughput => Criterion::Throughput,
            Self::Energy => Criterion::Energy,
            Self::Fairness => Criterion::Fairness,
            Self::ProportionalFairness => Criterion::ProportionalFairness,
            Self::Money => Criterion::Money,
            Self::Weighted(_) | Self::Lexicographic(_) => return None,
        })
    }

    /// The criteria whose weighted sum is the objective's value. Of ranked ones, the first.
    pub fn terms(&self) -> Vec<WeightedCriterion> {
        let one = |criterion| WeightedCriterion {
            criterion,
            weight: 1.0,
        };
        match self {
            Self::Weighted(terms) => terms.clone(),
            Self::Lexicographic(ranks) => ranks.iter().take(1).map(|r| one(r.criterion)).collect(),
            single => single.single().map(one).into_iter().collect(),
        }
    }

    /// Its criteria in order of rank, each with the tolerance for the next one; empty unless they
    /// are ranked.
    pub fn ranks(&self) -> &[RankedCriterion] {
        match self {
            Self::Lexicographic(ranks) => ranks,
            _ => &[],
        }
    }

    /// Every criterion that it uses.
    pub fn criteria(&self) -> Vec<Criterion> {
        match self {
            Self::Lexicographic(ranks) => ranks.iter().map(|r| r.criterion).collect(),
            other => other.terms().iter().map(|t| t.criterion).collect(),
        }
    }
}

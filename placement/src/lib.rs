//! Where each block of a network runs: problem, checker and strategies.
//!
//! Pure: no I/O, no async, no Kubernetes, no torch, and no clock but the deadline in
//! [`Ctx`]. The entry point is [`solve_checked`] with a [`strategy`] by name;
//! [`check::evaluate`] computes the metrics of any placement; [`explain::explain`]
//! explains it, [`explain::why_infeasible`] why there is none, [`regions::regions`]
//! where another would be the best, and [`adapt`] when to move there.

pub mod adapt;
pub mod check;
mod dense;
mod exact;
pub mod explain;
mod limits;
mod milp;
mod objective;
mod problem;
mod random;
pub mod regions;
mod solution;
mod solve;
mod strategies;
mod strategy;
mod validate;

pub use limits::{Ctx, SolveOptions};
pub use objective::{Criterion, Objective, RankedCriterion, WeightedCriterion};
pub use problem::{
    Block, BlockCost, BlockOnNode, Constraints, Exit, ExitPoint, Link, Node, Previous, Problem,
    Tier, Transition, Value, Workload,
};
pub use solution::{
    Answer, Bottleneck, Certificate, CrossingMetrics, LinkMetrics, Metrics, NodeMetrics, Placement,
    Segment, SegmentMetrics, Solution, Stats, Status, WorkloadMetrics,
};
pub use solve::solve_checked;
pub use strategies::{strategy, strategy_names};
pub use strategy::{Parameters, SolveError, Strategy};
pub use validate::{FieldError, FieldErrors, MAX_BLOCKS, MAX_NODES, ValidProblem, validate};

#[cfg(test)]
mod testing;

// The generator of hard problems is shared with the integration tests.
#[cfg(test)]
extern crate self as lamina_placement;
#[cfg(test)]
#[path = "../tests/nasty/mod.rs"]
mod nasty;

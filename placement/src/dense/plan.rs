//! The common input for compiling every chain of a problem.

use super::measure::Aim;
use crate::objective::Criterion;
use crate::problem::Workload;
use std::collections::HashMap;

/// The aim, and what the chains share.
pub(super) struct Plan<'a> {
    pub aim: &'a Aim,
    /// What each budget counts; `None` is plain latency.
    pub budgets: Vec<Option<Criterion>>,
    pub index: &'a HashMap<&'a str, usize>,
    /// Requests per second of the mix.
    pub mix: f64,
    pub workloads: usize,
    /// As [`super::Dense::nominal`].
    pub nominal: bool,
}

impl Plan<'_> {
    /// Share of a workload among all requests.
    pub(super) fn share(&self, workload: &Workload) -> f64 {
        if self.mix > 0.0 {
            workload.rate_per_second / self.mix
        } else {
            (self.workloads as f64).recip()
        }
    }

    pub(super) fn rate(&self, workload: &Workload) -> f64 {
        if self.nominal {
            self.share(workload)
        } else {
            workload.rate_per_second
        }
    }
}

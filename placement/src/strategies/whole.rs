//! `cloud-only` and `device-only`: the model in one piece, the baselines of
//! every split-computing paper (Kang et al., Neurosurgeon, ASPLOS 2017).
//!
//! Blocks that are pinned or kept on the entry stay there.

use super::{no_parameters, rows};
use crate::dense::Dense;
use crate::problem::{Problem, Tier, Workload};
use crate::solution::{Answer, Certificate, Stats};
use crate::strategy::{Ctx, Parameters, SolveError, SolveOptions, Strategy};
use crate::validate::ValidProblem;

/// Where the whole model goes.
#[derive(Debug, Clone, Copy)]
enum Home {
    /// The cloud node with the lowest objective.
    Cloud,
    /// The entry itself.
    Entry,
}

/// Whole models on one node.
#[derive(Debug)]
struct Whole(Home);

pub(super) fn cloud_only(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("cloud-only", parameters)?;
    Ok(Box::new(Whole(Home::Cloud)))
}

pub(super) fn device_only(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("device-only", parameters)?;
    Ok(Box::new(Whole(Home::Entry)))
}

impl Strategy for Whole {
    fn name(&self) -> &str {
        match self.0 {
            Home::Cloud => "cloud-only",
            Home::Entry => "device-only",
        }
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        _options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        let mut best: Option<Answer> = None;
        let mut work = 0;
        for rows in rows::choices(problem, self.name())? {
            if ctx.expired() {
                break;
            }
            let dense = Dense::new(problem, &rows);
            let Some((objective, path)) = self.place(problem, &dense, &mut work) else {
                continue;
            };
            if best.as_ref().and_then(|b| b.objective) <= Some(objective) && best.is_some() {
                continue;
            }
            best = Some(Answer {
                placements: dense.placements(problem, &rows, &path),
                objective: Some(objective),
                certificate: Certificate::of(objective, None, 0.0),
                stats: Stats::default(),
            });
        }
        let mut answer = best.unwrap_or(Answer {
            placements: Vec::new(),
            objective: None,
            certificate: Certificate::UNKNOWN,
            stats: Stats::default(),
        });
        answer.stats = Stats {
            stage: "enumeration".to_owned(),
            work,
            nodes_left: problem.nodes.len(),
        };
        Ok(answer)
    }
}

impl Whole {
    /// One workload after the other, each on its best home.
    fn place(&self, problem: &Problem, dense: &Dense, work: &mut u64) -> Option<(f64, Vec<usize>)> {
        let mut path = Vec::new();
        let mut cost = 0.0;
        for (workload, chain) in problem.workloads.iter().zip(&dense.chains) {
            let homes = (0..dense.n).filter(|i| match self.0 {
                Home::Cloud => problem.nodes[*i].tier == Tier::Cloud,
                Home::Entry => *i == chain.entry,
            });
            let (value, longer) = homes
                .filter_map(|home| {
                    *work += 1;
                    let mut longer = path.clone();
                    longer.extend(blocks_at(problem, workload, chain.entry, home));
                    dense.value(problem, &longer).map(|value| (value, longer))
                })
                .min_by(|a, b| a.0.total_cmp(&b.0))?;
            (cost, path) = (value, longer);
        }
        Some((cost, path))
    }
}

/// The node of each block when all that may move are at `home`.
fn blocks_at(problem: &Problem, workload: &Workload, entry: usize, home: usize) -> Vec<usize> {
    let c = &workload.constraints;
    (0..workload.blocks.len())
        .map(|b| {
            if b < c.keep_first_on_entry {
                return entry;
            }
            let pin = c.pins.iter().find(|p| p.block == b);
            pin.and_then(|p| problem.nodes.iter().position(|n| n.name == p.node))
                .unwrap_or(home)
        })
        .collect()
}

//! The model in one piece, for `cloud-only` and `device-only`.
//!
//! Blocks that are pinned or kept on the entry stay there.

use super::rows;
use super::turns::{Effort, Turn, in_turn};
use crate::limits::{Ctx, SolveOptions};
use crate::problem::{Problem, Tier, Workload};
use crate::solution::{Answer, Placement};
use crate::strategy::SolveError;

/// Each workload on the best of the nodes that `homes` gives for it.
pub(super) fn solve(
    problem: &Problem,
    strategy: &str,
    options: &SolveOptions,
    ctx: &Ctx,
    homes: impl Fn(&Turn<'_>) -> Vec<usize>,
) -> Result<Answer, SolveError> {
    let choices = rows::choices(problem, strategy)?;
    let mut effort = Effort::new(options, ctx);
    let answer = in_turn(
        problem,
        &choices,
        "enumeration",
        &mut effort,
        |turn, effort| {
            let workload = &problem.workloads[turn.k];
            homes(turn)
                .into_iter()
                .take_while(|_| effort.spend())
                .filter_map(|home| {
                    let nodes = blocks_at(turn, workload, home);
                    turn.value(&nodes).map(|value| (value, nodes))
                })
                .min_by(|a, b| a.0.total_cmp(&b.0))
        },
    );
    Ok(answer)
}

/// The node of each block if all that may move are at `home`.
fn blocks_at(turn: &Turn<'_>, workload: &Workload, home: usize) -> Vec<usize> {
    let c = &workload.constraints;
    let nodes = &turn.problem.nodes;
    (0..workload.blocks.len())
        .map(|b| {
            if b < c.keep_first_on_entry {
                return turn.chain().entry;
            }
            let pin = c.pins.iter().find(|p| p.block == b);
            pin.and_then(|p| nodes.iter().position(|n| n.name == p.node))
                .unwrap_or(home)
        })
        .collect()
}

/// The whole model on the best node of a tier; empty if there is none.
pub(crate) fn whole_on_tier(problem: &Problem, tier: Tier, ctx: &Ctx) -> Vec<Placement> {
    let options = SolveOptions::default();
    let answer = solve(problem, "whole", &options, ctx, |_| {
        let nodes = problem.nodes.iter().enumerate();
        nodes
            .filter(|(_, n)| n.tier == tier)
            .map(|(i, _)| i)
            .collect()
    });
    answer.map(|a| a.placements).unwrap_or_default()
}

//! The capacity left for some chains once the others are placed.

use super::{Budget, Dense, KINDS, SLICES};

/// Stands for an infinite load on a full link: finite, so that sending nothing still fits.
const FULL: f64 = 1e300;

impl Dense {
    /// Cost of one chain, a node per block.
    pub(crate) fn chain_cost(&self, k: usize, nodes: &[usize]) -> f64 {
        let chain = &self.chains[k];
        self.walk(chain, &chain.cost, &chain.toll, nodes)
    }

    /// The problem of placing only the chains `free`, in that order, on what those in `placed`
    /// leave (a node per block each). Every chain is in at most one of the two.
    pub(crate) fn residual(&self, placed: &[(usize, &[usize])], free: &[usize]) -> Self {
        let mut used = self.nothing_used();
        let mut spent = vec![0.0; self.budgets.len()];
        for &(k, nodes) in placed {
            self.use_up(&self.chains[k], nodes, &mut used);
            for (spent, budget) in spent.iter_mut().zip(&self.budgets).filter(|(_, b)| b.total) {
                let measure = &budget.measures[k];
                *spent += self.walk(&self.chains[k], &measure.cost, &measure.toll, nodes);
            }
        }
        let budgets = self.budgets.iter().zip(&spent);
        let mut left = self.clone();
        left.budgets = budgets
            .map(|(budget, spent)| residual_budget(budget, *spent, free))
            .collect();
        left.chains = free.iter().map(|k| self.chains[*k].clone()).collect();
        for kind in (0..KINDS).filter(|kind| *kind != SLICES) {
            for (capacity, used) in left.capacity[kind].iter_mut().zip(&used.nodes[kind]) {
                *capacity = (*capacity - used).max(0.0);
            }
        }
        // Links have one capacity for all: a byte on a half-full link counts twice.
        let capacity = self.link_capacity;
        if capacity < f64::INFINITY {
            let n = self.n;
            for (at, load) in used.links.into_iter().filter(|(_, load)| *load > 0.0) {
                let turned = at % n * n + at / n;
                let room = capacity - load;
                for per_byte in [&mut left.forth_load[at], &mut left.back_load[turned]] {
                    *per_byte = if room > 0.0 {
                        (*per_byte * capacity / room).min(FULL)
                    } else {
                        FULL
                    };
                }
            }
        }
        left
    }
}

fn residual_budget(budget: &Budget, spent: f64, free: &[usize]) -> Budget {
    let limit = |k: &usize| {
        let limit = budget.limits[*k];
        if budget.total { limit - spent } else { limit }
    };
    Budget {
        measures: free.iter().map(|k| budget.measures[*k].clone()).collect(),
        limits: free.iter().map(limit).collect(),
        total: budget.total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nasty::{FEATURES, problem};
    use crate::validate;

    /// The cost and feasibility of two chains are those of the second on what the first leaves.
    #[test]
    fn one_after_the_other_is_both_together() {
        let (mut fits, mut breaks) = (0, 0);
        for seed in 0..3_000u64 {
            let mut dice = crate::nasty::Dice(seed);
            let mut mask = || dice.roll(1 << FEATURES) as u32;
            let two = 1 << 11;
            let p = problem(seed, 3, 2, mask() & mask() | two);
            if validate(&p).is_err() {
                continue;
            }
            let rows: Vec<Vec<usize>> =
                p.workloads.iter().map(|w| vec![0; w.exits.len()]).collect();
            let dense = Dense::new(&p, &rows);
            let path: Vec<usize> = (0..dense.chains.iter().map(|c| c.l).sum())
                .map(|_| dice.roll(dense.n as u64) as usize)
                .collect();
            let (first, second) = path.split_at(dense.chains[0].l);
            let Some(alone) = dense.residual(&[], &[0]).evaluate(first) else {
                continue;
            };
            let rest = dense.residual(&[(0, first)], &[1]).evaluate(second);
            let whole = dense.evaluate(&path);
            match (whole, rest) {
                (Some(whole), Some(rest)) => {
                    assert!((whole - alone - rest).abs() <= 1e-9, "seed {seed}");
                    fits += 1;
                }
                (None, None) => breaks += 1,
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        assert!(fits > 100 && breaks > 100, "{fits} {breaks}");
    }
}

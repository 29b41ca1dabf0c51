//! What is left for some chains once the others have their places.

use super::{Budget, Dense, KINDS, SLICES};

/// Stands for a load without end on a link that is full: finite, so that nothing
/// to send still passes.
const FULL: f64 = 1e300;

impl Dense {
    /// Cost of one chain, a node per block.
    pub(crate) fn chain_cost(&self, k: usize, nodes: &[usize]) -> f64 {
        let chain = &self.chains[k];
        self.walk(chain, &chain.cost, &chain.toll, nodes)
    }

    /// The problem of placing the chains `free` alone, in that order, on what
    /// those `placed` leave (a node per block each). Every chain is in at most
    /// one of the two.
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
        // Links have one capacity for all: a byte on a link half full counts
        // twice.
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

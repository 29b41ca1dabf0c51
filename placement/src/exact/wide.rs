//! Many nodes: a good placement on a shortlist first, then one forward pass over all nodes that
//! skips those that cannot beat it, and the narrow method on the rest.

use super::labels::IMPROVEMENT;
use super::reduce::{restrict, through};
use super::tables::{Prices, Table, backward, forward, priced, trace_forward};
use super::terms::{Exact, Outcome};
use crate::dense::{Chain, Dense};

/// Nodes per chain and measure on the shortlist.
const SHORT: usize = 12;
/// Speed classes per tier in the abstraction.
const CLASSES: usize = 6;

pub(super) fn solve(how: &Exact<'_>, dense: &Dense) -> Outcome {
    let mut best: Option<(f64, Vec<usize>)> = None;
    let mut work = 0;
    let listed = shortlist(dense);
    let (short, ids) = restrict(dense, |_, _, i| listed[i]);
    let part = how.ctx.part(0.2);
    let quick = Exact {
        ctx: &part,
        max_work: how.max_work / 10,
        start: None,
        ..how.clone()
    }
    .solve_narrow(&short);
    work += quick.work;
    if let Some((cost, path)) = quick.best {
        best = Some((cost, path.iter().map(|i| ids[*i]).collect()));
    }
    let cutoff = best.as_ref().map_or(how.cutoff, |b| b.0);
    if how.any && best.is_some() {
        return Outcome {
            best,
            bound: f64::NEG_INFINITY,
            complete: false,
            stage: "shortlist",
            work,
            nodes_left: short.n,
        };
    }
    let free = Prices::zero(dense);
    let costs: Vec<Vec<f64>> = (0..dense.chains.len())
        .map(|k| priced(dense, k, &free))
        .collect();
    let classes: Vec<Classes> = (0..dense.chains.len())
        .map(|k| Classes::new(dense, k, &costs[k]))
        .collect();
    let alone = dense.chains.len() == 1;
    let limit = if alone {
        cutoff * (1.0 + IMPROVEMENT)
    } else {
        f64::INFINITY
    };
    let before: Option<Vec<Table>> = (0..dense.chains.len())
        .map(|k| {
            let rest = |b, i| classes[k].leaving(b, i);
            forward(dense, k, &costs[k], &free, limit, rest, how.ctx)
        })
        .collect();
    let cut_short = |best, bound, work| Outcome {
        best,
        bound,
        complete: false,
        stage: "viterbi",
        work,
        nodes_left: dense.n,
    };
    let Some(before) = before else {
        return cut_short(best, f64::NEG_INFINITY, work);
    };
    let bound: f64 = before.iter().map(|t| t.best).sum();
    let outcome = |best: Option<(f64, Vec<usize>)>, work| {
        let value = best.as_ref().map_or(how.cutoff, |b| b.0);
        Outcome {
            best,
            bound: value,
            complete: true,
            stage: "viterbi",
            work,
            nodes_left: dense.n,
        }
    };
    if bound == f64::INFINITY {
        return outcome(best, work);
    }
    let path: Option<Vec<Vec<usize>>> = (0..dense.chains.len())
        .map(|k| trace_forward(dense, k, &costs[k], &free, &before[k]))
        .collect();
    if let Some(path) = path.map(|p| p.concat())
        && let Some(cost) = dense.evaluate(&path)
        && (cutoff == f64::INFINITY || cost < cutoff - IMPROVEMENT * cutoff.abs())
    {
        best = Some((cost, path));
    }
    let cutoff = best.as_ref().map_or(how.cutoff, |b| b.0);
    if cutoff < f64::INFINITY && cutoff - bound <= IMPROVEMENT * cutoff.abs() {
        return outcome(best, work);
    }
    if how.ctx.expired() {
        return cut_short(best, bound.min(cutoff), work);
    }
    let n = dense.n;
    let room = IMPROVEMENT
        * if cutoff < f64::INFINITY {
            cutoff.abs()
        } else {
            0.0
        };
    let others = |k: usize| bound - before[k].best;
    let (left, ids) = restrict(dense, |k, b, i| {
        let at = b * n + i;
        let so_far = before[k].start[at].min(before[k].end[at]);
        so_far + classes[k].starting(b, i, costs[k][at]) + others(k) <= cutoff + room
    });
    let free = Prices::zero(&left);
    let after: Option<Vec<Table>> = (0..left.chains.len())
        .map(|k| backward(&left, k, &priced(&left, k, &free), &free, how.ctx))
        .collect();
    let Some(after) = after else {
        return cut_short(best, bound.min(cutoff), work);
    };
    let before: Vec<Table> = before.iter().map(|t| t.restrict(n, &ids)).collect();
    let (last, last_ids) = restrict(&left, |k, b, i| {
        through(&before[k], &after[k], b, i, left.n) + others(k) <= cutoff + room
    });
    let at = |i: &usize| last_ids.iter().position(|z| ids[*z] == *i);
    let start = best.as_ref().and_then(|(cost, path)| {
        let path: Option<Vec<usize>> = path.iter().map(at).collect();
        Some((*cost, path?))
    });
    let found = Exact {
        cutoff: if start.is_some() { how.cutoff } else { cutoff },
        start,
        max_work: how.max_work.saturating_sub(work),
        ..how.clone()
    }
    .solve_narrow(&last);
    if let Some((cost, path)) = found.best {
        best = Some((cost, path.iter().map(|i| ids[last_ids[*i]]).collect()));
    }
    let value = best.as_ref().map_or(how.cutoff, |b| b.0);
    Outcome {
        best,
        bound: found.bound.max(bound).min(value),
        complete: found.complete,
        stage: found.stage,
        work: work + found.work,
        nodes_left: found.nodes_left,
    }
}

/// Nodes that are good for "a prefix on the entry, the rest there", and the fastest ones.
fn shortlist(dense: &Dense) -> Vec<bool> {
    let n = dense.n;
    let mut listed = vec![false; n];
    for chain in &dense.chains {
        let mut by_rest: Vec<(f64, usize)> =
            (0..n).map(|i| (best_rest(dense, chain, i), i)).collect();
        let mut by_speed: Vec<(f64, usize)> = (0..n).map(|i| (speed(chain, i, n), i)).collect();
        for list in [&mut by_rest, &mut by_speed] {
            list.sort_by(|x, y| x.0.total_cmp(&y.0));
            for (value, i) in list.iter().take(SHORT) {
                listed[*i] = listed[*i] || *value < f64::INFINITY;
            }
        }
        for b in 0..chain.l {
            let able: Vec<usize> = (0..n)
                .filter(|i| chain.cost[b * n + i] < f64::INFINITY)
                .collect();
            // Pinned blocks must find their node.
            if let [only] = able.as_slice() {
                listed[*only] = true;
            }
        }
        listed[chain.entry] = true;
    }
    listed
}

/// Average cost of the blocks that the node can run, and of reaching it.
fn speed(chain: &Chain, i: usize, n: usize) -> f64 {
    let able: Vec<f64> = (0..chain.l)
        .map(|b| chain.cost[b * n + i])
        .filter(|c| c.is_finite())
        .collect();
    if able.is_empty() {
        f64::INFINITY
    } else {
        able.iter().sum::<f64>() / able.len() as f64
    }
}

/// Cheapest prefix on the entry with the rest, as far as it fits, on node `i`.
fn best_rest(dense: &Dense, chain: &Chain, i: usize) -> f64 {
    let n = dense.n;
    let mut prefix = vec![0.0; chain.l + 1];
    for b in 0..chain.l {
        prefix[b + 1] = prefix[b] + chain.cost[b * n + chain.entry];
    }
    let (mut rest, mut best, mut used) = (0.0, f64::INFINITY, [0.0; crate::dense::KINDS]);
    for b in (0..chain.l).rev() {
        rest += chain.cost[b * n + i];
        for (kind, need) in chain.need.iter().enumerate() {
            used[kind] += need.get(b * n + i).copied().unwrap_or(0.0);
        }
        let full = used
            .iter()
            .enumerate()
            .any(|(kind, u)| !chain.need[kind].is_empty() && *u > dense.room(chain, kind, i));
        if full || rest == f64::INFINITY {
            break;
        }
        best = best.min(prefix[b] + dense.crossing(chain, b, chain.entry, i) + rest);
    }
    best
}

/// Nodes grouped by tier and speed, with the cheapest cost between groups: a lower bound on the
/// rest that takes no time per node.
struct Classes {
    of: Vec<usize>,
    count: usize,
    start: Vec<f64>,
    end: Vec<f64>,
}

impl Classes {
    fn new(dense: &Dense, k: usize, cost: &[f64]) -> Self {
        let (chain, n) = (&dense.chains[k], dense.n);
        let (of, count) = group(dense, chain);
        let mut trip = vec![f64::INFINITY; count * count];
        let (mut forth, mut back) = (trip.clone(), trip.clone());
        for i in 0..n {
            for j in 0..n {
                let (at, class) = (i * n + j, of[i] * count + of[j]);
                trip[class] = trip[class].min(dense.round_trip[at]);
                forth[class] = forth[class].min(dense.forth[at]);
                back[class] = back[class].min(dense.back[at]);
            }
        }
        let l = chain.l;
        let mut classes = Self {
            of,
            count,
            start: vec![f64::INFINITY; (l + 1) * count],
            end: vec![f64::INFINITY; (l + 1) * count],
        };
        classes.end[l * count..].fill(0.0);
        for b in (0..l).rev() {
            for x in 0..count {
                let at = (b + 1) * count + x;
                let ahead = classes.end[at].min(classes.start[at]);
                classes.start[b * count + x] = ahead;
            }
            let mut cheapest = vec![f64::INFINITY; count];
            for i in 0..n {
                let class = classes.of[i];
                cheapest[class] = cheapest[class].min(cost[b * n + i]);
            }
            for (x, c) in cheapest.iter().enumerate() {
                classes.start[b * count + x] += c;
            }
            for x in 0..count {
                let mut best = f64::INFINITY;
                for y in 0..count {
                    let class = x * count + y;
                    if trip[class] == f64::INFINITY {
                        continue;
                    }
                    // Without cuts and metered bytes it is still a bound.
                    let toll = chain.toll.trip[b] * trip[class]
                        + chain.toll.forth[b] * forth[class]
                        + chain.toll.back[b] * back[class];
                    best = best.min(toll + classes.start[b * count + y]);
                }
                classes.end[b * count + x] = best;
            }
        }
        classes
    }

    /// Bound on the rest after a stretch on node `i` that ended before block `b`.
    fn leaving(&self, b: usize, i: usize) -> f64 {
        self.end[b * self.count + self.of[i]]
    }

    /// Bound from block `b` on node `i` on, including that block (of the given cost).
    fn starting(&self, b: usize, i: usize, cost: f64) -> f64 {
        let at = (b + 1) * self.count + self.of[i];
        cost + self.end[at].min(self.start[at])
    }
}

/// Class of each node: the entry alone, the others by tier and speed.
fn group(dense: &Dense, chain: &Chain) -> (Vec<usize>, usize) {
    let n = dense.n;
    let mut of = vec![0; n];
    let mut count = 1;
    for tier in 0..=u8::MAX {
        let mut nodes: Vec<usize> = (0..n)
            .filter(|i| dense.tier[*i] == tier && *i != chain.entry)
            .collect();
        if nodes.is_empty() {
            continue;
        }
        nodes.sort_by(|x, y| speed(chain, *x, n).total_cmp(&speed(chain, *y, n)));
        let groups = CLASSES.min(nodes.len());
        for (z, i) in nodes.iter().enumerate() {
            of[*i] = count + z * groups / nodes.len();
        }
        count += groups;
    }
    (of, count)
}

//! Smaller problems: without nodes and places that cannot be part of anything better.

use super::tables::{Prices, Table};
use crate::dense::{Budget, Chain, Dense, Measure, Tariff, Toll};

/// The problem without the places that `keep(chain, block, node)` denies, and the old ordinals of
/// the remaining nodes. Entries stay.
pub(super) fn restrict(
    dense: &Dense,
    keep: impl Fn(usize, usize, usize) -> bool,
) -> (Dense, Vec<usize>) {
    let n = dense.n;
    let mut used = vec![false; n];
    for (k, chain) in dense.chains.iter().enumerate() {
        used[chain.entry] = true;
        for b in 0..chain.l {
            for (i, used) in used.iter_mut().enumerate() {
                *used = *used || (chain.cost[b * n + i] < f64::INFINITY && keep(k, b, i));
            }
        }
    }
    let ids: Vec<usize> = (0..n).filter(|i| used[*i]).collect();
    let matrix = |full: &[f64]| -> Vec<f64> {
        ids.iter()
            .flat_map(|i| ids.iter().map(move |j| full[i * n + j]))
            .collect()
    };
    let chains = dense
        .chains
        .iter()
        .enumerate()
        .map(|(k, chain)| restrict_chain(chain, n, &ids, |b, i| keep(k, b, i)))
        .collect();
    let small = Dense {
        n: ids.len(),
        round_trip: matrix(&dense.round_trip),
        forth: matrix(&dense.forth),
        back: matrix(&dense.back),
        forth_load: matrix(&dense.forth_load),
        back_load: matrix(&dense.back_load),
        tier: ids.iter().map(|i| dense.tier[*i]).collect(),
        capacity: std::array::from_fn(|kind| {
            ids.iter().map(|i| dense.capacity[kind][*i]).collect()
        }),
        link_capacity: dense.link_capacity,
        free_compute: ids.iter().map(|i| dense.free_compute[*i]).collect(),
        load_share: ids.iter().map(|i| dense.load_share[*i]).collect(),
        joules: restrict_tariff(&dense.joules, n, &ids),
        money: restrict_tariff(&dense.money, n, &ids),
        budgets: dense
            .budgets
            .iter()
            .map(|b| restrict_budget(b, n, &ids))
            .collect(),
        aim: dense.aim.clone(),
        nominal: dense.nominal,
        chains,
    };
    (small, ids)
}

fn restrict_tariff(tariff: &Tariff, n: usize, ids: &[usize]) -> Tariff {
    let matrix = |full: &[f64]| -> Vec<f64> {
        if full.is_empty() {
            return Vec::new();
        }
        ids.iter()
            .flat_map(|i| ids.iter().map(move |j| full[i * n + j]))
            .collect()
    };
    Tariff {
        forth: matrix(&tariff.forth),
        back: matrix(&tariff.back),
    }
}

fn restrict_budget(budget: &Budget, n: usize, ids: &[usize]) -> Budget {
    let measures = budget.measures.iter().map(|m| Measure {
        cost: columns(&m.cost, n, ids),
        toll: restrict_toll(&m.toll, n, ids),
    });
    Budget {
        measures: measures.collect(),
        limits: budget.limits.clone(),
        total: budget.total,
    }
}

fn restrict_toll(toll: &Toll, n: usize, ids: &[usize]) -> Toll {
    Toll {
        cut: columns(&toll.cut, n, ids),
        ..toll.clone()
    }
}

/// The columns of `[block][node]` that are left.
fn columns(full: &[f64], n: usize, ids: &[usize]) -> Vec<f64> {
    let rows = full.chunks(n);
    rows.flat_map(|row| ids.iter().map(move |i| row[*i]))
        .collect()
}

fn restrict_chain(
    chain: &Chain,
    n: usize,
    ids: &[usize],
    keep: impl Fn(usize, usize) -> bool,
) -> Chain {
    let rows = |full: &[f64]| columns(full, n, ids);
    let kept = |full: &[f64]| -> Vec<f64> {
        (0..chain.l)
            .flat_map(|b| ids.iter().map(move |i| (b, *i)))
            .map(|(b, i)| {
                if keep(b, i) {
                    full[b * n + i]
                } else {
                    f64::INFINITY
                }
            })
            .collect()
    };
    Chain {
        l: chain.l,
        entry: ids.iter().position(|i| *i == chain.entry).unwrap_or(0),
        cost: kept(&chain.cost),
        toll: restrict_toll(&chain.toll, n, ids),
        need: std::array::from_fn(|kind| rows(&chain.need[kind])),
        slice_capacity: ids.iter().map(|i| chain.slice_capacity[*i]).collect(),
        rate: chain.rate,
        bytes: chain.bytes.clone(),
        reply: chain.reply.clone(),
        cut_load: rows(&chain.cut_load),
        monotone: chain.monotone,
        previous: None,
    }
}

/// Lower bound of every placement with block `b` of chain `k` on node `i`: prefix by the forward
/// table, suffix by the backward table.
#[inline]
pub(super) fn through(before: &Table, after: &Table, b: usize, i: usize, n: usize) -> f64 {
    let at = b * n + i;
    before.start[at].min(before.end[at]) + after.start[at]
}

/// Prices of the remaining nodes.
pub(super) fn restrict_prices(prices: &Prices, n: usize, ids: &[usize]) -> Prices {
    let node = std::array::from_fn(|kind| {
        let full: &[f64] = &prices.node[kind];
        (0..full.len() / n)
            .flat_map(|k| ids.iter().map(move |i| full[k * n + i]))
            .collect()
    });
    let link = if prices.link.is_empty() {
        Vec::new()
    } else {
        ids.iter()
            .flat_map(|i| ids.iter().map(move |j| prices.link[i * n + j]))
            .collect()
    };
    Prices { node, link }
}

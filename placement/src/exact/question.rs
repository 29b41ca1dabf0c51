//! A problem as a question: is there any placement within its limits?

use crate::dense::{Budget, Dense, Measure, Toll};

/// Margin above a limit, so that a placement that meets it exactly is still below the cutoff. More
/// than the least improvement.
const ROOM: f64 = 3e-9;

/// The same limits with costs that make them easy to refute, and a cutoff that every placement
/// within the limits stays below: the cost is the share of their budgets that the chains spend, so
/// that prices on capacities are weighed against it. A budget that is fully expressed by this is
/// left out. Without budgets the costs stay.
pub(crate) fn as_question(dense: &Dense) -> (Dense, f64) {
    let mut asked = dense.clone();
    let limited = |b: &Budget| b.limits.iter().any(|l| l.is_finite());
    let Some(at) = dense.budgets.iter().position(limited) else {
        return (asked, worst_cost(dense) * (1.0 + ROOM));
    };
    let budget = &dense.budgets[at];
    let mut shares = 0.0;
    for (k, chain) in asked.chains.iter_mut().enumerate() {
        let limit = budget.limits[k];
        let per_unit = if limit == f64::INFINITY {
            0.0
        } else if limit > 0.0 {
            shares += 1.0;
            limit.recip()
        } else {
            // Nothing may be spent at all: the budget decides that.
            return (dense.clone(), f64::INFINITY);
        };
        let measure = &budget.measures[k];
        for (cost, counts) in chain.cost.iter_mut().zip(&measure.cost) {
            if *cost < f64::INFINITY {
                *cost = counts * per_unit;
            }
        }
        chain.toll = scaled(measure, per_unit);
    }
    let cutoff = if budget.total { 1.0 } else { shares };
    if budget.total || shares == 1.0 {
        asked.budgets.remove(at);
    }
    (asked, cutoff * (1.0 + ROOM))
}

fn scaled(measure: &Measure, factor: f64) -> Toll {
    let all = |values: &[f64]| values.iter().map(|v| v * factor).collect();
    let toll = &measure.toll;
    Toll {
        trip: all(&toll.trip),
        forth: all(&toll.forth),
        back: all(&toll.back),
        joules: toll.joules * factor,
        money: toll.money * factor,
        cut: all(&toll.cut),
    }
}

/// No placement can cost more than this.
pub(super) fn worst_cost(dense: &Dense) -> f64 {
    let finite_max = |all: &[f64]| {
        all.iter()
            .copied()
            .filter(|v| v.is_finite())
            .fold(0.0, f64::max)
    };
    let trip = finite_max(&dense.round_trip);
    let per_byte = finite_max(&dense.forth);
    let joules = finite_max(&dense.joules.forth);
    let money = finite_max(&dense.money.forth);
    let n = dense.n;
    let mut sum = 0.0;
    for chain in &dense.chains {
        let toll = &chain.toll;
        for b in 0..chain.l {
            sum += finite_max(&chain.cost[b * n..(b + 1) * n]);
            sum += toll.cut.get(b * n..(b + 1) * n).map_or(0.0, finite_max);
            sum += toll.trip[b] * trip + (toll.forth[b] + toll.back[b]) * per_byte;
            let bytes = chain.bytes[b] + chain.reply[b];
            sum += bytes * (toll.joules * joules + toll.money * money);
        }
    }
    sum * (1.0 + 1e-9) + 1e-9
}

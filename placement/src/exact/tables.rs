//! Run-feasible Viterbi: the cheapest chain if each stretch of blocks on a node must fit that node
//! by itself, but several stretches on one node, or several crossings of one link, do not add up. A
//! lower bound, and the optimum whenever the path happens to fit. About `blocks × nodes²` steps.

use crate::dense::{COMPUTE, Chain, Dense, KINDS, SLICES};
use crate::limits::Ctx;

/// Prices on capacities (Lagrange multipliers), all at least zero.
#[derive(Debug, Clone)]
pub(super) struct Prices {
    /// Per kind and node; for slices `[chain][node]`.
    pub node: [Vec<f64>; KINDS],
    /// Per directed link; empty while all are zero.
    pub link: Vec<f64>,
}

impl Prices {
    pub(super) fn zero(dense: &Dense) -> Self {
        let chains = dense.chains.len();
        Self {
            node: std::array::from_fn(|kind| {
                vec![0.0; dense.n * if kind == SLICES { chains } else { 1 }]
            }),
            link: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn of(&self, kind: usize, chain: usize, node: usize, n: usize) -> f64 {
        if kind == SLICES {
            self.node[kind][chain * n + node]
        } else {
            self.node[kind][node]
        }
    }

    /// Sum of prices times capacities.
    pub(super) fn spent(&self, dense: &Dense) -> f64 {
        let n = dense.n;
        let mut sum = 0.0;
        for (kind, all) in self.node.iter().enumerate() {
            for (at, price) in all.iter().enumerate().filter(|(_, p)| **p > 0.0) {
                let capacity = if kind == SLICES {
                    dense.chains[at / n].slice_capacity[at % n]
                } else {
                    dense.capacity[kind][at]
                };
                sum += price * capacity;
            }
        }
        let links: f64 = self.link.iter().sum();
        if links > 0.0 {
            sum += links * dense.link_capacity;
        }
        sum
    }
}

/// A solved relaxation.
pub(super) struct Relaxed {
    /// Priced block costs per chain.
    pub costs: Vec<Vec<f64>>,
    /// Cost-to-go tables per chain.
    pub tables: Vec<Table>,
    /// Best path per chain.
    pub paths: Vec<Vec<usize>>,
    /// Its lower bound.
    pub value: f64,
}

/// Block costs with prices, `[block][node]`; infinite if the block does not fit even alone.
pub(super) fn priced(dense: &Dense, k: usize, prices: &Prices) -> Vec<f64> {
    let (chain, n) = (&dense.chains[k], dense.n);
    let mut cost = chain.cost.clone();
    for (kind, need) in chain.need.iter().enumerate() {
        if need.is_empty() {
            continue;
        }
        for b in 0..chain.l {
            for i in 0..n {
                let at = b * n + i;
                if need[at] > dense.room(chain, kind, i) {
                    cost[at] = f64::INFINITY;
                } else if cost[at] < f64::INFINITY {
                    cost[at] += prices.of(kind, k, i, n) * need[at];
                }
            }
        }
    }
    cost
}

/// Cost of a crossing with prices.
#[inline]
pub(super) fn priced_crossing(
    dense: &Dense,
    chain: &Chain,
    prices: &Prices,
    b: usize,
    from: usize,
    to: usize,
) -> f64 {
    let mut cost = dense.crossing(chain, b, from, to);
    if from == to || cost == f64::INFINITY {
        return cost;
    }
    if !chain.cut_load.is_empty() {
        cost += prices.node[COMPUTE][from] * chain.cut_load[b * dense.n + from];
    }
    if !prices.link.is_empty() {
        let (at, turned) = (from * dense.n + to, to * dense.n + from);
        if prices.link[at] > 0.0 {
            cost += prices.link[at] * chain.rate * chain.bytes[b] * dense.forth_load[at];
        }
        if prices.link[turned] > 0.0 {
            cost += prices.link[turned] * chain.rate * chain.reply[b] * dense.back_load[at];
        }
    }
    cost
}

/// Crossings before one block, prepared so that a row of them can be processed without branches.
struct Crossings<'a> {
    dense: &'a Dense,
    chain: &'a Chain,
    prices: &'a Prices,
    b: usize,
    plain: bool,
    by_round_trip: f64,
    by_forth: f64,
    by_back: f64,
    forth_rate: f64,
    back_rate: f64,
}

impl<'a> Crossings<'a> {
    fn new(dense: &'a Dense, chain: &'a Chain, prices: &'a Prices, b: usize) -> Self {
        Self {
            dense,
            chain,
            prices,
            b,
            plain: (!chain.monotone || b == 0)
                && prices.link.is_empty()
                && !dense.is_metered(&chain.toll),
            by_round_trip: chain.toll.trip[b],
            by_forth: chain.toll.forth[b],
            by_back: chain.toll.back[b],
            forth_rate: chain.rate * chain.bytes[b],
            back_rate: chain.rate * chain.reply[b],
        }
    }

    /// Cost of leaving `from` for any target.
    fn leaving(&self, from: usize) -> f64 {
        if self.chain.cut_load.is_empty() {
            return 0.0;
        }
        let at = self.b * self.dense.n + from;
        self.chain.toll.cut[at] + self.prices.node[COMPUTE][from] * self.chain.cut_load[at]
    }

    /// `sink(to, cost)` for each target. Costs of impossible crossings are infinite or NaN; both
    /// compare as not smaller.
    #[inline]
    fn row(&self, from: usize, mut sink: impl FnMut(usize, f64)) {
        let n = self.dense.n;
        if !self.plain {
            for to in (0..n).filter(|to| *to != from) {
                let c = priced_crossing(self.dense, self.chain, self.prices, self.b, from, to);
                sink(to, c);
            }
            return;
        }
        let row = from * n..(from + 1) * n;
        let leaving = self.leaving(from);
        let capacity = self.dense.link_capacity;
        let trips = &self.dense.round_trip[row.clone()];
        let forth = &self.dense.forth[row.clone()];
        let back = &self.dense.back[row.clone()];
        let forth_load = &self.dense.forth_load[row.clone()];
        let back_load = &self.dense.back_load[row];
        for to in 0..n {
            let c = leaving
                + self.by_round_trip * trips[to]
                + self.by_forth * forth[to]
                + self.by_back * back[to];
            let fits = (self.forth_rate * forth_load[to] <= capacity)
                & (self.back_rate * back_load[to] <= capacity)
                // Even if nothing is sent, a missing link must stay missing.
                & (trips[to] < f64::INFINITY);
            sink(to, if fits { c } else { f64::INFINITY });
        }
    }
}

/// The need of a growing stretch of blocks on each node, and whether it fits.
struct Window {
    sums: Vec<[f64; KINDS]>,
}

impl Window {
    fn new(n: usize) -> Self {
        Self {
            sums: vec![[0.0; KINDS]; n],
        }
    }

    fn clear(&mut self, i: usize) {
        self.sums[i] = [0.0; KINDS];
    }

    fn add(&mut self, dense: &Dense, chain: &Chain, b: usize, i: usize, sign: f64) {
        for (sum, need) in self.sums[i].iter_mut().zip(&chain.need) {
            if !need.is_empty() {
                *sum += sign * need[b * dense.n + i];
            }
        }
    }

    fn fits(&self, dense: &Dense, chain: &Chain, i: usize) -> bool {
        self.sums[i]
            .iter()
            .enumerate()
            .all(|(kind, sum)| chain.need[kind].is_empty() || *sum <= dense.room(chain, kind, i))
    }
}

/// Tables of one chain, `(blocks + 1) × nodes` each.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// Backward: cost to go of a stretch that starts with block `b` on the node. Forward: cost on
    /// arrival there, without the block itself.
    pub start: Vec<f64>,
    /// Backward: cost to go after a stretch on the node ended before block `b`. Forward: cost until
    /// then.
    pub end: Vec<f64>,
    /// Cost of the best chain.
    pub best: f64,
}

impl Table {
    /// The columns of the remaining nodes of `n`.
    pub(super) fn restrict(&self, n: usize, ids: &[usize]) -> Self {
        let columns = |full: &[f64]| -> Vec<f64> {
            full.chunks(n)
                .flat_map(|row| ids.iter().map(|i| row[*i]))
                .collect()
        };
        Self {
            start: columns(&self.start),
            end: columns(&self.end),
            best: self.best,
        }
    }
}

/// Whether a pass must stop here; checks the clock every few thousand steps.
fn interrupted(ctx: &Ctx, b: usize, n: usize) -> bool {
    (n > 64 || b % 16 == 15) && ctx.expired()
}

/// Cost-to-go tables. `cost` comes from [`priced`]. `None` if the limits were reached.
pub(super) fn backward(
    dense: &Dense,
    k: usize,
    cost: &[f64],
    prices: &Prices,
    ctx: &Ctx,
) -> Option<Table> {
    let (chain, n) = (&dense.chains[k], dense.n);
    let l = chain.l;
    let mut start = vec![f64::INFINITY; (l + 1) * n];
    let mut end = vec![f64::INFINITY; (l + 1) * n];
    end[l * n..].fill(0.0);
    let mut window = Window::new(n);
    // The stretch from `b` on node `i` fits up to, not including, `limit[i]`.
    let mut limit = vec![l; n];
    for b in (0..l).rev() {
        if interrupted(ctx, b, n) {
            return None;
        }
        for i in 0..n {
            if cost[b * n + i] == f64::INFINITY {
                limit[i] = b;
                window.clear(i);
                continue;
            }
            window.add(dense, chain, b, i, 1.0);
            let before = limit[i];
            while limit[i] > b + 1 && !window.fits(dense, chain, i) {
                limit[i] -= 1;
                window.add(dense, chain, limit[i], i, -1.0);
            }
            start[b * n + i] = if limit[i] == before {
                let longer = if before > b + 1 {
                    start[(b + 1) * n + i]
                } else {
                    f64::INFINITY
                };
                cost[b * n + i] + end[(b + 1) * n + i].min(longer)
            } else {
                let (mut sum, mut best) = (0.0, f64::INFINITY);
                for j in b..limit[i] {
                    sum += cost[j * n + i];
                    best = best.min(sum + end[(j + 1) * n + i]);
                }
                best
            };
        }
        if b == 0 {
            break;
        }
        let crossings = Crossings::new(dense, chain, prices, b);
        let (starts, ends) = (&start[b * n..(b + 1) * n], &mut end[b * n..(b + 1) * n]);
        for (i, end) in ends.iter_mut().enumerate() {
            if cost[(b - 1) * n + i] == f64::INFINITY {
                continue;
            }
            let mut best = f64::INFINITY;
            crossings.row(i, |to, c| {
                let v = c + starts[to];
                best = if v < best { v } else { best };
            });
            *end = best;
        }
    }
    let best = (0..n)
        .map(|i| priced_crossing(dense, chain, prices, 0, chain.entry, i) + start[i])
        .fold(f64::INFINITY, f64::min);
    Some(Table { start, end, best })
}

/// Cost-so-far tables. A stretch whose cost plus `rest(boundary, node)`, a lower bound on the rest,
/// exceeds `cutoff` is dropped. `None` if the limits were reached.
pub(super) fn forward(
    dense: &Dense,
    k: usize,
    cost: &[f64],
    prices: &Prices,
    cutoff: f64,
    rest: impl Fn(usize, usize) -> f64,
    ctx: &Ctx,
) -> Option<Table> {
    let (chain, n) = (&dense.chains[k], dense.n);
    let l = chain.l;
    let mut start = vec![f64::INFINITY; (l + 1) * n];
    let mut end = vec![f64::INFINITY; (l + 1) * n];
    for (i, arrival) in start[..n].iter_mut().enumerate() {
        *arrival = priced_crossing(dense, chain, prices, 0, chain.entry, i);
    }
    let mut window = Window::new(n);
    // The stretch up to block `b` on node `i` fits from `first[i]`.
    let mut first = vec![0; n];
    for b in 0..l {
        if interrupted(ctx, b, n) {
            return None;
        }
        for i in 0..n {
            if cost[b * n + i] == f64::INFINITY {
                first[i] = b + 1;
                window.clear(i);
                continue;
            }
            window.add(dense, chain, b, i, 1.0);
            let before = first[i];
            while first[i] < b && !window.fits(dense, chain, i) {
                window.add(dense, chain, first[i], i, -1.0);
                first[i] += 1;
            }
            end[(b + 1) * n + i] = if first[i] == before {
                let longer = if before < b {
                    end[b * n + i]
                } else {
                    f64::INFINITY
                };
                cost[b * n + i] + start[b * n + i].min(longer)
            } else {
                let (mut sum, mut best) = (0.0, f64::INFINITY);
                for j in (first[i]..=b).rev() {
                    sum += cost[j * n + i];
                    best = best.min(sum + start[j * n + i]);
                }
                best
            };
        }
        if b + 1 == l {
            break;
        }
        let crossings = Crossings::new(dense, chain, prices, b + 1);
        let ends = &end[(b + 1) * n..(b + 2) * n];
        let arrivals = &mut start[(b + 1) * n..(b + 2) * n];
        for (i, &so_far) in ends.iter().enumerate() {
            if so_far == f64::INFINITY || so_far + rest(b + 1, i) > cutoff {
                continue;
            }
            crossings.row(i, |to, c| {
                let v = so_far + c;
                arrivals[to] = if v < arrivals[to] { v } else { arrivals[to] };
            });
        }
    }
    let best = end[l * n..].iter().copied().fold(f64::INFINITY, f64::min);
    Some(Table { start, end, best })
}

/// The path of [`backward`]'s best chain, a node per block; `None` if there is none.
pub(super) fn trace_backward(
    dense: &Dense,
    k: usize,
    cost: &[f64],
    prices: &Prices,
    table: &Table,
) -> Option<Vec<usize>> {
    let (chain, n) = (&dense.chains[k], dense.n);
    let mut path = Vec::with_capacity(chain.l);
    let mut at = chain.entry;
    while path.len() < chain.l {
        let b = path.len();
        let target = (0..n)
            .filter(|to| b == 0 || *to != at)
            .map(|to| {
                let arrive = priced_crossing(dense, chain, prices, b, at, to);
                (arrive + table.start[b * n + to], to)
            })
            .min_by(|x, y| x.0.total_cmp(&y.0))
            .filter(|(v, _)| *v < f64::INFINITY)?
            .1;
        let stop = best_stop(dense, chain, cost, table, b, target)?;
        path.resize(stop, target);
        at = target;
    }
    Some(path)
}

/// Where the best stretch from `b` on node `i` ends.
fn best_stop(
    dense: &Dense,
    chain: &Chain,
    cost: &[f64],
    table: &Table,
    b: usize,
    i: usize,
) -> Option<usize> {
    let n = dense.n;
    let mut window = Window::new(n);
    let (mut sum, mut best) = (0.0, (f64::INFINITY, None));
    for j in b..chain.l {
        if cost[j * n + i] == f64::INFINITY {
            break;
        }
        window.add(dense, chain, j, i, 1.0);
        if !window.fits(dense, chain, i) {
            break;
        }
        sum += cost[j * n + i];
        let v = sum + table.end[(j + 1) * n + i];
        if v < best.0 {
            best = (v, Some(j + 1));
        }
    }
    best.1
}

/// The path of [`forward`]'s best chain.
pub(super) fn trace_forward(
    dense: &Dense,
    k: usize,
    cost: &[f64],
    prices: &Prices,
    table: &Table,
) -> Option<Vec<usize>> {
    let (chain, n) = (&dense.chains[k], dense.n);
    let mut path = vec![0; chain.l];
    let mut stop = chain.l;
    let mut next: Option<usize> = None;
    while stop > 0 {
        let (_, node) = (0..n)
            .filter(|i| next != Some(*i))
            .map(|i| {
                let leave =
                    next.map_or(0.0, |to| priced_crossing(dense, chain, prices, stop, i, to));
                (table.end[stop * n + i] + leave, i)
            })
            .min_by(|x, y| x.0.total_cmp(&y.0))
            .filter(|(v, _)| *v < f64::INFINITY)?;
        let mut window = Window::new(n);
        let (mut sum, mut best) = (0.0, (f64::INFINITY, None));
        for j in (0..stop).rev() {
            if cost[j * n + node] == f64::INFINITY {
                break;
            }
            window.add(dense, chain, j, node, 1.0);
            if !window.fits(dense, chain, node) {
                break;
            }
            sum += cost[j * n + node];
            let v = sum + table.start[j * n + node];
            if v < best.0 {
                best = (v, Some(j));
            }
        }
        let from = best.1?;
        path[from..stop].fill(node);
        stop = from;
        next = Some(node);
    }
    Some(path)
}

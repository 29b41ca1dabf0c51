//! Labels from both ends of a chain that meet in the middle (bidirectional
//! dynamic programming: Righini and Salani, "Symmetry helps: bounded
//! bi-directional dynamic programming for the elementary shortest path problem
//! with resource constraints", 2006; where they meet follows from how many there
//! are, as in Tilk et al., "Asymmetry matters", 2017).
//!
//! Use is counted in units of a capacity and rounded down, so that labels are
//! compared fast, and links are left to their prices. So the search solves a
//! relaxation; if its best placement respects the true limits, it is the optimum.

mod layer;
mod packed;
mod pairs;

use super::tables::{Prices, Table, backward, forward, priced};
use crate::dense::{COMPUTE, Chain, Dense, KINDS};
use crate::limits::Ctx;
use layer::{Label, Layer};
use packed::{FULL, LANES, Packed, rounded_down, rounded_up};
use pairs::{Pair, Tree};

/// Most labels that a new one is compared with at one place.
const MOST_COMPARED: usize = 32;
/// How far above the bound the first try searches, as a share of it.
const FIRST_STEP: f64 = 0.002;
/// A try with fewer labels than this costs next to nothing.
const FEW: u64 = 500;
/// Pairs of branches considered per allowed label.
const PATIENCE: u64 = 8;

/// Cost and a node per block.
type Found = (f64, Vec<usize>);

/// The input of the search.
pub(super) struct Hunt<'a> {
    /// A problem of one chain without budgets.
    pub dense: &'a Dense,
    /// Prices for the bounds of labels.
    pub prices: &'a Prices,
    /// No placement costs less.
    pub bound: f64,
    /// Only cheaper placements are wanted.
    pub cutoff: f64,
    /// Most labels.
    pub max_labels: u64,
    /// Limits.
    pub ctx: &'a Ctx,
}

/// The result.
pub(super) struct Caught {
    /// The cheapest placement below the cutoff, which links or rounding may still forbid.
    pub best: Option<Found>,
    /// No placement costs less.
    pub bound: f64,
    /// Whether the search was completed.
    pub complete: bool,
    /// Labels made.
    pub labels: u64,
}

impl Hunt<'_> {
    /// Searches closely above the bound first, then further and further: the number of labels grows
    /// fast with that.
    pub(super) fn run(&self) -> Caught {
        let lanes = lanes(self.dense);
        match lanes.len().div_ceil(LANES) {
            0..=2 => self.deepen::<2>(&lanes),
            3..=4 => self.deepen::<4>(&lanes),
            5..=6 => self.deepen::<6>(&lanes),
            7..=10 => self.deepen::<10>(&lanes),
            11..=24 => self.deepen::<24>(&lanes),
            // With this many, comparisons are no longer fast.
            _ => self.nothing(),
        }
    }

    const fn nothing(&self) -> Caught {
        Caught {
            best: None,
            bound: self.bound,
            complete: false,
            labels: 0,
        }
    }

    fn deepen<const W: usize>(&self, lanes: &[Lane]) -> Caught {
        let mut caught = self.nothing();
        let Some(halves) = Halves::<W>::new(lanes, self) else {
            return caught;
        };
        let mut step = (FIRST_STEP * self.bound.abs()).min((self.cutoff - self.bound) / 4.0);
        let (mut before, mut is_last) = (0, false);
        while !is_last {
            // Steps beyond any sense: there may be nothing to find.
            is_last =
                step <= 0.0 || step > self.bound.abs() || caught.bound + step * 1.5 >= self.cutoff;
            let cutoff = if is_last {
                self.cutoff
            } else {
                caught.bound + step
            };
            let mut tried = Tried {
                labels: 0,
                most: self.max_labels.saturating_sub(caught.labels),
            };
            let best = halves.search(cutoff, &mut tried);
            caught.labels += tried.labels;
            let Some(best) = best else {
                return caught;
            };
            caught.bound = best.as_ref().map_or(cutoff, |b| b.0);
            caught.complete = is_last || best.is_some();
            if best.is_some() {
                caught.best = best;
                break;
            }
            if tried.labels < (2 * before).max(FEW) {
                step *= 2.0;
            }
            before = tried.labels;
        }
        caught
    }
}

/// Labels of one try, and their limit.
struct Tried {
    labels: u64,
    most: u64,
}

/// A capacity that can run short.
struct Lane {
    kind: usize,
    node: usize,
    capacity: f64,
}

fn lanes(dense: &Dense) -> Vec<Lane> {
    let chain = &dense.chains[0];
    let mut lanes = Vec::new();
    for node in 0..dense.n {
        for kind in (0..KINDS).filter(|kind| !chain.need[*kind].is_empty()) {
            let capacity = dense.room(chain, kind, node);
            let short = chain.total_need(kind, node, dense.n) > capacity;
            // Without any capacity, blocks that need it are ruled out one by one.
            if short && capacity > 0.0 {
                lanes.push(Lane {
                    kind,
                    node,
                    capacity,
                });
            }
        }
    }
    lanes
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Head,
    Tail,
}

/// What prices imply for the cost on the other side.
struct Bound {
    before: Table,
    after: Table,
    lanes: Vec<Priced>,
    /// What the prices give back besides lanes.
    elsewhere: f64,
}

/// A lane with a price.
struct Priced {
    lane: usize,
    price: f64,
    capacity: f64,
    /// Most that the blocks before each boundary can use, and those after it.
    past: Vec<f64>,
    future: Vec<f64>,
}

impl Priced {
    /// Most that the price gives back.
    fn given_back(&self, units: u64, other_side: f64) -> f64 {
        let used = units as f64 / FULL as f64 * self.capacity;
        self.price * (self.capacity - used).max(0.0).min(other_side)
    }
}

/// Cost limits of a label at one place.
struct Limit<'a> {
    /// If prices give nothing back.
    least: f64,
    /// If they give back the most.
    most: f64,
    /// Priced lanes with what the other side can use of them.
    lanes: Vec<(&'a Priced, f64)>,
}

impl Limit<'_> {
    #[inline]
    fn allows<const W: usize>(&self, cost: f64, used: &Packed<W>) -> bool {
        if cost < self.least {
            return true;
        }
        let given = self.lanes.iter().map(|(priced, other_side)| {
            let units = used.get(priced.lane);
            priced.given_back(units, *other_side)
        });
        cost - given.sum::<f64>() < self.least
    }
}

/// The problem as both sides see it.
struct Halves<'a, const W: usize> {
    dense: &'a Dense,
    chain: &'a Chain,
    /// Cost of each block, infinite if it does not fit even alone.
    cost: Vec<f64>,
    bound: Bound,
    /// Use by a block on a node.
    need: Vec<Packed<W>>,
    /// Use of the previous node by a cut before a block.
    cut: Vec<Packed<W>>,
    /// Most that the blocks before each boundary can use, and those after it.
    past: Vec<Packed<W>>,
    future: Vec<Packed<W>>,
    ctx: &'a Ctx,
}

impl<'a, const W: usize> Halves<'a, W> {
    /// `None` if the limits were reached.
    fn new(lanes: &[Lane], hunt: &Hunt<'a>) -> Option<Self> {
        let Hunt {
            dense, prices, ctx, ..
        } = *hunt;
        let chain = &dense.chains[0];
        let (n, l) = (dense.n, chain.l);
        let with_prices = priced(dense, 0, prices);
        let everything = |_, _| 0.0;
        let bound = Bound {
            after: backward(dense, 0, &with_prices, prices, ctx)?,
            before: forward(
                dense,
                0,
                &with_prices,
                prices,
                f64::INFINITY,
                everything,
                ctx,
            )?,
            lanes: Vec::new(),
            elsewhere: prices.spent(dense),
        };
        let able = chain.cost.iter().zip(&with_prices);
        let mut halves = Self {
            dense,
            chain,
            cost: able
                .map(|(c, p)| if p.is_finite() { *c } else { f64::INFINITY })
                .collect(),
            bound,
            need: vec![Packed::NOTHING; l * n],
            cut: vec![Packed::NOTHING; l * n],
            past: vec![Packed::NOTHING; l + 1],
            future: vec![Packed::NOTHING; l + 1],
            ctx,
        };
        for (z, lane) in lanes.iter().enumerate() {
            let price = prices.of(lane.kind, 0, lane.node, n);
            halves.set_lane(z, lane, price);
        }
        Some(halves)
    }

    fn set_lane(&mut self, z: usize, lane: &Lane, price: f64) {
        let (chain, n) = (self.chain, self.dense.n);
        let (l, capacity) = (chain.l, lane.capacity);
        let (mut past, mut future) = (vec![0.0; l + 1], vec![0.0; l + 1]);
        for b in 0..l {
            let at = b * n + lane.node;
            let need = chain.need[lane.kind][at];
            self.need[at].set(z, rounded_down(need, capacity));
            if self.cost[at] < f64::INFINITY {
                past[b + 1] += need;
                future[b] += need;
            }
            if lane.kind == COMPUTE && !chain.cut_load.is_empty() {
                let cut = chain.cut_load[at];
                self.cut[at].set(z, rounded_down(cut, capacity));
                // At its boundary it counts on either side: more than possible.
                past[b] += cut;
                future[b] += cut;
            }
        }
        for b in 0..l {
            past[b + 1] += past[b];
            future[l - 1 - b] += future[l - b];
        }
        for b in 0..=l {
            self.past[b].set(z, rounded_up(past[b], capacity));
            self.future[b].set(z, rounded_up(future[b], capacity));
        }
        if price > 0.0 {
            self.bound.elsewhere -= price * capacity;
            self.bound.lanes.push(Priced {
                lane: z,
                price,
                capacity,
                past,
                future,
            });
        }
    }

    /// The cheapest placement below `cutoff`, if there is one; the outer `None` if the limits were
    /// reached.
    fn search(&self, cutoff: f64, tried: &mut Tried) -> Option<Option<Found>> {
        let l = self.chain.l;
        let (mut heads, mut tails) = (vec![self.first()], vec![self.last()]);
        while heads.len() + tails.len() <= l {
            let (head, tail) = (&heads[heads.len() - 1], &tails[tails.len() - 1]);
            if head.labels.len() <= tail.labels.len() {
                let grown = self.grow(head, heads.len(), Side::Head, cutoff, tried)?;
                heads.push(grown);
            } else {
                let grown = self.grow(tail, l - tails.len(), Side::Tail, cutoff, tried)?;
                tails.push(grown);
            }
        }
        self.join(&heads, &tails, cutoff, tried)
    }

    /// The first block on each node.
    fn first(&self) -> Layer<W> {
        let entry = self.chain.entry;
        let mut layer = Layer::empty();
        for i in 0..self.dense.n {
            let cost = self.cost[i] + self.dense.crossing(self.chain, 0, entry, i);
            let mut used = self.need[i];
            if i != entry {
                used = used.plus(&self.cut[entry]);
            }
            if cost < f64::INFINITY && used.fits() {
                layer.labels.push(Label {
                    cost,
                    used,
                    parent: 0,
                });
            }
            layer.first.push(layer.labels.len());
        }
        layer
    }

    /// Nothing after the last block, on each node.
    fn last(&self) -> Layer<W> {
        let mut layer = Layer::empty();
        for i in 0..self.dense.n {
            if self.cost[(self.chain.l - 1) * self.dense.n + i] < f64::INFINITY {
                layer.labels.push(Label {
                    cost: 0.0,
                    used: Packed::NOTHING,
                    parent: 0,
                });
            }
            layer.first.push(layer.labels.len());
        }
        layer
    }

    /// Adds block `b` to the heads or tails of a layer.
    fn grow(
        &self,
        layer: &Layer<W>,
        b: usize,
        side: Side,
        cutoff: f64,
        tried: &mut Tried,
    ) -> Option<Layer<W>> {
        let (chain, n) = (self.chain, self.dense.n);
        let (edge, boundary, free) = match side {
            Side::Head => (b, b + 1, &self.future[b + 1]),
            Side::Tail => (b - 1, b, &self.past[b]),
        };
        let (mut grown, mut row) = (Layer::empty(), Vec::new());
        for node in 0..n {
            if self.ctx.expired() {
                return None;
            }
            row.clear();
            let limit = self.limit(boundary, node, side, cutoff);
            let possible =
                self.cost[edge * n + node] < f64::INFINITY && limit.least > f64::NEG_INFINITY;
            for other in (0..n).filter(|i| possible && !layer.of(*i).is_empty()) {
                let (from, to) = match side {
                    Side::Head => (other, node),
                    Side::Tail => (node, other),
                };
                let mut used = self.need[b * n + to];
                if from != to {
                    used = used.plus(&self.cut[b * n + from]);
                }
                let step = Label {
                    cost: self.cost[b * n + to] + self.dense.crossing(chain, b, from, to),
                    used,
                    parent: layer.first[other] as u32,
                };
                extend(layer.of(other), &step, &limit, free, &mut row);
            }
            reduce(&mut row, &mut grown.labels);
            grown.first.push(grown.labels.len());
            if tried.labels + grown.labels.len() as u64 > tried.most {
                tried.labels = tried.most;
                return None;
            }
        }
        tried.labels += grown.labels.len() as u64;
        Some(grown)
    }

    fn limit(&self, boundary: usize, node: usize, side: Side, cutoff: f64) -> Limit<'_> {
        let (bound, at) = (&self.bound, boundary * self.dense.n + node);
        let rest = match side {
            Side::Head => bound.after.start[at].min(bound.after.end[at]),
            Side::Tail => bound.before.end[at],
        };
        let lanes = bound.lanes.iter().map(|priced| match side {
            Side::Head => (priced, priced.future[boundary]),
            Side::Tail => (priced, priced.past[boundary]),
        });
        let lanes: Vec<(&Priced, f64)> = lanes.collect();
        let given = lanes
            .iter()
            .map(|(p, other_side)| p.given_back(0, *other_side));
        let given: f64 = given.sum();
        let least = cutoff + bound.elsewhere - rest;
        Limit {
            least,
            most: least + given,
            lanes,
        }
    }

    /// The cheapest pair of a head and a tail, as a path.
    fn join(
        &self,
        heads: &[Layer<W>],
        tails: &[Layer<W>],
        cutoff: f64,
        tried: &Tried,
    ) -> Option<Option<Found>> {
        let (head, tail) = (&heads[heads.len() - 1], &tails[tails.len() - 1]);
        let mut pair = Pair {
            cost: cutoff,
            labels: None,
            patience: tried.most.saturating_mul(PATIENCE),
            ctx: self.ctx,
        };
        for i in 0..self.dense.n {
            if let (Some(ahead), Some(behind)) = (Tree::new(head, i), Tree::new(tail, i)) {
                pair.find(&ahead, &behind)?;
            }
        }
        let Some((mut x, mut y)) = pair.labels else {
            return Some(None);
        };
        let mut path = vec![0; self.chain.l];
        for (layer, node) in heads.iter().zip(&mut path).rev() {
            *node = layer.node_of(x);
            x = layer.labels[x].parent as usize;
        }
        for (layers, node) in tails.windows(2).rev().zip(&mut path[heads.len()..]) {
            y = layers[1].labels[y].parent as usize;
            *node = layers[0].node_of(y);
        }
        Some(Some((pair.cost, path)))
    }
}

/// Adds a step to the labels of a node, within the limit.
fn extend<const W: usize>(
    labels: &[Label<W>],
    step: &Label<W>,
    limit: &Limit<'_>,
    free: &Packed<W>,
    row: &mut Vec<Label<W>>,
) {
    for (label, parent) in labels.iter().zip(step.parent..) {
        let cost = label.cost + step.cost;
        // Neither too expensive nor an impossible step, which may be NaN.
        if !(cost < limit.most && cost < f64::INFINITY) {
            break;
        }
        let used = label.used.plus(&step.used);
        if used.fits() && limit.allows(cost, &used) {
            row.push(Label {
                cost,
                used: used.without_ample(free),
                parent,
            });
        }
    }
}

/// Adds the non-dominated labels of `row`, by cost.
fn reduce<const W: usize>(row: &mut [Label<W>], labels: &mut Vec<Label<W>>) {
    row.sort_unstable_by(|a, b| a.cost.total_cmp(&b.cost));
    let mut rivals: Vec<Packed<W>> = Vec::new();
    for new in row.iter() {
        match rivals.iter().position(|used| used.is_within(&new.used)) {
            // What dominates once is likely to dominate again: try it first.
            Some(z) => rivals.swap(z, z / 2),
            None => {
                labels.push(*new);
                if rivals.len() < MOST_COMPARED {
                    rivals.push(new.used);
                }
            }
        }
    }
}

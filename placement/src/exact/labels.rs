//! Labels: partial placements grown stretch by stretch, with the capacity they have used. A* over
//! them with dominance proves the optimum; a beam over them finds good placements fast.

use super::resources::{Resources, Usage};
use super::tables::{Prices, Table};
use crate::dense::{COMPUTE, Dense, MAX_BUDGETS};
use crate::limits::Ctx;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Most labels that a new one is compared with at one place; more would cost more than they save.
const MAX_COMPARED: usize = 512;
/// Least relative improvement.
pub(super) const IMPROVEMENT: f64 = 1e-9;
const NONE: u32 = u32::MAX;

/// Receives a grown label and what it uses.
type Sink<'s, const B: usize> = dyn FnMut(Label<B>, &[(u32, f64)]) + 's;

/// A charge per budget. Without budgets it takes no memory: labels are read far more often than
/// anything else here.
type Spent<const B: usize> = [f64; B];

/// The least that a budget will still be charged.
pub(super) struct Ahead {
    /// Cost-to-go of each chain, as the budget counts it.
    tables: Vec<Table>,
    /// Least that all chains after chain `k` add; 0 if each has its own.
    rest: Vec<f64>,
}

impl Ahead {
    pub(super) fn new(tables: Vec<Table>, total: bool) -> Self {
        let mut rest = vec![0.0; tables.len() + 1];
        if total {
            for k in (0..tables.len()).rev() {
                rest[k] = rest[k + 1] + tables[k].best;
            }
        }
        Self { tables, rest }
    }

    /// Restricted to the remaining nodes of `n`.
    pub(super) fn restrict(&self, n: usize, ids: &[usize]) -> Self {
        Self {
            tables: self.tables.iter().map(|t| t.restrict(n, ids)).collect(),
            rest: self.rest.clone(),
        }
    }
}

fn no_more<const B: usize>(a: &Spent<B>, b: &Spent<B>) -> bool {
    a.iter().zip(b).all(|(a, b)| a <= b)
}

/// A placement of the first `at` blocks.
#[derive(Debug, Clone, Copy)]
struct Label<const B: usize> {
    cost: f64,
    /// The charge of each budget; for a budget per chain, that of the current chain.
    spent: Spent<B>,
    /// Lower bound of every placement that it can grow into.
    bound: f64,
    /// Blocks placed, over all chains.
    at: u32,
    /// Node of the last stretch; [`NONE`] between chains.
    node: u32,
    /// Node of the last stretch, also kept between chains.
    placed_on: u32,
    parent: u32,
    usage: (u32, u32),
    mask: u128,
}

struct Entry {
    bound: f64,
    at: u32,
    id: u32,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The smallest bound first, then the longest label, then the newest.
    fn cmp(&self, other: &Self) -> Ordering {
        other
            .bound
            .total_cmp(&self.bound)
            .then(self.at.cmp(&other.at))
            .then(self.id.cmp(&other.id))
    }
}

/// The result of a search.
pub(super) struct Found {
    /// Cost and path better than the cutoff, if any.
    pub best: Option<(f64, Vec<usize>)>,
    /// Proved: no placement costs less than the smaller of this and `best`.
    pub bound: f64,
    /// Whether nothing is left to search.
    pub complete: bool,
    /// Labels made.
    pub labels: u64,
}

/// One search: a compiled problem with prices and cost-to-go tables.
pub(super) struct Search<'a> {
    dense: &'a Dense,
    tables: &'a [Table],
    ahead: &'a [Ahead],
    /// Priced cost of all chains after chain `k`.
    rest: Vec<f64>,
    resources: Resources<'a>,
    /// First block of each chain over all, and the total.
    offset: Vec<usize>,
    chain_of: Vec<usize>,
    total: usize,
    /// Stop at the first placement.
    any: bool,
}

/// Reused buffers for growing a label.
struct Room {
    used: Usage,
    kept: Vec<(u32, f64)>,
}

/// The data that dominance compares, contiguous in memory.
#[derive(Clone, Copy)]
struct Rival<const B: usize> {
    cost: f64,
    spent: Spent<B>,
    mask: u128,
    id: u32,
    usage: (u32, u32),
}

struct Store<const B: usize> {
    labels: Vec<Label<B>>,
    arena: Vec<(u32, f64)>,
}

impl<const B: usize> Store<B> {
    const fn new() -> Self {
        Self {
            labels: Vec::new(),
            arena: Vec::new(),
        }
    }

    fn usage(&self, label: &Label<B>) -> &[(u32, f64)] {
        &self.arena[label.usage.0 as usize..label.usage.1 as usize]
    }

    fn push(&mut self, mut label: Label<B>, usage: &[(u32, f64)]) -> u32 {
        let from = self.arena.len() as u32;
        self.arena.extend_from_slice(usage);
        label.usage = (from, self.arena.len() as u32);
        label.mask = mask(usage);
        self.labels.push(label);
        (self.labels.len() - 1) as u32
    }

    fn path(&self, mut id: u32, total: usize) -> Vec<usize> {
        let mut path = vec![0; total];
        loop {
            let label = &self.labels[id as usize];
            if label.parent == NONE {
                return path;
            }
            let from = self.labels[label.parent as usize].at as usize;
            path[from..label.at as usize].fill(label.placed_on as usize);
            id = label.parent;
        }
    }
}

fn mask(usage: &[(u32, f64)]) -> u128 {
    usage.iter().fold(0, |m, (r, _)| m | 1u128 << (r & 127))
}

/// Whether `a` uses no more of anything than `b`; both sorted.
fn uses_no_more(a: &[(u32, f64)], b: &[(u32, f64)]) -> bool {
    let mut b = b.iter();
    a.iter().all(|(r, used)| {
        b.by_ref()
            .find(|(q, _)| q >= r)
            .is_some_and(|(q, there)| q == r && *there >= used - 1e-12)
    })
}

impl<'a> Search<'a> {
    pub(super) fn new(
        dense: &'a Dense,
        prices: &'a Prices,
        tables: &'a [Table],
        ahead: &'a [Ahead],
        any: bool,
    ) -> Self {
        let mut offset = vec![0];
        let mut chain_of = Vec::new();
        for (k, chain) in dense.chains.iter().enumerate() {
            offset.push(offset[k] + chain.l);
            chain_of.extend(std::iter::repeat_n(k, chain.l));
        }
        let mut rest = vec![0.0; dense.chains.len() + 1];
        for k in (0..dense.chains.len()).rev() {
            rest[k] = rest[k + 1] + tables[k].best;
        }
        let total = chain_of.len();
        chain_of.push(dense.chains.len());
        Self {
            dense,
            tables,
            ahead,
            rest,
            resources: Resources::new(dense, prices, tables),
            offset,
            chain_of,
            total,
            any,
        }
    }

    fn root<const B: usize>(&self) -> Label<B> {
        Label {
            cost: 0.0,
            spent: [0.0; B],
            bound: self.rest[0] - self.resources.credit(0, &[]),
            at: 0,
            node: NONE,
            placed_on: NONE,
            parent: NONE,
            usage: (0, 0),
            mask: 0,
        }
    }

    /// Every way to grow a label by one stretch that may still beat `cutoff`.
    fn grow<const B: usize>(
        &self,
        label: &Label<B>,
        usage: &[(u32, f64)],
        cutoff: f64,
        sink: &mut Sink<'_, B>,
    ) {
        let (dense, n) = (self.dense, self.dense.n);
        let at = label.at as usize;
        let k = self.chain_of[at];
        let (chain, table) = (&dense.chains[k], &self.tables[k]);
        let b = at - self.offset[k];
        let fresh = label.node == NONE;
        let from = if fresh {
            chain.entry
        } else {
            label.node as usize
        };
        let mut base = Usage::new(usage);
        if !fresh && !chain.cut_load.is_empty() {
            base.add(
                self.resources.id(COMPUTE, from),
                chain.cut_load[b * n + from],
            );
            if !self.resources.fits(k, &base) {
                return;
            }
        }
        let credit = self.resources.credit(at, usage);
        let mut room = Room {
            used: base.clone(),
            kept: Vec::new(),
        };
        for to in (0..n).filter(|to| fresh || *to != from) {
            let crossing = dense.crossing(chain, b, from, to);
            let ahead = table.start[b * n + to] + self.rest[k + 1];
            // Prices of the crossing are part of the true bound; without them it is weaker but
            // still valid.
            let hopeless = label.cost + crossing + ahead - credit >= cutoff;
            if hopeless || crossing + ahead == f64::INFINITY {
                continue;
            }
            room.used.copy(&base);
            if from != to {
                self.resources.cross(&mut room.used, k, b, from, to);
                if !self.resources.fits(k, &room.used) {
                    continue;
                }
            }
            let mut start = Label {
                cost: label.cost + crossing,
                ..*label
            };
            for (spent, budget) in start.spent.iter_mut().zip(&dense.budgets) {
                *spent += dense.toll(chain, &budget.measures[k].toll, b, from, to);
            }
            self.stretches(k, b, to, start, &mut room, cutoff, sink);
        }
    }

    /// Charges block `j` of chain `k` on a node to every budget. Returns whether the stretch may
    /// continue, and whether it may end here.
    fn charge<const B: usize>(
        &self,
        k: usize,
        j: usize,
        node: usize,
        spent: &mut Spent<B>,
    ) -> (bool, bool) {
        let (dense, at) = (self.dense, j * self.dense.n + node);
        let ended = j + 1 == dense.chains[k].l;
        let (mut on, mut end) = (true, true);
        for ((spent, budget), ahead) in spent.iter_mut().zip(&dense.budgets).zip(self.ahead) {
            *spent += budget.measures[k].cost[at];
            let fastest = &ahead.tables[k];
            let next = at + dense.n;
            let leaving = if ended { 0.0 } else { fastest.end[next] };
            let sure = *spent + ahead.rest[k + 1];
            let limit = budget.limits[k];
            on &= sure + leaving.min(fastest.start[next]) <= limit;
            end &= sure + leaving <= limit;
        }
        (on, end)
    }

    /// Stretches of chain `k` from block `b` on a node, one label each.
    #[allow(clippy::too_many_arguments)] // they are one state, taken apart for speed
    fn stretches<const B: usize>(
        &self,
        k: usize,
        b: usize,
        node: usize,
        mut grown: Label<B>,
        room: &mut Room,
        cutoff: f64,
        sink: &mut Sink<'_, B>,
    ) {
        let (dense, n) = (self.dense, self.dense.n);
        let (chain, table) = (&dense.chains[k], &self.tables[k]);
        let Room { used, kept } = room;
        grown.placed_on = node as u32;
        for j in b..chain.l {
            let cost = chain.cost[j * n + node];
            if cost == f64::INFINITY {
                return;
            }
            self.resources.hold(used, k, j, node);
            if !self.resources.fits_at(k, node, used) {
                return;
            }
            grown.cost += cost;
            let ended = j + 1 == chain.l;
            if B > 0 {
                let (on, end) = self.charge(k, j, node, &mut grown.spent);
                if !on {
                    return;
                }
                if !end {
                    continue;
                }
            }
            let at = self.offset[k] + j + 1;
            grown.at = at as u32;
            grown.node = if ended { NONE } else { node as u32 };
            let to_go = if ended {
                0.0
            } else {
                table.end[(j + 1) * n + node]
            };
            if to_go == f64::INFINITY {
                continue;
            }
            self.resources.keep(at, k, used, ended, kept);
            grown.bound = grown.cost + to_go + self.rest[k + 1] - self.resources.credit(at, kept);
            if grown.bound < cutoff {
                let mut label = grown;
                if ended {
                    for (spent, _) in label
                        .spent
                        .iter_mut()
                        .zip(&dense.budgets)
                        .filter(|(_, b)| !b.total)
                    {
                        *spent = 0.0;
                    }
                }
                sink(label, kept);
            }
        }
    }

    /// Grows the `width` best labels of each length; finds good placements,
    /// proves nothing.
    pub(super) fn beam(&self, width: usize, cutoff: f64, ctx: &Ctx) -> Found {
        if self.dense.budgets.is_empty() {
            self.beam_within::<0>(width, cutoff, ctx)
        } else {
            self.beam_within::<MAX_BUDGETS>(width, cutoff, ctx)
        }
    }

    fn beam_within<const B: usize>(&self, width: usize, cutoff: f64, ctx: &Ctx) -> Found {
        let mut store = Store::<B>::new();
        let root = store.push(self.root(), &[]);
        let mut layers: Vec<Vec<u32>> = vec![Vec::new(); self.total + 1];
        layers[0].push(root);
        let (mut cutoff, mut best) = (cutoff, None);
        for at in 0..self.total {
            if ctx.expired() {
                break;
            }
            let mut layer = std::mem::take(&mut layers[at]);
            layer.sort_by(|x, y| {
                let (x, y) = (&store.labels[*x as usize], &store.labels[*y as usize]);
                x.bound.total_cmp(&y.bound)
            });
            let kept = self.thin(&store, &layer, width, cutoff);
            for id in kept {
                let label = store.labels[id as usize];
                let usage = store.usage(&label).to_vec();
                let limit = cutoff;
                self.grow(&label, &usage, limit, &mut |mut grown, used| {
                    grown.parent = id;
                    let last = grown.at as usize == self.total;
                    if last && grown.cost >= cutoff {
                        return;
                    }
                    let new = store.push(grown, used);
                    if last {
                        cutoff = grown.cost;
                        best = Some(new);
                    } else {
                        layers[grown.at as usize].push(new);
                    }
                });
            }
        }
        Found {
            best: best.map(|id| (store.labels[id as usize].cost, store.path(id, self.total))),
            bound: f64::NEG_INFINITY,
            complete: false,
            labels: store.labels.len() as u64,
        }
    }

    /// The best of a layer, not all on one node and none dominated.
    fn thin<const B: usize>(
        &self,
        store: &Store<B>,
        layer: &[u32],
        width: usize,
        cutoff: f64,
    ) -> Vec<u32> {
        let mut kept: Vec<u32> = Vec::with_capacity(width);
        let per_node = width / 3 + 1;
        for &id in layer {
            let label = &store.labels[id as usize];
            if kept.len() >= width || label.bound >= cutoff {
                break;
            }
            let mut alike = 0;
            let dominated = kept.iter().any(|other| {
                let other = &store.labels[*other as usize];
                if other.node != label.node {
                    return false;
                }
                alike += 1;
                dominates(store, other, label)
            });
            if !dominated && alike < per_node {
                kept.push(id);
            }
        }
        kept
    }

    /// Grows the label with the smallest bound until that bound proves the best placement found, or
    /// the limits are reached.
    pub(super) fn prove(&self, cutoff: f64, max_labels: u64, ctx: &Ctx) -> Found {
        if self.dense.budgets.is_empty() {
            self.prove_within::<0>(cutoff, max_labels, ctx)
        } else {
            self.prove_within::<MAX_BUDGETS>(cutoff, max_labels, ctx)
        }
    }

    fn prove_within<const B: usize>(&self, cutoff: f64, max_labels: u64, ctx: &Ctx) -> Found {
        let mut store = Store::<B>::new();
        let mut places: Vec<Vec<Rival<B>>> =
            vec![Vec::new(); (self.total + 1) * (self.dense.n + 1)];
        let mut dead: Vec<bool> = vec![false];
        let mut heap = BinaryHeap::new();
        let root = store.push(self.root(), &[]);
        heap.push(Entry {
            bound: store.labels[root as usize].bound,
            at: 0,
            id: root,
        });
        let (mut cutoff, mut best): (f64, Option<u32>) = (cutoff, None);
        let mut popped = 0u64;
        let mut bound = None;
        while let Some(Entry { bound: f, id, .. }) = heap.pop() {
            if f >= cutoff - IMPROVEMENT * cutoff.abs() || (self.any && best.is_some()) {
                break;
            }
            if dead[id as usize] {
                continue;
            }
            popped += 1;
            let stop = store.labels.len() as u64 > max_labels;
            if stop || (popped.is_multiple_of(128) && ctx.expired()) {
                bound = Some(f);
                break;
            }
            let label = store.labels[id as usize];
            let usage = store.usage(&label).to_vec();
            let limit = cutoff;
            self.grow(&label, &usage, limit, &mut |mut grown, used| {
                grown.parent = id;
                if grown.at as usize == self.total {
                    if grown.cost < cutoff {
                        cutoff = grown.cost;
                        best = Some(store.push(grown, used));
                        dead.push(false);
                    }
                    return;
                }
                grown.mask = mask(used);
                let node = if grown.node == NONE {
                    self.dense.n
                } else {
                    grown.node as usize
                };
                let place = &mut places[grown.at as usize * (self.dense.n + 1) + node];
                if !admit(&store, place, &mut dead, &grown, used) {
                    return;
                }
                let new = store.push(grown, used);
                dead.push(false);
                place.push(Rival {
                    cost: grown.cost,
                    spent: grown.spent,
                    mask: grown.mask,
                    id: new,
                    usage: store.labels[new as usize].usage,
                });
                heap.push(Entry {
                    bound: grown.bound,
                    at: grown.at,
                    id: new,
                });
            });
        }
        Found {
            best: best.map(|id| (store.labels[id as usize].cost, store.path(id, self.total))),
            bound: bound.unwrap_or(cutoff).min(cutoff),
            complete: bound.is_none(),
            labels: store.labels.len() as u64,
        }
    }
}

/// Whether `a`, at the same place, is at least as good as `b` in everything.
fn dominates<const B: usize>(store: &Store<B>, a: &Label<B>, b: &Label<B>) -> bool {
    a.cost <= b.cost
        && no_more(&a.spent, &b.spent)
        && a.mask & !b.mask == 0
        && uses_no_more(store.usage(a), store.usage(b))
}

/// Whether a new label is worth keeping at its place; those that it dominates are marked dead.
fn admit<const B: usize>(
    store: &Store<B>,
    place: &mut Vec<Rival<B>>,
    dead: &mut [bool],
    new: &Label<B>,
    used: &[(u32, f64)],
) -> bool {
    let usage = |old: &Rival<B>| &store.arena[old.usage.0 as usize..old.usage.1 as usize];
    for z in 0..place.len().min(MAX_COMPARED) {
        let old = &place[z];
        if old.cost <= new.cost
            && no_more(&old.spent, &new.spent)
            && old.mask & !new.mask == 0
            && uses_no_more(usage(old), used)
        {
            // What dominates once is likely to dominate again: try it first.
            place.swap(z, z / 2);
            return false;
        }
    }
    let mut z = 0;
    while z < place.len().min(MAX_COMPARED) {
        let old = &place[z];
        if new.cost <= old.cost
            && no_more(&new.spent, &old.spent)
            && new.mask & !old.mask == 0
            && uses_no_more(used, usage(old))
        {
            dead[old.id as usize] = true;
            place.swap_remove(z);
        } else {
            z += 1;
        }
    }
    true
}

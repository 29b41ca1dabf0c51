//! All limited resources, numbered: what a label has used, what of that can still matter, and what
//! the prices give back.

use super::tables::{Prices, Table};
use crate::dense::{COMPUTE, Chain, Dense, KINDS, SLICES};

/// Nonzero usage by resource, sorted by number.
#[derive(Debug, Clone)]
pub(super) struct Usage(Vec<(u32, f64)>);

impl Usage {
    pub(super) fn new(usage: &[(u32, f64)]) -> Self {
        let mut all = Vec::with_capacity(usage.len() + KINDS + 2);
        all.extend_from_slice(usage);
        Self(all)
    }

    /// Becomes a copy of another, in its own memory.
    pub(super) fn copy(&mut self, other: &Self) {
        self.0.clear();
        self.0.extend_from_slice(&other.0);
    }

    pub(super) fn add(&mut self, resource: usize, amount: f64) {
        if amount <= 0.0 {
            return;
        }
        let resource = resource as u32;
        match self.0.binary_search_by_key(&resource, |u| u.0) {
            Ok(at) => self.0[at].1 += amount,
            Err(at) => self.0.insert(at, (resource, amount)),
        }
    }

    fn of(&self, resource: usize) -> f64 {
        let resource = resource as u32;
        self.0
            .binary_search_by_key(&resource, |u| u.0)
            .map_or(0.0, |at| self.0[at].1)
    }
}

/// The resources of one search. Numbers: kind × nodes + node, then the links that could be
/// overloaded.
pub(super) struct Resources<'a> {
    dense: &'a Dense,
    /// Kinds that count.
    kinds: Vec<usize>,
    /// Number of a link `[from][to]`, if it has one.
    link: Vec<Option<u32>>,
    links: Vec<usize>,
    count: usize,
    /// `[blocks placed][resource]`: most that can still be used.
    future: Vec<f64>,
    /// What the prices give back while nothing is used, by blocks placed.
    credit: Vec<f64>,
    chain_of: Vec<usize>,
    /// `[chain][resource]`.
    price: Vec<f64>,
    /// `[chain][resource]`.
    capacity: Vec<f64>,
}

impl<'a> Resources<'a> {
    pub(super) fn new(dense: &'a Dense, prices: &Prices, tables: &[Table]) -> Self {
        let n = dense.n;
        let total: usize = dense.chains.iter().map(|c| c.l).sum();
        let kinds: Vec<usize> = (0..KINDS)
            .filter(|kind| dense.chains.iter().any(|c| !c.need[*kind].is_empty()))
            .collect();
        let links = critical_links(dense);
        let mut link = vec![None; n * n];
        for (z, at) in links.iter().enumerate() {
            link[*at] = Some((KINDS * n + z) as u32);
        }
        let count = KINDS * n + links.len();
        let mut resources = Self {
            dense,
            kinds,
            link,
            links,
            count,
            future: vec![0.0; (total + 1) * count],
            credit: vec![0.0; total + 1],
            chain_of: Vec::new(),
            price: Vec::new(),
            capacity: Vec::new(),
        };
        resources.set_terms(prices);
        resources.set_future(tables, total);
        resources.set_credit(total);
        resources
    }

    /// Number of a kind on a node.
    #[inline]
    pub(super) const fn id(&self, kind: usize, node: usize) -> usize {
        kind * self.dense.n + node
    }

    fn set_future(&mut self, tables: &[Table], total: usize) {
        let (dense, n) = (self.dense, self.dense.n);
        let mut at = total;
        self.chain_of = vec![dense.chains.len(); total + 1];
        for (k, chain) in dense.chains.iter().enumerate().rev() {
            let link_future = self.link_future(chain);
            let after: Vec<f64> = self.future[at * self.count..(at + 1) * self.count].to_vec();
            for b in (0..chain.l).rev() {
                at -= 1;
                self.chain_of[at] = k;
                for &kind in &self.kinds {
                    for i in 0..n {
                        let alive = chain.cost[b * n + i] < f64::INFINITY
                            && tables[k].start[b * n + i] < f64::INFINITY;
                        let need = if alive && !chain.need[kind].is_empty() {
                            chain.need[kind][b * n + i]
                        } else {
                            0.0
                        };
                        let cut = if kind == COMPUTE && !chain.cut_load.is_empty() {
                            chain.cut_load[b * n + i]
                        } else {
                            0.0
                        };
                        let resource = kind * n + i;
                        // The slices of a chain are counted separately.
                        let later = if kind == SLICES && b + 1 == chain.l {
                            0.0
                        } else {
                            self.future[(at + 1) * self.count + resource]
                        };
                        self.future[at * self.count + resource] = later + need + cut;
                    }
                }
                for z in 0..self.links.len() {
                    let resource = KINDS * n + z;
                    self.future[at * self.count + resource] =
                        after[resource] + link_future[b * self.links.len() + z];
                }
            }
        }
    }

    /// Most that a chain can put on each critical link from block `b` on: `[block][link]`.
    fn link_future(&self, chain: &Chain) -> Vec<f64> {
        let count = self.links.len();
        let mut future = vec![0.0; chain.l * count];
        for (z, &at) in self.links.iter().enumerate() {
            most_on_link(self.dense, chain, at, |b, most| {
                future[b * count + z] = most;
            });
        }
        future
    }

    fn set_credit(&mut self, total: usize) {
        let chains = self.dense.chains.len();
        // What later chains' slices give back does not depend on the label.
        let mut later = vec![0.0; chains + 1];
        let mut first = total;
        for k in (0..chains).rev() {
            first -= self.dense.chains[k].l;
            later[k] = later[k + 1] + self.slices_credit(k, first);
        }
        for at in 0..total {
            let k = self.chain_of[at];
            let shared: f64 = (0..self.count)
                .filter(|r| self.kind(*r) != Some(SLICES))
                .map(|r| self.give_back(k, r, at, 0.0))
                .sum();
            self.credit[at] = shared + self.slices_credit(k, at) + later[k + 1];
        }
    }

    fn slices_credit(&self, k: usize, at: usize) -> f64 {
        (0..self.dense.n)
            .map(|i| self.give_back(k, self.id(SLICES, i), at, 0.0))
            .sum()
    }

    fn kind(&self, resource: usize) -> Option<usize> {
        Some(resource / self.dense.n).filter(|kind| *kind < KINDS)
    }

    /// Prices and capacities per chain: slices are limited for each chain.
    fn set_terms(&mut self, prices: &Prices) {
        let (dense, n) = (self.dense, self.dense.n);
        for (k, chain) in dense.chains.iter().enumerate() {
            for kind in 0..KINDS {
                for i in 0..n {
                    self.price.push(prices.of(kind, k, i, n));
                    self.capacity.push(dense.room(chain, kind, i));
                }
            }
            for at in &self.links {
                self.price
                    .push(prices.link.get(*at).copied().unwrap_or(0.0));
                self.capacity.push(dense.link_capacity);
            }
        }
    }

    #[inline]
    fn capacity(&self, k: usize, resource: usize) -> f64 {
        self.capacity[k * self.count + resource]
    }

    /// Price times the most that can still be used of a resource.
    fn give_back(&self, k: usize, resource: usize, at: usize, used: f64) -> f64 {
        let price = self.price[k * self.count + resource];
        if price <= 0.0 {
            return 0.0;
        }
        let left = (self.capacity(k, resource) - used).max(0.0);
        price * left.min(self.future[at * self.count + resource])
    }

    /// What must be subtracted from a priced cost-to-go, for prices on future use, to make it a
    /// bound on the true cost.
    pub(super) fn credit(&self, at: usize, usage: &[(u32, f64)]) -> f64 {
        let k = self.chain_of[at];
        if k == self.dense.chains.len() {
            return 0.0;
        }
        let used: f64 = usage
            .iter()
            .map(|(r, used)| {
                let r = *r as usize;
                self.give_back(k, r, at, *used) - self.give_back(k, r, at, 0.0)
            })
            .sum();
        self.credit[at] + used
    }

    /// Adds a block's need on its node.
    pub(super) fn hold(&self, used: &mut Usage, k: usize, b: usize, node: usize) {
        let chain = &self.dense.chains[k];
        for &kind in &self.kinds {
            if !chain.need[kind].is_empty() {
                used.add(
                    self.id(kind, node),
                    chain.need[kind][b * self.dense.n + node],
                );
            }
        }
    }

    /// Adds a crossing's load on its links.
    pub(super) fn cross(&self, used: &mut Usage, k: usize, b: usize, from: usize, to: usize) {
        let n = self.dense.n;
        let (forth, back) = load(self.dense, &self.dense.chains[k], b, from, to);
        if let Some(id) = self.link[from * n + to] {
            used.add(id as usize, forth);
        }
        if let Some(id) = self.link[to * n + from] {
            used.add(id as usize, back);
        }
    }

    /// Whether no resource is overdrawn.
    pub(super) fn fits(&self, k: usize, used: &Usage) -> bool {
        used.0
            .iter()
            .all(|(r, u)| *u <= self.capacity(k, *r as usize))
    }

    /// Whether nothing on this node is overdrawn.
    pub(super) fn fits_at(&self, k: usize, node: usize, used: &Usage) -> bool {
        self.kinds.iter().all(|kind| {
            let r = self.id(*kind, node);
            used.of(r) <= self.capacity(k, r)
        })
    }

    /// The used resources that can still make a difference once `at` blocks are placed.
    pub(super) fn keep(
        &self,
        at: usize,
        k: usize,
        used: &Usage,
        ended: bool,
        kept: &mut Vec<(u32, f64)>,
    ) {
        kept.clear();
        kept.extend(used.0.iter().filter(|(r, u)| {
            let r = *r as usize;
            let own = ended && self.kind(r) == Some(SLICES);
            !own && u + self.future[at * self.count + r] > self.capacity(k, r)
        }));
    }
}

/// Load that a crossing puts on `from→to` and on `to→from`.
fn load(dense: &Dense, chain: &Chain, b: usize, from: usize, to: usize) -> (f64, f64) {
    let at = from * dense.n + to;
    let of = |bytes: f64, load: f64| {
        if bytes > 0.0 && chain.rate > 0.0 {
            chain.rate * bytes * load
        } else {
            0.0
        }
    };
    (
        of(chain.bytes[b], dense.forth_load[at]),
        of(chain.reply[b], dense.back_load[at]),
    )
}

/// Most that a chain can put on a link from each block on, the last block first. Takes into account
/// that a chain must come back before it crosses the same link again.
fn most_on_link(dense: &Dense, chain: &Chain, at: usize, mut sink: impl FnMut(usize, f64)) {
    let n = dense.n;
    let (from, to) = (at / n, at % n);
    let on = |b: usize, i: usize| chain.cost[b * n + i] < f64::INFINITY;
    // Highest load if the chain is at `from`, at `to`, or elsewhere.
    let mut best = [0.0f64; 3];
    for b in (0..chain.l).rev() {
        let was_on = |i: usize| {
            if b == 0 {
                chain.entry == i
            } else {
                on(b - 1, i)
            }
        };
        let forth = load(dense, chain, b, from, to).0;
        let back = load(dense, chain, b, to, from).1;
        let [at_from, at_to, away] = best;
        let mut next = [at_from.max(away), at_to.max(away), away];
        if on(b, from) {
            next[2] = next[2].max(at_from);
            if was_on(to) && back <= dense.link_capacity {
                next[1] = next[1].max(at_from + back);
            }
        }
        if on(b, to) {
            next[2] = next[2].max(at_to);
            if was_on(from) && forth <= dense.link_capacity {
                next[0] = next[0].max(at_to + forth);
            }
        }
        best = next;
        sink(b, best.into_iter().fold(0.0, f64::max));
    }
}

/// Links that several crossings together could overload.
fn critical_links(dense: &Dense) -> Vec<usize> {
    let n = dense.n;
    if dense.link_capacity == f64::INFINITY {
        return Vec::new();
    }
    // Most that could pass if every block crossed, in bytes per second.
    let (mut forth, mut back) = (0.0, 0.0);
    for chain in &dense.chains {
        forth += chain.rate * chain.bytes.iter().sum::<f64>();
        back += chain.rate * chain.reply.iter().sum::<f64>();
    }
    if forth + back == 0.0 {
        return Vec::new();
    }
    let most = |at: usize| -> f64 {
        let each = dense.chains.iter().map(|chain| {
            let mut most = 0.0;
            most_on_link(dense, chain, at, |_, from_here| most = from_here);
            most
        });
        each.sum()
    };
    (0..n * n)
        .filter(|at| {
            let load = dense.forth_load[*at];
            let all = (forth + back) * load;
            load < f64::INFINITY && all > dense.link_capacity && most(*at) > dense.link_capacity
        })
        .collect()
}

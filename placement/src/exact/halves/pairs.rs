//! The cheapest pair of a head and a tail that fit together.

use super::layer::{Label, Layer};
use super::packed::{LANES, Packed};
use crate::limits::Ctx;

/// Most labels of a leaf.
const LEAF: usize = 12;
/// Labels sampled to find where they differ most.
const SAMPLE: usize = 16;

/// Labels of one node, halved repeatedly where their use differs most, so that many pairs can be
/// ruled out at once.
pub(super) struct Tree<'a, const W: usize> {
    layer: &'a Layer<W>,
    /// Ordinals in the layer.
    order: Vec<usize>,
    branches: Vec<Branch<W>>,
}

/// A set of labels: the minimum of their costs and uses.
struct Branch<const W: usize> {
    cost: f64,
    used: Packed<W>,
    from: usize,
    to: usize,
    /// The two halves; `None` for a leaf.
    halves: Option<(usize, usize)>,
}

impl<'a, const W: usize> Tree<'a, W> {
    /// `None` if the node has no labels.
    pub(super) fn new(layer: &'a Layer<W>, node: usize) -> Option<Self> {
        let order: Vec<usize> = (layer.first[node]..layer.first[node + 1]).collect();
        if order.is_empty() {
            return None;
        }
        let mut tree = Self {
            layer,
            branches: Vec::with_capacity(4 * order.len() / LEAF + 1),
            order,
        };
        tree.grow(0, tree.order.len());
        Some(tree)
    }

    fn grow(&mut self, from: usize, to: usize) -> usize {
        let labels = &self.layer.labels;
        let own = &mut self.order[from..to];
        let mut branch = Branch {
            cost: f64::INFINITY,
            used: Packed::ALL,
            from,
            to,
            halves: None,
        };
        for z in own.iter() {
            branch.cost = branch.cost.min(labels[*z].cost);
            branch.used = branch.used.least(&labels[*z].used);
        }
        let at = self.branches.len();
        self.branches.push(branch);
        if to - from > LEAF {
            let lane = widest(labels, own);
            let middle = own.len() / 2;
            own.select_nth_unstable_by_key(middle, |z| (labels[*z].used.get(lane), *z));
            let halves = (self.grow(from, from + middle), self.grow(from + middle, to));
            self.branches[at].halves = Some(halves);
        }
        at
    }
}

/// The lane in which a sample of these labels differs most.
fn widest<const W: usize>(labels: &[Label<W>], own: &[usize]) -> usize {
    let step = (own.len() / SAMPLE).max(1);
    let spread = |lane: usize| {
        let (mut least, mut most) = (u64::MAX, 0);
        for z in own.iter().step_by(step) {
            let units = labels[*z].used.get(lane);
            (least, most) = (least.min(units), most.max(units));
        }
        most.saturating_sub(least)
    };
    (0..W * LANES)
        .max_by_key(|lane| spread(*lane))
        .unwrap_or_default()
}

/// The cheapest pair so far.
pub(super) struct Pair<'a> {
    /// Its cost, or the upper limit.
    pub cost: f64,
    /// Ordinals of the head and the tail in their layers.
    pub labels: Option<(usize, usize)>,
    /// Pairs of branches that may still be considered.
    pub patience: u64,
    pub ctx: &'a Ctx,
}

impl Pair<'_> {
    /// Searches for a cheaper pair; `None` if the limits were reached.
    pub(super) fn find<const W: usize>(&mut self, a: &Tree<'_, W>, b: &Tree<'_, W>) -> Option<()> {
        self.within(a, b, 0, 0)
    }

    fn within<const W: usize>(
        &mut self,
        a: &Tree<'_, W>,
        b: &Tree<'_, W>,
        x: usize,
        y: usize,
    ) -> Option<()> {
        let (one, other) = (&a.branches[x], &b.branches[y]);
        if one.cost + other.cost >= self.cost || !one.used.plus(&other.used).fits() {
            return Some(());
        }
        self.patience = self.patience.checked_sub(1)?;
        if self.patience.is_multiple_of(1024) && self.ctx.expired() {
            return None;
        }
        let larger = one.to - one.from >= other.to - other.from;
        match (one.halves, other.halves) {
            (Some((first, second)), other) if larger || other.is_none() => {
                self.within(a, b, first, y)?;
                self.within(a, b, second, y)
            }
            (_, Some((first, second))) => {
                self.within(a, b, x, first)?;
                self.within(a, b, x, second)
            }
            _ => {
                self.try_all(a, b, one, other);
                Some(())
            }
        }
    }

    fn try_all<const W: usize>(
        &mut self,
        a: &Tree<'_, W>,
        b: &Tree<'_, W>,
        one: &Branch<W>,
        other: &Branch<W>,
    ) {
        for &x in &a.order[one.from..one.to] {
            let head = &a.layer.labels[x];
            for &y in &b.order[other.from..other.to] {
                let tail = &b.layer.labels[y];
                let cost = head.cost + tail.cost;
                if cost < self.cost && head.used.plus(&tail.used).fits() {
                    self.cost = cost;
                    self.labels = Some((x, y));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exact::halves::packed::FULL;
    use crate::random::Dice;

    fn layer(dice: &mut Dice, count: usize) -> Layer<2> {
        let mut layer = Layer::empty();
        for _ in 0..count {
            let mut used = Packed::NOTHING;
            for lane in 0..5 {
                used.set(lane, dice.below(FULL as usize) as u64);
            }
            layer.labels.push(Label {
                cost: dice.below(1000) as f64,
                used,
                parent: 0,
            });
        }
        layer.first.push(count);
        layer
    }

    #[test]
    fn the_pair_is_the_cheapest_of_all() {
        let mut dice = Dice::new(11);
        let mut found = [0; 2];
        for round in 0..300 {
            let (heads, tails) = (1 + dice.below(90), 1 + dice.below(90));
            let (a, b) = (layer(&mut dice, heads), layer(&mut dice, tails));
            let all = a
                .labels
                .iter()
                .flat_map(|x| b.labels.iter().map(move |y| (x, y)));
            let costs = all
                .filter(|(x, y)| x.used.plus(&y.used).fits())
                .map(|(x, y)| x.cost + y.cost);
            let best = costs.min_by(f64::total_cmp);
            let ctx = Ctx::unlimited();
            let mut pair = Pair {
                cost: f64::INFINITY,
                labels: None,
                patience: u64::MAX,
                ctx: &ctx,
            };
            let (one, other) = (Tree::new(&a, 0).unwrap(), Tree::new(&b, 0).unwrap());
            pair.find(&one, &other).unwrap();
            assert_eq!(pair.labels.map(|_| pair.cost), best, "round {round}");
            found[usize::from(best.is_some())] += 1;
            if let Some((x, y)) = pair.labels {
                assert_eq!(Some(a.labels[x].cost + b.labels[y].cost), best);
            }
        }
        assert!(found[0] > 10 && found[1] > 10, "{found:?}");
    }

    #[test]
    fn a_search_without_patience_gives_up() {
        let mut dice = Dice::new(2);
        let (a, b) = (layer(&mut dice, 40), layer(&mut dice, 40));
        let (one, other) = (Tree::new(&a, 0).unwrap(), Tree::new(&b, 0).unwrap());
        let ctx = Ctx::unlimited();
        let mut pair = Pair {
            cost: f64::INFINITY,
            labels: None,
            patience: 0,
            ctx: &ctx,
        };
        assert!(pair.find(&one, &other).is_none());
    }
}

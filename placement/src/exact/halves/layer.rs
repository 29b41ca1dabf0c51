//! Labels of one side, by the number of blocks that they place.

use super::packed::Packed;

/// A label: a way to place the blocks on one side.
#[derive(Clone, Copy)]
pub(super) struct Label<const W: usize> {
    pub cost: f64,
    pub used: Packed<W>,
    /// Ordinal in the previous layer.
    pub parent: u32,
}

/// Labels after the same number of blocks, by the node next to the other side: that of the last
/// block of a head, and of the block before a tail. Sorted by cost for each node.
pub(super) struct Layer<const W: usize> {
    pub labels: Vec<Label<W>>,
    /// First of each node, and the end.
    pub first: Vec<usize>,
}

impl<const W: usize> Layer<W> {
    pub(super) fn empty() -> Self {
        Self {
            labels: Vec::new(),
            first: vec![0],
        }
    }

    pub(super) fn of(&self, node: usize) -> &[Label<W>] {
        &self.labels[self.first[node]..self.first[node + 1]]
    }

    pub(super) fn node_of(&self, label: usize) -> usize {
        self.first.partition_point(|f| *f <= label) - 1
    }
}

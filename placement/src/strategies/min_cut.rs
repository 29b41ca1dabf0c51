//! Minimum cut by blocking flows (Dinic, 1970), on small graphs.

use std::collections::VecDeque;

/// Flow below this share of the largest capacity is rounding.
const ROUNDING: f64 = 1e-13;

/// A graph with capacities.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// Arcs by their tail; each beside its reverse.
    out: Vec<Vec<usize>>,
    head: Vec<usize>,
    left: Vec<f64>,
}

impl Graph {
    pub(super) fn new(vertices: usize) -> Self {
        Self {
            out: vec![Vec::new(); vertices],
            ..Self::default()
        }
    }

    /// An arc, and one back.
    pub(super) fn join(&mut self, from: usize, to: usize, forth: f64, back: f64) {
        for (tail, head, capacity) in [(from, to, forth), (to, from, back)] {
            self.out[tail].push(self.head.len());
            self.head.push(head);
            self.left.push(capacity);
        }
    }

    /// Capacity of the smallest cut between two vertices, and the vertices on the side of `source`.
    /// All capacities are finite.
    pub(super) fn cut(mut self, source: usize, sink: usize) -> (f64, Vec<bool>) {
        let least = self.left.iter().copied().fold(0.0, f64::max) * ROUNDING;
        let mut flow = 0.0;
        loop {
            let level = self.levels(source, least);
            if level[sink] == usize::MAX {
                return (flow, level.iter().map(|l| *l < usize::MAX).collect());
            }
            let mut next = vec![0; self.out.len()];
            loop {
                let pushed = self.push(source, sink, f64::INFINITY, &level, &mut next, least);
                if pushed <= 0.0 {
                    break;
                }
                flow += pushed;
            }
        }
    }

    fn levels(&self, source: usize, least: f64) -> Vec<usize> {
        let mut level = vec![usize::MAX; self.out.len()];
        level[source] = 0;
        let mut queue = VecDeque::from([source]);
        while let Some(v) = queue.pop_front() {
            for &arc in &self.out[v] {
                let to = self.head[arc];
                if self.left[arc] > least && level[to] == usize::MAX {
                    level[to] = level[v] + 1;
                    queue.push_back(to);
                }
            }
        }
        level
    }

    /// Pushes flow along one path of rising levels.
    fn push(
        &mut self,
        v: usize,
        sink: usize,
        most: f64,
        level: &[usize],
        next: &mut [usize],
        least: f64,
    ) -> f64 {
        if v == sink {
            return most;
        }
        while next[v] < self.out[v].len() {
            let arc = self.out[v][next[v]];
            let to = self.head[arc];
            if self.left[arc] > least && level[to] == level[v] + 1 {
                let room = most.min(self.left[arc]);
                let pushed = self.push(to, sink, room, level, next, least);
                if pushed > 0.0 {
                    self.left[arc] -= pushed;
                    self.left[arc ^ 1] += pushed;
                    return pushed;
                }
            }
            next[v] += 1;
        }
        0.0
    }
}

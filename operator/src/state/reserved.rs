//! Resources that answers which are not plans yet would take and release: a question solved after
//! them must neither count on the same free hosts nor avoid a host that they are leaving.

use super::decision::Question;
use super::links::Pair;
use lamina_placement::{Problem, Solution};
use std::collections::HashMap;

/// Shares of hosts and links beyond those of plans; negative if less is used.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reserved {
    hosts: HashMap<String, f64>,
    links: HashMap<Pair, f64>,
}

impl Reserved {
    /// Adds the changes of `solution`, the answer to `question`.
    pub(crate) fn add(&mut self, question: &Question, problem: &Problem, solution: &Solution) {
        let Some(metrics) = &solution.metrics else {
            return;
        };
        let uid = &question.placement_uid;
        for (host, share) in question.cluster.shares_of(uid) {
            *self.hosts.entry(host.to_owned()).or_default() -= share;
        }
        let others = |name: &str| {
            let node = problem.nodes.iter().find(|n| n.name == name);
            node.map_or(0.0, |n| n.load_share)
        };
        for node in &metrics.nodes {
            let own = (node.utilisation - others(&node.node)).max(0.0);
            *self.hosts.entry(node.node.clone()).or_default() += own;
        }
        for (from, to, bytes_per_second) in question.cluster.traffic_of(uid) {
            if let Some(link) = problem.link(from, to) {
                let share = bytes_per_second / link.bytes_per_second;
                let pair = (from.to_owned(), to.to_owned());
                *self.links.entry(pair).or_default() -= share;
            }
        }
        for link in &metrics.links {
            let pair = (link.from.clone(), link.to.clone());
            *self.links.entry(pair).or_default() += link.utilisation.max(0.0);
        }
    }

    /// Share of a host.
    pub(crate) fn host(&self, name: &str) -> f64 {
        self.hosts.get(name).copied().unwrap_or(0.0)
    }

    /// Share of a link.
    pub(crate) fn link(&self, from: &str, to: &str) -> f64 {
        if self.links.is_empty() {
            return 0.0;
        }
        let pair = (from.to_owned(), to.to_owned());
        self.links.get(&pair).copied().unwrap_or(0.0)
    }
}

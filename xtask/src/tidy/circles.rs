//! Cycles of arrows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The shortest cycle of each strongly connected component: one is reported for each.
pub(super) fn circles(arrows: &BTreeSet<(String, String)>) -> Vec<Vec<String>> {
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in arrows {
        next.entry(from).or_default().push(to);
    }
    let mut told: BTreeSet<&str> = BTreeSet::new();
    let mut found = Vec::new();
    for start in next.keys() {
        if told.contains(start) {
            continue;
        }
        let Some(circle) = shortest(start, &next) else {
            continue;
        };
        let ahead = reached(start, &next);
        let knot = ahead
            .iter()
            .filter(|one| reached(one, &next).contains(start));
        told.extend(knot.copied());
        found.push(circle);
    }
    found
}

/// The shortest path from `start` back to it, from `start` on.
fn shortest(start: &str, next: &BTreeMap<&str, Vec<&str>>) -> Option<Vec<String>> {
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for &to in next.get(at).into_iter().flatten() {
            if to == start {
                let back = std::iter::successors(Some(at), |at| before.get(at).copied());
                let mut circle: Vec<String> = back.map(str::to_owned).collect();
                circle.reverse();
                return Some(circle);
            }
            if !before.contains_key(to) {
                before.insert(to, at);
                queue.push_back(to);
            }
        }
    }
    None
}

fn reached<'a>(start: &str, next: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&str> = next.get(start).into_iter().flatten().copied().collect();
    while let Some(at) = open.pop() {
        if seen.insert(at) {
            open.extend(next.get(at).into_iter().flatten());
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(arrows: &[(&str, &str)]) -> Vec<Vec<String>> {
        let owned = arrows
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        circles(&owned.collect())
    }

    #[test]
    fn what_only_leads_down_has_no_circle() {
        assert!(found(&[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]).is_empty());
    }

    #[test]
    fn the_shortest_circle_of_each_knot_is_named() {
        let arrows = [
            ("a", "b"),
            ("b", "c"),
            ("c", "d"),
            ("d", "b"),
            ("c", "b"),
            ("x", "y"),
            ("y", "x"),
        ];
        assert_eq!(found(&arrows), [vec!["b", "c"], vec!["x", "y"]]);
    }
}

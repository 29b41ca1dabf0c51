//! Which of the legal cuts become block boundaries.
//!
//! Every block has at least one heavy operation: there is at most one boundary
//! between two of them.

use crate::ffi::{Analysis, Cost};

/// The largest share of the FLOPs in one block that could be divided.
const MOST_FLOPS: f64 = 0.6;

/// Boundaries where a single tensor crosses: a block ends at the last such place before the next
/// heavy operation, which keeps a convolution together with what follows it.
pub(crate) fn direct(analysis: &Analysis) -> Vec<usize> {
    let places: Vec<(usize, u64)> = analysis
        .cuts
        .iter()
        .filter(|place| place.direct)
        .map(|place| (place.at, 0))
        .collect();
    cheapest(analysis, &places)
}

/// Legal cuts between two heavy operations.
pub(crate) fn between_heavy(analysis: &Analysis) -> Vec<usize> {
    let (Some(first), Some(last)) = (analysis.heavy.first(), analysis.heavy.last()) else {
        return Vec::new();
    };
    let between = first..last;
    let places = analysis.cuts.iter().map(|place| place.at);
    places.filter(|at| between.contains(&at)).collect()
}

/// Boundaries at the place with the fewest bytes between two heavy operations, the last of equals.
/// `places` are ascending positions with their bytes.
pub(crate) fn cheapest(analysis: &Analysis, places: &[(usize, u64)]) -> Vec<usize> {
    analysis
        .heavy
        .windows(2)
        .filter_map(|pair| {
            let between = pair[0]..pair[1];
            let places = places.iter().rev().filter(|(at, _)| between.contains(at));
            places.min_by_key(|(_, bytes)| *bytes).map(|(at, _)| *at)
        })
        .collect()
}

/// The most heavy operations that one block holds.
pub(crate) fn heaviest(analysis: &Analysis, cuts: &[usize]) -> usize {
    let held = heavy_of_blocks(analysis, cuts);
    held.into_iter().max().unwrap_or(0)
}

/// Heavy operations of each block.
pub(crate) fn heavy_of_blocks(analysis: &Analysis, cuts: &[usize]) -> Vec<usize> {
    let before = |cut: &usize| analysis.heavy.partition_point(|heavy| heavy <= cut);
    let ends = cuts.iter().map(before).chain([analysis.heavy.len()]);
    let mut begin = 0;
    ends.map(|end| end - std::mem::replace(&mut begin, end))
        .collect()
}

/// Drops those of `cuts` that are wide, since each costs every request, if the block has at most a
/// sixteenth of the heavy operations without it.
pub(crate) fn thinned(
    analysis: &Analysis,
    cuts: &[usize],
    is_wide: impl Fn(usize) -> bool,
) -> Vec<usize> {
    let most = (analysis.heavy.len() / 16).max(1);
    let held = heavy_of_blocks(analysis, cuts);
    let mut kept = Vec::new();
    let mut block = 0;
    for ((&cut, before), behind) in cuts.iter().zip(&held).zip(&held[1..]) {
        block += before;
        if !is_wide(cut) || block + behind > most {
            kept.push(cut);
            block = 0;
        }
    }
    kept
}

/// The share of the FLOPs in the block with the most, if that is too much for one block and the
/// block could be divided, because no single operation has as much.
pub(crate) fn lopsided(analysis: &Analysis, cuts: &[usize], costs: &[Cost]) -> Option<f64> {
    let sum = costs
        .iter()
        .fold(0_u64, |sum, c| sum.saturating_add(c.flops));
    let share = |flops: u64| flops as f64 / sum.max(1) as f64;
    let held = heavy_of_blocks(analysis, cuts);
    let (heaviest, heavy) = costs.iter().zip(held).max_by_key(|(cost, _)| cost.flops)?;
    let is_one = heavy < 2 || share(heaviest.largest_flops) > MOST_FLOPS;
    let share = share(heaviest.flops);
    (share > MOST_FLOPS && !is_one).then_some(share)
}

/// Whether these cuts leave no block with more than half of the heavy operations: then they are
/// good enough.
pub(crate) fn suffice(analysis: &Analysis, cuts: &[usize]) -> bool {
    !cuts.is_empty() && 2 * heaviest(analysis, cuts) <= analysis.heavy.len().max(2)
}

/// Why no cut is tried; `None` if one may exist.
pub(crate) fn reason_for_whole(analysis: &Analysis) -> Option<String> {
    let reason = if analysis.reads_self {
        "the model keeps attributes that change or that freezing cannot remove"
    } else if analysis.writes_constants {
        "the model overwrites its own weights"
    } else if analysis.heavy.len() < 2 {
        "the model has a single heavy operation"
    } else {
        return None;
    };
    Some(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::{Place, Structure};

    fn analysis(heavy: &[usize], direct: &[usize]) -> Analysis {
        let place = |&at: &usize| Place { at, direct: true };
        Analysis {
            reads_self: false,
            writes_constants: false,
            weight_bytes: 0,
            nodes: 20,
            heavy: heavy.to_vec(),
            stages: vec![None; heavy.len()],
            heads: Vec::new(),
            cuts: direct.iter().map(place).collect(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            structure: Structure::Output,
            operators: Vec::new(),
        }
    }

    #[test]
    fn a_block_ends_at_the_last_cut_before_the_next_heavy_operation() {
        // conv bn relu | conv bn relu | linear
        let a = analysis(&[0, 3, 6], &[0, 1, 2, 3, 4, 5]);
        assert_eq!(direct(&a), [2, 5]);
        assert_eq!(heaviest(&a, &[2, 5]), 1);
        assert!(suffice(&a, &direct(&a)));
    }

    #[test]
    fn branches_without_a_cut_stay_together() {
        // Between 3 and 7 several tensors are live.
        let a = analysis(&[0, 3, 5, 7, 10], &[1, 2, 8, 9]);
        assert_eq!(direct(&a), [2, 9]);
        assert_eq!(heaviest(&a, &[2, 9]), 3);
        assert!(!suffice(&a, &[2, 9]));
    }

    #[test]
    fn a_cut_right_behind_a_heavy_operation_counts() {
        assert_eq!(direct(&analysis(&[0, 1], &[0])), [0]);
        assert_eq!(direct(&analysis(&[1, 2], &[0])), Vec::<usize>::new());
    }

    #[test]
    fn places_with_several_values_are_not_direct() {
        let mut a = analysis(&[0, 4], &[1, 3]);
        a.cuts[1].direct = false;
        assert_eq!(direct(&a), [1]);
        assert_eq!(between_heavy(&a), [1, 3]);
    }

    #[test]
    fn the_fewest_bytes_win_and_of_equals_the_last() {
        let a = analysis(&[0, 5, 9], &[]);
        let places = [(1, 40), (2, 10), (3, 10), (4, 80), (5, 7), (8, 9)];
        assert_eq!(cheapest(&a, &places), [3, 5]);
    }

    #[test]
    fn wide_cuts_are_made_where_blocks_would_be_heavy_without_them() {
        let heavy: Vec<usize> = (0..32).collect();
        let cuts: Vec<usize> = (0..31).collect();
        let a = analysis(&heavy, &[]);
        assert_eq!(thinned(&a, &cuts, |_| false), cuts);
        // Two heavy operations in each block.
        let odd: Vec<usize> = (1..31).step_by(2).collect();
        assert_eq!(thinned(&a, &cuts, |_| true), odd);
        // Next to a narrow one nothing is gained.
        assert_eq!(thinned(&a, &[3, 4], |cut| cut == 4), [3, 4]);
        let few = analysis(&[0, 1, 2], &[]);
        assert_eq!(thinned(&few, &[0, 1], |_| true), [0, 1]);
        assert_eq!(thinned(&few, &[], |_| true), Vec::<usize>::new());
    }

    #[test]
    fn a_block_with_most_of_the_flops_is_lopsided_unless_one_operation_has_them() {
        let cost = |flops, largest_flops| Cost {
            flops,
            largest_flops,
            peak_bytes: 0,
            constant_bytes: 0,
        };
        let a = analysis(&[0, 1, 2], &[]);
        let share = lopsided(&a, &[0], &[cost(10, 10), cost(90, 45)]);
        assert!((share.unwrap() - 0.9).abs() < 1e-9);
        assert_eq!(lopsided(&a, &[0], &[cost(10, 10), cost(90, 80)]), None);
        assert_eq!(lopsided(&a, &[0], &[cost(90, 45), cost(10, 10)]), None);
        assert_eq!(lopsided(&a, &[0], &[cost(40, 40), cost(60, 30)]), None);
        assert_eq!(lopsided(&a, &[0], &[cost(0, 0), cost(0, 0)]), None);
    }

    #[test]
    fn two_heavy_operations_in_two_blocks_are_cut_enough() {
        let a = analysis(&[0, 1], &[0]);
        assert!(suffice(&a, &[0]));
        assert!(!suffice(&a, &[]));
        let a = analysis(&[0, 1, 2], &[0]);
        assert!(!suffice(&a, &[0]));
    }

    #[test]
    fn the_reason_for_one_block_is_given() {
        let reason = |a: &Analysis| reason_for_whole(a).unwrap();
        assert!(reason(&analysis(&[4], &[1, 2])).contains("single heavy operation"));
        let mut stateful = analysis(&[1, 4], &[2]);
        stateful.reads_self = true;
        assert!(reason(&stateful).contains("attributes that change"));
        assert_eq!(reason_for_whole(&analysis(&[1, 4], &[])), None);
    }
}

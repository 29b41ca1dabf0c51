//! Which of the legal cuts become borders of blocks.

use crate::ffi::Analysis;

/// Borders for blocks that hold at least one heavy operation each: a block
/// ends at the last legal cut before the next heavy operation, which keeps a
/// convolution together with what follows it.
pub(crate) fn choose(analysis: &Analysis) -> Vec<usize> {
    analysis
        .heavy
        .windows(2)
        .filter_map(|pair| last_within(&analysis.cuts, pair[0], pair[1]))
        .collect()
}

/// The last of the ascending `cuts` in `from..before`.
fn last_within(cuts: &[usize], from: usize, before: usize) -> Option<usize> {
    let end = cuts.partition_point(|&cut| cut < before);
    cuts[..end].last().copied().filter(|&cut| cut >= from)
}

/// Why a model stays in one piece although nothing forbids cutting it;
/// `None` where it is cut.
pub(crate) fn reason_for_whole(analysis: &Analysis, chosen: &[usize]) -> Option<String> {
    if analysis.reads_self {
        return Some(
            "the model keeps attributes that change or that freezing cannot remove".into(),
        );
    }
    if analysis.writes_constants {
        return Some("the model overwrites its own weights".into());
    }
    if !chosen.is_empty() {
        return None;
    }
    Some(match analysis.heavy.len() {
        0 | 1 => "the model has a single heavy operation".into(),
        n => format!("no place between its {n} heavy operations has one live tensor alone"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn analysis(heavy: &[usize], cuts: &[usize]) -> Analysis {
        Analysis {
            reads_self: false,
            writes_constants: false,
            nodes: 20,
            heavy: heavy.to_vec(),
            cuts: cuts.to_vec(),
            operators: Vec::new(),
        }
    }

    #[test]
    fn a_block_ends_at_the_last_cut_before_the_next_heavy_operation() {
        // conv bn relu | conv bn relu | linear
        let a = analysis(&[0, 3, 6], &[0, 1, 2, 3, 4, 5]);
        assert_eq!(choose(&a), [2, 5]);
        assert_eq!(reason_for_whole(&a, &choose(&a)), None);
    }

    #[test]
    fn branches_without_a_cut_stay_together() {
        // Between 3 and 7 several tensors are live.
        let a = analysis(&[0, 3, 5, 7, 10], &[1, 2, 8, 9]);
        assert_eq!(choose(&a), [2, 9]);
    }

    #[test]
    fn a_cut_right_behind_a_heavy_operation_counts() {
        assert_eq!(choose(&analysis(&[0, 1], &[0])), [0]);
        assert_eq!(choose(&analysis(&[1, 2], &[0])), Vec::<usize>::new());
    }

    #[test]
    fn the_reason_for_one_block_is_given() {
        let reason = |a: &Analysis| reason_for_whole(a, &choose(a)).unwrap();
        assert!(reason(&analysis(&[4], &[1, 2])).contains("single heavy operation"));
        assert!(reason(&analysis(&[1, 4], &[])).contains("2 heavy operations"));
        let mut stateful = analysis(&[1, 4], &[2]);
        stateful.reads_self = true;
        assert!(reason(&stateful).contains("attributes that change"));
    }
}

//! Whether the rows of a batch are independent: then requests of several clients may be computed
//! together, and rows may continue alone.

use crate::rungs::Plan;
use crate::shapes::is_near;
use crate::tensors::stacked;
use lamina_model::{Tensor, ValueSpec};

/// Whether each row of a batch gives the same as alone, in all values of `plan` that have rows.
/// `None` if that is unknown: the batch is fixed, the requests give equal answers, or a request may
/// take another path (`may_differ`), so that the result may not hold for others.
pub(crate) fn are_independent(plan: &Plan, may_differ: bool) -> Option<bool> {
    let [first, second, both] = plan.reference.as_slice() else {
        return None;
    };
    let all_have_rows = plan
        .inputs
        .iter()
        .chain(plan.outputs())
        .all(ValueSpec::has_rows);
    if !all_have_rows || plan.telling_diff() == 0.0 {
        return None;
    }
    let mut values = plan.values.iter().zip(first).zip(second).zip(both);
    let same = values.all(|(((specs, first), second), both)| hold(specs, first, second, both));
    match (same, may_differ) {
        (true, true) => None,
        (same, _) => Some(same),
    }
}

/// Whether `both` has the rows of `first`, then those of `second`, in each value that has rows.
fn hold(specs: &[ValueSpec], first: &[Tensor], second: &[Tensor], both: &[Tensor]) -> bool {
    let values = specs.iter().zip(first).zip(second).zip(both);
    let mut with_rows = values.filter(|(((spec, _), _), _)| spec.has_rows());
    with_rows.all(|(((_, first), second), both)| {
        stacked(&[first, second]).is_some_and(|rows| is_near(&rows, both))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::{DataType, OutputStructure, Rung};

    fn tensor(shape: &[i64], values: &[f32]) -> Tensor {
        Tensor {
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    fn spec(name: &str) -> ValueSpec {
        ValueSpec {
            name: name.into(),
            datatype: DataType::Fp32,
            shape: vec![-1, 2],
            sizes: Vec::new(),
        }
    }

    /// One block, with its outputs for two requests and for both as a batch.
    fn plan(answers: [Tensor; 3]) -> Plan {
        Plan {
            rung: Rung::Whole,
            cuts: Vec::new(),
            inputs: vec![spec("x")],
            values: vec![vec![spec("y")]],
            structure: OutputStructure::None,
            requests: Vec::new(),
            reference: answers.map(|answer| vec![vec![answer]]).to_vec(),
        }
    }

    #[test]
    fn rows_that_give_what_they_give_alone_are_independent() {
        let a = tensor(&[1, 2], &[1.0, 2.0]);
        let b = tensor(&[1, 2], &[3.0, 4.0]);
        let both = tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.000_001]);
        let kept = plan([a.clone(), b.clone(), both]);
        assert_eq!(are_independent(&kept, false), Some(true));
        assert_eq!(are_independent(&kept, true), None);
        // As if the batch's mean were subtracted.
        let mixed = plan([a.clone(), b.clone(), tensor(&[2, 2], &[1.0, 2.0, 3.0, 3.9])]);
        assert_eq!(are_independent(&mixed, false), Some(false));
        let summed = plan([a.clone(), b, tensor(&[1, 2], &[4.0, 6.0])]);
        assert_eq!(are_independent(&summed, false), Some(false));
        let equal = plan([a.clone(), a.clone(), tensor(&[2, 2], &[1.0, 2.0, 1.0, 2.0])]);
        assert_eq!(are_independent(&equal, false), None);
    }

    #[test]
    fn a_fixed_batch_says_nothing() {
        let a = tensor(&[1, 2], &[1.0, 2.0]);
        let mut fixed = plan([a.clone(), a.clone(), a]);
        fixed.reference.truncate(2);
        assert_eq!(are_independent(&fixed, false), None);
        let b = tensor(&[1, 2], &[3.0, 4.0]);
        let both = tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let mut beside = plan([tensor(&[1, 2], &[1.0, 2.0]), b, both]);
        beside.inputs.push(ValueSpec {
            shape: vec![3],
            ..spec("mask")
        });
        assert_eq!(are_independent(&beside, false), None);
    }
}

//! Runs that are computed together: whose rows may stand in one batch, how the batch is
//! made, and how its answer is taken apart. Pure.

use super::runs::RunJob;
use bytes::Bytes;
use lamina_model::Tensor;

/// Rows of a request: all its inputs have as many.
fn rows(inputs: &[Tensor]) -> Option<i64> {
    let first = *inputs.first()?.shape.first()?;
    let mut others = inputs.iter().map(|input| input.shape.first());
    (first > 0 && others.all(|rows| rows == Some(&first))).then_some(first)
}

/// Rows of all, and the most that there may be; `None` where the first runs alone.
fn filled(group: &[RunJob]) -> Option<(i64, i64)> {
    let most = group.first()?.together?.max_rows;
    let mut all = group.iter().map(|job| rows(&job.inputs));
    let all = all.try_fold(0_i64, |sum, rows| sum.checked_add(rows?))?;
    Some((all, most))
}

/// Whether no other run may join.
pub(super) fn is_full(group: &[RunJob]) -> bool {
    filled(group).is_none_or(|(all, most)| all >= most)
}

/// Whether `job` may be computed with `group`.
pub(super) fn may_join(group: &[RunJob], job: &RunJob) -> bool {
    let (Some(first), Some((all, most))) = (group.first(), filled(group)) else {
        return false;
    };
    let (Some(own), Some(together)) = (rows(&job.inputs), job.together) else {
        return false;
    };
    let alike = |(a, b): (&Tensor, &Tensor)| {
        a.datatype == b.datatype && a.shape.get(1..) == b.shape.get(1..)
    };
    first.slice == job.slice
        && !job.reply.is_closed()
        && all.saturating_add(own) <= most.min(together.max_rows)
        && first.inputs.len() == job.inputs.len()
        && first.inputs.iter().zip(&job.inputs).all(alike)
}

/// The inputs of all, each the rows of the first run, then those of the next.
pub(super) fn merged(group: &[RunJob]) -> Option<Vec<Tensor>> {
    let first = group.first()?;
    let (rows, _) = filled(group)?;
    let merge = |place: usize, like: &Tensor| {
        let parts: Option<Vec<&[u8]>> = group
            .iter()
            .map(|job| job.inputs.get(place).map(|input| &*input.data))
            .collect();
        let mut shape = like.shape.clone();
        *shape.first_mut()? = rows;
        Some(Tensor {
            datatype: like.datatype,
            shape,
            data: parts?.concat().into(),
        })
    };
    let inputs = first.inputs.iter().enumerate();
    inputs.map(|(place, like)| merge(place, like)).collect()
}

/// The answer to each run of `group`, taken out of that to all of them; `None` where an
/// output does not have a row for each row that went in.
pub(super) fn split(group: &[RunJob], outputs: &[Tensor]) -> Option<Vec<Vec<Tensor>>> {
    let (all, _) = filled(group)?;
    let mut answers = vec![Vec::with_capacity(outputs.len()); group.len()];
    for output in outputs {
        if output.shape.first() != Some(&all) {
            return None;
        }
        let row_bytes = output.data.len() / usize::try_from(all).ok()?;
        let mut from = 0;
        for (job, answer) in group.iter().zip(&mut answers) {
            let own = rows(&job.inputs)?;
            let to = from + row_bytes * usize::try_from(own).ok()?;
            let mut shape = output.shape.clone();
            *shape.first_mut()? = own;
            answer.push(Tensor {
                datatype: output.datatype,
                shape,
                // A copy: a slice would keep the whole batch's memory.
                data: Bytes::copy_from_slice(output.data.get(from..to)?),
            });
            from = to;
        }
    }
    Some(answers)
}

/// The share of a run's rows in those of its group.
pub(super) fn share(group: &[RunJob], job: &RunJob) -> f64 {
    match (filled(group), rows(&job.inputs)) {
        (Some((all, _)), Some(own)) if all > 0 => own as f64 / all as f64,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{EngineError, Run, Together};
    use super::*;
    use lamina_model::DataType;
    use std::sync::Arc;
    use std::time::{Duration, Instant};
    use tokio::sync::oneshot;

    type Answer = oneshot::Receiver<Result<Run, EngineError>>;

    fn tensor(shape: &[i64], from: u8) -> Tensor {
        let count = u8::try_from(shape.iter().product::<i64>()).unwrap();
        Tensor {
            datatype: DataType::Uint8,
            shape: shape.to_vec(),
            data: (from..from + count).collect(),
        }
    }

    fn job(inputs: Vec<Tensor>) -> (RunJob, Answer) {
        let (reply, answer) = oneshot::channel();
        let job = RunJob {
            model: "a".into(),
            slice: 1,
            inputs,
            together: Some(Together {
                max_rows: 4,
                max_delay: Duration::ZERO,
            }),
            limit: Duration::from_secs(1),
            answer_bytes: Arc::default(),
            begun: Arc::default(),
            queued: Instant::now(),
            reply,
        };
        (job, answer)
    }

    #[test]
    fn rows_go_in_behind_each_other_and_come_out_where_they_belong() {
        let (first, _a) = job(vec![tensor(&[1, 2], 0), tensor(&[1], 50)]);
        let (second, _b) = job(vec![tensor(&[2, 2], 10), tensor(&[2], 60)]);
        let mut group = vec![first];
        assert!(may_join(&group, &second));
        group.push(second);
        assert!(!is_full(&group));
        let inputs = merged(&group).unwrap();
        assert_eq!(inputs[0].shape, [3, 2]);
        assert_eq!(inputs[0].data[..], [0, 1, 10, 11, 12, 13]);
        assert_eq!(inputs[1].data[..], [50, 60, 61]);
        let answers = split(&group, &[tensor(&[3, 1, 2], 0), tensor(&[3], 7)]).unwrap();
        assert_eq!(answers[0], [tensor(&[1, 1, 2], 0), tensor(&[1], 7)]);
        assert_eq!(answers[1], [tensor(&[2, 1, 2], 2), tensor(&[2], 8)]);
        assert!((share(&group, &group[1]) - 2.0 / 3.0).abs() < 1e-9);
        // A row less, and one that was added up.
        assert_eq!(split(&group, &[tensor(&[2, 2], 0)]), None);
        assert_eq!(split(&group, &[tensor(&[], 0)]), None);
    }

    #[test]
    fn only_runs_that_fit_are_computed_together() {
        let (first, _a) = job(vec![tensor(&[1, 2], 0)]);
        let group = [first];
        let joins = |change: &dyn Fn(&mut RunJob)| {
            let (mut other, answer) = job(vec![tensor(&[1, 2], 0)]);
            change(&mut other);
            let joins = may_join(&group, &other);
            drop(answer);
            joins
        };
        assert!(joins(&|_| ()));
        assert!(!joins(&|other| other.slice = 2));
        assert!(!joins(&|other| other.together = None));
        assert!(!joins(&|other| other.inputs = vec![tensor(&[1, 3], 0)]));
        assert!(!joins(&|other| other.inputs = vec![tensor(&[4, 2], 0)]));
        assert!(!joins(&|other| other.inputs = vec![]));
        assert!(!joins(&|other| other.inputs.push(tensor(&[1, 2], 0))));
        assert!(!joins(&|other| other.inputs[0].datatype = DataType::Int8));
        let (gone, answer) = job(vec![tensor(&[1, 2], 0)]);
        drop(answer);
        assert!(!may_join(&group, &gone));
        // Inputs with different rows run alone.
        let (uneven, _b) = job(vec![tensor(&[1, 2], 0), tensor(&[2], 0)]);
        let uneven = [uneven];
        assert!(is_full(&uneven));
        let (next, _c) = job(vec![tensor(&[1, 2], 0), tensor(&[1], 0)]);
        assert!(!may_join(&uneven, &next));
    }
}

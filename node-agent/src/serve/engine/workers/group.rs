//! Runs that are computed together: which rows may share a batch, how the batch is built, and how
//! its answer is split. Pure.

use super::runs::RunJob;
use bytes::Bytes;
use lamina_model::Tensor;

/// Runs that are computed together, or a single one.
#[derive(Debug)]
pub(super) struct Group {
    jobs: Vec<RunJob>,
    /// Rows of all, known if others may join.
    rows: Option<i64>,
}

/// Rows of a request, if all its inputs have the same number.
fn rows(inputs: &[Tensor]) -> Option<i64> {
    let first = *inputs.first()?.shape.first()?;
    let mut others = inputs.iter().map(|input| input.shape.first());
    (first > 0 && others.all(|rows| rows == Some(&first))).then_some(first)
}

impl Group {
    pub(super) fn of(first: RunJob) -> Self {
        Self {
            rows: first.together.and_then(|_| rows(&first.inputs)),
            jobs: vec![first],
        }
    }

    pub(super) fn jobs(&self) -> &[RunJob] {
        &self.jobs
    }

    pub(super) fn into_jobs(self) -> Vec<RunJob> {
        self.jobs
    }

    /// The one that the others joined.
    pub(super) fn first(&self) -> Option<&RunJob> {
        self.jobs.first()
    }

    /// Most rows allowed.
    fn most(&self) -> i64 {
        let together = self.first().and_then(|job| job.together);
        together.map_or(1, |together| together.rows.largest())
    }

    /// Whether it is closed to further runs.
    pub(super) fn is_full(&self) -> bool {
        self.rows.is_none_or(|rows| rows >= self.most())
    }

    /// Adds `job` if it may be computed with the others.
    ///
    /// # Errors
    /// It may not; it is returned.
    pub(super) fn join(&mut self, job: RunJob) -> Result<(), RunJob> {
        let Some(rows) = self.rows_with(&job) else {
            return Err(job);
        };
        self.rows = Some(rows);
        self.jobs.push(job);
        Ok(())
    }

    /// Rows of all including `job`; `None` if it may not be computed with them.
    fn rows_with(&self, job: &RunJob) -> Option<i64> {
        let first = self.first()?;
        let (own, together) = (rows(&job.inputs)?, job.together?);
        let rows = self.rows?.checked_add(own)?;
        let alike = |(a, b): (&Tensor, &Tensor)| {
            a.datatype == b.datatype && a.shape.get(1..) == b.shape.get(1..)
        };
        let fits = first.slice == job.slice
            && !job.reply.is_closed()
            && rows <= self.most().min(together.rows.largest())
            && first.inputs.len() == job.inputs.len()
            && first.inputs.iter().zip(&job.inputs).all(alike);
        fits.then_some(rows)
    }

    /// Keeps the largest number of rows that pays to compute together, including the first run, and
    /// returns the others.
    pub(super) fn cut(&mut self) -> Vec<RunJob> {
        let pays = self.first().and_then(|job| job.together);
        let pays = |rows: i64| pays.is_some_and(|together| together.rows.has(rows));
        let mut sum = 0;
        let sums = self.jobs.iter().map(|job| {
            sum += rows(&job.inputs).unwrap_or(0);
            sum
        });
        let sums: Vec<i64> = sums.collect();
        let stay = sums.iter().rposition(|sum| pays(*sum)).unwrap_or(0);
        let surplus = self.jobs.split_off((stay + 1).min(self.jobs.len()));
        self.rows = self.rows.and(sums.get(stay).copied());
        surplus
    }

    /// Without those that nobody waits for any more.
    pub(super) fn without_the_gone(mut self) -> Self {
        self.jobs.retain(|job| !job.reply.is_closed());
        let own = self.jobs.iter().map(|job| rows(&job.inputs));
        // At most as many as before, whose sum was known.
        self.rows = self.rows.and(own.sum());
        self
    }

    /// The inputs of all: the rows of the first run, then those of the next.
    pub(super) fn merged(&self) -> Option<Vec<Tensor>> {
        let (first, rows) = (self.first()?, self.rows?);
        let merge = |place: usize, like: &Tensor| {
            let parts: Option<Vec<&[u8]>> = self
                .jobs
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

    /// The answer to each run, split from that to all of them; `None` if an output does not have
    /// one row per input row.
    pub(super) fn split(&self, outputs: &[Tensor]) -> Option<Vec<Vec<Tensor>>> {
        let all = self.rows?;
        let mut answers = vec![Vec::with_capacity(outputs.len()); self.jobs.len()];
        for output in outputs {
            if output.shape.first() != Some(&all) {
                return None;
            }
            let row_bytes = output.data.len() / usize::try_from(all).ok()?;
            let mut from = 0;
            for (job, answer) in self.jobs.iter().zip(&mut answers) {
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

    /// A run's share of all rows.
    pub(super) fn share(&self, job: &RunJob) -> f64 {
        match (self.rows, rows(&job.inputs)) {
            (Some(all), Some(own)) if all > 0 => own as f64 / all as f64,
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::runs::testing::{Answer, job};
    use super::*;
    use crate::serve::engine::{Batches, Together};
    use lamina_model::DataType;
    use std::time::Duration;

    fn tensor(shape: &[i64], from: u8) -> Tensor {
        let count = u8::try_from(shape.iter().product::<i64>()).unwrap();
        Tensor {
            datatype: DataType::Uint8,
            shape: shape.to_vec(),
            data: (from..from + count).collect(),
        }
    }

    fn with(inputs: Vec<Tensor>) -> (RunJob, Answer) {
        let (mut job, answer) = job("a");
        job.inputs = inputs;
        job.together = Some(Together {
            rows: Batches::of([2, 3, 4]),
            max_delay: Duration::ZERO,
        });
        (job, answer)
    }

    #[test]
    fn rows_go_in_behind_each_other_and_come_out_where_they_belong() {
        let (first, _a) = with(vec![tensor(&[1, 2], 0), tensor(&[1], 50)]);
        let (second, _b) = with(vec![tensor(&[2, 2], 10), tensor(&[2], 60)]);
        let mut group = Group::of(first);
        group.join(second).unwrap();
        assert!(!group.is_full());
        let inputs = group.merged().unwrap();
        assert_eq!(inputs[0].shape, [3, 2]);
        assert_eq!(inputs[0].data[..], [0, 1, 10, 11, 12, 13]);
        assert_eq!(inputs[1].data[..], [50, 60, 61]);
        let answers = group
            .split(&[tensor(&[3, 1, 2], 0), tensor(&[3], 7)])
            .unwrap();
        assert_eq!(answers[0], [tensor(&[1, 1, 2], 0), tensor(&[1], 7)]);
        assert_eq!(answers[1], [tensor(&[2, 1, 2], 2), tensor(&[2], 8)]);
        assert!((group.share(&group.jobs[1]) - 2.0 / 3.0).abs() < 1e-9);
        // A row less, and a reduced one.
        assert_eq!(group.split(&[tensor(&[2, 2], 0)]), None);
        assert_eq!(group.split(&[tensor(&[], 0)]), None);
    }

    #[test]
    fn only_runs_that_fit_are_computed_together() {
        let joins = |change: &dyn Fn(&mut RunJob)| {
            let (first, _a) = with(vec![tensor(&[1, 2], 0)]);
            let (mut other, _b) = with(vec![tensor(&[1, 2], 0)]);
            change(&mut other);
            Group::of(first).join(other).is_ok()
        };
        assert!(joins(&|_| ()));
        assert!(!joins(&|other| other.slice = 2));
        assert!(!joins(&|other| other.together = None));
        assert!(!joins(&|other| other.inputs = vec![tensor(&[1, 3], 0)]));
        assert!(!joins(&|other| other.inputs = vec![tensor(&[4, 2], 0)]));
        assert!(!joins(&|other| other.inputs = vec![]));
        assert!(!joins(&|other| other.inputs.push(tensor(&[1, 2], 0))));
        assert!(!joins(&|other| other.inputs[0].datatype = DataType::Int8));
        let (first, _a) = with(vec![tensor(&[1, 2], 0)]);
        let (gone, answer) = with(vec![tensor(&[1, 2], 0)]);
        drop(answer);
        assert!(Group::of(first).join(gone).is_err());
        // Inputs with different numbers of rows run alone.
        let (uneven, _b) = with(vec![tensor(&[1, 2], 0), tensor(&[2], 0)]);
        let mut uneven = Group::of(uneven);
        assert!(uneven.is_full());
        let (next, _c) = with(vec![tensor(&[1, 2], 0), tensor(&[1], 0)]);
        assert!(uneven.join(next).is_err());
    }

    #[test]
    fn as_many_are_computed_together_as_pays() {
        let left = |pays: &[i64], given: &[i64]| {
            let mut jobs = given.iter().map(|rows| {
                let (mut job, answer) = with(vec![tensor(&[*rows, 1], 0)]);
                let rows = Batches::of(pays.iter().copied());
                job.together = Some(Together {
                    rows,
                    max_delay: Duration::ZERO,
                });
                // Somebody waits for it.
                std::mem::forget(answer);
                job
            });
            let mut group = Group::of(jobs.next().unwrap());
            let outside = jobs.filter_map(|job| group.join(job).err()).count();
            let surplus = group.cut();
            let rows = group.merged().unwrap()[0].shape[0];
            (rows, surplus.len() + outside)
        };
        assert_eq!(left(&[2, 4, 8], &[1; 8]), (8, 0));
        assert_eq!(left(&[2, 4, 8], &[1; 7]), (4, 3));
        assert_eq!(left(&[2, 4, 8], &[1; 3]), (2, 1));
        assert_eq!(left(&[8], &[1; 7]), (1, 6));
        assert_eq!(left(&[], &[1; 7]), (1, 6));
        // A run that does not fit leaves its place to one that does.
        assert_eq!(left(&[4], &[3, 2, 1]), (4, 1));
    }

    #[test]
    fn who_gives_up_takes_its_rows_along() {
        let (first, gone) = with(vec![tensor(&[1, 2], 0)]);
        let (second, _b) = with(vec![tensor(&[2, 2], 10)]);
        let mut group = Group::of(first);
        group.join(second).unwrap();
        drop(gone);
        let group = group.without_the_gone();
        assert_eq!(group.merged().unwrap(), [tensor(&[2, 2], 10)]);
    }
}

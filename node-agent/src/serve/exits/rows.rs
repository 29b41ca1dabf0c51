//! Rows that leave, rows that continue, and the combined answer.

use super::Rules;
use super::measure::{leaves, measure, numbers};
use bytes::{Bytes, BytesMut};
use lamina_model::{DataType, ValueSpec};
use lamina_proto::hop::{ForwardReply, RowExit, Tensor};

/// The output of an exit or a host does not match the rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub(crate) enum MeetError {
    #[error("`{output}` has {shape:?} of {datatype}, which are no logits of {rows} rows")]
    Logits {
        output: String,
        shape: Vec<i64>,
        datatype: String,
        rows: usize,
    },
    #[error("the next host answered {got} of {rows} rows")]
    Rows { rows: usize, got: usize },
    #[error("the next host did not give `{0}`")]
    Answer(String),
    #[error("no exit answered row {0}")]
    Open(usize),
}

/// The rows of one request on this host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    rows: Vec<Option<Answer>>,
    like: Option<Like>,
}

#[derive(Debug, Clone)]
struct Answer {
    logits: Bytes,
    left: RowExit,
}

/// The shape of every answer: logits of this many classes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Like {
    datatype: DataType,
    classes: i64,
}

/// The logits of an exit, row by row.
struct Logits<'a> {
    tensor: &'a Tensor,
    like: Like,
    rows: usize,
    row_bytes: usize,
}

impl<'a> Logits<'a> {
    /// `None` if `tensor` has no logits.
    fn of(tensor: &'a Tensor) -> Option<Self> {
        let datatype: DataType = tensor.datatype.parse().ok()?;
        let [rows, classes] = tensor.shape[..] else {
            return None;
        };
        numbers(datatype, &[])?;
        let is_whole = datatype.checked_bytes(&tensor.shape)? == tensor.data.len() as u64;
        if classes < 2 || rows < 1 || !is_whole {
            return None;
        }
        let rows = usize::try_from(rows).ok()?;
        Some(Self {
            tensor,
            like: Like { datatype, classes },
            rows,
            row_bytes: tensor.data.len() / rows,
        })
    }

    fn row(&self, row: usize) -> Bytes {
        let begin = row * self.row_bytes;
        self.tensor.data.slice(begin..begin + self.row_bytes)
    }
}

impl Standing {
    /// Whether an exit was met here.
    pub(crate) const fn has_met(&self) -> bool {
        self.like.is_some()
    }

    /// Exit `exit` of `rules` gave `logits` on this host, in `segment`: confident rows leave;
    /// at the last exit, or with `is_cut_off`, all that are left do.
    ///
    /// # Errors
    /// `logits` do not match the rows.
    pub(crate) fn meet(
        &mut self,
        rules: &Rules,
        exit: usize,
        logits: &Tensor,
        segment: u32,
        is_cut_off: bool,
    ) -> Result<(), MeetError> {
        let (found, rule) = (self.fitting(logits)?, &rules.exits[exit]);
        let is_end = exit + 1 == rules.exits.len();
        for (row, place) in self
            .rows
            .iter_mut()
            .enumerate()
            .filter(|(_, p)| p.is_none())
        {
            let data = found.row(row);
            // They were checked to be real numbers.
            let values = numbers(found.like.datatype, &data).unwrap_or_default();
            let measured = measure(rules.criterion, &values, rule.temperature);
            let is_sure = is_end || leaves(rules.criterion, measured, rule.threshold);
            if is_sure || is_cut_off {
                let left = RowExit {
                    exit: u32::try_from(exit).unwrap_or(u32::MAX),
                    measure: measured,
                    is_cut_off: !is_sure,
                    segment,
                };
                *place = Some(Answer { logits: data, left });
            }
        }
        Ok(())
    }

    /// `tensor` as logits of these rows; the first ones determine the number of rows.
    fn fitting<'a>(&mut self, tensor: &'a Tensor) -> Result<Logits<'a>, MeetError> {
        let misfit = |rows| MeetError::Logits {
            output: tensor.name.clone(),
            shape: tensor.shape.clone(),
            datatype: tensor.datatype.clone(),
            rows,
        };
        let logits = Logits::of(tensor).ok_or_else(|| misfit(self.rows.len()))?;
        let like = self.like.get_or_insert_with(|| logits.like.clone());
        if self.rows.is_empty() {
            self.rows = vec![None; logits.rows];
        }
        if *like != logits.like || self.rows.len() != logits.rows {
            return Err(misfit(self.rows.len()));
        }
        Ok(logits)
    }

    /// Number of rows; 0 before the first exit.
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Rows that no exit has answered.
    pub(crate) fn open(&self) -> Vec<usize> {
        let open = self
            .rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.is_none());
        open.map(|(row, _)| row).collect()
    }

    /// The answer of the next host to the rows `sent`, for those that are open.
    ///
    /// # Errors
    /// It is invalid.
    pub(crate) fn take(
        &mut self,
        rules: &Rules,
        sent: &[usize],
        reply: &ForwardReply,
    ) -> Result<(), MeetError> {
        let answer = rules.answer();
        let tensor = reply.tensors.iter().find(|t| t.name == answer);
        let tensor = tensor.ok_or_else(|| MeetError::Answer(answer.to_owned()))?;
        let rows = sent.len();
        let misfit = || MeetError::Logits {
            output: answer.to_owned(),
            shape: tensor.shape.clone(),
            datatype: tensor.datatype.clone(),
            rows,
        };
        let logits = Logits::of(tensor).ok_or_else(misfit)?;
        let lefts = lefts(rules, &logits, reply);
        if logits.rows != rows || lefts.len() != rows {
            let got = logits.rows.min(lefts.len());
            return Err(MeetError::Rows { rows, got });
        }
        if self.like.as_ref().is_some_and(|like| *like != logits.like) {
            return Err(misfit());
        }
        for ((at, row), left) in sent.iter().enumerate().zip(lefts) {
            if let Some(place @ None) = self.rows.get_mut(*row) {
                let logits = logits.row(at);
                *place = Some(Answer { logits, left });
            }
        }
        Ok(())
    }

    /// The answer of all rows, and where each of them left.
    ///
    /// # Errors
    /// A row has none.
    pub(crate) fn finish(self, rules: &Rules) -> Result<(Tensor, Vec<RowExit>), MeetError> {
        let Some(like) = self.like else {
            return Err(MeetError::Open(0));
        };
        let rows = self.rows.len();
        let shape = vec![i64::try_from(rows).unwrap_or(i64::MAX), like.classes];
        let mut data = BytesMut::new();
        let mut lefts = Vec::with_capacity(rows);
        for (row, answer) in self.rows.into_iter().enumerate() {
            let answer = answer.ok_or(MeetError::Open(row))?;
            data.extend_from_slice(&answer.logits);
            lefts.push(answer.left);
        }
        let tensor = Tensor {
            name: rules.answer().to_owned(),
            datatype: like.datatype.as_str().to_owned(),
            shape,
            data: data.freeze(),
            encoded: None,
        };
        Ok((tensor, lefts))
    }
}

/// Where the rows of `reply` left: at the end, if a host of a version without exits ran them.
fn lefts(rules: &Rules, logits: &Logits<'_>, reply: &ForwardReply) -> Vec<RowExit> {
    if !reply.rows.is_empty() {
        return reply.rows.clone();
    }
    let end = rules.exits.len().saturating_sub(1);
    let temperature = rules.exits.last().map_or(1.0, |exit| exit.temperature);
    let segment = reply.timings.last().map_or(0, |t| t.segment);
    let one = |row| {
        let values = numbers(logits.like.datatype, &logits.row(row)).unwrap_or_default();
        RowExit {
            exit: u32::try_from(end).unwrap_or(u32::MAX),
            measure: measure(rules.criterion, &values, temperature),
            is_cut_off: false,
            segment,
        }
    };
    (0..logits.rows).map(one).collect()
}

/// The rows `kept` of `tensors`, which are `specs` and have `rows` rows each. `None` if one of them
/// does not: it may describe the batch as a whole.
pub(crate) fn part(
    tensors: &[Tensor],
    specs: &[ValueSpec],
    rows: usize,
    kept: &[usize],
) -> Option<Vec<Tensor>> {
    let one = |tensor: &Tensor| {
        let spec = specs.iter().find(|spec| spec.name == tensor.name)?;
        let is_led = spec.has_rows()
            && tensor.shape.first().and_then(|r| usize::try_from(*r).ok()) == Some(rows);
        if !is_led || !tensor.data.len().is_multiple_of(rows.max(1)) {
            return None;
        }
        let row_bytes = tensor.data.len() / rows.max(1);
        let mut data = BytesMut::with_capacity(kept.len() * row_bytes);
        for row in kept {
            data.extend_from_slice(tensor.data.get(row * row_bytes..(row + 1) * row_bytes)?);
        }
        let mut shape = tensor.shape.clone();
        *shape.first_mut()? = i64::try_from(kept.len()).ok()?;
        Some(Tensor {
            name: tensor.name.clone(),
            datatype: tensor.datatype.clone(),
            shape,
            data: data.freeze(),
            encoded: None,
        })
    };
    tensors.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::engine::fake::fp32;
    use crate::serve::hop::to_wire;
    use lamina_proto::hop::{ExitCriterion, ExitRule, ExitRules};

    fn rules(threshold: f64) -> Rules {
        let exit = |output: &str, threshold| ExitRule {
            output: output.into(),
            temperature: 1.0,
            threshold,
        };
        Rules::read(&ExitRules {
            exits: vec![exit("side", Some(threshold)), exit("end", None)],
            criterion: ExitCriterion::Confidence.into(),
            answer_when_cut_off: true,
        })
        .unwrap()
    }

    fn logits(name: &str, rows: &[[f32; 2]]) -> Tensor {
        let shape = [i64::try_from(rows.len()).unwrap(), 2];
        to_wire(name, fp32(&shape, rows.as_flattened()))
    }

    /// Exit, whether cut off, and the first logit of each row.
    fn told(standing: Standing, rules: &Rules) -> Vec<(u32, bool, f32)> {
        let (tensor, lefts) = standing.finish(rules).unwrap();
        assert_eq!(tensor.name, "end");
        let values = numbers(DataType::Fp32, &tensor.data).unwrap();
        let firsts = values.iter().step_by(2).map(|v| *v as f32);
        let one = |(left, first): (RowExit, f32)| (left.exit, left.is_cut_off, first);
        lefts.into_iter().zip(firsts).map(one).collect()
    }

    #[test]
    fn sure_rows_leave_and_the_others_come_back_to_their_places() {
        let rules = rules(0.9);
        let mut standing = Standing::default();
        let side = logits("side", &[[9.0, 0.0], [0.1, 0.0], [0.0, 8.0], [0.2, 0.0]]);
        standing.meet(&rules, 0, &side, 0, false).unwrap();
        assert_eq!(standing.open(), [1, 3]);
        let mut reply = ForwardReply {
            tensors: vec![logits("end", &[[5.0, 0.0], [6.0, 0.0]])],
            ..ForwardReply::default()
        };
        let mut strict = standing.clone();
        standing.take(&rules, &[1, 3], &reply).unwrap();
        let all = told(standing, &rules);
        assert_eq!(
            all,
            [
                (0, false, 9.0),
                (1, false, 5.0),
                (0, false, 0.0),
                (1, false, 6.0)
            ]
        );
        // Rows that were sent along because they could not be separated keep their answer.
        let mut whole = Standing::default();
        whole.meet(&rules, 0, &side, 0, false).unwrap();
        let four = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]];
        let all_rows = ForwardReply {
            tensors: vec![logits("end", &four)],
            ..ForwardReply::default()
        };
        whole.take(&rules, &[0, 1, 2, 3], &all_rows).unwrap();
        let firsts: Vec<f32> = told(whole, &rules).iter().map(|t| t.2).collect();
        assert_eq!(firsts, [9.0, 2.0, 0.0, 4.0]);
        // A host that returns less than requested is not trusted.
        reply.rows = vec![RowExit::default()];
        let wrong = strict.take(&rules, &[1, 3], &reply).unwrap_err();
        assert_eq!(wrong, MeetError::Rows { rows: 2, got: 1 });
        assert!(matches!(strict.finish(&rules), Err(MeetError::Open(1))));
    }

    #[test]
    fn who_is_cut_off_leaves_with_what_there_is_and_is_told_so() {
        let rules = rules(0.9);
        let mut standing = Standing::default();
        let side = logits("side", &[[9.0, 0.0], [0.1, 0.0]]);
        standing.meet(&rules, 0, &side, 0, false).unwrap();
        standing.meet(&rules, 0, &side, 0, true).unwrap();
        assert_eq!(told(standing, &rules), [(0, false, 9.0), (0, true, 0.1)]);
    }

    #[test]
    fn everyone_leaves_at_the_end() {
        let rules = rules(1.0);
        let mut standing = Standing::default();
        let side = logits("side", &[[0.1, 0.0]]);
        standing.meet(&rules, 0, &side, 1, false).unwrap();
        assert!(standing.has_met());
        let end = logits("end", &[[0.3, 0.0]]);
        standing.meet(&rules, 1, &end, 1, false).unwrap();
        assert_eq!(told(standing, &rules), [(1, false, 0.3)]);
    }

    #[test]
    fn what_is_no_logits_is_refused() {
        let rules = rules(0.5);
        let good = logits("side", &[[1.0, 0.0]]);
        let wrong = |change: fn(&mut Tensor)| {
            let mut tensor = good.clone();
            change(&mut tensor);
            let mut standing = Standing::default();
            standing.meet(&rules, 0, &good, 0, false).unwrap();
            standing.meet(&rules, 1, &tensor, 0, false).is_err()
        };
        assert!(!wrong(|_| {}));
        assert!(wrong(|t| t.shape = vec![2]));
        assert!(wrong(|t| t.shape = vec![1, 3]));
        assert!(wrong(|t| t.shape = vec![i64::MAX, 2]));
        assert!(wrong(|t| t.datatype = "INT32".into()));
        assert!(wrong(|t| t.datatype = "FP8".into()));
        assert!(wrong(|t| *t = logits("side", &[[1.0, 0.0], [1.0, 0.0]])));
    }

    #[test]
    fn rows_part_only_where_each_tensor_has_them() {
        let spec = |name: &str, shape: &[i64]| ValueSpec {
            name: name.into(),
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            sizes: Vec::new(),
        };
        let x = to_wire("x", fp32(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let specs = [spec("x", &[-1, 2]), spec("size", &[1])];
        let parted = part(std::slice::from_ref(&x), &specs, 3, &[0, 2]).unwrap();
        assert_eq!(parted, [to_wire("x", fp32(&[2, 2], &[1.0, 2.0, 5.0, 6.0]))]);
        // It may be the size of the batch.
        let size = to_wire("size", fp32(&[1], &[3.0]));
        assert_eq!(part(&[x.clone(), size], &specs, 3, &[0]), None);
        assert_eq!(part(&[x], &specs, 2, &[0]), None);
    }
}

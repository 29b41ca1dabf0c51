//! Shapes that hold for any batch size, found by running two sizes.

use crate::names::Names;
use crate::tensors::{max_abs_diff, stacked};
use lamina_model::{Tensor, ValueSpec};

/// Largest difference between a row alone and in a batch, relative to the
/// largest magnitude: other kernels may be chosen, other answers may not.
const BATCH_TOLERANCE: f64 = 1e-3;

/// Names, types and shapes of a model's values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shapes {
    pub(crate) inputs: Vec<ValueSpec>,
    /// Per cut what crosses; `None` where a shape depends on the request, or on
    /// the batch in another than the first place: no agent could check it.
    pub(crate) at_cuts: Vec<Option<Vec<ValueSpec>>>,
    pub(crate) outputs: Vec<ValueSpec>,
}

/// All `requests` as one batch, where the declaration leaves the batch free;
/// inputs with a fixed shape are the first request's.
pub(crate) fn batch(declared: &[ValueSpec], requests: &[&Vec<Tensor>]) -> Option<Vec<Tensor>> {
    if !is_batch_free(declared) {
        return None;
    }
    declared
        .iter()
        .enumerate()
        .map(|(i, value)| {
            let rows: Vec<&Tensor> = requests
                .iter()
                .map(|request| request.get(i))
                .collect::<Option<_>>()?;
            if is_free(value) {
                stacked(&rows)
            } else {
                rows.first().map(|&row| row.clone())
            }
        })
        .collect()
}

/// Whether some input takes any number of rows.
pub(crate) fn is_batch_free(inputs: &[ValueSpec]) -> bool {
    inputs.iter().any(is_free)
}

/// Whether it has one row for each row of the batch.
pub(crate) fn is_free(value: &ValueSpec) -> bool {
    value.shape.first() == Some(&-1)
}

/// Shapes from the values (those of each cut, then the outputs) of two requests
/// of batch 1 and, where that ran, of both as one batch.
///
/// Where the batch did not run or changed the answers, or an output does not
/// carry it in the first place, all shapes are those of batch 1.
pub(crate) fn generalize(
    declared: &[ValueSpec],
    names: &Names,
    at_one: &[Vec<Tensor>],
    at_two: Option<&[Tensor]>,
) -> Shapes {
    let values = at_one.first().map_or(&[][..], Vec::as_slice);
    let crossing: usize = names.at_cuts.iter().map(Vec::len).sum();
    let free = at_two.filter(|two| batch_holds(declared, crossing, at_one, two));
    let named = |i: usize, name: &String, shape: Vec<i64>| ValueSpec {
        name: name.clone(),
        datatype: values[i].datatype,
        shape,
    };
    let shape = |i: usize| {
        let alike = at_one
            .iter()
            .all(|request| is_alike(&request[i], &values[i]));
        match free {
            _ if !alike => None,
            Some(two) if is_alike(&two[i], &values[i]) => Some(values[i].shape.clone()),
            Some(two) => free_shape(&values[i], &two[i]),
            None => Some(values[i].shape.clone()),
        }
    };
    let mut next = 0;
    let at_cuts = names.at_cuts.iter().map(|names| {
        let first = next;
        next += names.len();
        let specs = names.iter().zip(first..);
        specs
            .map(|(name, i)| Some(named(i, name, shape(i)?)))
            .collect()
    });
    let at_cuts = at_cuts.collect();
    let outputs = names.outputs.iter().zip(crossing..);
    Shapes {
        inputs: declared
            .iter()
            .map(|value| match free {
                Some(_) => value.clone(),
                None => at_batch_one(value),
            })
            .collect(),
        at_cuts,
        outputs: outputs
            .map(|(name, i)| {
                let shape = shape(i).unwrap_or_else(|| values[i].shape.clone());
                named(i, name, shape)
            })
            .collect(),
    }
}

fn is_alike(a: &Tensor, b: &Tensor) -> bool {
    a.shape == b.shape && a.datatype == b.datatype
}

pub(crate) fn at_batch_one(value: &ValueSpec) -> ValueSpec {
    let mut value = value.clone();
    for dim in &mut value.shape {
        *dim = (*dim).max(1);
    }
    value
}

/// Whether the batch of two gives the answers of the two requests.
fn batch_holds(
    declared: &[ValueSpec],
    cuts: usize,
    at_one: &[Vec<Tensor>],
    at_two: &[Tensor],
) -> bool {
    let [first, second] = at_one else {
        return false;
    };
    if first.len() != at_two.len() || second.len() != at_two.len() {
        return false;
    }
    let all_free = declared.iter().all(is_free);
    (cuts..at_two.len()).all(|i| {
        // With an input that is not batched the second answer is another one.
        free_shape(&first[i], &at_two[i]).is_some_and(|shape| shape.first() == Some(&-1))
            && (!all_free
                || stacked(&[&first[i], &second[i]]).is_some_and(|rows| is_near(&rows, &at_two[i])))
    })
}

/// Whether `rows`, each computed alone, are those of `batch` but for rounding.
pub(crate) fn is_near(rows: &Tensor, batch: &Tensor) -> bool {
    max_abs_diff(rows, batch) <= tolerance(rows)
}

fn tolerance(tensor: &Tensor) -> f64 {
    let zeros = Tensor {
        data: vec![0; tensor.data.len()].into(),
        ..tensor.clone()
    };
    BATCH_TOLERANCE * max_abs_diff(tensor, &zeros).max(f64::MIN_POSITIVE)
}

/// The shape with -1 in the first place, where the batch is there and nowhere
/// else.
fn free_shape(one: &Tensor, two: &Tensor) -> Option<Vec<i64>> {
    let fits = one.datatype == two.datatype
        && one.shape.first() == Some(&1)
        && two.shape.first() == Some(&2)
        && one.shape[1..] == two.shape[1..];
    fits.then(|| {
        let mut shape = one.shape.clone();
        shape[0] = -1;
        shape
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::{DataType, OutputStructure};

    fn spec(name: &str, shape: &[i64]) -> ValueSpec {
        ValueSpec {
            name: name.into(),
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
        }
    }

    fn filled(shape: &[i64], values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor {
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            data: data.into(),
        }
    }

    fn names(cut: &[&str]) -> Names {
        Names {
            at_cuts: vec![cut.iter().map(ToString::to_string).collect()],
            outputs: vec!["y".into()],
            structure: OutputStructure::None,
        }
    }

    /// One cut, one output, both of one element per row.
    fn at_one() -> Vec<Vec<Tensor>> {
        [1.0, 2.0]
            .iter()
            .map(|&v| vec![filled(&[1, 1], &[v]), filled(&[1, 1], &[v * 10.0])])
            .collect()
    }

    #[test]
    fn a_batch_that_holds_frees_every_first_dimension() {
        let two = [filled(&[2, 1], &[1.0, 2.0]), filled(&[2, 1], &[10.0, 20.0])];
        let shapes = generalize(
            &[spec("x", &[-1, 3])],
            &names(&["a"]),
            &at_one(),
            Some(&two),
        );
        assert_eq!(shapes.inputs, [spec("x", &[-1, 3])]);
        assert_eq!(shapes.at_cuts, [Some(vec![spec("a", &[-1, 1])])]);
        assert_eq!(shapes.outputs, [spec("y", &[-1, 1])]);
    }

    #[test]
    fn a_batch_that_fails_or_changes_answers_fixes_every_shape() {
        let wrong = [filled(&[2, 1], &[1.0, 2.0]), filled(&[2, 1], &[10.0, 21.0])];
        for two in [None, Some(&wrong[..])] {
            let shapes = generalize(&[spec("x", &[-1, 3])], &names(&["a"]), &at_one(), two);
            assert_eq!(shapes.inputs, [spec("x", &[1, 3])]);
            assert_eq!(shapes.at_cuts, [Some(vec![spec("a", &[1, 1])])]);
            assert_eq!(shapes.outputs, [spec("y", &[1, 1])]);
        }
    }

    #[test]
    fn a_value_that_hides_the_batch_is_no_border() {
        let two = [filled(&[1, 2], &[1.0, 2.0]), filled(&[2, 1], &[10.0, 20.0])];
        let shapes = generalize(
            &[spec("x", &[-1, 3])],
            &names(&["a"]),
            &at_one(),
            Some(&two),
        );
        assert_eq!(shapes.at_cuts, [None]);
        assert_eq!(shapes.outputs, [spec("y", &[-1, 1])]);
    }

    #[test]
    fn values_without_the_batch_cross_with_the_shape_that_they_have() {
        // A number, and a mask of the batch, beside a tensor per row.
        let request = |v: f32| {
            let row = filled(&[1, 1], &[v]);
            vec![row.clone(), filled(&[1], &[7.0]), row]
        };
        let rows = filled(&[2, 1], &[1.0, 2.0]);
        let two = [rows.clone(), filled(&[1], &[8.0]), rows];
        let declared = [spec("x", &[-1, 3])];
        let at_one = [request(1.0), request(2.0)];
        let shapes = generalize(&declared, &names(&["a", "n"]), &at_one, Some(&two));
        let want = vec![spec("a", &[-1, 1]), spec("n", &[1])];
        assert_eq!(shapes.at_cuts, [Some(want)]);
    }

    #[test]
    fn a_value_whose_shape_depends_on_the_request_is_no_border() {
        let request = |values: &[f32]| {
            let row = filled(&[1, 1], &values[..1]);
            vec![filled(&[i64::try_from(values.len()).unwrap()], values), row]
        };
        let at_one = [request(&[1.0]), request(&[2.0, 3.0])];
        let shapes = generalize(&[spec("x", &[1, 3])], &names(&["a"]), &at_one, None);
        assert_eq!(shapes.at_cuts, [None]);
    }

    #[test]
    fn fixed_inputs_are_not_doubled() {
        let requests: Vec<Vec<Tensor>> = (0..2)
            .map(|_| vec![filled(&[1, 1], &[1.0]), filled(&[3], &[1.0, 2.0, 3.0])])
            .collect();
        let declared = [spec("x", &[-1, 1]), spec("scale", &[3])];
        let rows: Vec<&Vec<Tensor>> = requests.iter().collect();
        let two = batch(&declared, &rows).unwrap();
        assert_eq!(two[0].shape, [2, 1]);
        assert_eq!(two[1].shape, [3]);
        assert_eq!(batch(&declared[1..], &rows), None);
    }
}

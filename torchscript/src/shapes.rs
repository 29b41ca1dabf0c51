//! Shapes that hold for any batch size, found by running two sizes.

use crate::names::Names;
use crate::tensors::{max_abs_diff, stacked};
use lamina_model::{FreeSize, Tensor, ValueSpec};

/// Largest difference between a row alone and in a batch, relative to the largest magnitude: other
/// kernels may be chosen, other answers may not.
const BATCH_TOLERANCE: f64 = 1e-3;

/// Names, types and shapes of a model's values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shapes {
    pub(crate) inputs: Vec<ValueSpec>,
    /// The values at each cut; `None` if a shape depends on the request's values: no agent could
    /// check it.
    pub(crate) at_cuts: Vec<Option<Vec<ValueSpec>>>,
    pub(crate) outputs: Vec<ValueSpec>,
}

/// All `requests` as one batch, if the declaration leaves the batch free; inputs with a fixed shape
/// are the first request's.
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
            if value.has_rows() {
                stacked(&rows)
            } else {
                rows.first().map(|&row| row.clone())
            }
        })
        .collect()
}

/// Whether some input takes any number of rows.
pub(crate) fn is_batch_free(inputs: &[ValueSpec]) -> bool {
    inputs.iter().any(ValueSpec::has_rows)
}

/// Shapes from the values (those of each cut, then the outputs) of two requests
/// of batch 1 and, if that ran, of both as one batch.
///
/// If the batch did not run or changed the answers, or an output does not have it
/// as the first dimension, all shapes are those of batch 1. In values at cuts it may
/// be any dimension, or only the first if `rows_first`.
pub(crate) fn generalize(
    declared: &[ValueSpec],
    names: &Names,
    at_one: &[Vec<Tensor>],
    at_two: Option<&[Tensor]>,
    rows_first: bool,
) -> Shapes {
    let values = at_one.first().map_or(&[][..], Vec::as_slice);
    let crossing: usize = names.at_cuts.iter().map(Vec::len).sum();
    let free = at_two.filter(|two| batch_holds(declared, crossing, at_one, two));
    let named = |i: usize, name: &String, (shape, sizes): Shape| ValueSpec {
        name: name.clone(),
        datatype: values[i].datatype,
        shape,
        sizes,
    };
    let shape = |i: usize| {
        let alike = at_one
            .iter()
            .all(|request| is_alike(&request[i], &values[i]));
        match free {
            _ if !alike => None,
            Some(two) => free_shape(&values[i], &two[i], rows_first),
            None => Some((values[i].shape.clone(), Vec::new())),
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
                let as_it_is = || (values[i].shape.clone(), Vec::new());
                named(i, name, shape(i).unwrap_or_else(as_it_is))
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
    let all_free = declared.iter().all(ValueSpec::has_rows);
    (cuts..at_two.len()).all(|i| {
        // With an unbatched input the second answer differs.
        free_shape(&first[i], &at_two[i], true).is_some_and(|(s, _)| s.first() == Some(&-1))
            && (!all_free
                || stacked(&[&first[i], &second[i]]).is_some_and(|rows| is_near(&rows, &at_two[i])))
    })
}

/// Whether `rows`, each computed alone, equal those of `batch` up to rounding.
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

/// A shape with its free sizes.
type Shape = (Vec<i64>, Vec<FreeSize>);

/// The shape with -1 for the batch, alone or as a factor; only in the first dimension if
/// `rows_first`.
fn free_shape(one: &Tensor, two: &Tensor, rows_first: bool) -> Option<Shape> {
    if one.datatype != two.datatype || one.shape.len() != two.shape.len() {
        return None;
    }
    let (mut shape, mut sizes) = (one.shape.clone(), Vec::new());
    let pairs = one.shape.iter().zip(&two.shape).enumerate();
    for (place, (&of_one, &of_two)) in pairs.filter(|(_, (one, two))| one != two) {
        let is_batch = (of_one, of_two) == (1, 2);
        if rows_first && !(place == 0 && is_batch) {
            return None;
        }
        shape[place] = -1;
        sizes.extend((!is_batch).then_some(FreeSize {
            dimension: place,
            typical: of_one,
            bounds: None,
            file_bytes: None,
        }));
    }
    Some((shape, sizes))
}

/// Frees the dimensions whose size differs in `others`, the shapes of all values with other sizes
/// of the inputs; `typical` are the values themselves. A cut at which the rank differs is dropped.
pub(crate) fn free_sizes(
    shapes: &mut Shapes,
    names: &Names,
    typical: &[Tensor],
    others: &[Vec<Vec<i64>>],
) {
    let free = |spec: &mut ValueSpec, i: usize| {
        let one = &typical[i].shape;
        others.iter().all(|other| {
            let other = &other[i];
            for (place, (of_one, of_other)) in one.iter().zip(other).enumerate() {
                if of_one == of_other || spec.size_at(place).is_some() {
                    continue;
                }
                spec.shape[place] = -1;
                spec.sizes.push(FreeSize {
                    dimension: place,
                    typical: *of_one,
                    bounds: None,
                    file_bytes: None,
                });
            }
            one.len() == other.len()
        })
    };
    let mut next = 0;
    for (at_cut, names) in shapes.at_cuts.iter_mut().zip(&names.at_cuts) {
        let first = next;
        next += names.len();
        let specs = at_cut.iter_mut().flatten().zip(first..);
        let ranks = specs.map(|(spec, i)| free(spec, i)).collect::<Vec<_>>();
        if ranks.contains(&false) {
            *at_cut = None;
        }
    }
    for (spec, i) in shapes.outputs.iter_mut().zip(next..) {
        free(spec, i);
    }
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
            sizes: Vec::new(),
        }
    }

    /// With unnamed sizes.
    fn sized(name: &str, shape: &[i64], sizes: &[(usize, i64)]) -> ValueSpec {
        let size = |&(dimension, typical)| FreeSize {
            dimension,
            typical,
            bounds: None,
            file_bytes: None,
        };
        ValueSpec {
            sizes: sizes.iter().map(size).collect(),
            ..spec(name, shape)
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
            false,
        );
        assert_eq!(shapes.inputs, [spec("x", &[-1, 3])]);
        assert_eq!(shapes.at_cuts, [Some(vec![spec("a", &[-1, 1])])]);
        assert_eq!(shapes.outputs, [spec("y", &[-1, 1])]);
    }

    #[test]
    fn a_batch_that_fails_or_changes_answers_fixes_every_shape() {
        let wrong = [filled(&[2, 1], &[1.0, 2.0]), filled(&[2, 1], &[10.0, 21.0])];
        for two in [None, Some(&wrong[..])] {
            let declared = [spec("x", &[-1, 3])];
            let shapes = generalize(&declared, &names(&["a"]), &at_one(), two, false);
            assert_eq!(shapes.inputs, [spec("x", &[1, 3])]);
            assert_eq!(shapes.at_cuts, [Some(vec![spec("a", &[1, 1])])]);
            assert_eq!(shapes.outputs, [spec("y", &[1, 1])]);
        }
    }

    #[test]
    fn the_batch_may_cross_a_cut_in_any_place() {
        let two = [filled(&[1, 2], &[1.0, 2.0]), filled(&[2, 1], &[10.0, 20.0])];
        let declared = [spec("x", &[-1, 3])];
        let at = |rows_first| {
            let names = names(&["a"]);
            generalize(&declared, &names, &at_one(), Some(&two), rows_first)
        };
        assert_eq!(at(false).at_cuts, [Some(vec![spec("a", &[1, -1])])]);
        assert_eq!(at(false).outputs, [spec("y", &[-1, 1])]);
        assert_eq!(at(true).at_cuts, [None]);
        let merged = [filled(&[2, 1], &[1.0, 2.0]), filled(&[1, 1], &[10.0])];
        let both = [filled(&[4, 1], &[1.0; 4]), filled(&[2, 1], &[10.0; 2])];
        let at_one = [merged.to_vec(), merged.to_vec()];
        let shapes = generalize(&declared, &names(&["a"]), &at_one, Some(&both), false);
        assert_eq!(
            shapes.at_cuts,
            [Some(vec![sized("a", &[-1, 1], &[(0, 2)])])]
        );
    }

    #[test]
    fn what_follows_a_size_is_free_where_it_is_and_of_one_rank() {
        let typical = [filled(&[1, 5], &[0.0; 5]), filled(&[1, 7], &[0.0; 7])];
        let mut shapes = Shapes {
            inputs: Vec::new(),
            at_cuts: vec![Some(vec![spec("a", &[-1, 5])])],
            outputs: vec![spec("y", &[-1, 7])],
        };
        let same_rank = shapes.clone();
        let others = [vec![vec![1, 9], vec![1, 7]], vec![vec![1, 5], vec![1, 8]]];
        free_sizes(&mut shapes, &names(&["a"]), &typical, &others);
        assert_eq!(
            shapes.at_cuts,
            [Some(vec![sized("a", &[-1, -1], &[(1, 5)])])]
        );
        assert_eq!(shapes.outputs, [sized("y", &[-1, -1], &[(1, 7)])]);
        assert!(shapes.outputs[0].has_rows());
        let mut shapes = same_rank;
        free_sizes(
            &mut shapes,
            &names(&["a"]),
            &typical,
            &[vec![vec![5], vec![1, 7]]],
        );
        assert_eq!(shapes.at_cuts, [None]);
    }

    #[test]
    fn values_without_the_batch_cross_with_the_shape_that_they_have() {
        // A number, and a mask of the batch, besides a tensor per row.
        let request = |v: f32| {
            let row = filled(&[1, 1], &[v]);
            vec![row.clone(), filled(&[1], &[7.0]), row]
        };
        let rows = filled(&[2, 1], &[1.0, 2.0]);
        let two = [rows.clone(), filled(&[1], &[8.0]), rows];
        let declared = [spec("x", &[-1, 3])];
        let at_one = [request(1.0), request(2.0)];
        let shapes = generalize(&declared, &names(&["a", "n"]), &at_one, Some(&two), false);
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
        let shapes = generalize(&[spec("x", &[1, 3])], &names(&["a"]), &at_one, None, false);
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

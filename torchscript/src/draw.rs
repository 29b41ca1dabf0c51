//! Random inputs for checks, probes and warm-ups: the same seed gives the same bytes on every host.

use crate::tensors::{Unsupported, from_torch};
use bytes::Bytes;
use lamina_model::{DataType, InputSpec, Tensor, ValueRange, ValueSpec};
use std::f64::consts::TAU;

/// SplitMix64: good enough for test inputs, and the same everywhere.
#[derive(Debug, Clone)]
struct Generator(u64);

impl Generator {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (TAU * self.unit()).cos()
    }
}

/// Why no input can be drawn for a declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadInput(pub(crate) String);

/// Draws one request of batch 1: one tensor per declared input. Requests with different `number`
/// differ.
pub(crate) fn request(
    inputs: &[InputSpec],
    seed: u64,
    number: u64,
) -> Result<Vec<Tensor>, BadInput> {
    let mut generator = Generator(seed);
    generator.0 = generator.next() ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93);
    inputs
        .iter()
        .map(|input| draw(&input.value, input.range, &mut generator))
        .collect()
}

/// Numbers in [0, 1), the same for the same seed.
pub(crate) fn shares(seed: u64, count: usize) -> Vec<f64> {
    let mut generator = Generator(seed);
    (0..count).map(|_| generator.unit()).collect()
}

/// `inputs`, with a range for integers without one, derived from `samples`, so that random requests
/// stay inside.
pub(crate) fn with_ranges(inputs: &[InputSpec], samples: &[Vec<Tensor>]) -> Vec<InputSpec> {
    let shown = |place: usize| {
        let tensors = samples.iter().filter_map(|request| request.get(place));
        let numbers = tensors.flat_map(whole_numbers);
        let (min, max) = numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), n| {
            (min.min(n), max.max(n))
        });
        (min <= max).then_some(ValueRange { min, max })
    };
    let with_range = |(place, input): (usize, &InputSpec)| InputSpec {
        range: input.range.or_else(|| shown(place)),
        ..input.clone()
    };
    inputs.iter().enumerate().map(with_range).collect()
}

/// The elements of an integer tensor; empty for others.
fn whole_numbers(tensor: &Tensor) -> Vec<f64> {
    let of = |width: usize, read: fn(&[u8]) -> i64| -> Vec<f64> {
        // Beyond 2^53 a nearby number is drawn, which is fine.
        #[allow(clippy::cast_precision_loss)]
        let numbers = tensor.data.chunks_exact(width).map(|c| read(c) as f64);
        numbers.collect()
    };
    match tensor.datatype {
        DataType::Bool => of(1, |c| i64::from(c[0] != 0)),
        DataType::Uint8 => of(1, |c| i64::from(c[0])),
        DataType::Int8 => of(1, |c| c.try_into().map_or(0, i8::from_le_bytes).into()),
        DataType::Int16 => of(2, |c| c.try_into().map_or(0, i16::from_le_bytes).into()),
        DataType::Int32 => of(4, |c| c.try_into().map_or(0, i32::from_le_bytes).into()),
        DataType::Int64 => of(8, |c| c.try_into().map_or(0, i64::from_le_bytes)),
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => Vec::new(),
    }
}

/// Requests of batch 1 that are unlike those of [`request`]: all at the lowest value, all at the
/// highest, values far apart, and an ordinary one. They reveal the other paths of a model that
/// branches on values.
pub(crate) fn unlike(inputs: &[InputSpec], seed: u64) -> Result<Vec<Vec<Tensor>>, BadInput> {
    let within = |choose: fn(ValueRange) -> ValueRange, number: u64| {
        let inputs: Vec<InputSpec> = inputs
            .iter()
            .map(|input| InputSpec {
                range: Some(choose(input.range.unwrap_or_else(|| usual(input)))),
                ..input.clone()
            })
            .collect();
        request(&inputs, seed, number)
    };
    Ok(vec![
        within(|r| ValueRange { max: r.min, ..r }, 2)?,
        within(|r| ValueRange { min: r.max, ..r }, 3)?,
        within(|r| r, 4)?,
        request(inputs, seed, 5)?,
    ])
}

/// A range for an input without one, wider than its usual values.
const fn usual(input: &InputSpec) -> ValueRange {
    if is_float(input.value.datatype) {
        ValueRange {
            min: -10.0,
            max: 10.0,
        }
    } else {
        ValueRange { min: 0.0, max: 1.0 }
    }
}

/// Values for the warm-up, batch 1: `examples` if given, else zeros for integers, which are in
/// every vocabulary, and noise for floats.
pub(crate) fn warm_up(
    values: &[ValueSpec],
    examples: &[Option<Vec<i64>>],
) -> Result<Vec<Tensor>, BadInput> {
    let mut generator = Generator(0);
    values
        .iter()
        .enumerate()
        .map(|(i, value)| {
            let range = (!is_float(value.datatype)).then_some(ValueRange { min: 0.0, max: 0.0 });
            let tensor = draw(value, range, &mut generator)?;
            let example = examples.get(i).and_then(Option::as_deref);
            Ok(example.and_then(|e| filled(&tensor, e)).unwrap_or(tensor))
        })
        .collect()
}

/// A tensor like this one with the integers `numbers`, one for each element or one for all; `None`
/// if they do not fit.
fn filled(like: &Tensor, numbers: &[i64]) -> Option<Tensor> {
    let count = like.data.len() / like.datatype.size_bytes();
    let repeated = match numbers {
        [number] => vec![*number; count],
        numbers => numbers.to_vec(),
    };
    let data: Vec<u8> = match like.datatype {
        DataType::Int64 => repeated.iter().flat_map(|n| n.to_le_bytes()).collect(),
        DataType::Bool => repeated.iter().map(|&n| u8::from(n != 0)).collect(),
        _ => return None,
    };
    (data.len() == like.data.len()).then(|| Tensor {
        data: Bytes::from(data),
        ..like.clone()
    })
}

const fn is_float(datatype: DataType) -> bool {
    matches!(
        datatype,
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64
    )
}

/// Smallest and largest value of an integer type.
const fn bounds(datatype: DataType) -> (f64, f64) {
    match datatype {
        DataType::Bool => (0.0, 1.0),
        DataType::Uint8 => (0.0, u8::MAX as f64),
        DataType::Int8 => (i8::MIN as f64, i8::MAX as f64),
        DataType::Int16 => (i16::MIN as f64, i16::MAX as f64),
        DataType::Int32 => (i32::MIN as f64, i32::MAX as f64),
        // Larger integers are not exact in the range's type.
        DataType::Int64 => (-9_007_199_254_740_992.0, 9_007_199_254_740_992.0),
        DataType::Fp16 => (-65504.0, 65504.0),
        DataType::Bf16 | DataType::Fp32 => (f32::MIN as f64, f32::MAX as f64),
        DataType::Fp64 => (f64::MIN, f64::MAX),
    }
}

fn draw(
    value: &ValueSpec,
    range: Option<ValueRange>,
    generator: &mut Generator,
) -> Result<Tensor, BadInput> {
    let shape = shape_at_one(value)?;
    let elements = elements(value, &shape)?;
    let datatype = value.datatype;
    let (lowest, highest) = bounds(datatype);
    if let Some(ValueRange { min, max }) = range
        && !(lowest <= min && min <= max && max <= highest)
    {
        return Err(BadInput(format!(
            "input `{}`: {min}..{max} is no range of {datatype}",
            value.name
        )));
    }
    let mut number = || match range {
        Some(ValueRange { min, max }) if is_float(datatype) => {
            (max - min).mul_add(generator.unit(), min)
        }
        Some(ValueRange { min, max }) => whole(generator, min.ceil(), max.floor()),
        None if is_float(datatype) => generator.normal(),
        None => whole(generator, 0.0, 1.0),
    };
    let mut data = Vec::with_capacity(elements * datatype.size_bytes());
    for _ in 0..elements {
        push(&mut data, datatype, number());
    }
    let tensor = Tensor {
        datatype: wide(datatype),
        shape,
        data: Bytes::from(data),
    };
    narrowed(tensor, datatype).map_err(|e| BadInput(format!("input `{}`: {}", value.name, e.0)))
}

fn whole(generator: &mut Generator, min: f64, max: f64) -> f64 {
    let span = (max - min + 1.0).max(1.0);
    (min + (generator.unit() * span).floor()).min(max)
}

/// The shape with 1 for a free batch size, and typical sizes.
fn shape_at_one(value: &ValueSpec) -> Result<Vec<i64>, BadInput> {
    let bad = || {
        BadInput(format!(
            "input `{}`: shape {:?} has a dimension below 1",
            value.name, value.shape
        ))
    };
    let sized = |(place, dim): (usize, i64)| match dim {
        -1 => Ok(1),
        1.. => Ok(dim),
        0 if value.size_at(place).is_some() => Ok(0),
        _ => Err(bad()),
    };
    value
        .typical_shape()
        .into_iter()
        .enumerate()
        .map(sized)
        .collect()
}

fn elements(value: &ValueSpec, shape: &[i64]) -> Result<usize, BadInput> {
    /// A request with more elements is a mistake in the declaration.
    const MOST: i64 = 1 << 30;
    let product = shape
        .iter()
        .try_fold(1_i64, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= MOST)
        .and_then(|n| usize::try_from(n).ok());
    product.ok_or_else(|| {
        BadInput(format!(
            "input `{}`: shape {:?} is larger than {MOST} elements",
            value.name, value.shape
        ))
    })
}

/// The type in which values are drawn: torch rounds half-width floats.
const fn wide(datatype: DataType) -> DataType {
    match datatype {
        DataType::Fp16 | DataType::Bf16 => DataType::Fp32,
        other => other,
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // the range was checked
fn push(data: &mut Vec<u8>, datatype: DataType, number: f64) {
    match datatype {
        DataType::Bool | DataType::Uint8 => data.push(number as u8),
        DataType::Int8 => data.extend((number as i8).to_le_bytes()),
        DataType::Int16 => data.extend((number as i16).to_le_bytes()),
        DataType::Int32 => data.extend((number as i32).to_le_bytes()),
        DataType::Int64 => data.extend((number as i64).to_le_bytes()),
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 => {
            data.extend((number as f32).to_le_bytes());
        }
        DataType::Fp64 => data.extend(number.to_le_bytes()),
    }
}

fn narrowed(tensor: Tensor, datatype: DataType) -> Result<Tensor, Unsupported> {
    let kind = match datatype {
        DataType::Fp16 => tch::Kind::Half,
        DataType::Bf16 => tch::Kind::BFloat16,
        _ => return Ok(tensor),
    };
    from_torch(crate::tensors::to_torch(&tensor)?.f_to_kind(kind)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(datatype: DataType, shape: &[i64], range: Option<(f64, f64)>) -> InputSpec {
        InputSpec {
            value: ValueSpec {
                name: "x".into(),
                datatype,
                shape: shape.to_vec(),
                sizes: Vec::new(),
            },
            range: range.map(|(min, max)| ValueRange { min, max }),
        }
    }

    #[test]
    fn the_same_seed_and_number_give_the_same_request() {
        let inputs = [spec(DataType::Fp32, &[-1, 100], None)];
        let first = request(&inputs, 7, 0).unwrap();
        assert_eq!(first, request(&inputs, 7, 0).unwrap());
        assert_ne!(first, request(&inputs, 7, 1).unwrap());
        assert_ne!(first, request(&inputs, 8, 0).unwrap());
        assert_eq!(first[0].shape, [1, 100]);
    }

    #[test]
    fn every_datatype_is_drawn_with_its_own_size() {
        for datatype in DataType::ALL {
            let drawn = request(&[spec(datatype, &[3, 5], None)], 1, 0).unwrap();
            assert_eq!(drawn[0].datatype, datatype);
            assert_eq!(drawn[0].data.len(), 15 * datatype.size_bytes());
        }
    }

    #[test]
    fn token_ids_reach_both_ends_of_their_range_and_never_leave_it() {
        let ids = &request(&[spec(DataType::Int64, &[1, 500], Some((3.0, 6.0)))], 1, 0).unwrap()[0];
        let ids: Vec<i64> = ids
            .data
            .chunks_exact(8)
            .map(|c| i64::from_le_bytes(c.try_into().unwrap()))
            .collect();
        assert_eq!(ids.iter().min(), Some(&3));
        assert_eq!(ids.iter().max(), Some(&6));
    }

    #[test]
    fn what_is_drawn_beside_samples_stays_inside_what_they_show() {
        let inputs = [
            spec(DataType::Int64, &[-1, 2], None),
            spec(DataType::Fp32, &[-1, 1], None),
            spec(DataType::Int32, &[-1, 1], Some((0.0, 5.0))),
        ];
        let sample = |ids: [i64; 2], number: i32| {
            let tensor = |datatype, shape: &[i64], data: Vec<u8>| Tensor {
                datatype,
                shape: shape.to_vec(),
                data: data.into(),
            };
            vec![
                tensor(DataType::Int64, &[1, 2], ids.map(i64::to_le_bytes).concat()),
                tensor(DataType::Fp32, &[1, 1], 9.0_f32.to_le_bytes().to_vec()),
                tensor(DataType::Int32, &[1, 1], number.to_le_bytes().to_vec()),
            ]
        };
        let ranged = with_ranges(&inputs, &[sample([7, 3], 1), sample([-2, 4], 2)]);
        let range = |i: usize| ranged[i].range.map(|r| (r.min, r.max));
        assert_eq!(range(0), Some((-2.0, 7.0)));
        assert_eq!(range(1), None);
        assert_eq!(range(2), Some((0.0, 5.0)));
        assert_eq!(with_ranges(&inputs, &[]), inputs);
    }

    #[test]
    fn unlike_requests_reach_both_ends_and_stay_inside_the_range() {
        let inputs = [
            spec(DataType::Fp32, &[-1, 4], None),
            spec(DataType::Int64, &[-1, 4], Some((3.0, 6.0))),
        ];
        let drawn = unlike(&inputs, 1).unwrap();
        let float = |r: &[Tensor]| f32::from_le_bytes(r[0].data[..4].try_into().unwrap());
        let whole = |r: &[Tensor]| i64::from_le_bytes(r[1].data[..8].try_into().unwrap());
        assert_eq!((float(&drawn[0]), whole(&drawn[0])), (-10.0, 3));
        assert_eq!((float(&drawn[1]), whole(&drawn[1])), (10.0, 6));
        assert!(drawn.iter().all(|r| (3..=6).contains(&whole(r))));
    }

    #[test]
    fn a_warm_up_takes_the_examples_that_fit() {
        let value = |datatype, shape: &[i64]| spec(datatype, shape, None).value;
        let values = [
            value(DataType::Int64, &[2]),
            value(DataType::Bool, &[1]),
            value(DataType::Int64, &[-1, 3]),
            value(DataType::Int64, &[1]),
        ];
        let examples = [Some(vec![3, 4]), Some(vec![1]), Some(vec![9, 8])];
        let drawn = warm_up(&values, &examples).unwrap();
        assert_eq!(drawn[0].data[..], [3_i64, 4].map(i64::to_le_bytes).concat());
        assert_eq!(drawn[1].data[..], [1]);
        assert_eq!(drawn[2].data[..], [0; 24]);
        assert_eq!(drawn[3].data[..], [0; 8]);
        // One number is used for all elements.
        let drawn = warm_up(&values[2..3], &[Some(vec![7])]).unwrap();
        assert_eq!(drawn[0].data[..], [7_i64; 3].map(i64::to_le_bytes).concat());
    }

    #[test]
    fn declarations_that_cannot_be_drawn_are_named() {
        let err = |s: InputSpec| request(&[s], 1, 0).unwrap_err().0;
        assert!(err(spec(DataType::Fp32, &[1, -2], None)).contains("below 1"));
        assert!(err(spec(DataType::Fp32, &[0], None)).contains("dimension below 1"));
        assert!(err(spec(DataType::Fp32, &[1 << 40, 1 << 40], None)).contains("larger than"));
        assert!(err(spec(DataType::Uint8, &[1], Some((0.0, 256.0)))).contains("no range of UINT8"));
        assert!(err(spec(DataType::Fp32, &[1], Some((2.0, 1.0)))).contains("no range"));
        assert!(err(spec(DataType::Fp32, &[1], Some((f64::NAN, 1.0)))).contains("no range"));
    }
}

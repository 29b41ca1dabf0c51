//! Compares an answer with the known one. Optimized graphs round differently, so
//! floats need not be bit-identical.

use lamina_model::{DataType, Tensor};
use std::fmt;

/// The deviation of an answer from the known one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Deviation {
    /// Elements compared.
    elements: usize,
    /// Largest absolute difference.
    largest: f64,
    /// Largest known magnitude.
    magnitude: f64,
}

/// An answer does not match the known one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Misfit {
    #[error("output `{name}` is {got_type} {got:?}, expected {expected_type} {expected:?}")]
    Kind {
        name: String,
        expected_type: DataType,
        expected: Vec<i64>,
        got_type: DataType,
        got: Vec<i64>,
    },
    #[error("output `{name}` has {got} bytes, expected {expected}")]
    Size {
        name: String,
        expected: usize,
        got: usize,
    },
    #[error("output `{name}`: element {index} is {got}, expected {expected} within {tolerance:e}")]
    Value {
        name: String,
        index: usize,
        expected: f64,
        got: f64,
        tolerance: f64,
    },
}

impl Deviation {
    pub(super) fn include(&mut self, other: Self) {
        self.elements += other.elements;
        self.largest = self.largest.max(other.largest);
        self.magnitude = self.magnitude.max(other.magnitude);
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} values as expected; largest difference {:.1e} beside magnitude {:.3}",
            self.elements, self.largest, self.magnitude
        )
    }
}

/// Allowed difference, relative to the largest magnitude of the output: some roundings of the
/// datatype, accumulated over many layers. 0 is exact.
const fn relative_tolerance(datatype: DataType) -> f64 {
    match datatype {
        DataType::Fp32 | DataType::Fp64 => 1e-3,
        DataType::Fp16 => 1e-2,
        DataType::Bf16 => 5e-2,
        _ => 0.0,
    }
}

/// Outputs that are all zero may still be rounded.
const SMALLEST_MAGNITUDE: f64 = 1e-3;
/// Factor on the measured errors of encodings: on another host, values that are rounded differently
/// fall onto other steps.
const ENCODING_MARGIN: f64 = 2.0;

/// Compares outputs if the encodings on the path cause an error of `error` of the largest
/// magnitude; integers must be equal.
///
/// # Errors
/// The first element that differs by too much, or another kind of tensor.
pub(super) fn compare(
    name: &str,
    expected: &Tensor,
    got: &Tensor,
    error: f64,
) -> Result<Deviation, Misfit> {
    if (expected.datatype, &expected.shape) != (got.datatype, &got.shape) {
        return Err(Misfit::Kind {
            name: name.to_owned(),
            expected_type: expected.datatype,
            expected: expected.shape.clone(),
            got_type: got.datatype,
            got: got.shape.clone(),
        });
    }
    if expected.data.len() != got.data.len() {
        return Err(Misfit::Size {
            name: name.to_owned(),
            expected: expected.data.len(),
            got: got.data.len(),
        });
    }
    let magnitude = values(expected)
        .filter(|v| v.is_finite())
        .fold(0.0, |m: f64, v| m.max(v.abs()));
    let rounding = relative_tolerance(expected.datatype);
    let relative = if rounding > 0.0 {
        rounding + error.max(0.0) * ENCODING_MARGIN
    } else {
        rounding
    };
    let tolerance = relative * magnitude.max(SMALLEST_MAGNITUDE);
    let mut deviation = Deviation {
        magnitude,
        ..Deviation::default()
    };
    for (index, (expected, got)) in values(expected).zip(values(got)).enumerate() {
        let difference = difference(expected, got);
        if difference.is_nan() || difference > tolerance {
            return Err(Misfit::Value {
                name: name.to_owned(),
                index,
                expected,
                got,
                tolerance,
            });
        }
        deviation.elements += 1;
        deviation.largest = deviation.largest.max(difference);
    }
    Ok(deviation)
}

/// NaN equals NaN, and an infinity itself; either compared with a number gives NaN or infinity.
fn difference(a: f64, b: f64) -> f64 {
    if a == b || (a.is_nan() && b.is_nan()) {
        0.0
    } else {
        (a - b).abs()
    }
}

fn values(tensor: &Tensor) -> impl Iterator<Item = f64> + '_ {
    let size = tensor.datatype.size_bytes();
    let datatype = tensor.datatype;
    tensor
        .data
        .chunks_exact(size)
        .map(move |b| value(datatype, b))
}

/// The element in `bytes`, little-endian. 64-bit integers beyond 2^53 lose digits, but models do
/// not return such.
fn value(datatype: DataType, bytes: &[u8]) -> f64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(wide);
    match datatype {
        DataType::Bool | DataType::Uint8 => bits as f64,
        DataType::Int8 => f64::from(bits as u8 as i8),
        DataType::Int16 => f64::from(bits as u16 as i16),
        DataType::Int32 => f64::from(bits as u32 as i32),
        DataType::Int64 => bits as i64 as f64,
        DataType::Fp16 => half(bits as u16),
        DataType::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
        DataType::Fp32 => f64::from(f32::from_bits(bits as u32)),
        DataType::Fp64 => f64::from_bits(bits),
    }
}

fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = ((bits >> 10) & 0x1f, f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * (-24_f64).exp2(),
        0x1f if fraction == 0.0 => f64::INFINITY,
        0x1f => f64::NAN,
        e => (1.0 + fraction / 1024.0) * (f64::from(e) - 15.0).exp2(),
    };
    sign * magnitude
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::engine::fake::fp32;
    use bytes::Bytes;

    fn floats(values: &[f32]) -> Tensor {
        fp32(&[values.len() as i64], values)
    }

    fn differs(expected: &[f32], got: &[f32]) -> String {
        compare("y", &floats(expected), &floats(got), 0.0)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn rounding_passes_and_is_told() {
        let deviation = compare("y", &floats(&[100.0, 0.0]), &floats(&[100.0, 0.05]), 0.0).unwrap();
        assert_eq!(
            deviation.to_string(),
            "2 values as expected; largest difference 5.0e-2 beside magnitude 100.000"
        );
    }

    #[test]
    fn a_wrong_value_is_named() {
        assert_eq!(
            differs(&[1.0, 2.0], &[1.0, 2.5]),
            "output `y`: element 1 is 2.5, expected 2 within 2e-3"
        );
    }

    #[test]
    fn not_a_number_is_right_only_where_it_is_known() {
        let odd = [f32::NAN, f32::INFINITY, 1.0];
        assert!(compare("y", &floats(&odd), &floats(&odd), 0.0).is_ok());
        assert!(differs(&[1.0, 2.0], &[1.0, f32::NAN]).contains("is NaN, expected 2"));
        assert!(differs(&[1.0, f32::NAN], &[1.0, 2.0]).contains("is 2, expected NaN"));
        assert!(differs(&[1.0, f32::INFINITY], &[1.0, 2.0]).contains("expected inf"));
    }

    #[test]
    fn another_shape_or_type_is_wrong() {
        let error = compare(
            "y",
            &fp32(&[2, 1], &[1.0, 2.0]),
            &fp32(&[1, 2], &[1.0, 2.0]),
            0.0,
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "output `y` is FP32 [1, 2], expected FP32 [2, 1]"
        );
    }

    #[test]
    fn every_datatype_is_read() {
        let of = |datatype, bytes: &[u8]| value(datatype, bytes);
        assert_eq!(of(DataType::Bool, &[1]), 1.0);
        assert_eq!(of(DataType::Uint8, &[200]), 200.0);
        assert_eq!(of(DataType::Int8, &[0xfe]), -2.0);
        assert_eq!(of(DataType::Int16, &(-2_i16).to_le_bytes()), -2.0);
        assert_eq!(of(DataType::Int32, &(-2_i32).to_le_bytes()), -2.0);
        assert_eq!(of(DataType::Int64, &(-2_i64).to_le_bytes()), -2.0);
        assert_eq!(of(DataType::Bf16, &[0xc0, 0x3f]), 1.5);
        assert_eq!(of(DataType::Fp64, &1.5_f64.to_le_bytes()), 1.5);
        for (bits, expected) in [
            (0x3e00, 1.5),
            (0xc000, -2.0),
            (0x0001, 5.960_464_477_539_063e-8),
            (0x7c00, f64::INFINITY),
        ] {
            assert_eq!(half(bits), expected);
        }
        assert!(half(0x7e00).is_nan());
    }

    #[test]
    fn integers_are_compared_exactly() {
        let label = |v: i64| Tensor {
            datatype: DataType::Int64,
            shape: vec![1],
            data: Bytes::copy_from_slice(&v.to_le_bytes()),
        };
        assert!(compare("y", &label(5000), &label(5000), 0.0).is_ok());
        assert!(compare("y", &label(5000), &label(5001), 0.5).is_err());
    }

    #[test]
    fn encodings_may_change_twice_what_was_measured() {
        let within = |got, error| compare("y", &floats(&[1.0, 0.0]), &floats(&[1.0, got]), error);
        assert!(within(0.02, 0.0).is_err());
        assert!(within(0.02, 0.01).is_ok());
        assert!(within(0.03, 0.01).is_err());
        assert!(within(f32::NAN, 1.0).is_err());
    }
}

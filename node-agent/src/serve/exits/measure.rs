//! The confidence of an answer.

use lamina_model::DataType;
use lamina_proto::hop::ExitCriterion;

/// Confidence of the row with these logits, by `criterion`, in `0..=1`. Computed in double
/// precision, as in `sdk/lamina/criterion.py`; `NaN` if a logit is.
pub(super) fn measure(criterion: ExitCriterion, logits: &[f64], temperature: f64) -> f64 {
    let scaled = || logits.iter().map(|l| l / temperature);
    let largest = scaled().fold(f64::NEG_INFINITY, f64::max);
    if logits.iter().any(|l| l.is_nan()) {
        return f64::NAN;
    }
    let sum: f64 = scaled().map(|l| (l - largest).exp()).sum();
    let log_p = scaled().map(|l| l - largest - sum.ln());
    match criterion {
        ExitCriterion::Confidence => 1.0 / sum,
        ExitCriterion::Entropy => {
            let entropy: f64 = log_p
                .map(|l| if l.is_finite() { -l.exp() * l } else { 0.0 })
                .sum();
            let even = (logits.len() as f64).ln();
            (entropy / even).clamp(0.0, 1.0)
        }
    }
}

/// Whether a row with this measure leaves at `threshold`; `NaN` never does.
pub(super) fn leaves(criterion: ExitCriterion, measured: f64, threshold: Option<f64>) -> bool {
    threshold.is_some_and(|threshold| match criterion {
        ExitCriterion::Confidence => measured >= threshold,
        ExitCriterion::Entropy => measured <= threshold,
    })
}

/// The elements of a row; `None` if the datatype is not a real one.
pub(super) fn numbers(datatype: DataType, row: &[u8]) -> Option<Vec<f64>> {
    let two = |of: fn(u16) -> f64| {
        let pairs = row.chunks_exact(2);
        pairs
            .map(|b| of(u16::from_le_bytes([b[0], b[1]])))
            .collect()
    };
    match datatype {
        DataType::Fp64 => {
            let eights = row.as_chunks::<8>().0;
            Some(eights.iter().map(|b| f64::from_le_bytes(*b)).collect())
        }
        DataType::Fp32 => {
            let fours = row.as_chunks::<4>().0;
            Some(
                fours
                    .iter()
                    .map(|b| f64::from(f32::from_le_bytes(*b)))
                    .collect(),
            )
        }
        DataType::Bf16 => Some(two(|b| f64::from(f32::from_bits(u32::from(b) << 16)))),
        DataType::Fp16 => Some(two(half)),
        _ => None,
    }
}

/// IEEE 754 binary16.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2_f64.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_proto::hop::ExitCriterion::{Confidence, Entropy};

    /// Values of `Criterion.measure` in `sdk/lamina/criterion.py`, by PyTorch 2.13.
    #[test]
    fn sureness_is_what_the_sdk_measures() {
        let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
        close(measure(Confidence, &[0.0, 0.0], 1.0), 0.5);
        close(measure(Entropy, &[0.0, 0.0, 0.0], 1.0), 1.0);
        let third = 3_f64.ln();
        close(measure(Confidence, &[third, 0.0], 1.0), 0.75);
        close(measure(Confidence, &[2.0 * third, 0.0], 2.0), 0.75);
        let entropy = -(0.75 * 0.75_f64.ln() + 0.25 * 0.25_f64.ln()) / 2_f64.ln();
        close(measure(Entropy, &[third, 0.0], 1.0), entropy);
        // Far apart, nothing overflows.
        close(measure(Confidence, &[1e4, -1e4], 0.1), 1.0);
        close(measure(Entropy, &[1e4, -1e4], 0.1), 0.0);
        assert!(measure(Confidence, &[f64::NAN, 0.0], 1.0).is_nan());
    }

    #[test]
    fn only_who_is_sure_leaves() {
        assert!(leaves(Confidence, 0.9, Some(0.9)) && !leaves(Confidence, 0.89, Some(0.9)));
        assert!(leaves(Entropy, 0.1, Some(0.1)) && !leaves(Entropy, 0.11, Some(0.1)));
        for criterion in [Confidence, Entropy] {
            assert!(!leaves(criterion, f64::NAN, Some(0.5)));
            assert!(!leaves(criterion, 0.5, None));
        }
    }

    #[test]
    fn logits_are_read_in_every_precision() {
        let three = |datatype, bytes: &[u8]| numbers(datatype, bytes).unwrap();
        let values = [1.5_f32, -2.0, 0.0];
        let fp32: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bf16: Vec<u8> = values
            .iter()
            .flat_map(|v| v.to_le_bytes()[2..].to_vec())
            .collect();
        let fp64: Vec<u8> = values
            .iter()
            .flat_map(|v| f64::from(*v).to_le_bytes())
            .collect();
        let fp16: Vec<u8> = [0x3e00_u16, 0xc000, 0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        for (datatype, bytes) in [
            (DataType::Fp32, fp32),
            (DataType::Bf16, bf16),
            (DataType::Fp64, fp64),
            (DataType::Fp16, fp16),
        ] {
            assert_eq!(three(datatype, &bytes), [1.5, -2.0, 0.0], "{datatype}");
        }
        assert_eq!(half(0x0001), 2_f64.powi(-24));
        assert_eq!(half(0x7c00), f64::INFINITY);
        assert!(half(0x7e00).is_nan());
        assert_eq!(numbers(DataType::Int64, &[0; 8]), None);
    }
}

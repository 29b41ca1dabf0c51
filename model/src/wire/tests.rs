use super::*;
use proptest::prelude::*;

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// `values` after encoding and decoding.
fn sent(dtype: WireType, values: &[f32]) -> Option<Vec<f32>> {
    let encoded = encode(dtype, &bytes(values))?;
    assert_eq!(encoded.dtype(), dtype);
    let raw = values.len() as u64 * 4;
    assert_eq!(encoded.elements().len() as u64, dtype.bytes(raw));
    Some(floats(&encoded.decode(raw).unwrap()).collect())
}

/// Sizes around the chunks in which values are converted.
fn some_values(largest: f32) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-largest..largest, 0..600)
}

proptest! {
    #[test]
    fn halves_keep_eleven_digits(values in some_values(60_000.0)) {
        let arrived = sent(WireType::Fp16, &values).unwrap();
        prop_assert_eq!(arrived.len(), values.len());
        for (a, b) in values.iter().zip(arrived) {
            prop_assert!((a - b).abs() <= a.abs() / 2048.0 + 6e-8, "{} {}", a, b);
        }
    }

    #[test]
    fn upper_halves_keep_eight_digits(values in some_values(1e38)) {
        let arrived = sent(WireType::Bf16, &values).unwrap();
        for (a, b) in values.iter().zip(arrived) {
            prop_assert!((a - b).abs() <= a.abs() / 256.0, "{} {}", a, b);
        }
    }

    #[test]
    fn steps_are_half_a_step_off_at_most(values in some_values(1000.0)) {
        let arrived = sent(WireType::Int8, &values).unwrap();
        let (smallest, largest) = range(&bytes(&values)).unwrap();
        let step = (largest - smallest) / 255.0;
        for (a, b) in values.iter().zip(arrived) {
            prop_assert!((a - b).abs() <= step * 0.5001 + 1e-4, "{} {} {}", a, b, step);
        }
    }

    #[test]
    fn whatever_comes_is_decoded_or_refused(
        data in prop::collection::vec(any::<u8>(), 0..64),
        bytes in 0_u64..200,
        scale in any::<f32>(),
        offset in any::<f32>(),
    ) {
        let data = Bytes::from(data);
        for encoded in [
            Encoded::Fp16(data.clone()),
            Encoded::Bf16(data.clone()),
            Encoded::Int8 { steps: data.clone(), scale, offset },
        ] {
            if let Ok(decoded) = encoded.decode(bytes) {
                prop_assert!(decoded.len() as u64 <= bytes);
            }
        }
    }
}

#[test]
fn values_that_a_type_holds_arrive_as_they_are() {
    let values = [0.0, -0.5, 1.0, 1024.0, -3.25];
    assert_eq!(sent(WireType::Fp16, &values).unwrap(), values);
    assert_eq!(sent(WireType::Bf16, &values).unwrap(), values);
    let steps: Vec<f32> = (0..256).map(|v| v as f32 * 0.5).collect();
    assert_eq!(sent(WireType::Int8, &steps).unwrap(), steps);
    assert_eq!(sent(WireType::Int8, &[7.25; 9]).unwrap(), [7.25; 9]);
    for dtype in WireType::ALL {
        assert_eq!(sent(dtype, &[]).unwrap(), [0.0; 0]);
    }
}

#[test]
fn what_would_be_wrong_is_not_encoded() {
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, 3, 9] {
            let mut values = vec![1.0; 10];
            values[place] = odd;
            for dtype in WireType::ALL {
                assert_eq!(sent(dtype, &values), None, "{dtype} {odd}");
            }
        }
    }
    assert_eq!(sent(WireType::Fp16, &[1.0, 65_505.0]), None);
    assert_eq!(sent(WireType::Fp16, &[-70_000.0]), None);
    assert_eq!(sent(WireType::Bf16, &[f32::MAX]), None);
    assert_eq!(sent(WireType::Int8, &[f32::MAX, f32::MIN]), None);
}

#[test]
fn another_size_or_steps_without_numbers_are_refused() {
    let data = Bytes::from_static(&[0; 8]);
    let short = Encoded::Fp16(data.clone()).decode(20).unwrap_err();
    assert_eq!(short.to_string(), "8 bytes of fp16, its shape needs 10");
    assert!(Encoded::Bf16(data.clone()).decode(14).is_err());
    let int8 = |scale, offset| Encoded::Int8 {
        steps: data.clone(),
        scale,
        offset,
    };
    assert!(int8(1.0, 0.0).decode(32).is_ok());
    assert!(int8(1.0, 0.0).decode(36).is_err());
    for (scale, offset) in [(f32::NAN, 0.0), (1.0, f32::INFINITY), (f32::MAX, 0.0)] {
        assert!(int8(scale, offset).decode(32).is_err());
    }
}

#[test]
fn answers_whole_numbers_and_small_values_go_as_they_are() {
    let value = |name: &str, datatype, size| ValueSpec {
        name: name.into(),
        datatype,
        shape: vec![-1, size],
        sizes: Vec::new(),
    };
    let outputs = [value("side", DataType::Fp32, 1000)];
    let goes = |value: &ValueSpec| is_encodable(value, &outputs);
    assert!(goes(&value("x", DataType::Fp32, 256)));
    assert!(!goes(&value("x", DataType::Fp32, 255)));
    assert!(!goes(&value("x", DataType::Int64, 1000)));
    assert!(!goes(&value("x", DataType::Fp16, 1000)));
    assert!(!goes(&outputs[0]));
}

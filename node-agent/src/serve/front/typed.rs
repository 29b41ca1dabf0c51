//! Typed contents of the protocol as little-endian bytes.

use super::error::InputError;
use bytes::Bytes;
use lamina_model::DataType;
use lamina_proto::inference::InferTensorContents;

/// The field for elements of `datatype`; the two half floats must be raw.
const fn field_of(datatype: DataType) -> Option<&'static str> {
    match datatype {
        DataType::Bool => Some("bool_contents"),
        DataType::Uint8 => Some("uint_contents"),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => Some("int_contents"),
        DataType::Int64 => Some("int64_contents"),
        DataType::Fp32 => Some("fp32_contents"),
        DataType::Fp64 => Some("fp64_contents"),
        DataType::Fp16 | DataType::Bf16 => None,
    }
}

/// Names of the fields that are not empty.
fn filled(contents: &InferTensorContents) -> impl Iterator<Item = &'static str> {
    [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ]
    .into_iter()
    .filter(|(_, elements)| *elements > 0)
    .map(|(field, _)| field)
}

/// The elements of `datatype` as bytes.
///
/// # Errors
/// Another field is filled, or a number does not fit into the datatype.
pub(super) fn to_bytes(
    name: &str,
    datatype: DataType,
    contents: &InferTensorContents,
) -> Result<Bytes, InputError> {
    let field = field_of(datatype).ok_or_else(|| InputError::OnlyRaw {
        name: name.to_owned(),
        datatype,
    })?;
    if let Some(other) = filled(contents).find(|f| *f != field) {
        return Err(InputError::Field {
            name: name.to_owned(),
            datatype,
            field,
            other,
        });
    }
    let range = |value: i64| InputError::Range {
        name: name.to_owned(),
        datatype,
        value,
    };
    Ok(match datatype {
        DataType::Bool => contents
            .bool_contents
            .iter()
            .map(|b| u8::from(*b))
            .collect(),
        DataType::Uint8 => narrow(
            &contents.uint_contents,
            u8::try_from,
            u8::to_le_bytes,
            range,
        )?,
        DataType::Int8 => narrow(&contents.int_contents, i8::try_from, i8::to_le_bytes, range)?,
        DataType::Int16 => narrow(
            &contents.int_contents,
            i16::try_from,
            i16::to_le_bytes,
            range,
        )?,
        DataType::Int32 => flat(&contents.int_contents, i32::to_le_bytes),
        DataType::Int64 => flat(&contents.int64_contents, i64::to_le_bytes),
        DataType::Fp32 => flat(&contents.fp32_contents, f32::to_le_bytes),
        DataType::Fp64 => flat(&contents.fp64_contents, f64::to_le_bytes),
        // Refused above.
        DataType::Fp16 | DataType::Bf16 => Bytes::new(),
    })
}

fn flat<T: Copy, const N: usize>(elements: &[T], bytes: fn(T) -> [u8; N]) -> Bytes {
    elements.iter().flat_map(|e| bytes(*e)).collect()
}

fn narrow<W, T, E, const N: usize>(
    elements: &[W],
    into: fn(W) -> Result<T, E>,
    bytes: fn(T) -> [u8; N],
    error: impl Fn(i64) -> InputError,
) -> Result<Bytes, InputError>
where
    W: Copy + Into<i64>,
{
    let mut out = Vec::with_capacity(elements.len() * N);
    for element in elements {
        let narrowed = into(*element).map_err(|_| error((*element).into()))?;
        out.extend_from_slice(&bytes(narrowed));
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> InferTensorContents {
        InferTensorContents::default()
    }

    fn ok(datatype: DataType, contents: &InferTensorContents) -> Vec<u8> {
        to_bytes("x", datatype, contents).unwrap().to_vec()
    }

    fn refused(datatype: DataType, contents: &InferTensorContents) -> String {
        to_bytes("x", datatype, contents).unwrap_err().to_string()
    }

    #[test]
    fn every_list_becomes_little_endian_bytes() {
        let bools = InferTensorContents {
            bool_contents: vec![true, false],
            ..all()
        };
        assert_eq!(ok(DataType::Bool, &bools), [1, 0]);
        let ints = InferTensorContents {
            int_contents: vec![-2],
            ..all()
        };
        assert_eq!(ok(DataType::Int8, &ints), [0xfe]);
        assert_eq!(ok(DataType::Int16, &ints), [0xfe, 0xff]);
        assert_eq!(ok(DataType::Int32, &ints), [0xfe, 0xff, 0xff, 0xff]);
        let longs = InferTensorContents {
            int64_contents: vec![1],
            ..all()
        };
        assert_eq!(ok(DataType::Int64, &longs), [1, 0, 0, 0, 0, 0, 0, 0]);
        let unsigned = InferTensorContents {
            uint_contents: vec![200],
            ..all()
        };
        assert_eq!(ok(DataType::Uint8, &unsigned), [200]);
        let floats = InferTensorContents {
            fp32_contents: vec![1.5],
            ..all()
        };
        assert_eq!(ok(DataType::Fp32, &floats), 1.5_f32.to_le_bytes());
        let doubles = InferTensorContents {
            fp64_contents: vec![1.5],
            ..all()
        };
        assert_eq!(ok(DataType::Fp64, &doubles), 1.5_f64.to_le_bytes());
    }

    #[test]
    fn other_lists_and_numbers_out_of_range_are_refused() {
        let ints = InferTensorContents {
            int_contents: vec![300],
            ..all()
        };
        assert_eq!(
            refused(DataType::Int8, &ints),
            "input `x`: 300 does not fit into INT8"
        );
        assert_eq!(
            refused(DataType::Fp32, &ints),
            "input `x`: elements of FP32 travel in fp32_contents, got int_contents"
        );
        for contents in [
            InferTensorContents {
                uint64_contents: vec![1],
                ..all()
            },
            InferTensorContents {
                bytes_contents: vec![Bytes::from_static(b"a")],
                ..all()
            },
        ] {
            assert!(refused(DataType::Int64, &contents).contains("travel in int64_contents"));
        }
        assert!(refused(DataType::Fp16, &all()).contains("raw_input_contents"));
    }
}

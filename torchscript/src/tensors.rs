//! Tensors between torch and the wire.

use crate::ffi::elements;
use bytes::Bytes;
use lamina_model::{DataType, Tensor};
use tch::{Kind, TchError};

pub(crate) const fn kind_of(datatype: DataType) -> Kind {
    match datatype {
        DataType::Bool => Kind::Bool,
        DataType::Uint8 => Kind::Uint8,
        DataType::Int8 => Kind::Int8,
        DataType::Int16 => Kind::Int16,
        DataType::Int32 => Kind::Int,
        DataType::Int64 => Kind::Int64,
        DataType::Fp16 => Kind::Half,
        DataType::Bf16 => Kind::BFloat16,
        DataType::Fp32 => Kind::Float,
        DataType::Fp64 => Kind::Double,
    }
}

/// A torch tensor whose type or layout Lamina does not support; the text names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsupported(pub(crate) String);

impl From<TchError> for Unsupported {
    fn from(error: TchError) -> Self {
        Self(error.to_string())
    }
}

/// A torch tensor with a copy of the elements.
pub(crate) fn to_torch(tensor: &Tensor) -> Result<tch::Tensor, Unsupported> {
    let elements = tensor
        .shape
        .iter()
        .try_fold(1_usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    let bytes = elements.and_then(|n| n.checked_mul(tensor.datatype.size_bytes()));
    if bytes != Some(tensor.data.len()) {
        return Err(Unsupported(format!(
            "{} bytes for {} {:?}",
            tensor.data.len(),
            tensor.datatype,
            tensor.shape
        )));
    }
    let kind = kind_of(tensor.datatype);
    if tensor.datatype == DataType::Bool {
        // Any byte but 0 and 1 would be undefined behaviour inside a kernel.
        let clean: Vec<u8> = tensor.data.iter().map(|&b| u8::from(b != 0)).collect();
        return Ok(tch::Tensor::f_from_data_size(&clean, &tensor.shape, kind)?);
    }
    Ok(tch::Tensor::f_from_data_size(
        &tensor.data,
        &tensor.shape,
        kind,
    )?)
}

/// A tensor in wire form; its elements in row-major order, without a copy if they already are.
/// Nothing else may hold it.
pub(crate) fn from_torch(tensor: tch::Tensor) -> Result<Tensor, Unsupported> {
    let Dense {
        datatype,
        tensor,
        bytes,
    } = dense(tensor)?;
    Ok(Tensor {
        datatype,
        shape: tensor.size(),
        data: elements(tensor, bytes),
    })
}

/// A torch tensor with its elements in row-major order.
#[derive(Debug)]
pub(crate) struct Dense {
    pub(crate) datatype: DataType,
    pub(crate) tensor: tch::Tensor,
    pub(crate) bytes: usize,
}

/// `tensor` as [`Dense`], without a copy if it already is.
pub(crate) fn dense(tensor: tch::Tensor) -> Result<Dense, Unsupported> {
    let kind = tensor.f_kind()?;
    let datatype = DataType::ALL
        .into_iter()
        .find(|&d| kind_of(d) == kind)
        .ok_or_else(|| Unsupported(format!("{kind:?}")))?;
    let tensor = tensor.f_contiguous()?;
    let bytes = tensor.numel() * datatype.size_bytes();
    Ok(Dense {
        datatype,
        tensor,
        bytes,
    })
}

/// Largest absolute difference between two tensors of the same shape; infinite if shapes or types
/// differ or only one is NaN.
pub(crate) fn max_abs_diff(a: &Tensor, b: &Tensor) -> f64 {
    if a == b {
        return 0.0;
    }
    if a.shape != b.shape || a.datatype != b.datatype {
        return f64::INFINITY;
    }
    let difference = || -> Result<f64, Unsupported> {
        let a = to_torch(a)?.f_to_kind(Kind::Double)?;
        let b = to_torch(b)?.f_to_kind(Kind::Double)?;
        let largest = a.f_sub(&b)?.f_abs()?.f_max()?;
        Ok(f64::try_from(&largest)?)
    };
    match difference() {
        Ok(largest) if !largest.is_nan() => largest,
        _ => f64::INFINITY,
    }
}

/// Largest difference of two tensors relative to the largest value of `b`.
pub(crate) fn relative_difference(a: &Tensor, b: &Tensor) -> f64 {
    let difference = max_abs_diff(a, b);
    if difference > 0.0 {
        let zeros = Tensor {
            data: vec![0; b.data.len()].into(),
            ..b.clone()
        };
        difference / max_abs_diff(b, &zeros)
    } else {
        0.0
    }
}

/// `tensors` joined along their first dimension; `None` if they do not fit.
pub(crate) fn stacked(tensors: &[&Tensor]) -> Option<Tensor> {
    let first = tensors.first()?;
    let mut rows = 0;
    let mut data = Vec::new();
    for tensor in tensors {
        let fits =
            tensor.datatype == first.datatype && tensor.shape.get(1..) == first.shape.get(1..);
        if !fits {
            return None;
        }
        rows += tensor.shape.first()?;
        data.extend_from_slice(&tensor.data);
    }
    let mut shape = first.shape.clone();
    *shape.first_mut()? = rows;
    Some(Tensor {
        datatype: first.datatype,
        shape,
        data: Bytes::from(data),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fp32(shape: &[i64], values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor {
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            data: Bytes::from(data),
        }
    }

    #[test]
    fn every_datatype_survives_torch() {
        for datatype in DataType::ALL {
            let tensor = Tensor {
                datatype,
                shape: vec![2, 1],
                data: Bytes::from(vec![1; 2 * datatype.size_bytes()]),
            };
            assert_eq!(from_torch(to_torch(&tensor).unwrap()).unwrap(), tensor);
        }
    }

    #[test]
    fn too_few_bytes_never_reach_torch() {
        let mut tensor = fp32(&[2], &[1.0, 2.0]);
        tensor.shape = vec![3];
        assert!(to_torch(&tensor).is_err());
        tensor.shape = vec![-2];
        assert!(to_torch(&tensor).is_err());
        tensor.shape = vec![i64::MAX, 4];
        assert!(to_torch(&tensor).is_err());
    }

    #[test]
    fn booleans_are_made_zero_or_one() {
        let tensor = Tensor {
            datatype: DataType::Bool,
            shape: vec![3],
            data: Bytes::from_static(&[0, 1, 7]),
        };
        let back = from_torch(to_torch(&tensor).unwrap()).unwrap();
        assert_eq!(back.data, Bytes::from_static(&[0, 1, 1]));
    }

    #[test]
    fn differences_are_the_largest_and_infinite_where_undefined() {
        let a = fp32(&[2], &[1.0, 2.0]);
        assert!((max_abs_diff(&a, &fp32(&[2], &[1.5, 0.0])) - 2.0).abs() < 1e-9);
        assert!(max_abs_diff(&a, &a) < f64::MIN_POSITIVE);
        assert!(max_abs_diff(&a, &fp32(&[1, 2], &[1.0, 2.0])).is_infinite());
        assert!(max_abs_diff(&a, &fp32(&[2], &[f32::NAN, 2.0])).is_infinite());
    }

    #[test]
    fn differences_are_related_to_the_largest_value() {
        let b = fp32(&[2], &[-4.0, 1.0]);
        assert!((relative_difference(&fp32(&[2], &[-4.0, 2.0]), &b) - 0.25).abs() < 1e-9);
        assert!(relative_difference(&b, &b) < f64::MIN_POSITIVE);
        assert!(relative_difference(&b, &fp32(&[2], &[0.0, 0.0])).is_infinite());
        assert!(relative_difference(&b, &fp32(&[1], &[1.0])) > 1.0);
    }

    #[test]
    fn stacking_joins_rows() {
        let a = fp32(&[1, 2], &[1.0, 2.0]);
        let b = fp32(&[1, 2], &[3.0, 4.0]);
        assert_eq!(
            stacked(&[&a, &b]),
            Some(fp32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]))
        );
        assert_eq!(stacked(&[&a, &fp32(&[1, 1], &[1.0])]), None);
        assert_eq!(stacked(&[&fp32(&[], &[1.0])]), None);
    }
}

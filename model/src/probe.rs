use crate::{DataType, Tensor};
use bytes::Bytes;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;

/// A request with its known answer, made during preparation: `Verified` compares a
/// deployed path with it.
///
/// Stored as one safetensors file named by its digest: `input.0`, `input.1`, …
/// and `output.0`, …, in the manifest's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The model's inputs, in order.
    pub inputs: Vec<Tensor>,
    /// The unoptimized whole model's outputs for them, in order.
    pub outputs: Vec<Tensor>,
}

/// The file is not a probe.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ProbeError {
    #[error("the probe is not a safetensors file")]
    Format(#[from] safetensors::SafeTensorError),
    #[error("the probe holds a tensor of an unsupported type {0}")]
    Dtype(String),
    #[error("the probe lacks `{0}`")]
    Missing(String),
}

impl Probe {
    /// Serializes the probe.
    ///
    /// # Errors
    /// A tensor whose shape and size contradict each other.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ProbeError> {
        let mut views = Vec::new();
        for (prefix, tensors) in [("input", &self.inputs), ("output", &self.outputs)] {
            for (i, t) in tensors.iter().enumerate() {
                let shape = t
                    .shape
                    .iter()
                    .map(|&d| usize::try_from(d).unwrap_or(usize::MAX))
                    .collect();
                let view = TensorView::new(to_safe(t.datatype), shape, &t.data)?;
                views.push((format!("{prefix}.{i}"), view));
            }
        }
        Ok(safetensors::serialize(views, None)?)
    }

    /// Reads a file written by [`Probe::to_bytes`].
    ///
    /// # Errors
    /// It is not a probe; it comes from the store, whose hash was checked.
    pub fn from_bytes(file: &[u8]) -> Result<Self, ProbeError> {
        let archive = SafeTensors::deserialize(file)?;
        let read = |prefix: &str| -> Result<Vec<Tensor>, ProbeError> {
            let count = archive
                .names()
                .iter()
                .filter(|n| n.starts_with(prefix))
                .count();
            (0..count)
                .map(|i| {
                    let name = format!("{prefix}{i}");
                    let view = archive
                        .tensor(&name)
                        .map_err(|_| ProbeError::Missing(name))?;
                    carried(&view)
                })
                .collect()
        };
        Ok(Self {
            inputs: read("input.")?,
            outputs: read("output.")?,
        })
    }
}

/// The tensors of a safetensors file by name, such as a user's request.
///
/// # Errors
/// It is not such a file, or has a type that Lamina does not support.
pub fn tensors_by_name(file: &[u8]) -> Result<BTreeMap<String, Tensor>, ProbeError> {
    let archive = SafeTensors::deserialize(file)?;
    let read = |(name, view): (&str, TensorView<'_>)| Ok((name.to_owned(), carried(&view)?));
    archive.iter().map(read).collect()
}

fn carried(view: &TensorView<'_>) -> Result<Tensor, ProbeError> {
    let sizes = view.shape().iter();
    Ok(Tensor {
        datatype: from_safe(view.dtype())?,
        shape: sizes
            .map(|&d| i64::try_from(d).unwrap_or(i64::MAX))
            .collect(),
        data: Bytes::copy_from_slice(view.data()),
    })
}

const fn to_safe(datatype: DataType) -> Dtype {
    match datatype {
        DataType::Bool => Dtype::BOOL,
        DataType::Uint8 => Dtype::U8,
        DataType::Int8 => Dtype::I8,
        DataType::Int16 => Dtype::I16,
        DataType::Int32 => Dtype::I32,
        DataType::Int64 => Dtype::I64,
        DataType::Fp16 => Dtype::F16,
        DataType::Bf16 => Dtype::BF16,
        DataType::Fp32 => Dtype::F32,
        DataType::Fp64 => Dtype::F64,
    }
}

fn from_safe(dtype: Dtype) -> Result<DataType, ProbeError> {
    DataType::ALL
        .into_iter()
        .find(|&d| to_safe(d) == dtype)
        .ok_or_else(|| ProbeError::Dtype(format!("{dtype:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_survives_its_file() {
        let tensor = |datatype, shape: &[i64], data: &[u8]| Tensor {
            datatype,
            shape: shape.to_vec(),
            data: Bytes::copy_from_slice(data),
        };
        let probe = Probe {
            inputs: vec![
                tensor(DataType::Int64, &[1], &[1, 0, 0, 0, 0, 0, 0, 0]),
                tensor(DataType::Fp32, &[1, 2], &[0, 0, 128, 63, 0, 0, 0, 64]),
            ],
            outputs: vec![tensor(DataType::Bool, &[2], &[1, 0])],
        };
        let file = probe.to_bytes().unwrap();
        assert_eq!(Probe::from_bytes(&file).unwrap(), probe);
        assert!(Probe::from_bytes(&file[..9]).is_err());
        let named = tensors_by_name(&file).unwrap();
        assert_eq!(named["output.0"], probe.outputs[0]);
        assert_eq!(named.len(), 3);
        assert!(tensors_by_name(&file[..9]).is_err());
    }
}

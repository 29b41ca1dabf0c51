//! Parses tensor specs from Kubernetes objects.

use lamina_crds::{TensorSize, TensorSpec};
use lamina_model::{Bounds, FreeSize, UnknownDataType, ValueSpec};

/// An invalid tensor spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor `{name}`: {reason}")]
pub(crate) struct SpecError {
    name: String,
    reason: UnknownDataType,
}

/// `specs` with parsed datatypes.
pub(crate) fn value_specs(specs: &[TensorSpec]) -> Result<Vec<ValueSpec>, SpecError> {
    specs
        .iter()
        .map(|spec| {
            let datatype = spec.datatype.parse().map_err(|reason| SpecError {
                name: spec.name.clone(),
                reason,
            })?;
            Ok(ValueSpec {
                name: spec.name.clone(),
                datatype,
                shape: spec.shape.clone(),
                sizes: spec.sizes.iter().map(free_size).collect(),
            })
        })
        .collect()
}

fn free_size(size: &TensorSize) -> FreeSize {
    let bounds = size.bounds.as_ref().map(|b| Bounds {
        name: b.name.clone(),
        min: b.min,
        max: b.max,
        // Nothing is a multiple of 0.
        step: b.step.max(1),
    });
    FreeSize {
        dimension: usize::try_from(size.dimension).unwrap_or(usize::MAX),
        typical: size.typical,
        bounds,
        file_bytes: size.file_bytes,
    }
}

//! Tensor specs as the Kubernetes objects carry them, made checkable.

use lamina_crds::TensorSpec;
use lamina_model::{UnknownDataType, ValueSpec};

/// A tensor spec that no tensor can meet.
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
            })
        })
        .collect()
}

//! Tensors on the wire and in the engine, by name. Their bytes are shared, never
//! copied here.

use super::encodings::elements;
use lamina_model::wire::DecodeError;
use lamina_model::{ShapeError, Tensor, UnknownDataType, ValueSpec};
use lamina_proto::hop::Tensor as WireTensor;

/// The tensors of a request do not fit a slice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TensorError {
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error("tensor `{name}`: {reason}")]
    DataType {
        name: String,
        reason: UnknownDataType,
    },
    #[error("tensor `{name}` is missing; given: {given}")]
    Missing { name: String, given: String },
    #[error("tensor `{name}` has an encoding that this version does not know")]
    Encoded { name: String },
    #[error("tensor `{name}`: {reason}")]
    Decode { name: String, reason: DecodeError },
    #[error("decoding was cancelled")]
    Broken,
}

/// Bytes of tensor data on the wire.
pub(crate) fn bytes_of(tensors: &[WireTensor]) -> u64 {
    tensors.iter().map(|t| elements(t) as u64).sum()
}

/// `tensor` under its name.
pub(crate) fn to_wire(name: &str, tensor: Tensor) -> WireTensor {
    WireTensor {
        name: name.to_owned(),
        datatype: tensor.datatype.as_str().to_owned(),
        shape: tensor.shape,
        data: tensor.data,
        encoded: None,
    }
}

/// # Errors
/// An unknown datatype.
pub(crate) fn from_wire(tensor: &WireTensor) -> Result<Tensor, TensorError> {
    let datatype = tensor
        .datatype
        .parse()
        .map_err(|reason| TensorError::DataType {
            name: tensor.name.clone(),
            reason,
        })?;
    Ok(Tensor {
        datatype,
        shape: tensor.shape.clone(),
        data: tensor.data.clone(),
    })
}

/// The tensors in `given` that `specs` name, in that order and checked. Others are ignored: they
/// are not needed from here on.
pub(super) fn take(specs: &[ValueSpec], given: &[WireTensor]) -> Result<Vec<Tensor>, TensorError> {
    let one = |spec: &ValueSpec| {
        let wire = given.iter().find(|t| t.name == spec.name);
        let wire = wire.ok_or_else(|| TensorError::Missing {
            name: spec.name.clone(),
            given: names(given),
        })?;
        let tensor = from_wire(wire)?;
        tensor.check(spec)?;
        Ok(tensor)
    };
    specs.iter().map(one).collect()
}

fn names(tensors: &[WireTensor]) -> String {
    let names: Vec<_> = tensors.iter().map(|t| t.name.as_str()).collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    names.join(", ")
}

/// All live values after a slice, as named by `outputs`: the results of its graph, in
/// order, and the values that only pass through this host, by name.
///
/// A graph that gives as many values as `outputs` names gives them all; one
/// that gives fewer omits those that came in under the same name.
///
/// # Errors
/// The number of values that the graph should have given.
pub(super) fn live_behind(
    outputs: &[ValueSpec],
    given: &[WireTensor],
    computed: Vec<Tensor>,
) -> Result<Vec<WireTensor>, usize> {
    let passing = |spec: &ValueSpec| given.iter().find(|t| t.name == spec.name);
    let all_computed = computed.len() == outputs.len();
    let own = |spec: &&ValueSpec| all_computed || passing(spec).is_none();
    let expected = outputs.iter().filter(own).count();
    if expected != computed.len() {
        return Err(expected);
    }
    let mut computed = computed.into_iter();
    let live = outputs.iter().filter_map(|spec| {
        if own(&spec) {
            computed.next().map(|t| to_wire(&spec.name, t))
        } else {
            passing(spec).cloned()
        }
    });
    Ok(live.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::engine::fake::fp32;
    use lamina_model::DataType;

    fn specs(names: &[&str]) -> Vec<ValueSpec> {
        let spec = |name: &&str| ValueSpec {
            name: (*name).to_owned(),
            datatype: DataType::Fp32,
            shape: vec![-1, 1],
            sizes: Vec::new(),
        };
        names.iter().map(spec).collect()
    }

    fn wire(name: &str, value: f32) -> WireTensor {
        to_wire(name, fp32(&[1, 1], &[value]))
    }

    #[test]
    fn tensors_are_taken_by_name_in_the_slices_order() {
        let given = [wire("b", 2.0), wire("unused", 9.0), wire("a", 1.0)];
        let taken = take(&specs(&["a", "b"]), &given).unwrap();
        assert_eq!(taken, [fp32(&[1, 1], &[1.0]), fp32(&[1, 1], &[2.0])]);
        // The same bytes, not a copy.
        assert_eq!(taken[0].data.as_ptr(), given[2].data.as_ptr());
    }

    #[test]
    fn each_misfit_is_named() {
        let refused = |given: &[WireTensor]| take(&specs(&["a"]), given).unwrap_err().to_string();
        assert_eq!(
            refused(&[wire("b", 1.0)]),
            "tensor `a` is missing; given: b"
        );
        assert_eq!(refused(&[]), "tensor `a` is missing; given: none");
        let strange = WireTensor {
            datatype: "FP8".into(),
            ..wire("a", 1.0)
        };
        assert!(refused(&[strange]).starts_with("tensor `a`: unknown datatype `FP8`"));
        let short = WireTensor {
            shape: vec![2, 1],
            ..wire("a", 1.0)
        };
        assert!(refused(&[short]).contains("needs 8 bytes, got 4"));
    }

    #[test]
    fn values_that_only_pass_are_handed_on() {
        let given = [wire("skip", 7.0), wire("x", 1.0)];
        let outputs = specs(&["skip", "y"]);
        let computed = vec![fp32(&[1, 1], &[3.0])];
        assert_eq!(
            live_behind(&outputs, &given, computed).unwrap(),
            [wire("skip", 7.0), wire("y", 3.0)]
        );
    }

    #[test]
    fn a_graph_that_gives_every_value_is_believed() {
        let given = [wire("skip", 7.0)];
        let outputs = specs(&["skip", "y"]);
        let computed = vec![fp32(&[1, 1], &[8.0]), fp32(&[1, 1], &[3.0])];
        assert_eq!(
            live_behind(&outputs, &given, computed).unwrap(),
            [wire("skip", 8.0), wire("y", 3.0)]
        );
    }

    #[test]
    fn a_graph_that_gives_too_little_or_too_much_is_an_error() {
        let outputs = specs(&["y", "z"]);
        assert_eq!(
            live_behind(&outputs, &[], vec![fp32(&[1, 1], &[1.0])]),
            Err(2)
        );
        let three = vec![fp32(&[1, 1], &[1.0]); 3];
        assert_eq!(live_behind(&outputs, &[], three), Err(2));
    }
}

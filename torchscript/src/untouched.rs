//! Runs a model's file in plain libtorch, without anything from the slicer.

use crate::ffi::TorchError;
use crate::tensors::{from_torch, max_abs_diff, to_torch};
use lamina_model::{Binding, Constant, Tensor};
use std::path::{Path, PathBuf};
use tch::{CModule, IValue, TchError, no_grad};

/// Why a file gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UntouchedError {
    /// libtorch cannot read it.
    #[error("libtorch cannot read {path}: {reason}", path = path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// libtorch's message, without its backtrace.
        reason: String,
    },
    /// Its forward threw an exception.
    #[error("the whole model fails on this request: {reason}")]
    Forward {
        /// libtorch's message, without its backtrace.
        reason: String,
    },
    /// An input or output has a type that Lamina does not support.
    #[error("the whole model has a value that Lamina does not carry: {what}")]
    Value {
        /// Which.
        what: String,
    },
}

/// The answer of the model at `path` to `inputs`, in the order of a manifest's outputs.
/// `arguments` are the manifest's: how the inputs are used.
///
/// Its weights require no gradient, as when serving: libtorch multiplies some matrices
/// differently for those that do.
///
/// # Errors
/// See [`UntouchedError`].
pub fn untouched_answer(
    path: &Path,
    inputs: &[Tensor],
    arguments: &[Binding],
) -> Result<Vec<Tensor>, UntouchedError> {
    let model = load(path).map_err(|e| UntouchedError::Load {
        path: path.to_owned(),
        reason: reason(e),
    })?;
    let tensors = inputs.iter().map(to_torch).collect::<Result<Vec<_>, _>>();
    let tensors = tensors.map_err(|e| UntouchedError::Value { what: e.0 })?;
    let values = bound(tensors, arguments)?;
    let answer = no_grad(|| model.forward_is(&values));
    let answer = answer.map_err(|e| UntouchedError::Forward { reason: reason(e) })?;
    let mut tensors = Vec::new();
    flatten(answer, &mut tensors)?;
    Ok(tensors)
}

/// The arguments of `forward`.
fn bound(tensors: Vec<tch::Tensor>, arguments: &[Binding]) -> Result<Vec<IValue>, UntouchedError> {
    if arguments.is_empty() {
        return Ok(tensors.into_iter().map(IValue::Tensor).collect());
    }
    let mut tensors = tensors.into_iter();
    let mut next = || {
        tensors
            .next()
            .ok_or_else(|| unknown("fewer inputs than it takes"))
    };
    let wrong = |e: TchError| UntouchedError::Value { what: reason(e) };
    let value = |binding: &Binding| {
        Ok(match binding {
            Binding::Tensor => IValue::Tensor(next()?),
            Binding::Int => IValue::Int(i64::try_from(next()?).map_err(wrong)?),
            Binding::Float => IValue::Double(f64::try_from(next()?).map_err(wrong)?),
            Binding::Bool => IValue::Bool(bool::try_from(next()?).map_err(wrong)?),
            Binding::Tuple { count } => {
                let fields = (0..*count).map(|_| Ok(IValue::Tensor(next()?)));
                IValue::Tuple(fields.collect::<Result<_, UntouchedError>>()?)
            }
            Binding::Fixed { value } => match value {
                Constant::None => IValue::None,
                Constant::Bool(truth) => IValue::Bool(*truth),
                Constant::Int(number) => IValue::Int(*number),
                Constant::Float(number) => IValue::Double(*number),
                Constant::Text(text) => IValue::String(text.clone()),
            },
        })
    };
    arguments.iter().map(value).collect()
}

/// The largest difference between two tensors; `None` if they cannot be compared, because of their
/// shapes, their types, or NaNs.
pub fn largest_difference(expected: &Tensor, got: &Tensor) -> Option<f64> {
    let difference = max_abs_diff(expected, got);
    difference.is_finite().then_some(difference)
}

fn load(path: &Path) -> Result<CModule, TchError> {
    let mut model = CModule::load(path)?;
    model.f_set_eval()?;
    for (_, weight) in model.named_parameters()? {
        if weight.requires_grad() {
            // The same tensor under another handle.
            let _ = weight.f_set_requires_grad(false)?;
        }
    }
    Ok(model)
}

/// Appends the tensors of a nest; numbers become tensors of one element.
fn flatten(value: IValue, tensors: &mut Vec<Tensor>) -> Result<(), UntouchedError> {
    let found = match value {
        IValue::None => return Ok(()),
        IValue::Tensor(tensor) => tensor,
        IValue::Int(number) => numbers(&[number])?,
        IValue::Double(number) => numbers(&[number])?,
        IValue::Bool(truth) => numbers(&[truth])?,
        IValue::IntList(list) if !list.is_empty() => numbers(&list)?,
        IValue::DoubleList(list) if !list.is_empty() => numbers(&list)?,
        IValue::BoolList(list) if !list.is_empty() => numbers(&list)?,
        IValue::IntList(_) | IValue::DoubleList(_) | IValue::BoolList(_) => return Ok(()),
        IValue::Tuple(items) | IValue::GenericList(items) => {
            return items.into_iter().try_for_each(|i| flatten(i, tensors));
        }
        IValue::TensorList(items) => {
            let mut items = items.into_iter().map(IValue::Tensor);
            return items.try_for_each(|i| flatten(i, tensors));
        }
        IValue::GenericDict(entries) => {
            return entries
                .into_iter()
                .try_for_each(|(_, i)| flatten(i, tensors));
        }
        IValue::String(_) | IValue::StringList(_) => return Err(unknown("a text")),
        _ => return Err(unknown("neither a tensor, a number nor a nest of them")),
    };
    let found = as_blocks_give(found).map_err(|e| UntouchedError::Value { what: reason(e) })?;
    let carried = from_torch(found).map_err(|e| UntouchedError::Value { what: e.0 })?;
    tensors.push(carried);
    Ok(())
}

/// Complex numbers as pairs, and lazy conjugation or negation resolved.
fn as_blocks_give(tensor: tch::Tensor) -> Result<tch::Tensor, TchError> {
    if tensor.f_is_complex()? {
        tensor.f_resolve_conj()?.f_view_as_real()
    } else {
        tensor.f_resolve_neg()
    }
}

fn numbers<T: tch::kind::Element>(list: &[T]) -> Result<tch::Tensor, UntouchedError> {
    tch::Tensor::f_from_slice(list).map_err(|e| UntouchedError::Value { what: reason(e) })
}

fn unknown(what: &str) -> UntouchedError {
    UntouchedError::Value { what: what.into() }
}

fn reason(error: TchError) -> String {
    let text = match error {
        TchError::Torch(text) => text,
        other => other.to_string(),
    };
    TorchError(text).reason()
}

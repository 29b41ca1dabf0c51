//! How declared inputs and fixed arguments fill the arguments of a `forward`.

use crate::ffi::Argument;
use lamina_model::{Binding, Constant, DataType, FixedArgument, InputSpec};

/// A binding for each argument up to the last one that is filled; the others have defaults.
/// `fixed` are matched by name, inputs fill the rest in order.
///
/// # Errors
/// The mismatch, for people.
pub(crate) fn bindings(
    arguments: &[Argument],
    inputs: &[InputSpec],
    fixed: &[FixedArgument],
) -> Result<Vec<Binding>, String> {
    let names = || {
        let names: Vec<&str> = arguments.iter().map(|a| a.name.as_str()).collect();
        format!(
            "its forward takes {} ({})",
            arguments.len(),
            names.join(", ")
        )
    };
    let is_none = |f: &&FixedArgument| arguments.iter().all(|a| a.name != f.name);
    if let Some(unknown) = fixed.iter().find(is_none) {
        return Err(format!(
            "it has no argument `{}`: {}",
            unknown.name,
            names()
        ));
    }
    let mut inputs = inputs;
    let mut bindings = Vec::new();
    for (place, argument) in arguments.iter().enumerate() {
        if let Some(found) = fixed.iter().find(|f| f.name == argument.name) {
            let value = constant(&argument.kind, &found.fixed).ok_or_else(|| {
                format!(
                    "its argument `{}` is of the type {}, which `{}` is none of",
                    argument.name, argument.kind, found.fixed
                )
            })?;
            bindings.push(Binding::Fixed { value });
            continue;
        }
        if inputs.is_empty() {
            let is_filled = |a: &Argument| fixed.iter().any(|f| f.name == a.name);
            if !argument.has_default {
                return Err(names());
            }
            if let Some(behind) = arguments[place..].iter().find(|a| is_filled(a)) {
                return Err(format!(
                    "its argument `{}` is before `{}`, which is fixed: fix it, too, or declare \
                     an input for it",
                    argument.name, behind.name
                ));
            }
            return Ok(bindings);
        }
        let (binding, count) = carried(argument, inputs)?;
        bindings.push(binding);
        inputs = &inputs[count..];
    }
    if inputs.is_empty() {
        Ok(bindings)
    } else {
        Err(names())
    }
}

/// How `argument` is filled with the first of `inputs`, and how many of them it takes.
fn carried(argument: &Argument, inputs: &[InputSpec]) -> Result<(Binding, usize), String> {
    let name = &argument.name;
    let kind = argument.kind.as_str();
    let kind = kind
        .strip_prefix("Optional[")
        .and_then(|k| k.strip_suffix(']'))
        .unwrap_or(kind);
    let number = match kind {
        "Tensor" => return Ok((Binding::Tensor, 1)),
        "int" => Some((Binding::Int, &[DataType::Int64][..])),
        "float" => Some((Binding::Float, &[DataType::Fp64, DataType::Fp32][..])),
        "bool" => Some((Binding::Bool, &[DataType::Bool][..])),
        _ => None,
    };
    if let Some((binding, datatypes)) = number {
        let given = &inputs[0].value;
        let is_one = given.shape.iter().all(|&dim| dim == 1) && given.shape.len() < 2;
        if is_one && datatypes.contains(&given.datatype) {
            return Ok((binding, 1));
        }
        return Err(format!(
            "its argument `{name}` is of the type {kind}, but `{}` is {} {}: declare it as {} of shape \
             [], or give it one value for every request (`arguments`, `--argument {name}=…`)",
            given.name,
            given.datatype,
            given.shape_text(),
            datatypes[0]
        ));
    }
    let Some(count) = tensors_in_tuple(kind) else {
        let help = if kind == "str" {
            format!(": give it one value for every request (`arguments`, `--argument {name}=…`)")
        } else {
            String::new()
        };
        return Err(format!(
            "its argument `{name}` is a {kind}, no tensor{help}"
        ));
    };
    if inputs.len() < count {
        return Err(format!(
            "its argument `{name}` is a {kind}: declare {count} inputs for it, one for each tensor"
        ));
    }
    Ok((Binding::Tuple { count }, count))
}

/// The number of tensors in a tuple of only tensors.
fn tensors_in_tuple(kind: &str) -> Option<usize> {
    let fields = kind.strip_prefix("Tuple[")?.strip_suffix(']')?;
    let mut fields = fields.split(", ");
    let count = fields.clone().count();
    fields.all(|field| field == "Tensor").then_some(count)
}

fn constant(kind: &str, text: &str) -> Option<Constant> {
    let inner = kind
        .strip_prefix("Optional[")
        .and_then(|k| k.strip_suffix(']'));
    if inner.is_some() && text == "none" {
        return Some(Constant::None);
    }
    match inner.unwrap_or(kind) {
        "int" => text.parse().ok().map(Constant::Int),
        "float" => {
            let number = text.parse::<f64>().ok().filter(|n| n.is_finite());
            number.map(Constant::Float)
        }
        "bool" => text.parse().ok().map(Constant::Bool),
        "str" => Some(Constant::Text(text.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::ValueSpec;

    fn argument(name: &str, kind: &str, has_default: bool) -> Argument {
        Argument {
            name: name.into(),
            kind: kind.into(),
            has_default,
        }
    }

    fn input(datatype: DataType, shape: &[i64]) -> InputSpec {
        InputSpec {
            value: ValueSpec {
                name: "given".into(),
                datatype,
                shape: shape.to_vec(),
                sizes: Vec::new(),
            },
            range: None,
        }
    }

    fn fixed(name: &str, text: &str) -> FixedArgument {
        FixedArgument {
            name: name.into(),
            fixed: text.into(),
        }
    }

    fn vad() -> Vec<Argument> {
        vec![
            argument("x", "Tensor", false),
            argument("state", "Tuple[Tensor, Tensor]", false),
            argument("sr", "int", false),
            argument("mode", "str", true),
            argument("mask", "Optional[Tensor]", true),
        ]
    }

    #[test]
    fn inputs_fill_what_is_not_fixed_in_order() {
        let x = || input(DataType::Fp32, &[-1, 512]);
        let sr = input(DataType::Int64, &[]);
        let tuple = Binding::Tuple { count: 2 };
        assert_eq!(
            bindings(&vad(), &[x(), x(), x(), sr.clone()], &[]),
            Ok(vec![Binding::Tensor, tuple.clone(), Binding::Int])
        );
        let sr16 = Binding::Fixed {
            value: Constant::Int(16000),
        };
        assert_eq!(
            bindings(&vad(), &[x(), x(), x()], &[fixed("sr", "16000")]),
            Ok(vec![Binding::Tensor, tuple.clone(), sr16.clone()])
        );
        let mode = Binding::Fixed {
            value: Constant::Text("fast".into()),
        };
        let with_mask = [fixed("mode", "fast"), fixed("sr", "16000")];
        assert_eq!(
            bindings(&vad(), &[x(), x(), x(), x()], &with_mask),
            Ok(vec![Binding::Tensor, tuple, sr16, mode, Binding::Tensor])
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let x = || input(DataType::Fp32, &[-1, 512]);
        for (inputs, fixed, about) in [
            (
                vec![x(), x()],
                vec![],
                "`state` is a Tuple[Tensor, Tensor]: declare 2 inputs",
            ),
            (
                vec![x(), x(), x()],
                vec![],
                "its forward takes 5 (x, state, sr, mode, mask)",
            ),
            (
                vec![x(), x(), x(), x()],
                vec![],
                "declare it as INT64 of shape []",
            ),
            (
                vec![x(), x(), x()],
                vec![fixed("sr", "fast")],
                "`sr` is of the type int, which `fast` is none of",
            ),
            (
                vec![x()],
                vec![fixed("rate", "1")],
                "it has no argument `rate`",
            ),
            (
                vec![x(), x(), x(), input(DataType::Int64, &[1])],
                vec![fixed("mask", "none")],
                "`mode` is before `mask`, which is fixed",
            ),
            (
                vec![x(), x(), x(), input(DataType::Int64, &[1]), x()],
                vec![],
                "`mode` is a str, no tensor: give it one value",
            ),
        ] {
            let said = bindings(&vad(), &inputs, &fixed).unwrap_err();
            assert!(said.contains(about), "{said}");
        }
    }
}

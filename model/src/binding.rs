//! How inputs and constants fill the arguments of a model's `forward`.

use serde::{Deserialize, Serialize};

/// How one argument of a `forward` is filled; those after the last take their defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Binding {
    /// With the next input.
    Tensor,
    /// With the integer in the next input.
    Int,
    /// With the float in it.
    Float,
    /// With the boolean in it.
    Bool,
    /// With a tuple of the next inputs.
    #[serde(rename_all = "camelCase")]
    Tuple {
        /// Number of inputs.
        count: usize,
    },
    /// With the same value for every request.
    #[serde(rename_all = "camelCase")]
    Fixed {
        /// The value.
        value: Constant,
    },
}

/// A value that is the same for every request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type", content = "value")]
#[allow(missing_docs)] // the names say it all
pub enum Constant {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_survive_the_manifest() {
        let all = vec![
            Binding::Tensor,
            Binding::Tuple { count: 2 },
            Binding::Fixed {
                value: Constant::None,
            },
            Binding::Fixed {
                value: Constant::Float(0.5),
            },
            Binding::Fixed {
                value: Constant::Text("fast".into()),
            },
        ];
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Binding>>(&text).unwrap(), all);
    }
}

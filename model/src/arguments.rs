//! How the arguments of a model's `forward` are filled.

use crate::InputSpec;
use serde::{Deserialize, Serialize};

/// The declaration of a `forward`, as preparing takes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Declared {
    /// A tensor of each request.
    Input(InputSpec),
    /// A fixed argument, which no request carries.
    Fixed(FixedArgument),
}

/// An argument that is the same for every request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FixedArgument {
    /// Its name in `forward`.
    pub name: String,
    /// A number, `true` or `false`, `none`, or a text, according to the argument's type.
    pub fixed: String,
}

/// Inputs in the order of `forward`, and fixed arguments.
pub fn divided(declared: Vec<Declared>) -> (Vec<InputSpec>, Vec<FixedArgument>) {
    let (mut inputs, mut fixed) = (Vec::new(), Vec::new());
    for one in declared {
        match one {
            Declared::Input(input) => inputs.push(input),
            Declared::Fixed(argument) => fixed.push(argument),
        }
    }
    (inputs, fixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_and_fixed_arguments_come_in_one_list() {
        let text = r#"[{"value":{"name":"x","datatype":"FP32","shape":[-1,8]},"range":null},
            {"name":"sr","fixed":"16000"}]"#;
        let declared: Vec<Declared> = serde_json::from_str(text).unwrap();
        let (inputs, fixed) = divided(declared);
        assert_eq!(inputs[0].value.name, "x");
        assert_eq!(
            (fixed[0].name.as_str(), fixed[0].fixed.as_str()),
            ("sr", "16000")
        );
        assert!(serde_json::from_str::<Vec<Declared>>(r#"[{"name":"sr","fixed":16000}]"#).is_err());
    }
}

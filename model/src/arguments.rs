//! How the arguments of a model's `forward` are filled.

use crate::{ImageInput, InputSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The declaration of a `forward`, as preparing takes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Declared {
    /// A tensor of each request.
    Input(InputSpec),
    /// A tensor that is made of an image of each request.
    Image(ImageInput),
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

/// What is declared, by what it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Divided {
    /// Inputs in the order of `forward`, as the model takes them.
    pub inputs: Vec<InputSpec>,
    /// Those of them that clients send as images, by their places.
    pub images: BTreeMap<usize, ImageInput>,
    /// Arguments that are fixed.
    pub fixed: Vec<FixedArgument>,
}

/// Inputs in the order of `forward`, and fixed arguments.
pub fn divided(declared: Vec<Declared>) -> Divided {
    let mut divided = Divided::default();
    for one in declared {
        match one {
            Declared::Input(input) => divided.inputs.push(input),
            Declared::Image(image) => {
                let place = divided.inputs.len();
                divided.inputs.push(image.taken());
                divided.images.insert(place, image);
            }
            Declared::Fixed(argument) => divided.fixed.push(argument),
        }
    }
    divided
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_and_fixed_arguments_come_in_one_list() {
        let text = r#"[{"value":{"name":"x","datatype":"FP32","shape":[-1,8]},"range":null},
            {"name":"sr","fixed":"16000"}]"#;
        let declared: Vec<Declared> = serde_json::from_str(text).unwrap();
        let Divided {
            inputs,
            images,
            fixed,
        } = divided(declared);
        assert_eq!(inputs[0].value.name, "x");
        assert!(images.is_empty());
        assert_eq!(
            (fixed[0].name.as_str(), fixed[0].fixed.as_str()),
            ("sr", "16000")
        );
        assert!(serde_json::from_str::<Vec<Declared>>(r#"[{"name":"sr","fixed":16000}]"#).is_err());
    }

    #[test]
    fn an_image_stands_where_the_tensor_does_that_is_made_of_it() {
        let text = r#"[{"value":{"name":"x","datatype":"FP32","shape":[-1,8]},"range":null},
            {"name":"image","rows":-1,"source":{"kind":"files",
              "typical":{"width":64,"height":48},"typicalBytes":900,"mostPixels":9000,
              "mostBytes":9000},"steps":{"crop":{"width":32,"height":24}}}]"#;
        let declared: Vec<Declared> = serde_json::from_str(text).unwrap();
        let Divided { inputs, images, .. } = divided(declared);
        assert_eq!(inputs[1].value.shape, [-1, 3, 24, 32]);
        assert_eq!(images[&1].sent().shape, [-1, -1]);
    }
}

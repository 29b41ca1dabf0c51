//! The JSON of a request without its tensors' elements. Everything that grows with the client's
//! text is bounded, so that a body costs at most a few times its size.

use lamina_proto::inference::InferParameter;
use lamina_proto::inference::infer_parameter::ParameterChoice;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

/// Most inputs or outputs of one request, as over gRPC (`serve/guard/shapes.rs`).
const MOST_TENSORS: usize = 256;
/// Most dimensions of one tensor.
const MOST_DIMENSIONS: usize = 64;
/// Most parameters of a request or of one tensor, as over gRPC.
const MOST_PARAMETERS: usize = 64;

/// The JSON of a request.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) parameters: Parameters,
    pub(super) inputs: AtMost<Input, MOST_TENSORS>,
    pub(super) outputs: Option<AtMost<Output, MOST_TENSORS>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Input {
    pub(super) name: String,
    pub(super) datatype: String,
    pub(super) shape: AtMost<i64, MOST_DIMENSIONS>,
    #[serde(default)]
    pub(super) parameters: Parameters,
    /// Whether there are elements; they are read once their type is known.
    pub(super) data: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Output {
    pub(super) name: String,
    #[serde(default)]
    pub(super) parameters: Parameters,
}

/// A list with at most `N` elements.
#[derive(Debug)]
pub(super) struct AtMost<T, const N: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for AtMost<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T, const N: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for ListVisitor<T, N> {
    type Value = AtMost<T, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {N} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element()? {
            if elements.len() == N {
                return Err(de::Error::invalid_length(N + 1, &self));
            }
            elements.push(element);
        }
        Ok(AtMost(elements))
    }
}

/// Parameters by name; empty if missing or null.
#[derive(Debug, Default)]
pub(super) struct Parameters(pub(super) HashMap<String, InferParameter>);

impl Parameters {
    pub(super) fn take(&mut self, name: &str) -> Option<ParameterChoice> {
        self.0.remove(name)?.parameter_choice
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ParametersVisitor)
    }
}

struct ParametersVisitor;

impl<'de> Visitor<'de> for ParametersVisitor {
    type Value = Parameters;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of at most {MOST_PARAMETERS} parameters")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Parameters, E> {
        Ok(Parameters::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
        let mut parameters = HashMap::new();
        while let Some((name, Choice(choice))) = map.next_entry::<String, Choice>()? {
            if parameters.len() == MOST_PARAMETERS {
                return Err(de::Error::invalid_length(MOST_PARAMETERS + 1, &self));
            }
            let parameter_choice = Some(choice);
            parameters.insert(name, InferParameter { parameter_choice });
        }
        Ok(Parameters(parameters))
    }
}

struct Choice(ParameterChoice);

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ChoiceVisitor).map(Self)
    }
}

struct ChoiceVisitor;

impl Visitor<'_> for ChoiceVisitor {
    type Value = ParameterChoice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a parameter, which is true, false, a number or a string")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<ParameterChoice, E> {
        Ok(ParameterChoice::BoolParam(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<ParameterChoice, E> {
        Ok(ParameterChoice::Int64Param(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<ParameterChoice, E> {
        Ok(match i64::try_from(value) {
            Ok(value) => ParameterChoice::Int64Param(value),
            Err(_) => ParameterChoice::Uint64Param(value),
        })
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<ParameterChoice, E> {
        Ok(ParameterChoice::DoubleParam(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<ParameterChoice, E> {
        Ok(ParameterChoice::StringParam(value.to_owned()))
    }
}

//! Tensor elements in JSON, as little-endian bytes: nested by the shape, or flat. They are
//! written as they are parsed, without building a tree.

use lamina_model::DataType;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// What the elements of one input must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) datatype: DataType,
    pub(super) shape: &'a [i64],
    /// According to the shape.
    pub(super) elements: usize,
}

/// Reads the `data` of the inputs that need it, by index.
///
/// # Errors
/// An element or the nesting does not fit, or there are too few or too many.
pub(super) fn read(
    json: &[u8],
    wanted: &[Option<Wanted<'_>>],
) -> Result<Vec<Option<Vec<u8>>>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let text_bytes = json.len();
    let read = Request { wanted, text_bytes }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(read)
}

type Read = Vec<Option<Vec<u8>>>;

#[derive(Clone, Copy)]
struct Request<'a> {
    wanted: &'a [Option<Wanted<'a>>],
    text_bytes: usize,
}

impl<'de> DeserializeSeed<'de> for Request<'_> {
    type Value = Read;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Read, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Request<'_> {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
        let mut read = Read::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "inputs" {
                read = map.next_value_seed(Inputs(self))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(read)
    }
}

struct Inputs<'a>(Request<'a>);

impl<'de> DeserializeSeed<'de> for Inputs<'_> {
    type Value = Read;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Read, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Inputs<'_> {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of inputs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Read, A::Error> {
        let Request { wanted, text_bytes } = self.0;
        let mut read = Read::with_capacity(wanted.len());
        for &wanted in wanted {
            let input = Input { wanted, text_bytes };
            let bytes = list.next_element_seed(input)?;
            read.push(bytes.flatten());
        }
        // There is none; read the list to its end.
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(read)
    }
}

struct Input<'a> {
    wanted: Option<Wanted<'a>>,
    text_bytes: usize,
}

impl<'de> DeserializeSeed<'de> for Input<'_> {
    type Value = Option<Vec<u8>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Input<'_> {
    type Value = Option<Vec<u8>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an input")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut bytes = None;
        while let Some(key) = map.next_key::<String>()? {
            match self.wanted {
                Some(wanted) if key == "data" => {
                    let mut filling = Filling::new(wanted, self.text_bytes);
                    map.next_value_seed(Level {
                        filling: &mut filling,
                        depth: 0,
                    })?;
                    bytes = Some(filling.done()?);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(bytes)
    }
}

/// A tensor being read.
struct Filling<'a> {
    wanted: Wanted<'a>,
    bytes: Vec<u8>,
    elements: usize,
    /// Brackets around each element: one if flat, as many as there are dimensions if nested.
    depth: Option<usize>,
}

impl<'a> Filling<'a> {
    fn new(wanted: Wanted<'a>, text_bytes: usize) -> Self {
        // An element takes at least two characters, whatever the shape says.
        let elements = wanted.elements.min(text_bytes / 2 + 1);
        Self {
            wanted,
            bytes: Vec::with_capacity(elements.saturating_mul(wanted.datatype.size_bytes())),
            elements: 0,
            depth: None,
        }
    }

    fn push<E: de::Error>(&mut self, depth: usize, element: Element) -> Result<(), E> {
        let Wanted { name, shape, .. } = self.wanted;
        let first = *self.depth.get_or_insert(depth);
        if depth == 0 {
            return Err(E::custom(format!("`data` of input `{name}` is no array")));
        }
        if first != depth || (depth != 1 && depth != shape.len()) {
            return Err(self.nested_otherwise());
        }
        if self.elements == self.wanted.elements {
            return Err(E::custom(format!(
                "`data` of input `{name}` has more than the {} elements of shape {shape:?}",
                self.wanted.elements
            )));
        }
        self.elements += 1;
        let fits = element.write(self.wanted.datatype, &mut self.bytes);
        fits.ok_or_else(|| {
            let datatype = self.wanted.datatype;
            E::custom(format!(
                "input `{name}`: {element} does not fit into {datatype}"
            ))
        })
    }

    /// An array inside `depth` others ends after `count` elements.
    fn close<E: de::Error>(&self, depth: usize, count: usize) -> Result<(), E> {
        let is_flat = depth == 0 && (self.depth == Some(1) || count == 0);
        let size = self.wanted.shape.get(depth);
        let fits = size.is_some_and(|size| usize::try_from(*size) == Ok(count));
        if is_flat || fits {
            return Ok(());
        }
        Err(self.nested_otherwise())
    }

    fn nested_otherwise<E: de::Error>(&self) -> E {
        let Wanted { name, shape, .. } = self.wanted;
        E::custom(format!(
            "`data` of input `{name}` is neither flat nor nested as its shape {shape:?} says"
        ))
    }

    fn done<E: de::Error>(self) -> Result<Vec<u8>, E> {
        let Wanted { name, shape, .. } = self.wanted;
        if self.elements == self.wanted.elements {
            return Ok(self.bytes);
        }
        Err(E::custom(format!(
            "`data` of input `{name}` has {} elements, shape {shape:?} needs {}",
            self.elements, self.wanted.elements
        )))
    }
}

/// The content of `depth` brackets.
struct Level<'f, 'a> {
    filling: &'f mut Filling<'a>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Level<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wanted { name, datatype, .. } = self.filling.wanted;
        write!(f, "elements of input `{name}`, which are {datatype}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { filling, depth } = self;
        if depth > filling.wanted.shape.len() {
            return Err(filling.nested_otherwise());
        }
        let mut count = 0;
        loop {
            let inside = Level {
                filling: &mut *filling,
                depth: depth + 1,
            };
            if list.next_element_seed(inside)?.is_none() {
                return filling.close(depth, count);
            }
            count += 1;
        }
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.filling.push(self.depth, Element::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.filling.push(self.depth, Element::Int(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        let element = match i64::try_from(value) {
            Ok(value) => Element::Int(value),
            Err(_) => Element::Float(value as f64),
        };
        self.filling.push(self.depth, element)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.filling.push(self.depth, Element::Float(value))
    }
}

/// An element of the text.
#[derive(Debug, Clone, Copy)]
enum Element {
    Bool(bool),
    Int(i64),
    Float(f64),
}

/// Above it not every integer is a double.
const LARGEST_WHOLE: f64 = 9_007_199_254_740_992.0;

impl Element {
    /// Writes it as an element of `datatype`; `None` if it does not fit.
    fn write(self, datatype: DataType, out: &mut Vec<u8>) -> Option<()> {
        match datatype {
            DataType::Bool => out.push(self.truth()?),
            DataType::Uint8 => out.push(u8::try_from(self.whole()?).ok()?),
            DataType::Int8 => out.extend(i8::try_from(self.whole()?).ok()?.to_le_bytes()),
            DataType::Int16 => out.extend(i16::try_from(self.whole()?).ok()?.to_le_bytes()),
            DataType::Int32 => out.extend(i32::try_from(self.whole()?).ok()?.to_le_bytes()),
            DataType::Int64 => out.extend(self.whole()?.to_le_bytes()),
            DataType::Fp32 => {
                let value = self.number()? as f32;
                out.extend(value.is_finite().then_some(value)?.to_le_bytes());
            }
            DataType::Fp64 => out.extend(self.number()?.to_le_bytes()),
            DataType::Fp16 | DataType::Bf16 => return None,
        }
        Some(())
    }

    const fn truth(self) -> Option<u8> {
        match self {
            Self::Bool(value) => Some(value as u8),
            Self::Int(0) => Some(0),
            Self::Int(1) => Some(1),
            _ => None,
        }
    }

    fn whole(self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(value),
            // Some clients write every number like this.
            Self::Float(value) if value.fract() == 0.0 && value.abs() <= LARGEST_WHOLE => {
                Some(value as i64)
            }
            _ => None,
        }
    }

    const fn number(self) -> Option<f64> {
        match self {
            Self::Bool(_) => None,
            Self::Int(value) => Some(value as f64),
            Self::Float(value) => Some(value),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(datatype: DataType, shape: &[i64], data: &str) -> Result<Vec<u8>, String> {
        let json = format!(r#"{{"a":[1],"inputs":[{{"x":{{}},"data":{data},"name":"x"}}]}}"#);
        let elements = usize::try_from(shape.iter().product::<i64>()).unwrap();
        let wanted = Wanted {
            name: "x",
            datatype,
            shape,
            elements,
        };
        let read = super::read(json.as_bytes(), &[Some(wanted)]).map_err(|e| e.to_string())?;
        Ok(read[0].clone().unwrap())
    }

    #[test]
    fn nested_and_flat_arrays_are_the_same_tensor() {
        let wanted: Vec<u8> = (1..=6_i16).flat_map(i16::to_le_bytes).collect();
        for data in [
            "[1,2,3,4,5,6]",
            "[[1,2,3],[4,5,6]]",
            "[ [1.0,2,3], [4,5,6e0] ]",
        ] {
            let read = read_one(DataType::Int16, &[2, 3], data);
            assert_eq!(read.unwrap(), wanted, "{data}");
        }
        let deep = read_one(DataType::Int16, &[1, 2, 3], "[[[1,2,3],[4,5,6]]]");
        assert_eq!(deep.unwrap(), wanted);
    }

    #[test]
    fn other_nestings_and_counts_are_refused() {
        for (shape, data, cause) in [
            (
                &[2, 3][..],
                "[[1,2],[3,4],[5,6]]",
                "neither flat nor nested",
            ),
            (&[2, 3], "[[1,2,3],[4,5,6],[]]", "neither flat nor nested"),
            (&[2, 3], "[1,2,3,[4,5,6]]", "neither flat nor nested"),
            (&[2, 3], "[[[1,2,3],[4,5,6]]]", "neither flat nor nested"),
            (&[2, 3], "[[1,2,3],4,5,6]", "neither flat nor nested"),
            (
                &[2, 3],
                "[1,2,3,4,5]",
                "has 5 elements, shape [2, 3] needs 6",
            ),
            (&[2, 3], "[1,2,3,4,5,6,7]", "more than the 6 elements"),
            (&[2, 3], "[]", "has 0 elements"),
            (&[1], "5", "is no array"),
            (&[], "5", "is no array"),
            (&[0], "[1]", "more than the 0 elements"),
        ] {
            let error = read_one(DataType::Fp32, shape, data).unwrap_err();
            assert!(error.contains(cause), "{data}: {error}");
        }
    }

    #[test]
    fn tensors_without_elements_and_without_dimensions_are_tensors() {
        for (shape, data) in [
            (&[2, 0][..], "[]"),
            (&[2, 0], "[[],[]]"),
            (&[0], "[]"),
            (&[0, 3], "[]"),
        ] {
            assert!(read_one(DataType::Fp32, shape, data).unwrap().is_empty());
        }
        let scalar = read_one(DataType::Uint8, &[], "[7]");
        assert_eq!(scalar.unwrap(), [7]);
    }

    #[test]
    fn every_datatype_has_its_elements() {
        for (datatype, text, bytes) in [
            (DataType::Bool, "true", &[1][..]),
            (DataType::Bool, "0", &[0]),
            (DataType::Uint8, "255", &[255]),
            (DataType::Int8, "-128", &[128]),
            (DataType::Int16, "-2", &[0xfe, 0xff]),
            (DataType::Int32, "-2.0", &[0xfe, 0xff, 0xff, 0xff]),
            (
                DataType::Int64,
                "9223372036854775807",
                &i64::MAX.to_le_bytes(),
            ),
            (DataType::Fp32, "0.1", &0.1_f32.to_le_bytes()),
            (DataType::Fp32, "3", &3.0_f32.to_le_bytes()),
            (DataType::Fp64, "-1.5e300", &(-1.5e300_f64).to_le_bytes()),
        ] {
            let read = read_one(datatype, &[1], &format!("[{text}]"));
            assert_eq!(read.unwrap(), bytes, "{datatype} {text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (datatype, text) in [
            (DataType::Bool, "2"),
            (DataType::Bool, "1.0"),
            (DataType::Uint8, "-1"),
            (DataType::Uint8, "256"),
            (DataType::Uint8, "true"),
            (DataType::Int8, "128"),
            (DataType::Int16, "1.5"),
            (DataType::Int32, "2147483648"),
            (DataType::Int64, "9223372036854775808"),
            (DataType::Int64, "1e16"),
            (DataType::Fp32, "1e39"),
            (DataType::Fp32, "false"),
            (DataType::Fp16, "1"),
            (DataType::Bf16, "1"),
        ] {
            let error = read_one(datatype, &[1], &format!("[{text}]")).unwrap_err();
            let cause = format!("does not fit into {datatype}");
            assert!(error.contains(&cause), "{datatype} {text}: {error}");
        }
        for text in ["null", "\"1\"", "{}", "[null]"] {
            let error = read_one(DataType::Fp32, &[1], &format!("[{text}]")).unwrap_err();
            let cause = "expected elements of input `x`, which are FP32";
            assert!(error.contains(cause), "{text}: {error}");
        }
    }

    #[test]
    fn a_text_of_brackets_ends_early() {
        let deep = "[".repeat(1 << 20);
        let error = read_one(DataType::Fp32, &[1], &deep).unwrap_err();
        assert!(error.contains("neither flat nor nested"), "{error}");
    }

    #[test]
    fn a_shape_that_lies_reserves_no_memory() {
        let shape = [1 << 40];
        let error = read_one(DataType::Fp32, &shape, "[1,2,3]").unwrap_err();
        assert!(error.contains("has 3 elements"), "{error}");
    }
}

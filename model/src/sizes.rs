//! Free dimensions beside the batch: the length of a sequence, the sides of an image.

use crate::{ShapeError, ValueSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Names of free sizes that one model may have.
pub const MOST_SIZES: usize = 4;

/// The largest size of a dimension.
const LARGEST: i64 = 2_147_483_647;
/// The longest name of a size.
const LONGEST_NAME: usize = 32;

/// A dimension of a value whose size follows the request, beside the batch. Its shape has -1
/// in this place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FreeSize {
    /// Place in the shape, from 0.
    pub dimension: usize,
    /// The size for which bytes, times and memory are told.
    pub typical: i64,
    /// What requests may have there; absent for values inside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<Bounds>,
}

/// The sizes that a dimension of an input may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bounds {
    /// How it is called. Dimensions of one name have one size in each request.
    pub name: String,
    /// The smallest size, 1 or more.
    pub min: i64,
    /// The largest size.
    pub max: i64,
    /// Sizes are multiples of this.
    pub step: i64,
}

/// A text declares no free dimension.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum SizeError {
    #[error(
        "`{0}` is no dimension; write a number, -1 first for the batch, or \
         NAME:MIN..MAX[/STEP][@TYPICAL], such as seq:1..512"
    )]
    Form(String),
    #[error("`{text}`: {reason}")]
    Bounds { text: String, reason: String },
}

impl Bounds {
    /// Whether a request may have `size` there.
    pub const fn takes(&self, size: i64) -> bool {
        self.min <= size && size <= self.max && size % self.step == 0
    }

    /// The multiple of the step nearest to `size`, within the bounds.
    pub fn nearest(&self, size: i64) -> i64 {
        let down = size.max(0) / self.step * self.step;
        let up = down.saturating_add(self.step);
        let near = if size - down <= up - size { down } else { up };
        near.clamp(self.min, self.max)
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)?;
        if self.step > 1 {
            write!(f, ", in multiples of {}", self.step)?;
        }
        Ok(())
    }
}

impl FreeSize {
    /// Reads `NAME:MIN..MAX[/STEP][@TYPICAL]`, `h:32..1024/32@224`, for the given place. What
    /// is typical is else the geometric middle: as many times the smallest as it is part of
    /// the largest.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn parse(text: &str, dimension: usize) -> Result<Self, SizeError> {
        let form = || SizeError::Form(text.to_owned());
        let (name, sizes) = text.split_once(':').ok_or_else(form)?;
        let (sizes, typical) = match sizes.split_once('@') {
            Some((sizes, typical)) => (sizes, Some(number(typical).ok_or_else(form)?)),
            None => (sizes, None),
        };
        let (sizes, step) = match sizes.split_once('/') {
            Some((sizes, step)) => (sizes, number(step).ok_or_else(form)?),
            None => (sizes, 1),
        };
        let (min, max) = sizes.split_once("..").ok_or_else(form)?;
        let bounds = Bounds {
            name: name.to_owned(),
            min: number(min).ok_or_else(form)?,
            max: number(max).ok_or_else(form)?,
            step,
        };
        let wrong = |reason: &str| SizeError::Bounds {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        check(&bounds).map_err(wrong)?;
        let typical = typical.unwrap_or_else(|| bounds.nearest(middle(&bounds)));
        if !bounds.takes(typical) {
            return Err(wrong("the typical size is not inside the bounds"));
        }
        Ok(Self {
            dimension,
            typical,
            bounds: Some(bounds),
        })
    }
}

fn number(text: &str) -> Option<i64> {
    let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

fn check(bounds: &Bounds) -> Result<(), &'static str> {
    let mut letters = bounds.name.chars();
    let is_name = letters.next().is_some_and(|c| c.is_ascii_alphabetic())
        && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && bounds.name.len() <= LONGEST_NAME;
    if !is_name {
        return Err("a name is a letter, then letters, digits and _, 32 at most");
    }
    if bounds.min < 1 || bounds.max > LARGEST || bounds.step < 1 {
        return Err("sizes are 1 to 2147483647");
    }
    if bounds.min > bounds.max {
        return Err("the bounds are empty");
    }
    if bounds.min % bounds.step != 0 || bounds.max % bounds.step != 0 {
        return Err("the bounds are no multiples of the step");
    }
    Ok(())
}

#[allow(clippy::cast_possible_truncation)] // between two sizes
fn middle(bounds: &Bounds) -> i64 {
    ((bounds.min as f64) * (bounds.max as f64)).sqrt().round() as i64
}

impl ValueSpec {
    /// Whether it has one row for each row of the batch.
    pub fn has_rows(&self) -> bool {
        self.shape.first() == Some(&-1) && self.size_at(0).is_none()
    }

    /// The free size at a place of the shape, where there is one.
    pub fn size_at(&self, dimension: usize) -> Option<&FreeSize> {
        self.sizes.iter().find(|size| size.dimension == dimension)
    }

    /// The shape with its typical sizes: -1 is left where the batch is.
    pub fn typical_shape(&self) -> Vec<i64> {
        let sized = |(place, &dim): (usize, &i64)| self.size_at(place).map_or(dim, |s| s.typical);
        self.shape.iter().enumerate().map(sized).collect()
    }

    /// How many times as much as one row of typical sizes `shape` is, about: each free
    /// dimension counts in proportion.
    pub fn times(&self, shape: &[i64]) -> f64 {
        let typical = self.typical_shape();
        let free = self.shape.iter().zip(shape).zip(typical);
        let free = free.filter(|((wanted, _), _)| **wanted == -1);
        let times = free.map(|((_, &size), typical)| size as f64 / typical.max(1) as f64);
        times.product()
    }

    /// Its shape as it is declared: `[-1, 3, h:32..1024, 8]`.
    pub fn shape_text(&self) -> String {
        let dim = |(place, dim): (usize, &i64)| match self.size_at(place) {
            Some(FreeSize {
                bounds: Some(b), ..
            }) if b.step > 1 => {
                format!("{}:{}..{}/{}", b.name, b.min, b.max, b.step)
            }
            Some(FreeSize {
                bounds: Some(b), ..
            }) => format!("{}:{}..{}", b.name, b.min, b.max),
            _ => dim.to_string(),
        };
        let dims: Vec<String> = self.shape.iter().enumerate().map(dim).collect();
        format!("[{}]", dims.join(", "))
    }

    /// Names and bounds of its free sizes.
    pub fn bounds(&self) -> impl Iterator<Item = (usize, &Bounds)> {
        let sizes = self.sizes.iter();
        sizes.filter_map(|s| Some((s.dimension, s.bounds.as_ref()?)))
    }
}

/// Checks that free sizes of one name are one size in all values of a request; `shapes` are
/// in the order of `specs`.
///
/// # Errors
/// The first two that differ.
pub fn check_sizes<'a>(
    specs: &[ValueSpec],
    shapes: impl IntoIterator<Item = &'a [i64]>,
) -> Result<(), ShapeError> {
    let mut known: BTreeMap<&str, (&str, i64)> = BTreeMap::new();
    for (spec, shape) in specs.iter().zip(shapes) {
        for (place, bounds) in spec.bounds() {
            let Some(&got) = shape.get(place) else {
                continue;
            };
            let (one, of_one) = *known.entry(&bounds.name).or_insert((&spec.name, got));
            if of_one != got {
                return Err(ShapeError::Sizes {
                    size: bounds.name.clone(),
                    one: one.to_owned(),
                    of_one,
                    other: spec.name.clone(),
                    of_other: got,
                });
            }
        }
    }
    Ok(())
}

/// The names of all free sizes of `inputs` with their bounds and what is typical.
///
/// # Errors
/// A name has different bounds in two places, or there are more than [`MOST_SIZES`].
pub fn sizes_of(inputs: &[ValueSpec]) -> Result<Vec<FreeSize>, String> {
    let mut known: Vec<FreeSize> = Vec::new();
    for (input, size) in inputs
        .iter()
        .flat_map(|i| i.sizes.iter().map(move |s| (i, s)))
    {
        let Some(bounds) = &size.bounds else {
            return Err(format!(
                "input `{}` has a free size without bounds",
                input.name
            ));
        };
        let is_same = |k: &&FreeSize| k.bounds.as_ref().is_some_and(|b| b.name == bounds.name);
        match known.iter().find(is_same) {
            Some(first) if (&first.bounds, first.typical) != (&size.bounds, size.typical) => {
                return Err(format!(
                    "`{}` is declared in two ways; give it the same bounds in each place",
                    bounds.name
                ));
            }
            Some(_) => (),
            None => known.push(size.clone()),
        }
    }
    if known.len() > MOST_SIZES {
        return Err(format!(
            "{} free sizes are declared; give at most {MOST_SIZES}, or one name to those that \
             are equal",
            known.len()
        ));
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataType;

    fn sized(name: &str, shape: &[&str]) -> ValueSpec {
        let mut spec = ValueSpec {
            name: name.into(),
            datatype: DataType::Fp32,
            shape: Vec::new(),
            sizes: Vec::new(),
        };
        for (place, dim) in shape.iter().enumerate() {
            spec.shape.push(dim.parse().unwrap_or(-1));
            spec.sizes.extend(FreeSize::parse(dim, place));
        }
        spec
    }

    #[test]
    fn what_is_declared_is_read() {
        let size = |text: &str| FreeSize::parse(text, 2).unwrap();
        let plain = size("h:32..1024");
        assert_eq!((plain.dimension, plain.typical), (2, 181));
        let bounds = plain.bounds.unwrap();
        assert_eq!((bounds.min, bounds.max, bounds.step), (32, 1024, 1));
        assert_eq!(size("h:32..1024/32").typical, 192);
        assert_eq!(size("h:32..1024/32@224").typical, 224);
        assert_eq!(size("seq:7..7").typical, 7);
        assert_eq!(
            size("h:32..1024/32").bounds.unwrap().to_string(),
            "32 to 1024, in multiples of 32"
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, about) in [
            ("h", "no dimension"),
            ("h:32", "no dimension"),
            ("h:32..x", "no dimension"),
            ("h:-1..4", "no dimension"),
            ("h:1..4@", "no dimension"),
            ("3h:1..4", "a name is a letter"),
            (":1..4", "a name is a letter"),
            ("h:0..4", "sizes are 1"),
            ("h:1..99999999999", "sizes are 1"),
            ("h:1..4/0", "sizes are 1"),
            ("h:5..4", "empty"),
            ("h:1..4/2", "no multiples"),
            ("h:2..4@5", "typical"),
            ("h:2..4/2@3", "typical"),
        ] {
            let error = FreeSize::parse(text, 0).unwrap_err().to_string();
            assert!(error.contains(about), "{text}: {error}");
        }
    }

    #[test]
    fn bytes_are_those_of_typical_sizes_and_follow_in_proportion() {
        let image = sized("image", &["-1", "3", "h:10..1000@100", "w:10..1000@50"]);
        assert_eq!(image.typical_shape(), [-1, 3, 100, 50]);
        assert_eq!(image.bytes(1), Some(4 * 3 * 100 * 50));
        assert_eq!(image.bytes(2), Some(2 * 4 * 3 * 100 * 50));
        assert!((image.times(&[2, 3, 200, 25]) - 2.0).abs() < 1e-9);
        assert!(image.has_rows());
        assert_eq!(image.shape_text(), "[-1, 3, h:10..1000, w:10..1000]");
        assert!(!sized("waveform", &["n:1..9"]).has_rows());
    }

    #[test]
    fn equal_names_are_one_size() {
        let specs = [
            sized("ids", &["-1", "seq:1..9"]),
            sized("mask", &["seq:1..9"]),
        ];
        let check = |ids: &[i64], mask: &[i64]| check_sizes(&specs, [ids, mask]);
        assert_eq!(check(&[1, 4], &[4]), Ok(()));
        let error = check(&[1, 4], &[5]).unwrap_err().to_string();
        assert!(
            error.contains("`seq`") && error.contains("4") && error.contains("5"),
            "{error}"
        );
        assert_eq!(sizes_of(&specs).unwrap().len(), 1);
        let other = sized("mask", &["seq:1..8"]);
        assert!(
            sizes_of(&[specs[0].clone(), other])
                .unwrap_err()
                .contains("`seq`")
        );
        let many = sized("x", &["a:1..2", "b:1..2", "c:1..2", "d:1..2", "e:1..2"]);
        assert!(sizes_of(&[many]).unwrap_err().contains("at most 4"));
    }
}

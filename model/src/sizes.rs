//! Free dimensions besides the batch: the length of a sequence, the sides of an image.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Most names of free sizes in one model.
pub const MOST_SIZES: usize = 4;

/// Bytes before a file in its row: its length, little-endian.
pub const LENGTH_BYTES: usize = 4;

/// The largest size of a dimension.
const LARGEST: i64 = 2_147_483_647;
/// The longest name of a size.
const LONGEST_NAME: usize = 32;

/// A dimension, other than the batch, whose size depends on the request. It is -1 in the shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FreeSize {
    /// Its position in the shape, from 0.
    pub dimension: usize,
    /// The size for which bytes, times and memory are given.
    pub typical: i64,
    /// Bounds for requests; absent for values inside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<Bounds>,
    /// Where each row along it is a file ([`crate::files_in_rows`]): the bytes that a file may
    /// have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
}

/// The sizes that a dimension of an input may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bounds {
    /// Its name. Dimensions with the same name have the same size in each request.
    pub name: String,
    /// The smallest size, at least 1.
    pub min: i64,
    /// The largest size.
    pub max: i64,
    /// Sizes are multiples of this.
    pub step: i64,
}

/// The text does not declare a free dimension.
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
    /// Reads `NAME:MIN..MAX[/STEP][@TYPICAL]`, `h:32..1024/32@224`, for the given dimension. The
    /// typical size defaults to the geometric mean of the smallest and the largest.
    ///
    /// # Errors
    /// The mistake, for people.
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
            file_bytes: None,
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

#[cfg(test)]
mod tests {
    use super::*;

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
}

//! Quantities as people write them: `10ms`, `50Mbit`, `2GiB`, `80%`.
//!
//! Negative values and NaN are not refused here: they are reported together with all
//! other mistakes.

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// A number with or without a unit, from a file or an option.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scalar(String);

impl Scalar {
    /// As written.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Scalar {
    fn from(text: &str) -> Self {
        Self(text.trim().to_owned())
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or text such as 10ms, 50Mbit or 2GiB")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(text.into())
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// What a quantity measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Time, in seconds.
    Time,
    /// Size, in bytes.
    Size,
    /// Bandwidth, in bytes per second. Needs a unit, because otherwise bits and bytes cannot be
    /// distinguished.
    Bandwidth,
    /// Rate, in requests per second.
    Rate,
    /// A share of a whole, 1 for all of it.
    Share,
    /// Power, in watts.
    Power,
    /// Energy, in joules.
    Energy,
    /// Floating-point operations.
    Operations,
    /// Money per second.
    PricePerSecond,
    /// Money per byte.
    PricePerByte,
    /// A bare number.
    Number,
}

const KIB: f64 = 1024.0;

impl Kind {
    /// Its units and their values. The first is for the error message.
    const fn units(self) -> &'static [(&'static str, f64)] {
        match self {
            Self::Time => &[
                ("ms", 1e-3),
                ("s", 1.0),
                ("us", 1e-6),
                ("µs", 1e-6),
                ("ns", 1e-9),
                ("min", 60.0),
            ],
            Self::Size => &[
                ("MiB", KIB * KIB),
                ("GiB", KIB * KIB * KIB),
                ("KiB", KIB),
                ("B", 1.0),
                ("kB", 1e3),
                ("KB", 1e3),
                ("MB", 1e6),
                ("GB", 1e9),
                ("Ki", KIB),
                ("Mi", KIB * KIB),
                ("Gi", KIB * KIB * KIB),
                ("k", 1e3),
                ("M", 1e6),
                ("G", 1e9),
            ],
            Self::Bandwidth => &[
                ("Mbit", 1e6 / 8.0),
                ("MB", 1e6),
                ("kbit", 1e3 / 8.0),
                ("Gbit", 1e9 / 8.0),
                ("bit", 1.0 / 8.0),
                ("kbps", 1e3 / 8.0),
                ("Mbps", 1e6 / 8.0),
                ("Gbps", 1e9 / 8.0),
                ("B", 1.0),
                ("kB", 1e3),
                ("KB", 1e3),
                ("GB", 1e9),
                ("KiB", KIB),
                ("MiB", KIB * KIB),
                ("GiB", KIB * KIB * KIB),
            ],
            Self::Rate => &[("/s", 1.0), ("/min", 1.0 / 60.0), ("/h", 1.0 / 3600.0)],
            Self::Share => &[("%", 0.01)],
            Self::Power => &[("W", 1.0), ("mW", 1e-3)],
            Self::Energy => &[
                ("nJ", 1e-9),
                ("uJ", 1e-6),
                ("µJ", 1e-6),
                ("mJ", 1e-3),
                ("J", 1.0),
            ],
            Self::Operations => &[
                ("M", 1e6),
                ("G", 1e9),
                ("k", 1e3),
                ("MFLOP", 1e6),
                ("GFLOP", 1e9),
            ],
            Self::PricePerSecond => &[("/h", 1.0 / 3600.0), ("/s", 1.0)],
            Self::PricePerByte => &[("/GB", 1e-9), ("/MB", 1e-6), ("/B", 1.0)],
            Self::Number => &[],
        }
    }

    /// An example, for people.
    const fn example(self) -> &'static str {
        match self {
            Self::Time => "12.5ms or 0.3s",
            Self::Size => "512KiB, 64MiB or 2GiB",
            Self::Bandwidth => "50Mbit (bits per second) or 6MB (bytes per second)",
            Self::Rate => "10/s",
            Self::Share => "80% or 0.8",
            Self::Power => "4W",
            Self::Energy => "20nJ",
            Self::Operations => "21M or 1.5G",
            Self::PricePerSecond => "0.9/h",
            Self::PricePerByte => "0.08/GB",
            Self::Number => "a number",
        }
    }
}

/// Text that is not a quantity of the required kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnitError {
    /// No number in front.
    #[error("`{text}` is not a quantity; write {example}")]
    NotANumber {
        /// The text.
        text: String,
        /// What would be right.
        example: &'static str,
    },
    /// An unknown unit.
    #[error("`{text}` has an unknown unit; write {example}")]
    Unit {
        /// The text.
        text: String,
        /// What would be right.
        example: &'static str,
    },
    /// A missing unit.
    #[error("`{text}` has no unit; write {example}")]
    NoUnit {
        /// The text.
        text: String,
        /// What would be right.
        example: &'static str,
    },
}

/// The value in the unit of its kind; also negative and infinite values and NaN.
///
/// # Errors
/// [`UnitError`] if the text is not a quantity of that kind.
pub(crate) fn parse(text: &str, kind: Kind) -> Result<f64, UnitError> {
    let text = text.trim();
    let example = kind.example();
    let (number, unit) = split(text);
    let Some(number) = number else {
        return Err(UnitError::NotANumber {
            text: text.to_owned(),
            example,
        });
    };
    if unit.is_empty() {
        if kind == Kind::Bandwidth && number.is_finite() && number != 0.0 {
            return Err(UnitError::NoUnit {
                text: text.to_owned(),
                example,
            });
        }
        return Ok(number);
    }
    let bare = match kind {
        Kind::Bandwidth => unit.strip_suffix("/s").unwrap_or(unit),
        Kind::Energy => unit.strip_suffix("/B").unwrap_or(unit),
        _ => unit,
    };
    let units = kind.units();
    let found = units.iter().find(|(name, _)| *name == bare);
    found
        .map(|(_, worth)| number * worth)
        .ok_or_else(|| UnitError::Unit {
            text: text.to_owned(),
            example,
        })
}

/// The longest number at the start, and the rest.
fn split(text: &str) -> (Option<f64>, &str) {
    // A text longer than any number is not one.
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let ends: Vec<usize> = ends.take_while(|end| *end <= 40).collect();
    let longest = ends
        .iter()
        .rev()
        .find_map(|end| Some((text[..*end].parse::<f64>().ok()?, &text[*end..])));
    match longest {
        Some((number, rest)) => (Some(number), rest.trim_start()),
        None => (None, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_units() {
        let cases = [
            ("10ms", Kind::Time, 0.01),
            ("1.5 s", Kind::Time, 1.5),
            ("0.25", Kind::Time, 0.25),
            ("2GiB", Kind::Size, 2.0 * 1024.0 * 1024.0 * 1024.0),
            ("14M", Kind::Size, 14e6),
            ("50Mbit", Kind::Bandwidth, 6.25e6),
            ("50Mbit/s", Kind::Bandwidth, 6.25e6),
            ("6MB/s", Kind::Bandwidth, 6e6),
            ("10/s", Kind::Rate, 10.0),
            ("30/min", Kind::Rate, 0.5),
            ("80%", Kind::Share, 0.8),
            ("1e3k", Kind::Operations, 1e6),
            ("-5ms", Kind::Time, -0.005),
        ];
        for (text, kind, value) in cases {
            let parsed = parse(text, kind).unwrap();
            assert!((parsed - value).abs() <= 1e-12 * value.abs(), "{text}");
        }
        assert!(parse("NaN", Kind::Time).unwrap().is_nan());
        assert!(parse("nan ms", Kind::Time).unwrap().is_nan());
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_an_example() {
        for (text, kind) in [
            ("fast", Kind::Time),
            ("10 parsec", Kind::Time),
            ("50", Kind::Bandwidth),
            ("", Kind::Size),
        ] {
            let error = parse(text, kind).unwrap_err().to_string();
            assert!(error.contains(kind.example()), "{error}");
        }
    }
}

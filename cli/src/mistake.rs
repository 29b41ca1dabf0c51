//! Mistakes in the input, all at once, each with its place.

use crate::units::{self, Kind, Scalar};
use serde_saphyr::Spanned;
use std::fmt;

/// Most mistakes reported; the rest is counted.
const MOST_TOLD: usize = 12;

/// A mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The line in the file, if known.
    pub line: Option<u64>,
    /// The field, `nodes[edge-1].memory`; empty for the file as a whole.
    pub field: String,
    /// The mistake and what would be right.
    pub reason: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

/// All mistakes in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    /// The file, or `the options`.
    pub place: String,
    /// The mistakes, in the order of the file; not empty.
    pub found: Vec<Mistake>,
}

impl Mistakes {
    /// One mistake of the whole place.
    pub fn whole(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            found: vec![Mistake {
                line: None,
                field: String::new(),
                reason: reason.into(),
            }],
        }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be used:", self.place)?;
        for mistake in self.found.iter().take(MOST_TOLD) {
            write!(f, "\n  {mistake}")?;
        }
        match self.found.len().saturating_sub(MOST_TOLD) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

impl std::error::Error for Mistakes {}

/// Collects mistakes while a file is interpreted.
#[derive(Debug, Default)]
pub(crate) struct Found(Vec<Mistake>);

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// Zero or more.
    AtLeastZero,
    /// More than zero.
    AboveZero,
}

impl Found {
    pub(crate) fn add(
        &mut self,
        line: Option<u64>,
        field: impl Into<String>,
        reason: impl Into<String>,
    ) {
        self.0.push(Mistake {
            line,
            field: field.into(),
            reason: reason.into(),
        });
    }

    /// The value of a scalar, or a mistake and `None`.
    pub(crate) fn quantity(
        &mut self,
        field: impl Fn() -> String,
        scalar: &Spanned<Scalar>,
        kind: Kind,
        range: Range,
    ) -> Option<f64> {
        let line = line_of(scalar);
        let text = scalar.value.text();
        let value = match units::parse(text, kind) {
            Ok(value) => value,
            Err(error) => {
                self.add(line, field(), error.to_string());
                return None;
            }
        };
        let wrong = match range {
            _ if !value.is_finite() => "is not a finite number",
            Range::AtLeastZero if value < 0.0 => "is below zero",
            Range::AboveZero if value <= 0.0 => "is not above zero",
            _ => return Some(value),
        };
        self.add(line, field(), format!("{text} {wrong}"));
        None
    }

    /// The same in whole bytes.
    pub(crate) fn bytes(
        &mut self,
        field: impl Fn() -> String,
        scalar: &Spanned<Scalar>,
    ) -> Option<u64> {
        let value = self.quantity(field, scalar, Kind::Size, Range::AtLeastZero)?;
        // A cast from a float saturates.
        Some(value.round() as u64)
    }

    /// Ok if there are no mistakes.
    pub(crate) fn into_result(mut self, place: &str) -> Result<(), Mistakes> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.sort_by_key(|m| m.line);
        Err(Mistakes {
            place: place.to_owned(),
            found: self.0,
        })
    }
}

/// The line of a value, if known.
pub(crate) fn line_of<T>(value: &Spanned<T>) -> Option<u64> {
    let line = value.referenced.line();
    (line > 0).then_some(line)
}

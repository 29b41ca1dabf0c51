//! Reads a strategy's parameters and reports mistakes.

use crate::strategy::{Parameters, SolveError};
use serde_json::Value;
use std::ops::RangeInclusive;

/// Parameters of one strategy, taken one by one.
pub(super) struct Reader<'a> {
    strategy: &'static str,
    given: &'a Parameters,
    known: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(strategy: &'static str, given: &'a Parameters) -> Self {
        Self {
            strategy,
            given,
            known: Vec::new(),
        }
    }

    fn wrong(&self, reason: String) -> SolveError {
        SolveError::Parameter {
            strategy: self.strategy.to_owned(),
            reason,
        }
    }

    fn take(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.push(name);
        self.given.get(name)
    }

    /// A number within a range; `None` if it is not given.
    pub(super) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, SolveError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_f64().filter(|v| range.contains(v)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(format!(
                "`{name}` is {value}; give a number from {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }

    /// An integer within a range; `None` if it is not given.
    pub(super) fn whole(
        &mut self,
        name: &'static str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, SolveError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let whole = value.as_u64().and_then(|v| usize::try_from(v).ok());
        match whole.filter(|v| range.contains(v)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(format!(
                "`{name}` is {value}; give a whole number from {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }

    /// One of a few words; the first if it is not given.
    pub(super) fn word(
        &mut self,
        name: &'static str,
        words: &[&'static str],
    ) -> Result<&'static str, SolveError> {
        let value = self.take(name);
        let known = |v: &Value| words.iter().copied().find(|w| Some(*w) == v.as_str());
        match value {
            None => Ok(words.first().copied().unwrap_or_default()),
            Some(v) => known(v).ok_or_else(|| {
                self.wrong(format!(
                    "`{name}` is {v}; give one of: {}",
                    words.join(", ")
                ))
            }),
        }
    }

    /// Refuses unknown parameters.
    pub(super) fn finish(self) -> Result<(), SolveError> {
        let unknown = self
            .given
            .keys()
            .find(|k| !self.known.contains(&k.as_str()));
        match unknown {
            None => Ok(()),
            Some(name) => Err(self.wrong(format!(
                "unknown parameter `{name}`; it takes {}",
                if self.known.is_empty() {
                    "none".to_owned()
                } else {
                    self.known.join(", ")
                }
            ))),
        }
    }
}

/// For strategies that take no parameter.
pub(super) fn no_parameters(
    strategy: &'static str,
    parameters: &Parameters,
) -> Result<(), SolveError> {
    Reader::new(strategy, parameters).finish()
}

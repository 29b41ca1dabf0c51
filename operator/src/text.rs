//! Text for people.

use std::error::Error;
use std::fmt::Write as _;

/// `error` and everything behind it: `cannot store: disk full`.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        // Some errors print their cause themselves.
        if !text.contains(&words) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {words}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::fmt::Error);

    #[test]
    fn every_cause_is_named() {
        let cause = std::fmt::Error;
        assert_eq!(with_causes(&Outer(cause)), format!("outer: {cause}"));
    }
}

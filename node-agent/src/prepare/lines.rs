//! Progress output before the last line.

use super::{Line, Step};

/// Progress of preparing.
#[derive(Debug)]
pub(super) enum Told {
    Step(Step),
    Warning(String),
}

impl From<Told> for Line {
    fn from(told: Told) -> Self {
        match told {
            Told::Step(step) => Self::Progress(step),
            Told::Warning(warning) => Self::Warning(warning),
        }
    }
}

//! What the child process says on its standard output, one JSON object a line.

use super::Failure;
use lamina_model::Manifest;
use lamina_torchscript::Progress;
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    /// What is being done.
    Progress(Step),
    /// What is not as it should be; preparing goes on.
    Warning(String),
    /// The last line of a success.
    Manifest(Box<Manifest>),
    /// The last line of a failure.
    Error(Failure),
}

/// What is told before the last line.
#[derive(Debug)]
pub(super) enum Told {
    Step(Step),
    Warning(String),
}

/// A step of preparing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub step: StepName,
    /// How much of it is done.
    pub done: u64,
    /// Of how much; 0 where it is not known.
    pub total: u64,
}

/// The steps in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names say it all
pub enum StepName {
    Fetching,
    Slicing,
    Checking,
    Profiling,
    Storing,
}

impl StepName {
    /// The name, `Slicing`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fetching => "Fetching",
            Self::Slicing => "Slicing",
            Self::Checking => "Checking",
            Self::Profiling => "Profiling",
            Self::Storing => "Storing",
        }
    }
}

impl From<Told> for Line {
    fn from(told: Told) -> Self {
        match told {
            Told::Step(step) => Self::Progress(step),
            Told::Warning(warning) => Self::Warning(warning),
        }
    }
}

impl From<Progress> for Step {
    fn from(progress: Progress) -> Self {
        let (step, done, total) = match progress {
            Progress::Loading => (StepName::Slicing, 0, 0),
            Progress::Slicing { done, total } => (StepName::Slicing, done, total),
            Progress::Checking { done, total } => (StepName::Checking, done, total),
            Progress::Profiling { done, total } => (StepName::Profiling, done, total),
        };
        Self {
            step,
            done: done.into(),
            total: total.into(),
        }
    }
}

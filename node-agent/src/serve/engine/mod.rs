//! What runs slices. The data plane knows only these traits, so that it can be
//! tested without torch.

#[cfg(test)]
pub(crate) mod fake;
mod torch;

pub(crate) use torch::{TorchEngine, TorchOptions};

use async_trait::async_trait;
use lamina_model::{ShapeError, Tensor, ValueSpec};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Loads consecutive blocks as one segment.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// Merges `blocks` (verified files in order of execution), optimizes and
    /// warms up. `inputs` are enforced by every run.
    ///
    /// # Errors
    /// The blocks cannot be loaded, or the engine has stopped.
    async fn load(
        &self,
        blocks: Vec<PathBuf>,
        inputs: Vec<ValueSpec>,
    ) -> Result<Loaded, EngineError>;

    /// Whether its threads still take work.
    fn is_alive(&self) -> bool;
}

/// A segment in memory; dropping the last reference unloads it.
#[async_trait]
pub(crate) trait Segment: Send + Sync {
    /// Waits for its turn and runs. Dropping the future while it waits takes the
    /// run out of the queue.
    ///
    /// # Errors
    /// See [`EngineError`]; the segment stays usable.
    async fn run(&self, inputs: Vec<Tensor>) -> Result<Run, EngineError>;
}

/// A loaded segment with what loading found out.
#[derive(Clone)]
pub(crate) struct Loaded {
    /// The segment.
    pub(crate) segment: Arc<dyn Segment>,
    /// Median time of a run at batch 1 after warm-up, in seconds.
    pub(crate) run_seconds: f64,
    /// Memory that it keeps, in bytes.
    pub(crate) resident_bytes: u64,
}

/// A run's outputs and where its time went.
#[derive(Debug)]
pub(crate) struct Run {
    /// The outputs in order.
    pub(crate) outputs: Vec<Tensor>,
    /// Waiting for the compute thread.
    pub(crate) queue: Duration,
    /// Computing.
    pub(crate) compute: Duration,
}

/// Why loading or running failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EngineError {
    /// The blocks cannot be loaded.
    #[error("{0}")]
    Load(String),
    /// An input does not fit.
    #[error(transparent)]
    Input(#[from] ShapeError),
    /// A value of the request is none that the model takes, such as a token id beyond
    /// its vocabulary.
    #[error("a value in the request is out of the range that the model takes: {0}")]
    Value(String),
    /// The forward failed.
    #[error("{0}")]
    Forward(String),
    /// Too many runs wait already.
    #[error("{0} runs wait for the compute thread already; send less or add hosts")]
    Busy(usize),
    /// The engine's thread is gone.
    #[error("the compute thread has stopped; the agent must be restarted")]
    Stopped,
}

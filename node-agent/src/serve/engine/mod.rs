//! Runs slices. The data plane knows only these traits, so it can be tested without torch.

#[cfg(test)]
pub(crate) mod fake;
mod workers;

pub(crate) use workers::{Sharing, WorkerOptions, Workers};

use crate::serve::deadline::Deadline;
use async_trait::async_trait;
use lamina_model::{ShapeError, Tensor, ValueSpec};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Loads consecutive blocks as one segment.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// Merges `blocks` of `model`, `namespace/name` (verified files in order of
    /// execution), optimizes and warms up. The caller that runs the segment checks that its
    /// outputs fit.
    ///
    /// # Errors
    /// The blocks cannot be loaded.
    async fn load(
        &self,
        model: &str,
        blocks: Vec<PathBuf>,
        inputs: Vec<ValueSpec>,
    ) -> Result<Loaded, EngineError>;

    /// Whether its runs make progress: none exceeds its time limit.
    fn is_alive(&self) -> bool;

    /// Why it cannot run anything, if so.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// The models whose worker crashed recently, by name.
    fn crashes(&self) -> Vec<ModelCrashes> {
        Vec::new()
    }

    /// Its vital signs.
    fn vitals(&self) -> Vitals {
        Vitals::default()
    }
}

/// A loaded segment; dropping the last reference unloads it.
#[async_trait]
pub(crate) trait Segment: Send + Sync {
    /// Waits for its turn and runs according to `terms`. Dropping the future while it waits removes
    /// the run from the queue.
    ///
    /// # Errors
    /// See [`EngineError`]; the segment stays usable.
    async fn run(&self, inputs: Vec<Tensor>, terms: Terms) -> Result<Run, EngineError>;

    /// Finds the numbers of rows, at most `max_rows`, that are faster together than one by one,
    /// and prepares the segment for them.
    ///
    /// # Errors
    /// See [`EngineError`].
    async fn specialize(&self, max_rows: i64) -> Result<Batches, EngineError>;
}

/// Numbers of rows that are faster together than one by one: powers of two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Batches(u8);

impl Batches {
    /// The largest number of rows considered.
    pub(crate) const MOST: i64 = 1 << u8::BITS;

    /// Those of `rows` that are considered.
    pub(crate) fn of(rows: impl IntoIterator<Item = i64>) -> Self {
        let bit = |rows: i64| Self::up_to(Self::MOST).find(|(_, known)| *known == rows);
        let bits = rows.into_iter().filter_map(bit);
        Self(bits.fold(0, |all, (bit, _)| all | (1 << bit)))
    }

    /// The candidates up to `max_rows`, in ascending order.
    pub(crate) fn candidates(max_rows: i64) -> Vec<i64> {
        Self::up_to(max_rows).map(|(_, rows)| rows).collect()
    }

    fn up_to(max_rows: i64) -> impl Iterator<Item = (u32, i64)> {
        let all = (0..u8::BITS).map(|bit| (bit, 2_i64 << bit));
        all.take_while(move |(_, rows)| *rows <= max_rows)
    }

    /// Whether it pays to compute this many rows together.
    pub(crate) fn has(self, rows: i64) -> bool {
        Self::up_to(rows).any(|(bit, known)| known == rows && self.0 & (1 << bit) != 0)
    }

    /// The largest of them; one if none pays.
    pub(crate) fn largest(self) -> i64 {
        1 << (u8::BITS - self.0.leading_zeros())
    }
}

/// The terms of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// After this nobody waits for the answer.
    pub(crate) deadline: Deadline,
    /// Which runs may join it; `None` means that it runs alone.
    pub(crate) together: Option<Together>,
}

/// With which others of its segment a run may be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Together {
    /// How many rows.
    pub(crate) rows: Batches,
    /// How long it waits for others although the worker is free.
    pub(crate) max_delay: Duration,
}

/// A loaded segment with its measurements.
#[derive(Clone)]
pub(crate) struct Loaded {
    /// The segment.
    pub(crate) segment: Arc<dyn Segment>,
    /// Median time of a run at batch 1 after warm-up, in seconds.
    pub(crate) run_seconds: f64,
    /// Memory that it occupies, in bytes.
    pub(crate) resident_bytes: u64,
}

/// A run's outputs and times.
#[derive(Debug)]
pub(crate) struct Run {
    /// The outputs in order.
    pub(crate) outputs: Vec<Tensor>,
    /// Waiting for the worker, and for the rows of others that were computed with it.
    pub(crate) queue: Duration,
    /// Computing, including the call; in a batch, the share of its rows.
    pub(crate) compute: Duration,
}

/// A model's crashes on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelCrashes {
    /// `namespace/name`.
    pub(crate) model: String,
    /// Crashes since this agent started.
    pub(crate) count: u32,
    /// Cause of the last one.
    pub(crate) cause: String,
    /// Time of the last one.
    pub(crate) last: SystemTime,
    /// Until when it is quarantined, if it is.
    pub(crate) quarantined_until: Option<SystemTime>,
}

/// Vital signs of an engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// Worker processes.
    pub(crate) workers: u32,
    /// Memory that they occupy together, in bytes.
    pub(crate) resident_bytes: u64,
    /// Workers that ended unexpectedly since the agent started.
    pub(crate) crashes: u64,
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
    /// A value of the request is invalid for the model, such as a token id beyond its vocabulary.
    #[error("a value in the request is outside the range that the model accepts: {0}")]
    Value(String),
    /// The forward failed.
    #[error("{0}")]
    Forward(String),
    /// The worker reached its memory limit.
    #[error("out of memory: {0}; send a smaller batch, or raise the workers' limit")]
    Memory(String),
    /// This host has no room for answers of that size.
    #[error(
        "its answer of {bytes} bytes is larger than the {most} for which this host has room; send a \
         smaller batch"
    )]
    TooLarge { bytes: u64, most: u64 },
    /// The request ended its worker, more than once.
    #[error("the model crashes on this request: {0}")]
    Crashed(String),
    /// The run took too long and was ended.
    #[error("the model did not end within {} ms, many times its usual time", .0.as_millis())]
    Stuck(Duration),
    /// It crashed too often.
    #[error(
        "{model} crashed {count} times on this host ({cause}) and is tried again in {} s",
        .left.as_secs() + 1
    )]
    Quarantined {
        model: String,
        count: u32,
        cause: String,
        left: Duration,
    },
    /// Too many runs of the model are waiting already.
    #[error(
        "{waiting} runs of this model are already waiting for its worker; send fewer requests or add \
         hosts, or try again in {} ms",
        .again.as_millis()
    )]
    Busy { waiting: usize, again: Duration },
    /// Its expected wait is longer than its caller's deadline.
    #[error(
        "what waits before this request takes {} ms, longer than its deadline allows; send fewer \
         requests or add hosts, or try again in {} ms",
        .wait.as_millis(), .again.as_millis()
    )]
    Crowded { wait: Duration, again: Duration },
    /// Its deadline passed before it could be computed.
    #[error("its turn came too late to compute it before the deadline")]
    Late,
    /// No worker can be started.
    #[error("no worker process: {0}")]
    NoWorker(String),
}

impl EngineError {
    /// When a retry may find room, if that was the reason.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { again, .. } | Self::Crowded { again, .. } => Some(*again),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_rows_are_powers_of_two() {
        assert_eq!(Batches::candidates(8), [2, 4, 8]);
        assert_eq!(Batches::candidates(7), [2, 4]);
        assert!(Batches::candidates(1).is_empty());
        let some = Batches::of([8, 2, 3, -1, 0, 1 << 40]);
        let has: Vec<i64> = (0..20).filter(|rows| some.has(*rows)).collect();
        assert_eq!((has, some.largest()), (vec![2, 8], 8));
        assert_eq!(Batches::default().largest(), 1);
        let all = Batches::of(Batches::candidates(Batches::MOST));
        assert_eq!(all.largest(), Batches::MOST);
    }
}

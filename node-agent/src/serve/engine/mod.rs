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
    /// execution), optimizes and warms up. Whoever runs the segment checks that what it
    /// gives fits `inputs`.
    ///
    /// # Errors
    /// The blocks cannot be loaded.
    async fn load(
        &self,
        model: &str,
        blocks: Vec<PathBuf>,
        inputs: Vec<ValueSpec>,
    ) -> Result<Loaded, EngineError>;

    /// Whether its runs go on: none is older than it may get.
    fn is_alive(&self) -> bool;

    /// Why it can run nothing at all, if so.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// The models whose worker crashed lately, by name.
    fn crashes(&self) -> Vec<ModelCrashes> {
        Vec::new()
    }

    /// How it is.
    fn vitals(&self) -> Vitals {
        Vitals::default()
    }
}

/// A segment that is loaded; dropping the last reference unloads it.
#[async_trait]
pub(crate) trait Segment: Send + Sync {
    /// Waits for its turn and runs as `terms` say. Dropping the future while it waits takes
    /// the run out of the queue.
    ///
    /// # Errors
    /// See [`EngineError`]; the segment stays usable.
    async fn run(&self, inputs: Vec<Tensor>, terms: Terms) -> Result<Run, EngineError>;

    /// Finds out which numbers of rows, `max_rows` at most, are computed faster together than
    /// one by one, and makes the segment ready for those.
    ///
    /// # Errors
    /// See [`EngineError`].
    async fn specialize(&self, max_rows: i64) -> Result<Batches, EngineError>;
}

/// Numbers of rows that are computed faster together than one by one: powers of two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Batches(u8);

impl Batches {
    /// The largest number of rows that is looked at.
    pub(crate) const MOST: i64 = 1 << u8::BITS;

    /// Those of `rows` that can be looked at.
    pub(crate) fn of(rows: impl IntoIterator<Item = i64>) -> Self {
        let bit = |rows: i64| Self::up_to(Self::MOST).find(|(_, known)| *known == rows);
        let bits = rows.into_iter().filter_map(bit);
        Self(bits.fold(0, |all, (bit, _)| all | (1 << bit)))
    }

    /// What can be looked at up to `max_rows`, in ascending order.
    pub(crate) fn candidates(max_rows: i64) -> Vec<i64> {
        Self::up_to(max_rows).map(|(_, rows)| rows).collect()
    }

    fn up_to(max_rows: i64) -> impl Iterator<Item = (u32, i64)> {
        let all = (0..u8::BITS).map(|bit| (bit, 2_i64 << bit));
        all.take_while(move |(_, rows)| *rows <= max_rows)
    }

    /// Whether it pays to compute so many rows together.
    pub(crate) fn has(self, rows: i64) -> bool {
        Self::up_to(rows).any(|(bit, known)| known == rows && self.0 & (1 << bit) != 0)
    }

    /// The largest of them; one where none pays.
    pub(crate) fn largest(self) -> i64 {
        1 << (u8::BITS - self.0.leading_zeros())
    }
}

/// How a run is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// After it nobody waits for the answer.
    pub(crate) deadline: Deadline,
    /// With which others it may be computed; alone where absent.
    pub(crate) together: Option<Together>,
}

/// With which others of its segment a run may be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Together {
    /// How many rows.
    pub(crate) rows: Batches,
    /// How long after it came it waits for others although the worker is free.
    pub(crate) max_delay: Duration,
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
    /// Waiting for the worker, and for the rows of others that were computed with it.
    pub(crate) queue: Duration,
    /// Computing, with the way there and back; of what is computed together, the share of
    /// its rows.
    pub(crate) compute: Duration,
}

/// What a model did to its workers on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelCrashes {
    /// `namespace/name`.
    pub(crate) model: String,
    /// Crashes since this agent began.
    pub(crate) count: u32,
    /// How the last one went.
    pub(crate) cause: String,
    /// When.
    pub(crate) last: SystemTime,
    /// Until when it is not tried again, if so.
    pub(crate) quarantined_until: Option<SystemTime>,
}

/// Figures of an engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// Worker processes.
    pub(crate) workers: u32,
    /// Memory that they keep together, in bytes.
    pub(crate) resident_bytes: u64,
    /// Workers that ended when they should not have, since the agent began.
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
    /// A value of the request is none that the model takes, such as a token id beyond
    /// its vocabulary.
    #[error("a value in the request is outside the range that the model accepts: {0}")]
    Value(String),
    /// The forward failed.
    #[error("{0}")]
    Forward(String),
    /// The worker may take no more memory.
    #[error("out of memory: {0}; send a smaller batch, or raise the workers' limit")]
    Memory(String),
    /// The request ended its worker, more than once.
    #[error("the model crashes on this request: {0}")]
    Crashed(String),
    /// The run was ended.
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
    /// Too many runs of the model wait already.
    #[error(
        "{waiting} runs of this model are already waiting for its worker; send fewer requests or add \
         hosts, or try again in {} ms",
        .again.as_millis()
    )]
    Busy { waiting: usize, again: Duration },
    /// What waits before it takes longer than its caller waits.
    #[error(
        "what waits before this request takes {} ms, longer than its deadline allows; send fewer \
         requests or add hosts, or try again in {} ms",
        .wait.as_millis(), .again.as_millis()
    )]
    Crowded { wait: Duration, again: Duration },
    /// Its deadline comes before it could be computed.
    #[error("its turn came too late to compute it before the deadline")]
    Late,
    /// No worker can be started.
    #[error("no worker process: {0}")]
    NoWorker(String),
}

impl EngineError {
    /// When another try may find room, where that is why there was none.
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

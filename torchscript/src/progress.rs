//! Progress of preparing.

/// The current step; `done` counts up to `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Reading and freezing the model.
    Loading,
    /// Writing blocks.
    Slicing {
        /// Blocks written.
        done: u32,
        /// Blocks to write.
        total: u32,
    },
    /// Running the chain of blocks and comparing every boundary value with the
    /// whole model's.
    Checking {
        /// Blocks checked.
        done: u32,
        /// Blocks to check.
        total: u32,
    },
    /// Measuring blocks.
    Profiling {
        /// Blocks measured.
        done: u32,
        /// Blocks to measure.
        total: u32,
    },
}

pub(crate) type Report<'a> = &'a mut dyn FnMut(Progress);

/// A count for progress.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

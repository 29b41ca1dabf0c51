//! Calls of an agent to a serving worker, and the answers. There is one socket for loads, so that
//! loading delays no run, and one for each lane of runs. There is one call at a time on each.

use lamina_model::{DataType, ValueSpec};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Alignment of tensors: best for kernels.
pub const ALIGNMENT: u64 = 64;

/// A tensor in the shared memory: little-endian, row-major, without padding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Element type.
    pub datatype: DataType,
    /// Size of each dimension.
    pub shape: Vec<i64>,
    /// Offset of its first byte.
    pub offset: u64,
}

impl Region {
    /// Its range in memory of `room` bytes; `None` if it has no size or is not inside.
    pub fn range(&self, room: usize) -> Option<std::ops::Range<usize>> {
        let bytes = usize::try_from(self.datatype.checked_bytes(&self.shape)?).ok()?;
        let start = usize::try_from(self.offset).ok()?;
        let end = start.checked_add(bytes)?;
        (end <= room).then_some(start..end)
    }
}

/// The next offset from `offset` on at which a tensor may start.
pub const fn aligned(offset: u64) -> u64 {
    offset.next_multiple_of(ALIGNMENT)
}

/// On the socket of a lane.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum RunCall {
    /// One forward.
    Run {
        /// Which slice.
        slice: u64,
        /// Its inputs, which may be overwritten.
        inputs: Vec<Region>,
        /// Where the outputs may start.
        free_from: u64,
        /// Size of a new memory whose descriptor comes with this call, and which replaces the old
        /// one.
        arena: Option<u64>,
    },
    /// Returns the outputs that did not fit, in a new memory of this size whose descriptor comes
    /// with this call.
    Collect {
        /// Bytes of the memory.
        arena: u64,
    },
}

/// The answer to a [`RunCall`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunReply {
    /// The outputs are available.
    Done {
        /// In order.
        outputs: Vec<Region>,
    },
    /// The outputs need a memory of this size.
    NoRoom {
        /// Bytes, alignment included.
        bytes: u64,
    },
    /// It failed.
    Refused(Refusal),
}

/// Why a slice did not run. It stays usable unless it is [`Refusal::Broken`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// A value of the request is invalid for the model.
    Value(String),
    /// The forward failed.
    Forward(String),
    /// Memory ran out.
    Memory(String),
    /// The process cannot continue.
    Broken(String),
}

/// After the greeting, on the socket for loads, once for each lane but the first: its socket comes
/// with it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane;

/// On the socket for loads.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum LoadCall {
    /// Merges, optimizes and warms up.
    Load {
        /// The slice's number from now on.
        slice: u64,
        /// The block files in order.
        blocks: Vec<PathBuf>,
        /// Its inputs.
        inputs: Vec<ValueSpec>,
    },
    /// Finds the numbers of rows that a slice computes faster together than one by one, and
    /// prepares it for those.
    Specialize {
        /// Which.
        slice: u64,
        /// Numbers to try, in ascending order.
        rows: Vec<i64>,
    },
    /// Drops a slice.
    Unload {
        /// Which.
        slice: u64,
    },
}

/// The first message of a worker, on the socket for loads.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Greeting {
    /// It is sandboxed and accepts calls.
    Ready {
        /// Parts of the sandbox that the kernel lacks, if that is allowed.
        missing: Vec<String>,
    },
    /// It is not sandboxed, and ends.
    Refused(String),
}

/// The answer to a [`LoadCall`].
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum LoadReply {
    /// The slice is loaded.
    Loaded {
        /// Median time of a run at batch 1 after warm-up, in seconds.
        run_seconds: f64,
        /// Memory that it occupies, in bytes.
        resident_bytes: u64,
    },
    /// The slice is prepared for these.
    Specialized {
        /// Numbers of rows, with the throughput relative to one by one.
        gains: Vec<(i64, f64)>,
    },
    /// The slice was dropped.
    Unloaded,
    /// The slice could not be loaded.
    Refused(Refusal),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(shape: &[i64], offset: u64) -> Region {
        Region {
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            offset,
        }
    }

    #[test]
    fn a_region_that_is_not_inside_has_no_range() {
        assert_eq!(region(&[2, 3], 64).range(88), Some(64..88));
        assert_eq!(region(&[0, 3], 64).range(64), Some(64..64));
        for (shape, offset) in [
            (&[2, 3][..], 65),
            (&[-1, 3], 0),
            (&[i64::MAX, 3], 0),
            (&[i64::MAX, 0], 1 << 40),
            (&[1], u64::MAX),
        ] {
            assert_eq!(region(shape, offset).range(88), None, "{shape:?} {offset}");
        }
    }

    #[test]
    fn tensors_begin_where_kernels_like_it() {
        assert_eq!([0, 1, 64, 65].map(aligned), [0, 64, 64, 128]);
    }
}

//! What an agent asks of a worker that serves, and what the worker answers. Loads have a
//! socket, so that loading holds up no run, and each lane of runs has one. There is one call
//! at a time on each.

use lamina_model::{DataType, ValueSpec};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Tensors begin at multiples of it: what kernels like best.
pub const ALIGNMENT: u64 = 64;

/// A tensor in the shared memory: little-endian, row-major, without padding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Element type.
    pub datatype: DataType,
    /// Size of each dimension.
    pub shape: Vec<i64>,
    /// Where its first byte is.
    pub offset: u64,
}

impl Region {
    /// Its bytes in memory of `room` bytes; none where it has no size or does not lie
    /// inside.
    pub fn range(&self, room: usize) -> Option<std::ops::Range<usize>> {
        let bytes = usize::try_from(self.datatype.checked_bytes(&self.shape)?).ok()?;
        let start = usize::try_from(self.offset).ok()?;
        let end = start.checked_add(bytes)?;
        (end <= room).then_some(start..end)
    }
}

/// The next offset at or behind `offset` where a tensor may begin.
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
        /// Where the outputs may begin.
        free_from: u64,
        /// Bytes of a new memory whose descriptor comes with this call, and which replaces
        /// the former.
        arena: Option<u64>,
    },
    /// Gives the outputs that had no room, in a new memory of so many bytes whose
    /// descriptor comes with this call.
    Collect {
        /// Bytes of the memory.
        arena: u64,
    },
}

/// The answer to a [`RunCall`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunReply {
    /// The outputs are there.
    Done {
        /// In order.
        outputs: Vec<Region>,
    },
    /// The outputs need a memory of so many bytes.
    NoRoom {
        /// Bytes, alignment included.
        bytes: u64,
    },
    /// There are none.
    Refused(Refusal),
}

/// Why a slice did not run. It stays usable unless it is [`Refusal::Broken`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// A value of the request is none that the model takes.
    Value(String),
    /// The forward failed.
    Forward(String),
    /// Memory ran out.
    Memory(String),
    /// The process cannot go on.
    Broken(String),
}

/// Behind the greeting, on the socket for loads, once for each lane but the first: its socket
/// comes with it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane;

/// On the socket for loads.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum LoadCall {
    /// Merges, optimizes and warms up.
    Load {
        /// How the slice is called from now on.
        slice: u64,
        /// The block files in order.
        blocks: Vec<PathBuf>,
        /// What it takes.
        inputs: Vec<ValueSpec>,
    },
    /// Finds out at which numbers of rows a slice computes faster than one by one, and is
    /// ready for those from then on.
    Specialize {
        /// Which.
        slice: u64,
        /// What to try, in ascending order.
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
    /// It is locked up and takes calls.
    Ready {
        /// What the kernel lacks of the lock, where that is allowed.
        missing: Vec<String>,
    },
    /// It is not locked up, and ends.
    Refused(String),
}

/// The answer to a [`LoadCall`].
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum LoadReply {
    /// The slice is there.
    Loaded {
        /// Median time of a run at batch 1 after warm-up, in seconds.
        run_seconds: f64,
        /// Memory that it keeps, in bytes.
        resident_bytes: u64,
    },
    /// The slice is ready for these.
    Specialized {
        /// Numbers of rows, with the throughput over that of one by one.
        gains: Vec<(i64, f64)>,
    },
    /// The slice is gone.
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

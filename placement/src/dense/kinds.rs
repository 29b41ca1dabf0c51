//! What is counted by ordinal: kinds of capacity, and rows of exits.

/// What a node has a limited amount of. The slice limit counts one workload
/// alone, the others are shared by all.
pub(crate) const MEMORY: usize = 0;
/// Bytes loaded during the switch.
pub(crate) const LOADING: usize = 1;
/// Utilisation.
pub(crate) const COMPUTE: usize = 2;
/// Slice bytes of one workload.
pub(crate) const SLICES: usize = 3;
/// How many kinds there are.
pub(crate) const KINDS: usize = 4;

/// The choice of one table row per exit.
pub(crate) type Rows = Vec<usize>;

//! Ordinals of kinds of capacity, and rows of exits.

/// Limited resources of a node. The slice limit is for one workload, the others are shared by all.
pub(crate) const MEMORY: usize = 0;
/// Bytes loaded during the switch.
pub(crate) const LOADING: usize = 1;
/// Utilisation.
pub(crate) const COMPUTE: usize = 2;
/// Slice bytes of one workload.
pub(crate) const SLICES: usize = 3;
/// Number of kinds.
pub(crate) const KINDS: usize = 4;

/// The choice of one table row per exit.
pub(crate) type Rows = Vec<usize>;

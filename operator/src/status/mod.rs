//! What people read of models and placements.

pub(crate) mod model;
pub(crate) mod placement;

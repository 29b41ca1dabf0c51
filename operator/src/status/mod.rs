//! Status of models and Placements for users.

pub(crate) mod model;
pub(crate) mod placement;

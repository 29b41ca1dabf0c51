//! Models exported with PyTorch, through the crate's public API. One binary, because linking
//! libtorch takes longer than most of its tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod against_whole;
mod arguments;
mod bad_input;
mod common;
mod coverage_rows;
mod encodings;
mod exits;
mod free_sizes;
mod fused_sums;
mod measured_profile;
mod other_ways;
mod random_graphs;
mod retraced_models;
mod samples;
mod side_by_side;
mod small_models;
mod stable_blocks;
mod typed_models;
mod vision_models;
mod whole;
mod wide_models;

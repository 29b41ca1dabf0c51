//! Slices, merges, profiles and runs TorchScript through a small C++ shim.

//! Developer entry point: demo, test, codegen, tidy.
fn main() {}

//! Sums after a product of one row, where oneDNN Graph would write out of bounds: in their own
//! processes, because they may die.

use crate::common::*;
use crate::whole::answer;
use lamina_model::{DataType, Tensor};
use std::process::Command;

const NAME: &str = "LAMINA_TEST_ONE_ROW";
/// Enough for the heap's own checks to see what was overwritten.
const RUNS: usize = 6;

fn shape_of(name: &str) -> Vec<i64> {
    let sizes = name.rsplit('-').next().unwrap().split('x');
    sizes.map(|size| size.parse().unwrap()).collect()
}

#[test]
#[ignore = "only as a child process"]
fn in_a_process_of_its_own() {
    let Ok(name) = std::env::var(NAME) else {
        return;
    };
    let shape = shape_of(&name);
    let p = try_prepare(&one_row(&name), &[input("x", DataType::Fp32, &shape)]).unwrap();
    let elements = usize::try_from(shape.iter().product::<i64>()).unwrap();
    let values: Vec<f32> = (0..elements).map(|i| (i as f32).sin()).collect();
    let request: Vec<Tensor> = vec![fp32(&shape, &values)];
    let expected = answer(&one_row(&name), &request).unwrap();
    let slice = p.slice(0, p.manifest.blocks.len(), true).0;
    for _ in 0..RUNS {
        let got = slice.run(&request).unwrap();
        assert!(difference(&got, &expected) < 1e-4);
    }
}

#[test]
fn a_sum_behind_a_product_of_one_row_does_not_corrupt_memory() {
    // Rows of up to 1024 elements, and more than one row, never failed.
    for name in [
        "linear-1024-1x64",
        "linear-1025-1x64",
        "linear-3072-1x64",
        "linear-3072-2x64",
        "linear-1200-1x1x64",
        "linear-1200-3x1x64",
        "linear-1200-1x1x1x64",
        "mm-1200-1x64",
        "matmul-1200-1x1x64",
        "bmm-1200-2x1x64",
        "in_place-1200-1x64",
        "behind-1200-1x64",
        "twice-1200-1x64",
        "scaled-1200-1x64",
    ] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fused_sums::in_a_process_of_its_own"])
            .args(["--ignored", "--nocapture"])
            .env(NAME, name)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{name}: {} {said}", child.status);
    }
}

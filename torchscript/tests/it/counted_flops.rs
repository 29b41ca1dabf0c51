//! The profile's FLOPs are those of PyTorch's own counter.

use crate::common::*;
use lamina_model::{DataType, InputSpec};
use std::process::Command;

/// What PyTorch counts, a forward at batch 1 each.
fn counted_by_pytorch(names: &[&str]) -> Vec<u64> {
    let python = std::env::var_os("LAMINA_PYTHON").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/flops.py");
    let output = Command::new(python)
        .args(["-W", "ignore", script])
        .args(names)
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

fn counted_here(file: &str, inputs: &[InputSpec]) -> u64 {
    let p = prepared(file, inputs);
    p.manifest.blocks.iter().map(|b| b.flops).sum()
}

#[test]
fn every_kind_of_operation_is_counted_as_pytorch_counts_it() {
    let counted = counted_by_pytorch(&["operations", "squeezenet1_1"]);
    let x = input("x", DataType::Fp32, &[1, 4, 6, 6]);
    let here = [
        counted_here("operations", &[x]),
        counted_here("squeezenet1_1-plain", &image()),
    ];
    assert_eq!(here[..], counted[..]);
}

/// The table of 14 networks:
/// `cargo test -p lamina-torchscript --test it fourteen -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes"]
fn fourteen_networks_are_counted_as_pytorch_counts_them() {
    let names = [
        "googlenet",
        "resnet18",
        "resnet50",
        "mobilenet_v2",
        "efficientnet_b0",
        "densenet121",
        "inception_v3",
        "squeezenet1_1",
        "shufflenet_v2_x1_0",
        "alexnet",
        "convnext_tiny",
        "swin_t",
        "regnet_y_400mf",
        "vit_b_16",
    ];
    let counted = counted_by_pytorch(&names);
    println!("| network | here | PyTorch | blocks |\n|---|---|---|---|");
    let mut unlike = Vec::new();
    for (name, pytorch) in names.into_iter().zip(counted) {
        let side = if name == "inception_v3" { 299 } else { 224 };
        let image = input("image", DataType::Fp32, &[-1, 3, side, side]);
        let p = prepared(&format!("{name}-plain"), &[image]);
        let here: u64 = p.manifest.blocks.iter().map(|b| b.flops).sum();
        let blocks = p.manifest.blocks.len();
        println!("| {name} | {here} | {pytorch} | {blocks} |");
        if here != pytorch {
            unlike.push((name, here));
        }
    }
    // Its counter misses the fused attention of a module that is not traced:
    // half of it are two multiply-adds per weight and token.
    assert_eq!(unlike, [("vit_b_16", 35_127_656_448)]);
}

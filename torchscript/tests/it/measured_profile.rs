//! The profile compared with measurements: FLOPs by PyTorch's own counter, bytes of the values
//! between blocks at any batch.

use crate::common::*;
use crate::vision_models::{googlenet, mobilenet};
use lamina_model::{DataType, InputSpec, Tensor, ValueSpec};
use std::process::Command;

/// PyTorch's count, for one forward at batch 1 each.
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

/// Checks that the values have the declared type, shape and bytes.
fn assert_as_declared(values: &[Tensor], declared: &[&ValueSpec], batch: i64) {
    assert_eq!(values.len(), declared.len());
    for (value, spec) in values.iter().zip(declared) {
        let at_batch = |&dim: &i64| if dim == -1 { batch } else { dim };
        let shape: Vec<i64> = spec.shape.iter().map(at_batch).collect();
        let name = &spec.name;
        assert_eq!(value.datatype, spec.datatype, "{name}");
        assert_eq!(value.shape, shape, "{name} at batch {batch}");
        let batch = u64::try_from(batch).unwrap();
        assert_eq!(Some(value.data.len() as u64), spec.bytes(batch), "{name}");
    }
}

/// `rows` copies of a value of batch 1, if its batch is free.
fn repeated(value: &Tensor, spec: &ValueSpec, rows: i64) -> Tensor {
    if spec.shape.first() != Some(&-1) {
        return value.clone();
    }
    Tensor {
        datatype: value.datatype,
        shape: [&[rows], &value.shape[1..]].concat(),
        data: value.data.repeat(usize::try_from(rows).unwrap()).into(),
    }
}

fn assert_live_bytes_as_declared(p: &Prepared) {
    let m = &p.manifest;
    for batch in [1, 3] {
        let inputs = p.probe().inputs;
        let pairs = inputs.iter().zip(&m.inputs);
        let mut values: Vec<Tensor> = pairs.map(|(v, spec)| repeated(v, spec, batch)).collect();
        for block in 0..m.blocks.len() {
            values = p.slice(block, block + 1, false).0.run(&values).unwrap();
            assert_as_declared(&values, &m.live_at(block + 1), batch);
            if batch == 1 {
                let bytes: usize = values.iter().map(|v| v.data.len()).sum();
                assert_eq!(bytes as u64, m.live_bytes(block + 1));
            }
        }
    }
}

#[test]
fn the_bytes_of_every_live_value_are_those_declared_at_any_batch() {
    assert_live_bytes_as_declared(mobilenet());
    assert_live_bytes_as_declared(googlenet());
    // Numbers and several tensors cross its cuts.
    assert_live_bytes_as_declared(&prepared("sizes", &row()));
}

#[test]
fn the_peak_of_activations_is_the_most_that_lives_at_once() {
    let p = prepared("wide", &row());
    let peaks = p.manifest.blocks.iter().map(|b| b.peak_activation_bytes);
    let (narrow, wide) = (8 * 4, 512 * 4);
    // In the first block tanh's input and output, in the second the linear layer's.
    assert_eq!(peaks.collect::<Vec<_>>(), [2 * wide, wide + narrow]);
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
    // Its counter misses the fused attention of a module that is not traced: half of it are two
    // multiply-adds per weight and token.
    assert_eq!(unlike, [("vit_b_16", 35_127_656_448)]);
}

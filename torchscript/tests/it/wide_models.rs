//! Models with many values between their layers: many tensors, complex numbers, most of the work in
//! one place, weights in several.

use crate::against_whole::compared;
use crate::common::*;
use lamina_model::{DataType, Manifest, Rung};
use lamina_torchscript::untouched_answer;

fn most_tensors(manifest: &Manifest) -> usize {
    let blocks = &manifest.blocks[..manifest.blocks.len() - 1];
    let counts = blocks.iter().map(|b| b.outputs.len());
    counts.max().unwrap_or(0)
}

/// The share of the FLOPs in the block with the most.
fn largest_share(manifest: &Manifest) -> f64 {
    let flops = manifest.blocks.iter().map(|b| b.flops);
    let sum: u64 = flops.clone().sum();
    flops.max().unwrap_or(0) as f64 / sum as f64
}

/// Cuts the model; every request of every batch gets the model's answer, bit for bit.
fn exact(name: &str) -> Prepared {
    let p = try_prepare(&wide(name), &row()).unwrap();
    let count = compared(&p, &wide(name), 1).unwrap();
    let reason = &p.manifest.rung_reason;
    assert_eq!(count.refused, 0, "{name}: {reason:?}");
    assert!(count.answered > 0, "{name}");
    assert_chain_and_merge_are_exact(&p);
    p
}

#[test]
fn layers_that_read_all_before_them_are_cut_although_many_tensors_cross() {
    for name in ["Dense", "DenseList"] {
        let p = exact(name);
        let reason = &p.manifest.rung_reason;
        assert_eq!(p.manifest.rung, Rung::Typed, "{name}: {reason:?}");
        assert_eq!(p.manifest.blocks.len(), 10, "{name}: {reason:?}");
        assert!(most_tensors(&p.manifest) > 4, "{name}");
        assert_eq!(p.manifest.lopsided_share, None, "{name}");
        assert_a_batch_of_three_holds(&p);
    }
}

#[test]
fn complex_numbers_cross_as_pairs() {
    let p = exact("Spectral");
    assert_eq!(p.manifest.rung, Rung::Typed, "{:?}", p.manifest.rung_reason);
    assert!(p.manifest.blocks.len() >= 6, "{}", p.manifest.blocks.len());
    let crossing = &p.manifest.blocks[2].outputs;
    let is_pairs = |shape: &[i64]| shape == [-1, 9, 2];
    assert!(crossing.iter().any(|v| is_pairs(&v.shape)), "{crossing:?}");
    assert_a_batch_of_three_holds(&p);
}

#[test]
fn complex_numbers_are_answered_as_pairs() {
    let p = try_prepare(&wide("Spectrogram"), &row()).unwrap();
    assert_eq!(p.manifest.rung, Rung::Typed, "{:?}", p.manifest.rung_reason);
    let shapes: Vec<&[i64]> = p.manifest.outputs.iter().map(|v| &*v.shape).collect();
    assert_eq!(shapes, [&[-1, 4][..], &[-1, 9, 9, 2], &[-1, 9, 9]]);
    assert!(
        p.manifest
            .outputs
            .iter()
            .all(|v| v.datatype == DataType::Fp32)
    );
    assert_chain_and_merge_are_exact(&p);
    let probe = p.probe();
    let whole = untouched_answer(&wide("Spectrogram"), &probe.inputs, &[]).unwrap();
    assert_eq!(whole, probe.outputs);
}

#[test]
fn work_beside_a_second_tensor_is_divided_although_direct_cuts_are_many() {
    let p = exact("LateWork");
    assert_eq!(p.manifest.rung, Rung::Typed, "{:?}", p.manifest.rung_reason);
    let reason = p.manifest.rung_reason.clone().unwrap();
    assert!(
        reason.contains("% of the FLOPs are in one block"),
        "{reason}"
    );
    assert!(largest_share(&p.manifest) < 0.6);
    assert_eq!(p.manifest.lopsided_share, None);
}

#[test]
fn work_that_cannot_be_divided_is_called_lopsided_with_the_reason() {
    let p = exact("SharedMemory");
    let reason = p.manifest.rung_reason.clone().unwrap();
    assert!(p.manifest.blocks.len() >= 6, "{reason}");
    let share = largest_share(&p.manifest);
    assert!(share > 0.9, "{share}");
    let told = p.manifest.lopsided_share.unwrap();
    assert!((told - share).abs() < 1e-9, "{told}, not {share}");
    let expected = format!("{:.0} % of the FLOPs are in one block", share * 100.0);
    assert!(reason.contains(&expected), "{reason}");
}

#[test]
fn a_weight_in_several_blocks_is_counted_once() {
    let p = exact("Tied");
    let layer = 64 * 64 * 4 + 64 * 4;
    let head = 64 * 2 * 4 + 2 * 4;
    assert_eq!(p.manifest.blocks.len(), 7);
    let sum: u64 = p.manifest.blocks.iter().map(|b| b.weight_bytes).sum();
    assert_eq!(sum, 6 * layer + head);
    assert_eq!(p.manifest.weight_bytes, Some(layer + head));
}

#[test]
fn quantized_values_are_named_and_bags_of_embeddings_are_work() {
    let p = try_prepare(&wide("Convolution"), &row()).unwrap();
    let reason = p.manifest.rung_reason.clone().unwrap();
    assert_eq!(p.manifest.blocks.len(), 1, "{reason}");
    let expected = "between its blocks are tensors of the type QUInt8, which cannot be sent";
    assert!(reason.contains(expected), "{reason}");
    let ids = ranged(input("ids", DataType::Int64, &[-1, 6]), 0.0, 49.0);
    let p = try_prepare(&wide("Bags"), &[ids]).unwrap();
    let reason = &p.manifest.rung_reason;
    assert_eq!(p.manifest.blocks.len(), 3, "{reason:?}");
    assert_chain_and_merge_are_exact(&p);
}

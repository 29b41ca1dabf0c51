//! Real networks with random weights: cut, checked, merged, optimized.

use crate::common::*;
use lamina_model::{Rung, Tensor};
use std::sync::OnceLock;

/// Tolerance of an optimized answer against the whole model's.
const TOLERANCE: f32 = 1e-4;

pub(crate) fn mobilenet() -> &'static Prepared {
    static PREPARED: OnceLock<Prepared> = OnceLock::new();
    PREPARED.get_or_init(|| prepared("mobilenet_v2-traced", &image()))
}

pub(crate) fn googlenet() -> &'static Prepared {
    static PREPARED: OnceLock<Prepared> = OnceLock::new();
    PREPARED.get_or_init(|| prepared("googlenet-scripted", &image()))
}

fn assert_cut_exactly(p: &Prepared, blocks: usize, flops: u64) {
    let m = &p.manifest;
    assert_eq!(m.rung, Rung::Direct, "{:?}", m.rung_reason);
    assert_eq!(m.blocks.len(), blocks);
    assert_eq!(m.check.compared as usize, blocks);
    assert!(m.check.max_abs_diff.abs() < f64::MIN_POSITIVE);
    assert!(m.check.telling_diff > 100.0 * f64::from(TOLERANCE));
    assert_eq!(m.blocks.iter().map(|b| b.flops).sum::<u64>(), flops);
    assert_eq!(m.outputs[0].shape, [-1, 1000]);
    assert_eq!(m.runtime, "libtorch 2.13.0");
    for (i, block) in m.blocks.iter().enumerate() {
        assert_eq!(block.inputs.len(), 1, "block {i}");
        assert!(block.time.p50 > 0.0 && block.time.p10 <= block.time.p50);
        assert!(block.peak_activation_bytes >= m.live_bytes(i), "block {i}");
        assert!(block.file_bytes >= block.weight_bytes, "block {i}");
    }
    // The chain of unoptimized blocks, each from its file, is exact bit for bit.
    let probe = p.probe();
    let every: Vec<usize> = (1..blocks).collect();
    assert_eq!(p.chain(&every, false, &probe.inputs), probe.outputs);
}

fn assert_optimized_slices_agree(p: &Prepared, borders: &[&[usize]]) {
    let probe = p.probe();
    for cut in borders {
        let got = p.chain(cut, true, &probe.inputs);
        let diff = difference(&got, &probe.outputs);
        assert!(diff < TOLERANCE, "cut at {cut:?}: {diff}");
    }
}

#[test]
fn mobilenet_v2_is_33_blocks_that_give_every_bit() {
    assert_cut_exactly(mobilenet(), 33, 601_548_544);
}

#[test]
fn mobilenet_v2_optimized_in_slices_agrees_with_the_whole() {
    assert_optimized_slices_agree(mobilenet(), &[&[], &[2], &[14], &[2, 12], &[5, 20, 31]]);
}

#[test]
fn googlenet_scripted_is_13_blocks_that_give_every_bit() {
    assert_cut_exactly(googlenet(), 13, 2_996_752_384);
}

#[test]
fn googlenet_optimized_in_slices_agrees_with_the_whole() {
    assert_optimized_slices_agree(googlenet(), &[&[], &[3], &[5, 9]]);
}

#[test]
fn scripted_and_traced_models_are_cut_alike() {
    let scripted = prepared("mobilenet_v2-scripted", &image());
    let shapes = |p: &Prepared| -> Vec<Vec<i64>> {
        let blocks = p.manifest.blocks.iter();
        blocks.map(|b| b.outputs[0].shape.clone()).collect()
    };
    assert_eq!(shapes(&scripted), shapes(mobilenet()));
    let traced = prepared("googlenet-traced", &image());
    assert_eq!(shapes(&traced), shapes(googlenet()));
    assert!(difference(&traced.probe().outputs, &googlenet().probe().outputs) < TOLERANCE);
}

#[test]
fn resnet18_is_cut_and_agrees() {
    let p = prepared("resnet18-traced", &image());
    assert_cut_exactly(&p, 10, 3_628_146_688);
    assert_optimized_slices_agree(&p, &[&[4]]);
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let again = prepared("mobilenet_v2-traced", &image());
    let digests = |p: &Prepared| -> Vec<String> {
        let blocks = p.manifest.blocks.iter();
        blocks.map(|b| b.digest.to_string()).collect()
    };
    assert_eq!(digests(&again), digests(mobilenet()));
    assert_eq!(again.manifest.probe, mobilenet().manifest.probe);
    assert_eq!(again.manifest.source, mobilenet().manifest.source);
    // One file per block and the probe, no leftovers.
    let files = std::fs::read_dir(again.dir.path()).unwrap().count();
    assert_eq!(files, 33 + 1);
}

#[test]
fn a_batch_of_three_gives_the_three_answers() {
    let p = mobilenet();
    let one = &p.probe().inputs[0];
    let scaled = |by: f32| -> Vec<f32> { floats(one).iter().map(|v| v * by).collect() };
    let rows = [scaled(1.0), scaled(0.5), scaled(-1.0)];
    let shape = [1, 3, 224, 224];
    for optimize in [false, true] {
        let (slice, _) = p.slice(0, 33, optimize);
        let batch = slice
            .run(&[fp32(&[3, 3, 224, 224], &rows.concat())])
            .unwrap();
        assert_eq!(batch[0].shape, [3, 1000]);
        let single: Vec<f32> = rows
            .iter()
            .flat_map(|row| floats(&slice.run(&[fp32(&shape, row)]).unwrap()[0]))
            .collect();
        let diff = difference(&batch, &[fp32(&[3, 1000], &single)]);
        assert!(diff < TOLERANCE, "optimize {optimize}: {diff}");
    }
}

#[test]
fn loading_reports_time_and_memory() {
    let p = mobilenet();
    let weights: u64 = p.manifest.blocks.iter().map(|b| b.weight_bytes).sum();
    let (_, whole) = p.slice(0, 33, true);
    assert!(whole.resident_bytes > weights / 2 && whole.resident_bytes < 4 * weights);
    assert!(whole.load_seconds > 0.0 && whole.run_seconds.p50 > 0.0);
    let (_, part) = p.slice(9, 12, true);
    assert!(part.resident_bytes < whole.resident_bytes / 4);
}

#[test]
fn a_slice_moves_between_threads() {
    let p = mobilenet();
    let probe = p.probe();
    let (slice, _) = p.slice(0, 33, true);
    let here: Vec<Tensor> = slice.run(&probe.inputs).unwrap();
    let inputs = probe.inputs.clone();
    let there = std::thread::spawn(move || slice.run(&inputs).unwrap())
        .join()
        .unwrap();
    assert_eq!(here, there);
}

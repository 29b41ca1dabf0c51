//! Small models that are awkward in one way each.

use crate::common::*;
use lamina_model::{DataType, Rung};
use lamina_torchscript::{PrepareError, Progress, RunError, prepare};

#[test]
fn two_inputs_are_cut_behind_the_place_where_they_meet() {
    let inputs = [
        ranged(input("tokens", DataType::Int64, &[-1, 5]), 0.0, 49.0),
        input("scale", DataType::Fp32, &[-1, 5, 1]),
    ];
    let p = prepared("two_inputs", &inputs);
    assert_eq!(p.manifest.rung, Rung::Direct);
    assert_eq!(p.manifest.blocks.len(), 3);
    assert_eq!(p.manifest.blocks[0].inputs, ["tokens", "scale"]);
    assert_eq!(p.manifest.blocks[0].outputs[0].shape, [-1, 5, 16]);
    assert_eq!(p.manifest.outputs[0].shape, [-1, 7]);
    let probe = p.probe();
    assert_eq!(p.chain(&[1, 2], false, &probe.inputs), probe.outputs);
    assert!(difference(&p.chain(&[1], true, &probe.inputs), &probe.outputs) < 1e-5);
}

#[test]
fn token_ids_outside_the_vocabulary_are_an_error_that_names_the_inputs() {
    let inputs = [
        ranged(input("tokens", DataType::Int64, &[-1, 5]), 0.0, 5000.0),
        input("scale", DataType::Fp32, &[-1, 5, 1]),
    ];
    let error = try_prepare(&model("two_inputs"), &inputs).err().unwrap();
    let text = error.to_string();
    assert!(
        matches!(error, PrepareError::InputMismatch { .. }),
        "{text}"
    );
    assert!(
        text.contains("tokens INT64 [-1, 5]") && text.contains("index"),
        "{text}"
    );
}

#[test]
fn operations_in_place_do_not_reach_across_a_cut() {
    let p = prepared("in_place", &row());
    assert_eq!(p.manifest.rung, Rung::Direct);
    assert_eq!(p.manifest.blocks.len(), 2);
    let probe = p.probe();
    // The same slice again: the first forward must not have changed anything.
    let (slice, _) = p.slice(0, 2, false);
    assert_eq!(slice.run(&probe.inputs).unwrap(), probe.outputs);
    assert_eq!(slice.run(&probe.inputs).unwrap(), probe.outputs);
}

#[test]
fn a_dictionary_gives_its_tensors_in_order() {
    let p = prepared("dict_output", &row());
    assert_eq!(p.manifest.rung, Rung::Direct);
    let names: Vec<&str> = p.manifest.outputs.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names, ["logits", "confidence"]);
    let probe = p.probe();
    let sums: f32 = floats(&probe.outputs[1]).iter().sum();
    assert!((sums - 1.0).abs() < 1e-5, "the second is the softmax");
    assert_eq!(p.chain(&[1], false, &probe.inputs), probe.outputs);
    assert!(difference(&p.chain(&[1], true, &probe.inputs), &probe.outputs) < 1e-5);
}

#[test]
fn arguments_with_defaults_may_be_left_out() {
    let p = prepared("defaults", &row());
    assert_eq!(p.manifest.rung, Rung::Direct);
    assert_eq!(p.manifest.blocks.len(), 2);
    let with_mask = [row()[0].clone(), input("mask", DataType::Fp32, &[-1, 8])];
    let masked = prepared("defaults", &with_mask);
    assert_eq!(masked.manifest.blocks[0].inputs, ["x", "mask"]);
}

#[test]
fn a_tensor_where_the_model_takes_a_number_is_refused() {
    let three = [
        row()[0].clone(),
        input("mask", DataType::Fp32, &[-1, 8]),
        input("scale", DataType::Fp32, &[-1, 8]),
    ];
    let text = try_prepare(&model("defaults"), &three)
        .err()
        .unwrap()
        .to_string();
    assert!(
        text.contains("`scale` is of the type float, but `scale` is FP32"),
        "{text}"
    );
}

#[test]
fn weights_that_share_a_buffer_are_not_stored_twice() {
    let p = prepared("shared_storage", &[input("x", DataType::Fp32, &[-1, 64])]);
    assert_eq!(p.manifest.blocks.len(), 2);
    for block in &p.manifest.blocks {
        assert_eq!(block.weight_bytes, 64 * 64 * 4);
        assert!(block.file_bytes < 2 * 64 * 64 * 4, "{}", block.file_bytes);
        assert_eq!(block.flops, 2 * 64 * 64);
    }
}

#[test]
fn shapes_that_hold_for_one_batch_size_are_written_so() {
    let p = prepared("fixed", &row());
    assert_eq!(p.manifest.inputs[0].shape, [1, 8]);
    assert_eq!(p.manifest.outputs[0].shape, [1, 8]);
    let (slice, _) = p.slice(0, p.manifest.blocks.len(), true);
    let error = slice.run(&[fp32(&[2, 8], &[0.0; 16])]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("expected shape [1, 8], got [2, 8]")
    );
}

#[test]
fn what_stays_live_crosses_beside_the_rest() {
    let p = prepared("skipping", &row());
    assert_eq!(p.manifest.rung, Rung::Typed);
    let reason = p.manifest.rung_reason.clone().unwrap();
    assert!(reason.contains("one live tensor alone"), "{reason}");
    assert_eq!(outputs_of(&p, 0), ["x", "block0.1"]);
    assert_eq!(p.manifest.blocks[1].inputs, ["x", "block0.1"]);
    assert_chain_and_merge_are_exact(&p);
}

#[test]
fn a_cut_that_changes_the_answer_is_found_and_moved() {
    let p = prepared("strided", &[input("x", DataType::Fp32, &[8, 8])]);
    assert_eq!(p.manifest.rung, Rung::Direct);
    // Not after the view, the last possible place.
    assert_eq!(p.manifest.blocks[0].outputs[0].shape, [8, 16]);
    assert_chain_and_merge_are_exact(&p);
    // The blocks of the first attempt are gone.
    assert_eq!(std::fs::read_dir(p.dir.path()).unwrap().count(), 3);
}

#[test]
fn a_bad_cut_costs_no_others() {
    let p = prepared("partly_strided", &[input("x", DataType::Fp32, &[8, 8])]);
    assert_eq!(p.manifest.blocks.len(), 4);
    assert_chain_and_merge_are_exact(&p);
}

#[test]
fn values_keep_their_order_in_memory_across_cuts() {
    let p = prepared("permuted", &[input("x", DataType::Fp32, &[-1, 3, 32, 32])]);
    // The stem, and three times a convolution with the linear layer after it.
    assert_eq!(p.manifest.blocks.len(), 4);
    assert_chain_and_merge_are_exact(&p);
    assert_a_batch_of_three_holds(&p);
}

#[test]
fn attributes_that_freezing_leaves_make_it_one_block_that_runs() {
    let p = prepared("cached", &row());
    assert_eq!(p.manifest.rung, Rung::Whole);
    assert!(
        p.manifest
            .rung_reason
            .clone()
            .unwrap()
            .contains("attributes")
    );
    let probe = p.probe();
    for optimize in [false, true] {
        assert_eq!(p.chain(&[], optimize, &probe.inputs), probe.outputs);
    }
}

#[test]
fn a_model_that_answers_differently_each_time_is_refused() {
    for name in ["stateful", "random"] {
        let error = try_prepare(&model(name), &row()).err().unwrap();
        assert!(matches!(error, PrepareError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("two equal requests"), "{error}");
    }
}

#[test]
fn a_model_without_a_tensor_to_give_is_refused() {
    let error = try_prepare(&model("no_tensor"), &row()).err().unwrap();
    assert!(error.to_string().contains("gives no tensor"), "{error}");
}

#[test]
fn an_exception_inside_the_forward_is_an_error_and_the_slice_lives_on() {
    let p = prepared("throwing", &[input("x", DataType::Fp32, &[-1, 4])]);
    let (slice, _) = p.slice(0, p.manifest.blocks.len(), true);
    let error = slice.run(&[fp32(&[1, 4], &[-1e6; 4])]).unwrap_err();
    assert!(matches!(error, RunError::Forward { .. }));
    assert_eq!(
        error.to_string(),
        "the forward failed: the sum is too small"
    );
    let probe = p.probe();
    assert!(difference(&slice.run(&probe.inputs).unwrap(), &probe.outputs) < 1e-5);
}

#[test]
fn progress_names_every_step_in_order_and_counts_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut steps = Vec::new();
    let inputs = [input("x", DataType::Fp32, &[-1, 4])];
    let manifest = prepare(
        &model("throwing"),
        dir.path(),
        &options(&inputs),
        &mut |p| {
            steps.push(p);
        },
    )
    .unwrap();
    let total = u32::try_from(manifest.blocks.len()).unwrap();
    let mut want = vec![Progress::Loading];
    want.extend((0..=total).map(|done| Progress::Slicing { done, total }));
    want.extend((0..=total).map(|done| Progress::Checking { done, total }));
    want.extend((0..=total).map(|done| Progress::Profiling { done, total }));
    assert_eq!(steps, want);
}

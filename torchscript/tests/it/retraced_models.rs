//! Models that are cut after retracing, and models that must not be.

use crate::common::*;
use lamina_model::{DataType, InputSpec, Rung};

fn retraced(name: &str, inputs: &[InputSpec], blocks: usize) -> Prepared {
    let p = prepared(name, inputs);
    let reason = p.manifest.rung_reason.clone().unwrap();
    assert_eq!(p.manifest.rung, Rung::Retraced, "{reason}");
    assert_eq!(p.manifest.blocks.len(), blocks, "{reason}");
    assert!(reason.contains("; traced again it is cut"), "{reason}");
    let probe = p.probe();
    let every: Vec<usize> = (1..blocks).collect();
    assert_eq!(p.chain(&every, false, &probe.inputs), probe.outputs);
    p
}

/// Three different rows, and each of them alone, give the same answers.
fn assert_any_batch(p: &Prepared, row: &[i64]) {
    let every: Vec<usize> = (1..p.manifest.blocks.len()).collect();
    let elements = row.iter().product::<i64>();
    let values: Vec<f32> = (0..3 * elements).map(|i| (i as f32 * 0.7).sin()).collect();
    let shaped = |rows: i64| [&[rows], row].concat();
    let batch = p.chain(&every, false, &[fp32(&shaped(3), &values)]);
    let size = usize::try_from(elements).unwrap();
    let alone: Vec<f32> = values
        .chunks(size)
        .flat_map(|row| floats(&p.chain(&every, false, &[fp32(&shaped(1), row)])[0]))
        .collect();
    let diff = difference(&batch, &[fp32(&batch[0].shape, &alone)]);
    assert!(diff < 1e-5, "{diff}");
}

fn stays_whole(name: &str, why: &str) {
    let p = prepared(name, &row());
    let reason = p.manifest.rung_reason.clone().unwrap();
    assert_eq!(p.manifest.rung, Rung::Whole, "{name}: {reason}");
    assert!(reason.contains(why), "{name}: {reason}");
    let probe = p.probe();
    assert_eq!(p.chain(&[], false, &probe.inputs), probe.outputs);
}

#[test]
fn numbers_and_branches_of_shape_become_constants_and_the_batch_stays_free() {
    let p = retraced("shape_numbers", &row(), 2);
    assert_eq!(p.manifest.inputs[0].shape, [-1, 8]);
    assert_eq!(p.manifest.blocks[0].outputs[0].shape, [-1, 8]);
    assert_eq!(p.manifest.outputs[0].shape, [-1, 8]);
    assert_any_batch(&p, &[8]);
}

#[test]
fn a_loop_over_a_shape_is_unrolled() {
    let p = retraced("shape_loop", &row(), 2);
    assert_any_batch(&p, &[8]);
}

#[test]
fn the_first_state_of_an_lstm_is_made_for_every_batch() {
    // libtorch writes past the end of a state that is too small.
    let p = retraced("stepwise", &[input("x", DataType::Fp32, &[-1, 5, 8])], 3);
    assert_eq!(p.manifest.outputs[0].shape, [-1, 5, 3]);
    assert_any_batch(&p, &[5, 8]);
}

#[test]
fn what_depends_on_values_is_never_fixed_by_a_trace() {
    let values = "depends on the values of a request";
    stays_whole("value_branch", &format!("a branch {values} (aten::Bool)"));
    stays_whole(
        "value_loop",
        &format!("the length of a loop {values} (aten::Int)"),
    );
    stays_whole(
        "value_number",
        "a number is read from the values of a request (aten::size)",
    );
    stays_whole(
        "viewed_value",
        "a number is read from the values of a request (aten::Float)",
    );
}

#[test]
fn a_trace_that_holds_for_one_batch_size_is_written_so() {
    for (name, why) in [
        (
            "other_at_two",
            "a branch depends on the size of the batch (aten::eq)",
        ),
        ("at_most_two", "the size of the batch"),
    ] {
        let p = retraced(name, &row(), 2);
        let reason = p.manifest.rung_reason.clone().unwrap();
        assert!(reason.contains("for a batch of 1 alone"), "{reason}");
        assert!(reason.contains(why), "{reason}");
        assert_eq!(p.manifest.inputs[0].shape, [1, 8]);
        assert_eq!(p.manifest.blocks[0].outputs[0].shape, [1, 8]);
        let (slice, _) = p.slice(0, 2, false);
        assert!(slice.run(&[fp32(&[2, 8], &[0.0; 16])]).is_err());
    }
}

#[test]
fn two_equal_answers_prove_nothing_about_a_trace() {
    stays_whole("same_answer", "get the same answer");
}

#[test]
fn what_is_kept_between_requests_is_no_constant() {
    stays_whole(
        "keeps_request",
        "it keeps values of requests in `self.kept`",
    );
    stays_whole("cached", "depends on what it kept before");
    // The same for every request: the trace may contain it.
    let p = retraced("filled_once", &row(), 2);
    assert_any_batch(&p, &[8]);
}

//! The user's own requests, where no range describes a model's inputs.

use crate::common::*;
use lamina_model::{DataType, InputSpec, Tensor};
use lamina_torchscript::{PrepareError, PrepareOptions};

fn with_samples(inputs: &[InputSpec], samples: Vec<Vec<Tensor>>) -> PrepareOptions {
    PrepareOptions {
        samples,
        ..options(inputs)
    }
}

fn columns(word: i64, kind: i64) -> Vec<Tensor> {
    vec![int64(&[1, 2], &[word, kind])]
}

#[test]
fn a_table_for_each_column_is_prepared_with_samples_and_not_without() {
    let path = wide("Vocabularies");
    let inputs = [input("ids", DataType::Int64, &[-1, 2])];
    let error = try_prepare(&path, &inputs).err().unwrap();
    let text = error.to_string();
    assert!(
        matches!(error, PrepareError::InputMismatch { .. }),
        "{text}"
    );
    assert!(text.contains("index out of range"), "{text}");
    assert!(
        text.contains("`range`") && text.contains("`samples`"),
        "{text}"
    );

    let samples = vec![columns(1003, 4), columns(1077, 0), columns(1099, 2)];
    let p = prepare_with(&path, &with_samples(&inputs, samples.clone())).unwrap();
    assert!(p.manifest.blocks.len() >= 3, "{:?}", p.manifest.rung_reason);
    assert_eq!(p.manifest.inputs[0].shape, [-1, 2]);
    assert_eq!(p.probe().inputs, samples[0]);
    assert_chain_and_merge_are_exact(&p);
    // The warm-up of a slice uses the first of them: zeros are in no vocabulary.
    let (slice, _) = p.slice(0, 2, true);
    slice.run(&samples[2]).unwrap();
}

#[test]
fn a_sample_that_the_model_does_not_take_is_named_by_its_number() {
    let inputs = [input("ids", DataType::Int64, &[-1, 2])];
    let path = wide("Vocabularies");
    for (bad, samples) in [
        (1, vec![columns(1003, 4), columns(3, 0)]),
        (
            2,
            vec![columns(1003, 4), columns(1004, 0), columns(1100, 0)],
        ),
    ] {
        let error = prepare_with(&path, &with_samples(&inputs, samples))
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(
            text.contains(&format!("request {bad} of the samples")),
            "{text}"
        );
    }
}

#[test]
fn numbers_that_begin_with_one_are_warmed_up_with_what_was_declared() {
    let ids = ranged(input("ids", DataType::Int64, &[-1, 12]), 1.0, 9.0);
    let p = try_prepare(&wide("FromOne"), &[ids]).unwrap();
    let last = p.manifest.blocks.len();
    let (slice, _) = p.slice(0, last, true);
    slice.run(&p.probe().inputs).unwrap();
}

#[test]
fn a_way_that_only_a_sample_takes_is_followed() {
    let path = wide("RareWay");
    let rare = vec![fp32(&[1, 8], &[1.0, -2.0, 3.0, 0.5, 901.0, 0.0, 1.0, 2.0])];
    let usual = |number: f32| vec![fp32(&[1, 8], &[number; 8])];
    let samples = vec![usual(1.0), usual(2.0), rare.clone()];
    let p = prepare_with(&path, &with_samples(&row(), samples)).unwrap();
    let want = lamina_torchscript::untouched_answer(&path, &rare, &[]).unwrap();
    let every: Vec<usize> = (1..p.manifest.blocks.len()).collect();
    assert_eq!(p.chain(&every, false, &rare), want);
}

//! Models that can only be cut where several values of several types are live.

use crate::common::*;
use lamina_model::{DataType, OutputStructure, Rung, ValueKind};

#[test]
fn numbers_that_follow_the_batch_cross_as_tensors() {
    let p = prepared("sizes", &row());
    assert_eq!(p.manifest.rung, Rung::Typed, "{:?}", p.manifest.rung_reason);
    assert_eq!(p.manifest.blocks.len(), 3);
    let first = &p.manifest.blocks[0].outputs;
    let of = |datatype| first.iter().filter(|v| v.datatype == datatype).count();
    assert_eq!(of(DataType::Fp32), 1);
    assert!(of(DataType::Int64) >= 1, "{first:?}");
    assert!(first.iter().any(|v| v.shape == [1] || v.shape == [3]));
    assert_eq!(p.manifest.inputs[0].shape, [-1, 8]);
    assert_chain_and_merge_are_exact(&p);
    assert_a_batch_of_three_holds(&p);
    let probe = p.probe();
    assert!(difference(&p.chain(&[1], true, &probe.inputs), &probe.outputs) < 1e-5);
}

#[test]
fn a_list_that_grows_crosses_tensor_by_tensor() {
    let p = prepared("growing", &row());
    assert_eq!(p.manifest.rung, Rung::Typed, "{:?}", p.manifest.rung_reason);
    assert_eq!(p.manifest.blocks.len(), 3);
    assert_chain_and_merge_are_exact(&p);
    assert_a_batch_of_three_holds(&p);
    let names: Vec<&str> = p.manifest.outputs.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["output0", "output1", "output2"]);
    let value = |name: &str| OutputStructure::Value {
        name: name.into(),
        of: ValueKind::Tensor,
    };
    let list = OutputStructure::List {
        fields: vec![value("output1"), value("output2")],
    };
    let tuple = OutputStructure::Tuple {
        names: Vec::new(),
        fields: vec![value("output0"), OutputStructure::None, list],
    };
    assert_eq!(p.manifest.output_structure, Some(tuple));
}

#[test]
fn values_that_share_memory_are_not_parted_before_a_write() {
    let p = prepared("aliasing", &row());
    assert_chain_and_merge_are_exact(&p);
    assert_a_batch_of_three_holds(&p);
    // Never both the tensor and its view.
    for block in &p.manifest.blocks {
        let widths: Vec<i64> = block.outputs.iter().map(|v| v.shape[1]).collect();
        assert!(!(widths.contains(&8) && widths.contains(&4)), "{widths:?}");
    }
}

#[test]
fn an_encoder_with_a_mask_is_cut_in_every_layer() {
    let inputs = [
        ranged(input("input_ids", DataType::Int64, &[-1, 6]), 0.0, 29.0),
        ranged(input("attention_mask", DataType::Int64, &[-1, 6]), 0.0, 1.0),
    ];
    let p = prepared("masked", &inputs);
    assert_eq!(p.manifest.rung, Rung::Typed, "{:?}", p.manifest.rung_reason);
    assert!(p.manifest.blocks.len() >= 6, "{}", p.manifest.blocks.len());
    assert_eq!(p.manifest.blocks[0].inputs, ["input_ids", "attention_mask"]);
    // The mask, or a value derived from it, crosses every cut but the last under one name.
    let crossing: Vec<Vec<String>> = (0..p.manifest.blocks.len() - 1)
        .map(|b| outputs_of(&p, b))
        .collect();
    let passed = |name: &String| crossing.iter().filter(|c| c.contains(name)).count();
    assert!(
        crossing[1].iter().any(|name| passed(name) >= 4),
        "{crossing:?}"
    );
    assert_chain_and_merge_are_exact(&p);
    assert_a_batch_of_three_holds(&p);
}

#[test]
fn states_of_an_lstm_and_names_of_a_dictionary_survive() {
    let p = prepared("recurrent", &[input("x", DataType::Fp32, &[-1, 5, 8])]);
    let names: Vec<&str> = p.manifest.outputs.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["logits", "state"]);
    assert!(p.manifest.blocks.len() >= 2, "{:?}", p.manifest.rung_reason);
    assert_chain_and_merge_are_exact(&p);
    // The LSTM returns its rows transposed, and the sent value is not: other kernels, and with
    // several rows another last digit.
    let probe = p.probe();
    let answers = p.chain(&[1], false, &tripled(&probe.inputs));
    assert!(difference(&answers, &tripled(&probe.outputs)) < 1e-5);
}

#[test]
fn a_segmentation_network_keeps_the_names_of_its_dictionary() {
    let image = [input("image", DataType::Fp32, &[-1, 3, 64, 64])];
    let p = prepared("deeplabv3_mobilenet_v3_large-scripted", &image);
    let names: Vec<&str> = p.manifest.outputs.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["out", "aux"]);
    assert!(matches!(&p.manifest.output_structure,
        Some(OutputStructure::Dict { names, .. }) if names == &["out", "aux"]));
    assert_eq!(p.manifest.rung, Rung::Typed, "{:?}", p.manifest.rung_reason);
    assert!(p.manifest.blocks.len() > 20, "{}", p.manifest.blocks.len());
    let probe = p.probe();
    let every: Vec<usize> = (1..p.manifest.blocks.len()).collect();
    assert_eq!(p.chain(&every, false, &probe.inputs), probe.outputs);
    assert_eq!(p.chain(&[], false, &probe.inputs), probe.outputs);
}

#[test]
fn forks_are_put_in_line() {
    let p = prepared("forked", &row());
    assert_chain_and_merge_are_exact(&p);
}

#[test]
fn a_number_of_outputs_that_depends_on_the_request_is_refused() {
    let error = try_prepare(&model("ragged"), &row()).err().unwrap();
    assert!(
        error.to_string().contains("depends on the request"),
        "{error}"
    );
}

//! Models that branch by values or by the batch. Their blocks follow, or are not cut there, or
//! report that they cannot.

use crate::against_whole::{answer, compared};
use crate::common::*;
use lamina_model::{DataType, InputSpec, Rung, Tensor};
use lamina_torchscript::RunError;
use tch::CModule;

/// All answers are the model's own: 4 requests of each batch from 1 to 8, by the chain, merged, and
/// optimized.
fn always_right(name: &str) -> Prepared {
    let p = try_prepare(&ways(name), &row()).unwrap();
    let count = compared(&p, &ways(name), 1).unwrap();
    let reason = &p.manifest.rung_reason;
    assert_eq!(count.refused, 0, "{name}: {reason:?}");
    let expected = if p.manifest.inputs[0].shape[0] == -1 {
        96
    } else {
        12
    };
    assert_eq!(count.answered, expected, "{name}: {reason:?}");
    p
}

#[test]
fn what_is_none_for_some_requests_crosses_no_cut() {
    always_right("OptionalByBatch");
    always_right("OptionalByValue");
}

#[test]
fn a_write_to_what_a_loop_was_given_or_handed_on_is_kept() {
    for name in ["SharesByNoRounds", "SharesByNoWhile", "SharesByRounds"] {
        always_right(name);
    }
}

#[test]
fn a_write_to_what_an_operator_gave_back_as_it_was_is_kept() {
    for by in [
        "Dropout",
        "TypeAs",
        "Conjugate",
        "Sum",
        "AtLeast",
        "Chunk",
        "Split",
        "Broadcast",
    ] {
        always_right(&format!("SharesBy{by}"));
    }
}

/// oneDNN Graph takes a product with 1 and a sum with 0 for what goes in.
#[test]
fn a_product_with_one_shares_no_memory() {
    for name in [
        "TimesOne",
        "PlusNothing",
        "PlusNothingInPlace",
        "WrittenAfterTimesOne",
    ] {
        always_right(name);
    }
}

/// oneDNN Graph would run kernels that are compiled for one row on several.
#[test]
fn fused_kernels_run_only_with_the_sizes_that_they_are_compiled_for() {
    always_right("NumberInPlace");
}

#[test]
fn lists_and_dictionaries_that_a_request_decides_about_cross_no_cut() {
    for name in ["DictKeys", "EmptyTensorList", "EmptyIntList"] {
        always_right(name);
    }
}

#[test]
fn what_a_list_holds_is_seen_where_it_crosses() {
    assert!(always_right("ListsThatGrowLater").manifest.blocks.len() > 2);
}

#[test]
fn what_lies_otherwise_in_memory_for_some_requests_crosses_no_cut() {
    always_right("OrderByValue");
    assert!(always_right("OrderByRareBatch").manifest.blocks.len() > 1);
}

#[test]
fn ways_that_no_trial_shows_are_read_from_the_graph() {
    let p = always_right("OptionalByLargeBatch");
    let rows = fp32(&[50, 8], &[0.5; 400]);
    let model = CModule::load(ways("OptionalByLargeBatch")).unwrap();
    let want = answer(&model, &rows).unwrap();
    let every: Vec<usize> = (1..p.manifest.blocks.len()).collect();
    assert_eq!(p.chain(&every, false, &[rows]), want);

    let p = always_right("OptionalByRareValue");
    let mut values = [0.0; 8];
    values[0] = 1234.5;
    let rare = fp32(&[1, 8], &values);
    let model = CModule::load(ways("OptionalByRareValue")).unwrap();
    let want = answer(&model, &rare).unwrap();
    let every: Vec<usize> = (1..p.manifest.blocks.len()).collect();
    assert_eq!(p.chain(&every, false, &[rare]), want);
}

#[test]
fn an_output_that_is_none_mostly_is_refused_where_it_is_not() {
    let p = try_prepare(&ways("OptionalOutput"), &row()).unwrap();
    let count = compared(&p, &ways("OptionalOutput"), 1).unwrap();
    assert_eq!(count.refused, 0);
    let last = p.manifest.blocks.len();
    let (slice, _) = p.slice(0, last, false);
    let error = slice.run(&[fp32(&[1, 8], &[70.0; 8])]).unwrap_err();
    assert!(matches!(error, RunError::OtherWay { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.starts_with("this request takes another way through the network"),
        "{text}"
    );
    assert!(text.contains("`extra` was None then"), "{text}");
}

#[test]
fn a_trace_never_keeps_what_the_batch_decides() {
    for (name, why) in [
        (
            "RetracedBatchBranch",
            "a branch depends on the size of the batch (aten::gt)",
        ),
        (
            "RetracedLargeBatch",
            "a branch depends on the size of the batch (aten::gt)",
        ),
        (
            "RetracedBatchNumber",
            "a number depends on the size of the batch (prim::max)",
        ),
        (
            "RetracedFirstRows",
            "a number depends on the size of the batch",
        ),
    ] {
        let p = always_right(name);
        let reason = p.manifest.rung_reason.clone().unwrap();
        assert_eq!(p.manifest.rung, Rung::Retraced, "{name}: {reason}");
        assert_eq!(p.manifest.inputs[0].shape, [1, 8], "{name}: {reason}");
        assert!(reason.contains(why), "{name}: {reason}");
    }
}

#[test]
fn a_type_that_a_value_decides_about_is_refused_at_its_cut_or_crosses_none() {
    always_right("DtypeByValue");
    let p = try_prepare(&ways("DtypeByRareValue"), &row()).unwrap();
    compared(&p, &ways("DtypeByRareValue"), 1).unwrap();
    let mut values = [0.0; 8];
    values[0] = 1234.5;
    let rare = fp32(&[1, 8], &values);
    let model = CModule::load(ways("DtypeByRareValue")).unwrap();
    let want = answer(&model, &rare).unwrap();
    let mut values: Vec<Tensor> = vec![rare];
    for block in 0..p.manifest.blocks.len() {
        match p.slice(block, block + 1, false).0.run(&values) {
            Ok(next) => values = next,
            Err(error) => {
                assert!(matches!(error, RunError::OtherWay { .. }), "{error}");
                assert!(
                    error.to_string().contains("was of type Float then"),
                    "{error}"
                );
                return;
            }
        }
    }
    assert_eq!(values, want);
}

#[test]
fn rows_that_values_choose_cross_no_cut_and_the_rest_is_cut() {
    let p = always_right("RoutedRows");
    assert!(p.manifest.blocks.len() > 1, "{:?}", p.manifest.rung_reason);
    assert_eq!(p.manifest.inputs[0].shape, [-1, 8]);
}

#[test]
fn an_output_as_long_as_values_say_is_declared_free() {
    let p = try_prepare(&ways("RowsOut"), &row()).unwrap();
    assert_eq!(p.manifest.outputs[1].shape, [-1]);
    compared(&p, &ways("RowsOut"), 1).unwrap();
}

fn masked(min: f64, max: f64) -> Vec<InputSpec> {
    vec![
        input("x", DataType::Fp32, &[1, 10, 8]),
        ranged(input("lengths", DataType::Int64, &[1]), min, max),
    ]
}

#[test]
fn an_exception_inside_a_function_that_was_inlined_is_a_reason() {
    for name in ["MaskThrows", "HelperThrows", "Attention"] {
        // The mask is shorter than the rows: it throws with each request.
        let error = try_prepare(&ways(name), &masked(5.0, 9.0)).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("lengths INT64 [1]"), "{text}");
        assert!(
            !text.contains("Traceback") && !text.contains('\n'),
            "{text}"
        );
        let p = try_prepare(&ways(name), &masked(10.0, 10.0));
        assert!(p.is_ok(), "{name}: {}", p.err().unwrap());
    }
}

#[test]
fn nested_tensors_cross_no_cut() {
    let inputs = [
        input("x", DataType::Fp32, &[-1, 6, 16]),
        ranged(input("pad", DataType::Bool, &[-1, 6]), 0.0, 0.0),
    ];
    let p = try_prepare(&ways("NestedEncoder"), &inputs).unwrap();
    let probe = p.probe();
    let every: Vec<usize> = (1..p.manifest.blocks.len()).collect();
    assert_eq!(p.chain(&every, false, &probe.inputs), probe.outputs);
}

#[test]
fn what_with_enters_is_no_obstacle() {
    for name in ["WithoutGradients", "Marked"] {
        let p = always_right(name);
        assert_eq!(
            p.manifest.rung,
            Rung::Direct,
            "{:?}",
            p.manifest.rung_reason
        );
        assert_eq!(p.manifest.blocks.len(), 4, "{name}");
    }
}

#[test]
fn a_file_from_a_gpu_is_taken_or_told_so() {
    let p = prepared_ways("OnGpu");
    assert_chain_and_merge_are_exact(&p);
    let error = try_prepare(&ways("MovedToGpu"), &row()).err().unwrap();
    let text = error.to_string();
    assert!(
        text.ends_with("it was exported on a GPU: move the model and its example to the CPU first"),
        "{text}"
    );
}

#[test]
fn a_file_without_a_forward_is_told_so() {
    let error = try_prepare(&ways("NoForward"), &row()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the model cannot be served: the model has no `forward`: export the module whose forward \
         answers requests"
    );
}

#[test]
fn quantized_layers_and_embedding_bags_are_work() {
    let ids = [ranged(input("ids", DataType::Int64, &[-1, 5]), 0.0, 9.0)];
    let p = try_prepare(&ways("Bags"), &ids).unwrap();
    assert_eq!(p.manifest.blocks.len(), 2, "{:?}", p.manifest.rung_reason);
    let p = prepared_ways("Quantized");
    let reason = p.manifest.rung_reason.clone().unwrap_or_default();
    assert!(!reason.contains("single heavy operation"), "{reason}");
    let probe = p.probe();
    assert_eq!(p.chain(&[], false, &probe.inputs), probe.outputs);
}

fn prepared_ways(name: &str) -> Prepared {
    try_prepare(&ways(name), &row()).unwrap()
}

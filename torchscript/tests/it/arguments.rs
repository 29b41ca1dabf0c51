//! Models that take numbers, texts, tuples and states: inputs are bound to them, or they are the
//! same for every request.

use crate::common::*;
use lamina_model::{Binding, Constant, DataType, FixedArgument, InputSpec, Tensor};
use lamina_torchscript::{PrepareOptions, RunError, untouched_answer};

fn fixed(name: &str, text: &str) -> FixedArgument {
    FixedArgument {
        name: name.into(),
        fixed: text.into(),
    }
}

fn floats_in(name: &str, width: i64) -> InputSpec {
    input(name, DataType::Fp32, &[-1, width])
}

fn rate() -> InputSpec {
    ranged(input("sr", DataType::Int64, &[]), 8000.0, 16000.0)
}

fn speech(more: &[InputSpec], arguments: &[FixedArgument], samples: Vec<Vec<Tensor>>) -> Prepared {
    let mut inputs = vec![floats_in("x", 16), floats_in("h", 8), floats_in("c", 8)];
    inputs.extend_from_slice(more);
    let options = PrepareOptions {
        fixed: arguments.to_vec(),
        samples,
        ..options(&inputs)
    };
    prepare_with(&with_arguments("Speech"), &options).unwrap()
}

fn said(name: &str, inputs: &[InputSpec], arguments: &[FixedArgument]) -> String {
    let options = PrepareOptions {
        fixed: arguments.to_vec(),
        ..options(inputs)
    };
    let error = prepare_with(&with_arguments(name), &options).err().unwrap();
    error.to_string()
}

fn row(rows: i64, width: i64, seed: f32) -> Tensor {
    let values: Vec<f32> = (0..rows * width)
        .map(|i| (i as f32 * 0.37 + seed).sin())
        .collect();
    fp32(&[rows, width], &values)
}

/// The answers of the file and of the chain of single blocks.
fn both(p: &Prepared, name: &str, request: &[Tensor]) -> (Vec<Tensor>, Vec<Tensor>) {
    let every: Vec<usize> = (1..p.manifest.blocks.len()).collect();
    tch::jit::set_graph_executor_optimize(false);
    let want = untouched_answer(&with_arguments(name), request, &p.manifest.arguments);
    tch::jit::set_graph_executor_optimize(true);
    (want.unwrap(), p.chain(&every, false, request))
}

#[test]
fn a_number_in_a_request_decides_as_the_model_says() {
    let sample = |sr: i64, seed: f32| {
        vec![
            row(1, 16, seed),
            row(1, 8, seed),
            row(1, 8, seed),
            int64(&[], &[sr]),
        ]
    };
    let samples = vec![sample(16000, 0.1), sample(8000, 0.7)];
    let p = speech(&[rate()], &[], samples);
    let tuple = Binding::Tuple { count: 2 };
    assert_eq!(p.manifest.arguments, [Binding::Tensor, tuple, Binding::Int]);
    assert_eq!(p.manifest.inputs[3].shape, Vec::<i64>::new());
    assert!(p.manifest.blocks.len() >= 2, "{:?}", p.manifest.rung_reason);
    for rows in 1..4 {
        for sr in [8000, 16000] {
            let request = [
                row(rows, 16, 0.3),
                row(rows, 8, 1.3),
                row(rows, 8, 2.3),
                int64(&[], &[sr]),
            ];
            let (want, got) = both(&p, "Speech", &request);
            assert_eq!(got, want, "{rows} rows at {sr}");
        }
    }
    let (slice, _) = p.slice(0, 1, false);
    let wrong = [
        row(1, 16, 0.3),
        row(1, 8, 1.3),
        row(1, 8, 2.3),
        int64(&[], &[44100]),
    ];
    let error = slice.run(&wrong).unwrap_err();
    assert!(
        error.to_string().contains("a rate of 8000 or 16000"),
        "{error}"
    );
}

#[test]
fn what_is_fixed_is_decided_when_the_model_is_prepared() {
    let arguments = [fixed("sr", "8000"), fixed("mode", "sure")];
    let p = speech(&[], &arguments, Vec::new());
    assert_eq!(
        p.manifest.arguments[2..],
        [
            Binding::Fixed {
                value: Constant::Int(8000)
            },
            Binding::Fixed {
                value: Constant::Text("sure".into())
            },
        ]
    );
    assert!(p.manifest.blocks.len() >= 2, "{:?}", p.manifest.rung_reason);
    let request = [row(2, 16, 0.3), row(2, 8, 1.3), row(2, 8, 2.3)];
    let (want, got) = both(&p, "Speech", &request);
    assert_eq!(got, want);
    let other = speech(&[], &[fixed("sr", "8000")], Vec::new());
    let (plain, _) = both(&other, "Speech", &request);
    assert_ne!(plain, want);
    // After fixed arguments an optional tensor may come.
    let p = speech(
        &[floats_in("mask", 8)],
        &[fixed("sr", "16000"), fixed("mode", "plain")],
        Vec::new(),
    );
    let request = [
        row(2, 16, 0.3),
        row(2, 8, 1.3),
        row(2, 8, 2.3),
        row(2, 8, 3.3),
    ];
    let (want, got) = both(&p, "Speech", &request);
    assert_eq!(got, want);
}

#[test]
fn a_stream_sends_the_last_state_with_the_next_request() {
    let p = speech(&[], &[fixed("sr", "16000")], Vec::new());
    let names: Vec<&str> = p.manifest.outputs.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let mut state = [fp32(&[1, 8], &[0.0; 8]), fp32(&[1, 8], &[0.0; 8])];
    let mut heard = Vec::new();
    for step in 0..5 {
        let request = [row(1, 16, step as f32), state[0].clone(), state[1].clone()];
        let (want, got) = both(&p, "Speech", &request);
        assert_eq!(got, want, "step {step}");
        heard.push(floats(&got[0])[0]);
        state = [got[1].clone(), got[2].clone()];
    }
    // The state matters: the same sound gives another result at first.
    let again = [
        row(1, 16, 4.0),
        fp32(&[1, 8], &[0.0; 8]),
        fp32(&[1, 8], &[0.0; 8]),
    ];
    assert_ne!(floats(&both(&p, "Speech", &again).1[0])[0], heard[4]);
}

#[test]
fn floats_truths_and_lengths_of_loops_are_inputs() {
    let inputs = [
        floats_in("x", 8),
        input("scale", DataType::Fp64, &[1]),
        ranged(input("times", DataType::Int64, &[]), 0.0, 4.0),
        input("flip", DataType::Bool, &[1]),
    ];
    let p = try_prepare(&with_arguments("Scaled"), &inputs).unwrap();
    let double = |v: f64| Tensor {
        datatype: DataType::Fp64,
        shape: vec![1],
        data: v.to_le_bytes().to_vec().into(),
    };
    let truth = |v: u8| Tensor {
        datatype: DataType::Bool,
        shape: vec![1],
        data: vec![v].into(),
    };
    for (times, scale, flip) in [(0, 0.5, 0), (1, -2.0, 1), (3, 1.5, 1), (9, 0.1, 0)] {
        let request = [
            row(2, 8, 0.2),
            double(scale),
            int64(&[], &[times]),
            truth(flip),
        ];
        let every: Vec<usize> = (1..p.manifest.blocks.len()).collect();
        let (want, got) = both(&p, "Scaled", &request);
        assert_eq!(got, want, "{times} {scale} {flip}");
        assert_eq!(
            p.chain(&[], false, &request),
            p.chain(&every, false, &request)
        );
    }
    let (slice, _) = p.slice(0, 1, false);
    let two = [row(1, 8, 0.2), double(1.0), int64(&[2], &[1, 2]), truth(0)];
    assert!(matches!(slice.run(&two), Err(RunError::Input(_))));
}

#[test]
fn what_cannot_be_bound_is_said() {
    let text = said(
        "Speech",
        &[floats_in("x", 16), floats_in("h", 8), floats_in("c", 8)],
        &[],
    );
    assert!(
        text.contains("its forward takes 5 (x, state, sr, mode, mask)"),
        "{text}"
    );
    let inputs = [
        floats_in("x", 16),
        floats_in("h", 8),
        floats_in("c", 8),
        floats_in("sr", 1),
    ];
    let text = said("Speech", &inputs, &[]);
    assert!(text.contains("declare it as INT64 of shape []"), "{text}");
    let text = said("Keeping", &[floats_in("x", 8), rate()], &[]);
    assert!(
        text.contains("make its state an input and an output"),
        "{text}"
    );
}

//! Sizes that are free beside the batch: for any of them, the chain of blocks answers like the file
//! itself, bit for bit, or refuses the request with a reason.

use crate::common::*;
use lamina_model::{DataType, FreeSize, InputSpec, Rung, Tensor, ValueSpec};
use lamina_torchscript::{RunError, Slice, untouched_answer};
use std::path::Path;

/// An input with a shape as it is declared: `-1, 3, h:8..64`.
fn sized(name: &str, datatype: DataType, shape: &str) -> InputSpec {
    let dims: Vec<&str> = shape.split(", ").collect();
    let sizes = dims.iter().enumerate();
    InputSpec {
        value: ValueSpec {
            name: name.into(),
            datatype,
            shape: dims.iter().map(|d| d.parse().unwrap_or(-1)).collect(),
            sizes: sizes
                .filter(|(_, dim)| dim.contains(':'))
                .map(|(place, dim)| FreeSize::parse(dim, place).unwrap())
                .collect(),
        },
        range: None,
    }
}

fn floats_of(shape: &str) -> Vec<InputSpec> {
    vec![sized("x", DataType::Fp32, shape)]
}

/// Pseudo-random numbers.
struct Noise(u64);

impl Noise {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn tensor(&mut self, spec: &InputSpec, sizes: &[(String, i64)], rows: i64) -> Tensor {
        let value = &spec.value;
        let dim = |(place, &dim): (usize, &i64)| match value.size_at(place) {
            Some(size) => {
                let name = &size.bounds.as_ref().unwrap().name;
                sizes.iter().find(|(n, _)| n == name).unwrap().1
            }
            None if dim == -1 => rows,
            None => dim,
        };
        let shape: Vec<i64> = value.shape.iter().enumerate().map(dim).collect();
        let count = shape.iter().product::<i64>();
        match value.datatype {
            DataType::Fp32 => {
                let values: Vec<f32> = (0..count)
                    .map(|_| self.below(4000) as f32 / 1000.0 - 2.0)
                    .collect();
                fp32(&shape, &values)
            }
            _ => {
                let end = spec.range.map_or(2, |r| r.max as u64 + 1);
                let values: Vec<i64> = (0..count).map(|_| self.below(end) as i64).collect();
                int64(&shape, &values)
            }
        }
    }
}

/// Requests of any sizes within the bounds, and of one to three rows.
fn requests(p: &Prepared, inputs: &[InputSpec], count: usize) -> Vec<Vec<Tensor>> {
    let mut noise = Noise(0x5eed_1234_5678_9abc);
    let any_batch = p.manifest.inputs.iter().any(ValueSpec::has_rows);
    let request = |_| {
        let mut sizes: Vec<(String, i64)> = Vec::new();
        for size in inputs.iter().flat_map(|i| &i.value.sizes) {
            let bounds = size.bounds.as_ref().unwrap();
            let steps = (bounds.max - bounds.min) / bounds.step + 1;
            let at = bounds.min + noise.below(steps as u64) as i64 * bounds.step;
            if !sizes.iter().any(|(name, _)| *name == bounds.name) {
                sizes.push((bounds.name.clone(), at));
            }
        }
        let rows = if any_batch {
            1 + noise.below(3) as i64
        } else {
            1
        };
        let tensor = |input| noise.tensor(input, &sizes, rows);
        inputs.iter().map(tensor).collect()
    };
    (0..count).map(request).collect()
}

/// Number of refused requests; all others were answered right, in single blocks, merged, and merged
/// and optimized.
fn compared(p: &Prepared, file: &Path, inputs: &[InputSpec], count: usize) -> usize {
    let blocks = p.manifest.blocks.len();
    let slices: Vec<Slice> = (0..blocks).map(|b| p.slice(b, b + 1, false).0).collect();
    let (merged, _) = p.slice(0, blocks, false);
    let (optimized, _) = p.slice(0, blocks, true);
    let mut refused = 0;
    for request in requests(p, inputs, count) {
        let shapes: Vec<_> = request.iter().map(|t| t.shape.clone()).collect();
        let want = as_written(file, &request);
        let chain = slices
            .iter()
            .try_fold(request.clone(), |values, slice| slice.run(&values));
        match chain {
            Ok(got) => assert_eq!(got, want, "{shapes:?} in {blocks} blocks"),
            Err(RunError::OtherWay { .. }) => refused += 1,
            Err(error) => panic!("{shapes:?}: {error}"),
        }
        match merged.run(&request) {
            Ok(got) => assert_eq!(got, want, "{shapes:?} merged"),
            Err(error) => panic!("{shapes:?} merged: {error}"),
        }
        let got = optimized.run(&request).unwrap();
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(got.shape, want.shape);
            if want.datatype == DataType::Fp32 {
                let largest = floats(want).iter().fold(1e-3_f32, |m, v| m.max(v.abs()));
                let differs = difference(std::slice::from_ref(got), std::slice::from_ref(want));
                assert!(differs <= largest * 1e-4, "{shapes:?} optimized: {differs}");
            }
        }
    }
    refused
}

fn as_written(file: &Path, request: &[Tensor]) -> Vec<Tensor> {
    tch::jit::set_graph_executor_optimize(false);
    let answer = untouched_answer(file, request, &[]);
    tch::jit::set_graph_executor_optimize(true);
    answer.unwrap()
}

/// Prepares the model, and tries sizes other than those used for preparing.
fn holds(name: &str, inputs: &[InputSpec]) -> Prepared {
    let file = sized_model(name);
    let p = try_prepare(&file, inputs).unwrap();
    let refused = compared(&p, &file, inputs, 40);
    assert_eq!(refused, 0, "{name}: {:?}", p.manifest.rung_reason);
    p
}

fn said(name: &str, inputs: &[InputSpec]) -> String {
    try_prepare(&sized_model(name), inputs)
        .err()
        .unwrap()
        .to_string()
}

#[test]
fn images_of_any_sides_are_cut_and_told_at_typical_ones() {
    let p = holds("Pooled", &floats_of("-1, 3, h:8..64@32, w:9..50@16"));
    let m = &p.manifest;
    assert!(m.blocks.len() >= 3, "{:?}", m.rung_reason);
    assert_eq!(m.inputs[0].shape, [-1, 3, -1, -1]);
    assert_eq!(m.inputs[0].bytes(1), Some(3 * 32 * 16 * 4));
    let first = &m.blocks[0].outputs[0];
    assert_eq!(
        (first.shape.as_slice(), first.typical_shape()),
        (&[-1, 8, -1, -1][..], vec![-1, 8, 16, 8])
    );
    assert_eq!(m.outputs[0].shape, [-1, 5]);
    assert!(m.outputs[0].sizes.is_empty());
    assert_eq!(p.probe().inputs[0].shape, [1, 3, 32, 16]);
    let tried = &m.check.sizes["h"];
    assert!(
        tried.len() >= 3 && tried.first() == Some(&8) && tried.last() == Some(&64),
        "{tried:?}"
    );
    assert_eq!(m.rows_are_independent, Some(true));
    // Four times the image is about four times the work.
    let small = try_prepare(
        &sized_model("Pooled"),
        &floats_of("-1, 3, h:8..64@16, w:8..50@8"),
    );
    let flops = |p: &Prepared| p.manifest.blocks.iter().map(|b| b.flops).sum::<u64>() as f64;
    let times = flops(&p) / flops(&small.unwrap());
    assert!((3.0..5.0).contains(&times), "{times}");
}

#[test]
fn sizes_outside_the_bounds_are_refused_by_name() {
    let inputs = floats_of("-1, 3, h:8..64@32, w:9..50@16");
    let p = holds("Pooled", &inputs);
    let (slice, _) = p.slice(0, 1, false);
    for (shape, words) in [
        (
            [1, 3, 65, 9],
            "`h` is 65 (dimension 2), but it may be 8 to 64",
        ),
        (
            [1, 3, 8, 8],
            "`w` is 8 (dimension 3), but it may be 9 to 50",
        ),
    ] {
        let request = fp32(&shape, &vec![0.0; shape.iter().product::<i64>() as usize]);
        let error = slice.run(&[request]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_step_is_asked_for_where_only_multiples_fit() {
    let said = said("Unet", &floats_of("-1, 3, h:8..64@32, w:8..64@32"));
    assert!(said.contains("h:32..1024/32"), "{said}");
    let p = holds("Unet", &floats_of("-1, 3, h:8..64/4, w:8..64/4"));
    assert!(p.manifest.blocks.len() >= 2, "{:?}", p.manifest.rung_reason);
    assert_eq!(p.manifest.outputs[0].shape, [-1, 4, -1, -1]);
}

#[test]
fn texts_of_any_length_with_their_masks() {
    let inputs = |bounds: &str| {
        let ids = sized("ids", DataType::Int64, &format!("-1, seq:{bounds}"));
        let mask = sized("mask", DataType::Int64, &format!("-1, seq:{bounds}"));
        vec![ranged(ids, 0.0, 49.0), mask]
    };
    let p = holds("Text", &inputs("1..40"));
    assert!(p.manifest.blocks.len() >= 5, "{:?}", p.manifest.rung_reason);
    assert_eq!(p.manifest.outputs[0].shape, [-1, -1, 3]);
    // The model has 40 positions.
    let said = said("Text", &inputs("1..41"));
    assert!(said.contains("with seq=41 it fails"), "{said}");
    assert!(said.contains("seq:1..41"), "{said}");
}

#[test]
fn what_a_size_decides_never_gives_a_wrong_answer() {
    for name in ["OptionalBySize", "ListBySize", "Padded"] {
        let p = holds(name, &floats_of("-1, n:1..30@14, 8"));
        // The number of loop iterations may not cross a cut.
        let least = if name == "ListBySize" { 1 } else { 2 };
        assert!(
            p.manifest.blocks.len() >= least,
            "{name}: {:?}",
            p.manifest.rung_reason
        );
    }
    // The block asserts its type.
    let (file, inputs) = (sized_model("DtypeBySize"), floats_of("-1, n:2..30@14, 8"));
    let p = try_prepare(&file, &inputs).unwrap();
    let blocks = p.manifest.blocks.len();
    let slices: Vec<Slice> = (0..blocks).map(|b| p.slice(b, b + 1, false).0).collect();
    for request in requests(&p, &inputs, 40) {
        let chain = slices
            .iter()
            .try_fold(request.clone(), |values, slice| slice.run(&values));
        match chain {
            Ok(got) => assert_eq!(got, as_written(&file, &request)),
            Err(RunError::OtherWay { .. }) => (),
            Err(error) => panic!("{:?}: {error}", request[0].shape),
        }
    }
}

#[test]
fn a_trace_that_would_keep_a_size_is_not_made() {
    let p = holds("Remembering", &floats_of("-1, n:2..20@6, 8"));
    let reason = p.manifest.rung_reason.clone().unwrap();
    assert_eq!(p.manifest.rung, Rung::Whole, "{reason}");
    assert!(reason.contains("the size `n`"), "{reason}");
    // With one length it works.
    let p = holds("Remembering", &floats_of("-1, 6, 8"));
    assert_eq!(
        p.manifest.rung,
        Rung::Retraced,
        "{:?}",
        p.manifest.rung_reason
    );
}

#[test]
fn a_file_that_has_its_length_in_it_says_so() {
    let said = said("Fixed", &floats_of("-1, n:2..20@6, 8"));
    assert!(said.contains("with n=2 it fails"), "{said}");
    let p = holds("Fixed", &floats_of("-1, 6, 8"));
    assert!(p.manifest.blocks.len() >= 2);
}

#[test]
fn the_batch_may_be_in_another_place_than_the_first() {
    let p = holds("SequenceFirst", &floats_of("seq:1..12@6, batch:1..5@1, 8"));
    assert!(p.manifest.blocks.len() >= 3, "{:?}", p.manifest.rung_reason);
    assert_eq!(p.manifest.outputs[0].shape, [-1, -1, 3]);
    assert!(!p.manifest.outputs[0].has_rows());
    assert_eq!(p.manifest.rows_are_independent, None);
    let p = holds("TurnedInside", &floats_of("-1, 4, 8"));
    assert_eq!(p.manifest.blocks.len(), 3, "{:?}", p.manifest.rung_reason);
    assert_eq!(p.manifest.blocks[0].outputs[0].shape, [4, -1, 8]);
}

#[test]
fn a_request_needs_no_batch() {
    let p = holds("Waveform", &floats_of("samples:16..400"));
    assert!(p.manifest.blocks.len() >= 2, "{:?}", p.manifest.rung_reason);
    assert_eq!(p.manifest.outputs[0].shape, [2]);
}

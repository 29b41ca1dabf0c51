//! Slices run by several threads in parallel, and for several rows at once.

use crate::common::*;
use crate::vision_models::mobilenet;
use lamina_model::Tensor;
use std::thread;

/// Different requests like `like`.
fn requests(like: &[Tensor], count: u32) -> Vec<Vec<Tensor>> {
    let one = |number: u32| {
        let other = |tensor: &Tensor| {
            let values = floats(tensor).into_iter();
            let values = values.map(|value| value * (1.0 - 0.1 * number as f32));
            Tensor {
                data: values.flat_map(f32::to_le_bytes).collect(),
                ..tensor.clone()
            }
        };
        like.iter().map(other).collect()
    };
    (0..count).map(one).collect()
}

#[test]
fn threads_that_run_one_slice_get_their_own_answers() {
    let prepared = mobilenet();
    let (slice, _) = prepared.slice(0, prepared.manifest.blocks.len(), true);
    let requests = requests(&prepared.probe().inputs, 4);
    let alone: Vec<_> = requests.iter().map(|r| slice.run(r).unwrap()).collect();
    assert_ne!(alone[0], alone[1]);
    thread::scope(|scope| {
        for (request, expected) in requests.iter().zip(&alone) {
            let slice = &slice;
            scope.spawn(move || {
                for _ in 0..8 {
                    assert_eq!(slice.run(request).unwrap(), *expected);
                }
            });
        }
    });
}

#[test]
fn rows_are_computed_together_where_that_is_faster_and_give_the_same() {
    // Many weights per row, and little compute.
    let prepared = prepared("wide_layers", &row());
    let (slice, _) = prepared.slice(0, prepared.manifest.blocks.len(), true);
    let batches = slice.specialize(&[2, 4, 8]);
    let mut before = 1.0;
    for batch in &batches {
        assert!(batch.gain > before, "{batches:?}");
        before = batch.gain;
    }
    let requests = requests(&prepared.probe().inputs[..1], 8);
    let rows: Vec<_> = requests.iter().map(|r| slice.run(r).unwrap()).collect();
    let together = Tensor {
        shape: vec![8, 8],
        data: requests.iter().flat_map(|r| r[0].data.to_vec()).collect(),
        ..requests[0][0].clone()
    };
    let answer = slice.run(&[together]).unwrap();
    let expected: Vec<f32> = rows.iter().flat_map(|r| floats(&r[0])).collect();
    let got = floats(&answer[0]);
    let furthest = got.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    assert!(furthest.fold(0.0, f32::max) < 1e-4);
    // A fixed batch has no rows.
    let fixed = crate::common::prepared(
        "wide_layers",
        &[input("x", row()[0].value.datatype, &[1, 8])],
    );
    let (slice, _) = fixed.slice(0, fixed.manifest.blocks.len(), true);
    assert!(slice.specialize(&[2, 4, 8]).is_empty());
}

//! Bad files and requests: each a clear error, never a crash.

use crate::common::*;
use lamina_model::{DataType, InputSpec, ValueSpec};
use lamina_torchscript::{LoadError, PrepareError, RunError, Slice, prepare};
use std::fs;
use std::path::{Path, PathBuf};

fn refused(path: &Path, inputs: &[InputSpec]) -> PrepareError {
    try_prepare(path, inputs).err().unwrap()
}

fn file(dir: &tempfile::TempDir, content: &[u8]) -> PathBuf {
    let path = dir.path().join("model.pt");
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn files_that_are_no_torchscript_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = fs::read(model("two_inputs")).unwrap();
    let mut damaged = good.clone();
    let middle = damaged.len() / 3;
    damaged[middle..middle + 2000].fill(0xff);
    let cases: [(&str, &[u8]); 5] = [
        ("empty", b""),
        ("garbage", b"this is no model at all, but some text"),
        ("truncated", &good[..good.len() / 2]),
        ("almost whole", &good[..good.len() - 10]),
        ("damaged", &damaged),
    ];
    for (case, content) in cases {
        let error = refused(&file(&dir, content), &row());
        let text = error.to_string();
        assert!(
            matches!(error, PrepareError::NotTorchScript { .. }),
            "{case}: {text}"
        );
        assert!(
            text.contains("model.pt is not a TorchScript model"),
            "{case}: {text}"
        );
        assert!(!text.contains('\n') && text.len() < 600, "{case}: {text}");
    }
}

#[test]
fn a_missing_model_is_an_error_of_reading() {
    let error = refused(Path::new("nowhere/model.pt"), &row());
    assert!(
        matches!(error, PrepareError::Io { action: "read", .. }),
        "{error}"
    );
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_of_writing() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = file(&dir, b"a file").join("blocks");
    let error = prepare(&model("skipping"), &blocked, &options(&row()), &mut |_| ()).unwrap_err();
    assert!(
        matches!(
            error,
            PrepareError::Io {
                action: "write",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn inputs_that_do_not_fit_are_named_with_what_was_declared() {
    let x = |datatype, shape: &[i64]| vec![input("x", datatype, shape)];
    let cases = [
        (x(DataType::Fp32, &[-1, 9]), "mat1 and mat2 shapes"),
        (x(DataType::Int64, &[-1, 8]), "dtype"),
        (
            x(DataType::Fp32, &[8, -1]),
            "-1 is the batch and stands first",
        ),
        (vec![], "its forward takes 1 (x)"),
        ([row(), row()].concat(), "its forward takes 1 (x)"),
    ];
    for (inputs, want) in cases {
        let error = refused(&model("in_place"), &inputs);
        let text = error.to_string();
        assert!(
            matches!(error, PrepareError::InputMismatch { .. }),
            "{text}"
        );
        assert!(text.contains(want), "{text}");
    }
}

#[test]
fn blocks_that_cannot_be_loaded_are_named() {
    let p = prepared("in_place", &row());
    let dir = tempfile::tempdir().unwrap();
    let garbage = file(&dir, b"garbage");
    let inputs = p.manifest.inputs.clone();
    let load = |files: &[PathBuf]| {
        Slice::load(files, &inputs, &load_options(true))
            .err()
            .unwrap()
    };
    assert!(matches!(load(&[]), LoadError::NoBlocks));
    for bad in [&garbage, &dir.path().join("missing.pt")] {
        let error = load(&[p.block_path(0), bad.clone()]);
        assert!(
            matches!(&error, LoadError::Block { path, .. } if path == bad),
            "{error}"
        );
    }
}

#[test]
fn blocks_in_the_wrong_order_fail_on_loading_not_on_a_request() {
    let p = prepared(
        "two_inputs",
        &[
            ranged(input("tokens", DataType::Int64, &[-1, 5]), 0.0, 49.0),
            input("scale", DataType::Fp32, &[-1, 5, 1]),
        ],
    );
    let inputs = p.manifest.inputs.clone();
    let load = |order: &[usize]| {
        let files: Vec<PathBuf> = order.iter().map(|&b| p.block_path(b)).collect();
        Slice::load(&files, &inputs, &load_options(false))
            .err()
            .unwrap()
    };
    assert!(
        matches!(load(&[1, 0, 2]), LoadError::Chain { .. }),
        "{}",
        load(&[1, 0, 2])
    );
    assert!(
        matches!(load(&[0, 2, 1]), LoadError::WarmUp { .. }),
        "{}",
        load(&[0, 2, 1])
    );
}

#[test]
fn requests_that_do_not_fit_never_reach_the_model() {
    let p = prepared("in_place", &row());
    let (slice, _) = p.slice(0, 2, true);
    assert_eq!(slice.inputs(), p.manifest.inputs);
    let error = slice.run(&[]).unwrap_err();
    assert!(matches!(
        error,
        RunError::InputCount {
            expected: 1,
            got: 0
        }
    ));
    let mut short = fp32(&[1, 8], &[0.0; 8]);
    short.data = short.data.slice(..31);
    let wrong = [
        (
            fp32(&[1, 9], &[0.0; 9]),
            "expected shape [-1, 8], got [1, 9]",
        ),
        (fp32(&[8], &[0.0; 8]), "expected shape"),
        (fp32(&[0, 8], &[]), "send at least one row"),
        (short, "needs 32 bytes, got 31"),
    ];
    for (tensor, want) in wrong {
        let error = slice.run(&[tensor]).unwrap_err();
        assert!(matches!(error, RunError::Input(_)), "{error}");
        assert!(error.to_string().contains(want), "{error}");
    }
    assert!(slice.run(&[fp32(&[4, 8], &[0.5; 32])]).is_ok());
}

#[test]
fn a_slice_told_the_wrong_shapes_does_not_load() {
    let p = prepared("in_place", &row());
    let wrong = [ValueSpec {
        shape: vec![-1, 3],
        ..p.manifest.inputs[0].clone()
    }];
    let files = [p.block_path(0), p.block_path(1)];
    let error = Slice::load(&files, &wrong, &load_options(true))
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("fails on its first run"),
        "{error}"
    );
}

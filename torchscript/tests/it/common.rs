//! Models exported with real PyTorch and short ways to prepare and load them.

use lamina_model::{DataType, Digest, InputSpec, Manifest, Probe, Tensor, ValueRange, ValueSpec};
use lamina_torchscript::{
    LoadOptions, LoadReport, PrepareError, PrepareOptions, Slice, prepare, set_threads,
};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A script that exports models by name, with its output.
struct Script {
    file: &'static str,
    text: &'static str,
}

const MODELS: Script = Script {
    file: "export.py",
    text: include_str!("../fixtures/export.py"),
};
const ONE_ROW: Script = Script {
    file: "one_row.py",
    text: include_str!("../fixtures/one_row.py"),
};

const WAYS: Script = Script {
    file: "ways.py",
    text: include_str!("../fixtures/ways.py"),
};

const WIDE: Script = Script {
    file: "wide.py",
    text: include_str!("../fixtures/wide.py"),
};

const ARGUMENTS: Script = Script {
    file: "arguments.py",
    text: include_str!("../fixtures/arguments.py"),
};

const SIZED: Script = Script {
    file: "sized.py",
    text: include_str!("../fixtures/sized.py"),
};

/// The exported model, made on first use and kept in the target directory
/// until the script changes.
pub(crate) fn model(name: &str) -> PathBuf {
    exported(&MODELS, name)
}

/// The same for sums after products.
pub(crate) fn one_row(name: &str) -> PathBuf {
    exported(&ONE_ROW, name)
}

/// The same for models that branch by request.
pub(crate) fn ways(name: &str) -> PathBuf {
    exported(&WAYS, name)
}

/// The same for models with many values between their layers.
pub(crate) fn wide(name: &str) -> PathBuf {
    exported(&WIDE, name)
}

/// The same for models with arguments other than tensors.
pub(crate) fn with_arguments(name: &str) -> PathBuf {
    exported(&ARGUMENTS, name)
}

/// The same for models with free sizes beside the batch.
pub(crate) fn sized_model(name: &str) -> PathBuf {
    exported(&SIZED, name)
}

fn exported(script: &Script, name: &str) -> PathBuf {
    let digest = Digest::of(script.text.as_bytes());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("models-{}", digest.short()));
    let file = folder.join(format!("{name}.pt"));
    if file.exists() {
        return file;
    }
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    if !file.exists() {
        export(script, &folder, name);
    }
    file
}

fn export(script: &Script, folder: &Path, name: &str) {
    let python = std::env::var_os("LAMINA_PYTHON");
    let python = python.expect("LAMINA_PYTHON names no Python with torch: run `cargo xtask test`");
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let script = Path::new(fixtures).join(script.file);
    let output = Command::new(python)
        .args(["-W", "ignore"])
        .arg(script)
        .arg(folder)
        .arg(name)
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "exporting {name}: {errors}");
}

pub(crate) fn input(name: &str, datatype: DataType, shape: &[i64]) -> InputSpec {
    InputSpec {
        value: ValueSpec {
            name: name.into(),
            datatype,
            shape: shape.to_vec(),
            sizes: Vec::new(),
        },
        range: None,
    }
}

pub(crate) fn ranged(input: InputSpec, min: f64, max: f64) -> InputSpec {
    InputSpec {
        range: Some(ValueRange { min, max }),
        ..input
    }
}

pub(crate) fn image() -> Vec<InputSpec> {
    vec![input("image", DataType::Fp32, &[-1, 3, 224, 224])]
}

/// A row of eight floats, the input of most small models.
pub(crate) fn row() -> Vec<InputSpec> {
    vec![input("x", DataType::Fp32, &[-1, 8])]
}

pub(crate) fn options(inputs: &[InputSpec]) -> PrepareOptions {
    PrepareOptions {
        inputs: inputs.to_vec(),
        fixed: Vec::new(),
        samples: Vec::new(),
        known: Default::default(),
        timing_runs: 3,
        profile_budget: Duration::ZERO,
        prepared_gflops: 1.5,
        seed: 42,
    }
}

/// A prepared model in a folder of its own.
pub(crate) struct Prepared {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) manifest: Manifest,
}

pub(crate) fn try_prepare(path: &Path, inputs: &[InputSpec]) -> Result<Prepared, PrepareError> {
    prepare_with(path, &options(inputs))
}

pub(crate) fn prepare_with(
    path: &Path,
    options: &PrepareOptions,
) -> Result<Prepared, PrepareError> {
    set_threads(1);
    let dir = tempfile::tempdir().unwrap();
    let manifest = prepare(path, dir.path(), options, &mut |_| ())?;
    manifest.validate().unwrap();
    Ok(Prepared { dir, manifest })
}

pub(crate) fn prepared(name: &str, inputs: &[InputSpec]) -> Prepared {
    try_prepare(&model(name), inputs).unwrap()
}

impl Prepared {
    pub(crate) fn block_path(&self, block: usize) -> PathBuf {
        let digest = &self.manifest.blocks[block].digest;
        self.dir.path().join(format!("{digest}.pt"))
    }

    pub(crate) fn probe(&self) -> Probe {
        let path = self
            .dir
            .path()
            .join(format!("{}.safetensors", self.manifest.probe));
        let file = fs::read(path).unwrap();
        assert_eq!(file.len() as u64, self.manifest.probe_bytes);
        assert_eq!(Digest::of(&file), self.manifest.probe);
        Probe::from_bytes(&file).unwrap()
    }

    /// Blocks `from..to` as one slice.
    pub(crate) fn slice(&self, from: usize, to: usize, optimize: bool) -> (Slice, LoadReport) {
        let files: Vec<PathBuf> = (from..to).map(|b| self.block_path(b)).collect();
        let inputs: Vec<ValueSpec> = self.manifest.live_at(from).into_iter().cloned().collect();
        Slice::load(&files, &inputs, &load_options(optimize)).unwrap()
    }

    /// Runs `request` through slices cut at `borders`.
    pub(crate) fn chain(
        &self,
        borders: &[usize],
        optimize: bool,
        request: &[Tensor],
    ) -> Vec<Tensor> {
        let mut values = request.to_vec();
        let mut from = 0;
        for &to in borders.iter().chain([&self.manifest.blocks.len()]) {
            values = self.slice(from, to, optimize).0.run(&values).unwrap();
            from = to;
        }
        values
    }
}

pub(crate) const fn load_options(optimize: bool) -> LoadOptions {
    LoadOptions {
        threads: 1,
        lanes: 1,
        optimize,
        warmup_runs: 1,
    }
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.datatype, DataType::Fp32);
    let bytes = tensor.data.chunks_exact(4);
    bytes
        .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
        .collect()
}

pub(crate) fn fp32(shape: &[i64], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor {
        datatype: DataType::Fp32,
        shape: shape.to_vec(),
        data: data.into(),
    }
}

pub(crate) fn int64(shape: &[i64], values: &[i64]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor {
        datatype: DataType::Int64,
        shape: shape.to_vec(),
        data: data.into(),
    }
}

/// Largest absolute difference of two lists of FP32 tensors of equal shapes.
pub(crate) fn difference(a: &[Tensor], b: &[Tensor]) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut largest = 0.0_f32;
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.shape, b.shape);
        for (x, y) in floats(a).iter().zip(floats(b)) {
            assert!(x.is_finite() && y.is_finite());
            largest = largest.max((x - y).abs());
        }
    }
    largest
}

/// Names of a block's outputs.
pub(crate) fn outputs_of(p: &Prepared, block: usize) -> Vec<String> {
    let outputs = p.manifest.blocks[block].outputs.iter();
    outputs.map(|v| v.name.clone()).collect()
}

/// The chain of single blocks, the merged whole and every split in two equal the whole model bit
/// for bit.
pub(crate) fn assert_chain_and_merge_are_exact(p: &Prepared) {
    let probe = p.probe();
    let every: Vec<usize> = (1..p.manifest.blocks.len()).collect();
    assert_eq!(p.chain(&every, false, &probe.inputs), probe.outputs);
    assert_eq!(p.chain(&[], false, &probe.inputs), probe.outputs);
    for &border in &every {
        assert_eq!(p.chain(&[border], false, &probe.inputs), probe.outputs);
    }
}

/// The probe's request three times as one batch.
pub(crate) fn tripled(request: &[Tensor]) -> Vec<Tensor> {
    let triple = |t: &Tensor| {
        let mut shape = t.shape.clone();
        shape[0] *= 3;
        Tensor {
            datatype: t.datatype,
            shape,
            data: t.data.repeat(3).into(),
        }
    };
    request.iter().map(triple).collect()
}

/// Three equal rows get three answers like the probe's, through every block and through the merged
/// whole.
pub(crate) fn assert_a_batch_of_three_holds(p: &Prepared) {
    let probe = p.probe();
    let request = tripled(&probe.inputs);
    let whole = p.chain(&[], false, &request);
    let every: Vec<usize> = (1..p.manifest.blocks.len()).collect();
    assert_eq!(p.chain(&every, false, &request), whole);
    assert!(difference(&whole, &tripled(&probe.outputs)) < 1e-5);
}

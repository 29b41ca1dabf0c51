//! Runs the blocks of a prepared folder once, one after the other, so that users can check them.

use crate::cell::be_expendable;
use crate::chain::prepared;
use clap::Args;
use lamina_model::{
    Block, Digest, Manifest, Probe, Tensor, ValueSpec, files_in_rows, tensors_by_name,
};
use lamina_sandbox::lock::{Cell, Limits};
use lamina_torchscript::{LoadOptions, Slice, largest_difference, set_threads, untouched_answer};
use lamina_worker_link::blocks::{
    Against, MANIFEST_FILE, Ran, RanBlock, RanOutput, RunLine, Verdict,
};
use lamina_worker_link::cell::{CellError, enter, real_path, scan, scan_block};
use lamina_worker_link::prepare::{Failure, Reason};
use lamina_worker_link::with_causes;
use std::error::Error;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Nothing is written.
const FILE_BYTES: u64 = 0;

/// The agent's arguments.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunBlocksArgs {
    /// The folder that was prepared.
    dir: PathBuf,
    /// A request; the probe by default.
    #[arg(long)]
    input: Option<PathBuf>,
    /// The model that was prepared.
    #[arg(long)]
    whole: Option<PathBuf>,
    /// Memory limit in bytes.
    #[arg(long)]
    memory_limit: u64,
    /// CPU time limit in seconds.
    #[arg(long)]
    cpu_limit: u64,
    /// Continue if the kernel lacks the sandbox.
    #[arg(long)]
    allow_unsandboxed: bool,
}

/// Runs them and reports the results.
pub(crate) fn run(args: &RunBlocksArgs) -> bool {
    be_expendable();
    let (line, is_done) = match run_folder(args) {
        Ok(ran) => (RunLine::Ran(ran), true),
        Err(failure) => (RunLine::Error(failure), false),
    };
    write_line(&line).is_ok() && is_done
}

/// A request, and its known answer before the whole model runs.
struct Question {
    inputs: Vec<Tensor>,
    /// What the model takes, where a block makes it of the inputs.
    taken: Option<Vec<Tensor>>,
    answer: Option<Vec<Tensor>>,
}

fn run_folder(args: &RunBlocksArgs) -> Result<Ran, Failure> {
    // Before anything else: later steps may start threads.
    let missing = cell(args).and_then(|cell| Ok(enter(&cell, args.allow_unsandboxed)?));
    for missing in missing.map_err(|e| Failure::from(&e))? {
        let warning = format!("the blocks are opened with {missing} on this host");
        // If nobody listens, nobody sees the result either.
        let _ = write_line(&RunLine::Warning(warning));
    }
    set_threads(1);
    let manifest = manifest(&args.dir)?;
    let mut question = question(args, &manifest)?;
    let mut blocks = Vec::with_capacity(manifest.blocks.len());
    let mut values = question.inputs.clone();
    let mut takes = &manifest.inputs;
    for (ordinal, block) in manifest.blocks.iter().enumerate() {
        let (given, seconds) = forward(&args.dir, ordinal, block, takes, &values)?;
        blocks.push(RanBlock {
            digest: block.digest.clone(),
            seconds,
            outputs: as_they_are(&block.outputs, &given),
        });
        values = given;
        takes = &block.outputs;
        if !block.kind.is_torch_script() {
            // The model itself takes what the block makes of images.
            question.taken = Some(values.clone());
        }
    }
    let (against, expected) = expected(args, &manifest, question)?;
    Ok(Ran {
        blocks,
        against,
        outputs: outputs(&manifest, &values, expected.as_deref()),
    })
}

fn cell(args: &RunBlocksArgs) -> Result<Cell, CellError> {
    let files = [args.input.as_ref(), args.whole.as_ref()];
    let read = std::iter::once(&args.dir).chain(files.into_iter().flatten());
    Ok(Cell {
        read: read.map(|path| real_path(path)).collect::<Result<_, _>>()?,
        write: None,
        limits: Limits {
            memory_bytes: args.memory_limit,
            cpu: Some(Duration::from_secs(args.cpu_limit)),
            file_bytes: FILE_BYTES,
        },
    })
}

fn manifest(dir: &Path) -> Result<Manifest, Failure> {
    let path = dir.join(MANIFEST_FILE);
    let text = fs::read(&path).map_err(|e| {
        Failure::new(
            Reason::InvalidModel,
            format!(
                "cannot read {}: {e}; `lamina-node-agent prepare --out` writes it",
                path.display()
            ),
        )
    })?;
    let wrong = |error: &dyn Error| {
        let what = format!("{} is no manifest: {}", path.display(), with_causes(error));
        Failure::new(Reason::InvalidModel, what)
    };
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| wrong(&e))?;
    manifest.validate().map_err(|e| wrong(&e))?;
    Ok(manifest)
}

fn question(args: &RunBlocksArgs, manifest: &Manifest) -> Result<Question, Failure> {
    let refused = |what: String| Failure::new(Reason::InputMismatch, what);
    let path = args.input.clone();
    let is_probe = path.is_none();
    let path = path.unwrap_or_else(|| args.dir.join(format!("{}.safetensors", manifest.probe)));
    let file = fs::read(&path)
        .map_err(|e| refused(format!("cannot read the request {}: {e}", path.display())))?;
    let wrong = |error: &dyn Error| refused(format!("{}: {}", path.display(), with_causes(error)));
    if !is_probe {
        return Ok(Question {
            inputs: inputs(&file, &manifest.inputs, &path)?,
            taken: None,
            answer: None,
        });
    }
    let probe = Probe::from_bytes(&file).map_err(|e| wrong(&e))?;
    Ok(Question {
        inputs: probe.inputs,
        taken: None,
        answer: Some(probe.outputs),
    })
}

/// The tensors of a request in the order of `specs`. Their shapes are checked by the first
/// block.
fn inputs(file: &[u8], specs: &[ValueSpec], path: &Path) -> Result<Vec<Tensor>, Failure> {
    let refused = |what: String| {
        let what = format!("the request {}: {what}", path.display());
        Failure::new(Reason::InputMismatch, what)
    };
    let mut given = tensors_by_name(file).map_err(|e| {
        refused(format!(
            "{}; write it with safetensors.torch.save_file({{{}}}, \"request.safetensors\")",
            with_causes(&e),
            example(specs),
        ))
    })?;
    let mut inputs = Vec::with_capacity(specs.len());
    for spec in specs {
        let tensor = given.remove(&spec.name);
        let tensor = tensor.ok_or_else(|| refused(format!("it has no tensor `{}`", spec.name)))?;
        let tensor = match spec.file_bytes() {
            // The bytes of a file alone are one row.
            Some(most) if tensor.shape.len() == 1 => {
                files_in_rows(&[&tensor.data], most).map_err(|e| refused(e.to_string()))?
            }
            _ => tensor,
        };
        inputs.push(tensor);
    }
    match given.keys().next() {
        Some(name) => Err(refused(format!(
            "`{name}` is no input of the model, which takes {{{}}}",
            example(specs)
        ))),
        None => Ok(inputs),
    }
}

/// `"ids": …, "mask": …`
fn example(specs: &[ValueSpec]) -> String {
    let names: Vec<String> = specs.iter().map(|s| format!("\"{}\": …", s.name)).collect();
    names.join(", ")
}

/// The outputs of one block, and its time in seconds.
fn forward(
    dir: &Path,
    ordinal: usize,
    block: &Block,
    takes: &[ValueSpec],
    values: &[Tensor],
) -> Result<(Vec<Tensor>, f64), Failure> {
    let path = dir.join(block.file_name());
    let broken = |what: String| {
        let what = format!("block {ordinal} ({}): {what}", path.display());
        Failure::new(Reason::InvalidModel, what)
    };
    let file = fs::read(&path).map_err(|e| broken(e.to_string()))?;
    if Digest::of(&file) != block.digest {
        return Err(broken(
            "its content is not what its name says: prepare the model again".into(),
        ));
    }
    drop(file);
    let mismatch = |e: &dyn Error| {
        let what = format!("block {ordinal}: {}", with_causes(e));
        Failure::new(Reason::InputMismatch, what)
    };
    if let Some(ahead) = scan_block(&path).map_err(|e| Failure::from(&e))? {
        let begin = Instant::now();
        let given = prepared(&ahead, values).map_err(|e| mismatch(&e))?;
        return Ok((given, begin.elapsed().as_secs_f64()));
    }
    let options = LoadOptions {
        threads: 1,
        lanes: 1,
        optimize: false,
        warmup_runs: 0,
    };
    let loaded = Slice::load(std::slice::from_ref(&path), takes, &options);
    let (slice, _) = loaded.map_err(|e| broken(with_causes(&e)))?;
    let begin = Instant::now();
    let given = slice.run(values).map_err(|e| mismatch(&e))?;
    Ok((given, begin.elapsed().as_secs_f64()))
}

fn expected(
    args: &RunBlocksArgs,
    manifest: &Manifest,
    question: Question,
) -> Result<(Against, Option<Vec<Tensor>>), Failure> {
    let Some(path) = &args.whole else {
        let against = question
            .answer
            .as_ref()
            .map_or(Against::Nothing, |_| Against::Probe);
        return Ok((against, question.answer));
    };
    scan(path).map_err(|e| Failure::from(&e))?;
    let inputs = question.taken.unwrap_or(question.inputs);
    let answer = untouched_answer(path, &inputs, &manifest.arguments)
        .map_err(|e| Failure::new(Reason::PrepareFailed, with_causes(&e)))?;
    Ok((Against::Whole, Some(answer)))
}

fn outputs(manifest: &Manifest, got: &[Tensor], expected: Option<&[Tensor]>) -> Vec<RanOutput> {
    let compared = |(place, value): (usize, ValueSpec)| RanOutput {
        verdict: expected.map(|expected| verdict(expected.get(place), got.get(place))),
        value,
    };
    let values = as_they_are(&manifest.outputs, got).into_iter();
    values.enumerate().map(compared).collect()
}

fn verdict(expected: Option<&Tensor>, got: Option<&Tensor>) -> Verdict {
    match (expected, got) {
        (Some(expected), Some(got)) if expected == got => Verdict::Equal,
        (Some(expected), Some(got)) => Verdict::Differs {
            max_abs_diff: largest_difference(expected, got),
        },
        _ => Verdict::Differs { max_abs_diff: None },
    }
}

/// `specs` with the shapes of `tensors`.
fn as_they_are(specs: &[ValueSpec], tensors: &[Tensor]) -> Vec<ValueSpec> {
    let pairs = specs.iter().zip(tensors);
    let as_it_is = |(spec, tensor): (&ValueSpec, &Tensor)| ValueSpec {
        name: spec.name.clone(),
        datatype: tensor.datatype,
        shape: tensor.shape.clone(),
        sizes: Vec::new(),
    };
    pairs.map(as_it_is).collect()
}

fn write_line(line: &RunLine) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::DataType;

    fn tensor(shape: &[i64], values: &[f32]) -> Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor {
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            data: bytes.into(),
        }
    }

    #[test]
    fn a_difference_has_a_size_where_there_is_one() {
        let (one, two) = (tensor(&[2], &[1.0, 2.0]), tensor(&[2], &[1.0, 2.5]));
        assert_eq!(verdict(Some(&one), Some(&one)), Verdict::Equal);
        let differs = |max_abs_diff| Verdict::Differs { max_abs_diff };
        assert_eq!(verdict(Some(&one), Some(&two)), differs(Some(0.5)));
        let other = tensor(&[1, 2], &[1.0, 2.0]);
        assert_eq!(verdict(Some(&one), Some(&other)), differs(None));
        assert_eq!(verdict(Some(&one), None), differs(None));
        let not_a_number = tensor(&[2], &[f32::NAN, 2.0]);
        assert_eq!(verdict(Some(&one), Some(&not_a_number)), differs(None));
    }

    #[test]
    fn a_request_has_each_input_and_nothing_else() {
        let spec = |name: &str| ValueSpec {
            name: name.into(),
            datatype: DataType::Fp32,
            shape: vec![-1],
            sizes: Vec::new(),
        };
        let probe = Probe {
            inputs: vec![tensor(&[1], &[1.0]), tensor(&[1], &[2.0])],
            outputs: Vec::new(),
        };
        let file = probe.to_bytes().unwrap();
        let path = Path::new("r.safetensors");
        let both = [spec("input.1"), spec("input.0")];
        let read = inputs(&file, &both, path).unwrap();
        assert_eq!(read, [tensor(&[1], &[2.0]), tensor(&[1], &[1.0])]);
        let no_request: &[u8] = b"PK";
        let save = "safetensors.torch.save_file({\"input.1\": …, \"input.0\": …}";
        for (file, specs, about) in [
            (&file[..], &both[..1], "`input.0` is no input"),
            (&file[..], &[spec("x")][..], "it has no tensor `x`"),
            (no_request, &both[..], save),
        ] {
            let failure = inputs(file, specs, path).unwrap_err();
            assert_eq!(failure.reason, Reason::InputMismatch);
            assert!(failure.message.contains(about), "{failure}");
        }
    }
}

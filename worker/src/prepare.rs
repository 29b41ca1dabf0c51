//! Preparing: from one untrusted file to blocks and a manifest.

use crate::ahead::Images;
use crate::cell::be_expendable;
use clap::Args;
use lamina_model::{
    Declared, Divided, InputSpec, Manifest, SAMPLES_BYTES, Tensor, divided, samples,
};
use lamina_sandbox::lock::{Cell, Limits};
use lamina_torchscript::{
    PrepareError, PrepareOptions, Progress, prepare, reference_speed, set_threads,
};
use lamina_worker_link::cell::{CellError, check_paths, enter, real_path, scan};
use lamina_worker_link::prepare::{Failure, Line, Reason, Step, StepName};
use lamina_worker_link::with_causes;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

const TIMING_RUNS: u32 = 10;
const PROFILE_BUDGET: Duration = Duration::from_secs(30);
const BENCHMARK_BUDGET: Duration = Duration::from_millis(500);
/// The same model gives the same probe on every host.
const SEED: u64 = 1;

/// The agent's arguments.
#[derive(Debug, Clone, Args)]
pub(crate) struct PrepareArgs {
    /// The model.
    file: PathBuf,
    /// Folder for the blocks and the probe.
    #[arg(long)]
    out: PathBuf,
    /// Its inputs and fixed arguments, a JSON list of lamina-model's Declared.
    #[arg(long, value_parser = parse_inputs)]
    inputs: Inputs,
    /// The user's own requests.
    #[arg(long)]
    samples: Option<PathBuf>,
    /// Memory limit in bytes.
    #[arg(long)]
    memory_limit: u64,
    /// CPU time limit in seconds.
    #[arg(long)]
    cpu_limit: u64,
    /// Size limit of the largest written file.
    #[arg(long)]
    file_limit: u64,
    /// Continue if the kernel lacks the sandbox.
    #[arg(long)]
    allow_unsandboxed: bool,
}

#[derive(Debug, Clone)]
struct Inputs(Vec<Declared>);

fn parse_inputs(text: &str) -> Result<Inputs, serde_json::Error> {
    serde_json::from_str(text).map(Inputs)
}

/// Prepares and reports progress.
pub(crate) fn run(args: &PrepareArgs) -> bool {
    be_expendable();
    let (line, is_done) = match prepare_file(args) {
        Ok(manifest) => (Line::Manifest(Box::new(manifest)), true),
        Err(failure) => (Line::Error(failure), false),
    };
    write_line(&line).is_ok() && is_done
}

fn prepare_file(args: &PrepareArgs) -> Result<Manifest, Failure> {
    // Before anything else: later steps may start threads.
    let missing = cell(args)
        .and_then(|cell| Ok(enter(&cell, args.allow_unsandboxed)?))
        .and_then(|missing| scan(&args.file).map(|()| missing));
    for missing in missing.map_err(|e| Failure::from(&e))? {
        say(&Line::Warning(format!(
            "the model is opened with {missing} on this host"
        )));
    }
    let Divided {
        inputs,
        images,
        fixed,
    } = divided(args.inputs.0.clone());
    let mut images = Images::declared(images)?;
    let (samples, known) = match &args.samples {
        Some(path) => {
            let samples = read_samples(path, &images.sampled(&inputs))?;
            (images.of_samples(samples)?, BTreeMap::new())
        }
        None => (Vec::new(), images.made()?),
    };
    set_threads(1);
    let options = PrepareOptions {
        inputs,
        fixed,
        samples,
        known,
        timing_runs: TIMING_RUNS,
        profile_budget: PROFILE_BUDGET,
        prepared_gflops: reference_speed(BENCHMARK_BUDGET).peak_gflops,
        seed: SEED,
    };
    let mut progress = |progress: Progress| say(&Line::Progress(step(progress)));
    let prepared = prepare(&args.file, &args.out, &options, &mut progress);
    images.put_ahead(prepared.map_err(|e| failure(&e))?, &args.out)
}

/// The file is untrusted: read no more than the size limit.
fn read_samples(path: &Path, inputs: &[InputSpec]) -> Result<Vec<Vec<Tensor>>, Failure> {
    let said = |reason, what: &dyn Display| {
        Failure::new(reason, format!("the samples {}: {what}", path.display()))
    };
    let mut file = Vec::new();
    let bounded = File::open(path).map(|file| file.take(SAMPLES_BYTES + 1));
    bounded
        .and_then(|mut bounded| bounded.read_to_end(&mut file))
        .map_err(|e| said(Reason::PrepareFailed, &e))?;
    samples(&file, inputs).map_err(|e| said(Reason::InputMismatch, &e))
}

fn cell(args: &PrepareArgs) -> Result<Cell, CellError> {
    check_paths(&args.file, &args.out)?;
    let read = std::iter::once(&args.file).chain(&args.samples);
    Ok(Cell {
        read: read.map(|path| real_path(path)).collect::<Result<_, _>>()?,
        write: Some(real_path(&args.out)?),
        limits: Limits {
            memory_bytes: args.memory_limit,
            cpu: Some(Duration::from_secs(args.cpu_limit)),
            file_bytes: args.file_limit,
        },
    })
}

fn step(progress: Progress) -> Step {
    let (step, done, total) = match progress {
        Progress::Loading => (StepName::Slicing, 0, 0),
        Progress::Slicing { done, total } => (StepName::Slicing, done, total),
        Progress::Checking { done, total } => (StepName::Checking, done, total),
        Progress::Profiling { done, total } => (StepName::Profiling, done, total),
    };
    Step {
        step,
        done: done.into(),
        total: total.into(),
    }
}

fn failure(error: &PrepareError) -> Failure {
    let (reason, retryable) = match error {
        PrepareError::NotTorchScript { .. }
        | PrepareError::Unsupported { .. }
        | PrepareError::Metadata { .. } => (Reason::InvalidModel, false),
        PrepareError::InputMismatch { .. } => (Reason::InputMismatch, false),
        PrepareError::Unequal { .. } | PrepareError::Torch { .. } => (Reason::PrepareFailed, false),
        PrepareError::DiskFull { .. } | PrepareError::Io { .. } => (Reason::PrepareFailed, true),
    };
    Failure {
        reason,
        message: with_causes(error),
        retryable,
    }
}

/// Writes a line, if anybody is there to read it.
fn say(line: &Line) {
    if write_line(line).is_err() {
        std::process::exit(1);
    }
}

fn write_line(line: &Line) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

//! `lamina-node-agent prepare`.

use super::cell::{enter, naming_memory};
use super::table::table;
use super::{CellArgs, Failure, Line, Step, parse_input};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lamina_model::{InputSpec, Manifest};
use lamina_torchscript::{PrepareOptions, prepare, reference_speed, set_threads};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const TIMING_RUNS: u32 = 10;
const PROFILE_BUDGET: Duration = Duration::from_secs(30);
const BENCHMARK_BUDGET: Duration = Duration::from_millis(500);
/// The same model gives the same probe on every host.
const SEED: u64 = 1;

/// Slices a TorchScript model into blocks and profiles them. The process locks
/// itself up before it opens the model.
#[derive(Debug, Clone, Args)]
pub struct PrepareArgs {
    /// The model, exported with torch.jit.save.
    pub file: PathBuf,
    /// An input as NAME:DATATYPE:SHAPE[:MIN:MAX], such as
    /// image:FP32:-1x3x224x224; once for each, in the order of forward.
    #[arg(long = "input", value_parser = parse_input, required = true)]
    pub inputs: Vec<InputSpec>,
    /// Folder for the blocks and the probe.
    #[arg(long)]
    pub out: PathBuf,
    /// Progress and the manifest as JSON lines on standard output.
    #[arg(long)]
    pub json: bool,
    /// The cell.
    #[command(flatten)]
    pub cell: CellArgs,
}

/// Runs the command to its end.
pub fn run(args: &PrepareArgs) -> ExitCode {
    let is_done = if args.json {
        run_json(args)
    } else {
        run_for_people(args)
    };
    if is_done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_json(args: &PrepareArgs) -> bool {
    // An untrusted model that takes all memory should die alone. Raising the
    // score needs no right; where it fails, nothing is lost.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let say = |line: &Line| {
        if write_line(line).is_err() {
            // Nobody reads: the agent that started this is gone.
            std::process::exit(1);
        }
    };
    let outcome = prepare_file(
        args,
        &mut |warning| say(&Line::Warning(warning)),
        &mut |s| {
            say(&Line::Progress(s));
        },
    );
    let (line, is_done) = match outcome {
        Ok(manifest) => (Line::Manifest(Box::new(manifest)), true),
        Err(failure) => (Line::Error(failure), false),
    };
    write_line(&line).is_ok() && is_done
}

fn run_for_people(args: &PrepareArgs) -> bool {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg:10} {bar:30} {pos}/{len} {elapsed}") {
        bar.set_style(style);
    }
    let mut warn = |warning: String| bar.println(format!("warning: {warning}"));
    let outcome = prepare_file(args, &mut warn, &mut |step| {
        bar.set_message(step.step.as_str());
        bar.set_length(step.total);
        bar.set_position(step.done);
    });
    bar.finish_and_clear();
    let written = match &outcome {
        Ok(manifest) => write!(io::stdout(), "{}", table(manifest)),
        Err(failure) => writeln!(io::stderr(), "error: {failure}"),
    };
    outcome.is_ok() && written.is_ok()
}

fn prepare_file(
    args: &PrepareArgs,
    warn: &mut dyn FnMut(String),
    progress: &mut dyn FnMut(Step),
) -> Result<Manifest, Failure> {
    // Before anything else: what comes after may start threads.
    let memory_bytes = args.cell.memory_bytes();
    let missing = enter(&args.cell, memory_bytes, &args.file, &args.out);
    for missing in missing.map_err(|e| Failure::from(&e))? {
        warn(format!("the model is opened with {missing} on this host"));
    }
    set_threads(1);
    let options = PrepareOptions {
        inputs: args.inputs.clone(),
        timing_runs: TIMING_RUNS,
        profile_budget: PROFILE_BUDGET,
        prepared_gflops: reference_speed(BENCHMARK_BUDGET).peak_gflops,
        seed: SEED,
    };
    prepare(&args.file, &args.out, &options, &mut |p| progress(p.into()))
        .map_err(|e| naming_memory(Failure::from(&e), memory_bytes))
}

fn write_line(line: &Line) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

//! `lamina-node-agent prepare`.

use super::table::table;
use super::{Failure, Line, Step, parse_input};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lamina_model::{InputSpec, Manifest};
use lamina_torchscript::{PrepareError, PrepareOptions, prepare, reference_speed, set_threads};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const TIMING_RUNS: u32 = 10;
const PROFILE_BUDGET: Duration = Duration::from_secs(30);
const BENCHMARK_BUDGET: Duration = Duration::from_millis(500);
/// The same model gives the same probe on every host.
const SEED: u64 = 1;

/// Slices a TorchScript model into blocks and profiles them.
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
    let outcome = prepare_file(args, &mut |step| {
        if write_line(&Line::Progress(step)).is_err() {
            // Nobody reads: the agent that started this is gone.
            std::process::exit(1);
        }
    });
    let (line, is_done) = match outcome {
        Ok(manifest) => (Line::Manifest(Box::new(manifest)), true),
        Err(error) => (Line::Error(Failure::from(&error)), false),
    };
    write_line(&line).is_ok() && is_done
}

fn run_for_people(args: &PrepareArgs) -> bool {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg:10} {bar:30} {pos}/{len} {elapsed}") {
        bar.set_style(style);
    }
    let outcome = prepare_file(args, &mut |step| {
        bar.set_message(step.step.as_str());
        bar.set_length(step.total);
        bar.set_position(step.done);
    });
    bar.finish_and_clear();
    let written = match &outcome {
        Ok(manifest) => write!(io::stdout(), "{}", table(manifest)),
        Err(error) => writeln!(io::stderr(), "error: {}", Failure::from(error)),
    };
    outcome.is_ok() && written.is_ok()
}

fn prepare_file(
    args: &PrepareArgs,
    progress: &mut dyn FnMut(Step),
) -> Result<Manifest, PrepareError> {
    set_threads(1);
    let options = PrepareOptions {
        inputs: args.inputs.clone(),
        timing_runs: TIMING_RUNS,
        profile_budget: PROFILE_BUDGET,
        prepared_gflops: reference_speed(BENCHMARK_BUDGET).peak_gflops,
        seed: SEED,
    };
    prepare(&args.file, &args.out, &options, &mut |p| progress(p.into()))
}

fn write_line(line: &Line) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

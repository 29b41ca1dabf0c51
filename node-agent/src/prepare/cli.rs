//! `lamina-node-agent prepare`.

use super::child::Asked;
use super::input::{name_by_place, parse_argument, parse_declared};
use super::lines::Told;
use super::table::table;
use super::{Failure, LimitArgs, Line, Program, Reason};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lamina_model::{Declared, FixedArgument, Manifest};
use lamina_worker_link::blocks::MANIFEST_FILE;
use lamina_worker_link::cell::{CellError, check_paths};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// Slices a TorchScript model into blocks and profiles them, in a process that
/// sandboxes itself before it opens the model.
#[derive(Debug, Clone, Args)]
pub struct PrepareArgs {
    /// The model, exported with torch.jit.save.
    pub file: PathBuf,
    /// An input as `NAME:DATATYPE:SHAPE[:MIN:MAX]`, such as `image:FP32:-1x3x224x224`, where
    /// -1 is any batch, or as a shape alone, 1x3x224x224, which is FP32; once for each, in
    /// the order of forward. Another free dimension is `NAME:MIN..MAX[/STEP][@TYPICAL]`, as
    /// in `ids:INT64:-1xseq:1..512:0:30521`. A JPEG or PNG that becomes such an input is
    /// `NAME:BYTES:-1:STEPS`, with steps in JSON as in `spec.inputs[].image`.
    #[arg(
        long = "input",
        value_name = "INPUT",
        value_parser = parse_declared,
        allow_hyphen_values = true,
        required = true
    )]
    pub inputs: Vec<Declared>,
    /// An argument of forward that is the same for every request, such as `sr=16000`: a
    /// number, true or false, none, or a text; once for each.
    #[arg(long = "argument", value_name = "NAME=VALUE", value_parser = parse_argument)]
    pub arguments: Vec<FixedArgument>,
    /// A safetensors file with 2 to 16 of your own requests, `0.NAME`, `1.NAME`, … for each
    /// input, as written by `lamina.samples`; used in addition to random ones where a range
    /// cannot describe the inputs.
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// Folder for the blocks, the probe and manifest.json, which `run-blocks` reads.
    #[arg(long)]
    pub out: PathBuf,
    /// Progress and the manifest as JSON lines on standard output.
    #[arg(long)]
    pub json: bool,
    /// The cell.
    #[command(flatten)]
    pub cell: LimitArgs,
}

/// Runs the command to its end.
pub fn run(args: &PrepareArgs) -> ExitCode {
    let is_done = if args.json {
        run_for_programs(args)
    } else {
        run_for_people(args)
    };
    if is_done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_for_programs(args: &PrepareArgs) -> bool {
    end(in_child(args, &mut |told| say(&told.into())))
}

/// Writes a line, if anybody is there to read it.
fn say(line: &Line) {
    if write_line(line).is_err() {
        std::process::exit(1);
    }
}

/// Writes the last line.
fn end(outcome: Result<Manifest, Failure>) -> bool {
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
    let outcome = in_child(args, &mut |told| match told {
        Told::Warning(warning) => bar.println(format!("warning: {warning}")),
        Told::Step(step) => {
            bar.set_message(step.step.as_str());
            bar.set_length(step.total);
            bar.set_position(step.done);
        }
    });
    bar.finish_and_clear();
    let written = match &outcome {
        Ok(manifest) => write!(io::stdout(), "{}", table(manifest)),
        Err(failure) => writeln!(io::stderr(), "error: {failure}"),
    };
    outcome.is_ok() && written.is_ok()
}

/// As agents do: a process that is killed or crashes cannot report it itself.
fn in_child(args: &PrepareArgs, told: &mut (dyn FnMut(Told) + Send)) -> Result<Manifest, Failure> {
    check_paths(&args.file, &args.out).map_err(|e| Failure::from(&e))?;
    let unusable = |source: io::Error| {
        Failure::from(&CellError::Path {
            path: args.out.clone(),
            source,
        })
    };
    // Its own folder: other files in `--out` are not the model's, and a failure leaves nothing
    // behind.
    let own = tempfile::Builder::new()
        .prefix("preparing-")
        .tempdir_in(&args.out)
        .map_err(unusable)?;
    let failed = |e: io::Error| {
        Failure::retryable(
            Reason::PrepareFailed,
            format!("cannot start a process: {e}"),
        )
    };
    let program = Program::worker(args.cell.clone()).map_err(failed)?;
    let inputs = name_by_place(args.inputs.clone()).into_iter();
    let fixed = args.arguments.iter().cloned().map(Declared::Fixed);
    let inputs: Vec<Declared> = inputs.chain(fixed).collect();
    let asked = Asked {
        inputs: &inputs,
        samples: args.samples.as_deref(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let interrupt = CancellationToken::new();
    let manifest = runtime.block_on(async {
        let interrupted = interrupt.clone();
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupted.cancel();
            }
        });
        program
            .run(&args.file, &asked, own.path(), told, &interrupt)
            .await
            .unwrap_or_else(|| Err(Failure::retryable(Reason::PrepareFailed, "interrupted")))
    })?;
    write_manifest(&manifest, own.path()).map_err(unusable)?;
    move_files(own.path(), &args.out).map_err(unusable)?;
    Ok(manifest)
}

/// For people, and for `run-blocks`.
fn write_manifest(manifest: &Manifest, dir: &Path) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(manifest)?;
    json.push(b'\n');
    fs::write(dir.join(MANIFEST_FILE), json)
}

fn move_files(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::rename(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn write_line(line: &Line) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

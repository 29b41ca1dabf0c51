//! `lamina-node-agent run-blocks`: runs the blocks of a prepared folder on one request, to
//! check that they compute what the whole model does.

use super::child::{LINE_BYTES, read_tail};
use super::{Failure, LimitArgs, Reason};
use crate::worker;
use clap::Args;
use lamina_model::ValueSpec;
use lamina_worker_link::blocks::{Against, Ran, RunLine, Verdict};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

/// Factor on the CPU limit: a host's share may be small.
const WALL_OVER_CPU: u32 = 3;

/// Runs the blocks that `prepare --out` wrote, in order, on one request, and compares
/// their outputs. The exit code is 0 if nothing differs.
#[derive(Debug, Clone, Args)]
pub struct RunBlocksArgs {
    /// The folder with the blocks and manifest.json.
    pub dir: PathBuf,
    /// A request: a safetensors file with a tensor for each input under its name. By default
    /// the probe that preparing wrote, whose answer is known.
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// The original model; its answer must match bit for bit.
    #[arg(long, value_name = "MODEL.pt")]
    pub whole: Option<PathBuf>,
    /// Print the result as one JSON object on standard output.
    #[arg(long)]
    pub json: bool,
    /// The cell.
    #[command(flatten)]
    pub cell: LimitArgs,
}

/// Runs the command to its end.
pub fn run_blocks(args: &RunBlocksArgs) -> ExitCode {
    let outcome = in_child(args);
    let is_right = outcome.as_ref().is_ok_and(Ran::is_right);
    if tell(args, outcome).is_ok() && is_right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn tell(args: &RunBlocksArgs, outcome: Result<Ran, Failure>) -> io::Result<()> {
    match outcome {
        outcome if args.json => {
            let line = outcome.map_or_else(RunLine::Error, RunLine::Ran);
            let mut out = io::stdout().lock();
            serde_json::to_writer(&mut out, &line)?;
            writeln!(out)
        }
        Ok(ran) => write!(io::stdout(), "{}", text(&ran)),
        Err(failure) => writeln!(io::stderr(), "error: {failure}"),
    }
}

/// Blocks come from a model, and so does the code in them.
fn in_child(args: &RunBlocksArgs) -> Result<Ran, Failure> {
    let failed = |e: io::Error| failed(&format!("cannot start a process: {e}"));
    let memory_bytes = args.cell.memory_bytes()?;
    let mut command = command(args, memory_bytes).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let limit = Duration::from_secs(args.cell.cpu_limit).saturating_mul(WALL_OVER_CPU);
    runtime.block_on(async {
        let mut child = command.spawn().map_err(failed)?;
        // Killed with its handle if this is interrupted or takes too long.
        tokio::select! {
            said = listen(&mut child) => said.map_err(failed)?,
            () = tokio::time::sleep(limit) => {
                Err(self::failed(&format!("running the blocks takes longer than {} s", limit.as_secs())))
            }
            _ = tokio::signal::ctrl_c() => Err(self::failed("interrupted")),
        }
    })
}

fn command(args: &RunBlocksArgs, memory_bytes: u64) -> io::Result<Command> {
    let mut command = worker::command(&worker::program()?, 1);
    command.arg("run-blocks").arg(&args.dir);
    for (name, path) in [("--input", &args.input), ("--whole", &args.whole)] {
        if let Some(path) = path {
            command.arg(name).arg(path);
        }
    }
    command.args(args.cell.arguments(memory_bytes));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

/// The child's output until it ends.
async fn listen(child: &mut Child) -> io::Result<Result<Ran, Failure>> {
    let pipe = || io::Error::other("it has no pipe");
    let stdout = child.stdout.take().ok_or_else(pipe)?;
    let stderr = child.stderr.take().ok_or_else(pipe)?;
    let mut said = Vec::new();
    let mut bounded = stdout.take(LINE_BYTES);
    let (read, errors) = tokio::join!(bounded.read_to_end(&mut said), read_tail(stderr));
    read?;
    let errors = errors?;
    let status = child.wait().await?;
    let last = errors.lines().rev().find(|l| !l.trim().is_empty());
    let died = || match last {
        Some(last) => failed(&format!(
            "the process crashed ({status}); it said: {}",
            last.trim()
        )),
        None => failed(&format!("the process crashed ({status})")),
    };
    Ok(outcome(&said).unwrap_or_else(|| Err(died())))
}

/// The outcome among the lines; unknown lines come from libtorch or a block.
fn outcome(said: &[u8]) -> Option<Result<Ran, Failure>> {
    let mut outcome = None;
    for line in said.split(|&b| b == b'\n') {
        match serde_json::from_slice(line) {
            Ok(RunLine::Warning(warning)) => {
                // If this fails, nobody reads it.
                let _ = writeln!(io::stderr(), "warning: {warning}");
            }
            Ok(RunLine::Ran(ran)) => outcome = Some(Ok(ran)),
            Ok(RunLine::Error(failure)) => outcome = Some(Err(failure)),
            Err(_) => {}
        }
    }
    outcome
}

fn failed(what: &str) -> Failure {
    Failure::retryable(
        Reason::PrepareFailed,
        format!("the blocks were not run: {what}"),
    )
}

/// One line for each block and each output, and a summary.
fn text(ran: &Ran) -> String {
    let mut text = String::new();
    for (ordinal, block) in ran.blocks.iter().enumerate() {
        let gives: Vec<String> = block.outputs.iter().map(value).collect();
        let ms = block.seconds * 1e3;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "block {ordinal:>3}  {ms:>9.2} ms  {}",
            gives.join(", ")
        );
    }
    for output in &ran.outputs {
        let compared = match output.verdict {
            None => String::new(),
            Some(Verdict::Equal) => ": equal, bit for bit".into(),
            Some(Verdict::Differs {
                max_abs_diff: Some(by),
            }) => format!(": DIFFERS by {by:e}"),
            Some(Verdict::Differs { max_abs_diff: None }) => {
                ": DIFFERS in its shape, its type, or where one is no number".into()
            }
        };
        let _ = writeln!(text, "output {}{compared}", value(&output.value));
    }
    let _ = writeln!(text, "{}", summary(ran));
    text
}

fn summary(ran: &Ran) -> String {
    let blocks = ran.blocks.len();
    let beside = match ran.against {
        Against::Nothing => return format!("{blocks} blocks; give --whole MODEL.pt to compare"),
        Against::Probe => "the whole model gave when it was prepared",
        Against::Whole => "the whole model gives",
    };
    let verb = if ran.is_right() {
        "give"
    } else {
        "DO NOT give"
    };
    format!("{blocks} blocks {verb} what {beside}")
}

/// `logits FP32 1x1000`
fn value(value: &ValueSpec) -> String {
    let sizes: Vec<String> = value.shape.iter().map(ToString::to_string).collect();
    format!("{} {} {}", value.name, value.datatype, sizes.join("x"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::{DataType, Digest};
    use lamina_worker_link::blocks::{RanBlock, RanOutput};

    fn ran(against: Against, verdict: Option<Verdict>) -> Ran {
        let value = ValueSpec {
            name: "logits".into(),
            datatype: DataType::Fp32,
            shape: vec![1, 10],
            sizes: Vec::new(),
        };
        Ran {
            blocks: vec![RanBlock {
                digest: Digest::of(b"block"),
                seconds: 0.0012,
                outputs: vec![value.clone()],
            }],
            against,
            outputs: vec![RanOutput { value, verdict }],
        }
    }

    #[test]
    fn people_read_whether_it_is_right() {
        let right = ran(Against::Whole, Some(Verdict::Equal));
        assert_eq!(
            text(&right),
            "block   0       1.20 ms  logits FP32 1x10\n\
             output logits FP32 1x10: equal, bit for bit\n\
             1 blocks give what the whole model gives\n"
        );
        let max_abs_diff = Some(0.5);
        let wrong = text(&ran(
            Against::Probe,
            Some(Verdict::Differs { max_abs_diff }),
        ));
        assert!(wrong.contains("1x10: DIFFERS by 5e-1\n"), "{wrong}");
        assert!(
            wrong.ends_with("blocks DO NOT give what the whole model gave when it was prepared\n")
        );
        assert!(text(&ran(Against::Nothing, None)).ends_with("give --whole MODEL.pt to compare\n"));
    }

    #[test]
    fn the_outcome_is_found_among_what_else_is_said() {
        let right = ran(Against::Whole, Some(Verdict::Equal));
        let line = serde_json::to_string(&RunLine::Ran(right.clone())).unwrap();
        let said = format!("[W shape.cpp] something\n{line}\n");
        assert_eq!(outcome(said.as_bytes()), Some(Ok(right)));
        assert_eq!(outcome(b"nothing of ours\n"), None);
    }
}

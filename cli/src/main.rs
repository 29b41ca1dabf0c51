//! `kubectl lamina`.

use clap::Parser;
use console::Term;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use kubectl_lamina::Dress;
use kubectl_lamina::args::{Cli, Command, JoinArgs, PlanArgs};
use kubectl_lamina::join::join;
use kubectl_lamina::plan::{Extras, plan};
use kubectl_lamina::question;
use kubectl_lamina::render::render;
use kubectl_lamina::report::{Outcome, Report};
use lamina_placement::Ctx;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

const NO_PLACEMENT: u8 = 1;
const BAD_INPUT: u8 = 2;
/// As shells report a process ended by Ctrl-C.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Plan(args) => run(&args),
        Command::Join(args) => let_join(&args),
    };
    match done {
        Ok(code) => code,
        Err(message) => {
            // If nobody reads it, nothing is lost.
            let _ = writeln!(io::stderr(), "error: {message}");
            ExitCode::from(BAD_INPUT)
        }
    }
}

fn run(args: &PlanArgs) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let question = question::read(args)?;
    let ctx = Ctx::unlimited();
    cancel_on_interrupt(&ctx)?;
    let extras = Extras {
        explain: args.explain,
        what_if: args.what_if.clone(),
        regions: args.regions.clone(),
    };
    let spinner = spinner();
    let report = plan(&question, &extras, &ctx, &mut |what| {
        spinner.set_message(what.to_owned());
    });
    spinner.finish_and_clear();
    let report = report?;
    print(&report, args.json)?;
    Ok(match report.outcome {
        Outcome::Found => ExitCode::SUCCESS,
        Outcome::Infeasible | Outcome::Unknown => ExitCode::from(NO_PLACEMENT),
    })
}

fn let_join(args: &JoinArgs) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let file = match join(args, Timestamp::now()) {
        Ok(file) => file,
        // Its causes, one after the other.
        Err(error) => {
            let causes =
                std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
            let said: Vec<String> = causes.map(ToString::to_string).collect();
            return Err(said.join(": ").into());
        }
    };
    let file = file.display();
    writeln!(
        io::stdout(),
        "ComputeNode {} is made, and {file} written. Its token is good once, within {:#}: take it to the machine, and start there\n  lamina-node-agent run --join {file}",
        args.name,
        args.valid
    )?;
    Ok(ExitCode::SUCCESS)
}

/// The first Ctrl-C ends the search, the second one the process.
fn cancel_on_interrupt(ctx: &Ctx) -> Result<(), ctrlc::Error> {
    let cancelled = ctx.cancel_handle();
    ctrlc::set_handler(move || {
        if cancelled.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
    })
}

/// Visible only on a terminal.
fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} solving: {msg} {elapsed}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn print(report: &Report, json: bool) -> Result<(), Box<dyn std::error::Error>> {
    let text = if json {
        serde_json::to_string_pretty(report)? + "\n"
    } else {
        let terminal = Term::stdout();
        let width = terminal.size_checked().map(|(_, columns)| columns.into());
        let dress = Dress {
            colour: console::colors_enabled(),
            width: width.filter(|_| terminal.is_term()),
        };
        render(report, &dress)
    };
    match io::stdout().write_all(text.as_bytes()) {
        // `| head` has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

//! The command line in this process, without output that changes from run to run.

use clap::Parser;
use kubectl_lamina::args::{Cli, Command, PlanArgs};
use kubectl_lamina::plan::{Extras, plan};
use kubectl_lamina::question::{self, Refusal};
use kubectl_lamina::report::Report;
use lamina_placement::Ctx;

/// Options as one string, as a shell splits it.
pub(crate) fn args(options: &str) -> PlanArgs {
    let words = ["kubectl-lamina", "plan"].into_iter();
    let words = words.chain(options.split_whitespace());
    let Command::Plan(args) = Cli::try_parse_from(words).unwrap().command else {
        unreachable!("`plan` is a plan");
    };
    *args
}

/// The report, without times.
pub(crate) fn report(options: &str) -> Result<Report, Refusal> {
    let mut args = args(options);
    // A busy machine must not change an answer.
    args.deadline = "60min".to_owned();
    let question = question::read(&args)?;
    let extras = Extras {
        explain: args.explain,
        what_if: args.what_if,
        regions: args.regions,
    };
    let mut report = plan(&question, &extras, &Ctx::unlimited(), &mut |_| {})?;
    for row in &mut report.strategies {
        row.solve_seconds = 0.0;
    }
    Ok(report)
}

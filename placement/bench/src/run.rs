//! One solver on one instance, in its own process, so that its peak memory can
//! be measured.
//!
//! Times are of solving alone, the median of up to five runs within half a
//! second; preparation (drawing, building the program) is reported separately.
//! For ours it includes validating the problem and checking the answer.

use crate::instance::Instance;
use anyhow::{Context, Result, bail};
use lamina_placement::{
    Ctx, Parameters, SolveError, SolveOptions, Status, solve_checked, strategy,
};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const MOST_RUNS: usize = 5;
const ENOUGH: Duration = Duration::from_millis(500);

/// Result of a solver. The Python script prints the same.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Run {
    pub status: Outcome,
    /// Seconds of latency.
    pub objective: Option<f64>,
    pub bound: Option<f64>,
    pub solve_seconds: f64,
    pub build_seconds: f64,
    /// Columns of the program; 0 if there is none.
    pub columns: u64,
    /// Resident bytes before the solver starts, and at the peak.
    pub resident_bytes: u64,
    pub peak_bytes: u64,
    /// Hosts that compute.
    pub hosts: usize,
    /// The pass that settled it, or why there is no answer.
    pub note: String,
}

impl Run {
    /// No answer, for this reason.
    pub(crate) fn rejected(note: impl Into<String>) -> Self {
        Self {
            status: Outcome::Rejected,
            objective: None,
            bound: None,
            solve_seconds: 0.0,
            build_seconds: 0.0,
            columns: 0,
            resident_bytes: 0,
            peak_bytes: 0,
            hosts: 0,
            note: note.into(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Outcome {
    Optimal,
    Feasible,
    Infeasible,
    Unknown,
    /// Not for this solver, such as too large for its edition.
    Rejected,
}

impl Outcome {
    /// A proved verdict.
    pub(crate) const fn is_proved(self) -> bool {
        matches!(self, Self::Optimal | Self::Infeasible)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Optimal => "optimal",
            Self::Feasible => "feasible",
            Self::Infeasible => "infeasible",
            Self::Unknown => "unknown",
            Self::Rejected => "rejected",
        })
    }
}

/// One of our strategies, or a solver of the Python script with the form of its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Solver {
    Ours(&'static str),
    Script {
        name: &'static str,
        solver: &'static str,
        form: &'static str,
    },
}

pub(crate) const HIGHS: Solver = Solver::Script {
    name: "HiGHS",
    solver: "highs",
    form: "flow",
};
/// With a linearized product of two binaries per arc, like the published program.
pub(crate) const HIGHS_PRODUCTS: Solver = Solver::Script {
    name: "HiGHS, published form",
    solver: "highs",
    form: "products",
};
pub(crate) const CPLEX_FLOW: Solver = Solver::Script {
    name: "CPLEX CE",
    solver: "cplex",
    form: "flow",
};
/// With the products in the objective, which takes the fewest columns.
pub(crate) const CPLEX_QUADRATIC: Solver = Solver::Script {
    name: "CPLEX CE, quadratic",
    solver: "cplex",
    form: "quadratic",
};

impl Solver {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours("milp") => "milp (microlp)",
            Self::Ours(name) | Self::Script { name, .. } => name,
        }
    }

    const fn is_cplex(self) -> bool {
        matches!(self, Self::Script { solver, .. } if solver.as_bytes()[0] == b'c')
    }
}

/// Paths of solvers and files.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    python: PathBuf,
    script: PathBuf,
    work: PathBuf,
    /// Whether CPLEX imports.
    pub has_cplex: bool,
}

impl Field {
    /// `work` holds the instances as files.
    pub(crate) fn new(python: &Path, scripts: &Path, work: &Path) -> Result<Self> {
        fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
        let mut import = Command::new(python);
        import.args(["-c", "import cplex"]);
        let cplex = import.output().context("cannot start Python")?;
        Ok(Self {
            python: python.to_owned(),
            script: scripts.join("solve_milp.py"),
            work: work.to_owned(),
            has_cplex: cplex.status.success(),
        })
    }

    /// Versions of Python and of the scripts' imports.
    pub(crate) fn versions(&self) -> Result<String> {
        let ask = "import platform, importlib.metadata as m\n\
                   names = ['highspy', 'cplex', 'matplotlib']\n\
                   have = {d.metadata['Name'].lower() for d in m.distributions()}\n\
                   print(', '.join(['Python ' + platform.python_version()] + \
                   [n + ' ' + m.version(n) for n in names if n in have]))";
        let out = Command::new(&self.python).args(["-c", ask]).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// Runs a solver in a child process.
    pub(crate) fn run(&self, solver: Solver, instance: &Instance, limit: f64) -> Result<Run> {
        if solver.is_cplex() && !self.has_cplex {
            return Ok(Run::rejected("not installed"));
        }
        let mut child = match solver {
            Solver::Ours(strategy) => {
                let mut child = Command::new(std::env::current_exe()?);
                child.args(["solve", &instance.to_string(), strategy]);
                child
            }
            Solver::Script { solver, form, .. } => {
                let mut child = Command::new(&self.python);
                child.arg(&self.script).args([solver, form]);
                child.arg(self.file(instance)?);
                child
            }
        };
        let out = child.arg(limit.to_string()).output()?;
        let text = String::from_utf8_lossy(&out.stdout);
        if !out.status.success() {
            let errors = String::from_utf8_lossy(&out.stderr);
            bail!("{} failed on {instance}: {errors}", solver.name());
        }
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last)
            .with_context(|| format!("{} on {instance} answered `{last}`", solver.name()))
    }

    fn file(&self, instance: &Instance) -> Result<PathBuf> {
        let path = self.work.join(instance.file_name());
        let text = serde_json::to_string(&instance.problem()?)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// The child's part: solves and reports.
pub(crate) fn here(instance: &Instance, name: &str, limit: f64) -> Result<Run> {
    let start = Instant::now();
    let problem = instance.problem()?;
    let build_seconds = start.elapsed().as_secs_f64();
    let chosen = strategy(name, &Parameters::new())?;
    let options = SolveOptions {
        work_limit: None,
        ..SolveOptions::default()
    };
    let resident_bytes = status_bytes("VmRSS:");
    let mut times = Vec::new();
    let begin = Instant::now();
    let solution = loop {
        let start = Instant::now();
        let ctx = Ctx::until(start + Duration::from_secs_f64(limit));
        let solved = solve_checked(&problem, chosen.as_ref(), &options, &ctx);
        times.push(start.elapsed().as_secs_f64());
        let solution = match solved {
            Ok(solution) => solution,
            Err(SolveError::NotApplicable { reason, .. }) => return Ok(Run::rejected(reason)),
            Err(error) => return Err(error.into()),
        };
        if times.len() >= MOST_RUNS || begin.elapsed() >= ENOUGH {
            break solution;
        }
    };
    let certificate = solution.certificate;
    Ok(Run {
        status: match certificate.status {
            Status::Optimal => Outcome::Optimal,
            Status::Feasible => Outcome::Feasible,
            Status::Infeasible => Outcome::Infeasible,
            Status::Unknown => Outcome::Unknown,
        },
        objective: solution.metrics.as_ref().map(|m| m.objective),
        bound: certificate.lower_bound,
        solve_seconds: median(&mut times).unwrap_or_default(),
        build_seconds,
        columns: 0,
        resident_bytes,
        peak_bytes: status_bytes("VmHWM:"),
        hosts: solution.metrics.map_or(0, |m| m.nodes.len()),
        note: solution.stats.stage,
    })
}

/// The middle of some figures.
pub(crate) fn median(figures: &mut [f64]) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures.len().checked_sub(1)? / 2, figures.len() / 2);
    Some(f64::midpoint(figures[low], figures[high]))
}

/// A line of /proc/self/status in bytes; 0 if there is no such file.
fn status_bytes(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_tells_what_it_found() {
        let instance: Instance = "tight/synth5/5/1".parse().unwrap();
        let optimal = here(&instance, "optimal", 10.0).unwrap();
        let milp = here(&instance, "milp", 10.0).unwrap();
        assert_eq!(optimal.status, milp.status);
        assert!(optimal.peak_bytes >= optimal.resident_bytes);
        let refused = here(&instance, "edgent", 10.0).unwrap();
        assert_eq!(refused.status, Outcome::Rejected);
        assert!(!refused.note.is_empty());
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}

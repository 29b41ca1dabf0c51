//! Times strategies on device–edge–cloud worlds of growing size.
//!
//! `cargo run --release -p lamina-placement --example solve_times -- \
//!    [PROFILE.json,…|synthL,…] [real|tight|packed|jointK] [N,N,…] [worlds] \
//!    [seconds] [strategy,…] [latency|throughput|fairness|proportionalFairness]`
//!
//! A profile is `{"input_bytes": …, "blocks": [{"ms": …, "weight": …, "act": …,
//! "out": …}]}`: milliseconds on the reference host, bytes of weights and
//! activations, bytes given to the next block. `synthL` draws a deep network of
//! L blocks. `joint10` places ten workloads, each of one of the profiles. Under
//! an objective other than latency, each workload may be half as slow again as
//! in the fastest placement (found before, within the seconds, not timed).
//! Strategies take turns on each world, so that a busy machine slows all of
//! them. With `VERBOSE` set, every answer is a line; with `WRITE=DIR`, every
//! world is written there as JSON.

mod worlds;

use lamina_placement::{
    Ctx, Objective, Parameters, Problem, Solution, SolveError, SolveOptions, Status, solve_checked,
    strategy,
};
use std::error::Error;
use std::time::{Duration, Instant};
use worlds::{Profile, Regime, synthetic, world};

/// How much slower than the fastest a placement may be.
const SLOWDOWN: f64 = 1.5;

fn profile(name: &str) -> Result<Profile, Box<dyn Error>> {
    Ok(match name.strip_prefix("synth") {
        Some(blocks) => synthetic(blocks.parse()?),
        None => serde_json::from_str(&std::fs::read_to_string(name)?)?,
    })
}

fn regime(name: &str) -> Result<Regime, Box<dyn Error>> {
    Ok(match (name, name.strip_prefix("joint")) {
        ("real", _) => Regime::Real,
        ("tight", _) => Regime::Tight,
        ("packed", _) => Regime::Packed,
        (_, Some(workloads)) => Regime::Joint(workloads.parse::<usize>()?.max(1)),
        (other, _) => {
            return Err(format!("unknown regime `{other}`: real, tight, packed or jointK").into());
        }
    })
}

fn timed(problem: &Problem, name: &str, limit: Duration) -> Result<(Solution, f64), SolveError> {
    let chosen = strategy(name, &Parameters::new())?;
    let options = SolveOptions {
        work_limit: None,
        ..SolveOptions::default()
    };
    let start = Instant::now();
    let ctx = Ctx::until(start + limit);
    let solution = solve_checked(problem, chosen.as_ref(), &options, &ctx)?;
    Ok((solution, start.elapsed().as_secs_f64() * 1e3))
}

/// Asks for another objective, with a limit on each latency. False where
/// nothing can be placed.
fn ask_for(
    problem: &mut Problem,
    objective: &Objective,
    limit: Duration,
) -> Result<bool, SolveError> {
    if *objective == Objective::Latency {
        return Ok(true);
    }
    let (fastest, _) = timed(problem, "optimal", limit)?;
    let Some(metrics) = fastest.metrics else {
        return Ok(false);
    };
    for (workload, found) in problem.workloads.iter_mut().zip(&metrics.workloads) {
        workload.constraints.latency_limit_seconds = Some(SLOWDOWN * found.latency_seconds);
    }
    problem.objective = objective.clone();
    Ok(true)
}

/// How one strategy fared over all worlds of a size.
#[derive(Default)]
struct Tally {
    times: Vec<f64>,
    gaps: Vec<f64>,
    statuses: [u32; 4],
}

impl Tally {
    fn add(&mut self, solution: &Solution, ms: f64) {
        self.times.push(ms);
        self.statuses[match solution.certificate.status {
            Status::Optimal => 0,
            Status::Feasible => 1,
            Status::Infeasible => 2,
            Status::Unknown => 3,
        }] += 1;
        // An answer without a bound may be off by all of it.
        if solution.metrics.is_some() {
            self.gaps.push(solution.certificate.gap.unwrap_or(1.0));
        }
    }

    fn line(&mut self) -> String {
        self.times.sort_by(f64::total_cmp);
        self.gaps.sort_by(f64::total_cmp);
        let most = |all: &[f64]| all.last().copied().unwrap_or(f64::NAN);
        format!(
            "{:10.3} {:10.3}  {:?}  {:.2} / {:.2} %",
            median(&self.times),
            most(&self.times),
            self.statuses,
            median(&self.gaps) * 100.0,
            most(&self.gaps) * 100.0
        )
    }
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, usual: &'static str| args.get(i).map_or(usual, String::as_str);
    let profiles: Vec<Profile> = arg(0, "synth18")
        .split(',')
        .map(profile)
        .collect::<Result<_, _>>()?;
    let regime = regime(arg(1, "tight"))?;
    let worlds: u64 = arg(3, "7").parse()?;
    let limit = Duration::from_secs_f64(arg(4, "10").parse()?);
    let names: Vec<&str> = arg(5, "optimal").split(',').collect();
    let objective: Objective = serde_json::from_value(arg(6, "latency").into())?;
    println!("nodes strategy        median ms     max ms  statuses (o f i u)  median / max gap");
    for n in arg(2, "5,10,20,50").split(',') {
        let n: usize = n.parse()?;
        let mut tallies: Vec<Tally> = names.iter().map(|_| Tally::default()).collect();
        for seed in 0..worlds {
            let mut problem = world(&profiles, n, regime, seed);
            if !ask_for(&mut problem, &objective, limit)? {
                continue;
            }
            if let Some(folder) = std::env::var_os("WRITE") {
                let path = std::path::Path::new(&folder).join(format!("{n}-{seed}.json"));
                std::fs::write(path, serde_json::to_vec(&problem)?)?;
            }
            for (name, tally) in names.iter().zip(&mut tallies) {
                let (solution, ms) = timed(&problem, name, limit)?;
                tally.add(&solution, ms);
                if std::env::var_os("VERBOSE").is_some() {
                    let value = solution.metrics.map(|m| m.objective);
                    println!(
                        "  world {seed} {name}: {ms:.2} ms {value:?} {:?} {:?}",
                        solution.certificate, solution.stats
                    );
                }
            }
        }
        for (name, tally) in names.iter().zip(&mut tallies) {
            println!("{n:5} {name:14} {}", tally.line());
        }
    }
    Ok(())
}

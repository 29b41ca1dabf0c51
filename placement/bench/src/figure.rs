//! The paper's figure: GoogLeNet with its two side exits in the published scenario, over the number
//! of nodes; latency, solve time and memory.

use crate::agreement::contradictions;
use crate::instance::Instance;
use crate::profile::Profile;
use crate::report::{Csv, Results, cell, digits, machine, table, time};
use crate::run::{
    CPLEX_FLOW, CPLEX_QUADRATIC, Field, HIGHS, HIGHS_PRODUCTS, Outcome, Run, Solver, median,
};
use anyhow::Result;
use std::collections::BTreeMap;

const SIZES: [usize; 12] = [3, 6, 9, 15, 21, 30, 60, 100, 200, 300, 500, 1000];
const QUICK_SIZES: [usize; 3] = [3, 9, 30];
/// Repetitions per size, as published.
const SEEDS: u64 = 5;
/// Above this, general solvers get one instance and more time.
const LARGE: usize = 60;
const LIMIT: f64 = 10.0;
const LARGE_LIMIT: f64 = 60.0;

/// Solvers, and their largest number of nodes.
const FIELD: [(Solver, usize); 12] = [
    (Solver::Ours("optimal"), usize::MAX),
    (Solver::Ours("genetic"), usize::MAX),
    (Solver::Ours("first-fit"), usize::MAX),
    (Solver::Ours("neurosurgeon"), usize::MAX),
    (Solver::Ours("dads"), usize::MAX),
    (Solver::Ours("cloud-only"), usize::MAX),
    (Solver::Ours("device-only"), usize::MAX),
    (Solver::Ours("milp"), 200),
    (HIGHS, 200),
    (HIGHS_PRODUCTS, 30),
    (CPLEX_FLOW, 9),
    (CPLEX_QUADRATIC, 60),
];

/// Runs by number of nodes and solver.
type Runs = BTreeMap<(usize, &'static str), Vec<Run>>;

/// Runs everything and writes the section. Returns the contradictions found.
pub(crate) fn run(field: &Field, results: &Results, quick: bool) -> Result<Vec<String>> {
    let mut csv = Csv::new(&[
        "nodes",
        "seed",
        "solver",
        "status",
        "latency_seconds",
        "bound_seconds",
        "solve_seconds",
        "build_seconds",
        "columns",
        "resident_bytes",
        "peak_bytes",
        "hosts",
        "note",
    ]);
    let sizes: &[usize] = if quick { &QUICK_SIZES } else { &SIZES };
    let seeds = if quick { 1 } else { SEEDS };
    let (mut runs, mut wrong) = (Runs::new(), Vec::new());
    let mut given_up: Vec<Solver> = Vec::new();
    for &nodes in sizes {
        for seed in 0..seeds {
            let instance: Instance = format!("published/googlenet_units/{nodes}/{seed}").parse()?;
            let mut here: Vec<(&'static str, Run)> = Vec::new();
            for (solver, most) in FIELD {
                let general = is_general(solver);
                if nodes > most
                    || given_up.contains(&solver)
                    || general && nodes > LARGE && seed > 0
                {
                    continue;
                }
                let limit = if general && nodes > LARGE {
                    LARGE_LIMIT
                } else {
                    LIMIT
                };
                let run = field.run(solver, &instance, limit)?;
                csv.row(&[
                    &nodes,
                    &seed,
                    &solver.name(),
                    &run.status,
                    &cell(run.objective),
                    &cell(run.bound),
                    &run.solve_seconds,
                    &run.build_seconds,
                    &run.columns,
                    &run.resident_bytes,
                    &run.peak_bytes,
                    &run.hosts,
                    &run.note,
                ]);
                here.push((solver.name(), run));
            }
            let all: Vec<(&str, &Run)> = here.iter().map(|(n, r)| (*n, r)).collect();
            let found = contradictions(&all).into_iter();
            wrong.extend(found.map(|c| format!("{instance}: {c}")));
            for (name, run) in here {
                runs.entry((nodes, name)).or_default().push(run);
            }
        }
        for (solver, _) in FIELD.iter().filter(|(s, _)| is_general(*s)) {
            let last = runs.get(&(nodes, solver.name()));
            // A solver that proves nothing at this size proves nothing at the next.
            if last.is_some_and(|runs| runs.iter().all(|r| !r.status.is_proved())) {
                given_up.push(*solver);
            }
        }
        println!("{}", line(nodes, &runs));
        csv.write(&results.file("figure.csv"))?;
    }
    results.section("figure", &section(field, sizes, &runs)?)?;
    Ok(wrong)
}

const fn is_general(solver: Solver) -> bool {
    match solver {
        Solver::Ours(name) => matches!(name.as_bytes(), b"milp"),
        Solver::Script { .. } => true,
    }
}

fn line(nodes: usize, runs: &Runs) -> String {
    let each = FIELD.iter().filter_map(|(solver, _)| {
        let runs = runs.get(&(nodes, solver.name()))?;
        let proved = runs.iter().filter(|r| r.status.is_proved()).count();
        Some(format!(
            "{} {} ({proved}/{})",
            solver.name(),
            took(runs)?,
            runs.len()
        ))
    });
    format!("N={nodes}: {}", each.collect::<Vec<_>>().join(", "))
}

fn of(runs: &[Run], figure: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
    let mut figures: Vec<f64> = runs.iter().filter_map(figure).collect();
    median(&mut figures)
}

fn took(runs: &[Run]) -> Option<String> {
    let solved = |r: &Run| (r.status != Outcome::Rejected).then_some(r.solve_seconds);
    of(runs, solved).map(time)
}

fn section(field: &Field, sizes: &[usize], runs: &Runs) -> Result<String> {
    let get = |nodes: usize, name: &str| {
        let found = runs.iter().find(|((n, s), _)| *n == nodes && *s == name);
        found.map_or(&[][..], |(_, runs)| runs)
    };
    let latency = |nodes, name| of(get(nodes, name), |r| r.objective);
    let mut latencies = Vec::new();
    let mut times = Vec::new();
    let compared = [
        "genetic",
        "neurosurgeon",
        "dads",
        "first-fit",
        "cloud-only",
        "device-only",
    ];
    let timed = [
        "optimal",
        "genetic",
        "milp (microlp)",
        "HiGHS",
        "HiGHS, published form",
        "CPLEX CE",
        "CPLEX CE, quadratic",
    ];
    for &nodes in sizes {
        let best = latency(nodes, "optimal");
        let mut row = vec![nodes.to_string(), best.map_or("–".into(), time)];
        row.extend(
            compared
                .iter()
                .map(|name| match (latency(nodes, name), best) {
                    (Some(value), Some(best)) => format!("{}x", digits(value / best)),
                    _ => "none".into(),
                }),
        );
        latencies.push(row);
        let mut row = vec![nodes.to_string()];
        row.extend(timed.iter().map(|name| {
            let runs = get(nodes, name);
            let proved = runs.iter().filter(|r| r.status.is_proved()).count();
            let open = 2 * proved <= runs.len() && *name != "genetic";
            match took(runs) {
                Some(text) if open => format!("> {text}"),
                Some(text) => text,
                None if runs.is_empty() => "–".into(),
                None => "refused".into(),
            }
        }));
        let memory = of(get(nodes, "optimal"), |r| Some(r.peak_bytes as f64 / 1e6));
        row.push(memory.map_or("–".into(), |mb| format!("{} MB", digits(mb))));
        times.push(row);
    }
    let latency_header: Vec<&str> = ["N", "optimal"].into_iter().chain(compared).collect();
    let time_header: Vec<&str> = ["N"]
        .into_iter()
        .chain(timed)
        .chain(["optimal, memory"])
        .collect();
    Ok(format!(
        "{}\n\n\
         GoogLeNet in the 22 units of the published code (Reisinger, Frangoudis and Dustdar, IC2E 2021; \
         addnn), two of them the heads of its side exits, in its scenario `iot_edge_cloud`: a third each of \
         Raspberry Pi A+, Raspberry Pi 4B and Xeon, 10–100 % of each free, links of 5 to 1000 Mbit/s. \
         As published, one multiply-add counts as one operation of a node's rate, everything is fp32, no \
         request rate is given, tiers never go back, and no exit has been taken yet. Its heads' memory and \
         compute count. Own assumptions: activations' peak as each unit's input and outputs, a reply of 4 \
         bytes that costs its transfer. Profile: {}.\n\n\
         Latency of `optimal`, and the others' as multiples of it (medians; *none*: no placement that fits):\n\n\
         {}\n\
         ![latency over nodes](placement/latency.svg)\n\n\
         Solve time (medians; >: most not proved within the limit of 10 s, or 60 s above N={LARGE}; \
         *refused*: above the free edition's size limit; –: not tried, because it failed on the size before):\n\n\
         {}\n\
         The published form has a binary product per pair of nodes and cut, made linear; the flow form \
         (HiGHS, CPLEX CE, milp) is tighter. CPLEX's Community Edition takes 1,000 variables and \
         constraints: *quadratic* leaves the products in the objective, which needs the fewest.\n\n\
         ![solve time over nodes](placement/solve-time.svg)\n\n\
         ![peak memory over nodes](placement/memory.svg)\n\n\
         Memory is the peak of the process, problem included (a link's five figures and its two names for \
         every pair of nodes); the solvers in Python start at 31 MB. All runs: \
         [figure.csv](placement/figure.csv).",
        machine(field)?,
        Profile::named("googlenet_units")?.provenance,
        table(&latency_header, &latencies),
        table(&time_header, &times),
    ))
}

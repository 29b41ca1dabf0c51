//! The targets: ratios against general solvers, times and gaps, each on at least
//! seven feasible instances.

use crate::agreement::contradictions;
use crate::instance::Instance;
use crate::report::{Csv, Results, cell, digits, machine, table, time};
use crate::run::{CPLEX_FLOW, CPLEX_QUADRATIC, Field, HIGHS, Outcome, Run, Solver, median};
use anyhow::Result;

const OURS: Solver = Solver::Ours("optimal");
const MICROLP: Solver = Solver::Ours("milp");
const INSTANCES: usize = 7;
/// Time limit of ours and, unless a target says otherwise, of the others.
const LIMIT: f64 = 10.0;
const LONG_LIMIT: f64 = 60.0;

/// A target on one kind of instance.
struct Gate {
    /// Its name.
    name: &'static str,
    /// An instance without its seed.
    kind: &'static str,
    limit: f64,
    goals: &'static [Goal],
}

#[derive(Clone, Copy)]
enum Goal {
    /// The median of theirs over ours is at least this.
    Faster {
        peer: Solver,
        limit: f64,
        ratio: f64,
    },
    /// Ours takes at most this many times theirs, and proves what they prove.
    NeverSlower {
        peer: Solver,
        limit: f64,
        ratio: f64,
    },
    /// The median of our times is below this.
    Below { seconds: f64 },
    /// The median of our proved gaps is at most this, within the limit.
    Gap { most: f64 },
}

const fn faster(peer: Solver, limit: f64, ratio: f64) -> Goal {
    Goal::Faster { peer, limit, ratio }
}

const NEVER_SLOWER: &[Goal] = &[Goal::NeverSlower {
    peer: HIGHS,
    limit: LIMIT,
    ratio: 2.0,
}];

const GATES: [Gate; 9] = [
    Gate {
        name: "GoogLeNet, tight, N=5",
        kind: "tight/googlenet_coarse/5",
        limit: LIMIT,
        goals: &[faster(CPLEX_FLOW, LONG_LIMIT, 10.0)],
    },
    Gate {
        name: "GoogLeNet, tight, N=10",
        kind: "tight/googlenet_coarse/10",
        limit: LIMIT,
        goals: &[faster(CPLEX_QUADRATIC, LONG_LIMIT, 50.0)],
    },
    Gate {
        name: "GoogLeNet, tight, N=20",
        kind: "tight/googlenet_coarse/20",
        limit: LIMIT,
        goals: &[
            faster(HIGHS, LONG_LIMIT, 100.0),
            faster(MICROLP, LONG_LIMIT, 20.0),
        ],
    },
    Gate {
        name: "GoogLeNet, packed, N=10",
        kind: "packed/googlenet_coarse/10",
        limit: LIMIT,
        goals: &[faster(HIGHS, LONG_LIMIT, 20.0)],
    },
    Gate {
        name: "GoogLeNet in 81 blocks, tight, N=10",
        kind: "tight/googlenet_fine/10",
        limit: LIMIT,
        goals: NEVER_SLOWER,
    },
    Gate {
        name: "GoogLeNet in 81 blocks, tight, N=20",
        kind: "tight/googlenet_fine/20",
        limit: LIMIT,
        goals: NEVER_SLOWER,
    },
    Gate {
        name: "100 blocks, real, N=1000",
        kind: "real/synth100/1000",
        limit: LIMIT,
        goals: &[Goal::Below { seconds: 0.2 }],
    },
    Gate {
        name: "100 blocks, tight, N=1000",
        kind: "tight/synth100/1000",
        limit: LIMIT,
        goals: &[Goal::Below { seconds: 0.2 }],
    },
    Gate {
        name: "10 networks jointly, N=50, 2 s",
        kind: "joint/10/50",
        limit: 2.0,
        goals: &[Goal::Gap { most: 0.05 }],
    },
];

impl Goal {
    const fn peer(self) -> Option<(Solver, f64)> {
        match self {
            Self::Faster { peer, limit, .. } | Self::NeverSlower { peer, limit, .. } => {
                Some((peer, limit))
            }
            Self::Below { .. } | Self::Gap { .. } => None,
        }
    }
}

/// Our runs, and those of each target's peer.
struct Duel {
    ours: Run,
    peers: Vec<Option<Run>>,
}

/// Runs every gate and writes the section. Returns the contradictions found.
pub(crate) fn run(field: &Field, results: &Results, quick: bool) -> Result<Vec<String>> {
    let mut csv = Csv::new(&[
        "target",
        "instance",
        "solver",
        "status",
        "objective_seconds",
        "bound_seconds",
        "solve_seconds",
        "build_seconds",
        "columns",
        "peak_bytes",
        "note",
    ]);
    let (mut rows, mut wrong, mut compared) = (Vec::new(), Vec::new(), 0);
    let wanted = if quick { 2 } else { INSTANCES };
    for gate in &GATES {
        println!("{}", gate.name);
        let duels = duels(gate, wanted, field, &mut csv, &mut wrong)?;
        compared += duels
            .iter()
            .filter(|d| d.peers.iter().any(Option::is_some))
            .count();
        for (g, goal) in gate.goals.iter().enumerate() {
            let verdict = judge(*goal, &duels, g);
            println!(
                "  {}: {} — {}",
                verdict.asked,
                verdict.found,
                verdict.word()
            );
            rows.push(verdict.row(gate.name, &duels, g));
        }
        csv.write(&results.file("targets.csv"))?;
    }
    let header = [
        "instances",
        "asked",
        "found",
        "verdict",
        "n",
        "ours, median (max)",
        "theirs, median (max)",
    ];
    let agreement = format!(
        "{compared} instances were solved by a general solver too: {} contradictions in value, bound or verdict.",
        wrong.len()
    );
    let body = format!(
        "{}\n\n{}\n{agreement} All runs: [targets.csv](placement/targets.csv).\n\n\
         *tight*: every node has 5–70 % of the memory and of the compute time that the whole network \
         asks; *packed*: about 12 %; *real*: devices hold 20–80 %, edge nodes 40–120 %, the cloud all. \
         Infeasible draws are left out. A ratio is the median of the instances' ratios; with ≥, a \
         solver was stopped at its limit (60 s; 10 s for the 81 blocks).",
        machine(field)?,
        table(&header, &rows)
    );
    results.section("targets", &body)?;
    Ok(wrong)
}

fn duels(
    gate: &Gate,
    wanted: usize,
    field: &Field,
    csv: &mut Csv,
    wrong: &mut Vec<String>,
) -> Result<Vec<Duel>> {
    let mut duels = Vec::new();
    for seed in 0..4 * wanted as u64 {
        if duels.len() == wanted {
            break;
        }
        let instance: Instance = format!("{}/{seed}", gate.kind).parse()?;
        let ours = field.run(OURS, &instance, gate.limit)?;
        note(csv, gate, &instance, OURS, &ours);
        if ours.status == Outcome::Infeasible {
            continue;
        }
        let mut peers = Vec::new();
        for goal in gate.goals {
            let Some((peer, limit)) = goal.peer() else {
                peers.push(None);
                continue;
            };
            let run = field.run(peer, &instance, limit)?;
            note(csv, gate, &instance, peer, &run);
            wrong.extend(
                contradictions(&[("optimal", &ours), (peer.name(), &run)])
                    .into_iter()
                    .map(|c| format!("{instance}: {c}")),
            );
            peers.push((run.status != Outcome::Rejected).then_some(run));
        }
        println!(
            "  seed {seed}: ours {} {}{}",
            time(ours.solve_seconds),
            ours.status,
            told(gate, &peers)
        );
        duels.push(Duel { ours, peers });
    }
    Ok(duels)
}

fn told(gate: &Gate, peers: &[Option<Run>]) -> String {
    let goals = gate.goals.iter().filter_map(|g| g.peer()).zip(peers);
    let each = goals.map(|((solver, _), run)| match run {
        Some(run) => format!(
            ", {} {} {}",
            solver.name(),
            time(run.solve_seconds),
            run.status
        ),
        None => format!(", {} refuses", solver.name()),
    });
    each.collect()
}

fn note(csv: &mut Csv, gate: &Gate, instance: &Instance, solver: Solver, run: &Run) {
    csv.row(&[
        &gate.name,
        instance,
        &solver.name(),
        &run.status,
        &cell(run.objective),
        &cell(run.bound),
        &run.solve_seconds,
        &run.build_seconds,
        &run.columns,
        &run.peak_bytes,
        &run.note,
    ]);
}

struct Verdict {
    asked: String,
    found: String,
    /// `None` if nothing could be measured.
    met: Option<bool>,
    /// Instances that count.
    counted: usize,
}

impl Verdict {
    fn word(&self) -> &'static str {
        match self.met {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "not measured",
        }
    }

    fn row(&self, name: &str, duels: &[Duel], goal: usize) -> Vec<String> {
        let theirs = duels
            .iter()
            .filter_map(|d| Some(d.peers[goal].as_ref()?.solve_seconds));
        vec![
            name.to_owned(),
            self.asked.clone(),
            self.found.clone(),
            self.word().to_owned(),
            self.counted.to_string(),
            summary(duels.iter().map(|d| d.ours.solve_seconds).collect()),
            summary(theirs.collect()),
        ]
    }
}

fn summary(mut seconds: Vec<f64>) -> String {
    let Some(middle) = median(&mut seconds) else {
        return "–".into();
    };
    let most = seconds.last().copied().unwrap_or(middle);
    format!("{} ({})", time(middle), time(most))
}

fn judge(goal: Goal, duels: &[Duel], g: usize) -> Verdict {
    let met = |counted: usize, met: bool| (counted > 0).then_some(met);
    match goal {
        Goal::Faster { peer, ratio, .. } => {
            let pairs: Vec<(&Run, &Run)> = duels
                .iter()
                .filter_map(|d| Some((&d.ours, d.peers[g].as_ref()?)))
                .collect();
            let stopped = pairs.iter().any(|(_, theirs)| !theirs.status.is_proved());
            let mut ratios: Vec<f64> = pairs
                .iter()
                .filter(|(ours, _)| ours.status.is_proved())
                .map(|(ours, theirs)| theirs.solve_seconds / ours.solve_seconds)
                .collect();
            // An instance that ours does not prove counts as no gain at all.
            ratios.resize(pairs.len(), 0.0);
            let found = median(&mut ratios).unwrap_or(0.0);
            Verdict {
                asked: format!("≥ {ratio}x {}", peer.name()),
                found: format!("{}{}x", if stopped { "≥ " } else { "" }, digits(found)),
                met: met(pairs.len(), found >= ratio),
                counted: pairs.len(),
            }
        }
        Goal::NeverSlower { peer, limit, ratio } => {
            let pairs: Vec<(&Run, &Run)> = duels
                .iter()
                .filter_map(|d| Some((&d.ours, d.peers[g].as_ref()?)))
                .collect();
            let proved = pairs.iter().filter(|(_, theirs)| theirs.status.is_proved());
            let unproved = proved.filter(|(ours, _)| !ours.status.is_proved()).count();
            let relative = pairs.iter().map(|(o, t)| o.solve_seconds / t.solve_seconds);
            let worst = relative.fold(0.0, f64::max);
            Verdict {
                asked: format!(
                    "≤ {ratio}x the time of {}, proved where it proves in {limit} s",
                    peer.name()
                ),
                found: format!("at most {}x, {unproved} unproved", digits(worst)),
                met: met(pairs.len(), unproved == 0 && worst <= ratio),
                counted: pairs.len(),
            }
        }
        Goal::Below { seconds } => {
            let mut times: Vec<f64> = duels.iter().map(|d| d.ours.solve_seconds).collect();
            let proved = duels.iter().filter(|d| d.ours.status.is_proved()).count();
            let middle = median(&mut times).unwrap_or(f64::INFINITY);
            Verdict {
                asked: format!("median < {}", time(seconds)),
                found: format!("{}, {proved} proved", time(middle)),
                met: met(duels.len(), middle < seconds),
                counted: duels.len(),
            }
        }
        Goal::Gap { most } => {
            let gap = |run: &Run| match (run.objective, run.bound) {
                (Some(value), Some(bound)) => (value - bound) / value,
                _ => 1.0,
            };
            let mut gaps: Vec<f64> = duels.iter().map(|d| gap(&d.ours)).collect();
            let middle = median(&mut gaps).unwrap_or(1.0);
            let worst = gaps.last().copied().unwrap_or(1.0);
            Verdict {
                asked: format!("median gap ≤ {:.0} %", most * 100.0),
                found: format!("{:.2} % (worst {:.1} %)", middle * 100.0, worst * 100.0),
                met: met(duels.len(), middle <= most),
                counted: duels.len(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(status: Outcome, seconds: f64) -> Run {
        Run {
            status,
            objective: Some(1.0),
            bound: Some(0.9),
            solve_seconds: seconds,
            ..Run::rejected("")
        }
    }

    fn duel(ours: (Outcome, f64), theirs: (Outcome, f64)) -> Duel {
        Duel {
            ours: run(ours.0, ours.1),
            peers: vec![Some(run(theirs.0, theirs.1))],
        }
    }

    #[test]
    fn a_ratio_counts_what_was_proved() {
        use Outcome::{Feasible, Optimal};
        let goal = faster(HIGHS, 60.0, 10.0);
        let good = duel((Optimal, 0.1), (Optimal, 2.0));
        let open = duel((Feasible, 0.1), (Optimal, 2.0));
        assert_eq!(judge(goal, &[good], 0).met, Some(true));
        assert_eq!(judge(goal, &[open], 0).met, Some(false));
        assert_eq!(judge(goal, &[], 0).met, None);
        let slow = duel((Optimal, 5.0), (Optimal, 2.0));
        assert_eq!(judge(NEVER_SLOWER[0], &[slow], 0).met, Some(false));
        let both_open = duel((Feasible, 10.0), (Feasible, 10.0));
        assert_eq!(judge(NEVER_SLOWER[0], &[both_open], 0).met, Some(true));
    }

    #[test]
    fn every_gate_names_an_instance() {
        for gate in &GATES {
            let instance: Instance = format!("{}/0", gate.kind).parse().unwrap();
            if instance.nodes < 100 {
                instance.problem().unwrap();
            }
        }
    }
}

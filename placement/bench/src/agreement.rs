//! Whether solvers agree on an instance.

use crate::run::{Outcome, Run};

/// Relative difference explained by rounding and tolerances.
const TOLERANCE: f64 = 1e-6;

/// Contradictions in words; empty if all agree.
pub(crate) fn contradictions(runs: &[(&str, &Run)]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, run) in runs {
        for (other, witness) in runs {
            let Some(value) = witness.objective else {
                continue;
            };
            if run.status == Outcome::Infeasible {
                found.push(format!("{name} proves infeasible, {other} found {value}"));
            }
            let bound = match (run.status, run.objective) {
                (Outcome::Optimal, Some(optimum)) => Some(optimum),
                _ => run.bound,
            };
            if let Some(bound) = bound
                && bound > value + TOLERANCE * value.abs()
            {
                found.push(format!("{name} proves {bound}, {other} found {value}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(status: Outcome, objective: Option<f64>, bound: Option<f64>) -> Run {
        Run {
            status,
            objective,
            bound,
            ..Run::rejected("")
        }
    }

    #[test]
    fn only_proofs_contradict() {
        let best = run(Outcome::Optimal, Some(1.0), Some(1.0));
        let worse = run(Outcome::Feasible, Some(2.0), Some(0.5));
        let none = run(Outcome::Infeasible, None, None);
        let better = run(Outcome::Optimal, Some(0.9), Some(0.9));
        assert!(contradictions(&[("a", &best), ("b", &worse)]).is_empty());
        assert_eq!(contradictions(&[("a", &best), ("b", &better)]).len(), 1);
        assert_eq!(contradictions(&[("a", &best), ("b", &none)]).len(), 1);
    }
}

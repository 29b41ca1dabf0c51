//! Compares the frozen graph, from which blocks are cut, with the model as its file says it.
//! Freezing rewrites a model; if libtorch gets that wrong, all blocks agree with a wrong whole.

use crate::error::PrepareError;
use crate::ffi::Graph;
use crate::forward::run;
use crate::operators::is_allowed;
use crate::rungs::{Plan, Trial};
use crate::shapes;
use crate::tensors::relative_difference;
use lamina_model::Tensor;
use std::time::{Duration, Instant};

/// The largest batch compared if requests may take other paths.
const MOST_ROWS: usize = 8;
/// Differences up to this share of an output's largest value are rounding; values that freezing
/// precomputes may be rounded differently.
const ROUNDING: f64 = 1e-4;
/// No further request is compared after this time: a large model is slow at a batch of eight.
const BUDGET: Duration = Duration::from_secs(20);

/// Compares the file's answers with those of the graph that `plan` was cut from: on the requests
/// of the plan, whose answers it holds, on those of other sizes, and, if requests may take other
/// paths, on others and on batches of up to eight.
///
/// # Errors
/// [`PrepareError::Unsupported`] if an answer differs.
pub(crate) fn check(trial: &mut Trial<'_>, plan: &Plan) -> Result<(), PrepareError> {
    if trial.analysis.writes_constants {
        // Each run of one would change the state of the other.
        return Ok(());
    }
    let Ok((written, operators)) = trial.source.as_written() else {
        return Ok(());
    };
    if !operators.iter().all(|name| may_run(name)) {
        // Operators that freezing dropped are not part of the served model, and are not run here.
        return Ok(());
    }
    let begin = Instant::now();
    for (number, request) in plan.requests.iter().enumerate() {
        if begin.elapsed() > BUDGET && number > 0 {
            return Ok(());
        }
        match compared(&written, request, plan.answers(number)) {
            Verdict::Right => (),
            Verdict::Draws => return Ok(()),
            Verdict::Wrong(error) => return Err(error),
        }
    }
    let further = further(trial);
    if further.is_empty() {
        return Ok(());
    }
    let Ok(frozen) = trial.source.graph(&[]) else {
        return Ok(());
    };
    for request in &further {
        if begin.elapsed() > BUDGET {
            break;
        }
        let Ok(got) = run(&frozen, request) else {
            // A refused request proves nothing, and an error is not a wrong answer.
            continue;
        };
        match compared(&written, request, &got) {
            Verdict::Right => (),
            Verdict::Draws => return Ok(()),
            Verdict::Wrong(error) => return Err(error),
        }
    }
    Ok(())
}

enum Verdict {
    /// The file gives the same answer, or none.
    Right,
    /// It keeps state or draws random numbers, which is reported elsewhere.
    Draws,
    Wrong(PrepareError),
}

/// Compares the file's answer with `got`.
fn compared(written: &Graph, request: &[Tensor], got: &[Tensor]) -> Verdict {
    let Ok(want) = run(written, request) else {
        return Verdict::Right;
    };
    let Some(what) = difference(&want, got) else {
        return Verdict::Right;
    };
    if !run(written, request).is_ok_and(|again| again == want) {
        return Verdict::Draws;
    }
    let rows = request.first().and_then(|t| t.shape.first()).copied();
    Verdict::Wrong(PrepareError::Unsupported {
        reason: format!(
            "libtorch freezes it into something else: {what} at a batch of {}; writing no \
             tensor in place that another variable holds, too, may help",
            rows.unwrap_or(1)
        ),
    })
}

/// Whether `operator` is one that a block may use, and not a call of unknown code.
fn may_run(operator: &str) -> bool {
    is_allowed(operator) && !["prim::CallMethod", "prim::CallFunction"].contains(&operator)
}

/// Further requests to compare, besides those of the plan.
fn further(trial: &Trial<'_>) -> Vec<Vec<Tensor>> {
    let sized = trial.sizes.compared().map(|s| s.request.clone());
    if !trial.watched.may_differ {
        return sized.collect();
    }
    let mut requests = trial.requests.clone();
    requests.extend(trial.unlike.0.iter().cloned());
    let rows: Vec<&Vec<Tensor>> = requests.iter().cycle().take(MOST_ROWS).collect();
    let batches: Vec<_> = (2..=MOST_ROWS)
        .filter_map(|many| shapes::batch(&trial.declared, &rows[..many]))
        .collect();
    // The first two are the plan's.
    requests.drain(..trial.requests.len());
    requests.extend(trial.more.iter().cloned());
    requests.extend(sized);
    requests.extend(batches);
    requests
}

/// How an answer differs, if it does.
fn difference(want: &[Tensor], got: &[Tensor]) -> Option<String> {
    if want.len() != got.len() {
        return Some(format!("{} outputs for {}", got.len(), want.len()));
    }
    let differences = got.iter().zip(want).map(|(g, w)| relative_difference(g, w));
    let (place, largest) = differences
        .enumerate()
        .max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    (largest.is_nan() || largest > ROUNDING)
        .then(|| format!("output {place} differs by {largest:.1e} of its largest"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::DataType;

    fn tensor(values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor {
            datatype: DataType::Fp32,
            shape: vec![i64::try_from(values.len()).unwrap()],
            data: data.into(),
        }
    }

    #[test]
    fn rounding_is_no_difference_and_all_else_is_named() {
        let want = [tensor(&[1.0, 8.0]), tensor(&[2.0])];
        let close = [tensor(&[1.000_01, 8.0]), tensor(&[2.0])];
        assert_eq!(difference(&want, &close), None);
        let other = [tensor(&[1.0, 8.0]), tensor(&[2.5])];
        let said = difference(&want, &other).unwrap();
        assert!(said.contains("output 1 differs by 2.5e-1"), "{said}");
        let said = difference(&want, &want[..1]).unwrap();
        assert_eq!(said, "1 outputs for 2");
        assert!(difference(&want, &[tensor(&[1.0]), tensor(&[2.0])]).is_some());
    }
}

//! What blocks are cut from, compared with the model as its file says it. Freezing a model
//! rewrites it; where libtorch gets that wrong, all blocks agree with a whole that is wrong.

use crate::error::PrepareError;
use crate::forward::{run, torch_tensors};
use crate::operators::is_allowed;
use crate::rungs::Trial;
use crate::shapes;
use crate::tensors::relative_difference;
use lamina_model::Tensor;
use std::time::{Duration, Instant};

/// The largest batch that is compared where requests may take other ways.
const MOST_ROWS: usize = 8;
/// Differences up to this share of an output's largest value are rounding; what freezing
/// computes ahead may be rounded otherwise.
const ROUNDING: f64 = 1e-4;
/// No further request is compared after this time: a large model is slow at a batch of eight.
const BUDGET: Duration = Duration::from_secs(20);

/// Compares answers to the first request, and, where requests may take other ways, to the
/// others and to batches of up to eight. To be called once the trial was watched.
///
/// # Errors
/// [`PrepareError::Unsupported`] where an answer is another one.
pub(crate) fn check(trial: &mut Trial<'_>) -> Result<(), PrepareError> {
    if trial.analysis.writes_constants {
        // Each run of the one would change what the other is made of.
        return Ok(());
    }
    let requests = requests(trial);
    let first = torch_tensors(&requests[0])?;
    // Where it fails already, whoever asks next says why.
    if trial.source.observe(&[], &first).is_err() {
        return Ok(());
    }
    let (Ok(frozen), Ok((written, operators))) =
        (trial.source.graph(&[]), trial.source.as_written())
    else {
        return Ok(());
    };
    if !operators.iter().all(|name| may_run(name)) {
        // What freezing left out is no part of the model that is served, nor run here.
        return Ok(());
    }
    let begin = Instant::now();
    for request in &requests {
        if begin.elapsed() > BUDGET {
            break;
        }
        let (Ok(want), Ok(got)) = (run(&written, request), run(&frozen, request)) else {
            // A request that is not taken proves nothing, and an error is no wrong answer:
            // whoever runs the model next says why.
            continue;
        };
        let Some(what) = difference(&want, &got) else {
            continue;
        };
        let draws = !run(&written, request).is_ok_and(|again| again == want);
        if draws {
            // It keeps state or draws random numbers, which is said elsewhere.
            return Ok(());
        }
        let rows = request.first().and_then(|t| t.shape.first()).copied();
        return Err(PrepareError::Unsupported {
            reason: format!(
                "libtorch freezes it into something else: {what} at a batch of {}; writing no \
                 tensor in place that another variable holds, too, may help",
                rows.unwrap_or(1)
            ),
        });
    }
    Ok(())
}

/// Whether `operator` is one that a block may use, and not a call into what cannot be seen.
fn may_run(operator: &str) -> bool {
    is_allowed(operator) && !["prim::CallMethod", "prim::CallFunction"].contains(&operator)
}

/// Those to compare.
fn requests(trial: &Trial<'_>) -> Vec<Vec<Tensor>> {
    let mut requests = trial.requests.clone();
    let sized = trial.sizes.compared().map(|s| s.request.clone());
    if !trial.watched.may_differ {
        requests.truncate(1);
        requests.extend(sized);
        return requests;
    }
    requests.extend(trial.unlike.0.iter().cloned());
    let rows: Vec<&Vec<Tensor>> = requests.iter().cycle().take(MOST_ROWS).collect();
    let batches: Vec<_> = (2..=MOST_ROWS)
        .filter_map(|many| shapes::batch(&trial.declared, &rows[..many]))
        .collect();
    requests.extend(trial.more.iter().cloned());
    requests.extend(sized);
    requests.extend(batches);
    requests
}

/// What is wrong with an answer.
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

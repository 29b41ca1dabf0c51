//! The rung between typed cuts and the whole model: the model is traced again inside libtorch,
//! which turns control flow and numbers that depend only on shapes into constants. A trace is
//! trusted only as far as it was compared.

use crate::ffi::{Analysis, Graph, Source};
use crate::forward::{first_difference, run};
use crate::shapes;
use lamina_model::{Binding, Tensor, ValueSpec};

/// Batches on which a trace is compared with its original.
const COMPARED: [usize; 4] = [2, 3, 5, 8];

/// A model to retrace, with its answers.
pub(crate) struct Original<'a> {
    pub(crate) source: &'a mut Source,
    /// Names, types and shapes of its inputs, sizes typical: -1 for a free batch.
    pub(crate) inputs: &'a [ValueSpec],
    /// Two different requests of batch 1.
    pub(crate) requests: &'a [Vec<Tensor>],
    /// Further ones, with the original's answers.
    pub(crate) more: &'a [Vec<Tensor>],
    /// The outputs for each request.
    pub(crate) answers: Vec<&'a [Tensor]>,
    /// Why a trace of it holds for only one batch size, if so.
    pub(crate) fixes_trace: Option<String>,
    /// Requests of other than typical sizes.
    pub(crate) sized: Vec<&'a [Tensor]>,
    /// Why a trace of it holds for only one value of a free size, if so.
    pub(crate) sizes_fix_trace: Option<String>,
}

/// A trace with the same answers as its original.
pub(crate) struct Traced {
    pub(crate) source: Source,
    pub(crate) analysis: Analysis,
    /// Why it holds only for a batch of 1 although its original takes any.
    pub(crate) fixed_batch: Option<String>,
}

impl Original<'_> {
    /// Traces the model and compares the trace with it, bit for bit: on both requests,
    /// and on larger batches if the batch is free. Comparison cannot rule out that a
    /// branch or a number depends on the batch: that was read from the graph before.
    ///
    /// # Errors
    /// Why there is no trace, or why it cannot be trusted.
    pub(crate) fn trace(self) -> Result<Traced, String> {
        if self.answers[0] == self.answers[1] {
            return Err(
                "the two requests it was tried with get the same answer, so nothing would show \
                 that a trace is right"
                    .into(),
            );
        }
        if let Some(reason) = self.sizes_fix_trace {
            return Err(format!("{reason}, and a trace would keep one"));
        }
        let torch = |e: crate::ffi::TorchError| e.reason();
        let [first, second] = self.requests else {
            return Err("it was not tried with two requests".into());
        };
        let pair = match &self.fixes_trace {
            Some(_) => None,
            None => shapes::batch(self.inputs, &[first, second]),
        };
        let traced = self.source.retrace(
            &tensors(first)?,
            pair.as_deref().map(tensors).transpose()?.as_deref(),
        );
        let (mut source, retraced) = traced.map_err(torch)?;
        let analysis = source
            .analyse(&vec![Binding::Tensor; self.inputs.len()], false)
            .map_err(torch)?;
        source.observe(&[], &tensors(first)?).map_err(torch)?;
        let graph = source.graph(&[]).map_err(torch)?;
        for (request, answer) in self.requests.iter().zip(&self.answers) {
            let got = run(&graph, request)?;
            if let Some((place, difference)) = first_difference(answer, &got) {
                return Err(format!("output {place} would differ by {difference:e}"));
            }
        }
        let original = self.source.graph(&[]).map_err(torch)?;
        let more = self.more.iter().map(Vec::as_slice);
        for request in more.chain(self.sized) {
            let answer = run(&original, request)?;
            if let Some((place, difference)) = first_difference(&answer, &run(&graph, request)?) {
                return Err(format!("output {place} would differ by {difference:e}"));
            }
        }
        let mut fixed_batch = self.fixes_trace.or(retraced.fixed_batch);
        if pair.is_some() && fixed_batch.is_none() {
            fixed_batch = COMPARED.iter().find_map(|&rows| {
                let rows: Vec<_> = [first, second].into_iter().cycle().take(rows).collect();
                let batch = shapes::batch(self.inputs, &rows)?;
                differs(&original, &graph, &batch)
            });
        }
        Ok(Traced {
            source,
            analysis,
            fixed_batch,
        })
    }
}

/// Why the trace does not hold for `batch`; a batch that the original refuses proves nothing.
fn differs(original: &Graph, traced: &Graph, batch: &[Tensor]) -> Option<String> {
    let expected = run(original, batch).ok()?;
    let rows = batch.first()?.shape.first()?;
    match run(traced, batch) {
        Ok(got) => first_difference(&expected, &got).map(|(place, difference)| {
            format!("with a batch of {rows} its output {place} would differ by {difference:e}")
        }),
        Err(reason) => Some(format!("it fails with a batch of {rows}: {reason}")),
    }
}

fn tensors(values: &[Tensor]) -> Result<Vec<tch::Tensor>, String> {
    let converted = values.iter().map(crate::tensors::to_torch);
    converted.collect::<Result<_, _>>().map_err(|e| e.0)
}

/// The manifest's reason for a model that is cut as it was traced, after `reason` kept it in one
/// piece.
pub(crate) fn reason_for_trace(reason: &str, fixed_batch: Option<&str>) -> String {
    let batch = fixed_batch.map_or_else(String::new, |why| {
        format!(", for a batch of 1 alone ({why})")
    });
    format!("{reason}; traced again it is cut{batch}")
}

/// The manifest's reason for a model that `reason` keeps from being cut well, and whose trace
/// failed with `refusal`.
pub(crate) fn reason_against_trace(reason: &str, refusal: &str) -> String {
    if reason == refusal {
        format!("{reason}; traced again it is the same")
    } else {
        format!("{reason}; tracing it again is no help: {refusal}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_says_why_and_for_which_batch() {
        assert_eq!(
            reason_for_trace("ints are live", None),
            "ints are live; traced again it is cut"
        );
        assert_eq!(
            reason_for_trace("ints are live", Some("a number changes")),
            "ints are live; traced again it is cut, for a batch of 1 alone (a number changes)"
        );
        assert_eq!(
            reason_against_trace("one operation", "one operation"),
            "one operation; traced again it is the same"
        );
        assert_eq!(
            reason_against_trace("ints are live", "a branch depends on values"),
            "ints are live; tracing it again is no help: a branch depends on values"
        );
    }
}

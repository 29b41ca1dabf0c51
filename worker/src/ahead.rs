//! Preparing a model whose inputs are images: with what it is tried, and the block that is put
//! ahead of it.

use crate::chain::prepared;
use lamina_images::{TypicalError, prepare, typical};
use lamina_model::{
    Ahead, Digest, ImageInput, InputSpec, Manifest, Preprocessing, Probe, Seconds, Tensor,
    files_in_rows, prepared_inputs,
};
use lamina_worker_link::prepare::{Failure, Reason};
use lamina_worker_link::with_causes;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

/// Measured runs of the block.
const MEASURED_RUNS: usize = 10;

/// Inputs that are images, and what comes for them in the first requests.
#[derive(Debug)]
pub(crate) struct Images {
    declared: BTreeMap<usize, ImageInput>,
    /// By place, what travels in the first two requests.
    sent: BTreeMap<usize, [Tensor; 2]>,
}

impl Images {
    /// None are asked for yet.
    ///
    /// # Errors
    /// A declaration does not hold together.
    pub(crate) fn declared(declared: BTreeMap<usize, ImageInput>) -> Result<Self, Failure> {
        for image in declared.values() {
            image
                .check()
                .map_err(|e| Failure::new(Reason::InputMismatch, e.to_string()))?;
        }
        Ok(Self {
            declared,
            sent: BTreeMap::new(),
        })
    }

    /// What a file of samples holds: `inputs` with files and pixels where they are images.
    pub(crate) fn sampled(&self, inputs: &[InputSpec]) -> Vec<InputSpec> {
        let one = |(place, input): (usize, &InputSpec)| match self.declared.get(&place) {
            Some(image) => image.sample(),
            None => input.clone(),
        };
        inputs.iter().enumerate().map(one).collect()
    }

    /// `samples` as the model takes them. The first two are remembered.
    ///
    /// # Errors
    /// One is not what is declared.
    pub(crate) fn of_samples(
        &mut self,
        mut samples: Vec<Vec<Tensor>>,
    ) -> Result<Vec<Vec<Tensor>>, Failure> {
        for (&place, image) in &self.declared {
            if image.rows > 1 {
                let several = format!(
                    "input `{}`: samples have one image in a request; declare -1 or 1 of them",
                    image.name
                );
                return Err(Failure::new(Reason::InputMismatch, several));
            }
            let mut sent = Vec::with_capacity(samples.len());
            for (number, request) in samples.iter_mut().enumerate() {
                let said = |e: &dyn Error| {
                    let what = format!("the samples: request {number}: {}", with_causes(e));
                    Failure::new(Reason::InputMismatch, what)
                };
                let Some(value) = request.get_mut(place) else {
                    continue;
                };
                let rows = as_sent(image, value).map_err(|e| said(&*e))?;
                *value = prepare(image, &rows.shape, &rows.data).map_err(|e| said(&e))?;
                sent.push(rows);
            }
            if let [first, second, ..] = sent.as_slice() {
                self.sent.insert(place, [first.clone(), second.clone()]);
            }
        }
        Ok(samples)
    }

    /// Makes images where nobody gave any, and gives what the model takes for them.
    ///
    /// # Errors
    /// One cannot be made.
    pub(crate) fn made(&mut self) -> Result<BTreeMap<usize, [Tensor; 2]>, Failure> {
        let failed = |e: &dyn Error| Failure::new(Reason::PrepareFailed, with_causes(e));
        let mut known = BTreeMap::new();
        for (&place, image) in &self.declared {
            let pair: Result<Vec<Tensor>, TypicalError> = [1, 2]
                .into_iter()
                .map(|seed| typical(image, seed))
                .collect();
            let pair = pair.map_err(|e| failed(&e))?;
            let taken: Result<Vec<Tensor>, _> = pair
                .iter()
                .map(|value| prepare(image, &value.shape, &value.data))
                .collect();
            let taken = taken.map_err(|e| failed(&e))?;
            if let (Ok(sent), Ok(taken)) = (pair.try_into(), taken.try_into()) {
                self.sent.insert(place, sent);
                known.insert(place, taken);
            }
        }
        Ok(known)
    }

    /// `manifest` with the block ahead of it, which is written beside the others, and a probe
    /// that begins with images.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub(crate) fn put_ahead(self, manifest: Manifest, dir: &Path) -> Result<Manifest, Failure> {
        if self.declared.is_empty() {
            return Ok(manifest);
        }
        let failed = |e: &dyn Error| Failure::new(Reason::PrepareFailed, with_causes(e));
        let io_failed = |e: io::Error| {
            let what = format!("the block of images is not written: {e}");
            Failure::retryable(Reason::PrepareFailed, what)
        };
        let block = prepared_inputs(&manifest.inputs, &self.declared);
        let file = block.to_bytes().map_err(|e| failed(&e))?;
        let digest = Digest::of(&file);
        fs::write(dir.join(format!("{digest}.json")), &file).map_err(io_failed)?;
        let old = dir.join(format!("{}.safetensors", manifest.probe));
        let read = fs::read(&old).map_err(io_failed)?;
        let mut probe = Probe::from_bytes(&read).map_err(|e| failed(&e))?;
        for (&place, [sent, _]) in &self.sent {
            if let Some(input) = probe.inputs.get_mut(place) {
                input.clone_from(sent);
            }
        }
        let time = measured(&block, &probe.inputs)?;
        let content = probe.to_bytes().map_err(|e| failed(&e))?;
        let new = Digest::of(&content);
        fs::write(dir.join(format!("{new}.safetensors")), &content).map_err(io_failed)?;
        fs::remove_file(&old).map_err(io_failed)?;
        Ok(manifest.behind(Ahead {
            digest,
            file_bytes: file.len() as u64,
            block,
            time,
            probe: new,
            probe_bytes: content.len() as u64,
        }))
    }
}

/// A value of a request that somebody wrote, as it travels: the bytes of a file alone are one
/// row.
///
/// # Errors
/// A file is too large.
pub(crate) fn as_sent(image: &ImageInput, value: &Tensor) -> Result<Tensor, Box<dyn Error>> {
    let most = image.sent().file_bytes();
    match (most, value.shape.len()) {
        (Some(most), 1) => Ok(files_in_rows(&[&value.data], most)?),
        _ => Ok(value.clone()),
    }
}

/// Time of one row of `inputs`.
fn measured(block: &Preprocessing, inputs: &[Tensor]) -> Result<Seconds, Failure> {
    let rows = inputs
        .first()
        .and_then(|input| input.shape.first())
        .copied();
    let rows = rows.unwrap_or(1).max(1) as f64;
    let mut samples = Vec::with_capacity(MEASURED_RUNS);
    for _ in 0..MEASURED_RUNS {
        let begin = Instant::now();
        prepared(block, inputs)
            .map_err(|e| Failure::new(Reason::PrepareFailed, with_causes(&e)))?;
        samples.push(begin.elapsed().as_secs_f64() / rows);
    }
    samples.sort_by(f64::total_cmp);
    let last = MEASURED_RUNS - 1;
    Ok(Seconds {
        p50: samples[MEASURED_RUNS / 2],
        p10: samples[last / 10],
        p90: samples[last * 9 / 10],
    })
}

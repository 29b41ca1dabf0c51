//! Encodings of values between hosts: the fewest bits that are requested, measured and within the
//! allowed error.

use lamina_model::wire::encodable;
use lamina_model::{Manifest, ValueSpec, WireType};
use lamina_placement::{Value, Workload};

/// The requested encoding, if values are not to be sent unchanged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activations {
    /// The encoding; if absent, the allowed one with the fewest bits.
    pub dtype: Option<WireType>,
    /// Highest allowed error of the answers at one cut, relative to their largest magnitude.
    pub max_error: Option<f64>,
}

/// The default limit if the encoding is chosen automatically.
pub const AUTO_MAX_ERROR: f64 = 0.01;

/// A crossing into a block that begins a segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Crossing {
    /// Its encoding; absent if all values are sent unchanged.
    pub dtype: Option<WireType>,
    /// Names of the encoded values.
    pub values: Vec<String>,
    /// The measured error.
    pub error: Option<f64>,
    /// Bytes at batch 1.
    pub bytes: u64,
    /// Bytes without encoding.
    pub raw_bytes: u64,
    /// Why values are sent unchanged, if they are.
    pub reason: String,
}

/// By bits, and for equal bits by precision.
const FEWEST_FIRST: [WireType; 3] = [WireType::Int8, WireType::Fp16, WireType::Bf16];

/// The crossing into block `boundary` of `manifest`. `knows` says which encodings the hosts on both
/// sides support.
pub fn crossing(
    manifest: &Manifest,
    boundary: usize,
    asked: &Activations,
    knows: impl Fn(WireType) -> bool,
) -> Crossing {
    let raw_bytes = manifest.live_bytes(boundary);
    let values = encodable(manifest, boundary);
    let chosen = if values.is_empty() {
        Err("no FP32 value of a kilobyte or more crosses here".to_owned())
    } else {
        choose(manifest, boundary, asked, knows)
    };
    match chosen {
        Ok((dtype, error)) => {
            let saved = |v: &&ValueSpec| {
                let raw = v.bytes(1).unwrap_or(0);
                raw - dtype.bytes(raw)
            };
            let saved = values.iter().map(saved).fold(0, u64::saturating_add);
            Crossing {
                dtype: Some(dtype),
                values: values.iter().map(|v| v.name.clone()).collect(),
                error: Some(short(error)),
                bytes: raw_bytes.saturating_sub(saved),
                raw_bytes,
                reason: String::new(),
            }
        }
        Err(reason) => Crossing {
            dtype: None,
            values: Vec::new(),
            error: None,
            bytes: raw_bytes,
            raw_bytes,
            reason,
        },
    }
}

/// The encoding and its error.
///
/// # Errors
/// Why there is none.
fn choose(
    manifest: &Manifest,
    boundary: usize,
    asked: &Activations,
    knows: impl Fn(WireType) -> bool,
) -> Result<(WireType, f64), String> {
    let wanted = match &asked.dtype {
        Some(dtype) => std::slice::from_ref(dtype),
        None => &FEWEST_FIRST[..],
    };
    let errors = manifest.encoding_errors.get(boundary);
    let measured = errors.map_or_else(Vec::new, |errors| {
        let of = |dtype: &WireType| Some((*dtype, errors.of(*dtype)?));
        wanted.iter().filter_map(of).collect::<Vec<_>>()
    });
    if measured.is_empty() {
        let names: Vec<&str> = wanted.iter().map(|d| d.as_str()).collect();
        return Err(format!(
            "what {} changes here was not measured, or it does not hold these values",
            names.join(" or ")
        ));
    }
    let is_allowed = |error: f64| asked.max_error.is_none_or(|most| error <= most);
    let mut allowed = measured.iter().filter(|(_, error)| is_allowed(*error));
    if let Some(found) = allowed.clone().find(|(dtype, _)| knows(*dtype)) {
        return Ok(*found);
    }
    if allowed.next().is_some() {
        return Err("an agent on the way does not know fewer bits yet".to_owned());
    }
    let told: Vec<String> = measured
        .iter()
        .map(|(dtype, error)| format!("{dtype} changes answers by {}", percent(*error)))
        .collect();
    let most = asked.max_error.map(percent).unwrap_or_default();
    Err(format!("{}, more than {most}", told.join(", ")))
}

/// `error` with three digits, which survive serialization.
pub fn short(error: f64) -> f64 {
    format!("{error:.2e}").parse().unwrap_or(error)
}

/// A share as a percentage with two significant digits.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = if percent >= 1.0 || percent <= 0.0 {
        1
    } else {
        (1.0 - percent.log10().floor()).clamp(1.0, 12.0) as usize
    };
    format!("{percent:.digits$} %")
}

/// Sets the bytes of `crossings`, one for each block, in `workload`, which is that of `manifest`:
/// the size of a value may differ from cut to cut, so each cut gets its own values. The model's
/// outputs stay unchanged.
pub fn encode(workload: &mut Workload, manifest: &Manifest, crossings: &[Crossing]) {
    if crossings.iter().all(|c| c.dtype.is_none()) {
        return;
    }
    let is_output = |name: &String| manifest.outputs.iter().any(|v| v.name == *name);
    let last = workload.blocks.len().saturating_sub(1);
    workload.values.retain(|v| is_output(&v.name));
    for (b, (block, crossing)) in workload.blocks.iter_mut().zip(crossings).enumerate() {
        let live = manifest.live_at(b);
        let outputs = live.iter().filter(|v| is_output(&v.name));
        let passing = outputs.map(|v| v.bytes(1).unwrap_or(0)).sum();
        workload.values.push(Value {
            name: into_block(b),
            bytes: crossing.bytes.saturating_sub(passing),
        });
        block.inputs.retain(is_output);
        block.inputs.push(into_block(b));
        block.outputs.retain(is_output);
        if b < last {
            block.outputs.push(into_block(b + 1));
        }
    }
}

fn into_block(block: usize) -> String {
    format!("values into block {block}")
}

#[cfg(test)]
mod tests;

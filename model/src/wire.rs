//! Encodings of FP32 values, for transfers between hosts.
//!
//! Agents encode and decode with this, and preparing uses it to measure the effect on a
//! model's answers, so that both use the same arithmetic.

use crate::{DataType, Manifest, ValueSpec, WireType};
use bytes::Bytes;
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};

/// Values with fewer bytes at batch 1 are sent unchanged: encoding saves nothing, and scores and
/// sizes are among them.
pub const SMALLEST_ENCODED_BYTES: u64 = 1024;

/// Elements converted at once.
const CHUNK: usize = 256;
/// Steps from a tensor's smallest value to its largest.
const STEPS: f32 = 255.0;

/// The encoded elements of an FP32 tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Encoded {
    /// Binary16, little-endian.
    Fp16(Bytes),
    /// The upper half of a float, little-endian.
    Bf16(Bytes),
    /// `offset + scale * step`.
    Int8 {
        /// A byte for each element.
        steps: Bytes,
        /// Size of a step; finite.
        scale: f32,
        /// The smallest value; finite.
        offset: f32,
    },
}

/// The data does not decode to the elements of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum DecodeError {
    #[error("{got} bytes of {dtype}, its shape needs {expected}")]
    Size {
        dtype: WireType,
        expected: u64,
        got: u64,
    },
    #[error("steps of int8 from {offset} by {scale}, which are no numbers")]
    Steps { offset: String, scale: String },
}

/// `data`, little-endian FP32, encoded as `dtype`. `None` if that would not be close: a value is
/// not finite, or outside the range of `dtype`.
pub fn encode(dtype: WireType, data: &[u8]) -> Option<Encoded> {
    let (smallest, largest) = range(data)?;
    match dtype {
        WireType::Fp16 => {
            let most = f16::MAX.to_f32();
            (-most <= smallest && largest <= most).then(|| Encoded::Fp16(to_fp16(data)))
        }
        WireType::Bf16 => {
            let most = bf16::MAX.to_f32();
            (-most <= smallest && largest <= most).then(|| Encoded::Bf16(to_bf16(data)))
        }
        WireType::Int8 => to_int8(data, smallest, largest),
    }
}

impl Encoded {
    /// Its encoding.
    pub const fn dtype(&self) -> WireType {
        match self {
            Self::Fp16(_) => WireType::Fp16,
            Self::Bf16(_) => WireType::Bf16,
            Self::Int8 { .. } => WireType::Int8,
        }
    }

    /// The bytes of its elements.
    pub const fn elements(&self) -> &Bytes {
        match self {
            Self::Fp16(data) | Self::Bf16(data) | Self::Int8 { steps: data, .. } => data,
        }
    }

    /// The `bytes` of an FP32 tensor, little-endian. Reserves nothing before the length is
    /// checked.
    ///
    /// # Errors
    /// Its size differs, or scale or offset are invalid.
    pub fn decode(&self, bytes: u64) -> Result<Bytes, DecodeError> {
        let dtype = self.dtype();
        let data = self.elements();
        let got = data.len() as u64;
        let expected = dtype.bytes(bytes);
        if got != expected {
            return Err(DecodeError::Size {
                dtype,
                expected,
                got,
            });
        }
        match self {
            Self::Fp16(data) => Ok(from_fp16(data)),
            Self::Bf16(data) => Ok(from_bf16(data)),
            Self::Int8 {
                steps,
                scale,
                offset,
            } => from_int8(steps, *scale, *offset),
        }
    }
}

/// The values before block `boundary` of `manifest` that may be encoded. The model's outputs, which
/// only pass through, are its answers.
pub fn encodable(manifest: &Manifest, boundary: usize) -> Vec<&ValueSpec> {
    let live = manifest.live_at(boundary);
    let few = |v: &&ValueSpec| is_encodable(v, &manifest.outputs);
    live.into_iter().filter(few).collect()
}

/// Whether `value` of a model with these `outputs` may be encoded.
pub fn is_encodable(value: &ValueSpec, outputs: &[ValueSpec]) -> bool {
    value.datatype == DataType::Fp32
        && value.bytes(1).is_some_and(|b| b >= SMALLEST_ENCODED_BYTES)
        && !outputs.iter().any(|output| output.name == value.name)
}

fn floats(data: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let four = data.as_chunks::<4>().0.iter();
    four.map(|bytes| f32::from_le_bytes(*bytes))
}

/// The smallest and the largest value; `None` if one is not finite.
fn range(data: &[u8]) -> Option<(f32, f32)> {
    const LANES: usize = 8;
    const EXPONENT: u32 = 0x7f80_0000;
    let (values, _) = data.as_chunks::<4>();
    let first = values.first().map_or(0.0, |v| f32::from_le_bytes(*v));
    // Lane by lane, so that the compiler can vectorize it.
    let (mut smallest, mut largest) = ([first; LANES], [first; LANES]);
    let mut is_odd = [false; LANES];
    for group in values.chunks(LANES) {
        for (lane, bytes) in group.iter().enumerate() {
            let value = f32::from_le_bytes(*bytes);
            smallest[lane] = if value < smallest[lane] {
                value
            } else {
                smallest[lane]
            };
            largest[lane] = if value > largest[lane] {
                value
            } else {
                largest[lane]
            };
            is_odd[lane] |= value.to_bits() & EXPONENT == EXPONENT;
        }
    }
    if is_odd.contains(&true) {
        return None;
    }
    let smallest = smallest.into_iter().fold(first, f32::min);
    Some((smallest, largest.into_iter().fold(first, f32::max)))
}

/// `data` with each value converted to two bytes by `narrow`.
fn narrowed(data: &[u8], narrow: impl Fn(&[f32], &mut [[u8; 2]])) -> Bytes {
    let (values, _) = data.as_chunks::<4>();
    let mut out = vec![0; values.len() * 2];
    let (halves, _) = out.as_chunks_mut::<2>();
    let mut floats = [0.0; CHUNK];
    for (from, to) in values.chunks(CHUNK).zip(halves.chunks_mut(CHUNK)) {
        let floats = &mut floats[..from.len()];
        for (float, bytes) in floats.iter_mut().zip(from) {
            *float = f32::from_le_bytes(*bytes);
        }
        narrow(floats, to);
    }
    out.into()
}

/// `data` with each two bytes converted to a value by `widen`.
fn widened(data: &[u8], widen: impl Fn(&[[u8; 2]], &mut [f32])) -> Bytes {
    let (halves, _) = data.as_chunks::<2>();
    let mut out = vec![0; halves.len() * 4];
    let (values, _) = out.as_chunks_mut::<4>();
    let mut floats = [0.0; CHUNK];
    for (from, to) in halves.chunks(CHUNK).zip(values.chunks_mut(CHUNK)) {
        let floats = &mut floats[..from.len()];
        widen(from, floats);
        for (bytes, float) in to.iter_mut().zip(floats) {
            *bytes = float.to_le_bytes();
        }
    }
    out.into()
}

fn to_fp16(data: &[u8]) -> Bytes {
    narrowed(data, |from, to| {
        let mut halves = [f16::ZERO; CHUNK];
        let halves = &mut halves[..from.len()];
        halves.convert_from_f32_slice(from);
        for (bytes, half) in to.iter_mut().zip(halves) {
            *bytes = half.to_le_bytes();
        }
    })
}

fn from_fp16(data: &[u8]) -> Bytes {
    widened(data, |from, to| {
        let mut halves = [f16::ZERO; CHUNK];
        let halves = &mut halves[..from.len()];
        for (half, bytes) in halves.iter_mut().zip(from) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(to);
    })
}

fn to_bf16(data: &[u8]) -> Bytes {
    narrowed(data, |from, to| {
        for (bytes, value) in to.iter_mut().zip(from) {
            *bytes = bf16::from_f32(*value).to_le_bytes();
        }
    })
}

fn from_bf16(data: &[u8]) -> Bytes {
    widened(data, |from, to| {
        for (value, bytes) in to.iter_mut().zip(from) {
            *value = bf16::from_le_bytes(*bytes).to_f32();
        }
    })
}

fn to_int8(data: &[u8], smallest: f32, largest: f32) -> Option<Encoded> {
    let scale = (largest - smallest) / STEPS;
    let per_step = 1.0 / scale;
    let steps: Vec<u8> = if scale == 0.0 {
        vec![0; data.len() / 4]
    } else if scale.is_finite() && per_step.is_finite() {
        // Never negative, so that truncation rounds.
        let step = |v: f32| ((v - smallest) * per_step + 0.5) as u8;
        floats(data).map(step).collect()
    } else {
        return None;
    };
    Some(Encoded::Int8 {
        steps: steps.into(),
        scale,
        offset: smallest,
    })
}

fn from_int8(steps: &[u8], scale: f32, offset: f32) -> Result<Bytes, DecodeError> {
    let last = offset + scale * STEPS;
    if !(offset.is_finite() && scale.is_finite() && last.is_finite()) {
        return Err(DecodeError::Steps {
            offset: offset.to_string(),
            scale: scale.to_string(),
        });
    }
    let values: [[u8; 4]; 256] =
        std::array::from_fn(|step| (offset + scale * step as f32).to_le_bytes());
    let mut out = vec![0; steps.len() * 4];
    let (to, _) = out.as_chunks_mut::<4>();
    for (bytes, step) in to.iter_mut().zip(steps) {
        *bytes = values[usize::from(*step)];
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests;

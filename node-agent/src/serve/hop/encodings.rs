//! Encoded values on the way to the next host, as set by the slice or the route.

use super::TensorError;
use lamina_crds::Encoding;
use lamina_model::wire::{self, Encoded};
use lamina_model::{DataType, WireType};
use lamina_proto::hop::encoded::Values;
use lamina_proto::hop::{Encoded as WireEncoded, Int8, Tensor as WireTensor};

/// Longer work is done off the threads that serve requests.
const AT_ONCE_BYTES: usize = 1 << 20;

/// How a value that was due to be encoded was sent.
pub(super) type Sent = Option<WireType>;

/// `tensors` encoded by `encoding`, and how the named ones are sent: one that the type cannot
/// represent is sent unchanged.
pub(super) async fn encoded(
    tensors: Vec<WireTensor>,
    encoding: Option<&Encoding>,
) -> (Vec<WireTensor>, Vec<Sent>) {
    let Some(encoding) = encoding else {
        return (tensors, Vec::new());
    };
    let encoding = encoding.clone();
    let bytes = tensors.iter().map(|t| t.data.len()).sum();
    // Only the end of the runtime ends the work before it is done.
    let kept = tensors.clone();
    let done = beside(bytes, move || encode_all(tensors, &encoding)).await;
    done.unwrap_or_else(|| (kept, Vec::new()))
}

/// `tensors`, decoded.
///
/// # Errors
/// One does not match its description.
pub(super) async fn decoded(tensors: Vec<WireTensor>) -> Result<Vec<WireTensor>, TensorError> {
    if tensors.iter().all(|t| t.encoded.is_none()) {
        return Ok(tensors);
    }
    let bytes = tensors.iter().map(|t| 4 * elements(t)).sum();
    let done = beside(bytes, move || decode_all(tensors));
    done.await.unwrap_or(Err(TensorError::Broken))
}

/// As [`decoded`], synchronously.
pub(crate) fn decode_all(tensors: Vec<WireTensor>) -> Result<Vec<WireTensor>, TensorError> {
    tensors.into_iter().map(decode).collect()
}

/// Bytes of its elements on the wire.
pub(super) fn elements(tensor: &WireTensor) -> usize {
    let values = tensor.encoded.as_ref().and_then(|e| e.values.as_ref());
    let encoded = values.map_or(0, |values| match values {
        Values::Fp16(data) | Values::Bf16(data) => data.len(),
        Values::Int8(int8) => int8.steps.len(),
    });
    tensor.data.len() + encoded
}

async fn beside<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    if bytes <= AT_ONCE_BYTES {
        return Some(work());
    }
    tokio::task::spawn_blocking(work).await.ok()
}

fn encode_all(tensors: Vec<WireTensor>, encoding: &Encoding) -> (Vec<WireTensor>, Vec<Sent>) {
    let dtype = match encoding.dtype {
        lamina_crds::WireType::Fp16 => WireType::Fp16,
        lamina_crds::WireType::Bf16 => WireType::Bf16,
        lamina_crds::WireType::Int8 => WireType::Int8,
    };
    let mut sent = Vec::new();
    let tensors = tensors.into_iter().map(|tensor| {
        if !encoding.values.contains(&tensor.name) || !is_fp32(&tensor) {
            return tensor;
        }
        let encoded = wire::encode(dtype, &tensor.data);
        sent.push(encoded.as_ref().map(Encoded::dtype));
        match encoded {
            Some(encoded) => WireTensor {
                data: bytes::Bytes::new(),
                encoded: Some(to_wire(encoded)),
                ..tensor
            },
            None => tensor,
        }
    });
    let tensors = tensors.collect();
    (tensors, sent)
}

/// Whether it is FP32 with the size of its shape.
fn is_fp32(tensor: &WireTensor) -> bool {
    let fp32 = DataType::Fp32;
    let is_sized = fp32.checked_bytes(&tensor.shape) == Some(tensor.data.len() as u64);
    tensor.datatype == fp32.as_str() && is_sized
}

fn to_wire(encoded: Encoded) -> WireEncoded {
    let values = match encoded {
        Encoded::Fp16(data) => Values::Fp16(data),
        Encoded::Bf16(data) => Values::Bf16(data),
        Encoded::Int8 {
            steps,
            scale,
            offset,
        } => Values::Int8(Int8 {
            steps,
            scale,
            offset,
        }),
    };
    WireEncoded {
        values: Some(values),
    }
}

fn decode(tensor: WireTensor) -> Result<WireTensor, TensorError> {
    let Some(encoded) = tensor.encoded else {
        return Ok(tensor);
    };
    let name = tensor.name;
    let values = match encoded.values {
        Some(values) if tensor.data.is_empty() && tensor.datatype == DataType::Fp32.as_str() => {
            values
        }
        _ => return Err(TensorError::Encoded { name }),
    };
    let encoded = match values {
        Values::Fp16(data) => Encoded::Fp16(data),
        Values::Bf16(data) => Encoded::Bf16(data),
        Values::Int8(Int8 {
            steps,
            scale,
            offset,
        }) => Encoded::Int8 {
            steps,
            scale,
            offset,
        },
    };
    let Some(bytes) = DataType::Fp32.checked_bytes(&tensor.shape) else {
        return Err(TensorError::Encoded { name });
    };
    match encoded.decode(bytes) {
        Ok(data) => Ok(WireTensor {
            name,
            data,
            encoded: None,
            ..tensor
        }),
        Err(reason) => Err(TensorError::Decode { name, reason }),
    }
}

#[cfg(test)]
mod tests;

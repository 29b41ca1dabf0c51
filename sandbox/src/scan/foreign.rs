//! Models in other formats, by their first bytes.

use std::fmt;

/// Most first bytes needed to identify a format.
pub(super) const HEAD_BYTES: u64 = 16;
/// The largest header that the safetensors format allows, in bytes.
const SAFETENSORS_HEADER_BYTES: u64 = 100_000_000;
/// Versions of ONNX's `ir_version`, the first field of a file, including future ones.
const ONNX_VERSIONS: std::ops::RangeInclusive<u8> = 1..=63;

/// A format that is not TorchScript.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// `.onnx`.
    Onnx,
    /// `.safetensors`.
    Safetensors,
    /// `.h5`, as Keras writes.
    Hdf5,
    /// `.tflite`.
    Tflite,
}

impl Foreign {
    /// The format of a file that starts with `head`.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"\x89HDF\r\n\x1a\n") {
            return Some(Self::Hdf5);
        }
        if head.get(4..8) == Some(b"TFL3") {
            return Some(Self::Tflite);
        }
        if is_safetensors(head) {
            return Some(Self::Safetensors);
        }
        is_onnx(head).then_some(Self::Onnx)
    }
}

/// Eight bytes with the length of a JSON object, and its start.
fn is_safetensors(head: &[u8]) -> bool {
    let Some((length, rest)) = head.split_first_chunk::<8>() else {
        return false;
    };
    (2..=SAFETENSORS_HEADER_BYTES).contains(&u64::from_le_bytes(*length)) && rest.starts_with(b"{")
}

/// A protocol buffer whose first field is a small number, followed by a text or a message:
/// `ir_version`, then the producer's name, a version or the graph.
fn is_onnx(head: &[u8]) -> bool {
    matches!(head, [0x08, version, 0x12 | 0x1a | 0x22 | 0x2a | 0x3a | 0x42, ..]
        if ONNX_VERSIONS.contains(version))
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Onnx => {
                "it is ONNX (.onnx): `python -m lamina export onnx FILE.onnx -o MODEL.pt` writes the \
                 TorchScript file"
            }
            Self::Safetensors => {
                "it holds weights without a network (.safetensors): build the network in Python, \
                 load them with load_state_dict, and export that with torch.jit.trace and \
                 torch.jit.save, or with torch.export.save and `python -m lamina export`"
            }
            Self::Hdf5 => {
                "it is HDF5 (.h5), as Keras writes, which is not read: export it to ONNX with \
                 tf2onnx, and that with `python -m lamina export onnx`"
            }
            Self::Tflite => {
                "it is TensorFlow Lite (.tflite), which is not read: export the TensorFlow model \
                 to ONNX with tf2onnx, and that with `python -m lamina export onnx`"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        for (head, expected) in [
            (&b"\x89HDF\r\n\x1a\n\0\0\0\0"[..], Some(Foreign::Hdf5)),
            (b"\x1c\0\0\0TFL3\0\0", Some(Foreign::Tflite)),
            (b"\x40\0\0\0\0\0\0\0{\"weight\"", Some(Foreign::Safetensors)),
            // The start of files by torch.onnx and skl2onnx.
            (b"\x08\x0a\x12\x07pytorch", Some(Foreign::Onnx)),
            (b"\x08\x09\x3a\xff\x01", Some(Foreign::Onnx)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff{", None),
            (b"\x40\0\0\0\0\0\0\0[", None),
            (b"\x08", None),
            (b"", None),
            (b"some text that is long", None),
            (b"PK\x03\x04", None),
        ] {
            assert_eq!(Foreign::of(head), expected, "{head:?}");
        }
    }
}

//! The memory that a message will take once decoded, computed beforehand.
//!
//! An empty nested message takes two bytes on the wire and hundreds in memory, so the length of
//! a message says little. This walks over the wire format once and stores nothing.

use super::rope::{Reader, Rope};
use super::shapes::{BYTES_OVERHEAD, Field, Holds, Shape};

/// Longer names belong to no model.
const NAME_BYTES: usize = 512;
/// Fields of a shape, at most.
const FIELDS: usize = 16;

/// The result for a message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Weighed {
    /// Approximate memory.
    pub(super) bytes: u64,
    /// Its first field, which names its owner.
    pub(super) owner: Option<String>,
}

/// Why a message is not decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misfit {
    #[error("the message cannot be decoded as a request of its method")]
    Malformed,
    #[error("more than {most} {what} in one message")]
    TooMany { most: u32, what: &'static str },
    #[error(
        "the message would take more than the {limit} bytes of memory that one may; send a \
         smaller batch"
    )]
    TooHeavy { limit: u64 },
}

/// Weighs the message in `rope` by its `shape`.
///
/// # Errors
/// It cannot be read, or takes more than `limit`.
pub(super) fn weigh(rope: &Rope, shape: &Shape, limit: u64) -> Result<Weighed, Misfit> {
    let mut walk = Walk {
        reader: rope.reader(),
        limit,
        found: Weighed::default(),
    };
    walk.message(rope.len(), shape, true)?;
    Ok(walk.found)
}

/// The owner of a message, from its beginning in `rope`, if it names one.
pub(super) fn early_owner(rope: &Rope) -> Option<String> {
    let mut reader = rope.reader();
    if reader.byte()? != NAME_TAG {
        return None;
    }
    let (length, _) = varint(&mut reader)?;
    text(&mut reader, usize::try_from(length).ok()?)
}

/// Field 1, with a length.
const NAME_TAG: u8 = 0x0a;
const VARINT: u8 = 0;
const EIGHT: u8 = 1;
const LENGTH: u8 = 2;
const FOUR: u8 = 5;

struct Walk<'a> {
    reader: Reader<'a>,
    limit: u64,
    found: Weighed,
}

impl Walk<'_> {
    fn message(&mut self, length: usize, shape: &Shape, is_whole: bool) -> Result<(), Misfit> {
        self.add(shape.bytes)?;
        let mut left = length;
        let mut counts = [0_u32; FIELDS];
        while left > 0 {
            let (tag, took) = self.varint(left)?;
            left -= took;
            let number = u32::try_from(tag >> 3).map_err(|_| Misfit::Malformed)?;
            let mut fields = shape.fields.iter().zip(&mut counts);
            let field = fields.find(|(field, _)| field.number == number);
            let wire = (tag & 7) as u8;
            let value = match wire {
                VARINT => {
                    let (_, took) = self.varint(left)?;
                    left -= took;
                    None
                }
                EIGHT | FOUR => {
                    let bytes = if wire == EIGHT { 8 } else { 4 };
                    left = self.skip(bytes, left)?;
                    None
                }
                LENGTH => {
                    let (bytes, took) = self.varint(left)?;
                    left -= took;
                    let bytes = usize::try_from(bytes).map_err(|_| Misfit::Malformed)?;
                    if bytes > left {
                        return Err(Misfit::Malformed);
                    }
                    left -= bytes;
                    Some(bytes)
                }
                _ => return Err(Misfit::Malformed),
            };
            match (field, value) {
                (Some((field, count)), value) => {
                    *count = count.saturating_add(numbers_in(field, value));
                    is_within(field, *count)?;
                    self.field(field, value, is_whole)?;
                }
                // Unknown fields are not kept.
                (None, Some(bytes)) => self.reader.skip(bytes).ok_or(Misfit::Malformed)?,
                (None, None) => {}
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, value: Option<usize>, is_whole: bool) -> Result<(), Misfit> {
        let Some(length) = value else {
            // A single number.
            return self.add(16);
        };
        match field.holds {
            Holds::Message(shape) => return self.message(length, shape, false),
            Holds::Bytes => self.add(BYTES_OVERHEAD + length as u64)?,
            Holds::Numbers(times) => self.add(times * length as u64)?,
        }
        if is_whole && field.number == 1 {
            self.found.owner = text(&mut self.reader.clone(), length);
        }
        self.reader.skip(length).ok_or(Misfit::Malformed)
    }

    fn varint(&mut self, left: usize) -> Result<(u64, usize), Misfit> {
        let read = varint(&mut self.reader).filter(|(_, took)| *took <= left);
        read.ok_or(Misfit::Malformed)
    }

    fn skip(&mut self, bytes: usize, left: usize) -> Result<usize, Misfit> {
        let rest = left.checked_sub(bytes).ok_or(Misfit::Malformed)?;
        self.reader.skip(bytes).ok_or(Misfit::Malformed)?;
        Ok(rest)
    }

    fn add(&mut self, bytes: u64) -> Result<(), Misfit> {
        self.found.bytes = self.found.bytes.saturating_add(bytes);
        if self.found.bytes > self.limit {
            return Err(Misfit::TooHeavy { limit: self.limit });
        }
        Ok(())
    }
}

/// Number of values in the field, given its length in bytes; packed numbers, which take one to ten
/// bytes each, count as eight bytes.
fn numbers_in(field: &Field, value: Option<usize>) -> u32 {
    match (&field.holds, value) {
        (Holds::Numbers(_), Some(bytes)) => u32::try_from(bytes / 8).unwrap_or(u32::MAX).max(1),
        _ => 1,
    }
}

fn is_within(field: &Field, count: u32) -> Result<(), Misfit> {
    match field.most {
        Some((most, what)) if count > most => Err(Misfit::TooMany { most, what }),
        _ => Ok(()),
    }
}

/// A number and its length in bytes.
fn varint(reader: &mut Reader<'_>) -> Option<(u64, usize)> {
    let mut value = 0;
    for at in 0..10 {
        let byte = reader.byte()?;
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return Some((value, at + 1));
        }
    }
    None
}

fn text(reader: &mut Reader<'_>, length: usize) -> Option<String> {
    if length > NAME_BYTES {
        return None;
    }
    let bytes: Option<Vec<u8>> = (0..length).map(|_| reader.byte()).collect();
    String::from_utf8(bytes?).ok()
}

#[cfg(test)]
mod tests {
    use super::super::shapes::{FORWARD, INFER};
    use super::*;
    use lamina_proto::hop::encoded::Values;
    use lamina_proto::hop::{Encoded, ForwardRequest, Int8, Tensor};
    use lamina_proto::inference::model_infer_request::InferInputTensor;
    use lamina_proto::inference::{InferParameter, InferTensorContents, ModelInferRequest};
    use prost::Message as _;

    const MIB: u64 = 1 << 20;

    /// `bytes` in pieces of `piece`.
    fn rope(bytes: &[u8], piece: usize) -> Rope {
        let mut rope = Rope::default();
        for piece in bytes.chunks(piece) {
            rope.push(bytes::Bytes::copy_from_slice(piece));
        }
        rope
    }

    fn weighed(message: &ModelInferRequest) -> Result<Weighed, Misfit> {
        weigh(&rope(&message.encode_to_vec(), 4096), &INFER, 64 * MIB)
    }

    fn request(inputs: usize) -> ModelInferRequest {
        ModelInferRequest {
            model_name: "default/m".into(),
            inputs: vec![InferInputTensor::default(); inputs],
            ..ModelInferRequest::default()
        }
    }

    #[test]
    fn an_ordinary_request_weighs_what_its_tensors_do() {
        let mut ordinary = request(2);
        ordinary.raw_input_contents = vec![vec![0; 600_000].into(); 2];
        ordinary.inputs[0].shape = vec![1, 3, 224, 224];
        let weighed = weighed(&ordinary).unwrap();
        assert!(
            (1_200_000..1_210_000).contains(&weighed.bytes),
            "{weighed:?}"
        );
        assert_eq!(weighed.owner.as_deref(), Some("default/m"));
    }

    #[test]
    fn an_encoded_tensor_weighs_as_it_came_and_as_it_becomes() {
        let tensor = |values| Tensor {
            encoded: Some(Encoded {
                values: Some(values),
            }),
            ..Tensor::default()
        };
        let bytes = bytes::Bytes::from(vec![0; 100_000]);
        let int8 = Int8 {
            steps: bytes.clone(),
            ..Int8::default()
        };
        for (values, factor) in [
            (Values::Fp16(bytes.clone()), 3),
            (Values::Bf16(bytes), 3),
            (Values::Int8(int8), 5),
        ] {
            let forward = ForwardRequest {
                tensors: vec![tensor(values)],
                ..ForwardRequest::default()
            };
            let rope = rope(&forward.encode_to_vec(), 4096);
            let weighed = weigh(&rope, &FORWARD, MIB).unwrap();
            let expected = factor * 100_000;
            let near = expected..expected + 10_000;
            assert!(near.contains(&weighed.bytes), "{weighed:?}");
            assert!(weigh(&rope, &FORWARD, expected - 1).is_err());
        }
    }

    #[test]
    fn what_is_small_on_the_wire_and_large_in_memory_is_refused_before_it_is_decoded() {
        // As in the attack: five million empty inputs in ten megabytes.
        let bomb = [0x2a, 0].repeat(5_000_000);
        let too_many = |what| Err(Misfit::TooMany { most: 256, what });
        assert_eq!(
            weigh(&rope(&bomb, 4096), &INFER, 64 * MIB),
            too_many("inputs")
        );
        assert!(weighed(&request(256)).is_ok());
        assert_eq!(weighed(&request(257)), too_many("inputs"));
        let empty = [0x32, 0].repeat(257);
        assert_eq!(weigh(&rope(&empty, 3), &INFER, MIB), too_many("outputs"));
        let empty = [0x32, 0].repeat(1025);
        let tensors = weigh(&rope(&empty, 3), &FORWARD, MIB);
        let (most, what) = (1024, "tensors");
        assert_eq!(tensors, Err(Misfit::TooMany { most, what }));
    }

    #[test]
    fn what_lies_deeper_counts_as_well() {
        let mut typed = request(1);
        typed.inputs[0].contents = Some(InferTensorContents {
            bytes_contents: vec![bytes::Bytes::new(); 1_200_000],
            ..InferTensorContents::default()
        });
        assert!(typed.encoded_len() < 3_000_000);
        assert_eq!(weighed(&typed), Err(Misfit::TooHeavy { limit: 64 * MIB }));
        typed.inputs[0].contents = Some(InferTensorContents {
            int64_contents: vec![1; 9_000_000],
            ..InferTensorContents::default()
        });
        assert_eq!(weighed(&typed), Err(Misfit::TooHeavy { limit: 64 * MIB }));
        let mut many = request(1);
        let parameters = (0..65).map(|i| (i.to_string(), InferParameter::default()));
        many.inputs[0].parameters = parameters.collect();
        assert!(matches!(
            weighed(&many),
            Err(Misfit::TooMany { most: 64, .. })
        ));
        let mut long = request(1);
        long.inputs[0].shape = vec![1; 10_000];
        assert!(matches!(
            weighed(&long),
            Err(Misfit::TooMany { most: 64, .. })
        ));
    }

    #[test]
    fn no_decoded_message_is_larger_than_its_weight_says() {
        let mut all = request(3);
        all.inputs[1].contents = Some(InferTensorContents {
            int_contents: (0..1000).collect(),
            bool_contents: vec![true; 1000],
            fp64_contents: vec![1.5; 1000],
            ..InferTensorContents::default()
        });
        let held = 1000 * (4 + 1 + 8) + 3 * size_of::<InferInputTensor>();
        assert!(weighed(&all).unwrap().bytes >= held as u64);
    }

    #[test]
    fn the_owner_is_known_from_the_beginning_of_a_message() {
        let mut whole = request(1);
        whole.raw_input_contents = vec![vec![0; 9000].into()];
        let bytes = whole.encode_to_vec();
        assert_eq!(early_owner(&rope(&bytes[..5], 1)), None);
        let owner = early_owner(&rope(&bytes[..20], 1));
        assert_eq!(owner.as_deref(), Some("default/m"));
        let forward = ForwardRequest {
            placement_uid: "u".into(),
            tensors: vec![Tensor::default()],
            ..ForwardRequest::default()
        };
        let bytes = rope(&forward.encode_to_vec(), 1);
        assert_eq!(early_owner(&bytes).as_deref(), Some("u"));
        let weighed = weigh(&bytes, &FORWARD, MIB).unwrap();
        assert_eq!(weighed.owner.as_deref(), Some("u"));
        // The last one counts, as in decoding.
        let twice = [&[0x0a, 1, b'a'][..], &[0x0a, 1, b'b']].concat();
        let weighed = weigh(&rope(&twice, 1), &INFER, MIB).unwrap();
        assert_eq!(weighed.owner.as_deref(), Some("b"));
        // Also one that is no name: too long, or no text, which decoding refuses.
        let long = [&[0x0a, 1, b'a', 0x0a, 0x81, 0x04][..], &[b'x'; 513]].concat();
        assert_eq!(weigh(&rope(&long, 1), &INFER, MIB).unwrap().owner, None);
        let no_text = [0x0a, 1, b'a', 0x0a, 1, 0x88];
        assert_eq!(weigh(&rope(&no_text, 1), &INFER, MIB).unwrap().owner, None);
        assert!(ModelInferRequest::decode(&no_text[..]).is_err());
    }

    #[test]
    fn nonsense_is_refused_wherever_it_is_cut() {
        for bad in [&[0x2a, 5, 0][..], &[0x2a], &[0xff; 12], &[0x0b], &[0x09, 1]] {
            let weighed = weigh(&rope(bad, 1), &INFER, MIB);
            assert_eq!(weighed, Err(Misfit::Malformed), "{bad:?}");
        }
        let good = request(2).encode_to_vec();
        for end in 0..good.len() {
            // Any result is fine, as long as it is harmless.
            let _ = weigh(&rope(&good[..end], 3), &INFER, MIB);
        }
    }
}

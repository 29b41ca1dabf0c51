//! Entry points for `fuzz/`.

use super::MESSAGE_BYTES;
use super::inflate::{Inflater, Packing};
use super::rope::Rope;
use super::shapes::{self, Shape};
use super::weigh::{early_owner, weigh};

pub(crate) fn infer(message: &[u8]) -> Option<(u64, Option<String>)> {
    weighed(message, &shapes::INFER)
}

pub(crate) fn forward(message: &[u8]) -> Option<(u64, Option<String>)> {
    weighed(message, &shapes::FORWARD)
}

fn weighed(message: &[u8], shape: &Shape) -> Option<(u64, Option<String>)> {
    let mut rope = Rope::default();
    // Split, as frames arrive.
    let (first, second) = message.split_at(message.len() / 2);
    rope.push_slice(first);
    rope.push(second.to_vec().into());
    let _ = early_owner(&rope);
    let weighed = weigh(&rope, shape, MESSAGE_BYTES as u64).ok()?;
    Some((weighed.bytes, weighed.owner))
}

pub(crate) fn inflate(packed: &[u8], is_gzip: bool, cut: usize) -> Option<usize> {
    let packing = if is_gzip {
        Packing::Gzip
    } else {
        Packing::Deflate
    };
    let mut inflater = Inflater::new(packing, MESSAGE_BYTES);
    let (first, second) = packed.split_at(cut.min(packed.len()));
    inflater.push(first).ok()?;
    inflater.push(second).ok()?;
    Some(inflater.finish().ok()?.len())
}

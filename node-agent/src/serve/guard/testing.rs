//! Messages as sent by clients, whole or in pieces.

use bytes::Bytes;
use hyper::body::{Body, Frame};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Frames, then the end, or silence.
pub(crate) struct Frames {
    pub(crate) frames: VecDeque<Bytes>,
    pub(crate) ends: bool,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.frames.pop_front() {
            None if !self.ends => Poll::Pending,
            next => Poll::Ready(next.map(|data| Ok(Frame::data(data)))),
        }
    }
}

/// `content` after gRPC's header, which announces `length` bytes.
pub(crate) fn framed(flag: u8, length: usize, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [&[flag][..], &length, content].concat()
}

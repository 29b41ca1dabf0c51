//! The messages of a body, one after the other, in pieces as they arrive.

use super::receive::{Refusal, SILENCE};
use bytes::Bytes;
use hyper::body::Body;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::timeout;

/// Flag and length before each message.
const HEADER_BYTES: usize = 5;

/// A body, read as gRPC frames its messages.
pub(super) struct Feed<B> {
    body: B,
    /// Received, but not yet taken.
    data: Bytes,
    /// Remaining bytes of the current message.
    left: usize,
}

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) is_packed: bool,
    /// Announced length of the message.
    pub(super) length: usize,
}

impl<B> Feed<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    pub(super) const fn new(body: B) -> Self {
        Self {
            body,
            data: Bytes::new(),
            left: 0,
        }
    }

    /// Waits for another message to begin, no longer than `patience`. False at the end
    /// of the body.
    ///
    /// # Errors
    /// None began, or the connection broke.
    pub(super) async fn goes_on(&mut self, patience: Duration) -> Result<bool, Refusal> {
        let filled = timeout(patience, self.fill()).await;
        filled.map_err(|_| Refusal::Idle)?
    }

    /// The header of the next message; `None` at the end of the body.
    ///
    /// # Errors
    /// It is truncated, or does not arrive.
    pub(super) async fn header(&mut self) -> Result<Option<Header>, Refusal> {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        while header.len() < HEADER_BYTES {
            if !self.filled().await? {
                return if header.is_empty() {
                    Ok(None)
                } else {
                    Err(Refusal::Cut)
                };
            }
            let missing = HEADER_BYTES - header.len();
            let part = self.data.split_to(missing.min(self.data.len()));
            header.extend_from_slice(&part);
        }
        let [flag, length @ ..] = &header[..] else {
            return Err(Refusal::Cut);
        };
        let length = length
            .iter()
            .fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
        self.left = length;
        Ok(Some(Header {
            is_packed: *flag != 0,
            length,
        }))
    }

    /// The next piece of the message whose header was read; `None` at its end.
    ///
    /// # Errors
    /// It is truncated, or does not arrive.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Refusal> {
        if self.left == 0 {
            return Ok(None);
        }
        if !self.filled().await? {
            return Err(Refusal::Cut);
        }
        let piece = self.data.split_to(self.left.min(self.data.len()));
        self.left -= piece.len();
        Ok(Some(piece))
    }

    /// Skips the rest of the current message.
    ///
    /// # Errors
    /// As [`Feed::piece`].
    pub(super) async fn pass_over(&mut self) -> Result<(), Refusal> {
        while self.piece().await?.is_some() {}
        Ok(())
    }

    /// The body ends here.
    ///
    /// # Errors
    /// It does not.
    pub(super) async fn ends(&mut self) -> Result<(), Refusal> {
        if self.filled().await? {
            return Err(Refusal::Second);
        }
        Ok(())
    }

    /// Whether data is available, in the middle of a message.
    async fn filled(&mut self) -> Result<bool, Refusal> {
        let filled = timeout(SILENCE, self.fill()).await;
        filled.map_err(|_| Refusal::Silent)?
    }

    /// Waits for data if there is none. False at the end of the body.
    async fn fill(&mut self) -> Result<bool, Refusal> {
        while self.data.is_empty() {
            let next = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            match next.await {
                None => return Ok(false),
                Some(Err(error)) => return Err(Refusal::Broken(error.to_string())),
                // Trailers have no meaning here.
                Some(Ok(frame)) => self.data = frame.into_data().unwrap_or_default(),
            }
        }
        Ok(true)
    }
}

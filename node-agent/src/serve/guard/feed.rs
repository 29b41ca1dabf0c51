//! The messages of a body, one after the other, in the pieces in which they come.

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
    /// Came, and is not taken.
    data: Bytes,
    /// Bytes of the present message that were not taken yet.
    left: usize,
}

/// What stands before a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) is_packed: bool,
    /// Bytes behind it, as it announces.
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

    /// Waits for another message to begin, no longer than for `patience`. False at the end
    /// of the body.
    ///
    /// # Errors
    /// None began, or the connection broke.
    pub(super) async fn goes_on(&mut self, patience: Duration) -> Result<bool, Refusal> {
        let filled = timeout(patience, self.fill()).await;
        filled.map_err(|_| Refusal::Idle)?
    }

    /// What stands before the next message; none at the end of the body.
    ///
    /// # Errors
    /// It is cut off, or does not come.
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

    /// The next piece of the message whose header was read; none at its end.
    ///
    /// # Errors
    /// It is cut off, or does not come.
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

    /// Leaves out what is still to come of the present message.
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

    /// Whether something is there, in the middle of a message.
    async fn filled(&mut self) -> Result<bool, Refusal> {
        let filled = timeout(SILENCE, self.fill()).await;
        filled.map_err(|_| Refusal::Silent)?
    }

    /// Waits for data where there is none. False at the end of the body.
    async fn fill(&mut self) -> Result<bool, Refusal> {
        while self.data.is_empty() {
            let next = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            match next.await {
                None => return Ok(false),
                Some(Err(error)) => return Err(Refusal::Broken(error.to_string())),
                // Trailers say nothing here.
                Some(Ok(frame)) => self.data = frame.into_data().unwrap_or_default(),
            }
        }
        Ok(true)
    }
}

//! What a download needs from the server of a file.

use super::error::FetchError;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::fmt;

/// Whoever has the file.
#[async_trait]
pub(super) trait Origin: Send + Sync {
    /// The file, or what is behind `resume` where the file is still the one that was begun.
    ///
    /// # Errors
    /// It cannot be had.
    async fn open(&self, resume: Option<&Resume>) -> Result<Opened, FetchError>;
}

/// Where a download goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resume {
    /// First byte that is missing.
    pub offset: u64,
    /// Names the file that was begun.
    pub validator: String,
}

/// A file that is on its way.
pub(super) struct Opened {
    /// First byte that comes: what was asked for, or 0.
    pub start: u64,
    /// Size of the whole file, where it is known.
    pub total: Option<u64>,
    /// Names this version of the file, where there is a name for it.
    pub validator: Option<String>,
    /// An error is why it broke off.
    pub body: BoxStream<'static, Result<Bytes, String>>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("start", &self.start)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

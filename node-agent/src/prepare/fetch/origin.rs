//! What a download needs from the server of a file.

use super::error::FetchError;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::fmt;

/// The origin of a file.
#[async_trait]
pub(super) trait Origin: Send + Sync {
    /// The file, or the part after `resume` if the file is still the same.
    ///
    /// # Errors
    /// It cannot be fetched.
    async fn open(&self, resume: Option<&Resume>) -> Result<Opened, FetchError>;
}

/// Where a download resumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resume {
    /// First missing byte.
    pub offset: u64,
    /// Identifies the file that was begun.
    pub validator: String,
}

/// A file being fetched.
pub(super) struct Opened {
    /// First byte sent: the requested one, or 0.
    pub start: u64,
    /// Size of the whole file, if known.
    pub total: Option<u64>,
    /// Identifies this version of the file, if possible.
    pub validator: Option<String>,
    /// An error says why it broke off.
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

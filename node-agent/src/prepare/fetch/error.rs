//! Why a source could not be fetched.

use super::addresses::DeniedAddress;
use super::web::MOST_REDIRECTS;
use crate::prepare::{Failure, Reason};
use http::StatusCode;
use lamina_crds::quantity::format_bytes;
use std::io;
use std::time::Duration;

/// The message after the source's address. It never contains anything that a server sent: whoever
/// names a source could otherwise learn what only the agent can reach.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// The address cannot be fetched.
    #[error("{0}")]
    Uri(String),
    #[error(transparent)]
    Denied(#[from] DeniedAddress),
    #[error("it answers {0}; {hint}", hint = hint(.0))]
    Status(StatusCode),
    #[error("it redirects more than {MOST_REDIRECTS} times")]
    Redirects,
    #[error("it redirects from https to http, where anybody could change the file")]
    Downgrade,
    #[error("it redirects to an address that is neither http nor https")]
    RedirectTarget,
    #[error("{0}")]
    Transport(String),
    #[error("it does not answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    #[error(
        "it sends less than {bytes} bytes in {} s; a faster server or link is needed",
        .window.as_secs()
    )]
    Slow { bytes: u64, window: Duration },
    #[error(
        "it takes longer than {} s; the chart's value agent.sources.timeoutSeconds allows more",
        .0.as_secs()
    )]
    TooLong(Duration),
    #[error(
        "it is larger than {}, which the chart's value agent.sources.sizeLimit allows",
        size(.0)
    )]
    TooLarge(u64),
    #[error(
        "it is larger than {}, for which this node has room; agent.cache.sizeLimit and the \
         free space of its disk bound it",
        size(.0)
    )]
    NoRoom(u64),
    #[error("the connection broke {cuts} times, the last time because {why}")]
    Cut { cuts: u32, why: String },
    #[error("it sent a different number of bytes than announced")]
    WrongLength,
    #[error(
        "the file has another SHA-256 than spec.source.sha256 or, without one, than the file \
         that was accepted; set the right one, or a new spec.source.refresh to take what is \
         there"
    )]
    Checksum,
    /// The content does not match the registry's manifest.
    #[error("the registry's content does not match its manifest")]
    Content,
    /// The Secret is unusable.
    #[error("the Secret of spec.source.secretRef {0}")]
    Secret(String),
    #[error("{0}")]
    Local(String),
    #[error("it cannot be kept in the cache folder: {0}")]
    Disk(io::Error),
    #[error("the TLS of this agent cannot be set up: {0}")]
    Tls(String),
}

fn size(bytes: &u64) -> String {
    format_bytes(*bytes)
}

fn hint(status: &StatusCode) -> &'static str {
    match *status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "check the credentials in the Secret of spec.source.secretRef"
        }
        _ => "check spec.source.uri and the server",
    }
}

impl FetchError {
    /// Whether a retry, or another host, may succeed with the same spec.
    const fn is_retryable(&self) -> bool {
        match self {
            Self::Uri(_)
            | Self::Downgrade
            | Self::RedirectTarget
            | Self::TooLarge(_)
            | Self::Checksum
            | Self::Content => false,
            Self::Denied(denied) => denied.is_of_name,
            Self::Status(_)
            | Self::Redirects
            | Self::Transport(_)
            | Self::NoAnswer(_)
            | Self::Slow { .. }
            | Self::TooLong(_)
            | Self::NoRoom(_)
            | Self::Cut { .. }
            | Self::WrongLength
            | Self::Secret(_)
            | Self::Local(_)
            | Self::Disk(_)
            | Self::Tls(_) => true,
        }
    }

    const fn reason(&self) -> Reason {
        match self {
            Self::Checksum => Reason::ChecksumMismatch,
            Self::Disk(_) => Reason::PrepareFailed,
            _ => Reason::FetchFailed,
        }
    }

    /// The failure for people; `shown` is the source's address.
    pub(super) fn into_failure(self, shown: &str) -> Failure {
        Failure {
            reason: self.reason(),
            message: format!("cannot fetch {shown}: {self}"),
            retryable: self.is_retryable(),
        }
    }
}

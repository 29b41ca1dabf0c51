use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// The longest name that is echoed.
const NAME_BYTES: usize = 600;
/// Default retry delay.
const AGAIN: Duration = Duration::from_millis(500);

/// Why a client is refused, or refused a model. Names only what the client sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denial {
    #[error(
        "no key was sent; send yours as the header `authorization: Bearer KEY` or `x-api-key: KEY`"
    )]
    NoKey,
    #[error(
        "this key is not valid here; send one that is, as the header `authorization: Bearer KEY` \
         or `x-api-key: KEY`"
    )]
    BadKey,
    #[error(
        "no token was sent; send one for the audience `{audience}` as the header `authorization: \
         Bearer TOKEN`, such as `kubectl create token NAME --audience {audience}` gives"
    )]
    NoToken { audience: String },
    #[error(
        "this token is not valid here; send one for the audience `{audience}` that has not run \
         out, as the header `authorization: Bearer TOKEN`"
    )]
    BadToken { audience: String },
    #[error(
        "the credentials have no form that is known; send one header, `authorization: Bearer …` \
         or `x-api-key: …`, with one value"
    )]
    Malformed,
    #[error("these credentials are not for model `{0}`")]
    Forbidden(String),
    #[error("too many requests with these credentials or from this address; send fewer")]
    TooFast(Duration),
    #[error("too many unknown tokens; try again")]
    TooManyQuestions(Duration),
    #[error("this token could not be verified; try again")]
    Unavailable,
    #[error("no keys have arrived from the operator yet; try again")]
    Unheard,
}

impl Denial {
    /// For the model that the client called `name`.
    pub(super) fn forbidden(name: &str) -> Self {
        let end = name.floor_char_boundary(NAME_BYTES);
        Self::Forbidden(name.get(..end).unwrap_or_default().to_owned())
    }

    /// Maps each error to the code for clients.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::NoKey
            | Self::BadKey
            | Self::NoToken { .. }
            | Self::BadToken { .. }
            | Self::Malformed => Code::Unauthenticated,
            Self::Forbidden(_) => Code::PermissionDenied,
            Self::TooFast(_) | Self::TooManyQuestions(_) => Code::ResourceExhausted,
            Self::Unavailable | Self::Unheard => Code::Unavailable,
        }
    }

    /// When the same request may succeed; `None` if never.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooFast(after) | Self::TooManyQuestions(after) => Some(*after),
            Self::Unavailable | Self::Unheard => Some(AGAIN),
            _ => None,
        }
    }

    /// Its label in metrics.
    pub(super) const fn label(&self) -> &'static str {
        match self.code() {
            Code::Unauthenticated => "unauthenticated",
            Code::PermissionDenied => "forbidden",
            Code::ResourceExhausted => "too_fast",
            _ => "unavailable",
        }
    }
}

impl From<Denial> for Status {
    fn from(denial: Denial) -> Self {
        let mut status = Self::new(denial.code(), denial.to_string());
        if let Some(after) = denial.retry_after() {
            let advice = MetadataValue::from(after.as_millis().try_into().unwrap_or(u64::MAX));
            status.metadata_mut().insert("retry-after-ms", advice);
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_try_again_is_told_when() {
        let status = Status::from(Denial::TooFast(Duration::from_millis(250)));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get("retry-after-ms").unwrap(), "250");
        let status = Status::from(Denial::NoKey);
        assert!(status.metadata().get("retry-after-ms").is_none());
        assert!(status.message().contains("x-api-key"), "{status}");
    }

    #[test]
    fn a_name_without_end_is_not_sent_back() {
        let denial = Denial::forbidden(&"ä".repeat(100_000));
        assert!(denial.to_string().len() < 2 * NAME_BYTES);
    }
}

use crate::serve::front::FrontError;
use crate::serve::guard::Full;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::time::Duration;
use tonic::Code;

/// Retry delay in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");
/// How clients may authenticate.
const BEARER: HeaderValue = HeaderValue::from_static("Bearer");

/// Why a call over HTTP failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestError {
    #[error(transparent)]
    Front(#[from] FrontError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(
        "no such path `{0}`; this server speaks the Open Inference Protocol v2, whose paths begin \
         with /v2"
    )]
    Path(String),
    #[error("`{path}` does not take {method}; use {allowed}")]
    Method {
        path: String,
        method: String,
        allowed: &'static str,
    },
    #[error("this server does not take requests yet; try again")]
    Unready,
    #[error("the body is encoded as `{0}`; send it unencoded, or as gzip or deflate")]
    Encoding(String),
    #[error("the body is not {coding}, as its header says: {reason}")]
    Packed {
        coding: &'static str,
        reason: String,
    },
    #[error(
        "the body has more than {limit} bytes, unpacked, which is the most that a request for this \
         model may have; send fewer rows at once"
    )]
    TooLarge { limit: usize },
    #[error("the body broke off: {0}")]
    Broken(String),
    #[error("the body arrived too slowly; send at least {0} bytes per second")]
    Slow(u64),
    #[error(transparent)]
    Full(#[from] Full),
    #[error("the request arrived too slowly")]
    SlowQuestion,
    #[error("this server failed: {0}; please report this")]
    Internal(String),
    #[error(
        "output `{name}` is {datatype}, which travels only in binary; ask for it with \
         `\"parameters\": {{\"binary_data\": true}}`"
    )]
    OnlyBinaryOutput { name: String, datatype: String },
}

/// The body of a request is malformed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("the JSON of the request is wrong: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the header Inference-Header-Content-Length is not a single number of bytes")]
    HeaderLength,
    #[error(
        "Inference-Header-Content-Length is {given}, but the whole body has {body} bytes, unpacked"
    )]
    HeaderBeyond { given: usize, body: usize },
    #[error(
        "the inputs' binary_data_size come to {sizes} bytes, but {given} bytes follow the JSON"
    )]
    BinarySizes { sizes: String, given: usize },
    #[error("input `{0}` has both `data` and `binary_data_size`; send one of them")]
    Both(String),
    #[error("input `{0}` has neither `data` nor `binary_data_size`")]
    Neither(String),
    #[error("input `{0}`: binary_data_size must be a whole number of bytes")]
    BinarySize(String),
    #[error(
        "input `{name}`: {datatype} travels only in binary; send it with \
         `\"parameters\": {{\"binary_data_size\": N}}` and its bytes behind the JSON"
    )]
    OnlyBinary { name: String, datatype: String },
    #[error("input `{name}`: shape {shape:?} has a negative or an overflowing dimension")]
    Overflow { name: String, shape: Vec<i64> },
    #[error("`{0}` must be true or false")]
    Flag(&'static str),
    #[error("a body without JSON is for models with one input; model `{model}` has {inputs}")]
    RawInputs { model: String, inputs: usize },
    #[error(
        "a body without JSON leaves one dimension to be told by its size; input `{name}` has \
         shape {shape:?} of {datatype} and the body {bytes} bytes"
    )]
    RawShape {
        name: String,
        datatype: String,
        shape: Vec<i64>,
        bytes: usize,
    },
}

impl RestError {
    /// The status, and whether the same request may succeed soon.
    fn status(&self) -> (StatusCode, bool) {
        match self {
            Self::Front(error) => of_code(error.code()),
            Self::Request(_) | Self::Packed { .. } | Self::Broken(_) => {
                (StatusCode::BAD_REQUEST, false)
            }
            Self::OnlyBinaryOutput { .. } => (StatusCode::BAD_REQUEST, false),
            Self::Path(_) => (StatusCode::NOT_FOUND, false),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, false),
            Self::Unready => (StatusCode::SERVICE_UNAVAILABLE, true),
            Self::Encoding(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, false),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, false),
            Self::Slow(_) | Self::SlowQuestion => (StatusCode::REQUEST_TIMEOUT, false),
            Self::Full(_) => (StatusCode::TOO_MANY_REQUESTS, true),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, false),
        }
    }
}

fn whole_seconds(after: Duration) -> HeaderValue {
    HeaderValue::from(
        after
            .as_millis()
            .div_ceil(1000)
            .try_into()
            .unwrap_or(u64::MAX),
    )
}

/// The front's error in HTTP.
const fn of_code(code: Code) -> (StatusCode, bool) {
    match code {
        Code::InvalidArgument => (StatusCode::BAD_REQUEST, false),
        Code::NotFound => (StatusCode::NOT_FOUND, false),
        Code::Unimplemented => (StatusCode::NOT_IMPLEMENTED, false),
        Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, true),
        Code::OutOfRange => (StatusCode::PAYLOAD_TOO_LARGE, false),
        Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, false),
        Code::Unavailable | Code::Cancelled | Code::Aborted => {
            (StatusCode::SERVICE_UNAVAILABLE, true)
        }
        // Only a new plan changes this.
        Code::FailedPrecondition => (StatusCode::SERVICE_UNAVAILABLE, false),
        Code::Unauthenticated => (StatusCode::UNAUTHORIZED, false),
        Code::PermissionDenied => (StatusCode::FORBIDDEN, false),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, false),
    }
}

impl IntoResponse for RestError {
    fn into_response(self) -> Response {
        let (status, again) = self.status();
        let after = match &self {
            Self::Front(FrontError::Denied(denial)) => denial.retry_after().map(whole_seconds),
            Self::Front(error) if again => {
                Some(error.retry_after().map_or(RETRY_AFTER, whole_seconds))
            }
            _ => again.then_some(RETRY_AFTER),
        };
        let body = Json(json!({ "error": self.to_string() }));
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        if let Some(after) = after {
            headers.insert(header::RETRY_AFTER, after);
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, BEARER);
        }
        if let Self::Method { allowed, .. } = self {
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}

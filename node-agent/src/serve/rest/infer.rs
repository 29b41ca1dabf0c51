//! One inference request over HTTP.

use super::body::{self, Held};
use super::compression::Coding;
use super::error::{RequestError, RestError};
use super::path::ModelPath;
use super::request::{self, Parsed};
use super::response::{self, Rendered};
use super::routes::Rest;
use crate::door::Origin;
use crate::serve::access::Caller;
use crate::serve::deadline::Deadline;
use crate::serve::front::{FrontError, patience};
use crate::serve::guard::MESSAGE_BYTES;
use crate::serve::trace::TRACEPARENT;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use lamina_model::DataType;
use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::inference::{ModelMetadataRequest, ModelMetadataResponse};
use std::convert::Infallible;
use tonic::metadata::MetadataMap;

/// Header with the length of the JSON at the start of a body.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
/// Approximate most characters in JSON, with comma, per byte of an element.
const JSON_PER_BYTE: u64 = 8;
/// Longer texts are read off the threads that serve.
const LONG_TEXT: usize = 64 << 10;

impl Rest {
    /// Answers an inference request. Dropping the future cancels the work.
    pub(super) async fn infer(
        &self,
        path: ModelPath,
        headers: &HeaderMap,
        body: Body,
        origin: Origin,
        caller: &Caller,
    ) -> Result<Response, RestError> {
        let full_name = caller.full_name(&path.model);
        let held = match self.room.begin(origin, &full_name).await {
            Ok(held) => held,
            Err(full) => {
                body::discard_some(body).await;
                return Err(full.into());
            }
        };
        let (body, mut held) = self.body(&path, headers, body, held, caller).await?;
        held.is_whole().await?;
        let came = body.len();
        let mut parsed = match header_length(headers)? {
            Some(0) => request::raw(body, &self.described(&path, caller).await?)?,
            length => parse(body, length).await?,
        };
        parsed.request.model_name.clone_from(&path.model);
        parsed.request.model_version.clone_from(&path.version);
        let Parsed { request, binary } = parsed;
        // Elements as text may be smaller than in memory.
        let tensors: usize = request.raw_input_contents.iter().map(Bytes::len).sum();
        held.hold(came.max(tensors))?;
        let metadata = trace_of(headers);
        let patience = patience(&request).map_err(FrontError::from)?;
        let deadline = Deadline::of_request(&metadata, patience);
        let answer = self.front.infer(request, &metadata, deadline, caller);
        let answer = answer.await?;
        // Before there is a second copy of it, as text perhaps.
        held.answered(answer.raw_output_contents.iter().map(Bytes::len).sum())
            .await?;
        let rendered = response::render(&answer, &binary)?;
        held.answered(rendered.parts.iter().map(Bytes::len).sum())
            .await?;
        let response = respond(rendered, Coding::for_response(headers)).await?;
        Ok(response.map(|body| body::holding(held, body)))
    }

    /// The whole body, decompressed, with its charge.
    async fn body(
        &self,
        path: &ModelPath,
        headers: &HeaderMap,
        body: Body,
        mut held: Held,
        caller: &Caller,
    ) -> Result<(Bytes, Held), RestError> {
        let coding = Coding::of_request(headers)?;
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        let is_common = coding.is_none() && length.is_some_and(|bytes| bytes <= MESSAGE_BYTES);
        let limit = if is_common {
            MESSAGE_BYTES
        } else {
            self.limit(path, caller).await
        };
        let limit = limit.min(self.room.largest().max(MESSAGE_BYTES));
        let body = body::read(body, (limit, length), &mut held).await?;
        let Some(coding) = coding else {
            return Ok((body, held));
        };
        // Both are in memory at once.
        let limit = limit.min(self.room.largest().saturating_sub(body.len()));
        off_the_threads(move || {
            let unpacked = coding.unpack(&body, limit, &mut held)?;
            Ok((unpacked.into(), held))
        })
        .await?
    }

    /// Size limit of the body of a request for this model: that of its inputs in either form, if
    /// larger than the common limit.
    async fn limit(&self, path: &ModelPath, caller: &Caller) -> usize {
        // Errors about the model are reported later.
        let described = self.described(path, caller).await.ok();
        described.map_or(MESSAGE_BYTES, |model| limit_of(&model))
    }

    /// Inputs and outputs of the model.
    pub(super) async fn described(
        &self,
        path: &ModelPath,
        caller: &Caller,
    ) -> Result<ModelMetadataResponse, RestError> {
        let asked = ModelMetadataRequest {
            name: path.model.clone(),
            version: path.version.clone(),
        };
        let metadata = MetadataMap::new();
        let deadline = Deadline::of(&metadata);
        let described = self.front.metadata_of(asked, &metadata, deadline, caller);
        Ok(described.await?)
    }
}

fn limit_of(model: &ModelMetadataResponse) -> usize {
    let bytes = model.inputs.iter().map(|input| {
        let datatype: DataType = input.datatype.parse().ok()?;
        let one_row: Vec<i64> = input
            .shape
            .iter()
            .map(|d| if *d < 0 { 1 } else { *d })
            .collect();
        datatype.checked_bytes(&one_row)
    });
    let bytes = bytes.map(Option::unwrap_or_default);
    let bytes = bytes.fold(0, u64::saturating_add);
    let limit = usize::try_from(bytes.saturating_mul(JSON_PER_BYTE)).unwrap_or(usize::MAX);
    limit.clamp(MESSAGE_BYTES, MAX_MESSAGE_BYTES)
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>, RequestError> {
    let mut given = headers.get_all(HEADER_LENGTH).iter();
    let (first, more) = (given.next(), given.next());
    let Some(first) = first else { return Ok(None) };
    let text = first.to_str().ok().filter(|_| more.is_none());
    let is_number = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
    let length = text.filter(is_number).and_then(|text| text.parse().ok());
    length.map(Some).ok_or(RequestError::HeaderLength)
}

async fn parse(body: Bytes, header_length: Option<usize>) -> Result<Parsed, RestError> {
    let text = header_length.unwrap_or(body.len());
    if text <= LONG_TEXT {
        return Ok(request::parse(&body, header_length)?);
    }
    let parsed = off_the_threads(move || request::parse(&body, header_length)).await?;
    Ok(parsed?)
}

/// Runs processor-intensive `work` off the threads that serve requests.
async fn off_the_threads<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RestError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| RestError::Internal(error.to_string()))
}

/// The headers of a call that the front reads.
fn trace_of(headers: &HeaderMap) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    let trace = headers.get(TRACEPARENT).and_then(|v| v.to_str().ok());
    if let Some(trace) = trace.and_then(|text| text.parse().ok()) {
        metadata.insert(TRACEPARENT, trace);
    }
    metadata
}

async fn respond(rendered: Rendered, coding: Option<Coding>) -> Result<Response, RestError> {
    let Rendered {
        parts,
        header_length,
    } = rendered;
    let bytes: usize = parts.iter().map(Bytes::len).sum();
    let coding = coding.filter(|_| Coding::is_worth(bytes));
    let (body, bytes) = match coding {
        None => {
            let parts = parts.into_iter().map(Ok::<_, Infallible>);
            (Body::from_stream(stream::iter(parts)), bytes)
        }
        Some(coding) => {
            let packed = off_the_threads(move || coding.pack(&parts)).await?;
            let packed = packed.map_err(|error| RestError::Internal(error.to_string()))?;
            let bytes = packed.len();
            (packed.into(), bytes)
        }
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, bytes.into());
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    let kind = match header_length {
        Some(length) => {
            headers.insert(HEADER_LENGTH, length.into());
            "application/octet-stream"
        }
        None => "application/json",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(coding) = coding {
        let coding = HeaderValue::from_static(coding.name());
        headers.insert(header::CONTENT_ENCODING, coding);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_proto::inference::model_metadata_response::TensorMetadata;

    #[test]
    fn a_model_with_large_inputs_has_room_for_them() {
        let of = |shape: &[i64]| {
            limit_of(&ModelMetadataResponse {
                inputs: vec![TensorMetadata {
                    datatype: "FP32".into(),
                    shape: shape.to_vec(),
                    ..TensorMetadata::default()
                }],
                ..ModelMetadataResponse::default()
            })
        };
        assert_eq!(of(&[-1, 3, 224, 224]), MESSAGE_BYTES);
        assert_eq!(of(&[-1, 5 << 20]), 4 * 8 * (5 << 20));
        assert_eq!(of(&[1 << 40]), MAX_MESSAGE_BYTES);
        assert_eq!(of(&[i64::MAX, i64::MAX]), MESSAGE_BYTES);
    }

    #[test]
    fn the_length_of_the_json_is_one_number() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for &value in values {
                headers.append(HEADER_LENGTH, HeaderValue::from_static(value));
            }
            header_length(&headers)
        };
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["0"]).unwrap(), Some(0));
        assert_eq!(of(&["12"]).unwrap(), Some(12));
        for values in [
            &["-1"][..],
            &["1", "1"],
            &["+1"],
            &["1.5"],
            &["99999999999999999999"],
            &[""],
        ] {
            assert!(of(values).is_err(), "{values:?}");
        }
    }
}

//! From an agent that is not the entry to the one that is.

use super::dispatch::Tries;
use super::error::{FrontError, Setback};
use crate::serve::deadline::Deadline;
use crate::serve::hop::{CallError, Hops};
use crate::serve::routes::Routes;
use lamina_crds::Hop;
use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use lamina_proto::inference::{ModelInferRequest, ModelInferResponse};
use tonic::metadata::{MetadataMap, MetadataValue};

/// Marks a request that an agent passed on, so that two agents that disagree
/// about the entry do not send it to and fro.
pub(super) const FORWARDED: &str = "lamina-forwarded";
/// W3C trace context.
pub(super) const TRACEPARENT: &str = "traceparent";

/// The answer of the entry of `request`'s model. An entry that cannot be reached
/// is tried again where its route then leads, until the deadline.
///
/// # Errors
/// What the entry answered, or that it was never reached.
pub(super) async fn to_entry(
    routes: &Routes,
    hops: &Hops,
    request: &ModelInferRequest,
    metadata: &MetadataMap,
    deadline: Deadline,
) -> Result<ModelInferResponse, FrontError> {
    let mut tries = Tries::until(deadline);
    loop {
        let entry = routes.find(&request.model_name)?.entry.clone();
        match call(hops, &entry, request.clone(), metadata, deadline).await {
            Err(error @ CallError::Lost { .. }) => {
                tries.pause(Setback::Entry(error.to_string())).await?;
            }
            outcome => return Ok(outcome?),
        }
    }
}

async fn call(
    hops: &Hops,
    entry: &Hop,
    request: ModelInferRequest,
    metadata: &MetadataMap,
    deadline: Deadline,
) -> Result<ModelInferResponse, CallError> {
    let trace = metadata.get(TRACEPARENT).cloned();
    let replied = hops.call(entry, deadline, |channel| async move {
        let mut client = GrpcInferenceServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut request = tonic::Request::new(request);
        request.set_timeout(deadline.left());
        let headers = request.metadata_mut();
        headers.insert(FORWARDED, MetadataValue::from_static("1"));
        if let Some(trace) = trace {
            headers.insert(TRACEPARENT, trace);
        }
        client.model_infer(request).await
    });
    Ok(replied.await?.reply)
}

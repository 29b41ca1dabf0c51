//! Forwards requests from an agent that is not the entry to one that is.

use super::error::{FrontError, NOT_ENTRY, Setback};
use crate::serve::access::{Caller, FORWARDED};
use crate::serve::deadline::Deadline;
use crate::serve::hop::{CallError, Hops};
use crate::serve::trace::{TRACEPARENT, traceparent};
use lamina_crds::Hop;
use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// For this long an unreachable entry is tried after the others.
const AVOIDED_FOR: Duration = Duration::from_secs(5);

pub(super) type Client = GrpcInferenceServiceClient<Channel>;

/// Forwards requests. Clones share what they know of entries.
#[derive(Debug, Clone)]
pub(super) struct Relay {
    hops: Hops,
    unreachable: Arc<Mutex<BTreeMap<String, Instant>>>,
}

impl Relay {
    pub(super) fn new(hops: Hops) -> Self {
        Self {
            hops,
            unreachable: Arc::default(),
        }
    }

    /// Whether `address` was unreachable recently.
    pub(super) fn is_unreachable(&self, address: &str) -> bool {
        let since = self.lock().get(address).copied();
        since.is_some_and(|since| since.elapsed() < AVOIDED_FOR)
    }

    /// The answer of the first of `entries` that can be reached and is the entry;
    /// otherwise why the last was not. Inference is pure, so a request whose
    /// connection broke may be sent to another one.
    ///
    /// # Errors
    /// The entry refused it, or the deadline passed.
    pub(super) async fn first<R, F>(
        &self,
        entries: &[Hop],
        deadline: Deadline,
        send: impl Fn(Client) -> F,
    ) -> Result<Result<R, Setback>, FrontError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut last = Setback::Entry("no entry serves".to_owned());
        for entry in entries {
            let asked = self.hops.call(entry, deadline, |channel| {
                let sending = send(client(channel, self.hops.most_bytes()));
                async move {
                    match sending.await {
                        Ok(reply) => Ok(reply.map(Some)),
                        Err(status) if status.metadata().contains_key(NOT_ENTRY) => {
                            Ok(Response::new(None))
                        }
                        Err(status) => Err(status),
                    }
                }
            });
            let error = match asked.await {
                Ok(replied) => match replied.reply {
                    Some(reply) => return Ok(Ok(reply)),
                    None => format!("{} is not its entry at the moment", entry.node),
                },
                Err(error @ CallError::Lost { .. }) => {
                    self.avoid(&entry.address);
                    error.to_string()
                }
                Err(error) => return Err(error.into()),
            };
            last = Setback::Entry(error);
        }
        Ok(Err(last))
    }

    fn avoid(&self, address: &str) {
        let mut unreachable = self.lock();
        unreachable.retain(|_, since| since.elapsed() < AVOIDED_FOR);
        unreachable.insert(address.to_owned(), Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.unreachable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn client(channel: Channel, most_bytes: usize) -> Client {
    GrpcInferenceServiceClient::new(channel)
        .max_decoding_message_size(most_bytes)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// `message` for forwarding, with the rest of its deadline and its caller's credentials: the entry
/// decides again.
pub(super) fn marked<M>(
    message: M,
    metadata: &MetadataMap,
    deadline: Deadline,
    caller: &Caller,
) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(deadline.left());
    let headers = request.metadata_mut();
    headers.insert(FORWARDED, MetadataValue::from_static("1"));
    if let Some(trace) = traceparent(metadata).and_then(|text| text.parse().ok()) {
        headers.insert(TRACEPARENT, trace);
    }
    let shown = caller.authorization();
    if let Some(shown) = shown.and_then(|value| MetadataValue::try_from(value.as_bytes()).ok()) {
        headers.insert("authorization", shown);
    }
    request
}

//! A store on the loopback, for tests.

use lamina_model::Digest;
use lamina_proto::control::control_server::{Control, ControlServer};
use lamina_proto::control::{
    AgentMessage, BlobChunk, EnrollReply, EnrollRequest, GetBlobRequest, OperatorMessage,
    PutBlobChunk, PutBlobReply,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_stream::iter;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

type Items<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

/// Content and misbehaviour of the store.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// Offset and length of each requested range.
    pub(crate) asked: Vec<(u64, u64)>,
    /// Digests in the order in which they were put.
    pub(crate) put: Vec<String>,
    /// Chunks of each call of PutBlob.
    pub(crate) put_chunks: Vec<usize>,
    /// Ranges from this offset on fail after half of them.
    pub(crate) breaks_at: Option<u64>,
    /// Number of PutBlob calls to refuse for now.
    pub(crate) busy_puts: u32,
    /// Value of the last `authorization`.
    pub(crate) authorization: Option<String>,
    /// Duration of each range.
    pub(crate) delay: Duration,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Store(pub(crate) Arc<Mutex<Held>>);

impl Store {
    pub(crate) fn with(blobs: &[&[u8]]) -> Self {
        let store = Self::default();
        for blob in blobs {
            store.insert(&Digest::of(blob), blob);
        }
        store
    }

    pub(crate) fn insert(&self, digest: &Digest, content: &[u8]) {
        let mut held = self.0.lock().unwrap();
        held.blobs.insert(digest.to_string(), content.to_vec());
    }

    /// Serves on a port of the loopback until the task is aborted.
    pub(crate) async fn serve(&self) -> (String, JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Server::builder()
            .add_service(ControlServer::new(self.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { server.await.unwrap() });
        (address, task)
    }
}

#[tonic::async_trait]
impl Control for Store {
    type SessionStream = Items<OperatorMessage>;
    type GetBlobStream = Items<BlobChunk>;

    async fn session(
        &self,
        _: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("only a store"))
    }

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<Self::GetBlobStream>, Status> {
        let delay = self.0.lock().unwrap().delay;
        tokio::time::sleep(delay).await;
        let mut held = self.0.lock().unwrap();
        let header = request.metadata().get("authorization");
        held.authorization = header.map(|v| v.to_str().unwrap().to_owned());
        let GetBlobRequest {
            digest,
            offset,
            length,
        } = request.into_inner();
        held.asked.push((offset, length));
        let blob = held.blobs.get(&digest);
        let blob = blob.ok_or_else(|| Status::not_found("no such blob"))?;
        let range = &blob[offset as usize..(offset + length) as usize];
        let chunk = |data: &[u8]| {
            Ok(BlobChunk {
                data: bytes::Bytes::copy_from_slice(data),
                total_bytes: blob.len() as u64,
            })
        };
        let (first, second) = range.split_at(range.len() / 2);
        let breaks = held.breaks_at.is_some_and(|at| offset >= at);
        let second = if breaks {
            Err(Status::unavailable("gone"))
        } else {
            chunk(second)
        };
        Ok(Response::new(iter(vec![chunk(first), second])))
    }

    async fn enroll(&self, _: Request<EnrollRequest>) -> Result<Response<EnrollReply>, Status> {
        Err(Status::unimplemented("no certificates here"))
    }

    async fn put_blob(
        &self,
        request: Request<Streaming<PutBlobChunk>>,
    ) -> Result<Response<PutBlobReply>, Status> {
        let mut chunks = request.into_inner();
        let mut name = String::new();
        let mut content = Vec::new();
        let mut count = 0;
        while let Some(chunk) = chunks.message().await? {
            count += 1;
            name.push_str(&chunk.digest);
            content.extend_from_slice(&chunk.data);
        }
        let mut held = self.0.lock().unwrap();
        if held.busy_puts > 0 {
            held.busy_puts -= 1;
            return Err(Status::unavailable("starting"));
        }
        if Digest::of(&content).as_str() != name {
            return Err(Status::invalid_argument("the content is another"));
        }
        held.put_chunks.push(count);
        held.put.push(name.clone());
        let existed = held.blobs.insert(name, content).is_some();
        Ok(Response::new(PutBlobReply { existed }))
    }
}

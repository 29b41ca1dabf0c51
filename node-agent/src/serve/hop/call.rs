use super::error::advice;
use crate::causes::root_cause;
use crate::net::{Connection, Pool, Trust};
use crate::serve::deadline::Deadline;
use lamina_crds::Hop;
use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::hop::hop_client::HopClient;
use lamina_proto::hop::{ForwardReply, ForwardRequest, PingRequest};
use std::error::Error as _;
use std::future::Future;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Response, Status};

/// Size of an answer besides its tensors.
const OVERHEAD_BYTES: usize = 1 << 20;

/// Why a call to another agent failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    /// The other agent answered with an error.
    #[error("{reason}")]
    Refused {
        code: Code,
        reason: String,
        /// When a retry may find room, if the agent said so.
        retry_after: Option<Duration>,
    },
    /// The deadline passed first.
    #[error("{node} did not answer before the deadline")]
    Late { node: String },
    /// It cannot be reached, or the connection broke.
    #[error("no connection to {node} at {address}: {reason}")]
    Lost {
        node: String,
        address: String,
        reason: String,
    },
}

/// A reply, and its time since sending.
#[derive(Debug)]
pub(crate) struct Replied<T> {
    pub(crate) reply: T,
    pub(crate) took: Duration,
}

/// Calls to other agents on persistent connections. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Hops {
    pool: Pool,
    /// The largest answer that is taken, in bytes.
    most_bytes: usize,
}

impl Default for Hops {
    fn default() -> Self {
        Self::new(Trust::default())
    }
}

impl Hops {
    /// Calls on connections opened according to `trust`, for answers of any size.
    pub(crate) fn new(trust: Trust) -> Self {
        Self {
            pool: Pool::new(trust),
            most_bytes: MAX_MESSAGE_BYTES,
        }
    }

    /// Takes answers with tensors of at most `bytes`.
    pub(crate) fn for_answers_of(self, bytes: u64) -> Self {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Self {
            most_bytes: bytes.saturating_add(OVERHEAD_BYTES).min(MAX_MESSAGE_BYTES),
            ..self
        }
    }

    /// The largest answer that is taken, in bytes.
    pub(crate) const fn most_bytes(&self) -> usize {
        self.most_bytes
    }

    /// Closes connections unused for `unused`, once their last request is done.
    pub(crate) fn drop_unused(&self, unused: Duration) {
        self.pool.drop_unused(unused);
    }

    #[cfg(test)]
    pub(super) fn addresses(&self) -> Vec<String> {
        self.pool.addresses()
    }

    /// Has `to` run the addressed segment and everything after it.
    pub(crate) async fn forward(
        &self,
        to: &Hop,
        request: ForwardRequest,
        deadline: Deadline,
    ) -> Result<Replied<ForwardReply>, CallError> {
        self.call(to, deadline, |channel| async move {
            let mut client = HopClient::new(channel)
                .max_decoding_message_size(self.most_bytes)
                .max_encoding_message_size(MAX_MESSAGE_BYTES);
            let mut request = tonic::Request::new(request);
            request.set_timeout(deadline.left());
            client.forward(request).await
        })
        .await
    }

    /// Connects to `to` if needed.
    ///
    /// # Errors
    /// It cannot be reached, or not before the deadline.
    pub(super) async fn reach(&self, to: &Hop, deadline: Deadline) -> Result<(), CallError> {
        self.connected(to, deadline).await.map(|_| ())
    }

    /// Checks that the agent at `to` answers.
    ///
    /// # Errors
    /// It cannot be reached, or did not answer before the deadline.
    pub(super) async fn ping(&self, to: &Hop, deadline: Deadline) -> Result<(), CallError> {
        let ping = |channel| async move {
            let payload = bytes::Bytes::new();
            HopClient::new(channel).ping(PingRequest { payload }).await
        };
        self.call(to, deadline, ping).await.map(|_| ())
    }

    async fn connected(
        &self,
        to: &Hop,
        deadline: Deadline,
    ) -> Result<(Connection, Channel), CallError> {
        let connection = self.pool.connection(&to.node, &to.address);
        let connected = deadline.bound(connection.channel()).await;
        match connected.ok_or_else(|| late(to))? {
            Ok(channel) => Ok((connection, channel)),
            Err(reason) => {
                self.pool.leave(&connection, false);
                Err(lost(to, &reason.to_string()))
            }
        }
    }

    /// Runs `send` on the connection to `to`. Dropping the future cancels the call there.
    pub(crate) async fn call<T, F>(
        &self,
        to: &Hop,
        deadline: Deadline,
        send: impl FnOnce(Channel) -> F,
    ) -> Result<Replied<T>, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (connection, channel) = self.connected(to, deadline).await?;
        let begin = Instant::now();
        let outcome = tokio::select! {
            outcome = deadline.bound(send(channel)) => outcome.ok_or_else(|| late(to))?,
            () = connection.lost.cancelled() => return Err(lost(to, "it cannot be reached")),
        };
        match outcome {
            Ok(reply) => Ok(Replied {
                reply: reply.into_inner(),
                took: begin.elapsed(),
            }),
            // tonic's own timer may fire slightly earlier.
            Err(_) if deadline.has_passed() => Err(late(to)),
            Err(status) => Err(self.judge(to, &connection, status)),
        }
    }

    /// An agent's answer has no source; transport errors have one.
    fn judge(&self, to: &Hop, connection: &Connection, status: Status) -> CallError {
        let Some(cause) = status.source() else {
            return match status.code() {
                // No agent answers like this; the stream ended before its status.
                Code::Unknown | Code::Cancelled => lost(to, status.message()),
                // Nor like this: its answer is larger than what is taken.
                Code::OutOfRange => CallError::Refused {
                    code: Code::ResourceExhausted,
                    reason: format!(
                        "the answer of {} is larger than the {} bytes for which this host has room; \
                         send a smaller batch",
                        to.node, self.most_bytes
                    ),
                    retry_after: None,
                },
                code => CallError::Refused {
                    code,
                    reason: status.message().to_owned(),
                    retry_after: advice(&status),
                },
            };
        };
        let reason = root_cause(cause);
        self.pool.leave(connection, is_connect_error(cause));
        lost(to, &reason)
    }
}

fn is_connect_error(cause: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(cause);
    while let Some(error) = next {
        if error.is::<ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
}

fn late(to: &Hop) -> CallError {
    CallError::Late {
        node: to.node.clone(),
    }
}

fn lost(to: &Hop, reason: &str) -> CallError {
    CallError::Lost {
        node: to.node.clone(),
        address: to.address.clone(),
        reason: reason.to_owned(),
    }
}

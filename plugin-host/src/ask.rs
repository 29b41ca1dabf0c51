//! One question to a plugin: handshake, then its answers until the last one, the deadline or a
//! fault.

use crate::description;
use crate::error::PluginError;
use crate::incumbent::{self, Incumbent};
use crate::terms::{MAX_REPLIES, MAX_REPLY_BYTES};
use lamina_placement::{Ctx, Problem};
use lamina_proto::strategy::strategy_client::StrategyClient;
use lamina_proto::strategy::{DescribeRequest, PROTOCOL_VERSION, SolveReply, SolveRequest};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Interval of checks for cancellation.
const CANCEL_PERIOD: Duration = Duration::from_millis(20);

/// A question in progress.
pub(crate) struct Call<'a> {
    pub(crate) endpoint: &'a Endpoint,
    /// The plugin's name for its strategy.
    pub(crate) name: &'a str,
    pub(crate) problem: &'a Arc<Problem>,
    /// Time limit for everything.
    pub(crate) limit: Duration,
    pub(crate) ctx: &'a Ctx,
}

/// A plugin's last good answer, and why it is incomplete, if so.
pub(crate) struct Heard {
    pub(crate) incumbent: Incumbent,
    pub(crate) answers: usize,
    pub(crate) trouble: Option<PluginError>,
}

/// The conversation so far.
#[derive(Default)]
struct Hearing {
    /// The last answer that the checker accepts.
    accepted: Option<Incumbent>,
    /// The last fault of a refused answer.
    refused: Option<PluginError>,
    /// Number of answers.
    answers: usize,
}

impl Call<'_> {
    /// Asks, and returns the last good answer.
    pub(crate) async fn run(&self, request: SolveRequest) -> Result<Heard, PluginError> {
        let mut hearing = Hearing::default();
        let end = tokio::select! {
            done = tokio::time::timeout(self.limit, self.converse(request, &mut hearing)) => {
                done.unwrap_or_else(|_| Err(self.too_late()))
            }
            () = self.cancelled() => Err(PluginError::Cancelled),
        };
        hearing.conclude(end)
    }

    fn too_late(&self) -> PluginError {
        PluginError::Deadline {
            seconds: self.seconds(),
        }
    }

    /// Rounded to tenths of a second, so that messages stay the same from call to call.
    fn seconds(&self) -> f64 {
        (self.limit.as_secs_f64() * 10.0).round() / 10.0
    }

    async fn cancelled(&self) {
        while !self.ctx.expired() {
            tokio::time::sleep(CANCEL_PERIOD).await;
        }
    }

    async fn converse(
        &self,
        request: SolveRequest,
        hearing: &mut Hearing,
    ) -> Result<(), PluginError> {
        let endpoint = self.endpoint.clone().connect_timeout(self.limit);
        let channel = endpoint.connect().await.map_err(PluginError::Unreachable)?;
        let mut client = StrategyClient::new(channel).max_decoding_message_size(MAX_REPLY_BYTES);
        self.shake_hands(&mut client).await?;
        let call = client.solve(self.within_limit(request)).await;
        let mut answers = call.map_err(|s| self.fault(&s))?.into_inner();
        while let Some(reply) = answers.message().await.map_err(|s| self.fault(&s))? {
            hearing.answers += 1;
            if hearing.answers > MAX_REPLIES {
                return Err(PluginError::TooMany(MAX_REPLIES));
            }
            let last = reply.last;
            hearing.take(self.check(reply).await?);
            if last {
                break;
            }
        }
        Ok(())
    }

    async fn shake_hands(&self, client: &mut StrategyClient<Channel>) -> Result<(), PluginError> {
        let hello = self.within_limit(DescribeRequest {
            protocol_version: PROTOCOL_VERSION,
        });
        let reply = client
            .describe(hello)
            .await
            .map_err(|s| self.stranger(&s))?;
        description::check(reply.get_ref(), self.name, self.problem)
    }

    /// The plugin learns the deadline from the call.
    fn within_limit<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.limit);
        request
    }

    fn fault(&self, status: &Status) -> PluginError {
        PluginError::of_status(status, self.seconds())
    }

    /// A fault of the first call: most likely it is not a plugin.
    fn stranger(&self, status: &Status) -> PluginError {
        match (status.code(), self.fault(status)) {
            (Code::Unimplemented, _) => PluginError::Stranger("it has no such service".to_owned()),
            (_, PluginError::Broke { message, .. }) => PluginError::Stranger(message),
            (_, other) => other,
        }
    }

    /// The checker takes milliseconds on a large problem, which must not delay other tasks.
    async fn check(
        &self,
        reply: SolveReply,
    ) -> Result<Result<Option<Incumbent>, PluginError>, PluginError> {
        let problem = Arc::clone(self.problem);
        let checked = tokio::task::spawn_blocking(move || incumbent::check(&problem, reply));
        checked.await.map_err(PluginError::Unchecked)
    }
}

impl Hearing {
    fn take(&mut self, checked: Result<Option<Incumbent>, PluginError>) {
        match checked {
            Ok(Some(incumbent)) => self.accepted = Some(incumbent),
            Ok(None) => {}
            Err(fault) => self.refused = Some(fault),
        }
    }

    /// The result of the whole conversation.
    fn conclude(self, end: Result<(), PluginError>) -> Result<Heard, PluginError> {
        let Some(incumbent) = self.accepted else {
            // A wrong answer is more informative than the end that follows it.
            let cause = self.refused.or(end.err());
            return Err(cause.unwrap_or(PluginError::NoAnswer));
        };
        // Improving until the deadline is legitimate.
        let fault = end
            .err()
            .filter(|e| !matches!(e, PluginError::Deadline { .. } | PluginError::Cancelled));
        Ok(Heard {
            incumbent,
            answers: self.answers,
            trouble: fault.or(self.refused),
        })
    }
}

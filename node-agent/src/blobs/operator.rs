//! The connection to the operator's store.

use crate::shared::OperatorEndpoint;
use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::control::control_client::ControlClient;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection whose other end is gone without a word is noticed after two of
/// these.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

pub(super) type Client = ControlClient<InterceptedService<Channel, Authorization>>;

/// Makes clients for the operator, wherever it is now.
#[derive(Debug)]
pub(super) struct Operator {
    pub(super) endpoint: OperatorEndpoint,
    token_file: Option<PathBuf>,
    held: Mutex<Option<(String, Channel)>>,
}

/// Adds the token that the operator expects.
#[derive(Debug, Clone)]
pub(super) struct Authorization(Option<MetadataValue<Ascii>>);

impl Interceptor for Authorization {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Operator {
    pub(super) const fn new(endpoint: OperatorEndpoint, token_file: Option<PathBuf>) -> Self {
        Self {
            endpoint,
            token_file,
            held: Mutex::new(None),
        }
    }

    /// A client on the kept connection; the error is the reason why there is none.
    pub(super) fn client(&self) -> Result<Client, String> {
        let channel = self.channel()?;
        let authorization = Authorization(self.token()?);
        Ok(ControlClient::with_interceptor(channel, authorization)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// Lets go of the connection, which may be one to an operator that is gone.
    pub(super) fn disconnect(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn channel(&self) -> Result<Channel, String> {
        let address = self.endpoint.subscribe().borrow().clone();
        if address.is_empty() {
            return Err("the operator's address is not known yet".into());
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, channel)) = held.as_ref()
            && *known == address
        {
            return Ok(channel.clone());
        }
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| format!("`{address}` is no address: {e}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .connect_lazy();
        *held = Some((address, channel.clone()));
        Ok(channel)
    }

    /// Read each time: a projected token is replaced before it expires.
    fn token(&self) -> Result<Option<MetadataValue<Ascii>>, String> {
        let Some(file) = &self.token_file else {
            return Ok(None);
        };
        let token = std::fs::read_to_string(file)
            .map_err(|e| format!("cannot read the token {}: {e}", file.display()))?;
        format!("Bearer {}", token.trim())
            .parse()
            .map(Some)
            .map_err(|_| format!("{} holds no token", file.display()))
    }
}

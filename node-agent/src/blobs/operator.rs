//! The connection to the operator's store.

use crate::causes::with_causes;
use crate::net::{Bearer, OperatorEndpoint, Profile, Target, bearer, connect_lazy};
use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::control::control_client::ControlClient;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use tonic::Status;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

pub(super) type Client = ControlClient<InterceptedService<Channel, Authorization>>;

/// Creates clients for the operator at its current address.
#[derive(Debug)]
pub(super) struct Operator {
    pub(super) endpoint: OperatorEndpoint,
    token_file: Option<PathBuf>,
    held: Mutex<Option<(String, Channel)>>,
}

/// Adds the token that the operator expects.
#[derive(Debug, Clone)]
pub(super) struct Authorization(Option<Bearer>);

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

    /// A client on the kept connection; the error says why there is none.
    pub(super) async fn client(&self) -> Result<Client, String> {
        let channel = self.channel()?;
        let token = match &self.token_file {
            Some(file) => Some(bearer(file).await.map_err(|e| with_causes(&e))?),
            None => None,
        };
        Ok(
            ControlClient::with_interceptor(channel, Authorization(token))
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
    }

    /// Drops the connection, which may lead to an operator that is gone.
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
        let operator = Target::Operator { address: &address };
        let channel = connect_lazy(operator, &Profile::BLOBS, self.endpoint.trust());
        let channel = channel.map_err(|e| e.to_string())?;
        *held = Some((address, channel.clone()));
        Ok(channel)
    }
}

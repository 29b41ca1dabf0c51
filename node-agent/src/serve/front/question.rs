//! Questions about a model that its entry answers, as agents forward them.

use super::relay::Client;
use lamina_proto::inference::{
    ModelMetadataRequest, ModelMetadataResponse, ModelStatisticsRequest, ModelStatisticsResponse,
};
use tonic::{Request, Response, Status};

/// One of them.
pub(super) trait Question: Sized + Send {
    /// The entry's answer.
    type Answer;

    /// The question about that version of a model.
    fn about(name: String, version: String) -> Self;

    /// Sends it over `client`.
    fn ask(
        client: Client,
        question: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
}

impl Question for ModelMetadataRequest {
    type Answer = ModelMetadataResponse;

    fn about(name: String, version: String) -> Self {
        Self { name, version }
    }

    async fn ask(
        mut client: Client,
        question: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        client.model_metadata(question).await
    }
}

impl Question for ModelStatisticsRequest {
    type Answer = ModelStatisticsResponse;

    fn about(name: String, version: String) -> Self {
        Self { name, version }
    }

    async fn ask(
        mut client: Client,
        question: Request<Self>,
    ) -> Result<Response<Self::Answer>, Status> {
        client.model_statistics(question).await
    }
}

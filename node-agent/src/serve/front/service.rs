use super::dispatch::{Dispatcher, Inbound};
use super::error::FrontError;
use super::output::{self, VERSION};
use super::trouble::Troubles;
use super::{input, relay};
use crate::serve::deadline::Deadline;
use crate::serve::hop::Forwarder;
use crate::serve::routes::{Model, Routes};
use lamina_model::ValueSpec;
use lamina_proto::inference::grpc_inference_service_server::GrpcInferenceService;
use lamina_proto::inference::model_metadata_response::TensorMetadata;
use lamina_proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ServerLiveRequest, ServerLiveResponse,
    ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use std::sync::Arc;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

/// The inference service of one agent.
#[derive(Clone)]
pub(crate) struct Front {
    dispatcher: Dispatcher,
    ready: watch::Receiver<bool>,
}

impl Front {
    /// `ready` tells whether the agent takes requests at all.
    pub(crate) fn new(routes: Routes, forwarder: Forwarder, ready: watch::Receiver<bool>) -> Self {
        Self {
            dispatcher: Dispatcher {
                routes,
                forwarder,
                troubles: Troubles::default(),
            },
            ready,
        }
    }

    fn model(&self, name: &str, version: &str) -> Result<Arc<Model>, FrontError> {
        let model = self.dispatcher.routes.find(name)?;
        if version.is_empty() || version == VERSION {
            return Ok(model);
        }
        Err(FrontError::Version {
            model: name.to_owned(),
            version: version.to_owned(),
        })
    }

    async fn infer(
        &self,
        request: ModelInferRequest,
        metadata: &MetadataMap,
        deadline: Deadline,
    ) -> Result<ModelInferResponse, FrontError> {
        let Dispatcher {
            routes, forwarder, ..
        } = &self.dispatcher;
        let model = self.model(&request.model_name, &request.model_version)?;
        let tensors = input::inputs(&model, &request)?;
        let wanted = input::wanted_outputs(&model, &request.outputs)?;
        if *model.entry.node != *forwarder.node {
            if metadata.contains_key(relay::FORWARDED) {
                return Err(FrontError::Loop {
                    node: forwarder.node.to_string(),
                    model: model.full_name.clone(),
                    entry: model.entry.clone(),
                });
            }
            return relay::to_entry(routes, &forwarder.hops, &request, metadata, deadline).await;
        }
        let inbound = Inbound {
            id: id_of(&request),
            traceparent: text(metadata, relay::TRACEPARENT),
            tensors,
        };
        let answered = self.dispatcher.answer(&model, &inbound, deadline).await?;
        output::response(request.model_name, inbound.id, &wanted, answered)
    }
}

/// The client's id; one made here where it sent none, so that logs can tell
/// requests apart.
fn id_of(request: &ModelInferRequest) -> String {
    if request.id.is_empty() {
        format!("{:016x}", rand::random::<u64>())
    } else {
        request.id.clone()
    }
}

fn text(metadata: &MetadataMap, key: &str) -> String {
    let value = metadata.get(key).and_then(|v| v.to_str().ok());
    value.unwrap_or_default().to_owned()
}

fn described(specs: &[ValueSpec]) -> Vec<TensorMetadata> {
    specs
        .iter()
        .map(|spec| TensorMetadata {
            name: spec.name.clone(),
            datatype: spec.datatype.as_str().to_owned(),
            shape: spec.shape.clone(),
        })
        .collect()
}

#[tonic::async_trait]
impl GrpcInferenceService for Front {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = *self.ready.borrow();
        Ok(Response::new(ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let ready = self.model(&name, &version).is_ok_and(|m| m.serves);
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: "lamina".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: Vec::new(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let model = self.model(&name, &version)?;
        Ok(Response::new(ModelMetadataResponse {
            name,
            versions: vec![VERSION.to_owned()],
            platform: "pytorch_torchscript".to_owned(),
            inputs: described(&model.inputs),
            outputs: described(&model.outputs),
            properties: [("lamina_entry".to_owned(), model.entry.node.clone())].into(),
        }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let _inside = self.dispatcher.forwarder.telemetry.request_began();
        let deadline = Deadline::of(request.metadata());
        let (metadata, _, request) = request.into_parts();
        let response = self.infer(request, &metadata, deadline).await?;
        Ok(Response::new(response))
    }
}

//! The paths of the protocol.

use super::body::{self, Room};
use super::error::RestError;
use super::path::{self, Asked, ModelPath};
use super::statistics;
use crate::door::Origin;
use crate::serve::access::Caller;
use crate::serve::deadline::Deadline;
use crate::serve::front::{EXTENSIONS, Front, FrontError, SERVER_NAME};
use crate::serve::guard::NOWHERE;
use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use lamina_proto::inference::model_metadata_response::TensorMetadata;
use lamina_proto::inference::{ModelMetadataResponse, ModelStatisticsRequest};
use serde_json::{Value, json};
use tonic::metadata::MetadataMap;

/// The extension offered only over HTTP, under its known name.
const BINARY_TENSORS: &str = "binary_tensor_data";

/// The handlers' state. Clones share it.
#[derive(Clone)]
pub(super) struct Rest {
    pub(super) front: Front,
    pub(super) room: Room,
}

/// The whole service; its requests are charged to `room`.
pub(crate) fn router(front: Front, room: Room) -> Router {
    let rest = Rest { front, room };
    Router::new().fallback(call).with_state(rest)
}

async fn call(State(rest): State<Rest>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    // A HEAD is a GET whose body hyper omits.
    let method = if head.method == Method::HEAD {
        Method::GET
    } else {
        head.method
    };
    let path = head.uri.path();
    let Some(endpoint) = Endpoint::of(path) else {
        return RestError::Path(path.to_owned()).into_response();
    };
    let allowed = endpoint.method();
    if method != allowed {
        return RestError::Method {
            path: path.to_owned(),
            method: method.to_string(),
            allowed: if allowed == Method::POST {
                "POST"
            } else {
                "GET"
            },
        }
        .into_response();
    }
    let answer = match endpoint {
        Endpoint::Live => Ok(Json(json!({ "live": true })).into_response()),
        Endpoint::Ready => rest.ready(),
        Endpoint::Server => Ok(server()),
        Endpoint::Statistics | Endpoint::Index | Endpoint::Repository => {
            match rest.admit(&head.headers, &head.extensions).await {
                Err(refusal) => {
                    body::discard_some(body).await;
                    Err(refusal)
                }
                Ok(caller) => match endpoint {
                    Endpoint::Index => rest.index(body, &caller).await,
                    Endpoint::Statistics => rest.statistics("", "", &caller).await,
                    _ => {
                        body::discard_some(body).await;
                        Err(FrontError::Repository.into())
                    }
                },
            }
        }
        Endpoint::Model(path) => match rest.let_in(&path, &head.headers, &head.extensions).await {
            Err(refusal) => {
                body::discard_some(body).await;
                Err(refusal)
            }
            Ok(caller) if path.asked == Asked::Infer => {
                let origin = origin(&head.extensions);
                rest.infer(path, &head.headers, body, origin, &caller).await
            }
            Ok(caller) => rest.tell(&path, &caller).await,
        },
    };
    answer.unwrap_or_else(IntoResponse::into_response)
}

/// The meaning of a path.
enum Endpoint {
    Live,
    Ready,
    Server,
    /// Of all models.
    Statistics,
    Index,
    /// Load and unload, which are not supported.
    Repository,
    Model(ModelPath),
}

impl Endpoint {
    fn of(path: &str) -> Option<Self> {
        let whole = path.strip_suffix('/').unwrap_or(path);
        if whole == "/v2/models/stats" {
            return Some(Self::Statistics);
        }
        if let Some(rest) = path.strip_prefix("/v2/models/") {
            return path::parse(rest).map(Self::Model);
        }
        if let Some(rest) = whole.strip_prefix("/v2/repository/models/") {
            let is_verb = |end| rest.len() > str::len(end) && rest.ends_with(end);
            let is_known = is_verb("/load") || is_verb("/unload");
            return is_known.then_some(Self::Repository);
        }
        match whole {
            "/v2/repository/index" => Some(Self::Index),
            "/v2" => Some(Self::Server),
            "/v2/health/live" => Some(Self::Live),
            "/v2/health/ready" => Some(Self::Ready),
            _ => None,
        }
    }

    fn method(&self) -> Method {
        match self {
            Self::Index | Self::Repository => Method::POST,
            Self::Model(path) if matches!(path.asked, Asked::Infer) => Method::POST,
            _ => Method::GET,
        }
    }
}

/// The origin of a request.
fn origin(extensions: &Extensions) -> Origin {
    extensions.get().copied().unwrap_or(NOWHERE)
}

fn server() -> Response {
    let extensions = [&[BINARY_TENSORS], &EXTENSIONS[..]].concat();
    Json(json!({
        "name": SERVER_NAME,
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": extensions,
    }))
    .into_response()
}

impl Rest {
    /// The protocol's text calls this field `live` too, its schema `ready`.
    fn ready(&self) -> Result<Response, RestError> {
        if !self.front.is_ready() {
            return Err(RestError::Unready);
        }
        Ok(Json(json!({ "live": true, "ready": true })).into_response())
    }

    /// The caller.
    async fn admit(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Caller, RestError> {
        let from = origin(extensions).address;
        let caller = self.front.access().admit(headers, from, None).await;
        Ok(caller.map_err(FrontError::from)?)
    }

    /// The caller, if it may use the model of `path`.
    async fn let_in(
        &self,
        path: &ModelPath,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Caller, RestError> {
        let caller = self.admit(headers, extensions).await?;
        self.front.asked_for(&caller, &path.model).await?;
        Ok(caller)
    }

    /// Statistics of a model; of all if it has no name.
    async fn statistics(
        &self,
        name: &str,
        version: &str,
        caller: &Caller,
    ) -> Result<Response, RestError> {
        let asked = ModelStatisticsRequest {
            name: name.to_owned(),
            version: version.to_owned(),
        };
        let metadata = MetadataMap::new();
        let deadline = Deadline::of(&metadata);
        let told = self.front.statistics_of(asked, &metadata, deadline, caller);
        Ok(Json(statistics::render(&told.await?)).into_response())
    }

    async fn tell(&self, path: &ModelPath, caller: &Caller) -> Result<Response, RestError> {
        let told = match path.asked {
            Asked::Statistics => {
                return self.statistics(&path.model, &path.version, caller).await;
            }
            Asked::Ready => {
                let ready = self.front.check_ready(&path.model, &path.version, caller);
                ready.await?;
                json!({ "name": path.model, "ready": true })
            }
            Asked::Config => config(&self.described(path, caller).await?),
            Asked::Metadata | Asked::Infer => metadata(&self.described(path, caller).await?),
        };
        Ok((StatusCode::OK, Json(told)).into_response())
    }
}

fn metadata(model: &ModelMetadataResponse) -> Value {
    let tensors = |tensors: &[TensorMetadata]| -> Vec<Value> {
        tensors
            .iter()
            .map(|t| json!({ "name": t.name, "datatype": t.datatype, "shape": t.shape }))
            .collect()
    };
    json!({
        "name": model.name,
        "versions": model.versions,
        "platform": model.platform,
        "inputs": tensors(&model.inputs),
        "outputs": tensors(&model.outputs),
        "properties": model.properties,
    })
}

/// The model's configuration for benchmark clients. Batches are ordinary dimensions here, so there
/// is no `max_batch_size`.
fn config(model: &ModelMetadataResponse) -> Value {
    let tensors = |tensors: &[TensorMetadata]| -> Vec<Value> {
        tensors
            .iter()
            .map(|t| {
                let data_type = format!("TYPE_{}", t.datatype);
                json!({ "name": t.name, "data_type": data_type, "dims": t.shape })
            })
            .collect()
    };
    json!({
        "name": model.name,
        "platform": model.platform,
        "backend": SERVER_NAME,
        "max_batch_size": 0,
        "input": tensors(&model.inputs),
        "output": tensors(&model.outputs),
    })
}

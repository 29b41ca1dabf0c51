//! The paths of the protocol.

use super::body::{self, Room};
use super::error::RestError;
use super::path::{self, Asked, ModelPath};
use crate::door::Origin;
use crate::serve::access::Caller;
use crate::serve::front::{Front, FrontError, SERVER_NAME};
use crate::serve::guard::NOWHERE;
use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use lamina_proto::inference::ModelMetadataResponse;
use lamina_proto::inference::model_metadata_response::TensorMetadata;
use serde_json::{Value, json};

/// What is offered beyond the protocol itself, under the names that clients know.
const EXTENSIONS: [&str; 2] = ["binary_tensor_data", "model_configuration"];

/// What the calls work with. Clones share it.
#[derive(Clone)]
pub(super) struct Rest {
    pub(super) front: Front,
    pub(super) room: Room,
}

/// All of it as one service, whose requests take of `room`.
pub(crate) fn router(front: Front, room: Room) -> Router {
    let rest = Rest { front, room };
    Router::new().fallback(call).with_state(rest)
}

async fn call(State(rest): State<Rest>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    // A HEAD is a GET whose body hyper leaves out.
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

/// What a path stands for.
enum Endpoint {
    Live,
    Ready,
    Server,
    Model(ModelPath),
}

impl Endpoint {
    fn of(path: &str) -> Option<Self> {
        if let Some(rest) = path.strip_prefix("/v2/models/") {
            return path::parse(rest).map(Self::Model);
        }
        match path.strip_suffix('/').unwrap_or(path) {
            "/v2" => Some(Self::Server),
            "/v2/health/live" => Some(Self::Live),
            "/v2/health/ready" => Some(Self::Ready),
            _ => None,
        }
    }

    fn method(&self) -> Method {
        match self {
            Self::Model(path) if matches!(path.asked, Asked::Infer) => Method::POST,
            _ => Method::GET,
        }
    }
}

/// Where a request came from.
fn origin(extensions: &Extensions) -> Origin {
    extensions.get().copied().unwrap_or(NOWHERE)
}

fn server() -> Response {
    Json(json!({
        "name": SERVER_NAME,
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": EXTENSIONS,
    }))
    .into_response()
}

impl Rest {
    /// The protocol's text calls the field `live` here, too, its schema `ready`.
    fn ready(&self) -> Result<Response, RestError> {
        if !self.front.is_ready() {
            return Err(RestError::Unready);
        }
        Ok(Json(json!({ "live": true, "ready": true })).into_response())
    }

    /// Who asks for the model of `path`, and may.
    async fn let_in(
        &self,
        path: &ModelPath,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Caller, RestError> {
        let from = origin(extensions).address;
        let caller = self.front.access().admit(headers, from, None).await;
        let caller = caller.map_err(FrontError::from)?;
        self.front.asked_for(&caller, &path.model).await?;
        Ok(caller)
    }

    async fn tell(&self, path: &ModelPath, caller: &Caller) -> Result<Response, RestError> {
        let told = match path.asked {
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

/// The model's configuration as clients that measure read it. Batches are dimensions
/// here like any other, so there is no `max_batch_size`.
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

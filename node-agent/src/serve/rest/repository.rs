//! The index of models over HTTP.

use super::error::{RequestError, RestError};
use super::routes::Rest;
use crate::serve::access::Caller;
use axum::Json;
use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse as _, Response};
use lamina_proto::inference::{RepositoryIndexRequest, RepositoryIndexResponse};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;

/// Size limit of a question, and its time limit.
const MOST_BYTES: usize = 4 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// The filter; everything if there is no body.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Asked {
    ready: bool,
    repository_name: String,
}

impl Rest {
    /// The models that `caller` may use.
    pub(super) async fn index(&self, body: Body, caller: &Caller) -> Result<Response, RestError> {
        let Asked {
            ready,
            repository_name,
        } = read(body).await?;
        let asked = RepositoryIndexRequest {
            repository_name,
            ready,
        };
        let told = self.front.index(asked, caller).await?;
        Ok(Json(render(&told)).into_response())
    }
}

async fn read(body: Body) -> Result<Asked, RestError> {
    let read = timeout(PATIENCE, to_bytes(body, MOST_BYTES)).await;
    let read = read.map_err(|_| RestError::SlowQuestion)?;
    let text = read.map_err(|error| RestError::Broken(error.to_string()))?;
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Asked::default());
    }
    Ok(serde_json::from_slice(&text).map_err(RequestError::from)?)
}

fn render(told: &RepositoryIndexResponse) -> Value {
    let models = told.models.iter().map(|model| {
        json!({
            "name": model.name,
            "version": model.version,
            "state": model.state,
            "reason": model.reason,
        })
    });
    Value::Array(models.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_body_asks_for_all() {
        for all in ["", " \n", "{}", r#"{"ready": false, "more": [1]}"#] {
            assert_eq!(read(Body::from(all)).await.unwrap(), Asked::default());
        }
        let asked = r#"{"ready": true, "repository_name": "lab"}"#;
        let asked = read(Body::from(asked)).await.unwrap();
        assert_eq!((asked.ready, asked.repository_name.as_str()), (true, "lab"));
        for bad in ["{", "5", r#"{"ready": 5}"#] {
            let error = read(Body::from(bad)).await.unwrap_err();
            assert!(error.to_string().contains("JSON"), "{error}");
        }
        let long = " ".repeat(MOST_BYTES + 1);
        read(Body::from(long)).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_never_ends_is_not_waited_for() {
        let never = futures::stream::pending::<Result<&[u8], std::io::Error>>();
        let error = read(Body::from_stream(never)).await.unwrap_err();
        assert!(matches!(error, RestError::SlowQuestion), "{error}");
    }
}

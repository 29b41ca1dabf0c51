//! Secrets that models name as credentials of their source. Each is read when a job starts
//! and passed to its agent; it is not stored.

use crate::state::ids::SecretId;
use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use lamina_crds::SOURCE_CREDENTIALS_LABEL;
use lamina_proto::control::SourceSecret;
use std::time::Duration;
use tokio::time::timeout;

/// The reconcile loop waits for it.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of all entries together. Certificates of several authorities fit.
const LARGEST_BYTES: usize = 64 << 10;

/// Why a Secret cannot be used. Its contents are not reported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// There is none.
    #[error("spec.source.secretRef: there is no Secret `{0}` in the model's namespace")]
    Missing(String),
    /// The operator may not read it.
    #[error(
        "spec.source.secretRef: the operator may not read Secrets of the namespace {0}; the \
         chart's value operator.sourceSecrets.namespaces names those where it may"
    )]
    Forbidden(String),
    /// It lacks the label.
    #[error(
        "spec.source.secretRef: the Secret `{0}` lacks the label {SOURCE_CREDENTIALS_LABEL}: \
         \"true\", without which it is not used"
    )]
    Unlabelled(String),
    /// It is too large for credentials.
    #[error("spec.source.secretRef: the Secret `{0}` is larger than {LARGEST_BYTES} bytes")]
    TooLarge(String),
    /// The API server returned an error.
    #[error("spec.source.secretRef: the Secret `{name}` cannot be read")]
    Read {
        /// Its name.
        name: String,
        /// The API server's error.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not answer.
    #[error("spec.source.secretRef: the API server did not give the Secret `{0}` in time")]
    Slow(String),
}

/// The entries of a Secret.
///
/// # Errors
/// It is missing, not labelled, too large, or cannot be read.
pub(crate) async fn read(client: &Client, id: &SecretId) -> Result<SourceSecret, SecretError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &id.namespace);
    let name = || id.name.clone();
    let secret = match timeout(READ_TIMEOUT, api.get_opt(&id.name)).await {
        Ok(Ok(Some(secret))) => secret,
        Ok(Ok(None)) => return Err(SecretError::Missing(name())),
        Ok(Err(kube::Error::Api(status))) if status.code == StatusCode::FORBIDDEN.as_u16() => {
            return Err(SecretError::Forbidden(id.namespace.clone()));
        }
        Ok(Err(error)) => {
            return Err(SecretError::Read {
                name: name(),
                source: Box::new(error),
            });
        }
        Err(_) => return Err(SecretError::Slow(name())),
    };
    let labels = secret.metadata.labels.unwrap_or_default();
    if labels.get(SOURCE_CREDENTIALS_LABEL).map(String::as_str) != Some("true") {
        return Err(SecretError::Unlabelled(name()));
    }
    let data = secret.data.unwrap_or_default();
    let bytes: usize = data
        .iter()
        .map(|(key, value)| key.len() + value.0.len())
        .sum();
    if bytes > LARGEST_BYTES {
        return Err(SecretError::TooLarge(name()));
    }
    let entries = data.into_iter();
    Ok(SourceSecret {
        entries: entries
            .map(|(key, value)| (key, Bytes::from(value.0)))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    /// Interprets the answer with this status and body.
    async fn read_of(status: u16, body: Value) -> Result<SourceSecret, SecretError> {
        let service = tower::service_fn(move |request: Request<Body>| {
            let body = body.clone();
            async move {
                assert_eq!(
                    request.uri().path(),
                    "/api/v1/namespaces/team/secrets/files"
                );
                let body = Body::from(body.to_string().into_bytes());
                Response::builder().status(status).body(body)
            }
        });
        let id = SecretId {
            namespace: "team".into(),
            name: "files".into(),
        };
        read(&Client::new(service, "team"), &id).await
    }

    fn secret(label: &str, value: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "files", "labels": {SOURCE_CREDENTIALS_LABEL: label}},
            "data": {"token": value},
        })
    }

    fn refusal(code: u16, reason: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure",
            "code": code, "reason": reason, "message": "no",
        })
    }

    #[tokio::test]
    async fn a_labelled_secret_is_read() {
        let read = read_of(200, secret("true", "aGlkZGVu")).await.unwrap();
        assert_eq!(read.entries["token"], b"hidden"[..]);
    }

    #[tokio::test]
    async fn other_secrets_stay_where_they_are() {
        let unlabelled = read_of(200, secret("false", "aGlkZGVu")).await.unwrap_err();
        assert!(
            matches!(unlabelled, SecretError::Unlabelled(_)),
            "{unlabelled}"
        );
        let large = read_of(200, secret("true", &"YWFh".repeat(30_000))).await;
        assert!(matches!(large, Err(SecretError::TooLarge(_))));
        let missing = read_of(404, refusal(404, "NotFound")).await.unwrap_err();
        assert!(matches!(missing, SecretError::Missing(_)), "{missing}");
        let forbidden = read_of(403, refusal(403, "Forbidden")).await.unwrap_err();
        assert!(
            forbidden
                .to_string()
                .contains("operator.sourceSecrets.namespaces"),
            "{forbidden}"
        );
    }
}

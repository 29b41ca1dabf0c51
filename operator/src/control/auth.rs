use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use lamina_model::Digest;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;

/// What the API server says of a token that is bound to a pod.
const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";
/// A token is not reviewed again within this time: blobs come in many ranges.
const FRESH: Duration = Duration::from_secs(60);
/// While the API server is away, tokens that it once accepted stay good for this
/// time.
const STALE: Duration = Duration::from_secs(600);
/// A review that takes longer has failed.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Name of the node whose agent it is; `None` where nobody checks.
    pub node: Option<String>,
}

/// The caller is not let in.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum AuthError {
    #[error("no token; send the pod's service account token as metadata `authorization: Bearer …`")]
    MissingToken,
    #[error("the API server does not accept the token ({0}); renew it")]
    Rejected(String),
    #[error("`{user}` is no service account of namespace `{namespace}`")]
    OtherNamespace { user: String, namespace: String },
    #[error("the token is not bound to a pod on a node; use the pod's projected token")]
    NotBound,
    #[error("the API server could not be asked about the token; try again")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Finds out who calls.
#[async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// The caller that sent `metadata`.
    ///
    /// # Errors
    /// It is not let in.
    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, AuthError>;
}

/// Lets everyone in, for tests without an API server.
#[derive(Debug, Clone, Copy)]
pub struct Insecure;

#[async_trait]
impl Authenticate for Insecure {
    async fn authenticate(&self, _: &MetadataMap) -> Result<Caller, AuthError> {
        Ok(Caller { node: None })
    }
}

/// Lets in who has a token of a pod in the operator's namespace, as the API
/// server's TokenReview says.
pub struct TokenReviews {
    reviews: Api<TokenReview>,
    namespace: String,
    known: Mutex<BTreeMap<Digest, (String, Instant)>>,
}

impl TokenReviews {
    /// Accepts service accounts of `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            reviews: Api::all(client),
            namespace: namespace.to_owned(),
            known: Mutex::default(),
        }
    }

    async fn review(&self, token: &str) -> Result<String, AuthError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let answer = tokio::time::timeout(REVIEW_TIMEOUT, self.reviews.create(&params, &review))
            .await
            .map_err(|late| AuthError::Unavailable(Box::new(late)))?
            .map_err(|error| AuthError::Unavailable(Box::new(error)))?;
        node_of(&answer.status.unwrap_or_default(), &self.namespace)
    }

    /// The node of a token that was accepted within `age`.
    fn remembered(&self, token: &Digest, age: Duration) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (node, at) = known.get(token)?;
        (at.elapsed() < age).then(|| node.clone())
    }

    fn remember(&self, token: Digest, node: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, at)| at.elapsed() < STALE);
        known.insert(token, (node.to_owned(), Instant::now()));
    }

    fn forget(&self, token: &Digest) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(token);
    }
}

#[async_trait]
impl Authenticate for TokenReviews {
    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, AuthError> {
        let token = bearer(metadata).ok_or(AuthError::MissingToken)?;
        let key = Digest::of(token.as_bytes());
        let node = match self.remembered(&key, FRESH) {
            Some(node) => node,
            None => match self.review(token).await {
                Ok(node) => {
                    self.remember(key, &node);
                    node
                }
                Err(AuthError::Unavailable(cause)) => self
                    .remembered(&key, STALE)
                    .ok_or(AuthError::Unavailable(cause))?,
                Err(refused) => {
                    self.forget(&key);
                    return Err(refused);
                }
            },
        };
        Ok(Caller { node: Some(node) })
    }
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Name of the node to whose pod the reviewed token is bound.
fn node_of(review: &TokenReviewStatus, namespace: &str) -> Result<String, AuthError> {
    if review.authenticated != Some(true) {
        let why = review.error.clone().filter(|e| !e.is_empty());
        let why = why.unwrap_or_else(|| "unknown or expired".to_owned());
        return Err(AuthError::Rejected(why));
    }
    let user = review.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    if !name.starts_with(&format!("system:serviceaccount:{namespace}:")) {
        return Err(AuthError::OtherNamespace {
            user: name,
            namespace: namespace.to_owned(),
        });
    }
    user.extra
        .unwrap_or_default()
        .get(NODE_NAME_EXTRA)
        .and_then(|values| values.first().cloned())
        .ok_or(AuthError::NotBound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::UserInfo;

    fn review(user: &str, node: Option<&str>) -> TokenReviewStatus {
        let extra = node.map(|n| (NODE_NAME_EXTRA.to_owned(), vec![n.to_owned()]));
        TokenReviewStatus {
            authenticated: Some(true),
            user: Some(UserInfo {
                username: Some(user.to_owned()),
                extra: Some(extra.into_iter().collect()),
                ..UserInfo::default()
            }),
            ..TokenReviewStatus::default()
        }
    }

    #[test]
    fn a_pods_token_names_its_node() {
        let agent = "system:serviceaccount:lamina:lamina-agent";
        let node = node_of(&review(agent, Some("cam-1")), "lamina").unwrap();
        assert_eq!(node, "cam-1");
    }

    #[test]
    fn other_tokens_are_refused_with_their_reason() {
        let agent = "system:serviceaccount:lamina:lamina-agent";
        let error = |status: TokenReviewStatus| node_of(&status, "lamina").unwrap_err();
        assert!(matches!(error(review(agent, None)), AuthError::NotBound));
        // A namespace whose name begins with ours is another one.
        let other = "system:serviceaccount:lamina-2:default";
        assert!(matches!(
            error(review(other, Some("cam-1"))),
            AuthError::OtherNamespace { .. }
        ));
        assert!(matches!(
            error(review("system:node:cam-1", Some("cam-1"))),
            AuthError::OtherNamespace { .. }
        ));
        let expired = TokenReviewStatus {
            authenticated: Some(false),
            error: Some("token has expired".into()),
            ..review(agent, Some("cam-1"))
        };
        assert!(error(expired).to_string().contains("token has expired"));
        assert!(matches!(
            error(TokenReviewStatus::default()),
            AuthError::Rejected(_)
        ));
    }

    #[test]
    fn a_bearer_token_is_taken_whatever_the_case_of_its_scheme() {
        let with = |value: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", value.parse().unwrap());
            bearer(&metadata).map(str::to_owned)
        };
        assert_eq!(with("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(with("bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(with("Basic abc"), None);
        assert_eq!(with("Bearer "), None);
        assert_eq!(bearer(&MetadataMap::new()), None);
    }
}

//! Authenticates callers: agents, by the token of their pod.

use super::bearer::Token;
use super::callers::Host;
use super::known::{FRESH, Known, STALE, Source};
use crate::hosts::HostRefusal;
use async_trait::async_trait;
use http::HeaderMap;
use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use lamina_identity::Peer;
use lamina_model::Digest;
use lamina_proto::CONTROL_AUDIENCE;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Key of the node's name in the API server's answer about a token bound to a pod.
const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";
const POD_NAME_EXTRA: &str = "authentication.kubernetes.io/pod-name";
const POD_UID_EXTRA: &str = "authentication.kubernetes.io/pod-uid";
/// A request to the API server that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Concurrent requests to the API server.
const AT_ONCE: usize = 32;
/// A pod's address appears in the API server a moment after it runs: retry this often, with this
/// pause.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(500);

/// The pod of an agent, from its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agent {
    /// Name of the node.
    pub(super) node: String,
    /// Name of the pod.
    pub(super) pod: String,
    /// Its UID.
    pub(super) pod_uid: String,
}

/// What is known about a call before its message is read.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Where it comes from.
    pub from: Option<IpAddr>,
    /// The name in its connection's certificate.
    pub peer: Option<&'a Peer>,
    /// It requests a certificate.
    pub enrolls: bool,
}

/// The caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(pub(super) Who);

/// The caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// Anybody: nothing is checked.
    Anyone,
    /// The agent of a Node, with its token.
    Agent(Agent, Token),
    /// A host that is not a Node.
    Host(Host),
}

impl Caller {
    /// Name of the agent's host; `None` if nothing is checked.
    pub(super) fn node(&self) -> Option<&str> {
        match &self.0 {
            Who::Anyone => None,
            Who::Agent(agent, _) => Some(&agent.node),
            Who::Host(host) => Some(&host.name),
        }
    }

    /// The host, if it is not a Node.
    pub(super) const fn host(&self) -> Option<&Host> {
        match &self.0 {
            Who::Host(host) => Some(host),
            _ => None,
        }
    }
}

/// The addresses of a pod, from Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Its own.
    pub pod: Vec<IpAddr>,
    /// Those of its node, where clients reach host ports.
    pub host: Vec<IpAddr>,
}

/// Why the owner of a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum Refusal {
    #[error("the API server does not accept the token ({0}); renew it")]
    Rejected(String),
    #[error("the token is not meant for the operator; project one for the audience `{audience}`", audience = CONTROL_AUDIENCE)]
    OtherAudience,
    #[error("`{user}` is not `{agent}`, the service account of agents")]
    OtherUser { user: String, agent: String },
    #[error("the token is not bound to a pod on a node; use the pod's projected token")]
    NotBound,
}

/// The caller is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum AuthError {
    #[error("no token; send the pod's projected token as metadata `authorization: Bearer …`")]
    MissingToken,
    #[error("this is not a valid token; send the pod's projected token")]
    Malformed,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("too many invalid tokens; wait a few seconds")]
    TooMany,
    #[error("this node's agent has too many connections; close some")]
    Connections,
    #[error("pod `{0}` no longer exists, or runs on another node")]
    NoPod(String),
    #[error("pod `{0}` has no address yet; try again")]
    NoAddress(String),
    #[error("no client certificate; enrol first")]
    NoCertificate,
    #[error("the token belongs to node `{node}`, but the certificate to `{shown}`")]
    OtherCertificate { node: String, shown: String },
    #[error("the token of a pod counts with a certificate of a Node alone")]
    JoinedCertificate,
    #[error(transparent)]
    Host(#[from] HostRefusal),
    #[error("the API server could not be reached; try again")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Authenticates callers.
#[async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// The caller of `call`.
    ///
    /// # Errors
    /// It is refused.
    async fn authenticate(&self, call: &Call<'_>) -> Result<Caller, AuthError>;

    /// Whether an admitted caller would be admitted again: tokens expire, and pods
    /// are deleted.
    ///
    /// # Errors
    /// It would not, or that cannot be determined.
    async fn again(&self, caller: &Caller) -> Result<(), AuthError>;

    /// The addresses of the caller's pod from Kubernetes; `None` if nothing is
    /// checked.
    ///
    /// # Errors
    /// The pod does not exist, or that cannot be determined.
    async fn addresses(&self, caller: &Caller) -> Result<Option<Addresses>, AuthError>;
}

/// Admits everyone, for tests without an API server.
#[derive(Debug, Clone, Copy)]
pub struct Insecure;

#[async_trait]
impl Authenticate for Insecure {
    async fn authenticate(&self, _: &Call<'_>) -> Result<Caller, AuthError> {
        Ok(Caller(Who::Anyone))
    }

    async fn again(&self, _: &Caller) -> Result<(), AuthError> {
        Ok(())
    }

    async fn addresses(&self, _: &Caller) -> Result<Option<Addresses>, AuthError> {
        Ok(None)
    }
}

/// Admits callers with a token of an agent's pod for the operator, according to the API server's
/// TokenReview.
pub struct TokenReviews {
    reviews: Api<TokenReview>,
    pods: Api<Pod>,
    /// The one admitted user.
    user: String,
    known: Mutex<Known>,
    asking: Semaphore,
}

impl TokenReviews {
    /// Accepts `account`, the service account of agents in `namespace`.
    pub fn new(client: Client, namespace: &str, account: &str) -> Self {
        Self {
            reviews: Api::all(client.clone()),
            pods: Api::namespaced(client, namespace),
            user: format!("system:serviceaccount:{namespace}:{account}"),
            known: Mutex::new(Known::new(Instant::now())),
            asking: Semaphore::new(AT_ONCE),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is a single step, so it is intact even after a panic elsewhere.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the token without asking; `None` where nothing is.
    fn remembered(&self, key: &Digest, from: Option<&Source>) -> Option<Result<Agent, AuthError>> {
        let (now, known) = (Instant::now(), self.known());
        if let Some(agent) = known.accepted(key, FRESH, now) {
            return Some(Ok(agent));
        }
        if let Some(refusal) = known.refused(key, now) {
            return Some(Err(refusal.into()));
        }
        drop(known);
        (!self.may_ask(key, from)).then_some(Err(AuthError::TooMany))
    }

    /// Whether the API server may be asked about a token: about one that it accepted always.
    fn may_ask(&self, key: &Digest, from: Option<&Source>) -> bool {
        let (now, mut known) = (Instant::now(), self.known());
        known.accepted(key, STALE, now).is_some() || known.may_ask(from, now)
    }

    async fn review(&self, token: &Token, from: Option<Source>) -> Result<Agent, AuthError> {
        let key = Digest::of(token.expose().as_bytes());
        let asked = self.ask(token, &key, from.as_ref()).await;
        let now = Instant::now();
        match asked {
            Ok(status) => match agent_of(&status, &self.user) {
                Ok(agent) => {
                    self.known().accept(key, agent.clone(), now);
                    Ok(agent)
                }
                Err(refusal) => {
                    self.known().refuse(key, refusal.clone(), from, now);
                    Err(refusal.into())
                }
            },
            Err(away) => self.known().accepted(&key, STALE, now).ok_or(away),
        }
    }

    async fn ask(
        &self,
        token: &Token,
        key: &Digest,
        from: Option<&Source>,
    ) -> Result<TokenReviewStatus, AuthError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.expose().to_owned()),
                audiences: Some(vec![CONTROL_AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let question = async {
            // Those that came at the same time may have turned out bad meanwhile. Whoever was
            // let in before is asked about in any case.
            if from.is_some() && !self.may_ask(key, from) {
                return Err(AuthError::TooMany);
            }
            let answer = self.reviews.create(&params, &review).await;
            answer.map_err(unavailable)
        };
        let answer = self.in_turn(question).await?;
        Ok(answer.status.unwrap_or_default())
    }

    async fn pod(&self, name: &str) -> Result<Option<Pod>, AuthError> {
        let question = async { self.pods.get_opt(name).await.map_err(unavailable) };
        self.in_turn(question).await
    }

    /// Asks the API server, a few at a time.
    async fn in_turn<T>(
        &self,
        question: impl Future<Output = Result<T, AuthError>>,
    ) -> Result<T, AuthError> {
        let answer = tokio::time::timeout(TIMEOUT, async {
            // It is never closed.
            let _turn = self.asking.acquire().await;
            question.await
        });
        answer.await.map_err(unavailable)?
    }
}

fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> AuthError {
    AuthError::Unavailable(Box::new(error))
}

#[async_trait]
impl Authenticate for TokenReviews {
    async fn authenticate(&self, call: &Call<'_>) -> Result<Caller, AuthError> {
        let token = Token::of(call.headers)?;
        let key = Digest::of(token.expose().as_bytes());
        let from = Source::of(call);
        let agent = match self.remembered(&key, from.as_ref()) {
            Some(known) => known?,
            None => self.review(&token, from).await?,
        };
        Ok(Caller(Who::Agent(agent, token)))
    }

    async fn again(&self, caller: &Caller) -> Result<(), AuthError> {
        let Who::Agent(_, token) = &caller.0 else {
            return Err(AuthError::MissingToken);
        };
        self.review(token, None).await.map(drop)
    }

    async fn addresses(&self, caller: &Caller) -> Result<Option<Addresses>, AuthError> {
        let Who::Agent(agent, _) = &caller.0 else {
            return Err(AuthError::MissingToken);
        };
        for _ in 0..LOOKS {
            let pod = self.pod(&agent.pod).await?;
            let known = pod.as_ref().and_then(|pod| addresses(pod, agent));
            let known = known.ok_or_else(|| AuthError::NoPod(agent.pod.clone()))?;
            if !known.pod.is_empty() {
                return Ok(Some(known));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(AuthError::NoAddress(agent.pod.clone()))
    }
}

/// The agent of the reviewed token, if it belongs to `user` in a pod on a node.
fn agent_of(review: &TokenReviewStatus, user: &str) -> Result<Agent, Refusal> {
    if review.authenticated != Some(true) {
        let why = review.error.clone().filter(|e| !e.is_empty());
        let why = why.unwrap_or_else(|| "unknown or expired".to_owned());
        return Err(Refusal::Rejected(why));
    }
    let audiences = review.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|a| a == CONTROL_AUDIENCE) {
        return Err(Refusal::OtherAudience);
    }
    let told = review.user.clone().unwrap_or_default();
    let name = told.username.clone().unwrap_or_default();
    if name != user {
        return Err(Refusal::OtherUser {
            user: name,
            agent: user.to_owned(),
        });
    }
    let extra = |key| extra(&told, key).ok_or(Refusal::NotBound);
    Ok(Agent {
        node: extra(NODE_NAME_EXTRA)?,
        pod: extra(POD_NAME_EXTRA)?,
        pod_uid: extra(POD_UID_EXTRA)?,
    })
}

fn extra(user: &UserInfo, key: &str) -> Option<String> {
    let values = user.extra.as_ref()?.get(key)?;
    values.first().filter(|v| !v.is_empty()).cloned()
}

/// The addresses of `pod`, empty until the kubelet reports them; `None` if it is not the agent's
/// pod.
fn addresses(pod: &Pod, agent: &Agent) -> Option<Addresses> {
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    let is_it = pod.metadata.uid.as_deref() == Some(agent.pod_uid.as_str())
        && node == Some(agent.node.as_str());
    let status = pod.status.as_ref();
    let own = status.and_then(|s| s.pod_ips.as_deref());
    let host = status.and_then(|s| s.host_ips.as_deref());
    let known = || Addresses {
        pod: parsed(own.unwrap_or_default().iter().map(|ip| &ip.ip)),
        host: parsed(host.unwrap_or_default().iter().map(|ip| &ip.ip)),
    };
    is_it.then(known)
}

fn parsed<'a>(ips: impl Iterator<Item = &'a String>) -> Vec<IpAddr> {
    ips.filter_map(|ip| ip.parse().ok()).collect()
}

#[cfg(test)]
mod tests;

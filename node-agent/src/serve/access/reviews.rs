//! Token and access reviews, over the agent's own connection to the API server.

use super::remembered::Identity;
use super::tokens::{Away, Reviews};
use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

/// TokenReview and SubjectAccessReview.
pub(crate) struct ApiReviews {
    tokens: Api<TokenReview>,
    access: Api<SubjectAccessReview>,
    audience: String,
}

impl ApiReviews {
    /// Accepts tokens for `audience`.
    pub(crate) fn new(client: Client, audience: String) -> Self {
        Self {
            tokens: Api::all(client.clone()),
            access: Api::all(client),
            audience,
        }
    }
}

/// Used when no API server is available.
pub(crate) struct NoReviews;

#[async_trait]
impl Reviews for NoReviews {
    async fn holder(&self, _: &str) -> Result<Option<Identity>, Away> {
        Err(Away)
    }

    async fn may_get(&self, _: &Identity, _: &str, _: &str) -> Result<bool, Away> {
        Err(Away)
    }
}

fn away(error: &kube::Error) -> Away {
    tracing::warn!(%error, "the API server could not be reached about a client's token");
    Away
}

#[async_trait]
impl Reviews for ApiReviews {
    async fn holder(&self, token: &str) -> Result<Option<Identity>, Away> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![self.audience.clone()]),
            },
            ..TokenReview::default()
        };
        let answer = self.tokens.create(&PostParams::default(), &review).await;
        let status = answer.map_err(|e| away(&e))?.status.unwrap_or_default();
        Ok(identity(status, &self.audience))
    }

    async fn may_get(&self, who: &Identity, namespace: &str, name: &str) -> Result<bool, Away> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(who.user.clone()),
                uid: who.uid.clone(),
                groups: Some(who.groups.clone()),
                extra: Some(who.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("serving.lamina.dev".to_owned()),
                    resource: Some("dnnmodels".to_owned()),
                    verb: Some("get".to_owned()),
                    namespace: Some(namespace.to_owned()),
                    name: Some(name.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = self.access.create(&PostParams::default(), &review).await;
        let status = answer.map_err(|e| away(&e))?.status.unwrap_or_default();
        Ok(status.allowed)
    }
}

/// The owner of the reviewed token; `None` if it is not accepted for `audience`.
fn identity(status: TokenReviewStatus, audience: &str) -> Option<Identity> {
    let audiences = status.audiences.unwrap_or_default();
    if status.authenticated != Some(true) || !audiences.iter().any(|a| a == audience) {
        return None;
    }
    let user = status.user?;
    Some(Identity {
        user: user.username.filter(|name| !name.is_empty())?,
        uid: user.uid,
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::UserInfo;

    #[test]
    fn a_token_is_taken_for_our_audience_alone() {
        let status = |authenticated, audience: &str, user: &str| TokenReviewStatus {
            authenticated: Some(authenticated),
            audiences: Some(vec![audience.to_owned()]),
            user: Some(UserInfo {
                username: Some(user.to_owned()),
                ..UserInfo::default()
            }),
            error: None,
        };
        let of = |status| identity(status, "lamina").map(|i| i.user);
        assert_eq!(of(status(true, "lamina", "alice")), Some("alice".into()));
        assert_eq!(of(status(true, "https://kubernetes", "alice")), None);
        assert_eq!(of(status(false, "lamina", "alice")), None);
        assert_eq!(of(status(true, "lamina", "")), None);
        assert_eq!(of(TokenReviewStatus::default()), None);
    }
}

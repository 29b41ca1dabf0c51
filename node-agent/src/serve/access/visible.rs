//! Which models are listed to a client.

use super::caller::Grant;
use super::{Access, Caller, Denial};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use std::collections::BTreeSet;

/// Concurrent questions about one client's models.
const AT_ONCE: usize = 8;

impl Access {
    /// Those of `full_names` that `caller` may use, in `namespace` if one is given. Without one,
    /// the holder of a token sees only its own namespace: each other one would be a question to
    /// the API server.
    ///
    /// # Errors
    /// That cannot be determined, or there are too many questions.
    pub(crate) async fn visible(
        &self,
        caller: &Caller,
        namespace: Option<&str>,
        full_names: BTreeSet<String>,
    ) -> Result<Vec<String>, Denial> {
        let is_token = matches!(caller.grant, Grant::Token(_));
        let namespace = namespace.or_else(|| is_token.then(|| &*caller.namespace));
        let mut names: Vec<String> = full_names.into_iter().collect();
        if let Some(namespace) = namespace {
            let lies_in = |name: &String| name.split_once('/').is_some_and(|n| n.0 == namespace);
            names.retain(lies_in);
        }
        names.retain(|name| caller.may_ask_for(name).is_ok());
        let Some(namespace) = namespace.filter(|_| is_token && !names.is_empty()) else {
            return Ok(names);
        };
        // Most callers that may get one may get all, which takes one question.
        if self.sees(caller, &format!("{namespace}/")).await? {
            return Ok(names);
        }
        let asked = names.into_iter().map(|name| async move {
            let sees = self.sees(caller, &name).await?;
            Ok::<_, Denial>(sees.then_some(name))
        });
        let seen: Vec<Option<String>> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
        Ok(seen.into_iter().flatten().collect())
    }

    async fn sees(&self, caller: &Caller, full_name: &str) -> Result<bool, Denial> {
        match self.allowed(caller, full_name).await {
            Ok(()) => Ok(true),
            Err(Denial::Forbidden(_)) => Ok(false),
            Err(denial) => {
                self.0.telemetry.denied(denial.label());
                Err(denial)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::AuthMode;
    use super::super::testing::{Gatekeeper, key};
    use super::*;
    use http::HeaderMap;

    const ALL: [&str; 6] = [
        "default/m",
        "lab/m",
        "lab/n",
        "lab/secret",
        "labs/m",
        "shop/m",
    ];

    async fn seen(
        gatekeeper: &Gatekeeper,
        credentials: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<String>, Denial> {
        let access = gatekeeper.access();
        let mut headers = HeaderMap::new();
        let value = format!("Bearer {credentials}").parse().unwrap();
        headers.insert("authorization", value);
        let caller = access.admit(&headers, [10, 0, 0, 1].into(), None).await?;
        let names = ALL.map(str::to_owned).into();
        access.visible(&caller, namespace, names).await
    }

    #[tokio::test]
    async fn without_authentication_all_are_seen() {
        let open = Gatekeeper::by(AuthMode::None);
        assert_eq!(seen(&open, "x", None).await.unwrap(), ALL);
        assert_eq!(seen(&open, "x", Some("shop")).await.unwrap(), ["shop/m"]);
        assert!(seen(&open, "x", Some("")).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_key_shows_the_models_that_it_is_for_and_no_others() {
        let keys = Gatekeeper::by(AuthMode::ApiKey);
        keys.say(&[key("all", "lab", &[]), key("one", "lab", &["n", "gone"])]);
        let lab = ["lab/m", "lab/n", "lab/secret"];
        assert_eq!(seen(&keys, "all", None).await.unwrap(), lab);
        assert_eq!(seen(&keys, "one", None).await.unwrap(), ["lab/n"]);
        for namespace in ["shop", "labs", "default"] {
            let seen = seen(&keys, "all", Some(namespace)).await.unwrap();
            assert!(seen.is_empty(), "{seen:?}");
        }
    }

    #[tokio::test]
    async fn a_token_shows_what_its_holder_may_get_in_one_namespace() {
        let tokens = Gatekeeper::by(AuthMode::Token);
        // By name, since not all of them are allowed.
        assert_eq!(
            seen(&tokens, "a.lab.c", None).await.unwrap(),
            ["lab/m", "lab/n"]
        );
        let elsewhere = seen(&tokens, "a.lab.c", Some("shop")).await.unwrap();
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
        assert_eq!(seen(&tokens, "a.shop.c", None).await.unwrap(), ["shop/m"]);
        tokens.api_server_away(true);
        let away = seen(&tokens, "a.lab.c", None).await;
        assert_eq!(away, Err(Denial::Unavailable));
    }
}

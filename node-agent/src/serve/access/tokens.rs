//! Bearer tokens: their accounts and the models these may use, according to the API server.

use super::denial::Denial;
use super::remembered::{Answer, Identity, Question, Remembered, holds};
use super::shown::Shown;
use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A question that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A client admitted before waits no longer than this; then the last answer is used.
const PATIENCE: Duration = Duration::from_secs(1);
/// Concurrent questions.
const AT_ONCE: usize = 16;

/// The API server does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Away;

/// Checks tokens.
#[async_trait]
pub(crate) trait Reviews: Send + Sync {
    /// The owner of the token; `None` if it is not accepted.
    async fn holder(&self, token: &str) -> Result<Option<Identity>, Away>;

    /// Whether `who` may get the model.
    async fn may_get(&self, who: &Identity, namespace: &str, name: &str) -> Result<bool, Away>;
}

type Asking = Shared<BoxFuture<'static, Result<Answer, Away>>>;

/// The state of token checks. Clones share it.
#[derive(Clone)]
pub(super) struct Tokens(Arc<Inner>);

struct Inner {
    reviews: Arc<dyn Reviews>,
    remembered: Mutex<Remembered>,
    /// Questions in progress: equal ones share the answer.
    asked: Mutex<BTreeMap<Question, Asking>>,
    turns: Semaphore,
}

impl Tokens {
    pub(super) fn new(reviews: Arc<dyn Reviews>) -> Self {
        Self(Arc::new(Inner {
            reviews,
            remembered: Mutex::default(),
            asked: Mutex::default(),
            turns: Semaphore::new(AT_ONCE),
        }))
    }

    /// The owner of the token, which came from `from`; `None` if it is not accepted.
    ///
    /// # Errors
    /// That cannot be determined, or there are too many unknown tokens.
    pub(super) async fn holder(&self, token: &Shown, from: IpAddr) -> Result<Answer, Denial> {
        let question = Question {
            token: token.digest().clone(),
            model: None,
        };
        self.ask(question, token, from, None).await
    }

    /// Whether `who`, the token's owner, may get the model `namespace/name`.
    ///
    /// # Errors
    /// As [`Tokens::holder`].
    pub(super) async fn may_get(
        &self,
        full_name: &str,
        who: &Arc<Identity>,
        token: &Shown,
        from: IpAddr,
    ) -> Result<bool, Denial> {
        let question = Question {
            token: token.digest().clone(),
            model: Some(full_name.to_owned()),
        };
        let answer = self.ask(question, token, from, Some(who)).await?;
        Ok(answer.is_some())
    }

    async fn ask(
        &self,
        question: Question,
        token: &Shown,
        from: IpAddr,
        who: Option<&Arc<Identity>>,
    ) -> Result<Answer, Denial> {
        let (asking, held) = {
            let (now, mut remembered) = (Instant::now(), self.0.remembered());
            if let Some(answer) = remembered.fresh(&question, now) {
                return Ok(answer);
            }
            let held = remembered.held(&question, now);
            let mut asked = self.0.asked();
            let asking = match asked.get(&question) {
                Some(asking) => asking.clone(),
                None => {
                    // Clients admitted before are not limited by others.
                    if held.is_none() {
                        let may = remembered.may_ask(from, now);
                        may.map_err(Denial::TooManyQuestions)?;
                    }
                    let asking = self.begin(question.clone(), token.clone(), who.cloned());
                    asked.insert(question, asking.clone());
                    asking
                }
            };
            (asking, held)
        };
        let Some(held) = held else {
            return asking.await.map_err(|Away| Denial::Unavailable);
        };
        match timeout(PATIENCE, asking).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Away)) | Err(_) => Ok(Some(held)),
        }
    }

    /// In a task, so that it continues when the request is gone.
    fn begin(&self, question: Question, token: Shown, who: Answer) -> Asking {
        let inner = Arc::clone(&self.0);
        let task = tokio::spawn(async move {
            let answered = timeout(TIMEOUT, inner.answer(&question, &token, who)).await;
            let answered = answered.unwrap_or(Err(Away));
            let (now, holds) = (Instant::now(), holds(token.expose(), SystemTime::now()));
            match &answered {
                Ok(answer) => {
                    let mut remembered = inner.remembered();
                    remembered.answered(question.clone(), answer, holds, now);
                }
                Err(Away) => inner.remembered().unanswered(now),
            }
            inner.asked().remove(&question);
            answered
        });
        async move { task.await.unwrap_or(Err(Away)) }
            .boxed()
            .shared()
    }
}

impl Inner {
    async fn answer(
        &self,
        question: &Question,
        token: &Shown,
        who: Answer,
    ) -> Result<Answer, Away> {
        // It is never closed.
        let _turn = self.turns.acquire().await;
        let Some(who) = who else {
            let holder = self.reviews.holder(token.expose()).await?;
            return Ok(holder.map(Arc::new));
        };
        let model = question.model.as_deref().unwrap_or_default();
        let (namespace, name) = model.split_once('/').unwrap_or_default();
        let may = self.reviews.may_get(&who, namespace, name).await?;
        Ok(may.then_some(who))
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        let held = self.remembered.lock();
        held.unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<Question, Asking>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    /// Accepts `a.NAMESPACE.c` as a service account's of that namespace, which may get every model
    /// there except those called `secret`; in `shop`, all of them.
    #[derive(Default)]
    pub(crate) struct FakeReviews {
        pub(crate) asked: AtomicU32,
        pub(crate) is_away: AtomicBool,
    }

    #[async_trait]
    impl Reviews for FakeReviews {
        async fn holder(&self, token: &str) -> Result<Option<Identity>, Away> {
            self.ask().await?;
            let namespace = token.split('.').nth(1).filter(|n| *n != "bad");
            Ok(namespace.map(|namespace| Identity {
                user: format!("system:serviceaccount:{namespace}:cam"),
                ..Identity::default()
            }))
        }

        async fn may_get(&self, who: &Identity, namespace: &str, name: &str) -> Result<bool, Away> {
            self.ask().await?;
            let is_named = !["", "secret"].contains(&name);
            Ok(who.namespace() == Some(namespace) && (is_named || namespace == "shop"))
        }
    }

    impl FakeReviews {
        async fn ask(&self) -> Result<(), Away> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            // Others come meanwhile.
            tokio::task::yield_now().await;
            if self.is_away.load(Ordering::Relaxed) {
                return Err(Away);
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::FakeReviews;
    use super::*;
    use futures::future::join_all;
    use http::HeaderMap;
    use http::header::AUTHORIZATION;
    use std::sync::atomic::Ordering;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn shown(token: &str) -> Shown {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        Shown::of(&headers).unwrap().unwrap()
    }

    #[tokio::test]
    async fn many_who_ask_the_same_are_one_question() {
        let reviews = Arc::new(FakeReviews::default());
        let tokens = Tokens::new(reviews.clone());
        let token = shown("a.lab.c");
        let answers = join_all((0..100).map(|_| tokens.holder(&token, HERE))).await;
        let who = answers[0].clone().unwrap().unwrap();
        assert!(answers.iter().all(|a| a.as_ref().unwrap().is_some()));
        assert_eq!(reviews.asked.load(Ordering::Relaxed), 1);
        for _ in 0..10 {
            assert!(tokens.may_get("lab/m", &who, &token, HERE).await.unwrap());
        }
        assert!(
            !tokens
                .may_get("lab/secret", &who, &token, HERE)
                .await
                .unwrap()
        );
        assert_eq!(reviews.asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn while_the_api_server_is_away_nobody_new_is_let_in() {
        let reviews = Arc::new(FakeReviews::default());
        let tokens = Tokens::new(reviews.clone());
        reviews.is_away.store(true, Ordering::Relaxed);
        let refused = tokens.holder(&shown("a.lab.c"), HERE).await.unwrap_err();
        assert_eq!(refused, Denial::Unavailable);
        // That was no answer: it is asked again.
        reviews.is_away.store(false, Ordering::Relaxed);
        assert!(
            tokens
                .holder(&shown("a.lab.c"), HERE)
                .await
                .unwrap()
                .is_some()
        );
    }

    #[tokio::test]
    async fn bad_tokens_cost_the_api_server_little() {
        let reviews = Arc::new(FakeReviews::default());
        let tokens = Tokens::new(reviews.clone());
        let known = shown("a.lab.c");
        tokens.holder(&known, HERE).await.unwrap();
        let mut refused = 0;
        for n in 0..1000 {
            match tokens.holder(&shown(&format!("{n}.bad.c")), HERE).await {
                Ok(answer) => assert_eq!(answer, None),
                Err(Denial::TooManyQuestions(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(refused > 900, "{refused}");
        assert!(tokens.holder(&known, HERE).await.unwrap().is_some());
    }
}

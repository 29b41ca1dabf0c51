//! While a path fails, one request at a time tests whether it has recovered.
//!
//! Every attempt computes and sends everything before the failed host. If all waiting requests
//! tried for themselves, they would take the entry's CPU and links from the very slices that
//! are being loaded to replace that host.

use super::error::Setback;
use crate::net::Backoff;
use crate::serve::deadline::Deadline;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

/// Pauses between tries: restarting a host or moving a route takes some hundred milliseconds at
/// least.
pub(super) const PAUSES: Backoff =
    Backoff::new(Duration::from_millis(50), Duration::from_millis(500));

/// Failing paths from this host, by placement UID. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Troubles {
    known: Arc<Mutex<BTreeMap<String, Arc<Trouble>>>>,
}

#[derive(Debug)]
struct Trouble {
    last: Mutex<Setback>,
    /// Its holder tries; later ones continue its back-off.
    turn: Arc<tokio::sync::Mutex<Backoff>>,
    /// Fires when the path answered or was replaced.
    over: CancellationToken,
}

/// The right to try a failing path. Dropping it passes it to the next request.
#[derive(Debug)]
pub(super) struct Turn {
    pauses: OwnedMutexGuard<Backoff>,
    over: CancellationToken,
}

impl Turn {
    /// Waits before the next one may try, unless the trouble ends.
    pub(super) async fn pause(mut self) {
        let pause = tokio::time::sleep(self.pauses.next_wait());
        tokio::select! {
            () = pause => {}
            () = self.over.cancelled() => {}
        }
    }
}

impl Troubles {
    /// Waits for the caller's turn; `None` if the path of `placement_uid` works, as far
    /// as is known.
    ///
    /// # Errors
    /// The failure of the last try, if `deadline` passes first.
    pub(super) async fn turn(
        &self,
        placement_uid: &str,
        deadline: Deadline,
    ) -> Result<Option<Turn>, Setback> {
        let Some(trouble) = self.find(placement_uid) else {
            return Ok(None);
        };
        let over = trouble.over.clone();
        let held = Arc::clone(&trouble.turn).lock_owned();
        tokio::select! {
            biased;
            () = trouble.over.cancelled() => Ok(None),
            held = deadline.bound(held) => match held {
                Some(pauses) => Ok(Some(Turn { pauses, over })),
                None => Err(lock(&trouble.last).clone()),
            },
        }
    }

    /// A try failed with `setback` after another one had failed before. The trouble ends with the
    /// path: when `superseded` fires.
    pub(super) fn failed(
        &self,
        placement_uid: &str,
        superseded: &CancellationToken,
        setback: Setback,
    ) {
        let mut known = lock(&self.known);
        known.retain(|_, trouble| !trouble.over.is_cancelled());
        if superseded.is_cancelled() {
            return;
        }
        if let Some(trouble) = known.get(placement_uid) {
            *lock(&trouble.last) = setback;
            return;
        }
        let trouble = Trouble {
            last: Mutex::new(setback),
            turn: Arc::new(tokio::sync::Mutex::new(PAUSES)),
            over: superseded.child_token(),
        };
        known.insert(placement_uid.to_owned(), Arc::new(trouble));
    }

    /// The path answered: all waiting requests may proceed.
    pub(super) fn answered(&self, placement_uid: &str) {
        if let Some(trouble) = lock(&self.known).remove(placement_uid) {
            trouble.over.cancel();
        }
    }

    fn find(&self, placement_uid: &str) -> Option<Arc<Trouble>> {
        let known = lock(&self.known);
        let trouble = known.get(placement_uid)?;
        (!trouble.over.is_cancelled()).then(|| Arc::clone(trouble))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn setback() -> Setback {
        Setback::Entry("away".into())
    }

    async fn turn(troubles: &Troubles, placement_uid: &str) -> Option<Turn> {
        let deadline = Deadline::after(Duration::from_secs(60));
        troubles.turn(placement_uid, deadline).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_tries_at_a_time_and_pauses_grow_for_all() {
        let (troubles, path) = (Troubles::default(), CancellationToken::new());
        assert!(turn(&troubles, "u").await.is_none());
        troubles.failed("u", &path, setback());
        assert!(turn(&troubles, "v").await.is_none());
        let begin = tokio::time::Instant::now();
        for _ in 0..8 {
            let held = turn(&troubles, "u").await.unwrap();
            assert!(turn(&troubles, "u").now_or_never().is_none());
            held.pause().await;
        }
        // 50 + 100 + 200 + 400 + 4 · 500 ms, each shortened by up to a half.
        let took = begin.elapsed().as_millis();
        assert!((1375..=2760).contains(&took), "{took}");
    }

    #[tokio::test]
    async fn an_answer_and_another_path_let_all_go() {
        let troubles = Troubles::default();
        let ends: [fn(&Troubles, &CancellationToken); 2] = [
            |troubles, _| troubles.answered("u"),
            |_, path| path.cancel(),
        ];
        for end in ends {
            let path = CancellationToken::new();
            troubles.failed("u", &path, setback());
            let held = turn(&troubles, "u").await.unwrap();
            let waiting = {
                let troubles = troubles.clone();
                tokio::spawn(async move { turn(&troubles, "u").await.is_none() })
            };
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished());
            end(&troubles, &path);
            assert!(waiting.await.unwrap());
            held.pause().await;
            assert!(turn(&troubles, "u").await.is_none());
        }
    }

    #[tokio::test]
    async fn a_failure_on_a_path_that_was_left_is_no_trouble() {
        let (troubles, path) = (Troubles::default(), CancellationToken::new());
        path.cancel();
        troubles.failed("u", &path, setback());
        assert!(turn(&troubles, "u").await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_passes_the_turn_on_and_knows_why() {
        let (troubles, path) = (Troubles::default(), CancellationToken::new());
        troubles.failed("u", &path, setback());
        let first = turn(&troubles, "u").await.unwrap();
        let soon = Deadline::after(Duration::from_millis(10));
        let why = troubles.turn("u", soon).await.unwrap_err();
        assert_eq!(why.to_string(), "away");
        drop(first);
        assert!(turn(&troubles, "u").await.is_some());
    }
}

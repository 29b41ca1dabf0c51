use super::{Result, SceneError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Result of one poll.
#[derive(Debug)]
pub enum Step<T> {
    /// The awaited value.
    Done(T),
    /// Not yet; the current state, for the message.
    NotYet(String),
}

/// Polls every 100 ms until done.
///
/// # Errors
/// It is not done `within`; the message carries the last state. A poll that fails
/// (the API server is away for a moment) counts as not yet.
pub async fn poll<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<Step<T>>,
) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        let last = match look().await {
            Ok(Step::Done(value)) => return Ok(value),
            Ok(Step::NotYet(seen)) => seen,
            Err(error) => error.to_string(),
        };
        if Instant::now() >= end {
            return Err(SceneError::Timeout {
                what: what.to_owned(),
                seconds: within.as_secs(),
                last,
            });
        }
        sleep(Duration::from_millis(100)).await;
    }
}

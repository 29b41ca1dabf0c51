use super::{Result, SceneError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// One look at a thing that should come.
#[derive(Debug)]
pub enum Step<T> {
    /// It has come.
    Done(T),
    /// It has not; what there is instead, for the message.
    NotYet(String),
}

/// Looks every 100 ms until it has come.
///
/// # Errors
/// It has not come `within`; the message carries what was seen last. A look that
/// fails (the API server is away for a moment) counts as not yet.
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

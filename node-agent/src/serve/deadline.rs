//! The remaining time of a request.

use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

/// For clients that set none: longer than any path should take, short enough that a forgotten
/// request does not hold its place forever.
pub(crate) const DEFAULT: Duration = Duration::from_secs(30);

/// Reserve, so that the answer, or an error naming the late host, still reaches the caller in time:
/// a twentieth of the time left, at most this.
const LONGEST_RESERVE: Duration = Duration::from_millis(20);

/// The time after which nobody waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// At `moment`.
    #[cfg(test)]
    pub(crate) const fn at(moment: Instant) -> Self {
        Self(moment)
    }

    /// In `left` from now.
    pub(crate) fn after(left: Duration) -> Self {
        Self(Instant::now() + left)
    }

    /// That of the call with `metadata`, a little before its caller's own, and at most five minutes
    /// away; [`DEFAULT`] if the caller set none.
    pub(crate) fn of(metadata: &MetadataMap) -> Self {
        Self::of_request(metadata, None)
    }

    /// As [`Deadline::of`] if the request itself says how long its client waits.
    pub(crate) fn of_request(metadata: &MetadataMap, patience: Option<Duration>) -> Self {
        let header = metadata.get("grpc-timeout").and_then(|v| v.to_str().ok());
        let said = header.and_then(parse).into_iter().chain(patience).min();
        Self::before(said.unwrap_or(DEFAULT))
    }

    /// A little before a caller that waits for `patience` gives up.
    fn before(patience: Duration) -> Self {
        let left = patience.min(LONGEST);
        Self::after(left - (left / 20).min(LONGEST_RESERVE))
    }

    /// Time left; zero once it has passed.
    pub(crate) fn left(self) -> Duration {
        self.left_at(Instant::now())
    }

    /// Time left at `now`.
    pub(crate) fn left_at(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// After four fifths of the time left: this leaves time for another attempt.
    pub(crate) fn with_time_to_spare(self) -> Self {
        Self::after(self.left().mul_f64(0.8))
    }

    pub(crate) fn has_passed(self) -> bool {
        self.left().is_zero()
    }

    /// `work`, or `None` if it takes too long. Nothing is started too late: timers are coarse, and
    /// short work could finish before they fire.
    pub(crate) async fn bound<T>(self, work: impl Future<Output = T>) -> Option<T> {
        if self.has_passed() {
            return None;
        }
        tokio::time::timeout_at(self.0, work).await.ok()
    }
}

/// Whatever a client sets: a request occupies memory and queues until then.
pub(crate) const LONGEST: Duration = Duration::from_secs(300);

/// A `grpc-timeout`: at most eight digits and a unit.
fn parse(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(header: &str) -> Duration {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", header.parse().unwrap());
        Deadline::of(&metadata).left()
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_lies_a_little_before_the_callers() {
        assert_eq!(left("2S"), Duration::from_millis(1980));
        assert_eq!(left("100m"), Duration::from_millis(95));
        for longer in ["301S", "24H", "99999999H"] {
            assert_eq!(left(longer), Duration::from_secs(300) - LONGEST_RESERVE);
        }
        assert_eq!(left("0m"), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_less_or_sets_none_is_believed() {
        let mut metadata = MetadataMap::new();
        let of = |metadata: &MetadataMap, millis| {
            let patience = Some(Duration::from_millis(millis));
            Deadline::of_request(metadata, patience).left()
        };
        assert_eq!(of(&metadata, 60_000), Duration::from_millis(59_980));
        metadata.insert("grpc-timeout", "2S".parse().unwrap());
        assert_eq!(of(&metadata, 60_000), Duration::from_millis(1980));
        assert_eq!(of(&metadata, 100), Duration::from_millis(95));
    }

    #[tokio::test(start_paused = true)]
    async fn without_one_that_can_be_read_there_is_the_default() {
        let default = DEFAULT - LONGEST_RESERVE;
        assert_eq!(Deadline::of(&MetadataMap::new()).left(), default);
        for nonsense in ["5", "S", "-5S", "5h", "123456789S"] {
            assert_eq!(left(nonsense), default, "{nonsense}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_longer_is_given_up() {
        let deadline = Deadline::after(Duration::from_millis(10));
        assert_eq!(deadline.bound(async { 1 }).await, Some(1));
        assert_eq!(deadline.bound(std::future::pending::<()>()).await, None);
        assert!(deadline.has_passed());
        assert_eq!(deadline.bound(async { 1 }).await, None);
    }
}

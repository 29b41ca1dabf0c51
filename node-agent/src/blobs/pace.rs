//! The rate at which blobs are fetched; decides only. Requests that wait for a path do not
//! count, since they wait for these blobs.

use std::time::Duration;

/// Chunk size on a quiet link.
const LARGE_CHUNK_BYTES: u64 = 256 << 10;
/// Chunk size while requests need the link: the most that a request waits for.
const SMALL_CHUNK_BYTES: u64 = 64 << 10;

/// Length of a burst of standby fetches, and of the pauses while requests need the link or not:
/// long enough for a measurement.
const BURST: Duration = Duration::from_millis(500);
const REST: Duration = Duration::from_secs(2);
const QUIET_REST: Duration = Duration::from_secs(1);

/// Size of the next chunk.
pub(super) fn chunk_bytes(purpose: Purpose, requests_under_way: u32, missing: u64) -> u64 {
    let chunk = if requests_under_way > 0 || purpose == Purpose::Ahead {
        SMALL_CHUNK_BYTES
    } else {
        LARGE_CHUNK_BYTES
    };
    missing.min(chunk)
}

/// The purpose of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Blocks for serving: requests in flight are usually slow until these arrive. They get three
    /// quarters of the time.
    Serving,
    /// Blocks for the operator's store: nobody waits. Half of the time.
    Store,
    /// Blocks for a move that may never happen. A sixth of the time, a third on a quiet link: see
    /// [`Burst`].
    Ahead,
}

/// Standby blobs come in bursts with pauses between them: changes of the link must be seen as soon
/// as if nothing were fetched.
#[derive(Debug, Default)]
pub(super) struct Burst {
    spent: Duration,
}

impl Burst {
    /// The pause after a chunk that took `took`.
    pub(super) fn pause(&mut self, requests_under_way: u32, took: Duration) -> Duration {
        let is_quiet = requests_under_way == 0;
        self.spent += took;
        if self.spent >= BURST {
            // On a slow link a long chunk counts as several bursts.
            let bursts = self.spent.as_secs_f64() / BURST.as_secs_f64();
            self.spent = Duration::ZERO;
            let rest = if is_quiet { QUIET_REST } else { REST };
            return rest.mul_f64(bursts);
        }
        if is_quiet { Duration::ZERO } else { took }
    }
}

/// How long to leave the link to requests after a chunk that took `took`, so that blobs leave them
/// their share but never stop.
pub(super) fn pause(purpose: Purpose, requests_under_way: u32, took: Duration) -> Duration {
    match purpose {
        _ if requests_under_way == 0 => Duration::ZERO,
        Purpose::Serving => took / 3,
        Purpose::Store | Purpose::Ahead => took,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: Duration = Duration::from_millis(300);

    #[test]
    fn a_quiet_link_is_used_in_full() {
        assert_eq!(chunk_bytes(Purpose::Serving, 0, u64::MAX), 256 << 10);
        assert_eq!(pause(Purpose::Store, 0, CHUNK), Duration::ZERO);
    }

    #[test]
    fn requests_get_their_share_of_the_link_in_small_turns() {
        assert_eq!(chunk_bytes(Purpose::Serving, 3, u64::MAX), 64 << 10);
        assert_eq!(pause(Purpose::Serving, 1, CHUNK), CHUNK / 3);
        assert_eq!(pause(Purpose::Store, 1, CHUNK), CHUNK);
    }

    #[test]
    fn nothing_beyond_the_end_is_asked_for() {
        assert_eq!(chunk_bytes(Purpose::Serving, 0, 7), 7);
        assert_eq!(chunk_bytes(Purpose::Serving, 1, 7), 7);
    }

    #[test]
    fn blobs_ahead_leave_the_link_alone_most_of_the_time() {
        assert_eq!(chunk_bytes(Purpose::Ahead, 0, u64::MAX), 64 << 10);
        let share = |requests| {
            let (mut burst, chunk) = (Burst::default(), Duration::from_millis(100));
            let pauses: Duration = (0..100).map(|_| burst.pause(requests, chunk)).sum();
            let all = (pauses + chunk * 100).as_secs_f64();
            (chunk * 100).as_secs_f64() / all
        };
        assert!((0.3..0.35).contains(&share(0)), "{}", share(0));
        assert!((0.15..0.2).contains(&share(2)), "{}", share(2));
        // Also if one chunk takes longer than a burst.
        let slow = Burst::default().pause(1, Duration::from_secs(5));
        assert_eq!(slow, Duration::from_secs(20));
    }
}

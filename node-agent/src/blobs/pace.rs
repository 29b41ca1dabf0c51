//! The rate at which blobs are fetched; decides only. Requests that wait for a path do not
//! count, since they wait for these blobs.

use std::time::Duration;

/// Bytes asked for at once on a quiet link.
const LARGE_CHUNK_BYTES: u64 = 256 << 10;
/// Bytes asked for at once while requests need the link: what a request waits
/// for at worst.
const SMALL_CHUNK_BYTES: u64 = 64 << 10;

/// Transfers of blobs ahead in one go, and the time in which the link is then left
/// alone while requests need it or not: long enough to measure it in.
const BURST: Duration = Duration::from_millis(500);
const REST: Duration = Duration::from_secs(2);
const QUIET_REST: Duration = Duration::from_secs(1);

/// Bytes to ask for next.
pub(super) fn chunk_bytes(purpose: Purpose, requests_under_way: u32, missing: u64) -> u64 {
    let chunk = if requests_under_way > 0 || purpose == Purpose::Ahead {
        SMALL_CHUNK_BYTES
    } else {
        LARGE_CHUNK_BYTES
    };
    missing.min(chunk)
}

/// What a transfer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Blocks that are to serve: mostly, the requests under way are slow until these are
    /// here. Three quarters of the time are theirs.
    Serving,
    /// Blocks for the operator's store: nobody waits. Half of the time.
    Store,
    /// Blocks for a move that may never come. A sixth of the time, a third on a quiet
    /// link: see [`Burst`].
    Ahead,
}

/// Blobs ahead come in bursts, between which the link is left alone: what happens to it
/// must be seen as soon as if nothing were fetched.
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
            // A chunk on a slow link counts for as much as it took.
            let bursts = self.spent.as_secs_f64() / BURST.as_secs_f64();
            self.spent = Duration::ZERO;
            let rest = if is_quiet { QUIET_REST } else { REST };
            return rest.mul_f64(bursts);
        }
        if is_quiet { Duration::ZERO } else { took }
    }
}

/// How long to leave the link to requests after a chunk that took `took`, so that
/// blobs leave them their share and never stop.
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
        // On a link so slow that one chunk is more than a burst, too.
        let slow = Burst::default().pause(1, Duration::from_secs(5));
        assert_eq!(slow, Duration::from_secs(20));
    }
}

//! How fast blobs may come in, decided apart from fetching them. Requests that wait
//! for a path do not count: blobs are what they wait for.

use std::time::Duration;

/// Bytes asked for at once on a quiet link.
const LARGE_CHUNK_BYTES: u64 = 256 << 10;
/// Bytes asked for at once while requests need the link: what a request waits
/// for at worst.
const SMALL_CHUNK_BYTES: u64 = 64 << 10;

/// Bytes to ask for next.
pub(super) const fn chunk_bytes(requests_under_way: u32, missing: u64) -> u64 {
    let chunk = if requests_under_way > 0 {
        SMALL_CHUNK_BYTES
    } else {
        LARGE_CHUNK_BYTES
    };
    if missing < chunk { missing } else { chunk }
}

/// What a transfer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Blocks that are to serve: mostly, the requests under way are slow until these are
    /// here. Three quarters of the time are theirs.
    Serving,
    /// Blocks for the operator's store: nobody waits. Half of the time.
    Store,
}

/// How long to leave the link to requests after a chunk that took `took`, so that
/// blobs leave them their share and never stop.
pub(super) fn pause(purpose: Purpose, requests_under_way: u32, took: Duration) -> Duration {
    match purpose {
        _ if requests_under_way == 0 => Duration::ZERO,
        Purpose::Serving => took / 3,
        Purpose::Store => took,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: Duration = Duration::from_millis(300);

    #[test]
    fn a_quiet_link_is_used_in_full() {
        assert_eq!(chunk_bytes(0, u64::MAX), 256 << 10);
        assert_eq!(pause(Purpose::Store, 0, CHUNK), Duration::ZERO);
    }

    #[test]
    fn requests_get_their_share_of_the_link_in_small_turns() {
        assert_eq!(chunk_bytes(3, u64::MAX), 64 << 10);
        assert_eq!(pause(Purpose::Serving, 1, CHUNK), CHUNK / 3);
        assert_eq!(pause(Purpose::Store, 1, CHUNK), CHUNK);
    }

    #[test]
    fn nothing_beyond_the_end_is_asked_for() {
        assert_eq!(chunk_bytes(0, 7), 7);
        assert_eq!(chunk_bytes(1, 7), 7);
    }
}

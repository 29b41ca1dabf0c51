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

/// How long to leave the link to requests after a chunk that took `took`: as
/// long again, so that fetching takes half of the rate at most and never stops.
pub(super) const fn pause(requests_under_way: u32, took: Duration) -> Duration {
    if requests_under_way > 0 {
        took
    } else {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_link_is_used_in_full() {
        assert_eq!(chunk_bytes(0, u64::MAX), 256 << 10);
        assert_eq!(pause(0, Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn requests_get_half_of_the_link_in_small_turns() {
        assert_eq!(chunk_bytes(3, u64::MAX), 64 << 10);
        assert_eq!(pause(1, Duration::from_secs(1)), Duration::from_secs(1));
    }

    #[test]
    fn nothing_beyond_the_end_is_asked_for() {
        assert_eq!(chunk_bytes(0, 7), 7);
        assert_eq!(chunk_bytes(1, 7), 7);
    }
}

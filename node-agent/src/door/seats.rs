//! The open connections, and which one is closed to make room for another.

use super::{Origin, client_of};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The connections of a door. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    limit: usize,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    taken: BTreeMap<u64, Taken>,
}

#[derive(Debug)]
struct Taken {
    address: IpAddr,
    /// Start of each request in progress; `None` for those without a time limit.
    requests: BTreeMap<u64, Option<Instant>>,
    /// Since when there has been no request.
    idle_since: Instant,
    close: CancellationToken,
}

/// One connection's place. Dropping the last clone frees it.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    place: Arc<Place>,
}

#[derive(Debug)]
struct Place {
    id: u64,
    address: IpAddr,
    close: CancellationToken,
    seats: Seats,
}

/// A request in progress, until dropped.
#[derive(Debug)]
pub(super) struct Busy {
    request: u64,
    place: Arc<Place>,
}

/// In the extensions of a request with many parts: each part shows that it is alive.
#[derive(Debug, Clone)]
pub(crate) struct Pulse {
    request: u64,
    place: Arc<Place>,
}

impl Seats {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            table: Arc::default(),
        }
    }

    /// A place for a connection from `address`; if none is left, an idle one is closed.
    pub(super) fn take(&self, address: IpAddr, now: Instant) -> Option<Seat> {
        let mut table = self.lock();
        let client = client_of(address);
        if let Some(leaves) = table.who_leaves(client, self.limit)? {
            table.end(leaves);
        }
        let id = table.next;
        table.next += 1;
        let close = CancellationToken::new();
        let taken = Taken {
            address: client,
            requests: BTreeMap::new(),
            idle_since: now,
            close: close.clone(),
        };
        table.taken.insert(id, taken);
        drop(table);
        let seats = self.clone();
        let place = Place {
            id,
            address,
            close,
            seats,
        };
        Some(Seat {
            place: Arc::new(place),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Which connection must be closed for a new one from `address`: none, or an idle one; the
    /// outer `None` means that all are busy. An address has at most three quarters, so that others
    /// find room even if all of its connections are busy.
    fn who_leaves(&self, address: IpAddr, limit: usize) -> Option<Option<u64>> {
        let share = (limit / 4 * 3).max(1);
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for taken in self.taken.values() {
            *counts.entry(taken.address).or_default() += 1;
        }
        let count = |address: IpAddr| counts.get(&address).copied().unwrap_or(0);
        let is_over_share = count(address) >= share;
        if !is_over_share && self.taken.len() < limit {
            return Some(None);
        }
        let idle = self
            .taken
            .iter()
            .filter(|(_, taken)| taken.requests.is_empty());
        let meant = idle.filter(|(_, taken)| !is_over_share || taken.address == address);
        // Of the address with the most connections, the one idle for longest.
        let leaves = meant.max_by_key(|(_, t)| (count(t.address), Reverse(t.idle_since)));
        leaves.map(|(id, _)| Some(*id))
    }

    fn end(&mut self, id: u64) {
        if let Some(taken) = self.taken.remove(&id) {
            taken.close.cancel();
        }
    }
}

impl Seat {
    pub(super) fn origin(&self) -> Origin {
        Origin {
            connection: self.place.id,
            address: self.place.address,
        }
    }

    /// A request starts.
    pub(super) fn begin(&self) -> Busy {
        let mut table = self.place.seats.lock();
        let request = table.next;
        table.next += 1;
        if let Some(taken) = table.taken.get_mut(&self.place.id) {
            taken.requests.insert(request, Some(Instant::now()));
        }
        drop(table);
        let place = Arc::clone(&self.place);
        Busy { request, place }
    }

    /// Its place is needed.
    pub(super) async fn closed(&self) {
        self.place.close.cancelled().await;
    }

    /// There was no request for `limit`.
    pub(super) async fn idled(&self, limit: Duration) {
        self.since(limit, |taken| {
            taken.requests.is_empty().then_some(taken.idle_since)
        })
        .await;
    }

    /// A request with a time limit took longer than `limit`.
    pub(super) async fn overdue(&self, limit: Duration) {
        self.since(limit, |taken| {
            taken.requests.values().flatten().min().copied()
        })
        .await;
    }

    /// The time given by `when` is `limit` ago.
    async fn since(&self, limit: Duration, when: impl Fn(&Taken) -> Option<Instant>) {
        loop {
            let passed = {
                let table = self.place.seats.lock();
                let begin = table.taken.get(&self.place.id).and_then(&when);
                begin.map_or(Duration::ZERO, |begin| begin.elapsed())
            };
            match limit.checked_sub(passed) {
                Some(left) if !left.is_zero() => sleep(left).await,
                _ => return,
            }
        }
    }
}

impl Pulse {
    /// The request counts as starting now.
    pub(crate) fn beat(&self) {
        let mut table = self.place.seats.lock();
        let taken = table.taken.get_mut(&self.place.id);
        let begin = taken.and_then(|taken| taken.requests.get_mut(&self.request));
        if let Some(Some(begin)) = begin {
            *begin = Instant::now();
        }
    }
}

impl Busy {
    pub(super) fn pulse(&self) -> Pulse {
        let place = Arc::clone(&self.place);
        Pulse {
            request: self.request,
            place,
        }
    }

    /// It may last as long as its connection.
    pub(super) fn may_stay(&self) {
        let mut table = self.place.seats.lock();
        let taken = table.taken.get_mut(&self.place.id);
        if let Some(begin) = taken.and_then(|taken| taken.requests.get_mut(&self.request)) {
            *begin = None;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(taken) = self.place.seats.lock().taken.get_mut(&self.place.id) {
            taken.requests.remove(&self.request);
            taken.idle_since = Instant::now();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.seats.lock().taken.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn is_closed(seat: &Seat) -> bool {
        seat.place.close.is_cancelled()
    }

    #[test]
    fn what_idles_for_longest_makes_room() {
        let seats = Seats::new(3);
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let take = |last, ms| seats.take(address(last), at(ms));
        let busy = take(1, 0).unwrap();
        let request = busy.begin();
        let (old, new) = (take(2, 1).unwrap(), take(3, 2).unwrap());
        let third = take(4, 3).unwrap();
        assert!(is_closed(&old) && !is_closed(&new) && !is_closed(&busy));
        let requests = [new.begin(), third.begin()];
        assert!(take(5, 4).is_none(), "all are busy");
        drop(requests);
        drop(request);
        assert!(take(5, 5).is_some());
    }

    #[test]
    fn an_address_with_many_connections_makes_room_first_and_never_takes_all() {
        let seats = Seats::new(8);
        let now = Instant::now();
        let one = seats.take(address(1), now).unwrap();
        let many: Vec<Seat> = (0..6).filter_map(|_| seats.take(address(2), now)).collect();
        // Six of eight are its share: the next one replaces one of its own.
        let seventh = seats.take(address(2), now).unwrap();
        assert_eq!(many.iter().filter(|seat| is_closed(seat)).count(), 1);
        let busy: Vec<Busy> = many.iter().chain([&seventh]).map(Seat::begin).collect();
        assert!(seats.take(address(2), now).is_none());
        assert!(seats.take(address(3), now).is_some());
        assert!(!is_closed(&one));
        drop(busy);
    }

    #[test]
    fn a_place_is_given_back() {
        let seats = Seats::new(1);
        let first = seats.take(address(1), Instant::now()).unwrap();
        let request = first.begin();
        drop(first);
        assert!(seats.take(address(1), Instant::now()).is_none());
        drop(request);
        assert!(seats.lock().taken.is_empty());
        assert!(seats.take(address(1), Instant::now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_goes_on_is_not_overdue() {
        // Wall time, so keep it short.
        let seats = Seats::new(1);
        let seat = seats.take(address(1), Instant::now()).unwrap();
        let request = seat.begin();
        let pulse = request.pulse();
        let (second, pause) = (Duration::from_secs(1), Duration::from_millis(30));
        std::thread::sleep(pause);
        pulse.beat();
        let overdue = tokio::time::timeout(Duration::ZERO, seat.overdue(pause)).await;
        assert!(overdue.is_err());
        std::thread::sleep(pause);
        seat.overdue(pause).await;
        drop(request);
        // A beat after the end has no effect.
        pulse.beat();
        let overdue = tokio::time::timeout(second, seat.overdue(pause)).await;
        assert!(overdue.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn idling_begins_with_the_last_request_and_ends_with_the_next() {
        // Wall time, so keep it short.
        let seats = Seats::new(1);
        let seat = seats.take(address(1), Instant::now()).unwrap();
        let request = seat.begin();
        let long = Duration::from_secs(3600);
        let waited = tokio::time::timeout(long, seat.idled(Duration::from_secs(60))).await;
        assert!(waited.is_err(), "a request is inside");
        drop(request);
        seat.idled(Duration::ZERO).await;
    }
}

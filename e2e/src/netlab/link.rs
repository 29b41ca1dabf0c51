//! One directed link: a queue, a transmitter and a delay. Pure: time is an argument, so that tests
//! need no clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a queue of the default size takes to drain.
const DEFAULT_QUEUE: Duration = Duration::from_millis(250);
/// A shorter queue would drop a single burst of one connection.
const SMALLEST_QUEUE_BYTES: u64 = 64 * 1024;

/// Properties of one direction between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Time from the last bit leaving to its arrival.
    pub delay: Duration,
    /// Bits per second, including IP headers.
    pub rate_bits_per_s: u64,
    /// A link that is down loses every packet.
    pub up: bool,
    /// Bytes that may wait to be sent before packets are dropped; by default what the link sends in
    /// 250 ms, at least 64 KiB.
    pub queue_limit_bytes: Option<u64>,
}

impl Link {
    /// A link that is up, with the default queue.
    pub const fn new(delay: Duration, rate_bits_per_s: u64) -> Self {
        Self {
            delay,
            rate_bits_per_s,
            up: true,
            queue_limit_bytes: None,
        }
    }

    /// Its rate in Mbit/s.
    pub fn mbit_per_s(&self) -> f64 {
        self.rate_bits_per_s as f64 / 1e6
    }

    /// The limit that applies, in bytes.
    pub fn queue_limit(&self) -> u64 {
        self.queue_limit_bytes.unwrap_or_else(|| {
            let default = u128::from(self.rate_bits_per_s) * DEFAULT_QUEUE.as_millis() / 8000;
            u64::try_from(default)
                .unwrap_or(u64::MAX)
                .max(SMALLEST_QUEUE_BYTES)
        })
    }

    /// Transmission time of `bytes`.
    fn transmission(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 8_000_000_000 / u128::from(self.rate_bits_per_s.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A packet with its size.
struct Sized<P> {
    bytes: u64,
    packet: P,
}

/// The packets on one directed link.
pub(crate) struct Pipe<P> {
    link: Link,
    /// The head is being sent, the others wait.
    waiting: VecDeque<Sized<P>>,
    waiting_bytes: u64,
    /// When the last bit of the head leaves. Meaningless if the queue is empty.
    head_leaves: Instant,
    /// Sent and in flight, by time of arrival.
    flying: VecDeque<(Instant, P)>,
}

impl<P> Pipe<P> {
    /// An empty link.
    pub(crate) fn new(link: Link, now: Instant) -> Self {
        Self {
            link,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            head_leaves: now,
            flying: VecDeque::new(),
        }
    }

    /// Queues a packet, or returns it if it is dropped.
    pub(crate) fn push(&mut self, now: Instant, bytes: u64, packet: P) -> Result<(), P> {
        self.advance(now);
        if !self.link.up || self.waiting_bytes + bytes > self.link.queue_limit() {
            return Err(packet);
        }
        if self.waiting.is_empty() {
            self.head_leaves = now + self.link.transmission(bytes);
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back(Sized { bytes, packet });
        Ok(())
    }

    /// The next packet that has arrived.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<P> {
        self.advance(now);
        let (arrival, _) = self.flying.front()?;
        if *arrival > now {
            return None;
        }
        self.flying.pop_front().map(|(_, packet)| packet)
    }

    /// When the link must be polled next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        // Packets in flight arrive in order, and those in the queue arrive after them; so the queue
        // only matters if nothing is in flight.
        match self.flying.front() {
            Some((arrival, _)) => Some(*arrival),
            None if self.waiting.is_empty() => None,
            None => Some(self.head_leaves + self.link.delay),
        }
    }

    /// Changes the link; returns the packets lost if it goes down.
    pub(crate) fn change(&mut self, now: Instant, link: Link) -> Vec<P> {
        self.advance(now);
        let old = std::mem::replace(&mut self.link, link);
        if !self.waiting.is_empty() {
            // The rest of the head is sent at the new rate.
            let left = self.head_leaves.saturating_duration_since(now);
            let stretch = old.rate_bits_per_s.max(1) as f64 / link.rate_bits_per_s.max(1) as f64;
            self.head_leaves = now + left.mul_f64(stretch);
        }
        if link.up {
            return Vec::new();
        }
        self.waiting_bytes = 0;
        let waiting = self.waiting.drain(..).map(|sized| sized.packet);
        waiting
            .chain(self.flying.drain(..).map(|(_, packet)| packet))
            .collect()
    }

    /// Moves packets that have left the transmitter in flight. A late call uses the times at which
    /// packets should have left, so that a busy machine delays packets but does not slow the link.
    fn advance(&mut self, now: Instant) {
        while self.head_leaves <= now {
            let Some(sent) = self.waiting.pop_front() else {
                return;
            };
            self.waiting_bytes -= sent.bytes;
            let mut arrival = self.head_leaves + self.link.delay;
            if let Some((last, _)) = self.flying.back() {
                // A shorter delay does not let packets overtake each other.
                arrival = arrival.max(*last);
            }
            self.flying.push_back((arrival, sent.packet));
            if let Some(next) = self.waiting.front() {
                self.head_leaves += self.link.transmission(next.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pipe(link: Link) -> (Pipe<u32>, Instant) {
        let now = Instant::now();
        (Pipe::new(link, now), now)
    }

    /// 1 Mbit/s sends 125 bytes in one millisecond.
    fn megabit(delay: Duration) -> Link {
        Link::new(delay, 1_000_000)
    }

    #[test]
    fn a_packet_takes_transmission_and_delay() {
        let (mut pipe, start) = pipe(megabit(10 * MS));
        pipe.push(start, 125, 1).unwrap();
        assert_eq!(pipe.next_deadline(), Some(start + 11 * MS));
        assert_eq!(
            pipe.pop(start + 11 * MS - Duration::from_nanos(1)),
            None,
            "too early"
        );
        assert_eq!(pipe.pop(start + 11 * MS), Some(1));
        assert_eq!(pipe.next_deadline(), None);
    }

    #[test]
    fn packets_follow_each_other_at_the_rate() {
        let (mut pipe, start) = pipe(megabit(5 * MS));
        for packet in 0..3 {
            pipe.push(start, 125, packet).unwrap();
        }
        for packet in 0..3 {
            let due = start + (6 + packet) * MS;
            assert_eq!(pipe.pop(due - MS / 10), None);
            assert_eq!(pipe.pop(due), Some(packet));
        }
    }

    #[test]
    fn a_late_look_does_not_slow_the_link() {
        let (mut pipe, start) = pipe(megabit(5 * MS));
        for packet in 0..3 {
            pipe.push(start, 125, packet).unwrap();
        }
        let late = start + 8 * MS;
        assert_eq!(
            (0..3).map(|_| pipe.pop(late)).collect::<Vec<_>>(),
            [Some(0), Some(1), Some(2)]
        );
    }

    #[test]
    fn a_full_queue_drops_the_newcomer() {
        let mut link = megabit(MS);
        link.queue_limit_bytes = Some(250);
        let (mut pipe, start) = pipe(link);
        pipe.push(start, 125, 0).unwrap();
        pipe.push(start, 125, 1).unwrap();
        assert_eq!(pipe.push(start, 125, 2), Err(2));
        pipe.push(start + MS, 125, 3).unwrap();
    }

    #[test]
    fn a_slower_rate_applies_to_what_has_not_left() {
        let (mut pipe, start) = pipe(megabit(Duration::ZERO));
        pipe.push(start, 250, 0).unwrap();
        pipe.push(start, 125, 1).unwrap();
        pipe.change(start + MS, Link::new(Duration::ZERO, 100_000));
        assert_eq!(pipe.next_deadline(), Some(start + 11 * MS));
        assert_eq!(pipe.pop(start + 11 * MS), Some(0));
        assert_eq!(pipe.next_deadline(), Some(start + 21 * MS));
    }

    #[test]
    fn a_shorter_delay_keeps_the_order() {
        let (mut pipe, start) = pipe(megabit(100 * MS));
        pipe.push(start, 125, 0).unwrap();
        pipe.change(start + 2 * MS, megabit(MS));
        pipe.push(start + 2 * MS, 125, 1).unwrap();
        assert_eq!(pipe.pop(start + 50 * MS), None);
        assert_eq!(pipe.pop(start + 101 * MS), Some(0));
        assert_eq!(pipe.pop(start + 101 * MS), Some(1));
    }

    #[test]
    fn a_link_that_goes_down_loses_what_it_carries() {
        let (mut pipe, start) = pipe(megabit(10 * MS));
        pipe.push(start, 125, 0).unwrap();
        pipe.push(start, 125, 1).unwrap();
        let mut down = megabit(10 * MS);
        down.up = false;
        assert_eq!(pipe.change(start + 3 * MS / 2, down), [1, 0]);
        assert_eq!(pipe.push(start + 2 * MS, 125, 2), Err(2));
        assert_eq!(pipe.next_deadline(), None);
        pipe.change(start + 3 * MS, megabit(10 * MS));
        pipe.push(start + 3 * MS, 125, 3).unwrap();
        assert_eq!(pipe.pop(start + 14 * MS), Some(3));
    }

    #[test]
    fn the_default_queue_holds_a_quarter_of_a_second() {
        assert_eq!(Link::new(MS, 50_000_000).queue_limit(), 1_562_500);
        assert_eq!(Link::new(MS, 1_000_000).queue_limit(), 65_536);
    }
}

//! The links that an agent reports in a second, as a real one measures them: with the time that
//! pings and probes would take on them. Pure.

use super::links::Quality;
use lamina_proto::control::LinkSample;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::time::Duration;

/// Pings per check of a peer; the fastest counts.
const PINGS: f64 = 3.0;
/// Wait for a peer that does not answer.
const PATIENCE_SECONDS: f64 = 2.0;
/// Time between two rounds over all peers.
const ROUND_SECONDS: f64 = 2.0;
/// Age at which a bandwidth is probed again.
const PROBE_AGAIN: Duration = Duration::from_secs(12);
/// Bounds of a probe's size, and how long it should take.
const PROBE_BYTES: (f64, f64) = (16_384.0, 131_072.0);
const PROBE_SECONDS: f64 = 0.07;
/// A rate that differs from the last by this factor counts as changed, and is reported twice.
const NEWS: f64 = 1.6;
/// Relative noise of measurements.
const NOISE: f64 = 0.04;

/// A host whose link is to be measured.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Peer {
    /// Its name.
    pub(super) node: String,
    /// Time between two round trips; peers without one are asked in turn.
    pub(super) every: Option<Duration>,
}

/// State of the link to one peer.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    pinged: Option<Duration>,
    probed: Option<Duration>,
    rate: f64,
    /// Another link of this host changed, so this one may have, too.
    is_distrusted: bool,
}

/// The link measurements of one host.
#[derive(Debug)]
pub(super) struct Prober {
    peers: Vec<Peer>,
    next: usize,
    /// Seconds left for pings and probes before they fall behind the clock.
    spare: f64,
    known: BTreeMap<String, Known>,
    random: StdRng,
}

impl Prober {
    /// A prober without measurements. `seed` makes the noise.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            peers: Vec::new(),
            next: 0,
            spare: 0.0,
            known: BTreeMap::new(),
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// Replaces the peers.
    pub(super) fn follow(&mut self, peers: Vec<Peer>) {
        self.known
            .retain(|node, _| peers.iter().any(|peer| peer.node == *node));
        self.peers = peers;
        self.next = 0;
    }

    /// Samples of the second before `now`. `link` gives the link to a peer; `None` if it does not
    /// answer.
    pub(super) fn second(
        &mut self,
        now: Duration,
        link: impl Fn(&str) -> Option<Quality>,
    ) -> Vec<LinkSample> {
        let mut samples = Vec::new();
        let timed: Vec<String> = self
            .peers
            .iter()
            .filter(|peer| {
                peer.every
                    .is_some_and(|every| self.is_due(&peer.node, now, every))
            })
            .map(|peer| peer.node.clone())
            .collect();
        for node in timed {
            // In parallel: none waits for another.
            self.look(&node, now, link(&node), &mut samples);
        }
        self.spare = (self.spare + 1.0).min(1.0);
        let in_turn: Vec<String> = self
            .peers
            .iter()
            .filter(|peer| peer.every.is_none())
            .map(|peer| peer.node.clone())
            .collect();
        for _ in 0..in_turn.len() {
            if self.spare <= 0.0 {
                break;
            }
            if self.next >= in_turn.len() {
                self.next = 0;
                self.spare -= ROUND_SECONDS;
                continue;
            }
            let node = &in_turn[self.next];
            self.next += 1;
            self.spare -= self.look(node, now, link(node), &mut samples);
        }
        samples
    }

    /// Reports a link that real traffic showed to be changed.
    pub(super) fn seen(&mut self, node: &str, now: Duration, quality: Quality) -> Vec<LinkSample> {
        let mut samples = vec![self.round_trip(node, quality)];
        self.probe(node, now, quality, &mut samples);
        samples
    }

    fn is_due(&self, node: &str, now: Duration, every: Duration) -> bool {
        let pinged = self.known.get(node).and_then(|known| known.pinged);
        // Checks come once a second, so a moment too early is in time.
        pinged.is_none_or(|at| now + Duration::from_millis(100) >= at + every)
    }

    /// Checks a peer; returns the seconds that it takes.
    fn look(
        &mut self,
        node: &str,
        now: Duration,
        quality: Option<Quality>,
        samples: &mut Vec<LinkSample>,
    ) -> f64 {
        let known = self.known.entry(node.to_owned()).or_default();
        known.pinged = Some(now);
        let Some(quality) = quality else {
            samples.push(LinkSample {
                peer: node.to_owned(),
                failed: true,
                ..LinkSample::default()
            });
            return PATIENCE_SECONDS;
        };
        let due = known.is_distrusted || known.probed.is_none_or(|at| now >= at + PROBE_AGAIN);
        samples.push(self.round_trip(node, quality));
        let pings = PINGS * quality.rtt_seconds;
        if due {
            pings + self.probe(node, now, quality, samples)
        } else {
            pings
        }
    }

    fn round_trip(&mut self, node: &str, quality: Quality) -> LinkSample {
        LinkSample {
            peer: node.to_owned(),
            rtt_seconds: quality.rtt_seconds * (1.0 + self.noise().abs()),
            ..LinkSample::default()
        }
    }

    /// Probes the bandwidth, twice if it changed; returns the seconds.
    fn probe(
        &mut self,
        node: &str,
        now: Duration,
        quality: Quality,
        samples: &mut Vec<LinkSample>,
    ) -> f64 {
        let rate = quality.bytes_per_second;
        let bytes = (rate * PROBE_SECONDS).clamp(PROBE_BYTES.0, PROBE_BYTES.1);
        let known = self.known.entry(node.to_owned()).or_default();
        let is_news = known.rate > 0.0 && (rate >= known.rate * NEWS || rate <= known.rate / NEWS);
        *known = Known {
            probed: Some(now),
            rate,
            is_distrusted: false,
            ..*known
        };
        let turns = if is_news { 2 } else { 1 };
        for _ in 0..turns {
            let noise = self.noise();
            samples.push(LinkSample {
                peer: node.to_owned(),
                bytes_per_second: rate * (1.0 + noise),
                bytes: bytes as u64,
                ..LinkSample::default()
            });
        }
        if is_news {
            // Links of one host often share their bottleneck.
            for (other, known) in &mut self.known {
                known.is_distrusted |= other != node;
            }
        }
        // One before each turn opens the congestion window.
        2.0 * f64::from(turns) * (quality.rtt_seconds + bytes / rate)
    }

    fn noise(&mut self) -> f64 {
        self.random.random_range(-NOISE..NOISE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Quality = Quality {
        rtt_seconds: 0.01,
        bytes_per_second: 1e7,
    };

    fn peers(count: usize, every: Option<Duration>) -> Vec<Peer> {
        let peer = |i| Peer {
            node: format!("n{i:03}"),
            every,
        };
        (0..count).map(peer).collect()
    }

    const fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[test]
    fn peers_that_are_asked_in_turn_take_their_time() {
        let mut prober = Prober::new(1);
        prober.follow(peers(100, None));
        let first = prober.second(at(1), |_| Some(GOOD));
        let asked = first.iter().filter(|s| s.rtt_seconds > 0.0).count();
        // 30 ms of pings and 2 × (10 + 13) ms of a probe each.
        assert!((10..=16).contains(&asked), "{asked}");
        let mut seen: Vec<String> = first.into_iter().map(|s| s.peer).collect();
        for second in 2..12 {
            seen.extend(
                prober
                    .second(at(second), |_| Some(GOOD))
                    .into_iter()
                    .map(|s| s.peer),
            );
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn a_dead_peer_holds_up_those_behind_it_only_where_they_are_asked_in_turn() {
        let dead = |node: &str| (node != "n000").then_some(GOOD);
        let mut in_turn = Prober::new(1);
        in_turn.follow(peers(3, None));
        assert_eq!(in_turn.second(at(1), dead).len(), 1);
        assert!(in_turn.second(at(2), dead).is_empty());
        let mut timed = Prober::new(1);
        timed.follow(peers(3, Some(at(1))));
        let samples = timed.second(at(1), dead);
        assert!(samples[0].failed);
        assert_eq!(samples.iter().filter(|s| s.rtt_seconds > 0.0).count(), 2);
    }

    #[test]
    fn a_timed_peer_is_asked_as_often_as_it_is_told() {
        let mut prober = Prober::new(1);
        prober.follow(peers(1, Some(at(3))));
        let asked: Vec<bool> = (1..=7)
            .map(|s| !prober.second(at(s), |_| Some(GOOD)).is_empty())
            .collect();
        assert_eq!(asked, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn news_is_told_twice_and_casts_doubt_on_the_other_links() {
        let mut prober = Prober::new(1);
        prober.follow(peers(2, Some(at(1))));
        prober.second(at(1), |_| Some(GOOD));
        let slow = Quality {
            bytes_per_second: 1e6,
            ..GOOD
        };
        let told = prober.seen("n000", at(2), slow);
        let rates = told.iter().filter(|s| s.bytes > 0);
        assert!(rates.clone().all(|s| s.bytes_per_second < 1.1e6));
        assert_eq!(rates.count(), 2);
        let next = prober.second(at(2), |node| Some(if node == "n000" { slow } else { GOOD }));
        let probed: Vec<&str> = next
            .iter()
            .filter(|s| s.bytes > 0)
            .map(|s| s.peer.as_str())
            .collect();
        assert_eq!(probed, ["n001"]);
    }
}

//! A cache of token checks, so that the API server is rarely asked: which tokens were
//! accepted, which were refused, and who sent too many invalid ones. Pure apart from its
//! owner's locks: the current time is passed in.

use super::auth::{Agent, Call, Refusal};
use lamina_model::Digest;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A token is reviewed at most once in this time: blobs are fetched in many ranges.
pub(super) const FRESH: Duration = Duration::from_secs(60);
/// While the API server is away, accepted tokens stay valid for this long.
pub(super) const STALE: Duration = Duration::from_secs(600);
/// A refused token is not reviewed again within this time. Short: it may belong to a pod that the
/// API server is about to register.
const REFUSED: Duration = Duration::from_secs(5);
/// Most tokens remembered, good or bad.
const MOST_ACCEPTED: usize = 8192;
const MOST_REFUSED: usize = 4096;
/// Bad tokens from one source that are reviewed: so many at once, and so many a
/// second.
const OF_SOURCE: Rate = Rate {
    burst: 10.0,
    a_second: 1.0,
};
/// And from all addresses.
const OF_ALL: Rate = Rate {
    burst: 100.0,
    a_second: 10.0,
};
/// Sources whose bad tokens are counted.
const MOST_SOURCES: usize = 1024;

/// Whose bad tokens are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// Everybody's at an address, or in a network of IPv6.
    Address(IpAddr),
    /// A host's that shows its certificate: whoever has none keeps it from nothing.
    Host(Arc<str>),
}

impl Source {
    /// The source of `call`, where something is known of that.
    pub(super) fn of(call: &Call<'_>) -> Option<Self> {
        match call.peer {
            Some(peer) => Some(Self::Host(Arc::clone(&peer.node))),
            None => call.from.map(|ip| Self::Address(group(ip))),
        }
    }
}

/// The cached tokens.
#[derive(Debug)]
pub(super) struct Known {
    accepted: BTreeMap<Digest, (Agent, Instant)>,
    refused: BTreeMap<Digest, (Refusal, Instant)>,
    of_all: Bucket,
    of_source: BTreeMap<Source, Bucket>,
}

impl Known {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            accepted: BTreeMap::new(),
            refused: BTreeMap::new(),
            of_all: Bucket::full(OF_ALL, now),
            of_source: BTreeMap::new(),
        }
    }

    /// The owner of the token, if it was accepted within `age`.
    pub(super) fn accepted(&self, token: &Digest, age: Duration, now: Instant) -> Option<Agent> {
        let (agent, at) = self.accepted.get(token)?;
        (now.saturating_duration_since(*at) < age).then(|| agent.clone())
    }

    /// Why the token was recently refused, if it was.
    pub(super) fn refused(&self, token: &Digest, now: Instant) -> Option<Refusal> {
        let (refusal, at) = self.refused.get(token)?;
        (now.saturating_duration_since(*at) < REFUSED).then(|| refusal.clone())
    }

    /// Whether a token that nobody knows may be reviewed: not where too many bad ones
    /// came from that source, or from all addresses where it is one of them.
    pub(super) fn may_ask(&mut self, from: Option<&Source>, now: Instant) -> bool {
        let of_source = from.and_then(|from| self.of_source.get_mut(from));
        let of_source = of_source.is_none_or(|b| b.has_some(OF_SOURCE, now));
        let is_host = matches!(from, Some(Source::Host(_)));
        of_source && (is_host || self.of_all.has_some(OF_ALL, now))
    }

    /// The token was accepted as `agent`'s.
    pub(super) fn accept(&mut self, token: Digest, agent: Agent, now: Instant) {
        self.refused.remove(&token);
        forget(&mut self.accepted, MOST_ACCEPTED, STALE, now);
        self.accepted.insert(token, (agent, now));
    }

    /// The token was refused; it came from `from`.
    pub(super) fn refuse(
        &mut self,
        token: Digest,
        refusal: Refusal,
        from: Option<Source>,
        now: Instant,
    ) {
        self.accepted.remove(&token);
        forget(&mut self.refused, MOST_REFUSED, REFUSED, now);
        self.refused.insert(token, (refusal, now));
        if !matches!(from, Some(Source::Host(_))) {
            self.of_all.take(OF_ALL, now);
        }
        if let Some(source) = from {
            self.make_room(now);
            let full = Bucket::full(OF_SOURCE, now);
            let bucket = self.of_source.entry(source).or_insert(full);
            bucket.take(OF_SOURCE, now);
        }
    }

    fn make_room(&mut self, now: Instant) {
        if self.of_source.len() < MOST_SOURCES {
            return;
        }
        self.of_source.retain(|_, b| !b.is_full(OF_SOURCE, now));
        while self.of_source.len() >= MOST_SOURCES {
            let oldest = self.of_source.iter().min_by_key(|(_, b)| b.at);
            let Some(oldest) = oldest.map(|(source, _)| source.clone()) else {
                return;
            };
            self.of_source.remove(&oldest);
        }
    }
}

/// Drops entries older than `life`; if there are still too many, the oldest quarter.
fn forget<T>(
    known: &mut BTreeMap<Digest, (T, Instant)>,
    most: usize,
    life: Duration,
    now: Instant,
) {
    if known.len() < most {
        return;
    }
    known.retain(|_, (_, at)| now.saturating_duration_since(*at) < life);
    if known.len() < most {
        return;
    }
    let mut by_age: Vec<(Instant, Digest)> = known
        .iter()
        .map(|(token, (_, at))| (*at, token.clone()))
        .collect();
    by_age.sort();
    for (_, token) in by_age.iter().take(most / 4) {
        known.remove(token);
    }
}

/// Addresses that count as one client: an IPv6 client has its whole network.
fn group(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let network = u128::from(v6) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: f64,
    a_second: f64,
}

/// The rest of a rate.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    const fn full(rate: Rate, now: Instant) -> Self {
        Self {
            left: rate.burst,
            at: now,
        }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = elapsed.mul_add(rate.a_second, self.left).min(rate.burst);
        self.at = now;
    }

    fn has_some(&mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        self.left >= 1.0
    }

    fn is_full(&self, rate: Rate, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        elapsed.mul_add(rate.a_second, self.left) >= rate.burst
    }

    /// Takes one; concurrent requests may overdraw it, and later ones wait.
    fn take(&mut self, rate: Rate, now: Instant) {
        self.refill(rate, now);
        self.left -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(n: u32) -> Digest {
        Digest::of(&n.to_le_bytes())
    }

    fn agent() -> Agent {
        Agent {
            node: "cam-1".into(),
            pod: "lamina-agent-1".into(),
            pod_uid: "uid".into(),
        }
    }

    fn refusal() -> Refusal {
        Refusal::Rejected("unknown or expired".into())
    }

    #[test]
    fn a_token_is_reviewed_once_for_a_while() {
        let start = Instant::now();
        let after = |s| start + Duration::from_secs(s);
        let mut known = Known::new(start);
        known.accept(token(1), agent(), start);
        assert_eq!(known.accepted(&token(1), FRESH, after(59)), Some(agent()));
        assert_eq!(known.accepted(&token(1), FRESH, after(61)), None);
        assert_eq!(known.accepted(&token(1), STALE, after(599)), Some(agent()));
        assert_eq!(known.accepted(&token(1), STALE, after(601)), None);
        known.refuse(token(1), refusal(), None, after(61));
        assert_eq!(known.accepted(&token(1), STALE, after(62)), None);
        assert_eq!(known.refused(&token(1), after(62)), Some(refusal()));
        assert_eq!(known.refused(&token(1), after(67)), None);
        known.accept(token(1), agent(), after(63));
        assert_eq!(known.refused(&token(1), after(63)), None);
    }

    fn address(ip: &str) -> Source {
        Source::Address(group(ip.parse().unwrap()))
    }

    #[test]
    fn bad_tokens_of_one_address_leave_reviews_for_others() {
        let start = Instant::now();
        let mut known = Known::new(start);
        let bad = address("10.0.0.66");
        let mapped = address("::ffff:10.0.0.66");
        let good = address("10.0.0.7");
        let mut asked = 0;
        // Three thousand in eight seconds.
        for n in 0..3000 {
            let now = start + Duration::from_secs_f64(f64::from(n) * 8.0 / 3000.0);
            if known.may_ask(Some(&mapped), now) {
                asked += 1;
                known.refuse(token(n), refusal(), Some(bad.clone()), now);
            }
        }
        assert!((10..20).contains(&asked), "{asked}");
        assert!(known.may_ask(Some(&good), start + Duration::from_secs(8)));
    }

    #[test]
    fn whoever_has_no_certificate_keeps_one_that_has_it_from_nothing() {
        let now = Instant::now();
        let mut known = Known::new(now);
        for n in 0..200 {
            let from = address(&format!("10.0.0.{n}"));
            known.refuse(token(n), refusal(), Some(from), now);
        }
        let (stranger, host) = (address("10.0.1.7"), Source::Host("cam-1".into()));
        assert!(!known.may_ask(Some(&stranger), now));
        assert!(known.may_ask(Some(&host), now));
        // One that was stolen has its own share, and spends no other's.
        let mut known = Known::new(now);
        for n in 0..200 {
            known.refuse(token(n), refusal(), Some(host.clone()), now);
        }
        assert!(!known.may_ask(Some(&host), now));
        assert!(known.may_ask(Some(&stranger), now));
        assert!(known.may_ask(Some(&Source::Host("cam-2".into())), now));
    }

    #[test]
    fn bad_tokens_from_everywhere_are_few_and_fill_no_memory() {
        let start = Instant::now();
        let mut known = Known::new(start);
        let mut asked = 0;
        for n in 0..20_000_u32 {
            let ip = IpAddr::from(u128::from(n).rotate_left(64).to_be_bytes());
            let from = Source::Address(group(ip));
            let now = start + Duration::from_millis(u64::from(n));
            if known.may_ask(Some(&from), now) {
                asked += 1;
                known.refuse(token(n), refusal(), Some(from), now);
            }
        }
        assert!((200..310).contains(&asked), "{asked}");
        for n in 0..20_000_u32 {
            known.accept(token(n), agent(), start);
            known.refuse(token(n + 20_000), refusal(), None, start);
        }
        assert!(known.accepted.len() <= MOST_ACCEPTED);
        assert!(known.refused.len() <= MOST_REFUSED);
        assert!(known.of_source.len() <= MOST_SOURCES);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let ip = |text: &str| group(text.parse().unwrap());
        assert_eq!(ip("fd00:1::1"), ip("fd00:1::ffff:2"));
        assert_ne!(ip("fd00:1::1"), ip("fd00:2::1"));
        assert_ne!(ip("10.0.0.1"), ip("10.0.0.2"));
    }
}

//! A cache of token checks, so that the API server is rarely asked and may be down. Pure apart
//! from its owner's locks: the current time is passed in.

use super::rates::{Rate, Rates};
use crate::door::client_of;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lamina_model::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A yes is not checked again within this time,
pub(super) const FRESH: Duration = Duration::from_secs(60);
/// nor a no within this one. Short: a right may just have been granted.
pub(super) const REFUSED: Duration = Duration::from_secs(5);
/// While the API server is away a yes holds until its token expires, but no longer than this; if
/// the token does not say when, for
const HELD: Duration = Duration::from_secs(24 * 3600);
const HELD_OF_OTHERS: Duration = Duration::from_secs(600);
/// After the API server failed to answer, still valid answers are not checked again for this long.
const AWAY: Duration = Duration::from_secs(10);
/// Most answers remembered of each kind.
const MOST_YES: usize = 8192;
const MOST_NO: usize = 4096;
/// Limits on unknown questions, from one address and in total.
const OF_ADDRESS: Rate = Rate {
    burst: 40.0,
    a_second: 4.0,
};
const OF_ALL: Rate = Rate {
    burst: 200.0,
    a_second: 20.0,
};
/// Most addresses whose questions are counted.
const MOST_ADDRESSES: usize = 1024;

/// The owner of a token, from the API server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(super) user: String,
    pub(super) uid: Option<String>,
    pub(super) groups: Vec<String>,
    pub(super) extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// The namespace of a service account; `None` for other users.
    pub(super) fn namespace(&self) -> Option<&str> {
        let account = self.user.strip_prefix("system:serviceaccount:")?;
        account.split_once(':').map(|(namespace, _)| namespace)
    }
}

/// A question to the API server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question {
    /// SHA-256 of the token.
    pub(super) token: Digest,
    /// Whether it may get this model, `namespace/name`; if `None`, who its owner is.
    pub(super) model: Option<String>,
}

/// Yes, with the token's owner; or no.
pub(super) type Answer = Option<Arc<Identity>>;

#[derive(Debug)]
struct Yes {
    who: Arc<Identity>,
    asked: Instant,
    /// Until when it holds while the API server is away.
    until: Instant,
}

/// The answers, bounded.
#[derive(Debug)]
pub(super) struct Remembered {
    yes: BTreeMap<Question, Yes>,
    no: BTreeMap<Question, Instant>,
    of_address: Rates<IpAddr>,
    of_all: Rates<()>,
    /// When the API server last failed to answer.
    away: Option<Instant>,
}

impl Default for Remembered {
    fn default() -> Self {
        Self {
            yes: BTreeMap::new(),
            no: BTreeMap::new(),
            of_address: Rates::new(MOST_ADDRESSES),
            of_all: Rates::new(1),
            away: None,
        }
    }
}

impl Remembered {
    /// The answer, if it need not be checked again.
    pub(super) fn fresh(&self, question: &Question, now: Instant) -> Option<Answer> {
        let age = |at: Instant| now.saturating_duration_since(at);
        let is_away = self.away.is_some_and(|at| age(at) < AWAY);
        if let Some(yes) = self.yes.get(question)
            && (age(yes.asked) < FRESH || is_away)
            && now < yes.until
        {
            return Some(Some(Arc::clone(&yes.who)));
        }
        let no = self.no.get(question)?;
        (age(*no) < REFUSED).then_some(None)
    }

    /// The last yes, for use while the API server is away.
    pub(super) fn held(&self, question: &Question, now: Instant) -> Option<Arc<Identity>> {
        let yes = self.yes.get(question).filter(|yes| now < yes.until)?;
        Some(Arc::clone(&yes.who))
    }

    /// Whether a question never answered with yes may be asked.
    ///
    /// # Errors
    /// There are too many; the time until it may.
    pub(super) fn may_ask(&mut self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        self.of_address.take(&client_of(from), OF_ADDRESS, now)?;
        self.of_all.take(&(), OF_ALL, now)
    }

    /// The API server answered; a yes `holds` for this long while it is away.
    pub(super) fn answered(
        &mut self,
        question: Question,
        answer: &Answer,
        holds: Duration,
        now: Instant,
    ) {
        self.away = None;
        if let Some(who) = answer {
            self.no.remove(&question);
            forget(
                &mut self.yes,
                MOST_YES,
                |yes| now < yes.until,
                |yes| yes.asked,
            );
            let yes = Yes {
                who: Arc::clone(who),
                asked: now,
                until: now + holds,
            };
            self.yes.insert(question, yes);
        } else {
            self.yes.remove(&question);
            let is_fresh = |at: &Instant| now.saturating_duration_since(*at) < REFUSED;
            forget(&mut self.no, MOST_NO, is_fresh, |at| *at);
            self.no.insert(question, now);
        }
    }

    /// The API server failed to answer.
    pub(super) fn unanswered(&mut self, now: Instant) {
        self.away = Some(now);
    }
}

/// Drops useless entries; if there are still too many, the oldest quarter.
fn forget<T>(
    known: &mut BTreeMap<Question, T>,
    most: usize,
    is_worth: impl Fn(&T) -> bool,
    at: impl Fn(&T) -> Instant,
) {
    if known.len() < most {
        return;
    }
    known.retain(|_, value| is_worth(value));
    if known.len() < most {
        return;
    }
    let mut ages: Vec<Instant> = known.values().map(&at).collect();
    ages.sort_unstable();
    if let Some(oldest) = ages.get(most / 4).copied() {
        known.retain(|_, value| at(value) > oldest);
    }
}

/// How long a yes to `token` holds while the API server is away: until the token expires.
pub(super) fn holds(token: &str, now: SystemTime) -> Duration {
    let Some(expiry) = expiry(token) else {
        return HELD_OF_OTHERS;
    };
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(expiry).saturating_sub(now).min(HELD)
}

/// The expiry in a token, in seconds since 1970. It is trusted only once the API server has
/// accepted the token.
fn expiry(token: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    Some(claims.exp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(token: &str, model: Option<&str>) -> Question {
        Question {
            token: Digest::of(token.as_bytes()),
            model: model.map(str::to_owned),
        }
    }

    fn who(user: &str) -> Arc<Identity> {
        Arc::new(Identity {
            user: user.to_owned(),
            ..Identity::default()
        })
    }

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_yes_is_fresh_for_a_minute_and_holds_until_its_token_runs_out() {
        let (mut known, now) = (Remembered::default(), Instant::now());
        let asked = question("t", Some("lab/m"));
        assert_eq!(known.fresh(&asked, now), None);
        known.answered(asked.clone(), &Some(who("u")), S(3600), now);
        let yes = Some(Some(who("u")));
        assert_eq!(known.fresh(&asked, now + S(59)), yes);
        assert_eq!(known.fresh(&asked, now + S(60)), None);
        assert_eq!(known.held(&asked, now + S(3599)), Some(who("u")));
        assert_eq!(known.held(&asked, now + S(3600)), None);
        // Another model or another token is another question.
        assert_eq!(known.fresh(&question("t", None), now), None);
        assert_eq!(known.fresh(&question("s", Some("lab/m")), now), None);
        // A token that expires within the minute is valid until then.
        known.answered(asked.clone(), &Some(who("u")), S(10), now);
        assert_eq!(known.fresh(&asked, now + S(10)), None);
    }

    #[test]
    fn an_api_server_that_is_away_is_not_asked_for_a_while() {
        let (mut known, now) = (Remembered::default(), Instant::now());
        let (asked, other) = (question("t", None), question("s", None));
        known.answered(asked.clone(), &Some(who("u")), S(3600), now);
        known.unanswered(now + S(61));
        let yes = Some(Some(who("u")));
        assert_eq!(known.fresh(&asked, now + S(70)), yes);
        assert_eq!(known.fresh(&asked, now + S(71)), None);
        assert_eq!(known.fresh(&other, now + S(70)), None);
        known.unanswered(now + S(72));
        known.answered(other, &None, S(1), now + S(73));
        assert_eq!(known.fresh(&asked, now + S(73)), None);
    }

    #[test]
    fn a_no_ends_a_yes_and_is_short() {
        let (mut known, now) = (Remembered::default(), Instant::now());
        let asked = question("t", None);
        known.answered(asked.clone(), &Some(who("u")), S(3600), now);
        known.answered(asked.clone(), &None, S(3600), now);
        assert_eq!(known.held(&asked, now), None);
        assert_eq!(known.fresh(&asked, now + S(4)), Some(None));
        assert_eq!(known.fresh(&asked, now + S(5)), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_bad_tokens_push_out_no_good_ones() {
        let (mut known, now) = (Remembered::default(), Instant::now());
        let good = question("good", None);
        known.answered(good.clone(), &Some(who("u")), S(3600), now);
        for n in 0..20_000 {
            known.answered(question(&n.to_string(), None), &None, S(1), now);
            assert!(known.no.len() <= MOST_NO);
        }
        assert_eq!(known.held(&good, now), Some(who("u")));
        for n in 0..10_000_u64 {
            let later = now + Duration::from_millis(n);
            let asked = question(&n.to_string(), None);
            known.answered(asked, &Some(who("u")), S(3600), later);
            assert!(known.yes.len() <= MOST_YES);
        }
    }

    #[test]
    fn questions_are_bounded_for_an_address_and_for_all() {
        let (mut known, now) = (Remembered::default(), Instant::now());
        let address = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
        let asked = |known: &mut Remembered, n| known.may_ask(address(n), now).is_ok();
        let of_one = (0..1000).filter(|_| asked(&mut known, 1)).count();
        assert_eq!(of_one, 40);
        let of_all = (2..5000).filter(|n| asked(&mut known, *n)).count();
        assert_eq!(of_all, 160);
        known.may_ask(address(1), now + S(1)).unwrap();
    }

    #[test]
    fn a_token_says_when_it_runs_out() {
        let token = |claims: &str| format!("a.{}.c", URL_SAFE_NO_PAD.encode(claims));
        let now = UNIX_EPOCH + S(1000);
        assert_eq!(holds(&token(r#"{"exp": 1060, "sub": "x"}"#), now), S(60));
        assert_eq!(holds(&token(r#"{"exp": 900}"#), now), S(0));
        assert_eq!(holds(&token(r#"{"exp": 99999999999}"#), now), HELD);
        for other in [token("{}"), token("x"), "a.!.c".into(), "opaque".into()] {
            assert_eq!(holds(&other, now), HELD_OF_OTHERS, "{other}");
        }
    }

    #[test]
    fn a_service_account_has_a_namespace() {
        let of = |user: &str| who(user).namespace().map(str::to_owned);
        assert_eq!(of("system:serviceaccount:lab:cam"), Some("lab".into()));
        assert_eq!(of("alice"), None);
    }
}

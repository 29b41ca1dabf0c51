//! When an authority is replaced, and which authorities are trusted meanwhile. Pure.
//!
//! A new authority is trusted for one certificate lifetime before it signs anything, and the
//! previous one for one lifetime after. A host that was away for less is trusted by everyone;
//! one that was away for longer has no valid certificate anyway.

use lamina_identity::Validity;
use serde::{Deserialize, Serialize};

/// Lifetime of an authority of the operator's own: ten years, in seconds.
pub(super) const LIFE: i64 = 10 * 366 * 24 * 3600;
/// It is replaced after this part of its lifetime.
const USED: (i64, i64) = (4, 5);
/// Most authorities that no longer sign but are still trusted; more would come from a jumping
/// clock.
const MOST_OLD: usize = 4;

/// A certificate with its key, in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyed {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// The authorities, as stored. Times are seconds since 1970.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The one that signs.
    pub(super) current: Keyed,
    /// The next one, and since when it is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<Next>,
    /// The previous ones.
    #[serde(default)]
    pub(super) old: Vec<Old>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Next {
    pub(super) authority: Keyed,
    pub(super) since: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Old {
    pub(super) certificate: String,
    pub(super) until: i64,
}

/// The part of a [`State`] that [`decide`] needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Times {
    /// Validity of the signing authority.
    pub(super) current: Validity,
    /// Validity of the next one, and since when it is trusted.
    pub(super) next: Option<(Validity, i64)>,
    /// Until when each previous one is trusted.
    pub(super) old: Vec<i64>,
}

/// What to do about the authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// There is none: create one.
    Create,
    /// The signing one is invalid now, and there is no next one: create one that signs at once.
    Replace,
    /// Create the next one, and make it trusted.
    Prepare,
    /// The next one signs from now on.
    Switch,
    /// Stop trusting those whose certificates have all expired.
    Forget,
    /// Nothing.
    Keep,
}

impl Step {
    /// Whether a new authority must be created.
    pub(super) const fn makes_one(self) -> bool {
        matches!(self, Self::Create | Self::Replace | Self::Prepare)
    }
}

/// What to do at `now`, if a new authority was requested (`is_asked`) and certificates are valid
/// for `lifetime` seconds.
pub(super) fn decide(times: Option<&Times>, is_asked: bool, now: i64, lifetime: i64) -> Step {
    let Some(times) = times else {
        return Step::Create;
    };
    let next = times.next.filter(|(validity, _)| validity.holds(now));
    if !times.current.holds(now) {
        return next.map_or(Step::Replace, |_| Step::Switch);
    }
    match (times.next, next) {
        (_, Some((_, since))) if since <= now => {
            return if now - since >= lifetime {
                Step::Switch
            } else {
                Step::Keep
            };
        }
        // The clock was wrong at creation, or is now.
        (Some(_), _) => return Step::Prepare,
        (None, _) => {}
    }
    if is_asked || now >= replaced_at(times.current) {
        return Step::Prepare;
    }
    if times.old.iter().any(|until| *until <= now) {
        return Step::Forget;
    }
    Step::Keep
}

const fn replaced_at(validity: Validity) -> i64 {
    let life = validity.not_after.saturating_sub(validity.not_before);
    validity.not_before.saturating_add(life / USED.1 * USED.0)
}

/// The authorities after `step`, with `made` if the step creates one. `None` if there was none and
/// none was created.
pub(super) fn after(
    step: Step,
    before: Option<State>,
    made: Option<Keyed>,
    now: i64,
    lifetime: i64,
) -> Option<State> {
    let Some(mut state) = before else {
        return made.map(|current| State {
            current,
            next: None,
            old: Vec::new(),
        });
    };
    let until = now.saturating_add(lifetime);
    match (step, made) {
        (Step::Prepare, Some(authority)) => {
            state.next = Some(Next {
                authority,
                since: now,
            });
        }
        (Step::Create | Step::Replace, Some(authority)) => state.replace(authority, until),
        (Step::Switch, _) => {
            if let Some(next) = state.next.take() {
                state.replace(next.authority, until);
            }
        }
        (Step::Forget, _) => state.old.retain(|old| old.until > now),
        _ => {}
    }
    Some(state)
}

impl State {
    fn replace(&mut self, authority: Keyed, until: i64) {
        let before = std::mem::replace(&mut self.current, authority);
        let certificate = before.certificate;
        self.old.insert(0, Old { certificate, until });
        self.old.truncate(MOST_OLD);
    }

    /// All trusted authorities, in PEM: the signing one first.
    pub(super) fn bundle(&self) -> String {
        let next = self.next.iter().map(|next| &next.authority.certificate);
        let old = self.old.iter().map(|old| &old.certificate);
        let all = std::iter::once(&self.current.certificate)
            .chain(next)
            .chain(old);
        all.map(|certificate| format!("{}\n", certificate.trim()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600;
    const BEGIN: i64 = 1_700_000_000;

    fn valid(from: i64) -> Validity {
        Validity {
            not_before: from,
            not_after: from + LIFE,
        }
    }

    fn keyed(name: &str) -> Keyed {
        Keyed {
            certificate: name.into(),
            key: String::new(),
        }
    }

    fn times(next: Option<(Validity, i64)>, old: &[i64]) -> Times {
        Times {
            current: valid(BEGIN),
            next,
            old: old.to_vec(),
        }
    }

    fn at(times: &Times, now: i64) -> Step {
        decide(Some(times), false, now, DAY)
    }

    #[test]
    fn the_first_one_is_made_once() {
        assert_eq!(decide(None, false, BEGIN, DAY), Step::Create);
        assert_eq!(at(&times(None, &[]), BEGIN + DAY), Step::Keep);
    }

    #[test]
    fn a_new_one_is_believed_for_a_life_before_it_signs_and_the_old_one_for_a_life_after() {
        let due = BEGIN + LIFE / 5 * 4;
        assert_eq!(at(&times(None, &[]), due - 1), Step::Keep);
        assert_eq!(at(&times(None, &[]), due), Step::Prepare);
        let waits = times(Some((valid(due), due)), &[]);
        assert_eq!(at(&waits, due + DAY - 1), Step::Keep);
        assert_eq!(at(&waits, due + DAY), Step::Switch);

        let first = after(Step::Create, None, Some(keyed("a")), BEGIN, DAY);
        let both = after(Step::Prepare, first, Some(keyed("b")), due, DAY).unwrap();
        assert_eq!(both.bundle(), "a\nb\n");
        let switched = after(Step::Switch, Some(both), None, due + DAY, DAY).unwrap();
        assert!(switched.current == keyed("b") && switched.next.is_none());
        assert_eq!(switched.bundle(), "b\na\n");
        let old = [switched.old[0].until];
        assert_eq!(old, [due + 2 * DAY]);
        let current = Times {
            current: valid(due),
            ..times(None, &old)
        };
        assert_eq!(at(&current, due + 2 * DAY - 1), Step::Keep);
        assert_eq!(at(&current, due + 2 * DAY), Step::Forget);
        let alone = after(Step::Forget, Some(switched), None, due + 2 * DAY, DAY);
        assert_eq!(alone.unwrap().bundle(), "b\n");
    }

    #[test]
    fn who_asks_has_a_new_one_prepared_once() {
        let now = BEGIN + DAY;
        assert_eq!(
            decide(Some(&times(None, &[])), true, now, DAY),
            Step::Prepare
        );
        let waits = times(Some((valid(now), now)), &[]);
        assert_eq!(decide(Some(&waits), true, now, DAY), Step::Keep);
    }

    #[test]
    fn one_that_has_ended_or_has_not_begun_is_replaced_at_once() {
        let ended = BEGIN + LIFE + 1;
        assert_eq!(at(&times(None, &[]), ended), Step::Replace);
        assert_eq!(at(&times(None, &[]), BEGIN - 1), Step::Replace);
        let waits = times(Some((valid(ended - 10), ended - 10)), &[]);
        assert_eq!(at(&waits, ended), Step::Switch);
        let before = after(Step::Create, None, Some(keyed("a")), BEGIN, DAY);
        let state = after(Step::Replace, before, Some(keyed("b")), ended, DAY).unwrap();
        // Hosts that trust the first keep trusting it: the clock may be wrong.
        assert_eq!(state.bundle(), "b\na\n");
    }

    #[test]
    fn a_clock_that_jumped_and_came_back_leaves_nothing_waiting_for_ever() {
        let future = BEGIN + LIFE / 2;
        let waits = times(Some((valid(future), future)), &[]);
        assert_eq!(at(&waits, BEGIN + DAY), Step::Prepare);
        let mut state = after(Step::Create, None, Some(keyed("a")), BEGIN, DAY);
        for turn in 0..20 {
            let made = Some(keyed(&format!("{turn}")));
            state = after(Step::Replace, state, made, BEGIN, DAY);
        }
        assert_eq!(state.unwrap().old.len(), MOST_OLD);
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let state = after(Step::Create, None, Some(keyed("a")), BEGIN, DAY);
        let state = after(Step::Prepare, state, Some(keyed("b")), BEGIN, DAY).unwrap();
        let kept = serde_json::to_string(&state).unwrap();
        let read: State = serde_json::from_str(&kept).unwrap();
        assert!(read == state);
    }
}

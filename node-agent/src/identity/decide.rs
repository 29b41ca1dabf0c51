//! When a certificate is requested. Pure.

use lamina_identity::Validity;
use std::time::Duration;

/// A certificate is checked again after this time at the latest: clocks are set.
const LOOK: Duration = Duration::from_secs(60);
/// A certificate is renewed after this part of its lifetime.
const RENEWED: (i64, i64) = (2, 3);
/// A failure to renew is reported after this part.
const TOLD: (i64, i64) = (5, 6);

/// The current certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Own {
    /// Its validity.
    pub(super) validity: Validity,
    /// Whether a currently trusted authority signed it.
    pub(super) is_believed: bool,
    /// Whether it has every name by which clients reach this host, if they need one.
    pub(super) is_named: bool,
}

/// What to do about the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The authorities to trust are unknown, so no request is possible.
    AwaitAuthorities,
    /// Request one.
    Enroll,
    /// Check again after this time.
    Wait(Duration),
}

/// What to do at `now`, in seconds since 1970.
pub(super) fn decide(own: Option<Own>, has_authorities: bool, now: i64) -> Step {
    if !has_authorities {
        return Step::AwaitAuthorities;
    }
    let Some(own) = own.filter(|own| is_good(*own, now) && own.is_named) else {
        return Step::Enroll;
    };
    let left = part(own.validity, RENEWED).saturating_sub(now);
    match u64::try_from(left) {
        Ok(0) | Err(_) => Step::Enroll,
        Ok(left) => Step::Wait(Duration::from_secs(left).min(LOOK)),
    }
}

/// Whether others accept the certificate at `now`.
pub(super) fn is_good(own: Own, now: i64) -> bool {
    own.is_believed && own.validity.holds(now)
}

/// What to report about a certificate that could not be obtained for `reason`, if anything.
pub(super) fn trouble(own: Option<Own>, now: i64, reason: &str) -> Option<String> {
    let Some(own) = own else {
        return Some(format!(
            "this host has no certificate, and others take nothing from it: {reason}"
        ));
    };
    if !own.validity.holds(now) {
        return Some(format!(
            "this host's certificate is not good by its clock (from {} to {} s after 1970): {reason}",
            own.validity.not_before, own.validity.not_after
        ));
    }
    if !own.is_believed {
        return Some(format!(
            "this host's certificate is of an authority that is believed no longer: {reason}"
        ));
    }
    // One that lacks a name for clients is good for hosts: the log tells of it.
    let left = own.validity.not_after.saturating_sub(now);
    (now >= part(own.validity, TOLD)).then(|| {
        format!(
            "this host's certificate ends in {} min, and could not be renewed: {reason}",
            left / 60
        )
    })
}

/// The end of the given part of a lifetime.
const fn part(validity: Validity, (of, whole): (i64, i64)) -> i64 {
    let life = validity.not_after.saturating_sub(validity.not_before);
    validity.not_before.saturating_add(life / whole * of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: i64 = 1_700_000_000;
    const LIFE: i64 = 24 * 3600;

    fn own() -> Own {
        Own {
            validity: Validity {
                not_before: BEGIN,
                not_after: BEGIN + LIFE,
            },
            is_believed: true,
            is_named: true,
        }
    }

    #[test]
    fn nobody_is_asked_before_it_is_known_whom_to_believe() {
        assert_eq!(decide(None, false, BEGIN), Step::AwaitAuthorities);
        assert_eq!(decide(None, true, BEGIN), Step::Enroll);
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life() {
        let due = BEGIN + LIFE / 3 * 2;
        assert_eq!(decide(Some(own()), true, BEGIN), Step::Wait(LOOK));
        let soon = Step::Wait(Duration::from_secs(5));
        assert_eq!(decide(Some(own()), true, due - 5), soon);
        assert_eq!(decide(Some(own()), true, due), Step::Enroll);
        assert_eq!(decide(Some(own()), true, BEGIN + LIFE + 1), Step::Enroll);
    }

    #[test]
    fn one_that_is_not_good_by_this_clock_or_not_believed_is_replaced() {
        assert_eq!(decide(Some(own()), true, BEGIN - 1), Step::Enroll);
        let other = Own {
            is_believed: false,
            ..own()
        };
        assert_eq!(decide(Some(other), true, BEGIN + 1), Step::Enroll);
        let nameless = Own {
            is_named: false,
            ..own()
        };
        assert_eq!(decide(Some(nameless), true, BEGIN + 1), Step::Enroll);
        assert!(is_good(nameless, BEGIN + 1), "other hosts believe it");
    }

    #[test]
    fn trouble_is_told_once_it_matters() {
        let at = |own, now| trouble(own, now, "why").unwrap_or_default();
        assert!(at(None, BEGIN).contains("no certificate") && at(None, BEGIN).ends_with("why"));
        assert_eq!(at(Some(own()), BEGIN + LIFE / 3 * 2), "");
        let late = at(Some(own()), BEGIN + LIFE - 600);
        assert!(late.contains("ends in 10 min"), "{late}");
        for out in [BEGIN + LIFE + 1, BEGIN - 1] {
            assert!(at(Some(own()), out).contains("not good by its clock"));
        }
        let other = Own {
            is_believed: false,
            ..own()
        };
        assert!(at(Some(other), BEGIN + 1).contains("believed no longer"));
        let nameless = Own {
            is_named: false,
            ..own()
        };
        assert_eq!(at(Some(nameless), BEGIN + 1), "", "hosts go on");
    }
}

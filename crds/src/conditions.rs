//! Condition types, and how a condition changes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The model's file was fetched and its hash matches. (DnnModel)
pub const FETCHED: &str = "Fetched";
/// The model was cut into blocks that were verified against the whole. (DnnModel)
pub const SLICED: &str = "Sliced";
/// Times, bytes and memory of every block are known. (DnnModel)
pub const PROFILED: &str = "Profiled";
/// A placement was found. (Placement)
pub const SOLVED: &str = "Solved";
/// Every host on the path has loaded its slice. (Placement)
pub const DEPLOYED: &str = "Deployed";
/// A probe went through the whole path and its answer was correct. (Placement)
pub const VERIFIED: &str = "Verified";
/// The agent has registered. (ComputeNode)
pub const REGISTERED: &str = "Registered";
/// The agent has measured the host's speed. (ComputeNode)
pub const BENCHMARKED: &str = "Benchmarked";
/// A model crashed so often that it is not tried for a while; others serve. (ComputeNode)
pub const QUARANTINED: &str = "Quarantined";
/// Clients must say who they are before this host answers them. (ComputeNode)
pub const CLIENTS_KNOWN: &str = "ClientsKnown";
/// Requests are answered, possibly by an earlier spec.
pub const SERVING: &str = "Serving";
/// The object meets its spec.
pub const READY: &str = "Ready";
/// The object is being changed to meet its spec (kstatus).
pub const RECONCILING: &str = "Reconciling";
/// Nothing more will happen without a change (kstatus).
pub const STALLED: &str = "Stalled";

/// Sets one condition in `conditions`, keeping `lastTransitionTime` where the
/// status did not flip.
pub fn set(conditions: &mut Vec<Condition>, new: Condition) {
    match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => {
            let since = if old.status == new.status {
                old.last_transition_time.clone()
            } else {
                new.last_transition_time.clone()
            };
            *old = Condition {
                last_transition_time: since,
                ..new
            };
        }
        None => conditions.push(new),
    }
}

/// A condition as of `now`.
pub fn condition(
    kind: &str,
    status: bool,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Time,
) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: short(message.into()),
        observed_generation: generation,
        last_transition_time: now,
    }
}

/// Kubernetes takes 32 KiB; nobody reads so much, and hosts and models have their part in it.
const MESSAGE_CHARACTERS: usize = 4096;

fn short(message: String) -> String {
    match message.char_indices().nth(MESSAGE_CHARACTERS) {
        Some((end, _)) => message[..end].to_owned(),
        None => message,
    }
}

/// Whether condition `kind` is there and True.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    conditions
        .iter()
        .any(|c| c.type_ == kind && c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn a_transition_time_moves_only_when_the_status_flips() {
        let mut all = Vec::new();
        set(&mut all, condition(READY, false, "A", "", None, at(1)));
        set(&mut all, condition(READY, false, "B", "more", None, at(2)));
        assert_eq!(
            (all[0].reason.as_str(), &all[0].last_transition_time),
            ("B", &at(1))
        );
        assert!(!is_true(&all, READY));
        set(&mut all, condition(READY, true, "C", "", None, at(3)));
        assert_eq!(all[0].last_transition_time, at(3));
        assert!(is_true(&all, READY));
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn no_message_is_longer_than_kubernetes_takes() {
        let long = condition(READY, false, "Why", "é".repeat(100_000), None, at(1));
        assert_eq!(long.message, "é".repeat(MESSAGE_CHARACTERS));
        let usual = condition(READY, false, "Why", "because", None, at(1));
        assert_eq!(usual.message, "because");
    }
}

//! The report of this host for its ComputeNode's status. Pure.

use crate::serve::access::AuthMode;
use crate::serve::engine::ModelCrashes;
use crate::serve::slices::Totals;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use lamina_crds::ComputeNodeStatus;
use lamina_crds::compute_node::{
    Capacity, Display, EngineCrash, RouteStatus, SliceStatus, Verification,
};
use lamina_crds::conditions::{
    BENCHMARKED, CLIENTS_KNOWN, QUARANTINED, REGISTERED, condition, set,
};
use lamina_crds::quantity::format_bytes;
use lamina_crds::reasons;
use lamina_model::WireType;
use std::time::SystemTime;

/// Most models named in one report.
const CRASHES_TOLD: usize = 32;
/// Longest cause in characters: it may include a model's last output.
const CAUSE_CHARACTERS: usize = 300;
/// Longest other message in characters, which may include a model's output while it is loaded: a
/// report too large for the API server would help no model.
const MESSAGE_CHARACTERS: usize = 1000;

/// Conditions that the agent sets.
const OWN: [&str; 4] = [REGISTERED, BENCHMARKED, CLIENTS_KNOWN, QUARANTINED];

/// The input of the status.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    /// Generation of the applied spec.
    pub(super) generation: i64,
    /// Address for other agents.
    pub(super) address: String,
    /// What the host can do.
    pub(super) capacity: Capacity,
    /// Memory that the agent may still take.
    pub(super) memory_free_bytes: u64,
    /// The status of each slice.
    pub(super) slices: Vec<SliceStatus>,
    /// The status of each route.
    pub(super) routes: Vec<RouteStatus>,
    /// Totals over all slices.
    pub(super) totals: Totals,
    /// Bytes of standby blobs in the cache.
    pub(super) standby_bytes: u64,
    /// Models whose worker crashed.
    pub(super) crashes: Vec<ModelCrashes>,
    /// How clients authenticate.
    pub(super) auth: AuthMode,
    /// Why the wish cannot be followed, if so.
    pub(super) trouble: Option<String>,
    /// Why others do not accept this host's certificate, if so.
    pub(super) identity_trouble: Option<String>,
    /// The current time.
    pub(super) now: Time,
}

/// The status; conditions of `before` keep their transition times.
pub(super) fn status(facts: Facts, before: &[Condition]) -> ComputeNodeStatus {
    let mut conditions: Vec<Condition> = before
        .iter()
        .filter(|c| OWN.contains(&c.type_.as_str()))
        .cloned()
        .collect();
    let generation = Some(facts.generation).filter(|g| *g >= 0);
    let mut make = |kind: &str, is: bool, reason: &str, message: String| {
        let new = condition(kind, is, reason, message, generation, facts.now.clone());
        set(&mut conditions, new);
    };
    match (facts.trouble, facts.identity_trouble) {
        (None, None) => make(
            REGISTERED,
            true,
            "Registered",
            format!("the agent listens at {}", facts.address),
        ),
        (Some(trouble), _) => make(REGISTERED, false, "SpecNotFollowed", short(&trouble)),
        (None, Some(trouble)) => make(REGISTERED, false, "NoCertificate", short(&trouble)),
    }
    let gflops = facts.capacity.gflops;
    if gflops > 0.0 {
        make(BENCHMARKED, true, "Measured", speed(facts.capacity));
    } else {
        let message = "libtorch cannot run the reference benchmark here; see the agent's log";
        make(BENCHMARKED, false, "BenchmarkFailed", message.to_owned());
    }
    match facts.auth {
        AuthMode::None => make(
            CLIENTS_KNOWN,
            false,
            "AuthModeNone",
            "auth.mode is none: whoever reaches this agent gets the answers of every model"
                .to_owned(),
        ),
        AuthMode::ApiKey => make(
            CLIENTS_KNOWN,
            true,
            "ApiKey",
            "clients show a key of their models' namespace".to_owned(),
        ),
        AuthMode::Token => make(
            CLIENTS_KNOWN,
            true,
            "Token",
            "clients show a token whose holder may get the model".to_owned(),
        ),
    }
    let crashes = told(facts.crashes);
    let waiting: Vec<String> = crashes.iter().filter_map(quarantine).collect();
    let (is, reason, message) = if waiting.is_empty() {
        (false, "NoneCrashes", "no model waits".to_owned())
    } else {
        (true, reasons::ENGINE_CRASHED, waiting.join("; "))
    };
    // If nothing ever crashed, there is nothing to report.
    if !crashes.is_empty() {
        make(QUARANTINED, is, reason, message);
    }
    let display = Display {
        gflops: rounded(gflops),
        memory_free: format_bytes(facts.memory_free_bytes),
        slices: facts.totals.ready,
        slice_bytes: format_bytes(facts.totals.file_bytes),
        standby: format_bytes(facts.standby_bytes),
    };
    ComputeNodeStatus {
        observed_generation: facts.generation,
        conditions,
        address: facts.address,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        encodings: WireType::ALL
            .map(|dtype| dtype.as_str().to_owned())
            .to_vec(),
        capacity: Some(facts.capacity),
        display: Some(display),
        slices: facts.slices.into_iter().map(short_slice).collect(),
        routes: facts.routes.into_iter().map(short_route).collect(),
        crashes,
        joined: None,
    }
}

fn short(message: &str) -> String {
    message.chars().take(MESSAGE_CHARACTERS).collect()
}

fn short_slice(slice: SliceStatus) -> SliceStatus {
    SliceStatus {
        message: short(&slice.message),
        ..slice
    }
}

fn short_route(route: RouteStatus) -> RouteStatus {
    let verified = route.verified.map(|verified| Verification {
        message: short(&verified.message),
        ..verified
    });
    RouteStatus { verified, ..route }
}

/// A host's speed, for people.
fn speed(of: Capacity) -> String {
    let Capacity {
        gflops,
        lanes,
        threads,
        concurrency,
        cpu_millis,
        ..
    } = of;
    let alone = format!("{gflops:.1} GFLOP/s on {cpu_millis} thousandths of a processor");
    if lanes < 2 {
        return alone;
    }
    format!(
        "{alone}; {lanes} forwards of {threads} threads at the same time, which compute as much \
         as {concurrency} that do not slow each other"
    )
}

/// The last crashes first.
fn told(mut crashes: Vec<ModelCrashes>) -> Vec<EngineCrash> {
    crashes.sort_by(|a, b| b.last.cmp(&a.last).then_with(|| a.model.cmp(&b.model)));
    let told = crashes
        .into_iter()
        .take(CRASHES_TOLD)
        .map(|crash| EngineCrash {
            model: crash.model,
            count: crash.count,
            cause: crash.cause.chars().take(CAUSE_CHARACTERS).collect(),
            time: time(crash.last),
            quarantined_until: crash.quarantined_until.map(time),
        });
    told.collect()
}

fn quarantine(crash: &EngineCrash) -> Option<String> {
    let until = crash.quarantined_until.as_ref()?;
    Some(format!(
        "{} crashed {} times ({}) and is tried again after {}",
        crash.model,
        crash.count,
        crash.cause,
        until.0.strftime("%H:%M:%SZ")
    ))
}

/// Kubernetes keeps whole seconds.
fn time(moment: SystemTime) -> Time {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    let seconds = i64::try_from(seconds).unwrap_or_default();
    Time(Timestamp::from_second(seconds).unwrap_or_default())
}

/// A benchmark on a shared machine is good for two digits.
fn rounded(gflops: f64) -> String {
    if gflops >= 9.95 {
        format!("{gflops:.0}")
    } else {
        format!("{gflops:.1}")
    }
}

/// Whether `new` differs from `old` only in free memory.
pub(super) fn is_only_memory(old: &ComputeNodeStatus, new: &ComputeNodeStatus) -> bool {
    let without = |status: &ComputeNodeStatus| {
        let mut status = status.clone();
        if let Some(display) = &mut status.display {
            display.memory_free.clear();
        }
        status
    };
    without(old) == without(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_crds::compute_node::SliceState;
    use lamina_crds::conditions::is_true;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn capacity(gflops: f64) -> Capacity {
        Capacity {
            gflops,
            lanes: 4,
            threads: 1,
            concurrency: 3,
            cpu_millis: 100,
            memory_bytes: 1 << 30,
        }
    }

    fn facts(second: i64) -> Facts {
        Facts {
            generation: 3,
            address: "10.0.0.7:8001".into(),
            capacity: capacity(3.26),
            memory_free_bytes: 700 << 20,
            slices: Vec::new(),
            routes: Vec::new(),
            totals: Totals::default(),
            standby_bytes: 0,
            crashes: Vec::new(),
            auth: AuthMode::Token,
            trouble: None,
            identity_trouble: None,
            now: at(second),
        }
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_flips() {
        let unmeasured = Facts {
            capacity: capacity(0.0),
            ..facts(1)
        };
        let first = status(unmeasured, &[]);
        assert!(is_true(&first.conditions, REGISTERED));
        assert!(!is_true(&first.conditions, BENCHMARKED));
        let second = status(facts(5), &first.conditions);
        assert!(is_true(&second.conditions, BENCHMARKED));
        let since: Vec<_> = second
            .conditions
            .iter()
            .map(|c| c.last_transition_time.clone())
            .collect();
        assert_eq!(since, [at(1), at(5), at(1)]);
        assert_eq!(second.display.unwrap().gflops, "3.3");
    }

    #[test]
    fn trouble_is_told_and_conditions_of_others_are_left_alone() {
        let ready = condition("Ready", true, "Connected", "", None, at(0));
        let trouble = Facts {
            trouble: Some("disk full".into()),
            ..facts(2)
        };
        let status = status(trouble, &[ready]);
        assert_eq!(status.conditions.len(), 3);
        assert_eq!(status.conditions[0].message, "disk full");
        assert_eq!(status.conditions[0].status, "False");
    }

    #[test]
    fn a_model_that_waits_is_a_condition_and_one_that_crashed_is_listed() {
        let crash = |model: &str, second: u64, until: Option<u64>| ModelCrashes {
            model: model.into(),
            count: 4,
            cause: "SIGSEGV".into(),
            last: SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(second * 1000 + 1),
            quarantined_until: until
                .map(|s| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(s)),
        };
        let status_with = |crashes| {
            let facts = Facts {
                crashes,
                ..facts(9)
            };
            status(facts, &[])
        };
        let both = status_with(vec![crash("a/old", 3, None), crash("a/bad", 7, Some(12))]);
        let models: Vec<&str> = both.crashes.iter().map(|c| c.model.as_str()).collect();
        assert_eq!(models, ["a/bad", "a/old"]);
        assert_eq!(both.crashes[0].time, at(7));
        let condition = both.conditions.iter().find(|c| c.type_ == QUARANTINED);
        let condition = condition.unwrap();
        assert_eq!(
            (condition.status.as_str(), condition.message.as_str()),
            (
                "True",
                "a/bad crashed 4 times (SIGSEGV) and is tried again after 00:00:12Z"
            )
        );
        let after = status_with(vec![crash("a/bad", 7, None)]);
        assert!(!is_true(&after.conditions, QUARANTINED));
        assert_eq!(after.conditions.len(), 4);
        assert_eq!(status_with(Vec::new()).conditions.len(), 3);
    }

    #[test]
    fn what_a_model_says_makes_no_report_too_large() {
        let message = "no ".repeat(1 << 20);
        let slice = SliceStatus {
            placement_uid: "u".into(),
            revision: 1,
            segment: 0,
            state: SliceState::Failed,
            message: message.clone(),
            run_ms: None,
        };
        let verified = Verification {
            revision: 1,
            passed: false,
            message: message.clone(),
            latency_ms: 1.0,
            time: at(1),
        };
        let route = RouteStatus {
            placement_uid: "u".into(),
            active_revision: 1,
            oldest_in_flight: 1,
            in_flight_at_flip: 0,
            verified: Some(verified),
        };
        let long = Facts {
            slices: vec![slice],
            routes: vec![route],
            trouble: Some(message),
            ..facts(1)
        };
        let told = status(long, &[]);
        assert!(told.slices[0].message.starts_with("no no "));
        let bytes = serde_json::to_vec(&told).unwrap().len();
        assert!(bytes < 8000, "{bytes}");
    }

    #[test]
    fn that_nobody_is_asked_who_they_are_is_a_condition() {
        let known = |auth| {
            let status = status(Facts { auth, ..facts(1) }, &[]);
            let told = status.conditions.into_iter();
            let mut told = told.filter(|c| c.type_ == CLIENTS_KNOWN);
            told.next().map(|c| (c.status, c.reason)).unwrap()
        };
        let expected = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
        assert_eq!(known(AuthMode::None), expected("False", "AuthModeNone"));
        assert_eq!(known(AuthMode::ApiKey), expected("True", "ApiKey"));
        assert_eq!(known(AuthMode::Token), expected("True", "Token"));
    }

    #[test]
    fn memory_alone_is_no_news() {
        let with = |free: u64, generation| {
            let facts = Facts {
                memory_free_bytes: free,
                generation,
                ..facts(1)
            };
            status(facts, &[])
        };
        assert!(is_only_memory(&with(1, 3), &with(2 << 30, 3)));
        assert!(!is_only_memory(&with(1, 3), &with(1, 4)));
    }
}

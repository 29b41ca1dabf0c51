//! What the operator is told of this host in its ComputeNode's status. Pure.

use crate::serve::slices::Totals;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use lamina_crds::ComputeNodeStatus;
use lamina_crds::compute_node::{Capacity, Display, RouteStatus, SliceStatus};
use lamina_crds::conditions::{BENCHMARKED, REGISTERED, condition, set};
use lamina_crds::quantity::format_bytes;

/// Everything that the status is made from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    /// Generation of the spec that was taken up.
    pub(super) generation: i64,
    /// Where other agents reach this one.
    pub(super) address: String,
    /// What the host can do.
    pub(super) capacity: Capacity,
    /// Memory that the agent may still take.
    pub(super) memory_free_bytes: u64,
    /// How far each slice is.
    pub(super) slices: Vec<SliceStatus>,
    /// What became of each route.
    pub(super) routes: Vec<RouteStatus>,
    /// Sums over the slices.
    pub(super) totals: Totals,
    /// Why the wish cannot be followed as it stands, if so.
    pub(super) trouble: Option<String>,
    /// This moment.
    pub(super) now: Time,
}

/// The status; conditions of `before` keep their transition times.
pub(super) fn status(facts: Facts, before: &[Condition]) -> ComputeNodeStatus {
    let mut conditions: Vec<Condition> = before
        .iter()
        .filter(|c| c.type_ == REGISTERED || c.type_ == BENCHMARKED)
        .cloned()
        .collect();
    let generation = Some(facts.generation).filter(|g| *g >= 0);
    let mut make = |kind: &str, is: bool, reason: &str, message: String| {
        let new = condition(kind, is, reason, message, generation, facts.now.clone());
        set(&mut conditions, new);
    };
    match facts.trouble {
        None => make(
            REGISTERED,
            true,
            "Registered",
            format!("the agent listens at {}", facts.address),
        ),
        Some(trouble) => make(REGISTERED, false, "SpecNotFollowed", trouble),
    }
    let Capacity {
        gflops, cpu_millis, ..
    } = facts.capacity;
    if gflops > 0.0 {
        let speed = format!("{gflops:.1} GFLOP/s on {cpu_millis} thousandths of a processor");
        make(BENCHMARKED, true, "Measured", speed);
    } else {
        let message = "libtorch cannot run the reference benchmark here; see the agent's log";
        make(BENCHMARKED, false, "BenchmarkFailed", message.to_owned());
    }
    let display = Display {
        gflops: rounded(gflops),
        memory_free: format_bytes(facts.memory_free_bytes),
        slices: facts.totals.ready,
        slice_bytes: format_bytes(facts.totals.file_bytes),
    };
    ComputeNodeStatus {
        observed_generation: facts.generation,
        conditions,
        address: facts.address,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        capacity: Some(facts.capacity),
        display: Some(display),
        slices: facts.slices,
        routes: facts.routes,
    }
}

/// Two digits are what a benchmark on a shared machine is good for.
fn rounded(gflops: f64) -> String {
    if gflops >= 9.95 {
        format!("{gflops:.0}")
    } else {
        format!("{gflops:.1}")
    }
}

/// Whether `new` says no more than another figure of free memory.
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
    use lamina_crds::conditions::is_true;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn capacity(gflops: f64) -> Capacity {
        Capacity {
            gflops,
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
            trouble: None,
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
        assert_eq!(since, [at(1), at(5)]);
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
        assert_eq!(status.conditions.len(), 2);
        assert_eq!(status.conditions[0].message, "disk full");
        assert_eq!(status.conditions[0].status, "False");
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

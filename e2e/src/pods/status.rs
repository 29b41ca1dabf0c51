//! A pod's status as the kubelet would report it. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// State of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Waiting {
        reason: &'static str,
        message: String,
    },
    Running {
        since: String,
    },
    Ended(Ended),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The exit code, or 128 + the signal.
    pub(crate) code: i32,
    pub(crate) started: String,
    pub(crate) finished: String,
}

/// One container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerState {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) state: State,
    pub(crate) last: Option<Ended>,
    pub(crate) restarts: i32,
    pub(crate) ready: bool,
}

impl ContainerState {
    pub(crate) fn new(name: &str, image: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            state: State::Waiting {
                reason: "ContainerCreating",
                message: String::new(),
            },
            last: None,
            restarts: 0,
            ready: false,
        }
    }

    fn json(&self) -> Value {
        let ended = |ended: &Ended| {
            json!({"terminated": {
                "exitCode": ended.code,
                "reason": if ended.code == 0 { "Completed" } else { "Error" },
                "startedAt": ended.started,
                "finishedAt": ended.finished,
            }})
        };
        let state = match &self.state {
            State::Waiting { reason, message } => {
                json!({"waiting": {"reason": reason, "message": message}})
            }
            State::Running { since } => json!({"running": {"startedAt": since}}),
            State::Ended(how) => ended(how),
        };
        json!({
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "state": state,
            "lastState": self.last.as_ref().map(ended).unwrap_or(json!({})),
            "restartCount": self.restarts,
            "ready": self.ready,
            "started": matches!(self.state, State::Running { .. }),
        })
    }
}

/// Remembers when each condition last changed.
#[derive(Debug, Default)]
pub(crate) struct Conditions(BTreeMap<&'static str, (bool, String)>);

impl Conditions {
    fn json(&mut self, kind: &'static str, holds: bool, now: &str) -> Value {
        let entry = self.0.entry(kind).or_insert((holds, now.to_owned()));
        if entry.0 != holds {
            *entry = (holds, now.to_owned());
        }
        json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "lastTransitionTime": entry.1,
        })
    }
}

/// The status of a pod with these init containers and containers.
pub(crate) fn status(
    init: &[ContainerState],
    containers: &[ContainerState],
    restarts_always: bool,
    address: &str,
    conditions: &mut Conditions,
    now: &str,
) -> Value {
    let done = |container: &ContainerState| match &container.state {
        State::Ended(ended) => ended.code == 0,
        _ => false,
    };
    let initialized = init.iter().all(done);
    let ready = initialized && containers.iter().all(|container| container.ready);
    let all = |list: &[ContainerState]| list.iter().map(ContainerState::json).collect::<Value>();
    json!({
        "phase": phase(initialized, containers, restarts_always),
        "hostIP": address,
        "hostIPs": [{"ip": address}],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            conditions.json("Initialized", initialized, now),
            conditions.json("ContainersReady", ready, now),
            conditions.json("Ready", ready, now),
        ],
        "initContainerStatuses": all(init),
        "containerStatuses": all(containers),
    })
}

fn phase(initialized: bool, containers: &[ContainerState], restarts_always: bool) -> &'static str {
    let ended = |container: &ContainerState| match &container.state {
        State::Ended(ended) => Some(ended.code),
        _ => None,
    };
    let codes: Vec<Option<i32>> = containers.iter().map(ended).collect();
    let started = containers.iter().all(|container| {
        !matches!(container.state, State::Waiting { .. }) || container.restarts > 0
    });
    if !restarts_always && codes.iter().all(Option::is_some) {
        return match codes.iter().all(|code| *code == Some(0)) {
            true => "Succeeded",
            false => "Failed",
        };
    }
    match initialized && started {
        true => "Running",
        false => "Pending",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(state: State, ready: bool) -> ContainerState {
        ContainerState {
            state,
            ready,
            ..ContainerState::new("agent", "lamina/node-agent:1")
        }
    }

    fn running() -> State {
        State::Running { since: "T1".into() }
    }

    fn ended(code: i32) -> State {
        State::Ended(Ended {
            code,
            started: "T1".into(),
            finished: "T2".into(),
        })
    }

    fn brief(init: &[ContainerState], containers: &[ContainerState], always: bool) -> String {
        let status = status(
            init,
            containers,
            always,
            "10.77.0.2",
            &mut Conditions::default(),
            "T",
        );
        let ready = status["conditions"][2]["status"].as_str().unwrap();
        format!("{} {ready}", status["phase"].as_str().unwrap())
    }

    #[test]
    fn phase_and_readiness_follow_the_containers() {
        let fresh = ContainerState::new("agent", "i");
        assert_eq!(brief(&[], &[fresh], true), "Pending False");
        assert_eq!(
            brief(&[], &[container(running(), false)], true),
            "Running False"
        );
        assert_eq!(
            brief(&[], &[container(running(), true)], true),
            "Running True"
        );
        assert_eq!(
            brief(&[], &[container(ended(1), false)], true),
            "Running False"
        );
        assert_eq!(
            brief(&[], &[container(ended(0), false)], false),
            "Succeeded False"
        );
        assert_eq!(
            brief(&[], &[container(ended(1), false)], false),
            "Failed False"
        );
        let init = [container(running(), false)];
        assert_eq!(
            brief(&init, &[container(running(), true)], true),
            "Pending False"
        );
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let mut conditions = Conditions::default();
        let mut at = |ready: bool, now: &str| {
            let containers = [container(running(), ready)];
            let status = status(&[], &containers, true, "a", &mut conditions, now);
            status["conditions"][2]["lastTransitionTime"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(at(false, "T1"), "T1");
        assert_eq!(at(false, "T2"), "T1");
        assert_eq!(at(true, "T3"), "T3");
        assert_eq!(at(true, "T4"), "T3");
    }
}

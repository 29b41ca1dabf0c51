use super::*;
use crate::testing::{PLACEMENT_UID, at, placement, plan, world};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lamina_crds::compute_node::{Route, RouteStatus, Verification};
use std::sync::Arc;

/// Revision 1 is active on cloud-1, revision 2 is to run on cam-1 and edge-1.
struct Case {
    snapshot: Snapshot,
    placement: Placement,
    clock: Clock,
}

impl Case {
    fn new() -> Self {
        let old = plan(1, &[("cloud-1", 0..4)]);
        let new = plan(2, &[("cam-1", 0..2), ("edge-1", 2..4)]);
        Self {
            snapshot: world(),
            placement: placement(Some(new), Some(old)),
            clock: Clock::default(),
        }
    }

    fn phase(&mut self) -> Phase {
        phase(&self.snapshot, &self.placement, &mut self.clock)
    }

    fn wait(&mut self, seconds: i64) {
        self.snapshot.now = self.snapshot.now.plus(seconds as f64);
    }

    fn slice(&mut self, node: &str, segment: u32, state: SliceState, message: &str) {
        let status = self.status(node);
        status.slices.retain(|s| s.segment != segment);
        status.slices.push(SliceStatus {
            placement_uid: PLACEMENT_UID.into(),
            revision: 2,
            segment,
            state,
            message: message.into(),
            run_ms: None,
        });
    }

    fn loaded(mut self) -> Self {
        self.slice("cam-1", 0, SliceState::Ready, "");
        self.slice("edge-1", 1, SliceState::Ready, "");
        self
    }

    fn status(&mut self, node: &str) -> &mut lamina_crds::ComputeNodeStatus {
        let node = self.snapshot.compute_nodes.get_mut(node).unwrap();
        Arc::make_mut(node).status.as_mut().unwrap()
    }

    fn report(&mut self, active: i64, oldest: i64, passed: Option<bool>) {
        let verified = passed.map(|passed| Verification {
            revision: 2,
            passed,
            message: "off by 0.1".into(),
            latency_ms: 40.0,
            time: Time(at(0)),
        });
        self.status("cam-1").routes = vec![RouteStatus {
            placement_uid: PLACEMENT_UID.into(),
            active_revision: active,
            oldest_in_flight: oldest,
            in_flight_at_flip: 3,
            verified,
        }];
    }

    /// The entry's route as written.
    fn route(&mut self, active_revision: i64) {
        let node = self.snapshot.compute_nodes.get_mut("cam-1").unwrap();
        Arc::make_mut(node).spec.routes = vec![Route {
            placement_uid: PLACEMENT_UID.into(),
            namespace: "default".into(),
            name: "net".into(),
            active_revision,
            verify_revision: None,
            refuse: None,
            exits: None,
            revisions: Vec::new(),
        }];
    }
}

fn failure(phase: Phase) -> (&'static str, String) {
    match phase {
        Phase::Failed(f) => (f.reason, f.message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn loading_says_for_whom_it_waits() {
    let mut case = Case::new();
    let loading = |ready, fetched, waiting_for: &str| Phase::Loading {
        ready,
        total: 2,
        fetched,
        waiting_for: waiting_for.into(),
    };
    assert_eq!(case.phase(), loading(0, false, "cam-1 has not started"));
    case.slice("cam-1", 0, SliceState::Fetching, "1/4 blocks");
    assert_eq!(case.phase(), loading(0, false, "cam-1 fetches: 1/4 blocks"));
    case.slice("cam-1", 0, SliceState::Ready, "");
    case.slice("edge-1", 1, SliceState::Loading, "");
    assert_eq!(case.phase(), loading(1, true, "edge-1 loads"));
    case.slice("edge-1", 1, SliceState::Ready, "");
    assert_eq!(case.phase(), Phase::Verifying);
}

#[test]
fn progress_winds_the_clock_and_standstill_fails() {
    let mut case = Case::new();
    for blocks in ["1/4", "2/4", "3/4"] {
        case.slice("cam-1", 0, SliceState::Fetching, blocks);
        assert!(matches!(case.phase(), Phase::Loading { .. }));
        case.wait(500);
    }
    case.wait(100);
    let (reason, message) = failure(case.phase());
    assert_eq!(reason, reasons::SEGMENT_LOAD_FAILED);
    assert!(
        message.contains("no progress for 600s; cam-1 fetches: 3/4"),
        "{message}"
    );
}

#[test]
fn a_slice_that_fails_names_its_host() {
    let mut case = Case::new();
    case.slice("edge-1", 1, SliceState::Failed, "out of memory");
    let (reason, message) = failure(case.phase());
    assert_eq!(reason, reasons::SEGMENT_LOAD_FAILED);
    assert_eq!(message, "edge-1 cannot load blocks 2-3: out of memory");
}

#[test]
fn a_probe_is_awaited_for_a_while_only() {
    let mut case = Case::new().loaded();
    assert_eq!(case.phase(), Phase::Verifying);
    case.wait(61);
    assert_eq!(failure(case.phase()).0, reasons::VERIFY_FAILED);
    let mut case = Case::new().loaded();
    case.report(1, 1, Some(false));
    let (reason, message) = failure(case.phase());
    assert_eq!(
        (reason, message.as_str()),
        (reasons::VERIFY_FAILED, "the probe failed: off by 0.1")
    );
}

#[test]
fn the_change_over_waits_for_requests_but_not_for_lost_hosts_or_for_ever() {
    let flipped = Phase::Flipped {
        in_flight_at_flip: 3,
    };
    let mut case = Case::new().loaded();
    case.report(1, 1, Some(true));
    assert!(matches!(case.phase(), Phase::Flipping(Some(_))));
    case.report(2, 1, Some(true));
    assert!(
        matches!(case.phase(), Phase::Flipping(Some(_))),
        "one is in flight"
    );
    case.report(2, 2, Some(true));
    assert_eq!(case.phase(), flipped);
    case.report(2, 1, Some(true));
    assert!(matches!(case.phase(), Phase::Flipping(_)));
    case.snapshot.live.get_mut("cloud-1").unwrap().alive = false;
    assert_eq!(case.phase(), flipped, "the old host is gone");
    case.snapshot.live.get_mut("cloud-1").unwrap().alive = true;
    assert!(matches!(case.phase(), Phase::Flipping(_)));
    case.wait(30);
    assert_eq!(case.phase(), flipped);
}

#[test]
fn from_the_entrys_route_on_there_is_no_way_back() {
    let mut case = Case::new().loaded();
    case.route(2);
    case.report(1, 1, None);
    case.snapshot.live.get_mut("edge-1").unwrap().alive = false;
    assert!(matches!(case.phase(), Phase::Flipping(_)));
    // Without it, a lost host only makes the deployment wait.
    case.route(1);
    case.report(1, 1, Some(true));
    assert!(matches!(case.phase(), Phase::Loading { .. }));
}

#[test]
fn hosts_hold_both_plans_until_the_new_one_serves_alone() {
    let case = Case::new();
    let wanted = |phase: &Phase| {
        let (route, verify) = wanted(&case.placement, phase);
        let plans: Vec<i64> = route.plans.iter().map(|p| p.revision).collect();
        (route.active_revision, plans, verify)
    };
    let loading = Phase::Loading {
        fetched: false,
        ready: 0,
        total: 2,
        waiting_for: String::new(),
    };
    assert_eq!(wanted(&loading), (1, vec![1, 2], None));
    assert_eq!(wanted(&Phase::Verifying), (1, vec![1, 2], Some(2)));
    assert_eq!(wanted(&Phase::Flipping(None)), (2, vec![1, 2], None));
    let flipped = Phase::Flipped {
        in_flight_at_flip: 0,
    };
    assert_eq!(wanted(&flipped), (2, vec![2], None));
    let failed = Phase::Failed(DeployFailure {
        reason: reasons::VERIFY_FAILED,
        message: String::new(),
        node: None,
    });
    assert_eq!(wanted(&failed), (1, vec![1], None));
}

#[test]
fn a_report_about_another_revision_says_nothing() {
    let mut case = Case::new();
    let status = case.status("cam-1");
    status.slices.push(SliceStatus {
        placement_uid: PLACEMENT_UID.into(),
        revision: 1,
        segment: 0,
        state: SliceState::Failed,
        message: "old".into(),
        run_ms: None,
    });
    assert!(matches!(case.phase(), Phase::Loading { ready: 0, .. }));
}

#[test]
fn what_a_host_says_of_itself_has_an_end() {
    let mut case = Case::new();
    case.slice("cam-1", 0, SliceState::Failed, &"no ".repeat(1 << 20));
    let Phase::Failed(failure) = case.phase() else {
        panic!("it failed")
    };
    assert!(failure.message.len() < 1100, "{}", failure.message.len());
    case.slice("cam-1", 0, SliceState::Fetching, &"no ".repeat(1 << 20));
    let Phase::Loading { waiting_for, .. } = case.phase() else {
        panic!("it loads")
    };
    assert!(waiting_for.len() < 1100, "{}", waiting_for.len());
}

use super::*;
use crate::workload::Hop;

fn hop(node: &str, bytes_out: u64) -> Hop {
    Hop {
        node: node.into(),
        segment: 0,
        queue_us: 0,
        compute_us: 10,
        transfer_us: 0,
        bytes_in: 0,
        bytes_out,
    }
}

fn request(id: u64, at: f64, seconds: f64, revision: i64) -> Request {
    Request {
        id,
        at,
        seconds,
        outcome: Outcome::Correct,
        max_abs_diff: Some(1e-5),
        error: None,
        revision,
        path: format!("path-{revision}"),
        timing: vec![hop("cam-1", 100_000), hop("edge-1", 4_000)],
    }
}

fn good() -> Evidence {
    Evidence {
        reference: Reference {
            images: 9,
            tolerance: 1e-4,
            smallest_difference: 0.5,
        },
        requests: vec![
            request(0, 10.0, 0.1, 1),
            request(1, 21.0, 0.5, 1),
            request(2, 30.0, 0.3, 2),
        ],
        summary: Summary {
            sent: 3,
            correct: 3,
            refused: 0,
            lost: 0,
            wrong: 0,
        },
        slow_at: 20.0,
        moved_at: 28.0,
        slow_bits_per_second: 5e6,
        in_flight_at_flip: 3,
        router_bytes_before: 120_000,
        router_bytes_after: 120_000,
    }
}

/// Texts of the findings that do not hold.
fn broken(evidence: &Evidence) -> Vec<String> {
    judge(evidence)
        .into_iter()
        .filter(|f| !f.passed)
        .map(|f| f.text)
        .collect()
}

#[test]
fn a_good_run_holds_in_every_point() {
    assert_eq!(broken(&good()), Vec::<String>::new());
}

/// Changes a good run and expects exactly one finding to break, with this text.
fn breaks(change: impl FnOnce(&mut Evidence), text: &str) {
    let mut evidence = good();
    change(&mut evidence);
    let found = broken(&evidence);
    assert!(found.len() == 1 && found[0].contains(text), "{found:?}");
}

#[test]
fn every_finding_can_fail() {
    breaks(|e| e.reference.smallest_difference = 9e-3, "90 times");
    breaks(|e| e.summary.lost = 1, "1 lost");
    breaks(|e| e.summary.wrong = 1, "1 wrong");
    breaks(|e| e.summary.sent = 4, "4 requests sent");
    breaks(|e| e.router_bytes_before = 99_000, "before:");
    breaks(|e| e.router_bytes_after = 0, "after:");
    breaks(|e| e.requests[2].timing.truncate(1), "at least 1 hosts");
    breaks(
        |e| e.requests[2].path = "path-1".into(),
        "path-1 then path-1",
    );
    breaks(|e| e.requests[2].seconds = 0.6, "median latency");
    breaks(|e| e.in_flight_at_flip = 2, "2 requests were in flight");
    breaks(
        |e| {
            // 51 requests within the 10 s of the slow link.
            e.requests
                .extend((3..52).map(|id| request(id, 22.0, 0.5, 1)));
            (e.summary.sent, e.summary.correct) = (52, 52);
        },
        "5.1 requests/s",
    );
}

#[test]
fn what_the_router_did_not_count_is_not_held_against_it() {
    let mut evidence = good();
    // On the new path, before the count of the new path began.
    evidence.requests.insert(2, request(9, 27.0, 0.3, 2));
    (evidence.summary.sent, evidence.summary.correct) = (4, 4);
    assert_eq!(broken(&evidence), Vec::<String>::new());
}

#[test]
fn a_move_before_the_link_changed_is_another_matter() {
    let mut evidence = good();
    evidence.requests.insert(0, request(9, 5.0, 0.9, 0));
    (evidence.summary.sent, evidence.summary.correct) = (4, 4);
    assert_eq!(broken(&evidence), Vec::<String>::new());
    assert_eq!(evidence.phases().before.len(), 1);
}

#[test]
fn a_run_without_a_redeploy_does_not_pass() {
    let mut evidence = good();
    evidence.requests.pop();
    assert!(broken(&evidence).len() >= 3);
}

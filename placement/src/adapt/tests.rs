use super::*;

fn policy() -> Policy {
    Policy {
        horizon_seconds: 60.0,
        min_gain_share: 0.05,
        confidence_deviations: 1.0,
        cool_down_seconds: 30.0,
        flap_window_seconds: 600.0,
        flap_returns: 2,
        ..Policy::default()
    }
}

fn situation() -> Situation {
    Situation {
        now_seconds: 1000.0,
        current_seconds: 0.1,
        best_seconds: 0.06,
        deviation_seconds: 0.01,
        rate_per_second: 10.0,
        migration_request_seconds: 5.0,
    }
}

fn switched(at_seconds: f64, from: &str, to: &str) -> Switched {
    Switched {
        at_seconds,
        from: from.into(),
        to: to.into(),
    }
}

fn decide_with(change: impl FnOnce(&mut Policy, &mut Situation)) -> Decision {
    let (mut policy, mut s) = (policy(), situation());
    change(&mut policy, &mut s);
    decide(&policy, &s, &[])
}

#[test]
fn a_gain_that_pays_within_the_horizon_switches_and_says_so() {
    let decision = decide_with(|_, _| ());
    let Decision::Switch(gain) = decision else {
        panic!("{decision:?}");
    };
    assert!((gain.sure_seconds - 0.03).abs() < 1e-12);
    assert!((gain.worth_request_seconds - 18.0).abs() < 1e-9);
    assert_eq!(
        decision.to_string(),
        "switch: 100.0 ms to 60.0 ms, 30.0 ms of it sure, worth 18.0 request-seconds against \
         5.0 for moving"
    );
}

#[test]
fn small_uncertain_or_dear_gains_stay() {
    let stays = |change: fn(&mut Policy, &mut Situation)| match decide_with(change) {
        Decision::Stay(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(matches!(
        stays(|_, s| s.deviation_seconds = 0.04),
        Stay::SmallGain { .. }
    ));
    assert!(matches!(
        stays(|_, s| s.best_seconds = 0.0999),
        Stay::SmallGain { .. }
    ));
    assert!(matches!(
        stays(|_, s| s.deviation_seconds = f64::NAN),
        Stay::SmallGain { .. }
    ));
    assert!(matches!(
        stays(|_, s| s.migration_request_seconds = 18.1),
        Stay::TooDear(_)
    ));
    assert!(matches!(
        stays(|_, s| s.rate_per_second = 0.0),
        Stay::TooDear(_)
    ));
    assert_eq!(stays(|p, _| p.paused = true), Stay::Paused);
    assert_eq!(
        stays(|_, s| s.best_seconds = f64::INFINITY),
        Stay::NothingServes
    );
}

#[test]
fn a_placement_that_cannot_serve_is_left_at_once() {
    let (policy, mut s) = (policy(), situation());
    s.current_seconds = f64::INFINITY;
    s.rate_per_second = 0.0;
    let history = [switched(999.0, "a", "b")];
    assert_eq!(
        decide(&policy, &s, &history),
        Decision::Rescue { best_seconds: 0.06 }
    );
}

#[test]
fn cool_down_holds_for_its_time_only() {
    let (policy, s) = (policy(), situation());
    assert_eq!(
        decide(&policy, &s, &[switched(980.0, "a", "b")]),
        Decision::Stay(Stay::CoolDown { left_seconds: 10.0 })
    );
    assert!(matches!(
        decide(&policy, &s, &[switched(970.0, "a", "b")]),
        Decision::Switch(_)
    ));
}

#[test]
fn going_back_and_forth_is_held_until_it_is_forgotten() {
    let (policy, mut s) = (policy(), situation());
    let history = [
        switched(500.0, "a", "b"),
        switched(600.0, "b", "a"),
        switched(700.0, "a", "b"),
    ];
    assert_eq!(returns(&policy, 1000.0, &history), 2);
    assert_eq!(
        decide(&policy, &s, &history),
        Decision::Stay(Stay::Flapping {
            returns: 2,
            left_seconds: 100.0
        })
    );
    s.now_seconds = 1101.0;
    assert!(matches!(decide(&policy, &s, &history), Decision::Switch(_)));
    let onward = [
        switched(500.0, "a", "b"),
        switched(600.0, "b", "c"),
        switched(700.0, "c", "d"),
    ];
    assert_eq!(returns(&policy, 1000.0, &onward), 0);
}

#[test]
fn a_switch_that_measures_worse_is_taken_back() {
    let policy = policy();
    let measured = |mean_seconds, requests| Measured {
        mean_seconds,
        deviation_seconds: 0.01,
        requests,
    };
    let before = measured(0.05, 100);
    let after = |mean| judge(&policy, &before, &measured(mean, 100), None);
    assert!(matches!(after(0.054), Verdict::Keep { .. }));
    assert!(matches!(after(0.08), Verdict::Rollback { .. }));
    assert_eq!(
        judge(&policy, &before, &measured(9.0, 15), None),
        Verdict::Wait {
            requests_missing: 5
        }
    );
    // The link became slow: the old path would take 0.5 s by now.
    let now = judge(&policy, &before, &measured(0.08, 100), Some(0.5));
    assert!(matches!(now, Verdict::Keep { .. }));
}

#[test]
fn the_work_function_moves_once_staying_has_cost_as_much_as_moving() {
    let moving = |a: usize, b: usize| if a == b { 0.0 } else { 5.0 };
    let mut work = WorkFunction::new(2, 0, moving);
    let mut current = 0;
    let mut moved_at = None;
    for step in 0..40 {
        let next = work.advance(&[2.0, 1.0], current, moving);
        if next != current {
            moved_at = moved_at.or(Some(step));
            current = next;
        }
    }
    assert_eq!(current, 1);
    // One request-second is lost per step: ten (twice the cost of moving) must have passed, by the
    // rule's competitive ratio.
    assert_eq!(moved_at, Some(10));
    // A short dip does not move it.
    let mut work = WorkFunction::new(2, 0, moving);
    for _ in 0..3 {
        assert_eq!(work.advance(&[2.0, 1.0], 0, moving), 0);
    }
    for _ in 0..20 {
        assert_eq!(work.advance(&[1.0, 2.0], 0, moving), 0);
    }
}

#[test]
fn a_path_that_is_found_later_is_one_that_has_yet_to_be_moved_to() {
    let moving = |a: usize, b: usize| if a == b { 0.0 } else { 5.0 };
    let mut late = WorkFunction::new(1, 0, moving);
    late.add(|from| moving(from, 1));
    assert_eq!(late, WorkFunction::new(2, 0, moving));
    // What the others have cost by then is not held against them.
    for _ in 0..8 {
        late.advance(&[2.0, 1.0], 0, moving);
    }
    late.add(|from| moving(from, 2));
    let next = late.advance(&[2.0, 1.0, 0.5], 0, moving);
    assert_eq!(next, 0, "it is not moved to at once");
}

//! Many hosts, of which each measures links to a few.

use crate::testing::Fleet;

/// Problems of Placements, as reported to users.
fn problems(fleet: &Fleet) -> Vec<&str> {
    let placements = fleet.bench.memory.placements.values();
    let problems = placements.filter_map(|own| own.problem.as_ref());
    problems.map(|(_, message)| message.as_str()).collect()
}

#[test]
fn among_many_hosts_every_model_is_placed_soon_and_stays_placed_under_load() {
    let mut fleet = Fleet::new(100, 80);
    fleet.run(12);
    assert_eq!(fleet.planned_and_serving(), (80, 80));
    // By now requests overload the fastest hosts.
    fleet.run(24);
    assert_eq!(problems(&fleet), [""; 0]);
    let reasons = fleet.bench.reasons();
    assert!(!reasons.contains(&lamina_crds::reasons::NO_FEASIBLE_PLACEMENT));
}

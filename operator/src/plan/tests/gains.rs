//! Gains that move blocks, and those that do not.

use super::*;
use crate::state::links::{LinkChange, LinkView};
use lamina_crds::dnn_model::AdaptationPolicy;

/// Serves by the work function, and its blocks are fetched in seconds over a slow link: to
/// the camera in 26, in which requests lose 11 request-seconds.
fn by_work() -> Bench {
    let mut manifest = crate::testing::manifest(4);
    for block in &mut manifest.blocks {
        block.file_bytes = 1 << 16;
    }
    let mut bench = Bench::new();
    bench.edit(|m| m.spec.adaptation.policy = AdaptationPolicy::WorkFunction);
    bench.look();
    bench.finish_prepare_of(manifest);
    bench.run(20);
    assert_eq!(bench.status().path, "cloud-1[0-3]");
    bench.told.clear();
    bench
}

#[test]
fn the_work_function_moves_once_staying_has_cost_as_much_as_moving() {
    let mut bench = by_work();
    // A request takes 0.45 s by the slow link and 0.16 s on the camera.
    bench.links_of("cam-1", 1e4);
    bench.run(30);
    assert_eq!(bench.status().path, "cloud-1[0-3]", "too early to tell");
    bench.run(170);
    assert_eq!(bench.status().path, "cam-1[0-3]", "{:?}", bench.told);
    assert_eq!(bench.status().redeploys, 1);
}

#[test]
fn the_work_function_counts_good_times_for_the_path_that_they_were_good_for() {
    let mut bench = by_work();
    for _ in 0..4 {
        bench.links_of("cam-1", 1e4);
        bench.run(10);
        bench.links_of("cam-1", 12.5e6);
        bench.run(200);
    }
    assert_eq!(bench.status().redeploys, 0, "{:?}", bench.told);
}

#[test]
fn between_paths_that_are_nearly_equal_nothing_moves() {
    let mut bench = Bench::serving();
    let edge = bench.snapshot.compute_nodes.get_mut("edge-1").unwrap();
    let status = Arc::make_mut(edge).status.as_mut().unwrap();
    status.capacity.as_mut().unwrap().gflops = 40.0;
    for second in 0..600 {
        // By turns, the one is found faster and the other, by what samples differ.
        let is_cloud_faster = second / 20 % 2 == 0;
        change_links(&mut bench.snapshot.links, |a, b, view| {
            let is_of_cloud = a == "cloud-1" || b == "cloud-1";
            let factor = match is_of_cloud == is_cloud_faster {
                true => 1.15,
                false => 0.85,
            };
            view.bytes_per_second = Some(2e5 * factor);
            view.noise = 0.2;
        });
        bench.run(1);
    }
    assert_eq!(bench.status().redeploys, 0, "{:?}", bench.told);
}

/// Serves on the edge, as the cloud's links are slow, and was asked just now because time passed.
fn on_the_edge() -> Bench {
    let mut bench = Bench::serving();
    bench.links_of("cloud-1", 1e4);
    bench.run(60);
    assert_eq!(bench.status().path, "edge-1[0-3]");
    let before = bench.solves;
    while bench.solves == before {
        bench.run(1);
    }
    bench
}

fn change(from: &str, to: &str, before: f64, after: f64) -> LinkChange {
    let view = |rate| LinkView {
        rtt_seconds: Some(0.01),
        bytes_per_second: Some(rate),
        noise: 0.05,
        bandwidth_age_seconds: 0.0,
        reachable: true,
        estimated: false,
    };
    LinkChange {
        pair: (from.to_owned(), to.to_owned()),
        before: view(before),
        after: view(after),
    }
}

#[test]
fn a_faster_link_of_a_host_that_was_considered_is_a_reason_to_ask() {
    let mut bench = on_the_edge();
    let before = bench.solves;
    bench.told.clear();
    bench.links_of("cloud-1", 12.5e6);
    bench.snapshot.changed_links = vec![change("cam-1", "cloud-1", 1e4, 12.5e6)];
    bench.look();
    bench.snapshot.changed_links.clear();
    bench.run(4);
    assert!(bench.solves > before, "at the period only");
    let note = bench.note(reasons::REDEPLOY_STARTED);
    let start = "cam-1→cloud-1 0.08→100 Mbit/s; ";
    assert!(note.starts_with(start), "{note}");
}

#[test]
fn a_link_that_can_make_nothing_better_is_no_reason_to_ask() {
    let mut bench = on_the_edge();
    bench.run(1);
    let before = bench.solves;
    let mut unmeasured = change("cam-1", "cloud-1", 1e5, 1e6);
    unmeasured.before.bytes_per_second = None;
    bench.snapshot.changed_links = vec![
        change("cam-1", "cloud-1", 1e5, 1e4),
        change("cam-1", "cloud-1", 1e5, 1.1e5),
        change("cam-1", "unknown-1", 1e5, 1e6),
        change("cloud-1", "cloud-2", 1e5, 1e6),
        unmeasured,
    ];
    bench.run(3);
    assert_eq!(bench.solves, before);
}

#[test]
fn a_move_that_requests_wait_for_is_made_though_the_best_path_changes() {
    let mut bench = Bench::serving();
    bench.run(12);
    for second in 0..10 {
        change_links(&mut bench.snapshot.links, |a, b, view| {
            let is_of = |host| a == host || b == host;
            let slow = is_of("cloud-1") || second % 2 == 1;
            if is_of("cam-1") && slow {
                view.rtt_seconds = Some(0.4);
            } else {
                view.rtt_seconds = Some(0.01);
            }
            view.bandwidth_age_seconds = 100.0;
        });
        bench.run(1);
    }
    assert_ne!(bench.status().active_revision, 1, "{:?}", bench.told);
}

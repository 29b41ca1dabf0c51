use super::*;

fn at(second: u64) -> Duration {
    Duration::from_secs(second)
}

fn speed(bytes_per_second: f64) -> Sample {
    Sample {
        bytes_per_second: Some(bytes_per_second),
        bytes: 1 << 20,
        ..Sample::default()
    }
}

fn rate(links: &Links, second: u64) -> f64 {
    let table = links.table(at(second));
    table.get("a", "b").unwrap().bytes_per_second.unwrap()
}

/// Ten samples of about 1 MB/s.
fn settled() -> Links {
    let mut links = Links::default();
    for i in 0..10 {
        let wobble = if i % 2 == 0 { 1.05 } else { 0.95 };
        links.add("a", "b", speed(1e6 * wobble), at(i));
    }
    links
}

#[test]
fn one_odd_sample_changes_nothing_and_a_second_one_does() {
    let mut links = settled();
    assert!((rate(&links, 10) / 1e6 - 1.0).abs() < 0.1);
    assert_eq!(links.add("a", "b", speed(1e5), at(10)), []);
    assert!((rate(&links, 10) / 1e6 - 1.0).abs() < 0.1);
    let told = links.add("a", "b", speed(1.1e5), at(11));
    assert!(rate(&links, 11) < 1.3e5, "{}", rate(&links, 11));
    assert!(matches!(&told[..], [WorldEvent::LinkChanged { before, .. }]
        if before.bytes_per_second.unwrap() > 9e5));
}

#[test]
fn odd_samples_that_contradict_each_other_change_nothing() {
    let mut links = settled();
    for (i, odd) in [1e5, 1e7, 1e5, 1e7].into_iter().enumerate() {
        links.add("a", "b", speed(odd), at(10 + i as u64));
    }
    assert!((rate(&links, 14) / 1e6 - 1.0).abs() < 0.1);
}

#[test]
fn small_transfers_say_little() {
    let mut links = settled();
    let small = Sample {
        bytes: 100,
        ..speed(0.7e6)
    };
    links.add("a", "b", small, at(10));
    assert!((rate(&links, 10) / 1e6 - 1.0).abs() < 0.1);
}

#[test]
fn a_round_trip_is_shared_by_both_directions_and_forgets_outliers() {
    let mut links = Links::default();
    for (i, rtt) in [0.010, 0.011, 0.300, 0.010, 0.012].into_iter().enumerate() {
        let sample = Sample {
            rtt_seconds: Some(rtt),
            ..Sample::default()
        };
        links.add("a", "b", sample, at(i as u64));
    }
    let table = links.table(at(5));
    assert_eq!(table.get("b", "a").unwrap().rtt_seconds, Some(0.011));
    assert_eq!(table.get("a", "c"), None);
}

#[test]
fn three_failures_make_a_peer_unreachable_until_it_answers() {
    let mut links = settled();
    let failed = Sample {
        failed: true,
        ..Sample::default()
    };
    let mut told = Vec::new();
    for second in 10..13 {
        told = links.add("a", "b", failed, at(second));
    }
    assert!(matches!(&told[..], [WorldEvent::LinkChanged { after, .. }] if !after.reachable));
    let estimate = links.table(at(13)).get("a", "b").unwrap();
    assert!(estimate.bytes_per_second.is_some(), "the figures stay");
    links.add("a", "b", speed(1e6), at(13));
    assert!(links.table(at(13)).get("a", "b").unwrap().reachable);
}

#[test]
fn nonsense_is_passed_over() {
    let mut links = Links::default();
    for odd in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let sample = Sample {
            rtt_seconds: Some(odd),
            ..speed(odd)
        };
        assert_eq!(links.add("a", "b", sample, at(0)), []);
    }
    assert_eq!(links.table(at(0)).get("a", "b"), None);
}

#[test]
fn confidence_grows_with_samples_and_fades() {
    let mut links = Links::default();
    links.add("a", "b", speed(1e6), at(0));
    let confidence = |links: &Links, s| links.table(at(s)).get("a", "b").unwrap().confidence;
    let one = confidence(&links, 0);
    links.add("a", "b", speed(1e6), at(1));
    assert!(confidence(&links, 1) > one);
    assert!(confidence(&links, 600) < 0.1);
}

fn trip(rtt: f64) -> Sample {
    Sample {
        rtt_seconds: Some(rtt),
        ..Sample::default()
    }
}

fn contended(sample: Sample) -> Sample {
    Sample {
        contended: true,
        ..sample
    }
}

#[test]
fn contended_samples_raise_a_bandwidth_and_never_lower_it() {
    let mut links = settled();
    for second in 10..30 {
        assert_eq!(links.add("a", "b", contended(speed(1e5)), at(second)), []);
    }
    assert!((rate(&links, 30) / 1e6 - 1.0).abs() < 0.1);
    links.add("a", "b", contended(speed(4e6)), at(31));
    links.add("a", "b", contended(speed(4e6)), at(32));
    assert!(rate(&links, 32) > 3e6);
}

#[test]
fn a_contended_first_sample_is_replaced_by_the_next_that_is_not() {
    let mut links = Links::default();
    links.add("a", "b", contended(speed(1e5)), at(0));
    let first = links.table(at(0)).get("a", "b").unwrap();
    assert!(first.confidence < 0.05, "{}", first.confidence);
    links.add("a", "b", speed(1e6), at(1));
    assert!(rate(&links, 1) > 8e5, "{}", rate(&links, 1));
    links.add("a", "c", contended(trip(0.5)), at(2));
    links.add("a", "c", trip(0.02), at(3));
    assert_eq!(
        links.table(at(3)).get("a", "c").unwrap().rtt_seconds,
        Some(0.02)
    );
}

#[test]
fn contended_round_trips_never_raise_what_is_known() {
    let mut links = Links::default();
    links.add("a", "b", trip(0.02), at(0));
    for second in 1..20 {
        assert_eq!(links.add("a", "b", contended(trip(0.5)), at(second)), []);
    }
    let rtt = |links: &Links| links.table(at(20)).get("a", "b").unwrap().rtt_seconds;
    assert_eq!(rtt(&links), Some(0.02));
    for second in 20..23 {
        links.add("a", "b", contended(trip(0.01)), at(second));
    }
    assert_eq!(rtt(&links), Some(0.01));
}

#[test]
fn two_failures_far_apart_make_a_peer_unreachable() {
    let failed = Sample {
        failed: true,
        ..Sample::default()
    };
    let mut links = settled();
    links.add("a", "b", failed, at(10));
    links.add("a", "b", failed, at(11));
    assert!(links.table(at(11)).get("a", "b").unwrap().reachable);
    let mut links = settled();
    links.add("a", "b", failed, at(10));
    links.add("a", "b", failed, at(12));
    assert!(!links.table(at(12)).get("a", "b").unwrap().reachable);
}

#[test]
fn numbers_out_of_bounds_are_passed_over() {
    let mut links = Links::default();
    for (rtt, rate) in [(61.0, 0.5), (1e-9, 1e13)] {
        let sample = Sample {
            rtt_seconds: Some(rtt),
            ..speed(rate)
        };
        assert_eq!(links.add("a", "b", sample, at(0)), []);
    }
    assert!(links.table(at(0)).is_empty());
    assert_eq!(links.hosts().count(), 0);
}

#[test]
fn links_of_one_host_are_bounded_and_the_oldest_make_room() {
    let mut links = Links::default();
    for n in 0..2000_u64 {
        links.add("a", &n.to_string(), trip(0.01), at(n));
    }
    assert_eq!(
        links.table(at(2000)).outbound("a").count(),
        MOST_LINKS_OF_HOST
    );
    assert_eq!(links.round_trips.len(), MOST_LINKS_OF_HOST);
    assert_eq!(links.table(at(2000)).get("a", "0"), None);
    assert!(links.table(at(2000)).get("1999", "a").is_some());
}

#[test]
fn what_is_forgotten_leaves_nothing() {
    let mut links = Links::default();
    for n in 0..50_u64 {
        let host = n.to_string();
        links.add(
            &host,
            "a",
            Sample {
                rtt_seconds: Some(0.01),
                ..speed(1e6)
            },
            at(n),
        );
        links.add("a", &host, speed(1e6), at(n));
        links.forget(&host);
    }
    assert_eq!(links.hosts().collect::<Vec<_>>(), ["a"]);
    let held = (
        links.directions.len(),
        links.round_trips.len(),
        links.coordinates.len(),
    );
    assert_eq!(held, (0, 0, 1));
    assert!(links.table(at(50)).is_empty());
    links.forget("a");
    assert_eq!(links.table.hosts().count() + links.coordinates.len(), 0);
}

#[test]
fn a_table_stays_as_it_was_and_shares_what_did_not_change() {
    let mut links = settled();
    links.add("c", "d", speed(1e6), at(9));
    let before = links.table(at(10));
    for second in 10..14 {
        links.add("a", "b", speed(1e5), at(second));
    }
    links.forget("c");
    let after = links.table(at(14));
    assert!(before.get("a", "b").unwrap().bytes_per_second > Some(9e5));
    assert!(before.get("c", "d").is_some());
    assert!(after.get("a", "b").unwrap().bytes_per_second < Some(2e5));
    assert_eq!(after.get("c", "d"), None);
    assert!(!before.shares_row(&after, "a"));
    links.add("a", "b", speed(1e5), at(15));
    links.add("e", "f", speed(1e5), at(15));
    let later = links.table(at(15));
    assert!(after.shares_row(&later, "d"));
}

#[test]
fn links_to_and_from_a_host_are_listed() {
    let mut links = Links::default();
    links.add("a", "b", speed(1e6), at(0));
    links.add("c", "b", speed(2e6), at(0));
    let inbound = Sample {
        inbound: true,
        ..speed(3e6)
    };
    links.add("d", "b", inbound, at(0));
    let table = links.table(at(1));
    let names = |found: Vec<(&str, LinkEstimate)>| {
        let mut names: Vec<_> = found.into_iter().map(|(n, _)| n.to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(table.inbound("b").collect()), ["a", "c"]);
    assert_eq!(names(table.outbound("b").collect()), ["d"]);
    assert_eq!((table.len(), table.iter().count()), (3, 3));
}

/// Ten hosts that all measured `a` and each other, but not all pairs.
fn neighbourhood() -> Links {
    let mut links = Links::default();
    let names: Vec<String> = (0..10).map(|n| format!("h{n}")).collect();
    for round in 0..60 {
        for (i, from) in names.iter().enumerate() {
            for (j, to) in names.iter().enumerate() {
                let is_hidden = i + j == 9;
                if i != j && !is_hidden {
                    let sample = Sample {
                        rtt_seconds: Some(0.01 * (1 + i.abs_diff(j)) as f64),
                        ..speed(if i == 0 { 2e5 } else { 1e6 })
                    };
                    links.add(from, to, sample, at(round));
                }
            }
        }
    }
    links
}

#[test]
fn pairs_that_were_never_measured_are_estimated_and_say_so() {
    let links = neighbourhood();
    let table = links.table(at(60));
    assert!(table.coordinates_error().unwrap() < 0.2);
    assert_eq!(table.get("h2", "h7"), None);
    let guess = table.estimated("h2", "h7").unwrap();
    assert!(guess.estimated && guess.confidence <= 0.1 && guess.noise >= 1.0);
    let rtt = guess.rtt_seconds.unwrap();
    assert!((rtt / 0.06 - 1.0).abs() < 0.4, "{rtt}");
    assert!((guess.bytes_per_second.unwrap() / 1e6 - 1.0).abs() < 0.1);
    // h0's outgoing links are slow, whatever the destination.
    let slow = table.estimated("h0", "h9").unwrap();
    assert!(slow.bytes_per_second.unwrap() < 2.5e5);
    let measured = table.estimated("h2", "h3").unwrap();
    assert_eq!(Some(measured), table.get("h2", "h3"));
    assert!(!measured.estimated);
    assert_eq!(table.estimated("h2", "nobody"), None);
}

#[test]
fn what_a_pair_lacks_is_filled_in() {
    let mut links = neighbourhood();
    links.add("h2", "h7", trip(0.05), at(60));
    let table = links.table(at(60));
    let half = table.estimated("h2", "h7").unwrap();
    assert_eq!(half.rtt_seconds, Some(0.05));
    assert!(half.estimated && half.bytes_per_second.is_some());
    assert_eq!(table.get("h2", "h7").unwrap().bytes_per_second, None);
}

#[test]
fn what_a_host_gets_is_taken_to_be_what_it_sends_until_it_was_measured() {
    let mut links = neighbourhood();
    for round in 0..10 {
        let sample = Sample {
            rtt_seconds: Some(0.02),
            ..speed(3e5)
        };
        links.add("new", "h1", sample, at(round));
    }
    let table = links.table(at(60));
    let guess = table.estimated("h5", "new").unwrap();
    assert!(guess.estimated);
    assert!((guess.bytes_per_second.unwrap() / 3e5 - 1.0).abs() < 0.1);
}

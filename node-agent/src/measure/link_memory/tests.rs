use super::*;

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn clean(seconds: f64) -> Seen {
    Seen {
        seconds,
        lost_seconds: 0.0,
        is_shared: false,
    }
}

const fn late(seconds: f64, lost_seconds: f64) -> Seen {
    Seen {
        seconds,
        lost_seconds,
        is_shared: false,
    }
}

const fn shared(seconds: f64) -> Seen {
    Seen {
        seconds,
        lost_seconds: 0.0,
        is_shared: true,
    }
}

fn due_of(link: &LinkMemory, now: Duration) -> Option<u64> {
    link.probe_due(&HostBudget::default(), false, now)
}

fn transfer(bytes_out: u64, seconds: f64) -> Transfer {
    Transfer {
        peer: "edge-1".into(),
        bytes_out,
        bytes_in: 0,
        seconds,
    }
}

#[test]
fn bandwidth_is_bytes_over_time_beyond_the_round_trip() {
    let mut memory = BTreeMap::new();
    memory
        .entry("edge-1".to_owned())
        .or_insert_with(LinkMemory::default)
        .round_trip(clean(0.02));
    let samples = passive_samples(&[transfer(100_000, 0.18)], &mut memory, false, at(1));
    assert_eq!(samples.len(), 1);
    assert!((samples[0].bytes_per_second - 625_000.0).abs() < 1.0);
    assert!(samples[0].passive);
}

#[test]
fn of_transfers_that_share_the_link_the_fastest_counts() {
    let mut memory = BTreeMap::new();
    let all = [
        transfer(100_000, 0.4),
        transfer(100_000, 0.1),
        transfer(100_000, 0.3),
    ];
    let samples = passive_samples(&all, &mut memory, false, at(1));
    assert!((samples[0].bytes_per_second - 1e6).abs() < 1.0);
}

#[test]
fn small_or_instant_transfers_say_nothing() {
    let mut memory = BTreeMap::new();
    let all = [transfer(100, 0.1), transfer(100_000, 0.001)];
    assert!(passive_samples(&all, &mut memory, false, at(1)).is_empty());
}

#[test]
fn the_smallest_round_trip_counts_and_old_ones_are_forgotten() {
    let mut link = LinkMemory::default();
    link.round_trip(clean(0.03));
    link.round_trip(clean(0.02));
    assert_eq!(link.rtt(), Some(0.02));
    for _ in 0..ROUND_TRIPS {
        link.round_trip(clean(0.05));
    }
    assert_eq!(link.rtt(), Some(0.05));
}

#[test]
fn a_silent_link_is_probed_at_once_and_then_rarely() {
    let mut link = LinkMemory::default();
    assert_eq!(due_of(&link, at(0)), Some(SMALLEST_PROBE));
    let rate = link.bandwidth(SMALLEST_PROBE, 0.0131).unwrap();
    link.note(rate, at(0));
    link.probed(true, at(0));
    assert_eq!(due_of(&link, at(9)), None);
    let due = due_of(&link, at(11)).unwrap();
    assert!((37_000..38_000).contains(&due), "{due}");
}

#[test]
fn probes_of_a_link_and_of_a_host_keep_to_their_share() {
    const SECONDS: u64 = 20 * 3600;
    let names: Vec<String> = (0..32).map(|n| format!("edge-{n}")).collect();
    let rate = 2e5;
    let mut memory = BTreeMap::new();
    for name in &names {
        probe_told(&mut memory, name, rate, at(0));
    }
    let mut host = HostBudget::default();
    host.rates(&memory);
    let (mut sent, mut of_first) = (0, 0);
    for second in 1..SECONDS {
        for name in &names {
            let link = memory.get_mut(name).unwrap();
            // Each of them always counts as changed.
            link.is_distrusted = true;
            let Some(bytes) = link.probe_due(&host, false, at(second)) else {
                continue;
            };
            let bytes = bytes * u64::from(link.repetitions() + 1);
            link.spend(bytes as f64 / rate, at(second));
            link.probed(true, at(second));
            host.spend(bytes, at(second));
            sent += bytes;
            of_first += if *name == names[0] { bytes } else { 0 };
        }
    }
    let share = |bytes: u64| bytes as f64 / rate / SECONDS as f64;
    assert!((0.005..=0.0101).contains(&share(sent)), "{}", share(sent));
    assert!(share(of_first) <= 0.0101);
}

#[test]
fn blobs_on_their_way_put_probes_off_unless_nothing_is_known() {
    let host = HostBudget::default();
    let mut link = LinkMemory::default();
    assert!(link.probe_due(&host, true, at(0)).is_some());
    link.note(1e6, at(0));
    assert_eq!(link.probe_due(&host, true, at(60)), None);
    assert!(link.probe_due(&host, false, at(60)).is_some());
}

#[test]
fn probes_grow_until_they_tell() {
    let link = LinkMemory::default();
    // 50 Mbit/s: the smallest probe showed little.
    let rate = link.bandwidth(SMALLEST_PROBE, 0.0055);
    assert_eq!(LinkMemory::larger_probe(SMALLEST_PROBE, rate), Some(89_367));
    let rate = link.bandwidth(LARGEST_PROBE, 0.021);
    assert_eq!(LinkMemory::larger_probe(LARGEST_PROBE, rate), None);
    // A link within one machine.
    assert_eq!(link.bandwidth(SMALLEST_PROBE, 0.0001), None);
    assert_eq!(
        LinkMemory::larger_probe(SMALLEST_PROBE, None),
        Some(4 * SMALLEST_PROBE)
    );
    assert_eq!(LinkMemory::larger_probe(ENOUGH_BYTES, None), None);
    let floor = link.bandwidth(ENOUGH_BYTES, 0.0004).unwrap();
    assert!((floor - ENOUGH_BYTES as f64 / LEAST_SECONDS).abs() < 1.0);
}

fn probed(peers: &[&str], rate: f64) -> BTreeMap<String, LinkMemory> {
    let mut memory = BTreeMap::new();
    for peer in peers {
        probe_told(&mut memory, peer, rate, at(0));
        memory.get_mut(*peer).unwrap().probed(true, at(0));
    }
    memory
}

fn due(memory: &BTreeMap<String, LinkMemory>, now: Duration) -> Vec<&str> {
    let all = memory.iter();
    all.filter(|(_, m)| due_of(m, now).is_some())
        .map(|(peer, _)| peer.as_str())
        .collect()
}

#[test]
fn news_of_one_link_makes_the_others_worth_a_probe() {
    let mut memory = probed(&["cloud-1", "edge-1", "edge-2"], 1e6);
    assert!(!probe_told(&mut memory, "edge-1", 1.2e6, at(6)));
    assert_eq!(due(&memory, at(6)), [""; 0]);
    assert!(probe_told(&mut memory, "edge-1", 1e5, at(7)));
    assert_eq!(due(&memory, at(7)), ["cloud-1", "edge-2"]);
    assert_eq!(memory["edge-2"].repetitions(), REPETITIONS);
    for peer in ["cloud-1", "edge-2"] {
        memory.get_mut(peer).unwrap().probed(true, at(8));
    }
    // A recent probe is trusted.
    probe_told(&mut memory, "edge-1", 1e6, at(9));
    assert_eq!(due(&memory, at(9)), [""; 0]);
}

#[test]
fn requests_slower_than_the_probe_are_not_believed_but_ask_for_another() {
    let mut memory = probed(&["edge-1"], 1e6);
    let mut samples = |seconds, now| {
        let found = passive_samples(&[transfer(100_000, seconds)], &mut memory, false, now);
        (found.len(), due(&memory, now).len())
    };
    assert_eq!(samples(0.1, at(6)), (1, 0));
    assert_eq!(samples(0.2, at(7)), (0, 0));
    assert_eq!(samples(1.0, at(8)), (0, 1));
    // Faster than the probe is a better measurement.
    assert_eq!(samples(0.05, at(9)).0, 1);
}

#[test]
fn real_traffic_makes_probes_unnecessary() {
    let mut link = LinkMemory::default();
    link.note(1e6, at(5));
    assert_eq!(due_of(&link, at(6)), None);
    assert!(due_of(&link, at(20)).is_some());
}

#[test]
fn a_round_trip_with_lost_time_does_not_raise_what_is_known() {
    let mut link = LinkMemory::default();
    link.round_trip(clean(0.02));
    let told = link.round_trip(late(0.1, 0.085));
    assert!(told.contended);
    for _ in 0..ROUND_TRIPS {
        link.round_trip(late(0.1, 0.085));
        link.round_trip(shared(0.3));
    }
    assert_eq!(link.rtt(), Some(0.02));
    // Even without the lost time it is longer: the link changed.
    let told = link.round_trip(late(0.1, 0.03));
    assert!(!told.contended);
    for _ in 0..ROUND_TRIPS {
        link.round_trip(late(0.1, 0.03));
    }
    assert!((link.rtt().unwrap() - 0.07).abs() < 1e-9);
    // A shorter one is always valid.
    assert!(!link.round_trip(shared(0.01)).contended);
    assert_eq!(link.rtt(), Some(0.01));
}

#[test]
fn a_probe_with_lost_time_is_a_bound_unless_the_link_must_be_slower() {
    let mut memory = probed(&["edge-1"], 1e6);
    let link = memory.get_mut("edge-1").unwrap();
    let told = |seen| link.rate(100_000, seen).unwrap();
    assert!(!told(clean(0.1)).contended);
    // 0.5 MB/s as measured, 1 MB/s without the lost time.
    let seen = told(late(0.2, 0.1));
    assert!(seen.contended && (seen.value - 5e5).abs() < 1.0);
    let seen = told(shared(0.2));
    assert!(seen.contended);
    // 0.25 MB/s at best.
    let seen = told(late(0.6, 0.2));
    assert!(!seen.contended && (seen.value - 2.5e5).abs() < 1.0);
    // A little lost time changes nothing.
    assert!(!told(late(0.2, 0.01)).contended);
}

#[test]
fn a_probe_that_told_nothing_is_repeated_after_a_pause() {
    let mut memory = probed(&["edge-1"], 1e6);
    let link = memory.get_mut("edge-1").unwrap();
    link.is_distrusted = true;
    assert!(due_of(link, at(6)).is_some());
    link.probed(false, at(6));
    assert_eq!(due_of(link, at(7)), None);
    assert!(due_of(link, at(11)).is_some());
}

#[test]
fn contended_requests_do_not_stand_in_for_a_probe() {
    let mut memory = BTreeMap::new();
    let samples = passive_samples(&[transfer(100_000, 0.1)], &mut memory, true, at(1));
    assert!(samples[0].contended);
    assert_eq!(memory["edge-1"].seen_at(), None);
}

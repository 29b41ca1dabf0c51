//! The emulated links against real TCP sockets: measurements match the settings.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lamina_e2e::IndexLock;
use lamina_e2e::netlab::{CONTROL, Link, Network};

const MS: Duration = Duration::from_millis(1);
/// Relative tolerance of measurements.
const TOLERANCE: f64 = 0.15;

/// Measurements disturb each other, so one network runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Keeps a network's index and its turn.
type Turn = (IndexLock, MutexGuard<'static, ()>);

fn start(hosts: &[&str], link: Link) -> (Turn, Network) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let lock = IndexLock::first_free().unwrap();
    let network = Network::start(lock.index(), hosts, |_, _| link).unwrap();
    ((lock, alone), network)
}

/// A TCP connection between two hosts: the end on `from`, the end on `to`.
fn connect(network: &Network, from: &str, to: &str) -> (TcpStream, TcpStream) {
    let address = SocketAddr::from((network.address(to).unwrap(), 0));
    let listener = network.within(to, || TcpListener::bind(address)).unwrap();
    let address = listener.local_addr().unwrap();
    let client = network
        .within(from, || {
            TcpStream::connect_timeout(&address, Duration::from_secs(5))
        })
        .unwrap();
    let (server, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), network.address(from).unwrap());
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
    }
    (client, server)
}

/// The median round trip of one byte.
fn round_trip((client, server): &mut (TcpStream, TcpStream)) -> Duration {
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            let start = Instant::now();
            let mut byte = [7];
            client.write_all(&byte).unwrap();
            server.read_exact(&mut byte).unwrap();
            server.write_all(&byte).unwrap();
            client.read_exact(&mut byte).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// Payload bits per second from client to server, for about a second and a half; the first half
/// second, in which TCP adapts, does not count.
fn throughput((mut client, mut server): (TcpStream, TcpStream)) -> f64 {
    let sender = std::thread::spawn(move || {
        let chunk = vec![0u8; 1 << 16];
        let start = Instant::now();
        while start.elapsed() < 2000 * MS && client.write_all(&chunk).is_ok() {}
    });
    let mut chunk = vec![0u8; 1 << 16];
    let begin = Instant::now();
    while begin.elapsed() < 500 * MS {
        assert_ne!(server.read(&mut chunk).unwrap(), 0);
    }
    let start = Instant::now();
    let mut bytes = 0;
    while start.elapsed() < 1500 * MS {
        let read = server.read(&mut chunk).unwrap();
        assert_ne!(read, 0);
        bytes += read;
    }
    let rate = bytes as f64 * 8.0 / start.elapsed().as_secs_f64();
    drop(server);
    sender.join().unwrap();
    rate
}

#[track_caller]
fn assert_close(measured: f64, set: f64, what: &str) {
    println!("{what}: measured {measured:.4}, set {set:.4}");
    assert!(
        (measured / set - 1.0).abs() < TOLERANCE,
        "{what}: measured {measured:.4}, set {set:.4}"
    );
}

/// The share of a link's bits that TCP over IPv4 leaves for payload.
const PAYLOAD: f64 = 1448.0 / 1500.0;

#[test]
fn links_do_what_was_set_before_and_after_a_change() {
    let (_lock, network) = start(&["cam-1", "edge-1"], Link::new(5 * MS, 50_000_000));
    let mut pair = connect(&network, "cam-1", "edge-1");
    assert_close(
        round_trip(&mut pair).as_secs_f64(),
        0.010,
        "round trip before, s",
    );
    assert_close(
        throughput(connect(&network, "cam-1", "edge-1")),
        50e6 * PAYLOAD,
        "rate before, bit/s",
    );

    // One direction only: the other keeps its 5 ms and 50 Mbit/s.
    network
        .set_link("cam-1", "edge-1", Link::new(20 * MS, 5_000_000))
        .unwrap();
    std::thread::sleep(400 * MS);
    assert_close(
        round_trip(&mut pair).as_secs_f64(),
        0.025,
        "round trip after, s",
    );
    assert_close(
        throughput(connect(&network, "cam-1", "edge-1")),
        5e6 * PAYLOAD,
        "rate after, bit/s",
    );
    assert_close(
        throughput(connect(&network, "edge-1", "cam-1")),
        50e6 * PAYLOAD,
        "rate of the other direction, bit/s",
    );
}

#[test]
fn a_fast_link_carries_two_hundred_megabits() {
    let (_lock, network) = start(&["edge-1", "cloud-0"], Link::new(2 * MS, 200_000_000));
    let before = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    assert_close(
        throughput(connect(&network, "edge-1", "cloud-0")),
        200e6 * PAYLOAD,
        "rate, bit/s",
    );
    let after = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    let spent = Duration::from(after) - Duration::from(before);
    println!("processor time of router and both ends: {spent:?} in 2 s");
}

#[test]
fn two_links_do_not_share_a_rate() {
    let (_lock, network) = start(&["a", "b", "c"], Link::new(MS, 20_000_000));
    let pairs = [
        connect(&network, "a", "b"),
        connect(&network, "a", "c"),
        connect(&network, "c", "b"),
    ];
    let threads = pairs.map(|pair| std::thread::spawn(move || throughput(pair)));
    for thread in threads {
        assert_close(
            thread.join().unwrap(),
            20e6 * PAYLOAD,
            "one of three, bit/s",
        );
    }
}

#[test]
fn a_partition_stops_everything_until_it_is_healed() {
    let (_lock, network) = start(&["cam-1", "edge-1"], Link::new(MS, 50_000_000));
    let mut pair = connect(&network, "cam-1", "edge-1");
    let mut control = connect(&network, "cam-1", CONTROL);
    round_trip(&mut pair);
    round_trip(&mut control);

    network
        .set_host_links("cam-1", |link| link.up = false)
        .unwrap();
    std::thread::sleep(20 * MS);
    let key = ("cam-1".to_owned(), "edge-1".to_owned());
    let before = network.counters()[&key];
    pair.0.write_all(&[1]).unwrap();
    pair.1.set_read_timeout(Some(300 * MS)).unwrap();
    assert!(pair.1.read(&mut [0]).is_err(), "a byte crossed a partition");
    control.1.write_all(&[1]).unwrap();
    control.0.set_read_timeout(Some(300 * MS)).unwrap();
    assert!(control.0.read(&mut [0]).is_err());
    let during = network.counters()[&key];
    assert_eq!(during.bytes, before.bytes);
    assert!(during.drops > before.drops, "{during:?}");

    network
        .set_host_links("cam-1", |link| link.up = true)
        .unwrap();
    pair.1
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    pair.1.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_link_that_is_too_slow_drops_what_does_not_fit_its_queue() {
    let mut link = Link::new(MS, 1_000_000);
    link.queue_limit_bytes = Some(64 * 1024);
    let (_lock, network) = start(&["a", "b"], link);
    let to = SocketAddr::from((network.address("b").unwrap(), 9));
    let socket = network
        .within("a", || std::net::UdpSocket::bind("0.0.0.0:0"))
        .unwrap();
    for _ in 0..200 {
        socket.send_to(&[0; 1000], to).unwrap();
    }
    std::thread::sleep(1200 * MS);
    let counters = network.counters()[&("a".to_owned(), "b".to_owned())];
    // 65 536 bytes of 1028-byte packets fit, and those sent meanwhile free space.
    assert!((60..=75).contains(&counters.packets), "{counters:?}");
    assert_eq!(counters.packets + counters.drops, 200);
    assert_eq!(counters.bytes, counters.packets * 1028);
}

#[test]
fn nothing_is_left_of_a_stopped_network() {
    let ((lock, _alone), network) = start(&["a", "b"], Link::new(MS, 1_000_000));
    let file = network.namespace("a").unwrap().unwrap();
    assert!(file.exists());
    drop(network);
    assert!(!file.exists());
    // The same index can be used at once.
    drop(Network::start(lock.index(), &["a"], |_, _| Link::new(MS, 1_000_000)).unwrap());
}

#[test]
fn a_name_given_twice_is_refused() {
    let lock = IndexLock::first_free().unwrap();
    for hosts in [&["a", "a"], &[CONTROL, "a"]] {
        let refused = Network::start(lock.index(), hosts, |_, _| Link::new(MS, 1));
        assert!(
            refused
                .err()
                .unwrap()
                .to_string()
                .starts_with("the host name")
        );
    }
}

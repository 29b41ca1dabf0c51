use super::*;
use axum::body::Body as AxumBody;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::task::AbortOnDropHandle;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// A door that answers `ok` to everything, after `pause`.
async fn door(
    connections: usize,
    idle: Duration,
    pause: Duration,
) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let door = Door {
        speech: Speech::Http1,
        limits: DoorLimits {
            connections,
            streams: 8,
            idle,
            longest: MS(900),
        },
        acceptor: None,
    };
    let service = tower::service_fn(move |request: Request<Incoming>| async move {
        sleep(pause).await;
        let forever = futures::stream::pending::<Result<Bytes, Infallible>>();
        let mut answer = match request.uri().path() {
            "/" => Response::new(AxumBody::from("ok")),
            _ => Response::new(AxumBody::from_stream(forever)),
        };
        if request.uri().path() == "/endless" {
            answer.extensions_mut().insert(Endless);
        }
        Ok::<_, Infallible>(answer)
    });
    let serving = door.serve(listener, service, CancellationToken::new());
    (address, AbortOnDropHandle::new(tokio::spawn(serving)))
}

async fn silent(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// The answer on a connection that stays open.
async fn ask(stream: &mut TcpStream) -> String {
    ask_for(stream, "/").await
}

async fn ask_for(stream: &mut TcpStream, path: &str) -> String {
    let asked = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
    let asked = stream.write_all(asked.as_bytes()).await;
    let mut answer = vec![0; 1024];
    let got = match asked {
        Ok(()) => timeout(MS(3000), stream.read(&mut answer)).await,
        Err(_) => Ok(Ok(0)),
    };
    let got = got.unwrap().unwrap_or(0);
    String::from_utf8(answer[..got].to_vec()).unwrap()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let end = timeout(MS(5000), stream.read(&mut [0; 64])).await;
    matches!(end, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_and_one_that_asks_stays() {
    let (address, _door) = door(8, MS(300), Duration::ZERO).await;
    let (mut idle, mut busy) = (silent(address).await, silent(address).await);
    for _ in 0..10 {
        assert!(ask(&mut busy).await.ends_with("ok"));
        sleep(MS(60)).await;
    }
    assert!(is_closed(&mut idle).await);
    assert!(is_closed(&mut busy).await);
}

#[tokio::test]
async fn where_idlers_take_every_place_who_comes_is_served() {
    let (address, _door) = door(8, Duration::from_secs(600), Duration::ZERO).await;
    let mut client = silent(address).await;
    assert!(ask(&mut client).await.ends_with("ok"));
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(silent(address).await);
        // A connection in constant use is not the longest idle.
        assert!(ask(&mut client).await.ends_with("ok"));
    }
    assert!(ask(&mut silent(address).await).await.ends_with("ok"));
    assert!(is_closed(&mut crowd[0]).await);
}

#[tokio::test]
async fn where_all_are_busy_who_comes_is_turned_away_and_nobody_inside_loses_anything() {
    let (address, _door) = door(4, Duration::from_secs(600), MS(500)).await;
    // Three of four: the share of one address.
    let asking = (0..3).map(|_| tokio::spawn(async move { ask(&mut silent(address).await).await }));
    let asking: Vec<_> = asking.collect();
    sleep(MS(200)).await;
    assert_eq!(ask(&mut silent(address).await).await, "");
    for one in asking {
        assert!(one.await.unwrap().ends_with("ok"));
    }
    assert!(ask(&mut silent(address).await).await.ends_with("ok"));
}

#[tokio::test]
async fn who_takes_no_answer_does_not_stay_unless_the_answer_may_go_on() {
    let (address, _door) = door(8, MS(300), Duration::ZERO).await;
    let (mut stuck, mut endless) = (silent(address).await, silent(address).await);
    assert!(
        ask_for(&mut endless, "/endless")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        ask_for(&mut stuck, "/stuck")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(is_closed(&mut stuck).await);
    let waited = timeout(MS(1500), endless.read(&mut [0; 64])).await;
    assert!(waited.is_err(), "{waited:?}");
}

#[test]
fn a_network_of_the_new_kind_is_one_client() {
    let of = |ip: &str| client_of(ip.parse().unwrap());
    assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
}

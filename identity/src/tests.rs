//! Real handshakes over real sockets.

use super::authority::{Authority, AuthorityError, request, validity};
use super::*;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const HOUR: i64 = 3600;

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs().try_into().unwrap()
}

fn lasting(from: i64, until: i64) -> Validity {
    Validity {
        not_before: now() + from,
        not_after: now() + until,
    }
}

fn authority() -> Authority {
    Authority::new(lasting(-24 * HOUR, 24 * HOUR)).unwrap()
}

fn agents() -> Workload {
    Workload {
        trust_domain: "lamina".into(),
        namespace: "lamina-system".into(),
        account: "lamina-agent".into(),
    }
}

/// A certificate for the agent of `node`.
fn issued(by: &Authority, node: &str, validity: Validity) -> Credentials {
    let (key, csr) = request().unwrap();
    let certificate = by.issue_agent(&agents(), node, &csr, validity).unwrap();
    Credentials::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
}

fn good(by: &Authority, node: &str) -> Credentials {
    issued(by, node, lasting(-HOUR, HOUR))
}

fn roots(of: &[&Authority]) -> Vec<CertificateDer<'static>> {
    of.iter().map(|authority| authority.der().clone()).collect()
}

/// Accepts connections as `edge-1`; each answers with the client's identity.
async fn serve(acceptor: Acceptor) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(accepted) = acceptor.accept(stream).await else {
                    return;
                };
                let seen = accepted.peer.map_or("nobody".into(), |peer| peer.node);
                let mut stream = accepted.stream;
                let mut byte = [0];
                while stream.read_exact(&mut byte).await.is_ok() {
                    let said = stream.write_all(format!("{seen}\n").as_bytes()).await;
                    if said.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn acceptor(own: &Credentials, of: &[&Authority], plain: Plain) -> Acceptor {
    let acceptor = Acceptor::new(plain);
    acceptor.set(server_config(own, &roots(of)).unwrap());
    acceptor
}

async fn whom(stream: &mut Stream) -> Result<String, String> {
    let asked = async {
        stream.write_all(b"?").await?;
        stream.flush().await?;
        let mut line = Vec::new();
        loop {
            match stream.read_u8().await? {
                b'\n' => return Ok::<_, std::io::Error>(line),
                byte => line.push(byte),
            }
        }
    };
    let line = asked.await.map_err(|error| error.to_string())?;
    Ok(String::from_utf8(line).unwrap())
}

async fn dial(
    address: &str,
    config: Arc<ClientConfig>,
    node: &str,
) -> Result<Stream, ConnectError> {
    let stream = TcpStream::connect(address).await.unwrap();
    connect(config, &agent(node), stream).await
}

/// The identity that `edge-1` at `address` sees when dialed with `config`.
async fn seen(address: &str, config: Arc<ClientConfig>) -> Result<String, String> {
    let stream = dial(address, config, "edge-1").await;
    whom(&mut stream.map_err(|error| error.to_string())?).await
}

#[tokio::test]
async fn each_end_knows_the_other_by_its_certificate() {
    let ours = authority();
    let address = serve(acceptor(&good(&ours, "edge-1"), &[&ours], Plain::Refused)).await;
    let config = client_config(Some(&good(&ours, "cam-1")), &roots(&[&ours])).unwrap();
    assert_eq!(seen(&address, config).await.unwrap(), "cam-1");
    let unknown = client_config(None, &roots(&[&ours])).unwrap();
    assert_eq!(seen(&address, unknown).await.unwrap(), "nobody");
}

#[tokio::test]
async fn a_host_with_the_certificate_of_another_is_not_taken_for_it() {
    let ours = authority();
    let address = serve(acceptor(&good(&ours, "edge-2"), &[&ours], Plain::Refused)).await;
    let config = client_config(Some(&good(&ours, "cam-1")), &roots(&[&ours])).unwrap();
    let refused = dial(&address, config, "edge-1").await.err().unwrap();
    assert!(
        matches!(&refused, ConnectError::Certificate { name, .. } if name == "edge-1.agents.lamina"),
        "{refused}"
    );
}

#[tokio::test]
async fn certificates_of_a_foreign_authority_are_believed_by_neither_end() {
    let (ours, foreign) = (authority(), authority());
    let address = serve(acceptor(&good(&ours, "edge-1"), &[&ours], Plain::Refused)).await;
    let of_foreign = client_config(Some(&good(&foreign, "cam-1")), &roots(&[&ours])).unwrap();
    assert!(seen(&address, of_foreign).await.is_err());
    let believes_foreign = client_config(Some(&good(&ours, "cam-1")), &roots(&[&foreign])).unwrap();
    let refused = dial(&address, believes_foreign, "edge-1").await.err();
    assert!(
        matches!(refused, Some(ConnectError::Certificate { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn certificates_that_have_ended_or_not_begun_are_believed_by_neither_end() {
    let ours = authority();
    for times in [lasting(-2 * HOUR, -60), lasting(HOUR, 2 * HOUR)] {
        let address = serve(acceptor(&good(&ours, "edge-1"), &[&ours], Plain::Refused)).await;
        let bad = issued(&ours, "cam-1", times);
        let client = client_config(Some(&bad), &roots(&[&ours])).unwrap();
        assert!(seen(&address, client).await.is_err());

        let bad = issued(&ours, "edge-1", times);
        let address = serve(acceptor(&bad, &[&ours], Plain::Refused)).await;
        let client = client_config(Some(&good(&ours, "cam-1")), &roots(&[&ours])).unwrap();
        let refused = dial(&address, client, "edge-1").await.err();
        assert!(
            matches!(refused, Some(ConnectError::Certificate { .. })),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn the_operators_certificate_is_no_agents_and_opens_no_connection() {
    let ours = authority();
    let pair = ours
        .issue_operator(&agents(), [127, 0, 0, 1].into(), lasting(-HOUR, HOUR))
        .unwrap();
    let own = Credentials::from_pem(pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap();
    assert_eq!(read(own.certificate().unwrap()).unwrap().node, None);
    let address = serve(acceptor(&own, &[&ours], Plain::Refused)).await;
    let config = client_config(None, &roots(&[&ours])).unwrap();
    let stream = TcpStream::connect(&address).await.unwrap();
    let mut stream = connect(Arc::clone(&config), OPERATOR, stream)
        .await
        .unwrap();
    assert_eq!(whom(&mut stream).await.unwrap(), "nobody");
    assert!(dial(&address, config, "cam-1").await.is_err());
    let as_client = client_config(Some(&own), &roots(&[&ours])).unwrap();
    let stream = TcpStream::connect(&address).await.unwrap();
    let refused = match connect(as_client, OPERATOR, stream).await {
        Ok(mut stream) => whom(&mut stream).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
}

#[tokio::test]
async fn with_two_authorities_both_are_believed_until_one_goes() {
    let (old, new) = (authority(), authority());
    let shown = acceptor(&good(&old, "edge-1"), &[&old, &new], Plain::Refused);
    let address = serve(shown.clone()).await;
    let of = |by: &Authority, believes: &[&Authority]| {
        client_config(Some(&good(by, "cam-1")), &roots(believes)).unwrap()
    };
    for by in [&old, &new] {
        assert_eq!(
            seen(&address, of(by, &[&old, &new])).await.unwrap(),
            "cam-1"
        );
    }
    shown.set(server_config(&good(&new, "edge-1"), &roots(&[&new])).unwrap());
    assert!(seen(&address, of(&old, &[&old, &new])).await.is_err());
    assert_eq!(seen(&address, of(&new, &[&new])).await.unwrap(), "cam-1");
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_the_next_connection_and_open_ones_go_on() {
    let (old, new) = (authority(), authority());
    let shown = acceptor(&good(&old, "edge-1"), &[&old], Plain::Refused);
    let address = serve(shown.clone()).await;
    let config = client_config(Some(&good(&old, "cam-1")), &roots(&[&old])).unwrap();
    let mut open = dial(&address, Arc::clone(&config), "edge-1").await.unwrap();
    assert_eq!(whom(&mut open).await.unwrap(), "cam-1");
    shown.set(server_config(&good(&new, "edge-1"), &roots(&[&new])).unwrap());
    assert_eq!(whom(&mut open).await.unwrap(), "cam-1");
    let refused = dial(&address, config, "edge-1").await.err();
    assert!(
        matches!(refused, Some(ConnectError::Certificate { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn connections_without_tls_are_taken_where_they_may_be_and_have_nobody_on_them() {
    let ours = authority();
    let own = good(&ours, "edge-1");
    let address = serve(acceptor(&own, &[&ours], Plain::Taken)).await;
    let mut plain: Stream = Box::new(TcpStream::connect(&address).await.unwrap());
    assert_eq!(whom(&mut plain).await.unwrap(), "nobody");
    let address = serve(acceptor(&own, &[&ours], Plain::Refused)).await;
    let mut plain: Stream = Box::new(TcpStream::connect(&address).await.unwrap());
    assert!(whom(&mut plain).await.is_err());
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_from_who_is_not_believed() {
    let ours = authority();
    let config = client_config(None, &roots(&[&ours])).unwrap();
    // Hangs up on the first bytes, as an HTTP/2 server does, with or without a message.
    for words in [&b"\0\0\x12\x04\0\0\0\0\0 what is this?"[..], b""] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = vec![0; 2048];
            let _ = stream.read(&mut hello).await;
            let _ = stream.write_all(words).await;
        });
        let refused = dial(&address, Arc::clone(&config), "edge-1").await.err();
        assert!(
            matches!(refused, Some(ConnectError::NoTls(_))),
            "{refused:?}"
        );
    }
}

#[test]
fn the_name_in_a_certificate_comes_from_who_signs_and_not_from_the_request() {
    let ours = authority();
    let mut params = rcgen::CertificateParams::new(vec!["cloud-1.agents.lamina".into()]).unwrap();
    let uri = agents().uri_on("cloud-1");
    let uri = rcgen::string::Ia5String::try_from(uri.as_str()).unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(uri));
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = params.serialize_request(&key).unwrap();
    let issued = ours
        .issue_agent(&agents(), "cam-1", csr.der(), lasting(-HOUR, HOUR))
        .unwrap();
    let issued = certificates(issued.as_bytes()).unwrap().swap_remove(0);
    let facts = read(&issued).unwrap();
    assert_eq!(facts.node.as_deref(), Some("cam-1"));
    assert!(!facts.is_authority);
    assert!(is_issued_by(&issued, ours.der()));
    assert!(!is_issued_by(&issued, authority().der()));
}

#[test]
fn what_is_no_good_request_is_not_signed() {
    let ours = authority();
    let times = lasting(-HOUR, HOUR);
    let sign = |node: &str, csr: &[u8]| ours.issue_agent(&agents(), node, csr, times);
    let (_, csr) = request().unwrap();
    let node = sign("not/a/node", &csr);
    assert!(matches!(node, Err(AuthorityError::Node(_))));
    let garbage = sign("cam-1", b"garbage");
    assert!(matches!(garbage, Err(AuthorityError::Request(_))));
    // Signed by another key than its own.
    let mut forged = csr.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(sign("cam-1", &forged).is_err());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key);
    let other = sign("cam-1", csr.unwrap().der());
    assert!(matches!(other, Err(AuthorityError::RequestKey)));
}

#[test]
fn an_authority_is_one_with_its_own_key_that_may_sign() {
    let (ours, other) = (authority(), authority());
    assert!(Authority::from_pem(ours.certificate(), ours.key()).is_ok());
    let mixed = Authority::from_pem(ours.certificate(), other.key());
    assert!(matches!(mixed, Err(AuthorityError::OtherKey)));
    let leaf = ours
        .issue_operator(&agents(), [127, 0, 0, 1].into(), lasting(-HOUR, HOUR))
        .unwrap();
    let leaf = Authority::from_pem(&leaf.certificate, &leaf.key);
    assert!(matches!(leaf, Err(AuthorityError::NoAuthority)));
    let nothing = Authority::from_pem("", ours.key());
    assert!(matches!(
        nothing,
        Err(AuthorityError::Certificate(CertificateError::Empty))
    ));
}

#[test]
fn certificates_begin_a_little_earlier_and_end_with_their_authority() {
    let by = Validity {
        not_before: 0,
        not_after: 1_000_000,
    };
    let day = validity(100_000, Duration::from_secs(86_400), by);
    assert_eq!((day.not_before, day.not_after), (96_400, 186_400));
    let short = validity(100_000, Duration::from_secs(600), by);
    assert_eq!((short.not_before, short.not_after), (99_940, 100_600));
    let long = validity(100_000, Duration::from_secs(100_000_000), by);
    assert_eq!(long.not_after, 1_000_000);
}

/// A certificate for `cam-1`, reached by clients at `names`.
fn front(by: &Authority, names: &[&str]) -> Credentials {
    let (key, csr) = request().unwrap();
    let reached = Reached::parse(names.iter().copied()).unwrap();
    let times = lasting(-HOUR, HOUR);
    let issued = by.issue_front(&agents(), "cam-1".into(), &csr, times, &reached);
    Credentials::from_pem(issued.unwrap().as_bytes(), key.as_bytes()).unwrap()
}

async fn asked_for(
    address: &str,
    config: &Arc<ClientConfig>,
    name: &str,
) -> Result<String, ConnectError> {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = connect(Arc::clone(config), name, stream).await?;
    Ok(whom(&mut stream).await.unwrap())
}

#[tokio::test]
async fn clients_and_hosts_are_shown_each_their_own_on_one_port() {
    let (ours, given) = (authority(), authority());
    let shown = acceptor(&good(&ours, "edge-1"), &[&ours], Plain::Told);
    let own = front(&given, &["lamina.example", "127.0.0.1"]);
    shown.set_for_clients(front_config(&own, Speech::Http2).unwrap());
    let address = serve(shown.clone()).await;
    let client = client_config(None, &roots(&[&given])).unwrap();
    for name in ["lamina.example", "127.0.0.1"] {
        let seen = asked_for(&address, &client, name).await;
        assert_eq!(seen.unwrap(), "nobody", "{name}");
    }
    let refused = asked_for(&address, &client, "other.example").await;
    assert!(matches!(refused, Err(ConnectError::Certificate { .. })));
    // A client with one of our certificates is still a client.
    let host = client_config(Some(&good(&ours, "cam-1")), &roots(&[&ours, &given])).unwrap();
    let seen = asked_for(&address, &host, "lamina.example").await;
    assert_eq!(seen.unwrap(), "nobody");
    assert_eq!(seen_by_host(&address, &ours).await, "cam-1");
    // A new one, used from the next connection on.
    let next = authority();
    let own = front(&next, &["lamina.example"]);
    shown.set_for_clients(front_config(&own, Speech::Http2).unwrap());
    assert!(
        asked_for(&address, &client, "lamina.example")
            .await
            .is_err()
    );
    let client = client_config(None, &roots(&[&next])).unwrap();
    asked_for(&address, &client, "lamina.example")
        .await
        .unwrap();
    assert_eq!(seen_by_host(&address, &ours).await, "cam-1");
}

async fn seen_by_host(address: &str, by: &Authority) -> String {
    let host = client_config(Some(&good(by, "cam-1")), &roots(&[by])).unwrap();
    seen(address, host).await.unwrap()
}

#[tokio::test]
async fn who_speaks_http_without_tls_is_told_what_is_wrong() {
    let ours = authority();
    let address = serve(acceptor(&good(&ours, "edge-1"), &[&ours], Plain::Told)).await;
    for said in [&b"GET /v2 HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n"] {
        let mut plain = TcpStream::connect(&address).await.unwrap();
        plain.write_all(said).await.unwrap();
        let mut answer = String::new();
        plain.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("https"));
    }
    let mut plain = TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"\0").await.unwrap();
    let heard = plain.read(&mut [0; 16]).await;
    assert!(matches!(heard, Ok(0) | Err(_)), "{heard:?}");
}

#[test]
fn a_certificate_says_where_its_agent_is_reached_and_never_that_it_is_another() {
    let ours = authority();
    let own = front(
        &ours,
        &["lamina.example", "*.cams.example", "10.0.0.7", "fd12::1"],
    );
    let facts = read(own.certificate().unwrap()).unwrap();
    assert_eq!(facts.node.as_deref(), Some("cam-1"));
    let wanted = Reached::parse(["*.cams.example", "fd12::1", "cam-1.agents.lamina"]);
    assert!(wanted.is_err());
    let wanted = Reached::parse(["*.cams.example", "fd12::1", "10.0.0.7"]).unwrap();
    assert_eq!(facts.reached.lacks(&wanted), None);
    let (_, csr) = request().unwrap();
    let forged = Reached {
        names: vec!["cloud-1.agents.lamina".into(), OPERATOR.into()],
        addresses: Vec::new(),
    };
    let times = lasting(-HOUR, HOUR);
    let issued = ours.issue_front(&agents(), "cam-1".into(), &csr, times, &forged);
    let issued = certificates(issued.unwrap().as_bytes()).unwrap();
    let names = read(&issued[0]).unwrap().reached.names;
    assert_eq!(names, ["cam-1.agents.lamina"]);
}

#[test]
fn a_key_of_another_certificate_is_not_taken() {
    let ours = authority();
    let (key, _) = request().unwrap();
    let (_, csr) = request().unwrap();
    let times = lasting(-HOUR, HOUR);
    let issued = ours.issue_agent(&agents(), "cam-1", &csr, times).unwrap();
    let own = Credentials::from_pem(issued.as_bytes(), key.as_bytes()).unwrap();
    assert!(front_config(&own, Speech::Http1).is_err());
}

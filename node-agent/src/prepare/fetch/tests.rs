//! Against real sockets and hostile servers.

use super::testing::{Answer, Server, announced, reply, serve, serve_at, to};
use super::*;
use crate::prepare::Reason;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::Mutex;
use tokio_rustls::TlsAcceptor;

mod clouds;
mod local;
mod real;
mod registry;

const ROOM: u64 = 1 << 30;

/// A fetcher from this machine with short time limits.
fn fetcher_with(change: impl FnOnce(&mut SourceArgs)) -> Fetcher {
    let mut args = SourceArgs {
        source_allow: vec!["127.0.0.1/32".parse().unwrap()],
        ..SourceArgs::default()
    };
    change(&mut args);
    let mut fetcher = Fetcher::new(args);
    fetcher.bounds.pause = Duration::ZERO;
    fetcher
}

fn fetcher() -> Fetcher {
    fetcher_with(|_| {})
}

fn secret(entries: &[(&str, &str)]) -> Credentials {
    let entries = entries.iter();
    Credentials::new(entries.map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())))
}

async fn fetch_with(
    fetcher: &Fetcher,
    uri: &str,
    secret: &Credentials,
    expected: Option<&Digest>,
) -> Result<Vec<u8>, Failure> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("source");
    let source = Source {
        uri,
        expected,
        secret,
    };
    fetcher.fetch(source, &path, ROOM, &mut |_| {}).await?;
    Ok(std::fs::read(path).unwrap())
}

async fn fetch(fetcher: &Fetcher, uri: &str) -> Result<Vec<u8>, Failure> {
    fetch_with(fetcher, uri, &Credentials::default(), None).await
}

async fn refused(fetcher: &Fetcher, uri: &str) -> Failure {
    let failure = fetch(fetcher, uri).await.unwrap_err();
    assert_eq!(failure.reason, Reason::FetchFailed, "{failure}");
    failure
}

async fn file_server() -> Server {
    serve(|_, _| reply("200 OK", "", b"file")).await
}

#[tokio::test]
async fn loopback_and_metadata_are_not_asked() {
    let server = file_server().await;
    let port = server.address.port();
    let strict = fetcher_with(|args| args.source_allow.clear());
    for host in ["127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let failure = refused(&strict, &format!("http://{host}:{port}/")).await;
        assert!(!failure.retryable, "{failure}");
        assert!(failure.message.contains("agent.sources.allow"), "{failure}");
    }
    let failure = refused(&strict, &format!("http://localhost:{port}/")).await;
    assert!(
        failure.message.contains("the name leads to a loopback"),
        "{failure}"
    );
    // These are never connected to.
    let failure = refused(&strict, "http://169.254.169.254/latest/meta-data").await;
    assert!(failure.message.contains("link-local"), "{failure}");
    assert_eq!(server.heads(), [""; 0]);
    assert_eq!(fetch(&fetcher(), &server.url("/")).await.unwrap(), b"file");
}

#[tokio::test]
async fn a_private_network_is_denied_where_it_is_asked_for() {
    let strict = fetcher_with(|args| args.source_deny_private = true);
    let failure = refused(&strict, "http://10.255.255.1/").await;
    assert!(failure.message.contains("private address"), "{failure}");
}

#[tokio::test]
async fn a_redirect_to_loopback_is_not_followed() {
    let inner = serve_at("127.0.0.2:0", None, |_, _| reply("200 OK", "", b"file")).await;
    for host in ["127.0.0.2", "0x7f000002", "[::ffff:127.0.0.2]"] {
        let target = format!("http://{host}:{}/", inner.address.port());
        let outer = serve(move |_, _| to(&target)).await;
        let failure = refused(&fetcher(), &outer.url("/")).await;
        assert!(failure.message.contains("loopback"), "{failure}");
        assert_eq!(outer.heads().len(), 1);
    }
    assert_eq!(inner.heads(), [""; 0]);
}

#[tokio::test]
async fn redirects_end() {
    let server = serve(|_, _| to("/again")).await;
    let failure = refused(&fetcher(), &server.url("/")).await;
    assert!(
        failure.message.contains("redirects more than 5 times"),
        "{failure}"
    );
    assert_eq!(server.heads().len(), 6);
    for target in ["ftp://host/m.pt", "file:///etc/passwd", "http://"] {
        let server = serve(move |_, _| to(target)).await;
        let failure = refused(&fetcher(), &server.url("/")).await;
        assert!(
            failure.message.contains("neither http nor https"),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn credentials_go_to_the_named_server_alone() {
    let other = file_server().await;
    let away = other.url("/file");
    let home = serve(move |n, _| match n {
        0 => to("/second"),
        _ => to(&away),
    })
    .await;
    let secret = secret(&[("token", "hidden"), ("headers", r#"{"X-Key":"hidden"}"#)]);
    let got = fetch_with(&fetcher(), &home.url("/"), &secret, None).await;
    assert_eq!(got.unwrap(), b"file");
    for head in home.heads() {
        assert!(head.contains("authorization: bearer hidden"), "{head}");
        assert!(head.contains("x-key: hidden"), "{head}");
    }
    assert_eq!(other.heads().len(), 1);
    assert!(!other.heads()[0].contains("hidden"), "{:?}", other.heads());
}

#[tokio::test]
async fn user_and_password_of_an_address_go_to_its_server_alone() {
    let other = file_server().await;
    let away = other.url("/");
    let home = serve(move |_, _| to(&away)).await;
    let uri = home.url("/").replace("http://", "http://me:hidden@");
    fetch(&fetcher(), &uri).await.unwrap();
    assert!(home.heads()[0].contains("authorization: basic"));
    assert!(!other.heads()[0].contains("authorization"));
}

#[tokio::test]
async fn a_server_that_drips_is_left() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
    let server = serve(|_, _| Answer::Drip(head.to_vec())).await;
    let mut hurried = fetcher();
    hurried.bounds.window = Duration::from_millis(200);
    let failure = refused(&hurried, &server.url("/")).await;
    assert!(
        failure.message.contains("it sends less than 65536 bytes"),
        "{failure}"
    );
    assert!(failure.retryable);
    assert_eq!(server.heads().len(), 1, "it is not asked again");
    // However small the reads, there is an end.
    hurried.bounds.window_bytes = 1;
    hurried.bounds.total = Duration::from_secs(1);
    let failure = refused(&hurried, &server.url("/")).await;
    assert!(
        failure.message.contains("it takes longer than 1 s"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_or_only_begins_is_left() {
    let silent = serve(|_, _| Answer::Silence).await;
    let slow = serve(|_, _| Answer::Drip(b"HTTP/1.1 200 OK\r\nx-slow: ".to_vec())).await;
    for server in [silent, slow] {
        let mut hurried = fetcher();
        hurried.answer = Duration::from_millis(300);
        let failure = refused(&hurried, &server.url("/")).await;
        assert!(failure.message.contains("does not answer"), "{failure}");
    }
}

#[tokio::test]
async fn a_file_that_is_too_large_is_refused_before_and_while_it_comes() {
    let small = fetcher_with(|args| args.source_size_limit = 1000);
    let announced = serve(|_, _| announced("200 OK", "", b"x", 1001)).await;
    let endless =
        serve(|_, _| Answer::Bytes([&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[0; 5000]].concat()));
    for server in [announced, endless.await] {
        let failure = refused(&small, &server.url("/")).await;
        assert!(
            failure.message.contains("agent.sources.sizeLimit"),
            "{failure}"
        );
        assert!(!failure.retryable, "{failure}");
    }
    // Another host may have the space that this one lacks.
    let server = serve(|_, _| reply("200 OK", "", &[0; 1001])).await;
    let folder = tempfile::tempdir().unwrap();
    let source = Source {
        uri: &server.url("/"),
        expected: None,
        secret: &Credentials::default(),
    };
    let path = folder.path().join("source");
    let fetched = fetcher().fetch(source, &path, 1000, &mut |_| {}).await;
    let failure = fetched.unwrap_err();
    assert!(
        failure.message.contains("for which this node has room"),
        "{failure}"
    );
    assert!(failure.retryable, "{failure}");
}

/// The `range` of a request's head, and its tag.
fn asked(head: &str) -> Option<(usize, String)> {
    let line = |name: &str| {
        let line = head.lines().find_map(|l| l.strip_prefix(name));
        line.map(|l| l.trim().to_owned())
    };
    let start = line("range: bytes=")?;
    Some((
        start.trim_end_matches('-').parse().ok()?,
        line("if-range:")?,
    ))
}

#[tokio::test]
async fn a_download_goes_on_where_its_connection_broke() {
    let file: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let content = file.clone();
    let server = serve(move |n, head| {
        let tag = "etag: \"one\"\r\n";
        match asked(head) {
            None => announced("200 OK", tag, &content[..150_000], content.len()),
            Some((start, tag)) => {
                assert_eq!(tag, "\"one\"");
                let range = format!(
                    "content-range: bytes {start}-{}/{}\r\netag: \"one\"\r\n",
                    content.len() - 1,
                    content.len()
                );
                let rest = &content[start..];
                let come = if n == 1 { &rest[..50_000] } else { rest };
                announced("206 Partial Content", &range, come, rest.len())
            }
        }
    })
    .await;
    let digest = Digest::of(&file);
    let none = Credentials::default();
    let got = fetch_with(&fetcher(), &server.url("/"), &none, Some(&digest)).await;
    assert_eq!(got.unwrap(), file);
    let ranges: Vec<_> = server.heads().iter().map(|head| asked(head)).collect();
    assert_eq!(ranges.len(), 3);
    assert_eq!(ranges[0], None);
    assert!(ranges[1].as_ref().unwrap().0 <= 150_000);
}

#[tokio::test]
async fn a_file_that_changed_meanwhile_is_fetched_whole() {
    let server = serve(|n, head| match n {
        0 => announced("200 OK", "etag: \"one\"\r\n", &[1; 600], 1000),
        _ => {
            assert_eq!(asked(head).unwrap().1, "\"one\"");
            reply("200 OK", "etag: \"two\"\r\n", &[2; 900])
        }
    })
    .await;
    let got = fetch(&fetcher(), &server.url("/")).await.unwrap();
    assert_eq!(got, [2; 900]);
}

#[tokio::test]
async fn a_file_without_a_name_for_its_version_is_begun_anew() {
    let server = serve(|n, head| {
        assert_eq!(asked(head), None);
        let come = if n == 0 { 600 } else { 1000 };
        announced("200 OK", "", &vec![n as u8; come], 1000)
    })
    .await;
    let got = fetch(&fetcher(), &server.url("/")).await.unwrap();
    assert_eq!(got, [1; 1000]);
}

#[tokio::test]
async fn a_file_that_became_shorter_than_what_has_come_is_begun_anew() {
    let server = serve(|n, _| match n {
        0 => announced("200 OK", "etag: \"one\"\r\n", &[1; 600], 1000),
        1 => reply("416 Range Not Satisfiable", "", b""),
        _ => reply("200 OK", "", &[2; 10]),
    })
    .await;
    assert_eq!(fetch(&fetcher(), &server.url("/")).await.unwrap(), [2; 10]);
}

#[tokio::test]
async fn lengths_and_ranges_that_lie_are_refused() {
    let server = serve(|_, _| announced("200 OK", "", b"short", 1000)).await;
    let failure = refused(&fetcher(), &server.url("/")).await;
    assert!(failure.message.contains("broke 10 times"), "{failure}");
    let server = serve(|n, _| match n {
        0 => announced("200 OK", "etag: \"one\"\r\n", &[1; 600], 1000),
        _ => reply(
            "206 Partial Content",
            "content-range: bytes 700-999/1000\r\n",
            &[1; 300],
        ),
    })
    .await;
    let failure = refused(&fetcher(), &server.url("/")).await;
    assert!(
        failure.message.contains("a different number of bytes"),
        "{failure}"
    );
    // Without a request for a range.
    let server = serve(|_, _| {
        reply(
            "206 Partial Content",
            "content-range: bytes 5-9/10\r\n",
            b"after",
        )
    })
    .await;
    let failure = refused(&fetcher(), &server.url("/")).await;
    assert!(failure.message.contains("206"), "{failure}");
}

#[tokio::test]
async fn what_a_server_sends_is_in_no_message() {
    let server = serve(|_, _| reply("500 Internal Server Error", "x-a: hidden\r\n", b"hidden"));
    let failure = refused(&fetcher(), &server.await.url("/")).await;
    assert!(failure.message.contains("500"), "{failure}");
    assert!(!failure.message.contains("hidden"), "{failure}");
    let server = file_server().await;
    let other = Digest::of(b"another");
    let none = Credentials::default();
    let fetched = fetch_with(&fetcher(), &server.url("/"), &none, Some(&other)).await;
    let failure = fetched.unwrap_err();
    assert_eq!(failure.reason, Reason::ChecksumMismatch);
    assert!(
        !failure.message.contains(Digest::of(b"file").as_str()),
        "{failure}"
    );
}

#[tokio::test]
async fn secrets_are_in_no_message() {
    let server = serve(|_, _| reply("401 Unauthorized", "", b"")).await;
    let secret = secret(&[("username", "someone"), ("password", "hidden")]);
    let uri = server.url("/hidden?sig=query");
    let failure = fetch_with(&fetcher(), &uri, &secret, None)
        .await
        .unwrap_err();
    assert!(
        failure.message.contains("check the credentials"),
        "{failure}"
    );
    assert!(!failure.message.contains("hidden"), "{failure}");
    assert!(!failure.message.contains("query"), "{failure}");
}

/// An authority, and the credentials of a server that it certifies.
fn authority(host: &str) -> (String, TlsAcceptor) {
    // Fails if the process has chosen one already, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (pem, TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_where_it_is_named() {
    let (pem, tls) = authority("127.0.0.1");
    let server = serve_at("127.0.0.1:0", Some(tls), |_, _| {
        reply("200 OK", "", b"file")
    })
    .await;
    let uri = server.url("/").replace("http://", "https://");
    let failure = refused(&fetcher(), &uri).await;
    assert!(failure.retryable, "{failure}");
    let named = secret(&[("ca.crt", &pem)]);
    let got = fetch_with(&fetcher(), &uri, &named, None).await;
    assert_eq!(got.unwrap(), b"file");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    std::fs::write(&file, &pem).unwrap();
    let trusting = fetcher_with(|args| args.source_ca_file = Some(file));
    assert_eq!(fetch(&trusting, &uri).await.unwrap(), b"file");
    let failure = fetch_with(&fetcher(), &uri, &secret(&[("ca.crt", "none")]), None).await;
    let failure = failure.unwrap_err();
    assert!(failure.message.contains("`ca.crt`"), "{failure}");
}

#[tokio::test]
async fn from_https_nothing_leads_back_to_http() {
    let (pem, tls) = authority("127.0.0.1");
    let plain = file_server().await;
    let target = plain.url("/");
    let server = serve_at("127.0.0.1:0", Some(tls), move |_, _| to(&target)).await;
    let uri = server.url("/").replace("http://", "https://");
    let fetched = fetch_with(&fetcher(), &uri, &secret(&[("ca.crt", &pem)]), None).await;
    let failure = fetched.unwrap_err();
    assert!(failure.message.contains("from https to http"), "{failure}");
    assert!(!failure.retryable);
    assert_eq!(plain.heads(), [""; 0]);
}

#[tokio::test]
async fn progress_counts_bytes() {
    let server = file_server().await;
    let steps = Mutex::new(Vec::new());
    let folder = tempfile::tempdir().unwrap();
    let source = Source {
        uri: &server.url("/"),
        expected: None,
        secret: &Credentials::default(),
    };
    let path = folder.path().join("source");
    let mut told = |step: Step| steps.lock().unwrap().push((step.done, step.total));
    fetcher()
        .fetch(source, &path, ROOM, &mut told)
        .await
        .unwrap();
    assert_eq!(steps.into_inner().unwrap().last(), Some(&(4, 4)));
}

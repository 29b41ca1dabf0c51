//! Servers of a few lines, most of them hostile.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Response of a server to one request. It closes the connection afterwards.
pub(super) enum Answer {
    /// All of these bytes at once.
    Bytes(Vec<u8>),
    /// These bytes, and then one every few milliseconds, forever.
    Drip(Vec<u8>),
    /// Nothing, forever.
    Silence,
}

/// A server and its received requests, with heads in lower case.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// The heads of all requests.
    pub(super) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// A server on this machine that answers request `n`, counted from 0, given its head.
pub(super) async fn serve(
    answer: impl Fn(usize, &str) -> Answer + Send + Sync + 'static,
) -> Server {
    serve_at("127.0.0.1:0", None, answer).await
}

/// The same at `address`, optionally with TLS.
pub(super) async fn serve_at(
    address: &str,
    tls: Option<TlsAcceptor>,
    answer: impl Fn(usize, &str) -> Answer + Send + Sync + 'static,
) -> Server {
    let listener = TcpListener::bind(address).await.unwrap();
    let server = Server {
        address: listener.local_addr().unwrap(),
        heads: Arc::default(),
    };
    let heads = Arc::clone(&server.heads);
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (heads, answer, tls) = (Arc::clone(&heads), Arc::clone(&answer), tls.clone());
            tokio::spawn(async move {
                let reply = |head: String| {
                    let mut heads = heads.lock().unwrap();
                    heads.push(head.to_ascii_lowercase());
                    answer(heads.len() - 1, &head)
                };
                match tls {
                    None => converse(stream, reply).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            converse(stream, reply).await;
                        }
                    }
                }
            });
        }
    });
    server
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    reply: impl FnOnce(String) -> Answer,
) {
    let mut head = Vec::new();
    let mut part = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part).await {
            Ok(read) if read > 0 => head.extend_from_slice(&part[..read]),
            _ => return,
        }
    }
    match reply(String::from_utf8(head).unwrap()) {
        Answer::Bytes(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        Answer::Drip(bytes) => {
            let _ = stream.write_all(&bytes).await;
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Answer::Silence => std::future::pending().await,
    }
}

/// `status` with these headers, each with its line break, and a body of known length.
pub(super) fn reply(status: &str, headers: &str, body: &[u8]) -> Answer {
    announced(status, headers, body, body.len())
}

/// The same with a length that need not be the body's.
pub(super) fn announced(status: &str, headers: &str, body: &[u8], length: usize) -> Answer {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n"
    );
    Answer::Bytes([head.as_bytes(), body].concat())
}

/// A redirect.
pub(super) fn to(location: &str) -> Answer {
    reply("302 Found", &format!("location: {location}\r\n"), b"")
}

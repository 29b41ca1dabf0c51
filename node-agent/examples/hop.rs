//! The cost of TLS for a hop: the same door, windows and messages without and with it, in turns, in
//! one run. Nothing is computed; the reply is small, like a classifier's.
//!
//! ```text
//! cargo run --release --workspace --example hop
//! ```
#![allow(missing_docs)]

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use lamina_identity::authority::{Authority, request};
use lamina_identity::{
    Acceptor, ClientConfig, Credentials, Plain, Stream, Validity, Workload, agent, client_config,
    connect, server_config,
};
use lamina_node_agent::door::{Door, DoorLimits, Speech};
use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::hop::hop_client::HopClient;
use lamina_proto::hop::hop_server::{Hop, HopServer};
use lamina_proto::hop::{ForwardReply, ForwardRequest, PingReply, PingRequest, Tensor};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Bytes of a request, and number of requests per turn.
const SIZES: [(&str, usize, usize); 3] = [
    ("4 KB", 4_000, 1000),
    ("600 KB", 600_000, 300),
    ("6 MB", 6_000_000, 60),
];
/// Turns of each variant.
const TURNS: usize = 5;
/// Concurrent requests for the throughput.
const AT_ONCE: usize = 8;
/// As in agents (`net/dial.rs`).
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const NODE: &str = "edge-1";

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Answers like a last slice that takes no time.
struct Last;

#[tonic::async_trait]
impl Hop for Last {
    async fn forward(&self, _: Request<ForwardRequest>) -> Result<Response<ForwardReply>, Status> {
        let scores = Tensor {
            name: "scores".to_owned(),
            data: Bytes::from(vec![0; 4000]),
            ..Tensor::default()
        };
        Ok(Response::new(ForwardReply {
            tensors: vec![scores],
            ..ForwardReply::default()
        }))
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        Ok(Response::new(PingReply::default()))
    }
}

/// The credentials of both ends.
struct Trust {
    acceptor: Acceptor,
    dialler: Arc<ClientConfig>,
}

fn trust() -> Outcome<Trust> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let validity = Validity {
        not_before: now - 60,
        not_after: now + 3600,
    };
    let authority = Authority::new(validity)?;
    let agents = Workload {
        trust_domain: "lamina".to_owned(),
        namespace: "lamina-system".to_owned(),
        account: "lamina-agent".to_owned(),
    };
    let own = |node: &str| -> Outcome<Credentials> {
        let (key, csr) = request()?;
        let certificate = authority.issue_agent(&agents, node, &csr, validity)?;
        Ok(Credentials::from_pem(
            certificate.as_bytes(),
            key.as_bytes(),
        )?)
    };
    let roots = [authority.der().clone()];
    let acceptor = Acceptor::new(Plain::Taken);
    acceptor.set(server_config(&own(NODE)?, &roots)?);
    Ok(Trust {
        acceptor,
        dialler: client_config(Some(&own("cam-1")?), &roots)?,
    })
}

fn runtime() -> Outcome<Runtime> {
    Ok(Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

async fn client(at: SocketAddr, tls: Option<Arc<ClientConfig>>) -> Outcome<HopClient<Channel>> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let tls = tls.clone();
        async move {
            let socket = TcpStream::connect(at).await?;
            socket.set_nodelay(true)?;
            let stream: Stream = match tls {
                None => Box::new(socket),
                Some(config) => connect(config, &agent(NODE), socket).await?,
            };
            Ok::<_, Box<dyn Error + Send + Sync>>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://agent")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let channel = endpoint.connect_with_connector(connector).await?;
    Ok(HopClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

fn hop(data: &Bytes) -> ForwardRequest {
    let tensor = Tensor {
        name: "image".to_owned(),
        data: data.clone(),
        ..Tensor::default()
    };
    ForwardRequest {
        tensors: vec![tensor],
        ..ForwardRequest::default()
    }
}

/// Times of sequential requests, and of as many in parallel.
#[derive(Default)]
struct Measured {
    times: Vec<Duration>,
    requests: usize,
    together: Duration,
}

impl Measured {
    async fn turn(
        &mut self,
        client: &HopClient<Channel>,
        data: &Bytes,
        requests: usize,
    ) -> Outcome<()> {
        let mut one = client.clone();
        for _ in 0..requests {
            let begun = Instant::now();
            one.forward(hop(data)).await?;
            self.times.push(begun.elapsed());
        }
        let begun = Instant::now();
        let mut all = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (mut client, data) = (client.clone(), data.clone());
            all.spawn(async move {
                for _ in 0..requests / AT_ONCE {
                    client.forward(hop(&data)).await?;
                }
                Ok::<_, Status>(())
            });
        }
        while let Some(done) = all.join_next().await {
            done??;
        }
        self.together += begun.elapsed();
        self.requests += requests / AT_ONCE * AT_ONCE;
        Ok(())
    }

    /// In microseconds; `part` of all took at most this long.
    fn microseconds(&mut self, part: f64) -> f64 {
        self.times.sort_unstable();
        let at = (self.times.len() as f64 * part) as usize;
        let time = self.times.get(at.min(self.times.len().saturating_sub(1)));
        time.map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }

    fn megabytes_per_second(&self, bytes: usize) -> f64 {
        (self.requests * bytes) as f64 / 1e6 / self.together.as_secs_f64()
    }
}

fn main() -> Outcome<()> {
    let Trust { acceptor, dialler } = trust()?;
    let (serving, asking) = (runtime()?, runtime()?);
    let listener = serving.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let door = Door {
        speech: Speech::Http2,
        limits: DoorLimits::for_requests(),
        acceptor: Some(acceptor),
    };
    let service = HopServer::new(Last)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let routes = Routes::new(service).prepare();
    serving.spawn(door.serve(listener, routes, CancellationToken::new()));
    asking.block_on(measure(address, dialler))
}

async fn measure(address: SocketAddr, dialler: Arc<ClientConfig>) -> Outcome<()> {
    let plain = client(address, None).await?;
    let tls = client(address, Some(dialler.clone())).await?;
    println!("hop       without TLS: p50   p99 µs      MB/s   with TLS: p50   p99 µs      MB/s");
    for (name, bytes, requests) in SIZES {
        // Noise, so that it is not compressed on the way.
        let data: Bytes = (0..bytes)
            .map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
            .collect();
        let (mut without, mut with) = (Measured::default(), Measured::default());
        // The first ones open windows and warm caches.
        Measured::default().turn(&plain, &data, AT_ONCE).await?;
        Measured::default().turn(&tls, &data, AT_ONCE).await?;
        for _ in 0..TURNS {
            without.turn(&plain, &data, requests).await?;
            with.turn(&tls, &data, requests).await?;
        }
        let [a, b] = [&mut without, &mut with].map(|m| {
            let (p50, p99) = (m.microseconds(0.50), m.microseconds(0.99));
            (p50, p99, m.megabytes_per_second(bytes))
        });
        println!(
            "{name:<8} {:>17.0} {:>8.0} {:>9.0} {:>15.0} {:>8.0} {:>9.0}",
            a.0, a.1, a.2, b.0, b.1, b.2
        );
        println!(
            "         TLS adds {:.0} µs at the median ({:.2} times); throughput is {:.2} of that without",
            b.0 - a.0,
            b.0 / a.0,
            b.2 / a.2
        );
    }
    let mut shaken = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        client(address, Some(dialler.clone())).await?;
        shaken.push(begun.elapsed());
    }
    shaken.sort_unstable();
    let median = shaken
        .get(shaken.len() / 2)
        .map_or(0.0, Duration::as_secs_f64);
    println!("a connection with TLS is open after {:.2} ms", median * 1e3);
    Ok(())
}

use super::estimate::{LinkMemory, fitting, passive_samples, probe_told};
use crate::net::{Peers, Profile, connect_lazy};
use crate::telemetry::Transfer;
use bytes::Bytes;
use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::control::LinkSample;
use lamina_proto::hop::PingRequest;
use lamina_proto::hop::hop_client::HopClient;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

/// How often each peer is asked.
const ROUND: Duration = Duration::from_secs(2);
/// A peer that does not answer an empty message for this long is not reachable.
const PATIENCE: Duration = Duration::from_secs(2);
/// A probe that takes longer is given up; the link is slower than that.
const PROBE_PATIENCE: Duration = Duration::from_secs(20);
/// Samples kept while no session takes them.
const KEPT: usize = 1024;

/// Measures the links from this host to its peers, on their real traffic first
/// and with small probes where there is none.
#[derive(Debug, Clone)]
pub struct Prober {
    peers: Peers,
    start: Instant,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    links: BTreeMap<String, LinkMemory>,
    samples: Vec<LinkSample>,
}

impl Prober {
    /// Nothing is measured before [`Prober::run`].
    pub fn new(peers: Peers) -> Self {
        Self {
            peers,
            start: Instant::now(),
            state: Arc::default(),
        }
    }

    /// Takes in the transfers of real requests.
    pub fn passive(&self, transfers: &[Transfer]) {
        let now = self.start.elapsed();
        self.with(|state| {
            let samples = passive_samples(transfers, &mut state.links, now);
            state.keep(samples);
        });
    }

    /// Smallest recent round trip to `node` in seconds; `None` before the first.
    pub fn rtt(&self, node: &str) -> Option<f64> {
        self.with(|state| state.links.get(node).and_then(LinkMemory::rtt))
    }

    /// The samples since the last drain.
    pub fn drain(&self) -> Vec<LinkSample> {
        self.with(|state| std::mem::take(&mut state.samples))
    }

    /// Probes until dropped. Peers are asked one after the other, so that probes
    /// of one host do not compete.
    pub async fn run(self) {
        let mut channels: BTreeMap<String, (String, HopClient<Channel>)> = BTreeMap::new();
        loop {
            let peers = self.peers.list();
            channels.retain(|node, _| peers.iter().any(|(n, _)| n == node));
            for (node, address) in &peers {
                let known = channels.get(node).filter(|(a, _)| a == address);
                let client = match known {
                    Some((_, client)) => client.clone(),
                    None => {
                        let Some(client) = connect(address) else {
                            continue;
                        };
                        channels.insert(node.clone(), (address.clone(), client.clone()));
                        client
                    }
                };
                self.probe(node, client).await;
            }
            sleep(ROUND).await;
        }
    }

    async fn probe(&self, node: &str, mut client: HopClient<Channel>) {
        let mut fastest: Option<f64> = None;
        for _ in 0..3 {
            match timeout(PATIENCE, ping(&mut client, 0)).await {
                Ok(Some(seconds)) => {
                    fastest = Some(fastest.map_or(seconds, |f| f.min(seconds)));
                }
                _ => break,
            }
        }
        let Some(rtt) = fastest else {
            return self.with(|state| state.keep([failed(node)]));
        };
        let due = self.with(|state| {
            let link = state.links.entry(node.to_owned()).or_default();
            link.round_trip(rtt);
            let smallest = link.rtt().unwrap_or(rtt);
            let due = link.probe_due(self.start.elapsed());
            state.keep([LinkSample {
                peer: node.to_owned(),
                rtt_seconds: smallest,
                ..LinkSample::default()
            }]);
            due
        });
        if let Some(bytes) = due {
            self.measure_bandwidth(node, &mut client, bytes).await;
        }
    }

    /// Probes with payloads that grow until they take long enough to tell.
    async fn measure_bandwidth(&self, node: &str, client: &mut HopClient<Channel>, bytes: u64) {
        let begin = Instant::now();
        let repetitions = self.with(|s| s.links.get(node).map_or(1, LinkMemory::repetitions));
        let mut next = Some(bytes);
        let mut measured = None;
        while let Some(bytes) = next {
            let Some(seconds) = fastest(client, bytes, repetitions).await else {
                break;
            };
            let rate = self.rate(node, bytes, seconds);
            measured = rate.map(|rate| (rate, bytes)).or(measured);
            next = LinkMemory::larger_probe(bytes, rate);
        }
        if let Some((rate, bytes)) = measured
            && self.tell(node, rate, bytes)
        {
            // One odd sample is no change; a second one that agrees is.
            let bytes = bytes.min(fitting(rate));
            let again = fastest(client, bytes, repetitions).await;
            if let Some(rate) = again.and_then(|seconds| self.rate(node, bytes, seconds)) {
                self.tell(node, rate, bytes);
            }
        }
        self.probed(node, begin);
    }

    fn rate(&self, node: &str, bytes: u64, seconds: f64) -> Option<f64> {
        self.with(|state| state.links.get(node)?.bandwidth(bytes, seconds))
    }

    /// Notes the end of a probe.
    fn probed(&self, node: &str, begin: Instant) {
        let now = self.start.elapsed();
        let took = begin.elapsed().as_secs_f64();
        self.with(|state| {
            let link = state.links.entry(node.to_owned()).or_default();
            link.probed(took, now);
        });
    }

    /// Keeps a probe's sample; whether it differs from the last by more than noise.
    fn tell(&self, node: &str, rate: f64, bytes: u64) -> bool {
        let now = self.start.elapsed();
        self.with(|state| {
            state.keep([LinkSample {
                peer: node.to_owned(),
                bytes_per_second: rate,
                bytes,
                ..LinkSample::default()
            }]);
            probe_told(&mut state.links, node, rate, now)
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn keep(&mut self, samples: impl IntoIterator<Item = LinkSample>) {
        let room = KEPT.saturating_sub(self.samples.len());
        self.samples.extend(samples.into_iter().take(room));
    }
}

fn failed(node: &str) -> LinkSample {
    LinkSample {
        peer: node.to_owned(),
        failed: true,
        ..LinkSample::default()
    }
}

fn connect(address: &str) -> Option<HopClient<Channel>> {
    let channel = connect_lazy(address, &Profile::PROBES).ok()?;
    Some(
        HopClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES),
    )
}

/// Seconds of the fastest of some payloads, back to back. One before them opens the
/// congestion window. `None` where one did not arrive.
async fn fastest(client: &mut HopClient<Channel>, bytes: u64, repetitions: u32) -> Option<f64> {
    let mut best = f64::INFINITY;
    for i in 0..=repetitions {
        let seconds = timeout(PROBE_PATIENCE, ping(client, bytes)).await.ok()??;
        if i > 0 {
            best = best.min(seconds);
        }
    }
    Some(best)
}

/// Seconds of a round trip with `bytes` of payload, less the time in the server.
async fn ping(client: &mut HopClient<Channel>, bytes: u64) -> Option<f64> {
    let payload = Bytes::from(vec![0; usize::try_from(bytes).ok()?]);
    let begin = Instant::now();
    let reply = client.ping(PingRequest { payload }).await.ok()?;
    let server = reply.into_inner().server_us as f64 / 1e6;
    Some((begin.elapsed().as_secs_f64() - server).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_proto::hop::hop_server::{Hop, HopServer};
    use lamina_proto::hop::{ForwardReply, ForwardRequest, PingReply};
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};

    struct Echo;

    #[tonic::async_trait]
    impl Hop for Echo {
        async fn forward(
            &self,
            _: Request<ForwardRequest>,
        ) -> Result<Response<ForwardReply>, Status> {
            Err(Status::unimplemented("only pings"))
        }

        async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
            // As if the link carried 1 MB/s.
            let bytes = request.into_inner().payload.len();
            sleep(Duration::from_secs_f64(bytes as f64 / 1e6)).await;
            Ok(Response::new(PingReply { server_us: 0 }))
        }
    }

    #[tokio::test]
    async fn round_trip_and_bandwidth_of_a_peer_are_measured_and_a_dead_one_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(HopServer::new(Echo))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let peers = Peers::default();
        peers.replace([
            ("alive".to_owned(), address),
            ("dead".to_owned(), "127.0.0.1:1".to_owned()),
        ]);
        let prober = Prober::new(peers);
        let run = tokio::spawn(prober.clone().run());
        let mut seen = Vec::new();
        for _ in 0..50 {
            sleep(Duration::from_millis(100)).await;
            seen.extend(prober.drain());
            if seen.iter().any(|s: &LinkSample| s.failed) {
                break;
            }
        }
        run.abort();
        let alive = || seen.iter().filter(|s| s.peer == "alive");
        assert!(alive().any(|s| s.rtt_seconds > 0.0 && s.rtt_seconds < 0.1));
        let rate = alive().find(|s| s.bytes > 0).unwrap().bytes_per_second;
        assert!((4e5..1.1e6).contains(&rate), "{rate}");
        assert!(seen.iter().any(|s| s.peer == "dead" && s.failed));
    }
}

//! An agent's session with the operator: hello, a heartbeat each second, samples, and the models to
//! prepare.

use super::host::Host;
use super::prober::Peer;
use crate::fleet::models::Prepared;
use lamina_proto::control::agent_message::Message;
use lamina_proto::control::control_client::ControlClient;
use lamina_proto::control::operator_message::Message as Order;
use lamina_proto::control::prepare_update::Update;
use lamina_proto::control::{
    AgentMessage, Heartbeat, Hello, LinkSamples, OperatorMessage, Prepare, PrepareDone,
    PrepareFailed, PrepareProgress, PrepareUpdate, PutBlobChunk, RequestStats, SegmentTimings,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

const BEAT: Duration = Duration::from_secs(1);
/// An operator that takes no message for this long is gone.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pauses before connecting again; they double.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("cannot connect")]
    Connect(#[from] tonic::transport::Error),
    #[error("the operator refused")]
    Refused(#[from] Box<Status>),
    #[error("the operator does not accept messages")]
    Stuck,
    #[error("the operator ended the session")]
    Ended,
    #[error("the operator moved")]
    Moved,
}

/// Keeps a session open for as long as the fleet lives.
pub(super) async fn keep(host: Arc<Host>) {
    let mut pause = PAUSES.0;
    loop {
        let address = host.operator().await;
        let begin = tokio::time::Instant::now();
        let Err(end) = session(&host, &address).await;
        host.session_ended();
        if begin.elapsed() > PAUSES.1 {
            pause = PAUSES.0;
        }
        let cause = std::error::Error::source(&end).map(ToString::to_string);
        tracing::debug!(node = host.name(), operator = address, cause, "{end}");
        // Staggered, like the agents of many hosts.
        sleep(pause.mul_f64(0.5 + host.share())).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

async fn session(host: &Arc<Host>, address: &str) -> Result<std::convert::Infallible, SessionEnd> {
    let (sender, receiver) = mpsc::channel(64);
    let opened = timeout(PATIENCE * 2, open(host, address, receiver, &sender)).await;
    let (mut orders, channel) = opened.map_err(|_| SessionEnd::Stuck)??;
    host.session_opened();
    // Heartbeats of many hosts are spread over the second.
    let first = tokio::time::Instant::now() + BEAT.mul_f64(host.share());
    let mut beat = interval_at(first, BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beat.tick() => {
                if host.has_moved(address) {
                    return Err(SessionEnd::Moved);
                }
                if !host.is_silent() {
                    report(host, &sender).await?;
                }
            }
            order = orders.message() => match order {
                Ok(Some(order)) => obey(host, order, &channel, &sender),
                Ok(None) => return Err(SessionEnd::Ended),
                Err(status) => return Err(Box::new(status).into()),
            },
        }
    }
}

async fn open(
    host: &Host,
    address: &str,
    receiver: mpsc::Receiver<AgentMessage>,
    sender: &mpsc::Sender<AgentMessage>,
) -> Result<(Streaming<OperatorMessage>, Channel), SessionEnd> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .connect_timeout(PATIENCE)
        .http2_keep_alive_interval(BEAT * 2)
        .keep_alive_timeout(PATIENCE)
        .keep_alive_while_idle(true)
        .connect()
        .await?;
    let hello = Hello {
        node: host.name().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        address: host.address().to_owned(),
        started_unix_ms: 0,
    };
    send(sender, Message::Hello(hello)).await?;
    let mut request = Request::new(ReceiverStream::new(receiver));
    authorize(&mut request, host);
    let reply = ControlClient::new(channel.clone())
        .session(request)
        .await
        .map_err(Box::new)?;
    Ok((reply.into_inner(), channel))
}

fn authorize<T>(request: &mut Request<T>, host: &Host) {
    let token: Result<MetadataValue<Ascii>, _> = format!("Bearer {}", host.token()).parse();
    if let Ok(token) = token {
        request.metadata_mut().insert("authorization", token);
    }
}

async fn send(sender: &mpsc::Sender<AgentMessage>, message: Message) -> Result<(), SessionEnd> {
    let message = AgentMessage {
        message: Some(message),
    };
    match timeout(PATIENCE, sender.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(SessionEnd::Stuck),
    }
}

/// The heartbeat, and samples since the last.
async fn report(host: &Host, sender: &mpsc::Sender<AgentMessage>) -> Result<(), SessionEnd> {
    let said = host.second();
    let heartbeat = Heartbeat {
        cpu_load: said.load,
        memory_free_bytes: said.memory_free_bytes,
        in_flight: 0,
        leaving: false,
    };
    send(sender, Message::Heartbeat(heartbeat)).await?;
    if !said.links.is_empty() {
        let samples = LinkSamples {
            samples: said.links,
        };
        send(sender, Message::Links(samples)).await?;
    }
    said.changes.told();
    if !said.segments.is_empty() {
        let timings = SegmentTimings {
            timings: said.segments,
        };
        send(sender, Message::Segments(timings)).await?;
    }
    if !said.requests.is_empty() {
        let models = said.requests;
        send(sender, Message::Requests(RequestStats { models })).await?;
    }
    Ok(())
}

fn obey(
    host: &Arc<Host>,
    order: OperatorMessage,
    channel: &Channel,
    sender: &mpsc::Sender<AgentMessage>,
) {
    match order.message {
        Some(Order::Peers(list)) => {
            let peers = list.peers.into_iter().map(|peer| Peer {
                node: peer.node,
                // Without an interval from the operator, peers are probed in turn.
                every: (peer.every_ms > 0).then(|| Duration::from_millis(peer.every_ms.into())),
            });
            host.set_peers(peers.collect());
        }
        Some(Order::Prepare(job)) => {
            let (host, channel, sender) = (Arc::clone(host), channel.clone(), sender.clone());
            tokio::spawn(async move { prepare(&host, channel, job, &sender).await });
        }
        // The other messages require nothing of a host that does not compute.
        _ => {}
    }
}

/// Puts a model prepared earlier into the store, as if it were prepared now.
async fn prepare(host: &Host, channel: Channel, job: Prepare, sender: &mpsc::Sender<AgentMessage>) {
    let update = async |update: Update| {
        let job = job.job.clone();
        let update = Some(update);
        // If the session has ended, the next one gets the job again.
        let _ = send(sender, Message::Prepare(PrepareUpdate { job, update })).await;
    };
    let Some(model) = host.library().find(&job.uri) else {
        let failed = PrepareFailed {
            reason: "FetchFailed".to_owned(),
            message: format!("{} is no model of this fleet", job.uri),
            retryable: false,
        };
        return update(Update::Failed(failed)).await;
    };
    let progress = PrepareProgress {
        step: "Storing".to_owned(),
        ..PrepareProgress::default()
    };
    update(Update::Progress(progress)).await;
    let outcome = match store(host, channel, model).await {
        Ok(()) => Update::Done(PrepareDone {
            manifest_digest: model.manifest.to_string(),
        }),
        Err(status) => Update::Failed(PrepareFailed {
            reason: "PrepareFailed".to_owned(),
            message: status.message().to_owned(),
            retryable: true,
        }),
    };
    update(outcome).await;
}

async fn store(host: &Host, channel: Channel, model: &Prepared) -> Result<(), Status> {
    let mut client = ControlClient::new(channel);
    for (digest, content) in &model.blobs {
        let chunk = PutBlobChunk {
            digest: digest.to_string(),
            data: content.clone().into(),
        };
        let mut request = Request::new(tokio_stream::once(chunk));
        authorize(&mut request, host);
        client.put_blob(request).await?;
    }
    Ok(())
}

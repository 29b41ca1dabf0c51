use super::SessionConfig;
use super::report::{changed_inventory, inbound_sample, messages, whole_inventory};
use crate::causes::with_causes;
use crate::measure::{CpuMeter, memory_free_bytes};
use crate::net::{Backoff, DialError, Profile, Target, bearer, connect};
use crate::telemetry::Window;
use crate::uplink::Uplink;
use bytes::Bytes;
use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::control::agent_message::Message;
use lamina_proto::control::control_client::ControlClient;
use lamina_proto::control::operator_message::Message as Order;
use lamina_proto::control::{AgentMessage, Heartbeat, Hello, HostReport, OperatorMessage};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

/// One heartbeat a second.
const BEAT: Duration = Duration::from_secs(1);
/// An operator that reads no message for this long is gone.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time for the operator's last message to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A session that lasted this long was good: the next pause starts small.
const GOOD_SESSION: Duration = Duration::from_secs(10);
/// An agent whose node has another session is being replaced. It tries again, in case the other one
/// ends first: the operator gives the session to the younger of the two.
const YIELD: Duration = Duration::from_secs(5);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("cannot connect")]
    Connect(#[from] DialError),
    #[error("the operator refused the session")]
    Refused(#[source] Box<Status>),
    #[error("the operator ended the session")]
    Ended,
    #[error("the operator does not accept messages")]
    Stuck,
    #[error("the operator moved")]
    Moved,
    #[error("another agent of this node has the session; asking again in {} s", YIELD.as_secs())]
    TakenOver,
}

impl From<Status> for SessionEnd {
    fn from(status: Status) -> Self {
        match status.code() {
            // The operator's answer for a session that was replaced by a newer one.
            Code::Aborted => Self::TakenOver,
            _ => Self::Refused(Box::new(status)),
        }
    }
}

/// Keeps a session open for as long as the process lives.
pub(super) async fn run(config: SessionConfig) {
    let mut endpoint = config.endpoint.subscribe();
    let mut meter = CpuMeter::new(config.cpu_millis);
    let mut backoff = Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE);
    loop {
        let address = endpoint.borrow_and_update().clone();
        if address.is_empty() {
            if endpoint.changed().await.is_err() {
                return;
            }
            continue;
        }
        // The operator would refuse it, and others would consider this host lost.
        config.endpoint.trust().ready().await;
        let begin = tokio::time::Instant::now();
        let end = session(&config, &address, &mut endpoint, &mut meter).await;
        if begin.elapsed() >= GOOD_SESSION || matches!(end, SessionEnd::Moved) {
            backoff.reset();
        }
        let cause = std::error::Error::source(&end).map(ToString::to_string);
        tracing::info!(operator = address, cause, "session ended: {end}");
        let pause = match end {
            SessionEnd::TakenOver => YIELD,
            _ => backoff.next_wait(),
        };
        // A new address is worth an immediate attempt.
        let _ = timeout(pause, endpoint.changed()).await;
    }
}

async fn session(
    config: &SessionConfig,
    address: &str,
    endpoint: &mut watch::Receiver<String>,
    meter: &mut CpuMeter,
) -> SessionEnd {
    let (sender, receiver) = mpsc::channel(64);
    let opened = timeout(PATIENCE * 2, open(config, address, receiver, &sender)).await;
    let mut orders = match opened {
        Ok(Ok(orders)) => orders,
        Ok(Err(end)) => return end,
        Err(_) => return SessionEnd::Stuck,
    };
    tracing::info!(operator = address, "session open");
    config.is_heard.send_replace(true);
    let end = attend(config, address, endpoint, meter, &mut orders, &sender).await;
    config.is_heard.send_replace(false);
    end
}

/// Runs an open session, and determines why it ended.
async fn attend(
    config: &SessionConfig,
    address: &str,
    endpoint: &mut watch::Receiver<String>,
    meter: &mut CpuMeter,
    orders: &mut Streaming<OperatorMessage>,
    sender: &mpsc::Sender<AgentMessage>,
) -> SessionEnd {
    match talk(config, address, endpoint, meter, orders, sender).await {
        SessionEnd::Stuck => why_stuck(orders).await,
        end => end,
    }
}

/// The operator's final status. It closes both directions at once, and the outgoing one may be seen
/// to close first.
async fn why_stuck(orders: &mut Streaming<OperatorMessage>) -> SessionEnd {
    let said = async {
        loop {
            match orders.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return SessionEnd::Ended,
                Err(status) => return status.into(),
            }
        }
    };
    timeout(LAST_WORDS, said).await.unwrap_or(SessionEnd::Stuck)
}

/// Sends reports and handles messages until one of the two fails.
async fn talk(
    config: &SessionConfig,
    address: &str,
    endpoint: &mut watch::Receiver<String>,
    meter: &mut CpuMeter,
    orders: &mut Streaming<OperatorMessage>,
    sender: &mpsc::Sender<AgentMessage>,
) -> SessionEnd {
    let held = whole_inventory(config.blobs.held()).map(Message::Blobs);
    let updates = config.jobs.last_updates().into_iter().map(Message::Prepare);
    for message in held.chain(updates) {
        if send(sender, message).await.is_err() {
            return SessionEnd::Stuck;
        }
    }
    let mut operator_node = String::new();
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut says_goodbye = config.leaving.is_cancelled();
    let mut reports = config.uplink.as_ref().map(Uplink::reports);
    loop {
        tokio::select! {
            // Leaving is reported at once.
            () = config.leaving.cancelled(), if !says_goodbye => {
                says_goodbye = true;
                beat.reset_immediately();
            }
            _ = beat.tick() => {
                if report(config, meter, &operator_node, sender).await.is_err() {
                    return SessionEnd::Stuck;
                }
            }
            order = orders.message() => match order {
                Ok(Some(order)) => obey(config, order, &mut operator_node),
                Ok(None) => return SessionEnd::Ended,
                Err(status) => return status.into(),
            },
            // A dead or changed link is reported at once.
            () = config.prober.news() => {
                for message in messages(&Window::default(), config.prober.drain()) {
                    if send(sender, message).await.is_err() {
                        return SessionEnd::Stuck;
                    }
                }
            }
            Some(update) = config.jobs.next() => {
                if send(sender, Message::Prepare(update)).await.is_err() {
                    return SessionEnd::Stuck;
                }
            }
            status_json = next_report(&mut reports) => {
                if send(sender, Message::Report(HostReport { status_json })).await.is_err() {
                    return SessionEnd::Stuck;
                }
            }
            changed = endpoint.changed() => {
                if changed.is_err() || *endpoint.borrow() != address {
                    return SessionEnd::Moved;
                }
            }
        }
    }
}

/// The next report; never, if reports go to the API server.
async fn next_report(reports: &mut Option<watch::Receiver<Option<Vec<u8>>>>) -> Bytes {
    let Some(reports) = reports else {
        return std::future::pending().await;
    };
    loop {
        if reports.changed().await.is_err() {
            return std::future::pending().await;
        }
        let report = reports.borrow_and_update().clone();
        if let Some(report) = report {
            return report.into();
        }
    }
}

/// Time of the first call, which is the start of the process.
fn started_unix_ms() -> u64 {
    static STARTED: OnceLock<u64> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        since_1970.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX))
    })
}

/// Connects and says hello.
async fn open(
    config: &SessionConfig,
    address: &str,
    receiver: mpsc::Receiver<AgentMessage>,
    sender: &mpsc::Sender<AgentMessage>,
) -> Result<Streaming<OperatorMessage>, SessionEnd> {
    let operator = Target::Operator { address };
    let channel = connect(operator, &Profile::SESSION, config.endpoint.trust()).await?;
    let hello = Hello {
        node: config.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        address: config.address.clone(),
        started_unix_ms: started_unix_ms(),
    };
    // The channel is empty and has room for more than one.
    let _ = send(sender, Message::Hello(hello)).await;
    let mut request = Request::new(ReceiverStream::new(receiver));
    if let Some(file) = &config.token_file {
        // Without one the operator returns its error.
        match bearer(file).await {
            Ok(token) => {
                request.metadata_mut().insert("authorization", token);
            }
            Err(error) => tracing::debug!(error = with_causes(&error), "no token to show"),
        }
    }
    let reply = ControlClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .session(request)
        .await?;
    Ok(reply.into_inner())
}

async fn send(sender: &mpsc::Sender<AgentMessage>, message: Message) -> Result<(), ()> {
    let message = AgentMessage {
        message: Some(message),
    };
    match timeout(PATIENCE, sender.send(message)).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(()),
    }
}

/// The heartbeat, and all observations since the last one.
async fn report(
    config: &SessionConfig,
    meter: &mut CpuMeter,
    operator_node: &str,
    sender: &mpsc::Sender<AgentMessage>,
) -> Result<(), ()> {
    let heartbeat = Heartbeat {
        cpu_load: meter.sample(),
        memory_free_bytes: memory_free_bytes(),
        in_flight: config.telemetry.requests_in_flight(),
        leaving: config.leaving.is_cancelled(),
    };
    send(sender, Message::Heartbeat(heartbeat)).await?;
    let window = config.telemetry.drain();
    let prober = &config.prober;
    prober.passive(&window.transfers);
    let mut links = prober.drain();
    let arrived = config.blobs.inbound().drain();
    let rtt = prober.rtt(operator_node).unwrap_or(0.0);
    links.extend(inbound_sample(operator_node, &arrived, rtt));
    let changes = changed_inventory(config.blobs.changes()).map(Message::Blobs);
    for message in messages(&window, links).into_iter().chain(changes) {
        send(sender, message).await?;
    }
    Ok(())
}

fn obey(config: &SessionConfig, order: OperatorMessage, operator_node: &mut String) {
    match order.message {
        Some(Order::Welcome(welcome)) => *operator_node = welcome.operator_node,
        Some(Order::Peers(list)) => {
            config.prober.set_targets(&list.peers);
            let peers = list.peers.into_iter().map(|p| (p.node, p.address));
            config.peers.replace(peers);
        }
        Some(Order::Prepare(job)) => config.jobs.begin(job),
        Some(Order::CancelPrepare(cancel)) => config.jobs.cancel(&cancel.job),
        Some(Order::Directory(directory)) => config.directory.apply(directory),
        Some(Order::ApiKeys(keys)) => config.keys.apply(keys),
        Some(Order::Wish(wish)) => {
            if let Some(uplink) = &config.uplink {
                uplink.hear_wish(&wish.compute_node_json);
            }
        }
        Some(Order::Authorities(authorities)) => {
            if let Some(uplink) = &config.uplink {
                uplink.hear_authorities(authorities.pem);
            }
        }
        Some(Order::WantBlobs(wanted)) => {
            let digests = wanted.digests.iter().filter_map(|d| d.parse().ok());
            config.blobs.want(digests);
        }
        // A newer operator may send more.
        None => {}
    }
}

#[cfg(test)]
mod tests;

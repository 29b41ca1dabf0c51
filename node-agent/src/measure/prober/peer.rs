//! One peer: its connection, its round trips, its bandwidth.

use super::pace::{Pace, patience};
use super::{Inner, Target};
use crate::measure::link_memory::{LinkMemory, Seen, fitting};
use crate::measure::lost_time::thread_waited;
use crate::net::{self as dial, DialError, Profile, Trust};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _, pending};
use futures::stream::FuturesUnordered;
use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::hop::PingRequest;
use lamina_proto::hop::hop_client::HopClient;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;

/// A later answer does not count. One that is missing but arrives in this time shows that the peer
/// is there, behind a queue.
const LATE: Duration = Duration::from_secs(10);
/// A probe that takes longer is aborted; the link is slower than that.
const PROBE_PATIENCE: Duration = Duration::from_secs(20);
/// Repetitions end after this total time.
const ENOUGH: Duration = Duration::from_millis(300);
/// Most unanswered questions at once.
const MOST_OPEN: usize = 6;

/// The outcome of a question.
enum Answer {
    Came(Seen),
    /// Not in time. It may still arrive.
    Missing(BoxFuture<'static, Option<Seen>>),
    /// The connection was refused.
    Refused,
    /// It was missing, and never arrived.
    Never,
}

/// The connection to a peer, opened on demand. Clones share it.
#[derive(Debug, Clone)]
struct Line {
    to: Arc<Peer>,
    client: Arc<OnceCell<HopClient<Channel>>>,
}

/// The other end.
#[derive(Debug)]
struct Peer {
    node: String,
    address: String,
    trust: Trust,
}

struct Watch {
    inner: Arc<Inner>,
    node: String,
    line: Line,
    pace: Pace,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    measuring: Option<BoxFuture<'static, ()>>,
}

/// Asks a peer; never returns.
pub(super) async fn watch(inner: Arc<Inner>, node: String, target: Target) {
    let pace = Pace::new(target.every, rand::random(), inner.now());
    let line = Line::to(Peer {
        node: node.clone(),
        address: target.address,
        trust: inner.trust.clone(),
    });
    let mut watch = Watch {
        inner,
        node,
        line,
        pace,
        answers: FuturesUnordered::new(),
        measuring: None,
    };
    loop {
        watch.step().await;
    }
}

impl Watch {
    async fn step(&mut self) {
        let next = self.inner.start + self.pace.next();
        let (answers, measuring) = (&mut self.answers, &mut self.measuring);
        let measured = async {
            match measuring {
                Some(measuring) => measuring.await,
                None => pending().await,
            }
        };
        tokio::select! {
            Some(answer) = answers.next() => self.heard(answer),
            () = measured => self.measuring = None,
            () = sleep_until(next) => self.ask(),
            // It need not wait for the next answer, which may be behind those requests.
            () = self.inner.distrusted.notified() => self.measure_when_due(),
        }
    }

    fn ask(&mut self) {
        let behind_blobs = self.inner.telemetry.blobs().was_since(Instant::now());
        let patience = patience(self.inner.rtt(&self.node), behind_blobs);
        self.pace.asked(patience, self.inner.now());
        if self.answers.len() < MOST_OPEN {
            let call = round_trip(Arc::clone(&self.inner), self.line.clone());
            self.answers.push(within(patience, call.boxed()).boxed());
        }
    }

    fn heard(&mut self, answer: Answer) {
        match answer {
            Answer::Came(seen) => {
                // Other questions would say the same.
                self.answers.clear();
                self.pace.answered(rand::random(), self.inner.now());
                self.inner.answered(&self.node, seen);
                self.measure_when_due();
            }
            Answer::Missing(call) => {
                let late = timeout(LATE, call).map(|call| match call {
                    Ok(Some(seen)) => Answer::Came(seen),
                    _ => Answer::Never,
                });
                self.answers.push(late.boxed());
                self.missed();
                if self.pace.is_stuck() {
                    self.line.hang_up();
                }
            }
            Answer::Refused => {
                self.line.hang_up();
                self.missed();
            }
            Answer::Never => {}
        }
    }

    fn measure_when_due(&mut self) {
        let is_free = self.measuring.is_none() && !self.pace.is_gone();
        if is_free && self.inner.due(&self.node).is_some() {
            let (inner, line) = (Arc::clone(&self.inner), self.line.clone());
            let measure = measure(inner, self.node.clone(), line);
            self.measuring = Some(measure.boxed());
        }
    }

    fn missed(&mut self) {
        self.pace.failed(self.inner.now());
        self.inner.missed(&self.node);
        if self.pace.is_gone() {
            // It must not delay the measurements of others.
            self.measuring = None;
        }
    }
}

/// The outcome of a call within its `patience`.
async fn within(patience: Duration, mut call: BoxFuture<'static, Option<Seen>>) -> Answer {
    match timeout(patience, &mut call).await {
        Ok(Some(seen)) => Answer::Came(seen),
        Ok(None) => Answer::Refused,
        Err(_) => Answer::Missing(call),
    }
}

impl Line {
    fn to(peer: Peer) -> Self {
        Self {
            to: Arc::new(peer),
            client: Arc::default(),
        }
    }

    /// Closes the connection; the next question reconnects.
    fn hang_up(&mut self) {
        self.client = Arc::default();
    }

    async fn client(&self) -> Option<HopClient<Channel>> {
        let client = self.client.get_or_try_init(|| connect(&self.to)).await;
        client.ok().cloned()
    }
}

async fn connect(to: &Peer) -> Result<HopClient<Channel>, DialError> {
    let target = dial::Target::Agent {
        node: &to.node,
        address: &to.address,
    };
    let channel = dial::connect(target, &Profile::PROBES, &to.trust).await?;
    Ok(HopClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// An empty round trip; `None` if the peer is gone.
async fn round_trip(inner: Arc<Inner>, line: Line) -> Option<Seen> {
    let mut client = line.client().await?;
    let begin = Instant::now();
    let mut seen = ping(&mut client, 0).await?;
    seen.is_shared = inner.telemetry.blobs().was_since(begin) || inner.measuring.was_since(begin);
    Some(seen)
}

/// A round trip with `bytes` of payload, minus the time in the server; `None` if it failed.
async fn ping(client: &mut HopClient<Channel>, bytes: u64) -> Option<Seen> {
    let payload = Bytes::from(vec![0; usize::try_from(bytes).ok()?]);
    let (begin, waited) = (Instant::now(), thread_waited());
    let reply = client.ping(PingRequest { payload }).await.ok()?;
    let seconds = begin.elapsed().as_secs_f64();
    let lost = thread_waited()
        .zip(waited)
        .map(|(now, then)| now.saturating_sub(then));
    let server = Duration::from_micros(reply.into_inner().server_us).as_secs_f64();
    Some(Seen {
        seconds: (seconds - server).max(0.0),
        lost_seconds: lost.unwrap_or_default().as_secs_f64(),
        is_shared: false,
    })
}

/// Measures the bandwidth in this link's turn, if it is still due, with growing payloads until they
/// take long enough.
async fn measure(inner: Arc<Inner>, node: String, line: Line) {
    let _turn = inner.turn.lock().await;
    let (Some((bytes, repetitions)), Some(client)) = (inner.due(&node), line.client().await) else {
        return;
    };
    let _measuring = inner.measuring.begin();
    let mut probe = Probe {
        inner: &inner,
        node: &node,
        client,
        repetitions,
    };
    let mut next = Some(bytes);
    let mut best = None;
    while let Some(bytes) = next {
        let Some(seen) = probe.fastest(bytes).await else {
            break;
        };
        let rate = inner.with(|state| state.link(&node).bandwidth(bytes, seen.seconds));
        best = rate.map(|_| (bytes, seen)).or(best);
        next = LinkMemory::larger_probe(bytes, rate);
    }
    let told = best.and_then(|(bytes, seen)| Some((bytes, inner.told(&node, bytes, seen)?)));
    if let Some((bytes, rate)) = &told
        && rate.is_news
    {
        // One odd sample is no change; a second one that agrees is.
        let bytes = *bytes.min(&fitting(rate.bytes_per_second));
        if let Some(seen) = probe.fastest(bytes).await {
            inner.told(&node, bytes, seen);
            inner.news.notify_one();
        }
    }
    inner.measured(&node, told.is_some_and(|(_, rate)| !rate.is_bound));
}

/// Payloads to one peer.
struct Probe<'a> {
    inner: &'a Inner,
    node: &'a str,
    client: HopClient<Channel>,
    repetitions: u32,
}

impl Probe<'_> {
    /// The fastest of several payloads, back to back. One before them opens the congestion window.
    /// `None` if one did not arrive.
    async fn fastest(&mut self, bytes: u64) -> Option<Seen> {
        let begin = Instant::now();
        let mut best: Option<Seen> = None;
        for repetition in 0..=self.repetitions {
            let sent = Instant::now();
            let ping = timeout(PROBE_PATIENCE, ping(&mut self.client, bytes));
            let mut seen = ping.await.ok()??;
            seen.is_shared = self.inner.telemetry.blobs().was_since(sent);
            self.inner.spent(self.node, bytes, seen);
            if repetition > 0 && best.is_none_or(|best| seen.seconds < best.seconds) {
                best = Some(seen);
            }
            if best.is_some() && begin.elapsed() > ENOUGH {
                break;
            }
        }
        best
    }
}

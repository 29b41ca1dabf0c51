//! Its own client: cheap beside the agent, and aware of when a request was admitted to the
//! connection, from when on the server is responsible for the time.

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::{Buf as _, Bytes, BytesMut};
use clap::{Args, Subcommand};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, StatusCode};
use lamina_proto::inference::infer_parameter::ParameterChoice;
use lamina_proto::inference::model_infer_request::InferInputTensor;
use lamina_proto::inference::{ModelInferRequest, ModelInferResponse};
use prost::Message as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const SHAPE: [i64; 4] = [1, 3, 224, 224];
/// Different images, so that nothing is answered from a cache.
const IMAGES: u64 = 8;
/// Requests before the measured ones.
const WARM_UP: u64 = 5;
/// Concurrent streams per connection: the server's limit.
const STREAMS: usize = 500;
/// Answers are small; the flow of requests is what counts.
const WINDOW_BYTES: u32 = 1 << 20;

/// Arguments of the client, which prints one JSON object on standard output.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Address of an agent's gRPC port.
    #[arg(long)]
    url: String,
    /// The model, which takes one image of 224 by 224.
    #[arg(long)]
    model: String,
    /// Connections, used in turn.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Deadline in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    deadline: u64,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum What {
    /// This many in flight at any time.
    Closed {
        #[arg(long)]
        in_flight: u64,
        #[arg(long)]
        seconds: u64,
    },
    /// This many at once.
    Burst {
        #[arg(long)]
        count: u64,
    },
}

/// One answer or refusal.
struct Told {
    /// gRPC's code; 0 is an answer.
    code: u32,
    /// Time since the request was admitted to the connection.
    took: Duration,
    /// When it arrived.
    at: Instant,
    hops: Vec<Value>,
}

impl Told {
    const fn is_refusal(&self) -> bool {
        // RESOURCE_EXHAUSTED, UNAVAILABLE
        matches!(self.code, 8 | 14)
    }
}

/// Runs the client and prints the result.
pub(crate) async fn run(args: &LoadArgs) -> Result<()> {
    let client = Arc::new(Client::open(args).await?);
    for number in 0..WARM_UP {
        let told = client.ask(number).await?;
        if told.code != 0 {
            bail!("the first requests were answered with code {}", told.code);
        }
    }
    let began = Instant::now();
    let told = match args.what {
        What::Burst { count } => burst(&client, count).await?,
        What::Closed { in_flight, seconds } => {
            let until = began + Duration::from_secs(seconds);
            closed(&client, in_flight, until).await?
        }
    };
    println!("{}", summary(&told, began));
    Ok(())
}

async fn burst(client: &Arc<Client>, count: u64) -> Result<Vec<Told>> {
    let mut asked = JoinSet::new();
    for number in 0..count {
        let client = Arc::clone(client);
        asked.spawn(async move { client.ask(number).await });
    }
    let all = asked.join_all().await;
    all.into_iter().collect()
}

async fn closed(client: &Arc<Client>, in_flight: u64, until: Instant) -> Result<Vec<Told>> {
    let mut lanes = JoinSet::new();
    for lane in 0..in_flight {
        let client = Arc::clone(client);
        lanes.spawn(async move {
            let mut told = Vec::new();
            let mut number = lane;
            while Instant::now() < until {
                told.push(client.ask(number).await?);
                number += 1;
            }
            Ok::<_, anyhow::Error>(told)
        });
    }
    let mut all = Vec::new();
    for lane in lanes.join_all().await {
        all.extend(lane?);
    }
    Ok(all)
}

fn summary(told: &[Told], began: Instant) -> Value {
    let (answered, others): (Vec<&Told>, Vec<&Told>) = told.iter().partition(|t| t.code == 0);
    let refused: Vec<&Told> = others.iter().copied().filter(|t| t.is_refusal()).collect();
    let last = answered.iter().map(|t| t.at).max().unwrap_or(began);
    let seconds = (last - began).as_secs_f64();
    let mut codes: BTreeMap<String, u64> = BTreeMap::new();
    for other in &others {
        *codes.entry(other.code.to_string()).or_default() += 1;
    }
    let of = |told: &[&Told]| {
        let mut seconds: Vec<f64> = told.iter().map(|t| t.took.as_secs_f64()).collect();
        seconds.sort_by(f64::total_cmp);
        move |share: f64| {
            let at = (seconds.len() as f64 * share) as usize;
            seconds
                .get(at.min(seconds.len().saturating_sub(1)))
                .copied()
        }
    };
    let (answers, refusals) = (of(&answered), of(&refused));
    json!({
        "sent": told.len(),
        "answered": answered.len(),
        "seconds": seconds,
        "rate": answered.len() as f64 / seconds.max(1e-9),
        "p50": answers(0.5).unwrap_or_default(),
        "p99": answers(0.99).unwrap_or_default(),
        "refused": refused.len(),
        "refusedP50": refusals(0.5),
        "refusedP99": refusals(0.99),
        "codes": codes,
        "hops": medians(&answered),
    })
}

/// The median of each timing of each host of the path.
fn medians(answered: &[&Told]) -> Vec<Value> {
    let hops = answered.first().map_or(0, |told| told.hops.len());
    let median = |hop: usize, key: &str| {
        let of = answered
            .iter()
            .filter_map(|told| told.hops.get(hop)?.get(key)?.as_f64());
        let mut all: Vec<f64> = of.collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    };
    let keys = |hop: usize| {
        let first = answered
            .first()
            .and_then(|told| told.hops.get(hop)?.as_object());
        first.into_iter().flat_map(|o| o.keys().cloned())
    };
    let hop = |hop: usize| -> Value {
        let figures = keys(hop).filter_map(|key| Some((key.clone(), json!(median(hop, &key)?))));
        Value::Object(figures.collect())
    };
    (0..hops).map(hop).collect()
}

struct Client {
    lanes: Vec<Lane>,
    bodies: Vec<Bytes>,
    authority: String,
    timeout: String,
}

struct Lane {
    send: SendRequest<Bytes>,
    places: Semaphore,
}

impl Client {
    async fn open(args: &LoadArgs) -> Result<Self> {
        let mut lanes = Vec::new();
        for _ in 0..args.connections.max(1) {
            let socket = TcpStream::connect(&args.url).await?;
            socket.set_nodelay(true)?;
            let opened = h2::client::Builder::new()
                .initial_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES * 8)
                .handshake(socket);
            let (send, connection) = opened.await.context("no HTTP/2 there")?;
            tokio::spawn(connection);
            lanes.push(Lane {
                send,
                places: Semaphore::new(STREAMS),
            });
        }
        let bodies = (0..IMAGES).map(|seed| body(&args.model, seed));
        Ok(Self {
            lanes,
            bodies: bodies.collect(),
            authority: args.url.clone(),
            timeout: format!("{}m", args.deadline),
        })
    }

    async fn ask(&self, number: u64) -> Result<Told> {
        let at = usize::try_from(number).unwrap_or_default();
        let lane = &self.lanes[at % self.lanes.len()];
        let body = self.bodies[at % self.bodies.len()].clone();
        let _place = lane.places.acquire().await?;
        let mut send = lane.send.clone().ready().await?;
        let began = Instant::now();
        let path = "/inference.GRPCInferenceService/ModelInfer";
        let request = Request::post(format!("http://{}{path}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", &self.timeout)
            .body(())?;
        let (response, stream) = send.send_request(request, false)?;
        let sending = tokio::spawn(write(stream, body));
        let response = response.await;
        // A refused request may still be sending its message.
        sending.abort();
        let response = response?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            bail!("HTTP status {}", head.status);
        }
        let (code, message) = match code(&head.headers) {
            Some(code) => (code, Bytes::new()),
            None => read(body).await?,
        };
        let (took, at) = (began.elapsed(), Instant::now());
        let hops = if code == 0 {
            hops(message)?
        } else {
            Vec::new()
        };
        Ok(Told {
            code,
            took,
            at,
            hops,
        })
    }
}

/// A request for `model` as one gRPC message.
fn body(model: &str, seed: u64) -> Bytes {
    let elements = SHAPE.iter().product::<i64>();
    let values = (0..elements as u64).map(|at| {
        let mixed = (at + seed * 7919).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        mixed as f32 / (1_u64 << 24) as f32 - 0.5
    });
    let raw: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    let request = ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: "image".to_owned(),
            datatype: "FP32".to_owned(),
            shape: SHAPE.to_vec(),
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![raw.into()],
        ..ModelInferRequest::default()
    };
    let message = request.encode_to_vec();
    let mut frame = vec![0];
    frame.extend_from_slice(
        &u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    frame.extend_from_slice(&message);
    frame.into()
}

/// Writes `rest` as fast as flow control allows.
async fn write(mut stream: SendStream<Bytes>, mut rest: Bytes) -> Result<()> {
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let room = poll_fn(|context| stream.poll_capacity(context)).await;
        let room = room.ok_or_else(|| anyhow!("the stream was closed"))??;
        let part = rest.split_to(room.min(rest.len()));
        stream.send_data(part, rest.is_empty())?;
    }
    Ok(())
}

/// The code and the message after it.
async fn read(mut body: RecvStream) -> Result<(u32, Bytes)> {
    let mut message = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        message.extend_from_slice(&part);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    let code = code(&trailers).context("no grpc-status")?;
    Ok((code, message.freeze()))
}

fn code(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

fn hops(mut message: Bytes) -> Result<Vec<Value>> {
    // The message's prefix: the compression flag and the length.
    message.advance(5.min(message.len()));
    let response = ModelInferResponse::decode(message)?;
    let timing = response.parameters.get("lamina_timing");
    let choice = timing.and_then(|timing| timing.parameter_choice.as_ref());
    let Some(ParameterChoice::StringParam(text)) = choice else {
        return Ok(Vec::new());
    };
    Ok(serde_json::from_str(text)?)
}

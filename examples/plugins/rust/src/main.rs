//! An example strategy as a separate process: the first blocks stay on the
//! entry, the others run on one node, and every such cut is tried.
//!
//! ```sh
//! cargo run -p lamina-plugin-one-cut -- --listen 127.0.0.1:50051
//! ```

mod one_cut;

use anyhow::Result;
use clap::Parser;
use lamina_placement::Problem;
use lamina_proto::strategy::strategy_server::{Strategy, StrategyServer};
use lamina_proto::strategy::{
    DescribeReply, DescribeRequest, PROTOCOL_VERSION, SolveReply, SolveRequest, StrategyInfo,
};
use one_cut::{Found, Search};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The name configured in the operator.
const NAME: &str = "one-cut";
/// Answers waiting to be sent.
const QUEUE: usize = 4;
/// The host sends problems of up to 64 MiB.
const MAX_QUESTION_BYTES: usize = 80 << 20;

/// Keeps the first blocks on the entry and tries every cut and every node.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Where to listen; port 0 takes a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> Result<()> {
    let listener = TcpListener::bind(Cli::parse().listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let service = StrategyServer::new(OneCut).max_decoding_message_size(MAX_QUESTION_BYTES);
    Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}

struct OneCut;

#[tonic::async_trait]
impl Strategy for OneCut {
    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<DescribeReply>, Status> {
        Ok(Response::new(DescribeReply {
            protocol_version: PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            strategies: vec![StrategyInfo {
                name: NAME.to_owned(),
                // Any: the checker's own value of the objective is compared.
                objectives: Vec::new(),
                several_workloads: false,
                exits: false,
            }],
        }))
    }

    type SolveStream = ReceiverStream<Result<SolveReply, Status>>;

    async fn solve(
        &self,
        request: Request<SolveRequest>,
    ) -> Result<Response<Self::SolveStream>, Status> {
        let request = request.into_inner();
        let search = search(&request)?;
        let limit = Duration::try_from_secs_f64(request.time_limit_seconds).unwrap_or_default();
        let until = Instant::now() + limit;
        let (send, answers) = mpsc::channel(QUEUE);
        // Sending fails once the call is cancelled, which ends the search.
        tokio::task::spawn_blocking(move || {
            let best = search.run(until, |found| {
                send.blocking_send(Ok(reply(found, false))).is_ok()
            });
            if let Some(best) = best {
                // Fails if the call was cancelled.
                let _ = send.blocking_send(Ok(reply(&best, true)));
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

fn search(request: &SolveRequest) -> Result<Search, Status> {
    let problem: Problem = serde_json::from_str(&request.problem_json)
        .map_err(|e| Status::invalid_argument(format!("the problem cannot be read: {e}")))?;
    if let Some(name) = request.parameters.keys().find(|name| *name != "to") {
        return Err(Status::invalid_argument(format!(
            "unknown parameter `{name}`; it takes `to`, the node behind the cut"
        )));
    }
    Search::new(problem, request.parameters.get("to").cloned()).map_err(Status::failed_precondition)
}

fn reply(found: &Found, last: bool) -> SolveReply {
    SolveReply {
        placements: vec![found.placement.clone()],
        objective: Some(found.objective),
        lower_bound: None,
        last,
    }
}

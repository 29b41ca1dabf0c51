//! Plugins that lie, hang, flood or are no plugins at all, over real sockets. Each costs a message,
//! never the answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test as a whole

mod common;

use common::{example, plugin, problem, question};
use lamina_placement::{Ctx, Problem, Status};
use lamina_plugin_host::{MAX_REPLIES, MAX_REPLY_BYTES, PluginError, Solved};
use lamina_proto::strategy::strategy_server::{Strategy, StrategyServer};
use lamina_proto::strategy::{
    DescribeReply, DescribeRequest, PROTOCOL_VERSION, Placement, Segment, SolveReply, SolveRequest,
    StrategyInfo,
};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status as Wire};

/// Reactions of a plugin, one after the other.
#[derive(Clone)]
enum Act {
    Say(SolveReply),
    Fail(Wire),
    Hang,
}

struct Rogue {
    version: u32,
    script: Vec<Act>,
    heard: Arc<Mutex<Vec<SolveRequest>>>,
    hung_up: mpsc::Sender<()>,
}

#[tonic::async_trait]
impl Strategy for Rogue {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Wire> {
        Ok(Response::new(DescribeReply {
            protocol_version: self.version,
            version: "0".into(),
            strategies: vec![StrategyInfo {
                name: "rogue".into(),
                exits: true,
                ..StrategyInfo::default()
            }],
        }))
    }

    type SolveStream = ReceiverStream<Result<SolveReply, Wire>>;

    async fn solve(
        &self,
        request: Request<SolveRequest>,
    ) -> Result<Response<Self::SolveStream>, Wire> {
        self.heard.lock().unwrap().push(request.into_inner());
        let (send, replies) = mpsc::channel(1);
        let (script, hung_up) = (self.script.clone(), self.hung_up.clone());
        tokio::spawn(async move {
            for act in script {
                let sent = match act {
                    Act::Say(reply) => send.send(Ok(reply)).await,
                    Act::Fail(status) => send.send(Err(status)).await,
                    Act::Hang => {
                        send.closed().await;
                        let _ = hung_up.send(()).await;
                        return;
                    }
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(replies)))
    }
}

/// A rogue that listens.
struct Stage {
    address: String,
    heard: Arc<Mutex<Vec<SolveRequest>>>,
    hung_up: mpsc::Receiver<()>,
}

async fn stage_of(version: u32, script: Vec<Act>) -> Stage {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let heard = Arc::<Mutex<Vec<SolveRequest>>>::default();
    let (tell, hung_up) = mpsc::channel(1);
    let rogue = Rogue {
        version,
        script,
        heard: Arc::clone(&heard),
        hung_up: tell,
    };
    let service = StrategyServer::new(rogue);
    let server = Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Stage {
        address,
        heard,
        hung_up,
    }
}

async fn stage(script: Vec<Act>) -> Stage {
    stage_of(PROTOCOL_VERSION, script).await
}

async fn asked(address: &str, problem: Problem, seconds: f64) -> Solved {
    let plugin = plugin("rogue", address, seconds);
    let solved = plugin.solve(&question(problem), &Ctx::unlimited()).await;
    solved.unwrap()
}

/// The failure of a plugin with this script, after which a good answer is returned.
async fn fallback(script: Vec<Act>) -> (PluginError, String) {
    let stage = stage(script).await;
    fell_back(asked(&stage.address, problem(), 20.0).await)
}

fn fell_back(solved: Solved) -> (PluginError, String) {
    let trouble = solved.trouble.expect("something is wrong");
    assert!(trouble.fell_back);
    assert_eq!(solved.solution.strategy, "optimal");
    assert_eq!(solved.solution.certificate.status, Status::Optimal);
    assert_eq!(solved.claimed_lower_bound, None);
    let text = trouble.to_string();
    let start = "strategy plugin/rogue fell back to optimal: the plugin at http://127.0.0.1:";
    assert!(text.starts_with(start), "{text}");
    (trouble.cause, text)
}

fn answer(segments: &[(&str, &[u32])]) -> SolveReply {
    SolveReply {
        placements: vec![Placement {
            workload: "net".into(),
            segments: segments
                .iter()
                .map(|(node, blocks)| Segment {
                    node: (*node).to_owned(),
                    blocks: blocks.to_vec(),
                })
                .collect(),
            exit_rows: Vec::new(),
        }],
        ..SolveReply::default()
    }
}

fn good() -> SolveReply {
    answer(&[("cam-1", &[0, 1]), ("edge-1", &[2])])
}

fn better() -> SolveReply {
    answer(&[("cam-1", &[0]), ("edge-1", &[1, 2])])
}

fn path(solved: &Solved) -> String {
    solved.solution.placements[0].path()
}

#[tokio::test]
async fn the_last_good_answer_counts_and_its_figures_are_ours() {
    let mut last = better();
    last.last = true;
    // Messages after the last one are not awaited.
    let mut stage = stage(vec![Act::Say(good()), Act::Say(last), Act::Hang]).await;
    let solved = asked(&stage.address, problem(), 60.0).await;
    assert!(solved.trouble.is_none());
    assert_eq!(path(&solved), "cam-1[0]→edge-1[1-2]");
    assert_eq!(solved.solution.certificate.status, Status::Feasible);
    assert!(solved.solution.metrics.unwrap().latency_seconds > 0.0);
    assert_eq!(stage.hung_up.recv().await, Some(()));
    let heard = stage.heard.lock().unwrap();
    assert_eq!(heard[0].strategy, "rogue");
    assert_eq!(heard[0].seed, 1);
    assert!((50.0..60.0).contains(&heard[0].time_limit_seconds));
    let sent: Problem = serde_json::from_str(&heard[0].problem_json).unwrap();
    assert_eq!(sent, problem());
}

#[tokio::test]
async fn a_placement_that_breaks_a_constraint_is_dropped() {
    let everything_in_front = answer(&[("cam-1", &[0, 1, 2])]);
    let (cause, text) = fallback(vec![Act::Say(everything_in_front)]).await;
    assert_eq!(cause.kind(), "Wrong");
    assert!(
        text.contains(
            "gave a wrong answer: net: block 2 cannot run on cam-1: it is forbidden there"
        ),
        "{text}"
    );
}

#[tokio::test]
async fn wrong_numbers_refute_the_answer() {
    for lie in [1e-6, f64::NAN] {
        let mut reply = good();
        reply.objective = Some(lie);
        let (cause, text) = fallback(vec![Act::Say(reply)]).await;
        assert_eq!(cause.kind(), "Wrong");
        assert!(text.contains("claim refuted: objective"), "{text}");
    }
    let mut reply = good();
    reply.lower_bound = Some(1e6);
    let (_, text) = fallback(vec![Act::Say(reply)]).await;
    assert!(text.contains("lower bound 1000000, but"), "{text}");
}

#[tokio::test]
async fn a_lie_among_good_answers_is_told_and_not_used() {
    let stage = stage(vec![
        Act::Say(good()),
        Act::Say(answer(&[("moon", &[0, 1, 2])])),
    ])
    .await;
    let solved = asked(&stage.address, problem(), 20.0).await;
    assert_eq!(path(&solved), "cam-1[0-1]→edge-1[2]");
    let trouble = solved.trouble.unwrap();
    assert!(!trouble.fell_back);
    let text = trouble.to_string();
    assert!(
        text.contains("block 0 cannot run on moon: unknown node"),
        "{text}"
    );
}

#[tokio::test]
async fn a_bound_is_passed_on_as_a_claim_only() {
    let mut reply = good();
    reply.lower_bound = Some(0.001);
    let stage = stage(vec![Act::Say(reply)]).await;
    let solved = asked(&stage.address, problem(), 20.0).await;
    assert!(solved.trouble.is_none());
    assert_eq!(solved.claimed_lower_bound, Some(0.001));
    assert_eq!(solved.solution.certificate.lower_bound, None);
}

#[tokio::test]
async fn one_that_hangs_costs_its_timeout() {
    let mut stage = stage(vec![Act::Hang]).await;
    let solved = asked(&stage.address, problem(), 0.3).await;
    let (cause, text) = fell_back(solved);
    assert!(matches!(cause, PluginError::Deadline { .. }));
    assert!(
        text.ends_with("gave no usable answer within 0.3 s"),
        "{text}"
    );
    // And it sees the cancellation.
    assert_eq!(stage.hung_up.recv().await, Some(()));
}

#[tokio::test]
async fn one_that_hangs_behind_a_good_answer_has_answered() {
    let stage = stage(vec![Act::Say(good()), Act::Hang]).await;
    let solved = asked(&stage.address, problem(), 0.5).await;
    assert!(solved.trouble.is_none());
    assert_eq!(path(&solved), "cam-1[0-1]→edge-1[2]");
}

#[tokio::test]
async fn a_cancelled_question_ends_at_once() {
    let stage = stage(vec![Act::Hang]).await;
    let plugin = plugin("rogue", &stage.address, 60.0);
    let ctx = Ctx::until(Instant::now() + Duration::from_secs(600));
    let cancel = ctx.cancel_handle();
    let asked = question(problem());
    let (solved, ()) = tokio::join!(plugin.solve(&asked, &ctx), async {
        while stage.heard.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.store(true, Ordering::Relaxed);
    });
    let trouble = solved.unwrap().trouble.unwrap();
    assert!(matches!(trouble.cause, PluginError::Cancelled));
}

#[tokio::test]
async fn another_version_is_not_asked() {
    let stage = stage_of(7, vec![Act::Say(good())]).await;
    let (_, text) = fell_back(asked(&stage.address, problem(), 20.0).await);
    assert!(
        text.contains("speaks version 7 of the protocol, this is version 1"),
        "{text}"
    );
    assert!(stage.heard.lock().unwrap().is_empty());
}

#[tokio::test]
async fn too_large_and_too_many_are_too_much() {
    let mut huge = good();
    huge.placements[0].workload = "x".repeat(MAX_REPLY_BYTES);
    let (cause, text) = fallback(vec![Act::Say(huge)]).await;
    assert_eq!(cause.kind(), "Broke");
    assert!(text.contains("message length too large"), "{text}");
    let flood = vec![Act::Say(SolveReply::default()); MAX_REPLIES + 1];
    let (cause, _) = fallback(flood).await;
    assert!(matches!(cause, PluginError::TooMany(_)));
}

#[tokio::test]
async fn no_placement_and_no_wish_to_answer() {
    let (cause, _) = fallback(Vec::new()).await;
    assert!(matches!(cause, PluginError::NoAnswer));
    let no = Wire::failed_precondition("chains\nonly");
    let (_, text) = fallback(vec![Act::Fail(no)]).await;
    assert!(text.ends_with("refused: chains only"), "{text}");
    let broken = Wire::internal("IndexError: list index out of range");
    let (_, text) = fallback(vec![Act::Fail(broken)]).await;
    assert!(
        text.ends_with("broke off (Internal): IndexError: list index out of range"),
        "{text}"
    );
}

#[tokio::test]
async fn exits_are_chosen_by_their_rows() {
    let mut reply = good();
    reply.placements[0].exit_rows = vec![1];
    let stage = stage(vec![Act::Say(reply)]).await;
    let solved = asked(&stage.address, example(), 20.0).await;
    assert!(solved.trouble.is_none(), "{}", solved.trouble.unwrap());
    assert_eq!(solved.solution.placements[0].thresholds, [0.9]);
}

#[tokio::test]
async fn what_is_no_grpc_server_is_told_apart() {
    for greeting in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0xff; 64], &[]] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let serve = tokio::spawn(async move {
            let (mut call, _) = listener.accept().await.unwrap();
            let _ = call.write_all(greeting).await;
            let _ = call.read(&mut [0; 64]).await;
        });
        let (cause, text) = fell_back(asked(&address, problem(), 20.0).await);
        let kind = cause.kind();
        assert!(
            ["Unreachable", "Stranger"].contains(&kind),
            "{kind}: {text}"
        );
        serve.await.unwrap();
    }
}

#[tokio::test]
async fn an_invalid_problem_reaches_no_plugin() {
    let stage = stage(vec![Act::Say(good())]).await;
    let mut bad = problem();
    bad.workloads[0].rate_per_second = f64::NAN;
    let plugin = plugin("rogue", &stage.address, 20.0);
    let error = plugin.solve(&question(bad), &Ctx::unlimited()).await;
    assert!(error.unwrap_err().to_string().contains("invalid"));
    assert!(stage.heard.lock().unwrap().is_empty());
}

/// The example for plugin authors has every field that a host writes.
#[test]
fn the_documented_problem_is_whole() {
    let written: serde_json::Value = serde_json::from_str(common::EXAMPLE).unwrap();
    assert_eq!(serde_json::to_value(example()).unwrap(), written);
    lamina_placement::validate(&example()).unwrap();
}

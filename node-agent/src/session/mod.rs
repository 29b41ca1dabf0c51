//! The stream from this agent to the operator: heartbeats, what was measured, and
//! the jobs that the operator asks for.
//!
//! It runs on a thread of its own with a small runtime, so that a host whose
//! processors are busy with inference still counts as alive.

mod jobs;
mod report;
mod stream;

pub use jobs::{JobStarter, Jobs};

use crate::blobs::InboundTransfers;
use crate::measure::Prober;
use crate::shared::{OperatorEndpoint, Peers, Telemetry};
use std::io;
use std::path::PathBuf;
use std::thread::JoinHandle;

/// What the session speaks for, and what it feeds.
#[derive(Clone)]
pub struct SessionConfig {
    /// Name of this node.
    pub node: String,
    /// Where other agents reach this one, `10.0.0.7:8001`.
    pub address: String,
    /// The projected token that proves which node this is; read anew for each
    /// session, because the kubelet renews it.
    pub token_file: PathBuf,
    /// This process's processor share, in thousandths of a processor.
    pub cpu_millis: u64,
    /// Where the operator listens.
    pub endpoint: OperatorEndpoint,
    /// Filled from the operator's list.
    pub peers: Peers,
    /// Drained each second.
    pub telemetry: Telemetry,
    /// Drained each second.
    pub inbound: InboundTransfers,
    /// Prepare jobs.
    pub jobs: Jobs,
}

/// Starts session and link measuring on a thread of their own, for the rest of
/// the process.
///
/// # Errors
/// The system gives no thread.
pub fn spawn(config: SessionConfig) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || {
            let prober = Prober::new(config.telemetry.clone());
            runtime.block_on(async {
                tokio::join!(prober.clone().run(), stream::run(config, prober));
            });
        })
}

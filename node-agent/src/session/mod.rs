//! The stream from this agent to the operator: heartbeats, measurements, and
//! the jobs that the operator assigns.
//!
//! It runs on its own thread with a small runtime, so that a host whose CPUs are busy with
//! inference still counts as alive.

mod jobs;
mod report;
mod stream;

pub(crate) use jobs::{JobStarter, Jobs};

use crate::blobs::Blobs;
use crate::measure::Prober;
use crate::net::{OperatorEndpoint, Peers};
use crate::serve::access::Keys;
use crate::serve::directory::Directory;
use crate::telemetry::Telemetry;
use crate::uplink::Uplink;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Inputs and outputs of the session.
#[derive(Clone)]
pub(crate) struct SessionConfig {
    /// Name of this node.
    pub(crate) node: String,
    /// Where other agents reach this one, `10.0.0.7:8001`.
    pub(crate) address: String,
    /// The projected token that identifies this node; read for each session, because the kubelet
    /// renews it. `None` on a host that is not a Node.
    pub(crate) token_file: Option<PathBuf>,
    /// Further contents of the session, if the API server cannot be reached.
    pub(crate) uplink: Option<Uplink>,
    /// This process's processor share, in thousandths of a processor.
    pub(crate) cpu_millis: u64,
    /// The operator's address and authentication.
    pub(crate) endpoint: OperatorEndpoint,
    /// Filled from the operator's list.
    pub(crate) peers: Peers,
    /// Drained each second.
    pub(crate) telemetry: Telemetry,
    /// Reported to the operator; its transfers into them are drained each second.
    pub(crate) blobs: Arc<Blobs>,
    /// Filled by the operator's messages.
    pub(crate) directory: Directory,
    /// As [`SessionConfig::directory`].
    pub(crate) keys: Keys,
    /// Measures the links to the peers.
    pub(crate) prober: Prober,
    /// Fires when this process must end.
    pub(crate) leaving: CancellationToken,
    /// Whether the operator listens to this process, and not to a later one of its node.
    pub(crate) is_heard: watch::Sender<bool>,
    /// Prepare jobs.
    pub(crate) jobs: Jobs,
}

/// Starts session and link measurements on a separate thread, for the rest of the
/// process.
///
/// # Errors
/// The system cannot create a thread.
pub(crate) fn spawn(config: SessionConfig) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::join!(config.prober.clone().run(), stream::run(config));
            });
        })
}

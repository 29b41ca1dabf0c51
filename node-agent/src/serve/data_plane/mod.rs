//! The data plane of this host: one gRPC port for users and other agents, and one HTTP port.

mod known;

use crate::blobs::BlobSource;
use crate::door::{Door, DoorLimits, Speech};
use crate::net::{FrontTls, Trust};
use crate::serve::access::Access;
use crate::serve::batches::Batches;
use crate::serve::directory::Directory;
use crate::serve::front::{Front, RoundTrip};
use crate::serve::guard::{Budget, Gate, Guard, Models};
use crate::serve::hop::{Away, Forwarder, HopService, Hops};
use crate::serve::rest::{self, Room};
use crate::serve::routes::Routes;
use crate::serve::slices::Slices;
use crate::serve::verify::{PATIENCE, Verifier};
use crate::telemetry::Telemetry;
use futures::future::join;
use known::Known;
use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::hop::hop_server::HopServer;
use lamina_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::codec::CompressionEncoding;
use tonic::server::NamedService;
use tonic::service::Routes as Services;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Time for requests in flight at a shutdown. Watchers of the health service never end by
/// themselves.
const DRAIN: Duration = Duration::from_secs(25);
/// Period of the search for unused connections.
const TIDY: Duration = Duration::from_secs(30);
/// A connection without a request for this long belongs to an old route.
const UNUSED: Duration = Duration::from_secs(300);

/// The data plane of one agent.
///
/// The caller passes the operator's wish to [`Routes::apply`] and [`Slices::apply`], and
/// reports their statuses; all fields are shared handles.
pub(crate) struct DataPlane {
    /// Name of this host's ComputeNode, as routes and slices spell it.
    pub(crate) node: Arc<str>,
    /// Authenticates other agents, and this host to them.
    pub(crate) trust: Trust,
    /// TLS for clients.
    pub(crate) front: FrontTls,
    /// Models that enter at this host.
    pub(crate) routes: Routes,
    /// The entries of other models.
    pub(crate) directory: Directory,
    /// Distances to other hosts.
    pub(crate) round_trip: RoundTrip,
    /// The slices of this host.
    pub(crate) slices: Slices,
    /// Where probes come from.
    pub(crate) blobs: Arc<dyn BlobSource>,
    /// Telemetry of requests.
    pub(crate) telemetry: Telemetry,
    /// Whether the agent accepts requests at all: registered, and its engine alive. Independent of
    /// single models. Answers ServerReady and the health service; requests are accepted in any
    /// case.
    pub(crate) ready: watch::Receiver<bool>,
    /// Access control.
    pub(crate) access: Access,
    /// Limits on connections.
    pub(crate) limits: DoorLimits,
    /// Memory budget of all requests.
    pub(crate) room: Budget,
    /// Memory limit of a run, in bytes.
    pub(crate) run_memory_bytes: u64,
}

impl DataPlane {
    /// Serves users (Open Inference Protocol), other agents (Hop) and probes (grpc.health.v1) on
    /// `listener`, where agents are distinguished from users by their TLS certificate, and users
    /// over HTTP on `http` if given; verifies revisions, until `shutdown`. Then it accepts no more
    /// connections, and finishes requests in flight, for at most 25 s.
    pub(crate) async fn serve(
        self,
        listener: TcpListener,
        http: Option<TcpListener>,
        shutdown: CancellationToken,
    ) {
        let forwarder = Forwarder {
            node: self.node,
            slices: self.slices,
            telemetry: self.telemetry,
            hops: Hops::new(self.trust.clone()).for_answers_of(self.room.largest_answer()),
            away: Away::default(),
        };
        let batches = Batches::new(self.run_memory_bytes);
        let reading = batches
            .clone()
            .follow(self.routes.clone(), Arc::clone(&self.blobs));
        let verifier = Verifier {
            routes: self.routes.clone(),
            forwarder: forwarder.clone(),
            blobs: self.blobs,
            patience: PATIENCE,
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        let _beside = [
            AbortOnDropHandle::new(tokio::spawn(verifier.run())),
            AbortOnDropHandle::new(tokio::spawn(reading)),
            AbortOnDropHandle::new(tokio::spawn(tidy(forwarder.hops.clone()))),
            AbortOnDropHandle::new(tokio::spawn(report_health(
                reporter,
                self.ready.clone(),
                shutdown.clone(),
            ))),
        ];
        let known: Arc<dyn Models> = Arc::new(Known {
            routes: self.routes.clone(),
            directory: self.directory.clone(),
            slices: forwarder.slices.clone(),
        });
        let service = Front::new(
            self.routes,
            self.directory,
            self.round_trip,
            forwarder.clone(),
            batches,
            self.access.clone(),
            self.ready,
        );
        let over_http = {
            let room = Room::new(self.room.clone(), Arc::clone(&known));
            let (router, shutdown) = (rest::router(service.clone(), room), shutdown.clone());
            let door = Door {
                speech: Speech::Http1,
                limits: self.limits,
                acceptor: self.front.http(),
            };
            async move {
                if let Some(http) = http {
                    door.serve(http, router, shutdown).await;
                }
            }
        };
        let front = GrpcInferenceServiceServer::new(service)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let hop = HopServer::new(HopService {
            forwarder,
            is_strict: self.trust.is_required(),
        })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let services = Services::new(front).add_service(hop).add_service(health);
        let guard = Guard {
            routes: services.prepare(),
            gate: Gate {
                budget: self.room,
                models: known,
                access: self.access,
                is_strict: self.trust.is_required(),
                closing: shutdown.clone(),
            },
        };
        let door = Door {
            speech: Speech::Http2,
            limits: self.limits,
            acceptor: self.front.grpc(&self.trust),
        };
        tokio::select! {
            _ = join(door.serve(listener, guard, shutdown.clone()), over_http) => {}
            () = drained(shutdown) => {}
        }
    }
}

async fn drained(shutdown: CancellationToken) {
    shutdown.cancelled_owned().await;
    tokio::time::sleep(DRAIN).await;
    tracing::warn!("gave up on requests in flight at the shutdown");
}

async fn tidy(hops: Hops) {
    loop {
        tokio::time::sleep(TIDY).await;
        hops.drop_unused(UNUSED);
    }
}

/// The health service reports `ready`, and for `""` that the process answers.
async fn report_health(
    reporter: HealthReporter,
    mut ready: watch::Receiver<bool>,
    shutdown: CancellationToken,
) {
    const INFERENCE: &str = <GrpcInferenceServiceServer<Front> as NamedService>::NAME;
    reporter
        .set_service_status("", ServingStatus::Serving)
        .await;
    loop {
        let status = if *ready.borrow_and_update() && !shutdown.is_cancelled() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        reporter.set_service_status(INFERENCE, status).await;
        tokio::select! {
            // Without a sender it stays as it is.
            changed = ready.changed() => if changed.is_err() {
                shutdown.cancelled().await;
            },
            () = shutdown.cancelled() => {}
        }
        if shutdown.is_cancelled() {
            reporter
                .set_service_status(INFERENCE, ServingStatus::NotServing)
                .await;
            return;
        }
    }
}

#[cfg(test)]
mod believed;
#[cfg(test)]
mod callers;
#[cfg(test)]
mod early;
#[cfg(test)]
mod encoded;
#[cfg(test)]
mod encrypted;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod streams;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod told;

//! Before a revision serves, its entry sends a request with a known answer along
//! its whole path.

mod compare;

use crate::blobs::{BlobError, BlobSource};
use crate::net::Backoff;
use crate::serve::deadline::{self, Deadline};
use crate::serve::hop::{Forwarder, HopError, TensorError, from_wire, to_wire, total_us};
use crate::serve::routes::Routes;
use crate::serve::specs::{SpecError, value_specs};
use compare::{Deviation, Misfit};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use lamina_crds::compute_node::{RouteRevision, Verification};
use lamina_model::{DigestError, Probe, ProbeError, Tensor};
use lamina_proto::hop::{ForwardReply, ForwardRequest};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

/// Interval between checks for something to verify.
const ROUND: Duration = Duration::from_millis(100);
/// Hosts may still be loading or connecting; after this long they have failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Verifies revisions as the routes ask for it.
#[derive(Clone)]
pub(crate) struct Verifier {
    pub(crate) routes: Routes,
    pub(crate) forwarder: Forwarder,
    pub(crate) blobs: Arc<dyn BlobSource>,
    /// How long unreachable hosts are retried; [`PATIENCE`].
    pub(crate) patience: Duration,
}

#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error("the route has no host for revision {0}")]
    NoRoute(i64),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error("cannot read the probe: {0}")]
    Read(std::io::Error),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("the probe has {got} {kind}, the model {expected}; prepare the model again")]
    Count {
        kind: &'static str,
        expected: usize,
        got: usize,
    },
    #[error(transparent)]
    Hop(#[from] HopError),
    #[error("the path gave no output `{0}`")]
    Missing(String),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Wrong(#[from] Misfit),
}

impl VerifyError {
    /// A retry may succeed without help.
    fn is_passing(&self) -> bool {
        match self {
            Self::Hop(error) => matches!(
                error.code(),
                Code::Unavailable
                    | Code::FailedPrecondition
                    | Code::Cancelled
                    | Code::ResourceExhausted
            ),
            Self::Blob(error) => error.is_passing(),
            // The route may be replaced meanwhile.
            Self::NoRoute(_) => true,
            _ => false,
        }
    }
}

/// A correct answer.
struct Passed {
    deviation: Deviation,
    latency: Duration,
}

impl Verifier {
    /// Verifies until dropped. A verification that is no longer wanted is cancelled.
    pub(crate) async fn run(self) {
        let mut going: BTreeMap<(String, i64), AbortOnDropHandle<()>> = BTreeMap::new();
        loop {
            let wanted = self.routes.to_verify();
            going.retain(|key, task| wanted.contains(key) && !task.is_finished());
            for key in wanted {
                let (uid, revision) = key.clone();
                let task = self.clone();
                going.entry(key).or_insert_with(|| {
                    let work = async move { task.verify(&uid, revision).await };
                    AbortOnDropHandle::new(tokio::spawn(work))
                });
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    async fn verify(&self, uid: &str, revision: i64) {
        let begin = Instant::now();
        let outcome = self.until_settled(uid, revision, begin).await;
        let verification = match outcome {
            Ok(passed) => Verification {
                revision,
                passed: true,
                message: passed.deviation.to_string(),
                latency_ms: passed.latency.as_secs_f64() * 1e3,
                time: Time(Timestamp::now()),
            },
            Err(error) => Verification {
                revision,
                passed: false,
                message: error.to_string(),
                latency_ms: begin.elapsed().as_secs_f64() * 1e3,
                time: Time(Timestamp::now()),
            },
        };
        tracing::info!(
            uid,
            revision,
            passed = verification.passed,
            message = verification.message,
            "verified"
        );
        self.routes.verified(uid, verification);
    }

    async fn until_settled(
        &self,
        uid: &str,
        revision: i64,
        begin: Instant,
    ) -> Result<Passed, VerifyError> {
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            match self.once(uid, revision).await {
                Err(error) if error.is_passing() && begin.elapsed() < self.patience => {
                    tracing::debug!(uid, revision, %error, "verifying again");
                    tokio::time::sleep(pauses.next_wait()).await;
                }
                settled => return settled,
            }
        }
    }

    async fn once(&self, uid: &str, revision: i64) -> Result<Passed, VerifyError> {
        let target = self.routes.revision(uid, revision);
        let target = target.ok_or(VerifyError::NoRoute(revision))?;
        value_specs(&target.inputs)?;
        value_specs(&target.outputs)?;
        let probe = self.probe(&target).await?;
        let request = request(uid, &target, &probe);
        let begin = Instant::now();
        let deadline = Deadline::after(deadline::DEFAULT);
        let reply = self
            .forwarder
            .send(&target.first, target.encoding.as_ref(), request, deadline)
            .await?;
        let latency = begin.elapsed();
        tracing::debug!(uid, revision, total_us = total_us(&reply), "probe answered");
        Ok(Passed {
            deviation: judge(&target, &probe, &reply)?,
            latency,
        })
    }

    async fn probe(&self, target: &RouteRevision) -> Result<Probe, VerifyError> {
        let digest = target.probe.digest.parse()?;
        let path = self.blobs.ensure(&digest, target.probe.bytes).await?;
        let file = tokio::fs::read(path).await.map_err(VerifyError::Read)?;
        let probe = Probe::from_bytes(&file)?;
        for (kind, expected, got) in [
            ("inputs", target.inputs.len(), probe.inputs.len()),
            ("outputs", target.outputs.len(), probe.outputs.len()),
        ] {
            if expected != got {
                return Err(VerifyError::Count {
                    kind,
                    expected,
                    got,
                });
            }
        }
        Ok(probe)
    }
}

fn request(placement_uid: &str, target: &RouteRevision, probe: &Probe) -> ForwardRequest {
    let named = target.inputs.iter().zip(&probe.inputs);
    ForwardRequest {
        placement_uid: placement_uid.to_owned(),
        revision: target.revision,
        segment: 0,
        request_id: format!("verify-{}", target.revision),
        traceparent: String::new(),
        tensors: named.map(|(s, t)| to_wire(&s.name, t.clone())).collect(),
        // Every exit must be verified.
        exits: None,
    }
}

/// Compares every output with the known one.
fn judge(
    target: &RouteRevision,
    probe: &Probe,
    reply: &ForwardReply,
) -> Result<Deviation, VerifyError> {
    let mut deviation = Deviation::default();
    for (spec, expected) in target.outputs.iter().zip(&probe.outputs) {
        let wire = reply.tensors.iter().find(|t| t.name == spec.name);
        let wire = wire.ok_or_else(|| VerifyError::Missing(spec.name.clone()))?;
        let got: Tensor = from_wire(wire)?;
        let error = target.error.unwrap_or_default();
        deviation.include(compare::compare(&spec.name, expected, &got, error)?);
    }
    Ok(deviation)
}

#[cfg(test)]
mod tests;

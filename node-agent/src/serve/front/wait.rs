//! Requests that wait for a model that is being deployed: how many, and how long.

use super::error::{FrontError, Setback};
use super::journey::Journey;
use super::place::Waited;
use crate::serve::directory::Directory;
use crate::serve::routes::Routes;
use crate::telemetry::{RequestKey, Telemetry};
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};

/// Memory limit of all waiting requests together.
const ROOM_BYTES: usize = 64 << 20;
/// Each counts as at least this much, so there are at most 256.
const SEAT_BYTES: usize = 256 << 10;
/// Bytes per permit.
const PERMIT_BYTES: usize = 1 << 10;

/// Where requests wait. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct WaitingRoom {
    seats: Arc<Semaphore>,
    telemetry: Telemetry,
}

/// Events that let a request continue. Subscribed before checking, so that nothing is missed.
#[derive(Debug)]
pub(super) struct Changes {
    routes: watch::Receiver<u64>,
    directory: watch::Receiver<u64>,
}

impl Changes {
    pub(super) fn of(routes: &Routes, directory: &Directory) -> Self {
        Self {
            routes: routes.subscribe(),
            directory: directory.subscribe(),
        }
    }

    /// The next change. Both senders live as long as the front.
    async fn next(mut self) {
        tokio::select! {
            _ = self.routes.changed() => {}
            _ = self.directory.changed() => {}
        }
    }
}

impl WaitingRoom {
    pub(super) fn new(telemetry: Telemetry) -> Self {
        Self {
            seats: Arc::new(Semaphore::new(ROOM_BYTES / PERMIT_BYTES)),
            telemetry,
        }
    }

    /// Waits for `changes`.
    ///
    /// # Errors
    /// Too many are waiting already, or the deadline passed.
    pub(super) async fn for_model(
        &self,
        waited: Waited,
        journey: &mut Journey,
        changes: Changes,
    ) -> Result<(), FrontError> {
        let (name, late): (String, fn(String) -> FrontError) = match waited {
            Waited::Operator { name } => (name, FrontError::Unheard),
            Waited::Model {
                full_name,
                placement_uid,
            } => {
                count(journey, placement_uid);
                (full_name, FrontError::NotServing)
            }
        };
        self.seat(journey, &name)?;
        let _waits = self.telemetry.request_waits();
        let changed = journey.tries.deadline.bound(changes.next()).await;
        changed.ok_or_else(|| late(name))
    }

    /// Pauses after no entry could be reached, but no longer than until `changes`.
    ///
    /// # Errors
    /// As [`WaitingRoom::for_model`].
    pub(super) async fn for_entry(
        &self,
        full_name: &str,
        setback: Setback,
        journey: &mut Journey,
        changes: Changes,
    ) -> Result<(), FrontError> {
        self.seat(journey, full_name)?;
        let _waits = self.telemetry.request_waits();
        journey.tries.pause_or(setback, changes.next()).await
    }

    fn seat(&self, journey: &mut Journey, name: &str) -> Result<(), FrontError> {
        if journey.seat.is_some() {
            return Ok(());
        }
        let bytes = journey.bytes().clamp(SEAT_BYTES, ROOM_BYTES);
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        let seat = Arc::clone(&self.seats).try_acquire_many_owned(permits);
        journey.seat = Some(seat.map_err(|_| FrontError::Crowded(name.to_owned()))?);
        Ok(())
    }
}

/// A request that never gets a path is counted as lost at the entry.
fn count(journey: &mut Journey, placement_uid: Option<String>) {
    if let Some(placement_uid) = placement_uid {
        journey.counted_as.get_or_insert(RequestKey {
            placement_uid,
            revision: 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::deadline::Deadline;
    use lamina_proto::inference::ModelInferRequest;
    use std::time::Duration;
    use tonic::metadata::MetadataMap;

    fn journey(bytes: usize) -> Journey {
        let request = ModelInferRequest {
            raw_input_contents: vec![vec![0; bytes].into()],
            ..ModelInferRequest::default()
        };
        let deadline = Deadline::after(Duration::from_millis(1));
        Journey::new(request, "default/m".into(), &MetadataMap::new(), deadline)
    }

    #[tokio::test]
    async fn a_bounded_number_waits_and_large_ones_count_for_more() {
        let room = WaitingRoom::new(Telemetry::default());
        let (routes, directory) = (Routes::new(Arc::default()), Directory::default());
        let wait = async |journey: &mut Journey| {
            let waited = Waited::Operator { name: "m".into() };
            let changes = Changes::of(&routes, &directory);
            room.for_model(waited, journey, changes).await.unwrap_err()
        };
        let mut seated: Vec<Journey> = (0..128).map(|_| journey(0)).collect();
        seated.push(journey(32 << 20));
        for journey in &mut seated {
            assert!(matches!(wait(journey).await, FrontError::Unheard(_)));
        }
        let error = wait(&mut journey(0)).await;
        assert_eq!(error.code(), tonic::Code::ResourceExhausted, "{error}");
        // Waiting requests keep waiting, and those that leave make room.
        assert!(matches!(wait(&mut seated[0]).await, FrontError::Unheard(_)));
        seated.pop();
        assert!(matches!(
            wait(&mut journey(0)).await,
            FrontError::Unheard(_)
        ));
    }
}

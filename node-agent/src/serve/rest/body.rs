//! The body of a request: how large it may be, how long it may take, and how much of
//! all bodies lies in memory.

use super::error::RestError;
use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

/// What the bodies of all requests may hold together.
pub(super) const ROOM_BYTES: usize = 128 << 20;
/// What a permit stands for.
const PERMIT_BYTES: usize = 1 << 10;
/// A body may take this long,
const PATIENCE: Duration = Duration::from_secs(20);
/// and longer while this many bytes have come for each further second.
const SLOWEST_BYTES_PER_S: u64 = 16 << 10;
/// Of a body that is too large this much is read without being kept, so that a client
/// which reads only after it has sent everything learns what was wrong.
const DISCARDED_BYTES: usize = 256 << 20;
const DISCARDED_FOR: Duration = Duration::from_secs(10);
/// The same of a client that is not let in.
const STRANGERS_BYTES: usize = 1 << 20;
const STRANGERS_FOR: Duration = Duration::from_secs(1);

/// Room for bodies. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_BYTES / PERMIT_BYTES)))
    }
}

/// What one request holds of the room until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    room: Room,
    permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    pub(super) const fn nothing(room: Room) -> Self {
        Self { room, permit: None }
    }

    /// Holds `bytes` from now on. One request alone may hold more than the room has.
    ///
    /// # Errors
    /// Other requests hold too much.
    pub(super) fn hold(&mut self, bytes: usize) -> Result<(), RestError> {
        let wanted = bytes.min(ROOM_BYTES).div_ceil(PERMIT_BYTES);
        let has = self
            .permit
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let Some(more) = wanted.checked_sub(has).filter(|more| *more > 0) else {
            return Ok(());
        };
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.room.0).try_acquire_many_owned(more);
        let permit = permit.map_err(|_| RestError::Crowded)?;
        match &mut self.permit {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
        Ok(())
    }
}

/// The whole of `body`, which `held` makes room for.
///
/// # Errors
/// It is larger than `limit` bytes, too slow, broken off, or there is no room.
pub(super) async fn read(body: Body, limit: usize, held: &mut Held) -> Result<Bytes, RestError> {
    let mut stream = body.into_data_stream();
    let began = Instant::now();
    let mut whole = BytesMut::new();
    loop {
        let received = u64::try_from(whole.len()).unwrap_or(u64::MAX);
        let latest = began + PATIENCE + Duration::from_secs(received / SLOWEST_BYTES_PER_S);
        let next = timeout_at(latest, stream.next()).await;
        let next = next.map_err(|_| RestError::Slow(SLOWEST_BYTES_PER_S))?;
        let Some(part) = next else {
            return Ok(whole.freeze());
        };
        let part = part.map_err(|error| RestError::Broken(error.to_string()))?;
        let refusal = if whole.len() + part.len() > limit {
            Err(RestError::TooLarge { limit })
        } else {
            held.hold(whole.len() + part.len())
        };
        if let Err(refusal) = refusal {
            drop(whole);
            discard(stream, DISCARDED_BYTES, DISCARDED_FOR).await;
            return Err(refusal);
        }
        whole.extend_from_slice(&part);
    }
}

/// Reads of a body whose client is not let in as much as is likely on its way.
pub(super) async fn discard_some(body: Body) {
    discard(body.into_data_stream(), STRANGERS_BYTES, STRANGERS_FOR).await;
}

async fn discard(mut stream: BodyDataStream, most_bytes: usize, patience: Duration) {
    let reading = async {
        let mut bytes = 0;
        while let Some(Ok(part)) = stream.next().await {
            bytes += part.len();
            if bytes > most_bytes {
                return;
            }
        }
    };
    // Whether it ended in time makes no difference to the answer.
    let _ = timeout(patience, reading).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use std::convert::Infallible;

    /// `parts` bytes each, one a second.
    fn dripping(parts: usize, bytes: usize) -> Body {
        Body::from_stream(stream::unfold(0, move |n| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let part = Bytes::from(vec![0; bytes]);
            (n < parts).then_some((Ok::<_, Infallible>(part), n + 1))
        }))
    }

    async fn read_alone(body: Body, limit: usize) -> Result<Bytes, RestError> {
        read(body, limit, &mut Held::nothing(Room::default())).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_is_read_as_long_as_it_comes() {
        let body = dripping(60, 32 << 10);
        assert_eq!(
            read_alone(body, 1 << 30).await.unwrap().len(),
            60 * (32 << 10)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_a_second_is_given_up() {
        let began = Instant::now();
        let error = read_alone(dripping(10_000, 1), 1 << 30).await.unwrap_err();
        assert!(matches!(error, RestError::Slow(_)), "{error}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_limit_is_kept() {
        assert_eq!(read_alone(dripping(2, 50), 100).await.unwrap().len(), 100);
        let error = read_alone(dripping(3, 50), 100).await.unwrap_err();
        assert!(matches!(error, RestError::TooLarge { limit: 100 }));
    }

    #[tokio::test]
    async fn requests_share_the_room_and_one_alone_gets_by() {
        let room = Room::default();
        let mut large = Held::nothing(room.clone());
        large.hold(ROOM_BYTES - (1 << 20)).unwrap();
        let mut small = Held::nothing(room.clone());
        small.hold(1000).unwrap();
        let error = small.hold(2 << 20).unwrap_err();
        assert!(matches!(error, RestError::Crowded));
        drop(large);
        small.hold(2 << 20).unwrap();
        drop(small);
        Held::nothing(room).hold(2 * ROOM_BYTES).unwrap();
    }
}

//! The body of a request: its size limit and time limit. Its memory counts in the budget of all
//! requests, as over gRPC.

use super::error::RestError;
use crate::door::Origin;
use crate::serve::guard::{Budget, Charge, Full, Models, Owner};
use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// Time for a body,
const PATIENCE: Duration = Duration::from_secs(20);
/// longer if this many bytes arrive in each further second.
const SLOWEST_BYTES_PER_S: u64 = 16 << 10;
/// Bytes of an oversized body that are read and discarded, so that a client that reads only after
/// sending everything gets the error.
const DISCARDED_BYTES: usize = 256 << 20;
const DISCARDED_FOR: Duration = Duration::from_secs(10);
/// The same for a client that is not admitted.
const STRANGERS_BYTES: usize = 1 << 20;
const STRANGERS_FOR: Duration = Duration::from_secs(1);

/// The budget for bodies, and their owners. Clones share it.
#[derive(Clone)]
pub(crate) struct Room {
    budget: Budget,
    models: Arc<dyn Models>,
}

impl Room {
    /// With `budget`, for `models`.
    pub(crate) const fn new(budget: Budget, models: Arc<dyn Models>) -> Self {
        Self { budget, models }
    }

    /// Memory for a request from `origin` for the model `full_name`, before any of it is read.
    ///
    /// # Errors
    /// There is none, and none became free.
    pub(super) async fn begin(&self, origin: Origin, full_name: &str) -> Result<Held, Full> {
        let owner = if self.models.knows(full_name) {
            Owner::Model(full_name.to_owned())
        } else {
            Owner::Unknown
        };
        let charge = self.budget.begin(origin).await?;
        // While it arrives, its client pays.
        charge.may_come(&owner).await?;
        Ok(Held { charge, owner })
    }

    /// The largest body that can fit at all.
    pub(super) fn largest(&self) -> usize {
        usize::try_from(self.budget.largest()).unwrap_or(usize::MAX)
    }
}

/// The memory of one request, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    charge: Charge,
    owner: Owner,
}

impl Held {
    /// Raises it to `bytes`, and somewhat more if `expected` says that more will come. Waits a
    /// moment for memory.
    ///
    /// # Errors
    /// There is none, and none became free.
    async fn reach(&mut self, bytes: usize, expected: usize) -> Result<(), Full> {
        self.charge.reach(bytes as u64, expected as u64).await
    }

    /// The body is complete: its model pays from now on.
    ///
    /// # Errors
    /// Its share is exhausted, and nothing became free.
    pub(super) async fn is_whole(&mut self) -> Result<(), Full> {
        self.charge.belongs_to(self.owner.clone()).await
    }

    /// Raises it to `bytes`, without waiting.
    ///
    /// # Errors
    /// The budget is exhausted.
    pub(super) fn hold(&mut self, bytes: usize) -> Result<(), Full> {
        self.charge.reach_now(bytes as u64)
    }

    /// The request is answered with `bytes`, which its client has not taken yet.
    ///
    /// # Errors
    /// There is no room for them.
    pub(super) async fn answered(&mut self, bytes: usize) -> Result<(), Full> {
        self.charge.answered(bytes as u64).await
    }
}

/// The body of an answer; its request keeps its memory until it ends.
pub(super) fn holding(held: Held, body: Body) -> Body {
    let parts = body.into_data_stream().map(move |part| {
        let _until_the_end = &held;
        part
    });
    Body::from_stream(parts)
}

/// The whole of `body`, charged to `held`; `expected` is its announced size.
///
/// # Errors
/// It is larger than `limit` bytes, too slow, truncated, or there is no memory.
pub(super) async fn read(
    body: Body,
    (limit, expected): (usize, Option<usize>),
    held: &mut Held,
) -> Result<Bytes, RestError> {
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
        let bytes = whole.len() + part.len();
        let refusal = if bytes > limit {
            Err(RestError::TooLarge { limit })
        } else {
            // The announced size reserves nothing.
            let held = held
                .reach(bytes, expected.unwrap_or(bytes).min(limit))
                .await;
            held.map_err(RestError::from)
        };
        if let Err(refusal) = refusal {
            drop(whole);
            discard(stream, DISCARDED_BYTES, DISCARDED_FOR).await;
            return Err(refusal);
        }
        whole.extend_from_slice(&part);
    }
}

/// Reads as much of the body of a client that is not admitted as is probably in flight.
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
    // Whether it ended in time does not change the answer.
    let _ = timeout(patience, reading).await;
}

#[cfg(test)]
mod tests {
    use super::testing::{alone, origin, room};
    use super::*;
    use futures::stream;
    use std::convert::Infallible;

    /// `parts` pieces of `bytes` each, one per second.
    fn dripping(parts: usize, bytes: usize) -> Body {
        Body::from_stream(stream::unfold(0, move |n| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let part = Bytes::from(vec![0; bytes]);
            (n < parts).then_some((Ok::<_, Infallible>(part), n + 1))
        }))
    }

    async fn read_alone(body: Body, limit: usize) -> Result<Bytes, RestError> {
        let mut held = alone(2 << 30).await;
        read(body, (limit, None), &mut held).await
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

    #[tokio::test(start_paused = true)]
    async fn bodies_take_of_the_room_of_all_requests_while_they_come() {
        let room = room(8 << 20);
        let mut first = room.begin(origin(1), "default/m").await.unwrap();
        let body = |bytes: usize| Body::from(vec![0; bytes]);
        let limit = (64 << 20, None);
        let half = read(body(3 << 20), limit, &mut first).await.unwrap();
        // The connection may take only half of it.
        let mut same = room.begin(origin(1), "default/m").await.unwrap();
        let refused = read(body(2 << 20), limit, &mut same).await.unwrap_err();
        assert!(
            matches!(refused, RestError::Full(Full::Client)),
            "{refused}"
        );
        // The model may take only half of it, once bodies are complete.
        first.is_whole().await.unwrap();
        let mut other = room.begin(origin(2), "default/m").await.unwrap();
        read(body(2 << 20), limit, &mut other).await.unwrap();
        let refused = other.is_whole().await.unwrap_err();
        assert_eq!(refused, Full::Model("default/m".into()));
        drop((first, other, same, half));
        let mut again = room.begin(origin(1), "default/m").await.unwrap();
        read(body(3 << 20), limit, &mut again).await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_holds_its_room_until_its_end() {
        let room = room(4 << 20);
        let mut held = room.begin(origin(1), "default/m").await.unwrap();
        held.hold(2 << 20).unwrap();
        let mut answer = holding(held, Body::from("answer")).into_data_stream();
        let taken = async |room: &Room| {
            let mut second = room.begin(origin(2), "default/m").await.ok()?;
            second.hold(2 << 20).ok()?;
            let mut third = room.begin(origin(3), "default/m").await.ok()?;
            third.hold(1 << 20).ok()
        };
        assert_eq!(taken(&room).await, None);
        while answer.next().await.is_some() {}
        drop(answer);
        assert_eq!(taken(&room).await, Some(()));
    }
}

/// Rooms for the tests of this folder.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    struct Every;

    impl Models for Every {
        fn knows(&self, _: &str) -> bool {
            true
        }

        fn runs(&self, _: &str) -> bool {
            true
        }

        fn largest_request(&self) -> u64 {
            0
        }

        fn largest_hop(&self) -> u64 {
            0
        }
    }

    /// With this many bytes, and every model known.
    pub(in crate::serve::rest) fn room(bytes: u64) -> Room {
        Room::new(Budget::new(bytes), Arc::new(Every))
    }

    /// Connection `connection` of a distinct address.
    pub(in crate::serve::rest) fn origin(connection: u8) -> Origin {
        Origin {
            connection: connection.into(),
            address: [10, 0, 0, connection].into(),
        }
    }

    /// The memory of a request alone in a budget of this many bytes.
    pub(in crate::serve::rest) async fn alone(bytes: u64) -> Held {
        let begun = room(bytes).begin(origin(1), "default/m").await;
        begun.unwrap()
    }
}

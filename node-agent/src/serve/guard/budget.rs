//! The memory that all requests inside this agent may take, shared fairly.
//!
//! A model may take at most half of it, as may a connection; an address three quarters: a flood
//! on or from one leaves room for the others. A request that does not fit waits briefly, since
//! others soon finish, and is then refused before its bytes are read.

use crate::door::Origin;
use lamina_proto::MAX_MESSAGE_BYTES;
use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// How long a request waits for memory.
const WAIT: Duration = Duration::from_millis(20);
/// Least charge of a request, which also limits their number.
const LEAST_BYTES: u64 = 16 << 10;
/// Memory is taken in steps of this size, not for each frame.
const STEP_BYTES: u64 = 64 << 10;

/// The memory budget of an agent. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limit: u64,
    held: Mutex<Held>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    by_share: HashMap<Share, u64>,
}

/// An owner of a share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Share {
    Connection(u64),
    Address(IpAddr),
    Owner(Owner),
}

/// Whom a request is charged to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// A model that this agent knows.
    Model(String),
    /// An unknown model.
    Unknown,
    /// A watcher of the agent's health.
    Watch,
    /// A stream of requests, besides the requests themselves.
    Stream,
    /// Measurements and other questions.
    Other,
}

/// The charge of one request, until dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Budget,
    origin: Origin,
    /// `None` until it is known.
    owner: Option<Owner>,
    bytes: u64,
}

/// The budget is exhausted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("this host has reached its limit of requests; try again, or use another host")]
    Host,
    #[error("model `{0}` has reached its limit of requests on this host; try again, or send fewer")]
    Model(String),
    #[error("this client has reached its limit of requests here; try again, or send fewer")]
    Client,
    #[error("this host has reached its limit of requests of this kind; try again")]
    Kind,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            inner: Arc::new(Inner {
                limit,
                held: Mutex::default(),
                freed: Notify::new(),
            }),
        }
    }

    /// The largest message that can fit at all.
    pub(crate) fn largest(&self) -> u64 {
        self.inner.limit / 2
    }

    /// Tensors of the largest answer that this host takes from a worker or another agent, in
    /// bytes: as a request, an answer may be as large as the room allows.
    pub(crate) fn largest_answer(&self) -> u64 {
        let least = super::MESSAGE_BYTES as u64;
        self.largest().clamp(least, MAX_MESSAGE_BYTES as u64)
    }

    /// Memory for a request before any of it arrives.
    ///
    /// # Errors
    /// There is none, and none became free.
    pub(crate) async fn begin(&self, origin: Origin) -> Result<Charge, Full> {
        let mut charge = Charge {
            budget: self.clone(),
            origin,
            owner: None,
            bytes: 0,
        };
        charge.add(LEAST_BYTES).await?;
        Ok(charge)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.inner
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn limit_of(&self, share: &Share) -> u64 {
        let quarters = match share {
            Share::Address(_) => 3,
            Share::Connection(_) | Share::Owner(Owner::Model(_)) => 2,
            Share::Owner(_) => 1,
        };
        self.inner.limit / 4 * quarters
    }

    fn try_take(&self, shares: &[Share], bytes: u64) -> Result<(), Full> {
        let mut held = self.lock();
        for share in shares {
            let has = held.by_share.get(share).copied().unwrap_or(0);
            if has + bytes > self.limit_of(share) {
                return Err(full(share));
            }
        }
        if held.bytes + bytes > self.inner.limit {
            return Err(Full::Host);
        }
        held.bytes += bytes;
        for share in shares {
            *held.by_share.entry(share.clone()).or_default() += bytes;
        }
        Ok(())
    }

    fn has_room(&self, share: &Share) -> Result<(), Full> {
        let has = self.lock().by_share.get(share).copied().unwrap_or(0);
        if has + LEAST_BYTES > self.limit_of(share) {
            return Err(full(share));
        }
        Ok(())
    }

    fn give_back(&self, shares: &[Share], bytes: u64) {
        let mut held = self.lock();
        held.bytes = held.bytes.saturating_sub(bytes);
        for share in shares {
            if let Some(has) = held.by_share.get_mut(share) {
                *has = has.saturating_sub(bytes);
                if *has == 0 {
                    held.by_share.remove(share);
                }
            }
        }
        drop(held);
        self.inner.freed.notify_waiters();
    }
}

fn full(share: &Share) -> Full {
    match share {
        Share::Connection(_) | Share::Address(_) => Full::Client,
        Share::Owner(Owner::Model(name)) => Full::Model(name.clone()),
        Share::Owner(_) => Full::Kind,
    }
}

impl Charge {
    /// Raises the charge to `bytes`, and somewhat more if `expected` says that more will come.
    ///
    /// # Errors
    /// The budget is exhausted, and nothing became free.
    pub(crate) async fn reach(&mut self, bytes: u64, expected: u64) -> Result<(), Full> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let next = (self.bytes + STEP_BYTES).min(expected);
        self.add(bytes.max(next) - self.bytes).await
    }

    /// As [`Charge::reach`], without waiting.
    ///
    /// # Errors
    /// The budget is exhausted.
    pub(crate) fn reach_now(&mut self, bytes: u64) -> Result<(), Full> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else {
            return Ok(());
        };
        self.budget.try_take(&self.shares(), more)?;
        self.bytes = bytes;
        Ok(())
    }

    /// Waits until a request of `owner` would fit, while it is still arriving: until it is
    /// complete, its client pays. Otherwise slow clients of a model could lock out others.
    ///
    /// # Errors
    /// The budget is exhausted, and nothing became free.
    pub(crate) async fn may_come(&self, owner: &Owner) -> Result<(), Full> {
        let share = Share::Owner(owner.clone());
        self.wait_until(|budget| budget.has_room(&share)).await
    }

    /// Charges the request to `owner` from now on.
    ///
    /// # Errors
    /// The owner's share is exhausted, and nothing became free.
    pub(crate) async fn belongs_to(&mut self, owner: Owner) -> Result<(), Full> {
        if self.owner.as_ref() == Some(&owner) {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.bytes);
        self.budget.give_back(&self.shares(), bytes);
        self.owner = Some(owner);
        self.add(bytes).await
    }

    /// The request is answered, and gone: what counts from now on are the `bytes` of its
    /// answer, which are here until its client has taken them. The client alone pays for
    /// that, or slow ones of a model would keep others from it. Beyond a quarter of the room
    /// they are not counted, so that there can be room for each answer.
    ///
    /// # Errors
    /// There is none, and none came.
    pub(crate) async fn answered(&mut self, bytes: u64) -> Result<(), Full> {
        let held = std::mem::take(&mut self.bytes);
        self.budget.give_back(&self.shares(), held);
        self.owner = None;
        let most = self.budget.inner.limit / 4;
        self.add(bytes.min(most).max(LEAST_BYTES)).await
    }

    async fn add(&mut self, bytes: u64) -> Result<(), Full> {
        let shares = self.shares();
        self.wait_until(|budget| budget.try_take(&shares, bytes))
            .await?;
        self.bytes += bytes;
        Ok(())
    }

    /// Repeats `attempt` until it succeeds, each time something is released, but not for long.
    async fn wait_until(&self, attempt: impl Fn(&Budget) -> Result<(), Full>) -> Result<(), Full> {
        let until = Instant::now() + WAIT;
        loop {
            let mut freed = pin!(self.budget.inner.freed.notified());
            // Otherwise a release between the try and the wait would be missed.
            freed.as_mut().enable();
            let Err(full) = attempt(&self.budget) else {
                return Ok(());
            };
            if timeout_at(until, freed).await.is_err() {
                return Err(full);
            }
        }
    }

    fn shares(&self) -> Vec<Share> {
        let client = [
            Share::Connection(self.origin.connection),
            Share::Address(self.origin.client()),
        ];
        let owner = self.owner.clone().map(Share::Owner);
        client.into_iter().chain(owner).collect()
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(&self.shares(), self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn model(name: &str) -> Owner {
        Owner::Model(name.to_owned())
    }

    /// Connection `connection` of a distinct address.
    fn origin(connection: u8) -> Origin {
        Origin {
            connection: connection.into(),
            address: [10, 0, 0, connection].into(),
        }
    }

    /// A request of `bytes` for `owner`.
    async fn taken(
        budget: &Budget,
        origin: Origin,
        owner: Owner,
        bytes: u64,
    ) -> Result<Charge, Full> {
        let mut charge = budget.begin(origin).await?;
        charge.belongs_to(owner).await?;
        charge.reach(bytes, bytes).await?;
        Ok(charge)
    }

    #[test]
    fn an_answer_may_be_as_large_as_the_room_allows() {
        let largest = |room| Budget::new(room * MIB).largest_answer() / MIB;
        // Of the least and the most room that a host can have, and between.
        assert_eq!((largest(128), largest(2048)), (64, 1024));
        assert_eq!(
            (largest(512), largest(16), largest(1 << 20)),
            (256, 64, 1024)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_on_one_model_leaves_room_for_another() {
        let budget = Budget::new(8 * MIB);
        let mut inside = Vec::new();
        let refusal = loop {
            let from = origin(inside.len() as u8);
            match taken(&budget, from, model("a"), MIB).await {
                Ok(charge) => inside.push(charge),
                Err(full) => break full,
            }
        };
        assert_eq!((inside.len(), refusal), (4, Full::Model("a".into())));
        let other = taken(&budget, origin(99), model("b"), 2 * MIB).await;
        assert!(other.is_ok());
        inside.pop();
        assert!(taken(&budget, origin(99), model("a"), MIB).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_addresses_and_unknown_models_have_their_shares() {
        let budget = Budget::new(8 * MIB);
        let full = async |origin: Origin, owner: Owner, mib: u64| {
            taken(&budget, origin, owner, mib * MIB).await.unwrap_err()
        };
        let first = taken(&budget, origin(1), model("a"), 3 * MIB)
            .await
            .unwrap();
        assert_eq!(full(origin(1), model("b"), 2).await, Full::Client);
        // Another connection of the same address.
        let beside = Origin {
            connection: 2,
            ..origin(1)
        };
        let second = taken(&budget, beside, model("b"), 3 * MIB).await.unwrap();
        let third = Origin {
            connection: 3,
            ..origin(1)
        };
        assert_eq!(full(third, model("c"), 1).await, Full::Client);
        let unknown = taken(&budget, origin(4), Owner::Unknown, 2 * MIB - LEAST_BYTES);
        let unknown = unknown.await.unwrap();
        assert_eq!(full(origin(5), Owner::Unknown, 1).await, Full::Kind);
        assert_eq!(full(origin(5), model("c"), 1).await, Full::Host);
        drop(unknown);
        assert!(taken(&budget, origin(5), model("c"), MIB).await.is_ok());
        drop((first, second));
    }

    #[tokio::test(start_paused = true)]
    async fn what_still_comes_takes_nothing_from_its_model() {
        let budget = Budget::new(8 * MIB);
        let mut coming = Vec::new();
        for connection in 1..=5 {
            let mut charge = budget.begin(origin(connection)).await.unwrap();
            charge.may_come(&model("a")).await.unwrap();
            charge.reach(MIB, MIB).await.unwrap();
            coming.push(charge);
        }
        let whole = taken(&budget, origin(9), model("a"), 2 * MIB).await;
        let _whole = whole.unwrap();
        // The model has two left, and then none.
        for charge in &mut coming[..2] {
            charge.belongs_to(model("a")).await.unwrap();
        }
        let full = coming[2].belongs_to(model("a")).await.unwrap_err();
        assert_eq!(full, Full::Model("a".into()));
        let full = coming[3].may_come(&model("a")).await.unwrap_err();
        assert_eq!(full, Full::Model("a".into()));
        assert!(coming[3].may_come(&model("b")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_nobody_takes_count_for_who_asked() {
        let budget = Budget::new(16 * MIB);
        let answered = async |connection: u8, bytes: u64| {
            let from = origin(connection);
            let mut charge = taken(&budget, from, model("a"), LEAST_BYTES).await?;
            charge.answered(bytes).await?;
            Ok::<_, Full>(charge)
        };
        let mut untaken = Vec::new();
        let refusal = loop {
            match answered(1, MIB).await {
                Ok(charge) => untaken.push(charge),
                Err(full) => break full,
            }
        };
        assert_eq!((untaken.len(), refusal), (8, Full::Client));
        // Others have room, for the same model, and for an answer of any size.
        let another = answered(2, 100 * MIB).await.unwrap();
        assert_eq!(another.bytes, 4 * MIB);
        let small = answered(3, 0).await.unwrap();
        assert_eq!(small.bytes, LEAST_BYTES);
        untaken.pop();
        assert!(answered(1, MIB).await.is_ok());
        drop((untaken, another, small));
        let held = budget.lock();
        assert_eq!((held.bytes, held.by_share.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_waits_shortly_and_goes_on_where_some_comes() {
        let budget = Budget::new(4 * MIB);
        let inside = taken(&budget, origin(1), model("a"), 2 * MIB)
            .await
            .unwrap();
        let begin = Instant::now();
        assert!(taken(&budget, origin(2), model("a"), MIB).await.is_err());
        assert_eq!(begin.elapsed(), WAIT);
        let ends = async {
            tokio::time::sleep(WAIT / 2).await;
            drop(inside);
        };
        let (second, ()) = tokio::join!(taken(&budget, origin(2), model("a"), MIB), ends);
        drop(second.unwrap());
        let held = budget.lock();
        assert_eq!((held.bytes, held.by_share.len()), (0, 0));
    }
}

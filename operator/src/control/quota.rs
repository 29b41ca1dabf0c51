//! How much an agent may store: the results of its jobs, and no more. Pure apart from the lock: the
//! current time is passed in.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Concurrent uploads of one agent.
const AT_ONCE: u32 = 8;
/// An empty quota is full again after this time.
const WHOLE: Duration = Duration::from_secs(3600);
/// Most agents counted; there are no more hosts than that.
const MOST_AGENTS: usize = 8192;

/// Why an agent may store no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OverQuota {
    #[error("{AT_ONCE} blobs of this agent are already being uploaded; send them one at a time")]
    AtOnce,
    #[error(
        "this agent has put its {0} bytes of an hour into the store; wait, or give agents more \
         with `operator.store.putQuota`"
    )]
    Bytes(u64),
    #[error("the operator asked for a blob of {0} bytes at most, and more came; send that one")]
    Larger(u64),
}

/// What each agent may still store. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Quotas {
    of_agents: Arc<Mutex<BTreeMap<String, Quota>>>,
    bytes_an_hour: u64,
}

#[derive(Debug)]
struct Quota {
    left: f64,
    at: Instant,
    puts: u32,
}

/// One upload in progress, until it is dropped.
#[derive(Debug)]
pub(super) struct Putting {
    quotas: Quotas,
    agent: String,
    /// The operator asked for it: its bytes are not counted, but there are no more than these.
    wanted: Option<u64>,
    came: u64,
}

impl Quotas {
    pub(super) fn new(bytes_an_hour: u64) -> Self {
        Self {
            of_agents: Arc::default(),
            bytes_an_hour,
        }
    }

    /// `agent` begins to send a blob; one of `wanted` bytes at most, where it was asked for it.
    ///
    /// # Errors
    /// It has too many uploads at once.
    pub(super) fn begin(
        &self,
        agent: &str,
        wanted: Option<u64>,
        now: Instant,
    ) -> Result<Putting, OverQuota> {
        let mut all = self.lock();
        if all.len() >= MOST_AGENTS && !all.contains_key(agent) {
            all.retain(|_, quota| quota.puts > 0 || now.duration_since(quota.at) < WHOLE);
        }
        let whole = self.bytes_an_hour as f64;
        let quota = all.entry(agent.to_owned()).or_insert(Quota {
            left: whole,
            at: now,
            puts: 0,
        });
        if quota.puts >= AT_ONCE {
            return Err(OverQuota::AtOnce);
        }
        quota.puts += 1;
        drop(all);
        Ok(Putting {
            quotas: self.clone(),
            agent: agent.to_owned(),
            wanted,
            came: 0,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Quota>> {
        let held = self.of_agents.lock();
        held.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Putting {
    /// Counts further bytes.
    ///
    /// # Errors
    /// The agent may put no more.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) -> Result<(), OverQuota> {
        self.came = self.came.saturating_add(bytes as u64);
        if let Some(most) = self.wanted {
            let fits = self.came <= most;
            return fits.then_some(()).ok_or(OverQuota::Larger(most));
        }
        let whole = self.quotas.bytes_an_hour;
        let mut all = self.quotas.lock();
        let Some(quota) = all.get_mut(&self.agent) else {
            return Ok(());
        };
        let since = now.saturating_duration_since(quota.at).as_secs_f64();
        let came_back = since / WHOLE.as_secs_f64() * whole as f64;
        let left = (quota.left + came_back).min(whole as f64) - bytes as f64;
        if left < 0.0 {
            return Err(OverQuota::Bytes(whole));
        }
        (quota.left, quota.at) = (left, now);
        Ok(())
    }
}

impl Drop for Putting {
    fn drop(&mut self) {
        if let Some(quota) = self.quotas.lock().get_mut(&self.agent) {
            quota.puts = quota.puts.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_puts_its_hours_bytes_and_others_have_theirs() {
        let (quotas, now) = (Quotas::new(3600), Instant::now());
        let mut put = quotas.begin("a", None, now).unwrap();
        put.take(3000, now).unwrap();
        assert_eq!(put.take(601, now), Err(OverQuota::Bytes(3600)));
        put.take(600, now).unwrap();
        put.take(1, now).unwrap_err();
        put.take(10, now + Duration::from_secs(10)).unwrap();
        let mut other = quotas.begin("b", None, now).unwrap();
        other.take(3600, now).unwrap();
        // What the operator asks for is not counted, and is as large as that can be.
        let mut wanted = quotas.begin("b", Some(100_000), now).unwrap();
        wanted.take(60_000, now).unwrap();
        wanted.take(40_000, now).unwrap();
        assert_eq!(wanted.take(1, now), Err(OverQuota::Larger(100_000)));
    }

    #[test]
    fn an_agent_sends_few_blobs_at_once() {
        let (quotas, now) = (Quotas::new(1), Instant::now());
        let mut all: Vec<Putting> = (0..AT_ONCE)
            .map(|_| quotas.begin("a", None, now).unwrap())
            .collect();
        assert_eq!(quotas.begin("a", None, now).unwrap_err(), OverQuota::AtOnce);
        quotas.begin("b", None, now).unwrap();
        all.pop();
        quotas.begin("a", None, now).unwrap();
    }
}

//! Client authentication for tests.

use super::tokens::testing::FakeReviews;
use super::{Access, AccessOptions, AuthMode, Keys};
use crate::telemetry::Telemetry;
use lamina_model::Digest;
use lamina_proto::control::{ApiKey, ApiKeys};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// Admits clients by `mode`. Clones share their state.
#[derive(Clone)]
pub(crate) struct Gatekeeper {
    mode: AuthMode,
    keys: Keys,
    reviews: Arc<FakeReviews>,
    /// Addresses of known agents.
    agents: Arc<Mutex<BTreeSet<IpAddr>>>,
    requests_per_second: Option<u32>,
}

/// Admits everybody.
pub(crate) fn open() -> Access {
    Gatekeeper::by(AuthMode::None).access()
}

/// `secret` is a key of `namespace` for `models`, for all if empty.
pub(crate) fn key(secret: &str, namespace: &str, models: &[&str]) -> ApiKey {
    ApiKey {
        sha256: Digest::of(secret.as_bytes()).to_string(),
        namespace: namespace.to_owned(),
        models: models.iter().map(|m| (*m).to_owned()).collect(),
        requests_per_second: 0,
    }
}

impl Gatekeeper {
    pub(crate) fn by(mode: AuthMode) -> Self {
        Self {
            mode,
            keys: Keys::default(),
            reviews: Arc::default(),
            agents: Arc::default(),
            requests_per_second: None,
        }
    }

    /// Limits the requests of one address.
    pub(crate) const fn pacing(mut self, requests_per_second: u32) -> Self {
        self.requests_per_second = Some(requests_per_second);
        self
    }

    /// These keys and no others are valid.
    pub(crate) fn say(&self, valid: &[ApiKey]) {
        self.keys.apply(ApiKeys {
            keys: valid.to_vec(),
        });
    }

    /// There is another agent at `ip`.
    pub(crate) fn knows_agent_at(&self, ip: IpAddr) {
        self.agents.lock().unwrap().insert(ip);
    }

    /// The API server is away, or back.
    pub(crate) fn api_server_away(&self, away: bool) {
        self.reviews.is_away.store(away, Ordering::Relaxed);
    }

    pub(crate) fn access(&self) -> Access {
        let options = AccessOptions {
            mode: self.mode,
            default_namespace: "default".into(),
            audience: "lamina".to_owned(),
            requests_per_second: self.requests_per_second,
        };
        let agents = Arc::clone(&self.agents);
        Access::new(
            options,
            self.keys.clone(),
            Arc::<FakeReviews>::clone(&self.reviews),
            Arc::new(move |ip| agents.lock().unwrap().contains(&ip)),
            Telemetry::default(),
        )
    }
}

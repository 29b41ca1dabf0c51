//! Metrics at `/metrics`.
//!
//! Counters and histograms of the operator's own work are updated as events happen; facts about
//! hosts, links and placements are read at each scrape, so deleted objects leave no metrics
//! behind.

mod facts;

use crate::state::decision::Solve;
use crate::state::snapshot::Snapshot;
use crate::world::World;
use facts::Facts;
use lamina_crds::placement::RedeployPhases;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Label names with their values.
type Labels = Vec<(&'static str, String)>;
/// A gauge of a real number.
type RealGauge = Gauge<f64, AtomicU64>;

/// The process's metrics. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    facts: Arc<Facts>,
    looks: Family<Labels, Counter>,
    look_seconds: Histogram,
    decide_seconds: Histogram,
    redeploy_seconds: Family<Labels, Histogram>,
    writes: Family<Labels, Counter>,
    leader: Gauge,
    solver_seconds: Family<Labels, Histogram>,
    solver_gap: Family<Labels, RealGauge>,
    fallbacks: Family<Labels, Counter>,
    store_bytes: Gauge,
    certificates: Family<Labels, Gauge>,
}

fn seconds_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 14))
}

impl Metrics {
    /// Metrics of a process that observes `world`.
    pub fn new(world: World) -> Self {
        let mut registry = Registry::with_prefix("lamina");
        let facts = Arc::new(Facts::new(world));
        let inner = Inner {
            facts: Arc::clone(&facts),
            looks: Family::default(),
            look_seconds: seconds_histogram(),
            decide_seconds: seconds_histogram(),
            redeploy_seconds: Family::new_with_constructor(seconds_histogram),
            writes: Family::default(),
            leader: Gauge::default(),
            solver_seconds: Family::new_with_constructor(seconds_histogram),
            solver_gap: Family::default(),
            fallbacks: Family::default(),
            store_bytes: Gauge::default(),
            certificates: Family::default(),
            registry: Registry::default(),
        };
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the operator", build);
        registry.register(
            "reconcile",
            "Looks at the world by outcome",
            inner.looks.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "Time of one look at the world, its writes included",
            Unit::Seconds,
            inner.look_seconds.clone(),
        );
        registry.register_with_unit(
            "reconcile_decide",
            "Time of one look at the world, without its writes",
            Unit::Seconds,
            inner.decide_seconds.clone(),
        );
        registry.register_with_unit(
            "redeploy_phase",
            "Time of each phase of a redeploy",
            Unit::Seconds,
            inner.redeploy_seconds.clone(),
        );
        registry.register(
            "api_writes",
            "Writes to the API server by outcome",
            inner.writes.clone(),
        );
        registry.register(
            "leader",
            "1 while this process decides and writes",
            inner.leader.clone(),
        );
        registry.register_with_unit(
            "solver_duration",
            "Time of one call of a strategy",
            Unit::Seconds,
            inner.solver_seconds.clone(),
        );
        registry.register(
            "solver_gap_ratio",
            "Gap between the last answer of a strategy and what it proved",
            inner.solver_gap.clone(),
        );
        registry.register(
            "solver_fallbacks",
            "Questions that a plugin gave no good answer to",
            inner.fallbacks.clone(),
        );
        registry.register(
            "store_bytes",
            "Bytes of prepared models in the store",
            inner.store_bytes.clone(),
        );
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When the certificate authority's or the operator's certificate ends, since 1970",
            Unit::Seconds,
            inner.certificates.clone(),
        );
        registry.register_collector(Box::new(facts));
        Self(Arc::new(Inner { registry, ..inner }))
    }

    /// Everything in OpenMetrics text.
    ///
    /// # Errors
    /// The text could not be written.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }

    /// Sets whether this process leads.
    pub(crate) fn set_leader(&self, leads: bool) {
        self.0.leader.set(i64::from(leads));
    }

    /// Size of the store.
    pub(crate) fn set_store_bytes(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.0.store_bytes.set(bytes);
    }

    /// The expiry of certificates, in seconds since 1970.
    pub(crate) fn set_certificates(&self, authority: i64, operator: i64) {
        for (of, end) in [("authority", authority), ("operator", operator)] {
            let labels = vec![("of", of.to_owned())];
            self.0.certificates.get_or_create(&labels).set(end);
        }
    }

    /// The last snapshot.
    pub(crate) fn set_snapshot(&self, snapshot: Arc<Snapshot>) {
        self.0.facts.set(snapshot);
    }

    /// A look is finished.
    pub(crate) fn looked(&self, decided: Duration, took: Duration, written: u64, failed: u64) {
        let result = |word: &str| vec![("result", word.to_owned())];
        let word = if failed > 0 { "error" } else { "ok" };
        self.0.looks.get_or_create(&result(word)).inc();
        self.0.decide_seconds.observe(decided.as_secs_f64());
        self.0.look_seconds.observe(took.as_secs_f64());
        let writes = &self.0.writes;
        writes.get_or_create(&result("ok")).inc_by(written);
        writes.get_or_create(&result("error")).inc_by(failed);
    }

    /// A redeploy ended.
    pub(crate) fn redeployed(&self, phases: &RedeployPhases) {
        for (phase, seconds) in [
            ("decide", phases.decide_seconds),
            ("fetch", phases.fetch_seconds),
            ("load", phases.load_seconds),
            ("verify", phases.verify_seconds),
            ("flip", phases.flip_seconds),
        ] {
            let labels = vec![("phase", phase.to_owned())];
            let histogram = self.0.redeploy_seconds.get_or_create(&labels);
            histogram.observe(seconds);
        }
    }

    /// A strategy was asked.
    pub(crate) fn solved(&self, solve: &Solve) {
        let labels = vec![("strategy", solve.strategy.clone())];
        let time = self.0.solver_seconds.get_or_create(&labels);
        time.observe(solve.seconds);
        drop(time);
        if solve.fell_back {
            self.0.fallbacks.get_or_create(&labels).inc();
        }
        if let Some(gap) = solve.gap {
            self.0.solver_gap.get_or_create(&labels).set(gap);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use lamina_crds::conditions::{READY, condition};

    #[test]
    fn the_catalogue_is_there_with_the_facts_of_the_moment() {
        let metrics = Metrics::new(World::new());
        metrics.set_leader(true);
        metrics.set_certificates(2_000_000_000, 1_900_000_000);
        metrics.looked(Duration::from_millis(2), Duration::from_millis(3), 2, 0);
        metrics.redeployed(&RedeployPhases::default());
        metrics.solved(&Solve {
            strategy: "optimal".into(),
            seconds: 0.01,
            gap: Some(0.0),
            fell_back: false,
        });
        metrics.solved(&Solve {
            strategy: "plugin/mine".into(),
            seconds: 2.0,
            gap: None,
            fell_back: true,
        });
        let plan = testing::plan(1, &[("cam-1", 0..2), ("edge-1", 2..4)]);
        let mut placement = testing::placement(Some(plan.clone()), Some(plan));
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(testing::at(0));
        let ready = condition(READY, true, "Serving", "", None, now);
        if let Some(status) = &mut placement.status {
            status.path = "cam-1[0-1]→edge-1[2-3]".into();
            status.conditions.push(ready);
        }
        let mut snapshot = testing::world();
        snapshot.placements.push(Arc::new(placement));
        metrics.set_snapshot(Arc::new(snapshot));
        let text = metrics.text().unwrap();
        for wanted in [
            "lamina_build_info{version=",
            "lamina_leader 1",
            "lamina_reconcile_total{result=\"ok\"} 1",
            "lamina_reconcile_duration_seconds_count 1",
            "lamina_reconcile_decide_seconds_count 1",
            "lamina_redeploy_phase_seconds_count{phase=\"load\"} 1",
            "lamina_solver_duration_seconds_count{strategy=\"optimal\"} 1",
            "lamina_solver_gap_ratio{strategy=\"optimal\"} 0",
            "lamina_solver_fallbacks_total{strategy=\"plugin/mine\"} 1",
            "lamina_placement_info{namespace=\"default\",model=\"net\",placement=\"net-cam-1\",path=\"cam-1[0-1]→edge-1[2-3]\"} 1",
            "lamina_placement_condition{namespace=\"default\",placement=\"net-cam-1\",type=\"Ready\",status=\"True\"} 1",
            "lamina_latency_estimate_seconds{namespace=\"default\",model=\"net\",placement=\"net-cam-1\"} 0.05",
            "lamina_node_gflops{node=\"cloud-1\"} 40",
            "lamina_link_rtt_seconds{src=\"cam-1\",dst=\"edge-1\"} 0.01",
            "lamina_link_bandwidth_bytes_per_second{src=\"cam-1\",dst=\"edge-1\"} 12500000",
            "lamina_store_bytes 0",
            "lamina_certificate_expiry_timestamp_seconds{of=\"authority\"} 2000000000",
            "lamina_certificate_expiry_timestamp_seconds{of=\"operator\"} 1900000000",
        ] {
            assert!(text.contains(wanted), "lacks {wanted}:\n{text}");
        }
        metrics.set_snapshot(Arc::new(Snapshot {
            placements: Vec::new(),
            ..testing::world()
        }));
        assert!(!metrics.text().unwrap().contains("lamina_placement_info{"));
    }
}

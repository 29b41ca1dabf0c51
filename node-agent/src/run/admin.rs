//! /livez, /readyz and /metrics.

use crate::door::{Door, DoorLimits, Speech};
use crate::serve::access::AuthMode;
use crate::serve::engine::Engine;
use crate::serve::slices::Slices;
use crate::telemetry::Telemetry;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The state behind the endpoints. Clones share it.
#[derive(Clone)]
pub(super) struct Admin {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<dyn Engine>,
    slices: Slices,
    telemetry: Telemetry,
    ready: watch::Receiver<bool>,
    registry: Registry,
    in_flight: Gauge,
    ready_slices: Gauge,
    pending_slices: Gauge,
    failed_slices: Gauge,
    resident_bytes: Gauge,
    workers: Gauge,
    worker_bytes: Gauge,
    worker_crashes: Gauge,
}

impl Admin {
    /// `ready` says whether requests are accepted.
    pub(super) fn new(
        engine: Arc<dyn Engine>,
        slices: Slices,
        telemetry: Telemetry,
        ready: watch::Receiver<bool>,
        auth: AuthMode,
    ) -> Self {
        let mut registry = Registry::with_prefix("lamina");
        telemetry.register(&mut registry);
        let how = Info::new(vec![("mode", auth.as_str())]);
        registry.register("client_auth", "How clients say who they are", how);
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let inner = Inner {
            in_flight: gauge("requests_in_flight", "Requests inside this agent"),
            ready_slices: gauge("slices_ready", "Slices that serve"),
            pending_slices: gauge("slices_pending", "Slices that are fetched or loaded"),
            failed_slices: gauge("slices_failed", "Slices that cannot be loaded"),
            resident_bytes: gauge("slices_resident_bytes", "Memory of the slices that serve"),
            workers: gauge("workers", "Worker processes"),
            worker_bytes: gauge("workers_resident_bytes", "Memory of the worker processes"),
            worker_crashes: gauge(
                "workers_crashed",
                "Worker processes that crashed since this agent began",
            ),
            engine,
            slices,
            telemetry,
            ready,
            registry,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Answers until `shutdown`.
    pub(super) async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let router = Router::new()
            .route("/livez", get(live))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self);
        let door = Door {
            speech: Speech::Http1,
            limits: DoorLimits::for_probes(),
            acceptor: None,
        };
        door.serve(listener, router, shutdown).await;
    }
}

fn verdict(is_good: bool, otherwise: &'static str) -> Response {
    if is_good {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, otherwise).into_response()
    }
}

async fn live(State(admin): State<Admin>) -> Response {
    let is_alive = admin.inner.engine.is_alive();
    verdict(
        is_alive,
        "a run goes on though its worker was to be ended\n",
    )
}

async fn ready(State(admin): State<Admin>) -> Response {
    if !*admin.inner.ready.borrow() {
        return verdict(false, "not listening, or ending\n");
    }
    let has_workers = admin.inner.engine.trouble().is_none();
    verdict(
        has_workers,
        "no worker process can be started; see the log\n",
    )
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let inner = &admin.inner;
    let totals = inner.slices.totals();
    inner
        .in_flight
        .set(inner.telemetry.requests_in_flight().into());
    inner.ready_slices.set(totals.ready.into());
    inner.pending_slices.set(totals.pending.into());
    inner.failed_slices.set(totals.failed.into());
    inner.resident_bytes.set(gauged(totals.resident_bytes));
    let vitals = inner.engine.vitals();
    inner.workers.set(vitals.workers.into());
    inner.worker_bytes.set(gauged(vitals.resident_bytes));
    inner.worker_crashes.set(gauged(vitals.crashes));
    let mut text = String::new();
    if encode(&mut text, &inner.registry).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

fn gauged(figure: u64) -> i64 {
    i64::try_from(figure).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::{BlobOptions, Blobs};
    use crate::net::OperatorEndpoint;
    use crate::serve::engine::fake::FakeEngine;
    use crate::telemetry::{Outcome, RequestKey, RequestSample};
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt as _;

    #[tokio::test]
    async fn metrics_tell_requests_and_slices() {
        let dir = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::default();
        let endpoint = OperatorEndpoint::default();
        let options = BlobOptions {
            dir: dir.path().into(),
            ..BlobOptions::default()
        };
        let blobs = Blobs::open(options, endpoint, telemetry.clone()).unwrap();
        let engine = Arc::new(FakeEngine::default());
        let slices = Slices::new(engine.clone(), Arc::new(blobs), Arc::default());
        let key = RequestKey {
            placement_uid: "u".into(),
            revision: 1,
        };
        let sample = RequestSample {
            outcome: Outcome::Answered,
            latency_s: 0.2,
            retried: 1,
            rows_by_exit: Vec::new(),
            rows: 1,
        };
        telemetry.request_done(key, sample);
        let (set_ready, is_ready) = watch::channel(false);
        let admin = Admin::new(engine, slices, telemetry, is_ready, AuthMode::None);
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/readyz", get(ready))
            .with_state(admin);
        let ask = async |path: &str| {
            let request = axum::http::Request::get(path).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            let status = response.status();
            let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        let (_, text) = ask("/metrics").await;
        for line in [
            "lamina_requests_total{outcome=\"answered\"} 1",
            "lamina_request_retries_total 1",
            "lamina_slices_ready 0",
            "lamina_client_auth_info{mode=\"none\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert_eq!(ask("/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        set_ready.send_replace(true);
        assert_eq!(ask("/readyz").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn without_workers_nothing_is_ready() {
        let engine = FakeEngine::in_trouble("no such program");
        let dir = tempfile::tempdir().unwrap();
        let options = BlobOptions {
            dir: dir.path().into(),
            ..BlobOptions::default()
        };
        let telemetry = Telemetry::default();
        let blobs = Blobs::open(options, OperatorEndpoint::default(), telemetry.clone());
        let engine = Arc::new(engine);
        let slices = Slices::new(engine.clone(), Arc::new(blobs.unwrap()), Arc::default());
        let (_set_ready, is_ready) = watch::channel(true);
        let admin = Admin::new(engine, slices, telemetry, is_ready, AuthMode::None);
        let response = super::ready(State(admin)).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}

//! The endpoints for probes and Prometheus: `/livez`, `/readyz`, `/metrics`.

mod few;

use crate::health::{Health, Report};
use crate::metrics::Metrics;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use few::Few;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// OpenMetrics text, as prometheus-client writes it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers on `listener` until `shutdown`.
///
/// # Errors
/// The listener failed.
pub(crate) async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(Few::of(listener), router(health, metrics))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route(
            "/livez",
            get(async |State(h): State<Health>| answer(h.livez())),
        )
        .route(
            "/readyz",
            get(async |State(h): State<Health>| answer(h.readyz())),
        )
        .with_state(health)
        .merge(
            Router::new()
                .route("/metrics", get(figures))
                .with_state(metrics),
        )
}

fn answer(report: Report) -> (StatusCode, String) {
    let status = if report.ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, report.text)
}

async fn figures(State(metrics): State<Metrics>) -> Response {
    match metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    async fn get(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let reply = router.clone().oneshot(request).await.unwrap();
        let status = reply.status();
        let body = to_bytes(reply.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn probes_and_figures_answer() {
        let health = Health::default();
        let router = router(health.clone(), Metrics::new(World::new()));
        assert_eq!(get(&router, "/livez").await.0, StatusCode::OK);
        health.waits("objects", "the list of DnnModels");
        let (status, text) = get(&router, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(
            text.contains("[-]objects not ready: the list of DnnModels"),
            "{text}"
        );
        health.ready("objects");
        assert_eq!(get(&router, "/readyz").await.0, StatusCode::OK);
        let (status, text) = get(&router, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(
            text.contains("lamina_build_info") && text.ends_with("# EOF\n"),
            "{text}"
        );
    }
}

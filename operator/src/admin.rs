//! The admin port: what the operator knows of its pools, as JSON and as metrics.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::rebalance::view::PoolView;

/// The content type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Admin {
    view: watch::Receiver<PoolView>,
    metrics: Mutex<(Registry, Metrics)>,
}

/// Serves `GET /v1/pools`, `/metrics` and `/healthz` until `shutdown` resolves.
pub async fn serve(
    listener: TcpListener,
    view: watch::Receiver<PoolView>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let admin = Arc::new(Admin { view, metrics: Mutex::new((registry, metrics)) });
    let routes = Router::new()
        .route("/v1/pools", get(pools))
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(async || "ok\n"))
        .with_state(admin);
    axum::serve(listener, routes).with_graceful_shutdown(shutdown).await
}

async fn pools(State(admin): State<Arc<Admin>>) -> Json<[PoolView; 1]> {
    Json([admin.view.borrow().clone()])
}

async fn metrics_text(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let mut text = String::new();
    {
        let metrics = admin.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let (registry, metrics) = &*metrics;
        metrics.observe(&admin.view.borrow());
        encode(&mut text, registry).expect("memory takes any text");
    }
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text)
}

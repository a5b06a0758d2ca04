//! The admin port: what the operator knows of its pools, as JSON and as metrics.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::cluster::figure::{Figure, NoFigure};
use crate::cluster::index::PoolKey;
use crate::metrics::Metrics;
use crate::rebalance::view::PoolView;

/// The content type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pools look like now.
pub type Views = Arc<dyn Fn() -> Vec<PoolView> + Send + Sync>;

/// `GET /v1/pools`.
pub fn pools(views: Views) -> Router {
    let pools = async |State(views): State<Views>| Json(views());
    Router::new().route("/v1/pools", get(pools)).with_state(views)
}

/// `GET /metrics` and `/healthz`.
pub fn observation(views: Views) -> Router {
    Router::new().route("/metrics", get(metrics)).route("/healthz", get(async || "ok\n")).with_state(views)
}

/// What a pool's figure is; `None` for a pool that is not known.
pub type Figures = Arc<dyn Fn(&PoolKey) -> Option<Result<Figure, NoFigure>> + Send + Sync>;

/// `GET /v1/pools/{namespace}/{name}/connections`: a number for autoscalers that ask by HTTP, such as KEDA's.
pub fn figures(figures: Figures) -> Router {
    Router::new().route("/v1/pools/{namespace}/{name}/connections", get(figure)).with_state(figures)
}

async fn figure(
    State(figures): State<Figures>,
    Path((namespace, name)): Path<(String, String)>,
) -> (StatusCode, Json<Value>) {
    let key = PoolKey { namespace, name };
    match figures(&key) {
        Some(Ok(figure)) => {
            (StatusCode::OK, Json(json!({"connections": figure.connections, "at": figure.at.to_string()})))
        }
        Some(Err(error)) => {
            let error = format!("no figure for the pool {key}: {error}");
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": error})))
        }
        None => (StatusCode::NOT_FOUND, Json(json!({"error": format!("there is no pool {key}")}))),
    }
}

/// Serves until `shutdown` resolves.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, routes).with_graceful_shutdown(shutdown).await
}

async fn metrics(State(views): State<Views>) -> impl IntoResponse {
    // Registered anew each time, so that nothing is left of a pool that is gone.
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    for view in views() {
        metrics.observe(&view);
    }
    let mut text = String::new();
    encode(&mut text, &registry).expect("memory takes any text");
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text)
}

//! The control port, where the operator places, grants and asks; and the metrics port.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use ring::wire::{Grant, Placed, PodPin, Report, Told};
use serde::de::DeserializeOwned;

use crate::auth::control::{Asked, Denied};
use crate::auth::since_1970_ms;
use crate::drain::DrainState;
use crate::evictor;
use crate::grants::Bucket;
use crate::metrics::PlacementResult;
use crate::placements;
use crate::problem::Refusal;
use crate::sidecar::Sidecar;

/// The largest request taken: a placement of 5,000 slots with some predecessors is below 8 MiB.
const LARGEST_BODY: usize = 16 * 1024 * 1024;

const DRAIN: &str = "/v1/drain";

/// The routes of the control port.
pub fn routes(sidecar: Arc<Sidecar>) -> Router {
    Router::new()
        .route("/v1/placement", put(place))
        .route("/v1/evictions", put(grant))
        .route("/v1/loads", put(loads))
        .route("/v1/pin", put(pin))
        .route("/v1/status", get(status))
        .route(DRAIN, put(drain).delete(undrain))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&sidecar), authorize))
        .layer(axum::extract::DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(sidecar)
}

/// Lets a request pass that carries the operator's token for it, where the sidecar has keys to check one.
async fn authorize(State(sidecar): State<Arc<Sidecar>>, request: Request, next: Next) -> Result<Response, Refusal> {
    let Some(auth) = &sidecar.control_auth else { return Ok(next.run(request).await) };
    if (request.method(), request.uri().path()) == (&Method::PUT, DRAIN) && from_hook(&sidecar, request.headers()) {
        return Ok(next.run(request).await);
    }
    let (head, body) = request.into_parts();
    let asked = format!("{} {}", head.method, head.uri.path());
    let deny = |denied: Denied| {
        sidecar.metrics.denied(denied.label());
        tracing::warn!(request = asked, %denied, "a control request was denied");
        Refusal(denied.status(), denied.label(), denied.to_string())
    };
    let token = head.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let now = since_1970_ms() / 1000;
    let signed = auth.signed(token, Asked { uid: &sidecar.config.uid, request: &asked }, now).map_err(deny)?;
    let body = axum::body::to_bytes(body, LARGEST_BODY)
        .await
        .map_err(|error| Refusal(StatusCode::PAYLOAD_TOO_LARGE, "too-large", error.to_string()))?;
    auth.admit(signed, &body, now).map_err(deny)?;
    Ok(next.run(Request::from_parts(head, body.into())).await)
}

/// Whether the app container's preStop hook asks: it cannot have the operator's token, and may only drain.
fn from_hook(sidecar: &Sidecar, headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    match (given, &sidecar.hook_token) {
        (Some(given), Some(token)) => {
            aws_lc_rs::constant_time::verify_slices_are_equal(given, token.as_bytes()).is_ok()
        }
        _ => false,
    }
}

/// The routes of the metrics port.
pub fn observation_routes(sidecar: Arc<Sidecar>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(sidecar)
}

async fn status(State(sidecar): State<Arc<Sidecar>>) -> Json<Report> {
    Json(sidecar.report())
}

async fn place(State(sidecar): State<Arc<Sidecar>>, body: Bytes) -> Result<Json<Report>, Refusal> {
    let Placed { target, placement } = read(&body).inspect_err(|_| {
        sidecar.metrics.placement(PlacementResult::Malformed);
    })?;
    meant(&sidecar, &target).inspect_err(|_| sidecar.metrics.placement(PlacementResult::OtherTarget))?;
    placements::accept(&sidecar, placement).map_err(|refused| {
        let (status, result) = refused.classify();
        let title = match result {
            PlacementResult::Older => "older",
            PlacementResult::OtherPool => "other-pool",
            PlacementResult::Conflicting => "conflicting",
            _ => "malformed",
        };
        tracing::warn!(%refused, "a placement was refused");
        Refusal(status, title, refused.to_string())
    })?;
    Ok(Json(sidecar.report()))
}

async fn grant(State(sidecar): State<Arc<Sidecar>>, body: Bytes) -> Result<Json<Report>, Refusal> {
    let grant: Grant = read(&body)?;
    meant(&sidecar, &grant.target)?;
    {
        let mut held = sidecar.grant();
        let (version, spent) = {
            let registry = sidecar.registry();
            (registry.view().version(), registry.spent())
        };
        let bucket = Bucket::grant(held.as_ref(), &grant, version, spent, Instant::now()).map_err(|refused| {
            sidecar.metrics.grants_refused.inc();
            Refusal(StatusCode::CONFLICT, "other-version", refused.to_string())
        })?;
        *held = Some(bucket);
    }
    sidecar.evictions.notify_one();
    Ok(Json(sidecar.report()))
}

async fn loads(State(sidecar): State<Arc<Sidecar>>, body: Bytes) -> Result<Json<Report>, Refusal> {
    let Told { target, loads } = read::<Told>(&body)?;
    meant(&sidecar, &target)?;
    let current = sidecar.view().version();
    if loads.version != current {
        let told = loads.version;
        let detail = format!("the loads are of {told}, this sidecar is at {current}; publish the placement first");
        return Err(Refusal(StatusCode::CONFLICT, "other-version", detail));
    }
    sidecar.tally().hear(&loads, Instant::now());
    Ok(Json(sidecar.report()))
}

async fn pin(State(sidecar): State<Arc<Sidecar>>, body: Bytes) -> Result<Json<Report>, Refusal> {
    let PodPin { target, until } = read(&body)?;
    meant(&sidecar, &target)?;
    let left = Duration::from_millis(until.saturating_sub(since_1970_ms()));
    sidecar.registry().pin_pod(until, left, Instant::now());
    Ok(Json(sidecar.report()))
}

async fn drain(State(sidecar): State<Arc<Sidecar>>) -> Json<Report> {
    begin_drain(&sidecar);
    Json(sidecar.report())
}

async fn undrain(State(sidecar): State<Arc<Sidecar>>) -> Json<Report> {
    evictor::call_off_drain(&sidecar).await;
    Json(sidecar.report())
}

/// Begins a drain, once.
pub fn begin_drain(sidecar: &Sidecar) {
    let timeout = sidecar.view().settings().drain.timeout.0;
    sidecar.drain().get_or_insert_with(|| {
        tracing::info!(seconds = timeout.as_secs(), "draining");
        DrainState::new(timeout, Instant::now())
    });
    sidecar.evictions.notify_one();
    sidecar.drain_begun.notify_one();
}

async fn metrics(State(sidecar): State<Arc<Sidecar>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    match sidecar.metrics.encode(&sidecar.report()) {
        Ok(text) => (kind, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(sidecar): State<Arc<Sidecar>>) -> (StatusCode, &'static str) {
    if sidecar.drain().is_some() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    if sidecar.retirement().is_retired(Instant::now()) {
        return (StatusCode::SERVICE_UNAVAILABLE, "its slot is gone\n");
    }
    if sidecar.config.is_router() && sidecar.view().placement.is_none() {
        return (StatusCode::SERVICE_UNAVAILABLE, "a router without a placement has nobody to hand connections to\n");
    }
    (StatusCode::OK, "ok\n")
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal(StatusCode::BAD_REQUEST, "malformed", error.to_string()))
}

/// Addresses are reused: a request for another sidecar is not for us.
fn meant(sidecar: &Sidecar, target: &str) -> Result<(), Refusal> {
    let mine = &sidecar.config.uid;
    if target == mine {
        return Ok(());
    }
    let detail = format!("the request is for the sidecar {target:?}, this one is {mine:?}");
    Err(Refusal(StatusCode::MISDIRECTED_REQUEST, "other-target", detail))
}

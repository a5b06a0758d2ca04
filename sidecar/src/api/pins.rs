//! Pins: keys that stay with the app beside this sidecar for a while.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use serde::Serialize;

use super::{bad_ttl, checked, openapi, ttl};
use crate::auth::since_1970_ms;
use crate::problem::Refusal;
use crate::registry::Unpinned;
use crate::sidecar::Sidecar;

/// A key that stays here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct Pin {
    /// The key.
    key: String,
    /// Until when, in milliseconds since 1970.
    until: u64,
}

impl Pin {
    fn new(key: String, until: Instant) -> Self {
        let left = until.saturating_duration_since(Instant::now());
        Self { key, until: since_1970_ms() + u64::try_from(left.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// Until when a key is pinned at this server.
#[utoipa::path(
    get,
    path = "/v1/keys/{key}/pin",
    params(("key" = String, Path, description = "The key, percent-encoded; at most 1024 bytes")),
    responses(
        (status = 200, description = "It is pinned here", body = Pin),
        (status = 400, description = "Not a key", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 401, description = "No token, or a wrong one", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 404, description = "It is not pinned here", body = openapi::Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn get(
    State(sidecar): State<Arc<Sidecar>>,
    key: Result<Path<String>, PathRejection>,
) -> Result<Json<Pin>, Refusal> {
    let key = checked(key)?;
    let until = sidecar.registry().pinned_until(&key);
    let Some(until) = until else {
        return Err(Refusal(StatusCode::NOT_FOUND, "no-pin", "this key is not pinned at this server".into()));
    };
    Ok(Json(Pin::new(key, until)))
}

/// Keep a key that is connected to this server here for a while, for a match or a call. Sent again, it goes on, until
/// `rebalance.maxPinned` after it began.
#[utoipa::path(
    put,
    path = "/v1/keys/{key}/pin",
    params(
        ("key" = String, Path, description = "The key, percent-encoded; at most 1024 bytes"),
        ("ttl" = String, Query, description = "For how long, 1s to the pool's rebalance.maxPinned"),
    ),
    responses(
        (status = 200, description = "It stays here, at most until then", body = Pin),
        (status = 400, description = "Not a key, or not a time to live; the detail says what the pool allows", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 401, description = "No token, or a wrong one", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 409, description = "The key has no connection at this server, or has been pinned for long enough, or connections of this pool have no keys, or this server is about to end, or the pool allows no pins", body = openapi::Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn put(
    State(sidecar): State<Arc<Sidecar>>,
    key: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Pin>, Refusal> {
    let key = checked(key)?;
    let view = sidecar.view();
    let conflict = |title, detail: &str| Refusal(StatusCode::CONFLICT, title, detail.to_owned());
    if view.by_load() {
        let detail =
            "connections of this pool have no keys; the pod's annotation wspool.dev/pinned-until keeps all of them";
        return Err(conflict("keyless", detail));
    }
    let most = view.settings().max_pinned.0;
    if most.0.is_zero() {
        return Err(conflict("no-pins", "this pool allows no pins: spec.rebalance.maxPinned is 0s"));
    }
    let given = ttl(request.uri().query().unwrap_or_default(), most)?;
    let ttl = given.ok_or_else(|| bad_ttl("there is no ttl in the query", most))?;
    let pinned = sidecar.registry().pin(&key, ttl, Instant::now());
    let until = pinned.map_err(|why| match why {
        Unpinned::NotHere => conflict(
            "not-here",
            "this key has no connection at this server, or its clients are being moved away; GET /v1/keys/{key} says where \
             it is: pin it there",
        ),
        Unpinned::Spent => conflict(
            "spent",
            "this key belongs to another server, and has been pinned for as long as spec.rebalance.maxPinned allows; it moves \
             now",
        ),
        Unpinned::Ending => conflict("ending", "this server is about to end, and its connections move now"),
    })?;
    Ok(Json(Pin::new(key, until)))
}

/// Let a key go where it belongs.
#[utoipa::path(
    delete,
    path = "/v1/keys/{key}/pin",
    params(("key" = String, Path, description = "The key, percent-encoded; at most 1024 bytes")),
    responses(
        (status = 204, description = "It is not pinned here any more"),
        (status = 400, description = "Not a key", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 401, description = "No token, or a wrong one", body = openapi::Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete(
    State(sidecar): State<Arc<Sidecar>>,
    key: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Refusal> {
    let key = checked(key)?;
    sidecar.registry().unpin(&key);
    Ok(StatusCode::NO_CONTENT)
}

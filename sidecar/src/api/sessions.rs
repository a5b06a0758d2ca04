//! Sessions, which outlive their key's server.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ring::Version;
use ring::duration::GoDuration;
use ring::wire::header::EPOCH;

use super::{checked, openapi, read_body, size_of, ttl, unsent};
use crate::messages;
use crate::problem::Refusal;
use crate::redis::session::{self, DEFAULT_TTL, LONGEST_TTL, Session, SessionError};
use crate::sidecar::Sidecar;

/// What the app remembers of a key.
#[utoipa::path(
    get,
    path = "/v1/keys/{key}/session",
    params(("key" = String, Path, description = "The key, percent-encoded; at most 1024 bytes")),
    responses(
        (status = 200, description = "The session, with the content type it was written with; wspool-epoch is that of its writer", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "There is none", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 400, description = "Not a key", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 401, description = "No token, or a wrong one", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 403, description = "The keys of this pool prove nothing", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 409, description = "The pool has no Redis", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 503, description = "Redis does not answer, or as much is on its way as may be", body = openapi::Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn get(
    State(sidecar): State<Arc<Sidecar>>,
    key: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    let key = trusted(&sidecar, key)?;
    let _room = sidecar.messages.room(session::LARGEST).await.map_err(unsent)?;
    let Some(session) = session::get(&sidecar, &key).await.map_err(unkept)? else {
        return Err(Refusal(StatusCode::NOT_FOUND, "no-session", "there is no session of this key".into()));
    };
    let content_type =
        HeaderValue::from_str(&session.content_type).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    Ok(([(header::CONTENT_TYPE, content_type)], [(EPOCH, session.version.token())], session.body).into_response())
}

/// Remember something of a key. With the `wspool-epoch` that the key's handshake came with, a server that has lost the key
/// cannot overwrite what its next one has written.
#[utoipa::path(
    put,
    path = "/v1/keys/{key}/session",
    params(
        ("key" = String, Path, description = "The key, percent-encoded; at most 1024 bytes"),
        ("ttl" = Option<String>, Query, description = "How long it is kept, 1s to 720h. Left out: 1h"),
        ("wspool-epoch" = Option<String>, Header, description = "The header of this name in the key's handshake. Not needed where the key is connected, or belongs"),
    ),
    request_body(description = "The session, at most 262144 bytes", content_type = "application/octet-stream", content = Vec<u8>),
    responses(
        (status = 204, description = "It is written"),
        (status = 400, description = "Not a key, not a time to live, or not an epoch", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 401, description = "No token, or a wrong one", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 403, description = "The keys of this pool prove nothing", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 409, description = "A newer placement has written it; the key is at another server, and no epoch was sent; or the pool has no Redis", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 413, description = "The session is too long", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 503, description = "Redis does not answer, or as much is on its way as may be", body = openapi::Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn put(
    State(sidecar): State<Arc<Sidecar>>,
    key: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let key = trusted(&sidecar, key)?;
    let given = ttl(request.uri().query().unwrap_or_default(), GoDuration(LONGEST_TTL))?;
    let ttl = given.unwrap_or(DEFAULT_TTL);
    let version = version(&sidecar, &key, request.headers())?;
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or("application/octet-stream").to_owned();
    let too_long = || {
        let detail = format!("a session has at most {} bytes; keep less, or a reference", session::LARGEST);
        Refusal(StatusCode::PAYLOAD_TOO_LARGE, "too-long", detail)
    };
    // Redis may hang: what waits for it takes up what messages may.
    let _room = sidecar.messages.room(size_of(&request)).await.map_err(unsent)?;
    let body = read_body(request.into_body(), session::LARGEST, too_long).await?;
    session::put(&sidecar, &key, Session { version, content_type, body }, ttl).await.map_err(unkept)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Forget a key's session. As with `PUT`, a server that has lost the key cannot.
#[utoipa::path(
    delete,
    path = "/v1/keys/{key}/session",
    params(
        ("key" = String, Path, description = "The key, percent-encoded; at most 1024 bytes"),
        ("wspool-epoch" = Option<String>, Header, description = "The header of this name in the key's handshake. Not needed where the key is connected, or belongs"),
    ),
    responses(
        (status = 204, description = "There is none any more"),
        (status = 400, description = "Not a key, or not an epoch", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 401, description = "No token, or a wrong one", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 403, description = "The keys of this pool prove nothing", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 409, description = "A newer placement has written it; the key is at another server, and no epoch was sent; or the pool has no Redis", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 503, description = "Redis does not answer", body = openapi::Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn delete(
    State(sidecar): State<Arc<Sidecar>>,
    key: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<StatusCode, Refusal> {
    let key = trusted(&sidecar, key)?;
    let version = version(&sidecar, &key, &headers)?;
    session::delete(&sidecar, &key, version).await.map_err(unkept)?;
    Ok(StatusCode::NO_CONTENT)
}

/// A key of a pool whose keys prove who their clients are.
fn trusted(sidecar: &Sidecar, key: Result<Path<String>, PathRejection>) -> Result<String, Refusal> {
    let key = checked(key)?;
    messages::check_trust(&sidecar.view()).map_err(unsent)?;
    Ok(key)
}

/// The placement under which this server has the key.
fn version(sidecar: &Sidecar, key: &str, headers: &HeaderMap) -> Result<Version, Refusal> {
    let given = headers.get(EPOCH).map(|given| {
        given.to_str().ok().and_then(Version::from_token).ok_or_else(|| {
            let detail = format!("{EPOCH} is {given:?}; send the header of this name that came with the handshake");
            Refusal(StatusCode::BAD_REQUEST, "bad-epoch", detail)
        })
    });
    let given = given.transpose()?;
    let registry = sidecar.registry();
    let view = registry.view();
    // While it is here nobody else has it, however old the connection is that the app speaks of.
    if registry.holds(key) {
        return Ok(view.version());
    }
    let owns = view.by_load() || view.standing(key).is_none_or(|standing| standing.mine);
    given.or(owns.then(|| view.version())).ok_or_else(|| {
        let detail = format!("this key is at another server; send the {EPOCH} that came with its handshake");
        Refusal(StatusCode::CONFLICT, "not-here", detail)
    })
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn unkept(error: SessionError) -> Refusal {
    let (status, title) = match error {
        SessionError::NoRedis => (StatusCode::CONFLICT, "no-redis"),
        SessionError::Stale(_) => (StatusCode::CONFLICT, "stale"),
        SessionError::Away(_) => (StatusCode::SERVICE_UNAVAILABLE, "redis-away"),
    };
    Refusal(status, title, error.to_string())
}

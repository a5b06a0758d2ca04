//! The local API: what the app beside this sidecar asks, in any language.
//!
//! It listens on loopback or at a Unix socket. With a token file every request carries one of its tokens; without, it is
//! open to whoever can reach it, but never to pages in a browser. Its description is [`openapi`], and `openapi.json`.

mod address;
mod openapi;
mod pins;
mod sessions;
mod token;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http_body::Body as _;
use ring::duration::GoDuration;
use ring::notice::MessageKind;
use ring::wire::{Delivered, Peer};
use serde::Serialize;

pub use self::address::{ApiAddress, ApiListener};
pub use self::openapi::document;
pub use self::token::{install as install_token, tokens};
use crate::auth::since_1970_ms;
use crate::key;
use crate::message::{LARGEST, Message, NoMessage};
use crate::messages::{self, Unsent};
use crate::problem::Refusal;
use crate::sidecar::Sidecar;

/// How long a request's body may take: it comes from the same machine.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The routes of the local API.
pub fn routes(sidecar: Arc<Sidecar>) -> Router {
    Router::new()
        .route("/v1/keys/{key}", get(find))
        .route("/v1/keys/{key}/messages", post(send))
        .route("/v1/keys/{key}/pin", get(pins::get).put(pins::put).delete(pins::delete))
        .route("/v1/keys/{key}/session", get(sessions::get).put(sessions::put).delete(sessions::delete))
        .route("/v1/messages", post(send_to_all))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&sidecar), authorize))
        .route("/v1/openapi.json", get(async || Json(document())))
        .with_state(sidecar)
}

/// What happened to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
struct Sent {
    /// Connections that it was written to. Whether a client has read it is not known.
    written: u32,
    /// Connections that are moving and get it when they arrive, within 20 s. What does not arrive by then is dropped, and
    /// counted in `wspool_messages_dropped_total`.
    held: u32,
    /// Connections that do not get it: their client does not read, or cannot bear it, or there is no room to hold it.
    /// Left out when there are none.
    #[serde(skip_serializing_if = "is_zero")]
    dropped: u32,
    /// Sidecars that could not be reached, when a message is for everybody. Left out when there are none.
    #[serde(skip_serializing_if = "is_zero")]
    unreachable: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Sent {
    fn new(delivered: &Delivered, unreachable: u32) -> Self {
        Self { written: delivered.written, held: delivered.held, dropped: delivered.dropped, unreachable }
    }
}

/// Where a key is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
struct Found {
    /// The key.
    key: String,
    /// How many connections it has.
    count: u64,
    /// Its connections. Of each server those that have been there for longest, 1000 at most.
    connections: Vec<FoundConnection>,
    /// Sidecars that may have connections of the key, and could not be asked.
    unreachable: Vec<Server>,
}

/// A connection of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
struct FoundConnection {
    /// Where it is.
    server: Server,
    /// Since when, in milliseconds since 1970.
    since: u64,
    /// Whether its key proves who the client is.
    trusted: bool,
}

/// A sidecar, and the app beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
struct Server {
    /// The UID of its pod.
    uid: String,
    /// Where the sidecar takes clients, `host:port`.
    address: String,
}

impl From<Peer> for Server {
    fn from(Peer { uid, address }: Peer) -> Self {
        Self { uid, address }
    }
}

/// Send a message to every connection of a key, wherever in the pool it is. Messages of one key that are sent one after
/// the other arrive in this order.
#[utoipa::path(
    post,
    path = "/v1/keys/{key}/messages",
    params(("key" = String, Path, description = "The key, percent-encoded; at most 1024 bytes")),
    request_body(
        description = "The message, at most 262144 bytes. Text arrives as a text message, octets as a binary one.",
        content((String = "text/plain"), (String = "application/json"), (Vec<u8> = "application/octet-stream"))
    ),
    responses(
        (status = 200, description = "What happened", body = Sent),
        (status = 400, description = "Not a key, or not a message", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 401, description = "No token, or a wrong one", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 403, description = "The keys of this pool prove nothing", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 409, description = "The connections of this pool have no keys", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 413, description = "The message is too long", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 415, description = "Neither text nor octets", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 429, description = "More than the key's connections take", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 503, description = "Nobody could be given the message: no server, none that can be reached, none that knows yet where the key is, or too many messages are on their way", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 504, description = "The message may have been written", body = openapi::Problem, content_type = "application/problem+json"),
    )
)]
async fn send(
    State(sidecar): State<Arc<Sidecar>>,
    key: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Sent>, Refusal> {
    let key = checked(key)?;
    let kind = kind_of(request.headers())?;
    let _room = sidecar.messages.room(size_of(&request)).await.map_err(unsent)?;
    let message = read(kind, request.into_body()).await?;
    let delivered = messages::send(&sidecar, &key, &message).await.map_err(unsent)?;
    Ok(Json(Sent::new(&delivered, 0)))
}

/// Send a message to every connection of the pool. Nothing is held: a client that is moving misses it.
#[utoipa::path(
    post,
    path = "/v1/messages",
    request_body(
        description = "The message, at most 262144 bytes. Text arrives as a text message, octets as a binary one.",
        content((String = "text/plain"), (String = "application/json"), (Vec<u8> = "application/octet-stream"))
    ),
    responses(
        (status = 200, description = "What happened", body = Sent),
        (status = 400, description = "Not a message", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 401, description = "No token, or a wrong one", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 403, description = "The keys of this pool prove nothing", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 413, description = "The message is too long", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 415, description = "Neither text nor octets", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 503, description = "As many messages as may be are on their way", body = openapi::Problem, content_type = "application/problem+json"),
    )
)]
async fn send_to_all(State(sidecar): State<Arc<Sidecar>>, request: Request) -> Result<Json<Sent>, Refusal> {
    let kind = kind_of(request.headers())?;
    let _room = sidecar.messages.room(size_of(&request)).await.map_err(unsent)?;
    let message = read(kind, request.into_body()).await?;
    let (delivered, unreachable) = messages::send_to_all(&sidecar, &message).await.map_err(unsent)?;
    Ok(Json(Sent::new(&delivered, unreachable)))
}

/// Where a key is connected, and since when.
#[utoipa::path(
    get,
    path = "/v1/keys/{key}",
    params(("key" = String, Path, description = "The key, percent-encoded; at most 1024 bytes")),
    responses(
        (status = 200, description = "Its connections; none when there are none", body = Found),
        (status = 400, description = "Not a key", body = openapi::Problem, content_type = "application/problem+json"),
        (status = 401, description = "No token, or a wrong one", body = openapi::Problem, content_type = "application/problem+json"),
    )
)]
async fn find(
    State(sidecar): State<Arc<Sidecar>>,
    key: Result<Path<String>, PathRejection>,
) -> Result<Json<Found>, Refusal> {
    let key = checked(key)?;
    let now = since_1970_ms();
    let (mut count, mut connections, mut unreachable) = (0, Vec::new(), Vec::new());
    for (peer, answer) in messages::find(&sidecar, &key).await {
        let server = Server::from(peer);
        match answer {
            Err(_) => unreachable.push(server),
            Ok(there) => {
                count += there.count;
                connections.extend(there.connections.into_iter().map(|it| FoundConnection {
                    server: server.clone(),
                    since: now.saturating_sub(it.age_ms),
                    trusted: it.trusted,
                }));
            }
        }
    }
    Ok(Json(Found { key, count, connections, unreachable }))
}

async fn unknown() -> Refusal {
    let detail = "there is nothing here; GET /v1/openapi.json says what there is";
    Refusal(StatusCode::NOT_FOUND, "not-found", detail.into())
}

async fn wrong_method() -> Refusal {
    let detail = "this has other methods; GET /v1/openapi.json says which";
    Refusal(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", detail.into())
}

async fn authorize(State(sidecar): State<Arc<Sidecar>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let Some(tokens) = &sidecar.api_tokens else {
        // A page that a browser of this machine shows could send messages without reading the answer.
        if headers.contains_key(header::ORIGIN) {
            let detail = "requests of web pages are not served; give the sidecar an --api-token-file";
            return Refusal(StatusCode::FORBIDDEN, "web-page", detail.into()).into_response();
        }
        return next.run(request).await;
    };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if given.is_some_and(|given| token::is_one_of(given.trim_ascii(), &tokens.keys())) {
        return next.run(request).await;
    }
    let detail = match given {
        Some(_) => "the token is not in the sidecar's token file; read the file that WSPOOL_API_TOKEN_FILE names again",
        None => "send Authorization: Bearer, with the token in the file that WSPOOL_API_TOKEN_FILE names",
    };
    let mut response = Refusal(StatusCode::UNAUTHORIZED, "unauthorized", detail.into()).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    response
}

fn checked(key: Result<Path<String>, PathRejection>) -> Result<String, Refusal> {
    let refuse = |detail: String| Refusal(StatusCode::BAD_REQUEST, "bad-key", detail);
    let Path(key) = key.map_err(|error| refuse(error.body_text()))?;
    key::check_key(&key).map_err(|error| refuse(error.to_string()))?;
    Ok(key)
}

/// The `ttl` in a query, a second at least; `None` when there is none.
fn ttl(query: &str, longest: GoDuration) -> Result<Option<Duration>, Refusal> {
    let Some(given) = query.split('&').find_map(|pair| pair.strip_prefix("ttl=")) else { return Ok(None) };
    let ttl = given.parse::<GoDuration>().ok().map(|ttl| ttl.0);
    let allowed = Duration::from_secs(1)..=longest.0;
    let ttl = ttl.filter(|ttl| allowed.contains(ttl));
    ttl.map(Some).ok_or_else(|| bad_ttl(&format!("the ttl is {given:?}"), longest))
}

fn bad_ttl(said: &str, longest: GoDuration) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, "bad-ttl", format!("{said}; write 1s to {longest}"))
}

/// How a message is sent, by its content type.
fn kind_of(headers: &HeaderMap) -> Result<MessageKind, Refusal> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/octet-stream" {
        Ok(MessageKind::Binary)
    } else if essence == "application/json" || essence.starts_with("text/") {
        Ok(MessageKind::Text)
    } else {
        let detail = format!(
            "the Content-Type is {content_type:?}; send text/plain or application/json for a text message, \
             application/octet-stream for a binary one"
        );
        Err(Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", detail))
    }
}

/// What a request's body may take up.
fn size_of(request: &Request) -> usize {
    request.body().size_hint().upper().and_then(|size| size.try_into().ok()).unwrap_or(LARGEST)
}

async fn read(kind: MessageKind, body: Body) -> Result<Message, Refusal> {
    let refuse = |error: NoMessage| match error {
        NoMessage::TooLong => Refusal(StatusCode::PAYLOAD_TOO_LARGE, "too-long", error.to_string()),
        NoMessage::NotUtf8 => Refusal(StatusCode::BAD_REQUEST, "not-utf-8", error.to_string()),
    };
    let body = read_body(body, LARGEST, || refuse(NoMessage::TooLong)).await?;
    Message::new(kind, &body).map_err(refuse)
}

async fn read_body(body: Body, largest: usize, too_long: impl Fn() -> Refusal) -> Result<Bytes, Refusal> {
    let late = || Refusal(StatusCode::REQUEST_TIMEOUT, "late", "the body did not come in time".into());
    let body = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, largest)).await.map_err(|_| late())?;
    body.map_err(|_| too_long())
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn unsent(unsent: Unsent) -> Refusal {
    let status = match unsent {
        Unsent::Unverified => StatusCode::FORBIDDEN,
        Unsent::Keyless => StatusCode::CONFLICT,
        Unsent::TooFast => StatusCode::TOO_MANY_REQUESTS,
        Unsent::NoHolder | Unsent::Unreachable | Unsent::Refused | Unsent::Overloaded | Unsent::Unsettled => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Unsent::Unanswered => StatusCode::GATEWAY_TIMEOUT,
    };
    Refusal(status, unsent.label(), unsent.to_string())
}

//! Everything that is not a WebSocket handshake on a fresh connection: plain HTTP, streamed both ways by hyper, requests
//! between sidecars, and handshakes that come later on a connection that was kept alive.

mod body;
mod events;
pub(crate) mod forward;

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use futures_util::FutureExt as _;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::claim::Arrival;
use ring::notice::MessageKind;
use ring::wire::{Claim, CutOver, Draining, Peer, Problem, Returns, Whereabouts};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::admission::{self, Decision, Refusal};
use crate::auth::sha256;
use crate::gateway;
use crate::head::{MAX_REQUEST_FIELDS, RequestHead};
use crate::identity;
use crate::key::KeyError;
use crate::message::{self, Message};
use crate::messages::{self, Errand};
use crate::origin::{self, Origin};
use crate::peers::{
    self, BETWEEN_SIDECARS, BROADCASTS, CLAIMS, CONNECTIONS, CUT_OVERS, DRAINING, MESSAGES, RETURNS, SESSIONS,
    WHEREABOUTS,
};
use crate::sidecar::Sidecar;
use crate::upgrade::{self, Connected, Outcome};
use crate::view::View;

pub(crate) use body::Body;
use body::Later;
use forward::Passage;

/// The largest request between sidecars that is no message.
const LARGEST_PEER_REQUEST: usize = 64 * 1024;

/// Serves one connection until it ends, or until it turns into a WebSocket.
pub async fn serve(
    sidecar: Arc<Sidecar>,
    stream: TcpStream,
    remote: SocketAddr,
    head: RequestHead,
) -> Option<Connected> {
    let io = TokioIo::new(Rewound { prefix: head.into_bytes(), stream });
    let course: Rc<Course> = Rc::default();
    let service = {
        let (sidecar, course) = (Arc::clone(&sidecar), Rc::clone(&course));
        service_fn(move |request| {
            let (sidecar, course) = (Arc::clone(&sidecar), Rc::clone(&course));
            async move { Ok::<_, Infallible>(answer(sidecar, remote, request, &course).await) }
        })
    };
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(std::time::Duration::from_secs(75))
        .preserve_header_case(true)
        .max_buf_size(64 * 1024)
        .max_headers(MAX_REQUEST_FIELDS)
        .serve_connection(io, service)
        .with_upgrades();
    let served = std::future::poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Pending if course.events.is_stuck(cx) => Poll::Ready(Ok(())),
        polled => polled,
    });
    if let Err(error) = served.await {
        if error.is_parse() {
            sidecar.metrics.bad_request("malformed");
        }
        tracing::debug!(%error, "a plain connection ended early");
    }
    drop(connection);
    let Upgraded { on_upgrade, pending } = course.upgraded.take()?;
    let parts = on_upgrade.await.ok()?.downcast::<TokioIo<Rewound>>().ok()?;
    let Rewound { prefix, stream } = parts.io.into_inner();
    let mut rest = parts.read_buf.to_vec();
    rest.extend_from_slice(&prefix);
    Some(pending.with_client(stream, rest))
}

/// What the requests of a connection have made of it.
#[derive(Default)]
struct Course {
    upgraded: Cell<Option<Upgraded>>,
    events: events::Current,
}

/// A handshake that hyper has answered with 101.
struct Upgraded {
    on_upgrade: hyper::upgrade::OnUpgrade,
    pending: upgrade::Accepted,
}

async fn answer(
    sidecar: Arc<Sidecar>,
    remote: SocketAddr,
    request: Request<Incoming>,
    course: &Course,
) -> Response<Body> {
    if let Err((status, sentence)) = check(&request) {
        sidecar.metrics.bad_request("ambiguous");
        let mut response = text(status, sentence);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    if is_handshake(&request) {
        return upgrade_later(&sidecar, remote, request, &course.upgraded).await;
    }
    let view = sidecar.view();
    let target = path_and_query(request.uri()).to_owned();
    let asked = origin::Request { remote: remote.ip(), method: request.method().as_str(), target: &target };
    let get = |name: &str| request.headers().get(name).map(HeaderValue::as_bytes);
    let (key, arrival, from_peer) = match origin::origin(&sidecar, &view, asked, get) {
        Origin::Misdirected => return text(StatusCode::MISDIRECTED_REQUEST, "this is another sidecar"),
        Origin::Peer { key, .. } if request.uri().path().starts_with(BETWEEN_SIDECARS) => {
            let _asked = Arc::clone(&sidecar.asked);
            return match request.uri().path() {
                CLAIMS => answer_claim(&sidecar, request).await,
                CUT_OVERS => answer_cut_over(&sidecar, request).await,
                DRAINING => answer_draining(&sidecar, request).await,
                RETURNS => answer_returns(&sidecar, request).await,
                WHEREABOUTS => answer_whereabouts(&sidecar, request).await,
                MESSAGES => answer_message(&sidecar, request, key).await,
                BROADCASTS => answer_broadcast(&sidecar, request).await,
                CONNECTIONS => answer_connections(&sidecar, key.as_deref()),
                SESSIONS => answer_session(&sidecar, &request),
                _ => text(StatusCode::NOT_FOUND, "sidecars ask each other nothing here"),
            };
        }
        Origin::Peer { key, arrival, .. } => (key, arrival, true),
        // Never passed on: to a peer it would go with the proof of this sidecar.
        Origin::Client if request.uri().path().starts_with(BETWEEN_SIDECARS) => return not_a_peer(&sidecar),
        Origin::Client if gateway::asks(view.settings(), request.uri().path()) => {
            return gateway::answer(&sidecar, &view, remote.ip(), &request).await;
        }
        Origin::Client => match identity::read(&sidecar, &view.settings().key, &request).await {
            Ok(key) => (key, Arrival::Owner, false),
            // The app judges it, as it would without us: what renews a token comes with one that has expired.
            Err(KeyError::Token(_)) => (None, Arrival::Owner, false),
            Err(error) => {
                sidecar.metrics.bad_request(error.label());
                return text(StatusCode::BAD_REQUEST, &error.to_string());
            }
        },
    };
    let key = key.as_deref();
    let events = &course.events;
    Passage { sidecar: &sidecar, view: &view, remote, key, arrival, from_peer, events }.pass(request).await
}

fn is_handshake(request: &Request<Incoming>) -> bool {
    let websocket = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket");
    request.method() == Method::GET && request.headers().get(header::UPGRADE).is_some_and(websocket)
}

/// A handshake on a connection that was kept alive, as proxies in front send them.
async fn upgrade_later(
    sidecar: &Arc<Sidecar>,
    remote: SocketAddr,
    mut request: Request<Incoming>,
    upgraded: &Cell<Option<Upgraded>>,
) -> Response<Body> {
    let on_upgrade = hyper::upgrade::on(&mut request);
    let Some(head) = RequestHead::of_request(&request) else {
        return text(StatusCode::BAD_REQUEST, "this upgrade cannot be understood");
    };
    if let Some(Err(error)) = head.upgrade() {
        sidecar.metrics.bad_request(error.label());
        return answered(&error.response().unwrap_or_default(), None);
    }
    match upgrade::accept(sidecar, remote, head).await {
        Outcome::Switched(raw, pending) => {
            upgraded.set(Some(Upgraded { on_upgrade, pending }));
            answered(&raw, Some(Vec::new()))
        }
        Outcome::Answered(raw, body) => answered(&raw, Some(body)),
        Outcome::Refused(raw) => answered(&raw, None),
    }
}

/// An answer for hyper to write, from its raw head. Without a body of its own the bytes behind the head are the body.
fn answered(raw: &[u8], body: Option<Vec<u8>>) -> Response<Body> {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(length)) = parsed.parse(raw) else {
        return text(StatusCode::BAD_GATEWAY, "the app's answer cannot be understood");
    };
    let body = body.unwrap_or_else(|| raw[length..].to_vec());
    let mut response = Response::new(Body::own(body));
    *response.status_mut() = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or_default();
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    for field in parsed.headers.iter() {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(field.name), HeaderValue::from_bytes(field.value)) {
            response.headers_mut().append(name, value);
        }
    }
    if !switching {
        // Its framing is hyper's to write.
        for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH] {
            response.headers_mut().remove(name);
        }
    }
    response
}

/// What hyper leaves to us in a later request of a connection: ambiguity that another parser behind us could read in
/// another way. Of two lengths it has dropped one already, as RFC 9112, section 6.3, says.
fn check(request: &Request<Incoming>) -> Result<(), (StatusCode, &'static str)> {
    let headers = request.headers();
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Err((StatusCode::BAD_REQUEST, "a request has one Host header"));
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if encodings.next().is_some_and(|encoding| encoding != "chunked") || encodings.next().is_some() {
        return Err((StatusCode::NOT_IMPLEMENTED, "the only Transfer-Encoding served here is chunked"));
    }
    if request.method() == Method::CONNECT {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not served here"));
    }
    Ok(())
}

async fn answer_claim(sidecar: &Arc<Sidecar>, request: Request<Incoming>) -> Response<Body> {
    let Some(claim) = read::<Claim>(request).await else { return text(StatusCode::BAD_REQUEST, "not a claim") };
    match admission::answer_claim(sidecar, &claim).await {
        Some(answer) => json(StatusCode::OK, &answer),
        None => other_pool(),
    }
}

async fn answer_draining(sidecar: &Sidecar, request: Request<Incoming>) -> Response<Body> {
    let Some(draining) = read::<Draining>(request).await else {
        return text(StatusCode::BAD_REQUEST, "not a drain notice");
    };
    let mut registry = sidecar.registry();
    if registry.view().pool_uid() != draining.pool_uid {
        return other_pool();
    }
    registry.set_draining(&draining.uid, draining.draining);
    registry.set_gone(&draining.uid, draining.gone);
    empty(StatusCode::NO_CONTENT)
}

async fn answer_returns(sidecar: &Sidecar, request: Request<Incoming>) -> Response<Body> {
    let Some(Returns { pool_uid, keys }) = read(request).await else {
        return text(StatusCode::BAD_REQUEST, "not what is known of connections on their way");
    };
    let mut registry = sidecar.registry();
    if registry.view().pool_uid() != pool_uid {
        return other_pool();
    }
    registry.hear_returns(keys, Instant::now());
    empty(StatusCode::NO_CONTENT)
}

async fn answer_cut_over(sidecar: &Sidecar, request: Request<Incoming>) -> Response<Body> {
    let Some(CutOver { pool_uid, key, marker }) = read(request).await else {
        return text(StatusCode::BAD_REQUEST, "not the end of a cut-over");
    };
    if sidecar.view().pool_uid() != pool_uid {
        return other_pool();
    }
    sidecar.registry().complete_cut_over(&key, &marker);
    sidecar.released.notify_waiters();
    empty(StatusCode::NO_CONTENT)
}

fn answer_session(sidecar: &Sidecar, request: &Request<Incoming>) -> Response<Body> {
    let held =
        peers::session_in(request.uri().query().unwrap_or_default()).is_some_and(|id| sidecar.sessions.holds(&id));
    empty(if held { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND })
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::own(Bytes::new()));
    *response.status_mut() = status;
    response
}

async fn answer_whereabouts(sidecar: &Arc<Sidecar>, request: Request<Incoming>) -> Response<Body> {
    let Some(question) = read::<Whereabouts>(request).await else {
        return text(StatusCode::BAD_REQUEST, "not a question where a key is");
    };
    if sidecar.view().pool_uid() != question.pool_uid {
        return other_pool();
    }
    // Decided as for a handshake; the place is given back at once.
    match admission::admit(sidecar, &question.key, Arrival::Owner).await {
        Decision::Here(_) => json(StatusCode::OK, &sidecar.view().me),
        Decision::There(peer) => json(StatusCode::OK, &peer),
        Decision::Refused(refusal) => text(refusal.status(), &refusal.to_string()),
    }
}

async fn answer_message(sidecar: &Arc<Sidecar>, request: Request<Incoming>, key: Option<String>) -> Response<Body> {
    let errand = request.uri().query().and_then(Errand::from_query);
    let (Some(Errand { kind, role }), Some(key)) = (errand, key) else {
        return text(StatusCode::BAD_REQUEST, "not a message for a key");
    };
    let Ok(_room) = sidecar.messages.room(size_of(&request)).await else { return too_many() };
    let Some(message) = read_message(request, kind).await else {
        return text(StatusCode::BAD_REQUEST, "not a message");
    };
    match messages::deliver_for_peer(sidecar, key, message, role).await {
        Ok(messages::Answer::Known(delivered)) => json(StatusCode::OK, &delivered),
        Ok(messages::Answer::Later(delivered)) => {
            let body = delivered.map(|delivered| serde_json::to_vec(&delivered).unwrap_or_default().into());
            as_json(StatusCode::OK, Body::Later(Later::new(body)))
        }
        Err(unsettled) => text(StatusCode::CONFLICT, &unsettled.to_string()),
    }
}

async fn answer_broadcast(sidecar: &Sidecar, request: Request<Incoming>) -> Response<Body> {
    let Some(kind) = request.uri().query().and_then(messages::broadcast_kind) else {
        return text(StatusCode::BAD_REQUEST, "not a message for everybody");
    };
    let Ok(_room) = sidecar.messages.room(size_of(&request)).await else { return too_many() };
    let Some(message) = read_message(request, kind).await else {
        return text(StatusCode::BAD_REQUEST, "not a message");
    };
    match sidecar.messages.broadcast_turn().await {
        Ok(turn) => json(StatusCode::OK, &messages::deliver_to_all(sidecar, &message, turn).await),
        Err(_) => too_many(),
    }
}

fn other_pool() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "this sidecar does not belong to that pool")
}

fn too_many() -> Response<Body> {
    text(StatusCode::TOO_MANY_REQUESTS, "too many messages are on their way here")
}

/// What a message may take up.
fn size_of(request: &Request<Incoming>) -> usize {
    request.body().size_hint().upper().and_then(|size| size.try_into().ok()).unwrap_or(message::LARGEST)
}

fn answer_connections(sidecar: &Sidecar, key: Option<&str>) -> Response<Body> {
    let Some(key) = key else { return text(StatusCode::BAD_REQUEST, "not a question about a key") };
    json(StatusCode::OK, &messages::connections_here(sidecar, key))
}

async fn read_message(request: Request<Incoming>, kind: MessageKind) -> Option<Message> {
    Message::new(kind, &read_bytes(request, message::LARGEST).await?).ok()
}

async fn read<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> Option<T> {
    serde_json::from_slice(&read_bytes(request, LARGEST_PEER_REQUEST).await?).ok()
}

/// The body of a peer's request. Its proof covers the digest, and the digest the body.
async fn read_bytes(request: Request<Incoming>, largest: usize) -> Option<Bytes> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, largest).collect().await.ok()?.to_bytes();
    let digest = head.headers.get(ring::wire::header::DIGEST)?;
    (digest.as_bytes() == sha256(&body).as_bytes()).then_some(body)
}

fn path_and_query(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
}

fn refuse(sidecar: &Sidecar, refusal: Refusal) -> Response<Body> {
    sidecar.metrics.refused(refusal.label());
    let mut response = text(refusal.status(), &refusal.to_string());
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn redirect(view: &View, owner: &Peer) -> Response<Body> {
    let mut response = text(StatusCode::MISDIRECTED_REQUEST, "this key belongs to another sidecar");
    insert(response.headers_mut(), origin::headers_of_redirect(view, owner));
    response
}

/// Sets headers of ours, in place of any of the same name.
fn insert(headers: &mut HeaderMap, ours: impl IntoIterator<Item = (&'static str, String)>) {
    for (name, value) in ours {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

fn not_a_peer(sidecar: &Sidecar) -> Response<Body> {
    sidecar.metrics.bad_request("not_a_peer");
    let status = StatusCode::FORBIDDEN;
    let detail =
        format!("{BETWEEN_SIDECARS} is for sidecars of this pool, and this request does not prove to be of one");
    let mut response = json(status, &Problem { status: status.as_u16(), title: "not-a-peer".into(), detail });
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(Problem::CONTENT_TYPE));
    response
}

pub(crate) fn text(status: StatusCode, sentence: &str) -> Response<Body> {
    let mut response = Response::new(Body::own(format!("{sentence}\n")));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(body) {
        Ok(bytes) => as_json(status, Body::own(bytes)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn as_json(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A stream some of whose bytes have been read already.
#[derive(Debug)]
struct Rewound {
    prefix: Bytes,
    stream: TcpStream,
}

impl AsyncRead for Rewound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let length = self.prefix.len().min(into.remaining());
        into.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! Passing plain requests on, to the app here or to the owner of their key.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use ring::claim::Arrival;
use ring::wire::Peer;

use super::body::{Beginning, Body};
use super::events::{Current, Events};
use super::{insert, path_and_query, redirect, refuse, text};
use crate::admission::{self, Decision, PLACEMENT_WAIT, Place, REDIRECTS, Refusal};
use crate::origin::{self, Known};
use crate::sessions::dialect::{Dialect, Farewell};
use crate::sessions::{self, First};
use crate::sidecar::Sidecar;
use crate::view::View;

/// The media type of streams of events.
const EVENT_STREAM: &str = "text/event-stream";

type Outgoing = Either<Incoming, Full<Bytes>>;

/// Connections to the app and to peers for plain HTTP, kept alive.
#[derive(Clone, Debug)]
pub struct Forwarder(Client<HttpConnector, Outgoing>);

impl Default for Forwarder {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .http1_preserve_header_case(true)
            .set_host(false)
            .build(connector);
        Self(client)
    }
}

/// A plain request whose key is known.
pub(super) struct Passage<'a> {
    pub(super) sidecar: &'a Arc<Sidecar>,
    pub(super) view: &'a View,
    pub(super) remote: SocketAddr,
    pub(super) key: Option<&'a str>,
    pub(super) arrival: Arrival,
    pub(super) from_peer: bool,
    /// Of the connection that it came on.
    pub(super) events: &'a Current,
}

impl Passage<'_> {
    /// Gets it answered.
    pub(super) async fn pass(&self, mut request: Request<Incoming>) -> Response<Body> {
        let mut decision = self.begin(&request).await;
        strip(request.headers_mut());
        if !self.from_peer {
            append_forwarded_for(request.headers_mut(), self.remote);
        }
        let mut request = request.map(Either::Left);
        for _ in 0..=REDIRECTS {
            let peer = match decision {
                Decision::Here(place) => return self.ask_app(request, place).await,
                Decision::There(owner) if self.from_peer => return redirect(self.view, &owner),
                Decision::There(owner) => self.reachable(owner),
                Decision::Refused(refusal) => return refuse(self.sidecar, refusal),
            };
            if accepts_events(request.headers()) && self.sidecar.registry().is_full() {
                return refuse(self.sidecar, Refusal::Full);
            }
            let again = copy(&request);
            let response = self.ask_peer(request, &peer).await;
            let Some((to, epoch)) = redirected(&response) else {
                return response.map_or_else(|answer| answer, |response| self.answer_of_peer(response));
            };
            self.sidecar.metrics.redirects.inc();
            // The body of this one has gone.
            let Some(again) = again else { break };
            if epoch < self.view.version().epoch {
                tokio::time::sleep(PLACEMENT_WAIT).await;
            }
            decision = if to.uid == self.view.me.uid { self.decide().await } else { Decision::There(to) };
            request = again;
        }
        refuse(self.sidecar, Refusal::StillLeaving)
    }

    /// Whom it goes to first: one of a session to whoever holds that.
    async fn begin(&self, request: &Request<Incoming>) -> Decision {
        let (method, target) = (request.method(), path_and_query(request.uri()));
        let asked = sessions::Request { key: self.key, method, target, is_handshake: false };
        match sessions::locate(self.sidecar, self.view, asked).await {
            Some(decision) => decision,
            None if self.view.by_load() && !self.from_peer && accepts_events(request.headers()) => {
                self.balance(request).await
            }
            None => self.decide().await,
        }
    }

    /// Where load decides a stream of events goes where a WebSocket would: it counts as one, and is moved as one. Nobody is
    /// sent to a peer that cannot be reached, since an `EventSource` gives up for good when its first answer is an error.
    async fn balance(&self, request: &Request<Incoming>) -> Decision {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let mut decision = admission::by_load(self.sidecar, self.view, host, path_and_query(request.uri()));
        for _ in 0..REDIRECTS {
            match &decision {
                Decision::There(peer) if !self.sidecar.peers.is_reachable(peer).await => {
                    decision = admission::balance(self.sidecar, self.view, &[]);
                }
                _ => break,
            }
        }
        decision
    }

    async fn decide(&self) -> Decision {
        admission::decide(self.sidecar, self.view, self.key, self.arrival, self.from_peer).await
    }

    /// The owner, or the key's next-best slot while the owner cannot be reached.
    fn reachable(&self, owner: Peer) -> Peer {
        let peers = &self.sidecar.peers;
        if !peers.is_suspect(&owner.uid) {
            return owner;
        }
        let fallbacks = self.key.map(|key| self.view.fallbacks(key)).unwrap_or_default().into_iter();
        let mut others = fallbacks.filter(|peer| peer.uid != self.view.me.uid);
        others.find(|peer| !peers.is_suspect(&peer.uid)).unwrap_or(owner)
    }

    async fn ask_app(&self, mut request: Request<Outgoing>, place: Place) -> Response<Body> {
        let Some(app) = self.sidecar.config.upstream else { return refuse(self.sidecar, Refusal::NoHolder) };
        insert(request.headers_mut(), origin::headers_for_app(self.view));
        let first = self.first(&request);
        let begins = first.is_some() || accepts_events(request.headers());
        if begins {
            // Its answer is read on its way.
            request.headers_mut().remove(header::ACCEPT_ENCODING);
        }
        if begins && let Err(refusal) = self.may_begin().await {
            return refuse(self.sidecar, refusal);
        }
        let response = match self.send(&app.to_string(), request).await {
            Ok(response) => stripped(response),
            Err(answer) => return answer,
        };
        if has_events(&response) {
            return response.map(|body| Body::Events(Box::new(Events::here(body, place, self.events))));
        }
        match first.filter(|_| response.status().is_success()) {
            Some(first) => {
                let (sidecar, then) = (Arc::clone(self.sidecar), Some((place, first)));
                response.map(|body| Body::Beginning(Box::new(Beginning { sidecar, body, seen: Vec::new(), then })))
            }
            None => response.map(Body::Passing),
        }
    }

    /// A peer's answer. A stream of events is a connection here, too, as a tunnelled WebSocket is: a drain ends it after an
    /// event.
    fn answer_of_peer(&self, response: Response<Incoming>) -> Response<Body> {
        let response = stripped(response);
        if has_events(&response) {
            return response.map(|body| Body::Events(Box::new(Events::in_transit(body, self.sidecar, self.events))));
        }
        response.map(Body::Passing)
    }

    /// The request as one that may begin a session.
    fn first(&self, request: &Request<Outgoing>) -> Option<First> {
        let target = path_and_query(request.uri()).to_owned();
        let dialect = Dialect::of(self.view.settings().notice.protocol)?;
        if self.key.is_none() || self.view.by_load() || !dialect.may_begin(request.method(), &target) {
            return None;
        }
        Some(First { dialect, target, headers: request.headers().clone() })
    }

    /// Whether the limits allow one more connection, when its turn has come.
    async fn may_begin(&self) -> Result<(), Refusal> {
        if self.sidecar.registry().is_full() {
            return Err(Refusal::Full);
        }
        let turn = self.sidecar.turnstile.pass(self.view.settings().limits.handshakes_per_second).await;
        turn.map_err(|_| Refusal::QueueFull)
    }

    async fn ask_peer(
        &self,
        mut request: Request<Outgoing>,
        peer: &Peer,
    ) -> Result<Response<Incoming>, Response<Body>> {
        let known = Known { key: self.key, verified: false, arrival: self.arrival };
        let asked = (request.method().as_str(), path_and_query(request.uri()));
        let headers = origin::headers_for(self.sidecar, self.view, peer, known, asked);
        insert(request.headers_mut(), headers);
        self.send(&peer.address, request).await
    }

    async fn send(&self, address: &str, mut request: Request<Outgoing>) -> Result<Response<Incoming>, Response<Body>> {
        let Ok(uri) = Uri::try_from(format!("http://{address}{}", path_and_query(request.uri()))) else {
            return Err(text(StatusCode::BAD_REQUEST, "this request's target cannot be passed on"));
        };
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_11;
        self.sidecar.forwarder.0.request(request).await.map_err(|error| {
            self.sidecar.metrics.refused("bad_gateway");
            tracing::debug!(%address, %error, "a plain request could not be passed on");
            text(StatusCode::BAD_GATEWAY, "the app behind this address gave no answer")
        })
    }
}

/// Whether a request is for a stream of events, perhaps among other things.
fn accepts_events(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT).into_iter().filter_map(|line| line.to_str().ok());
    let mut kinds = lines.flat_map(|line| line.split(',')).filter_map(|kind| kind.split(';').next());
    kinds.any(|kind| kind.trim().eq_ignore_ascii_case(EVENT_STREAM))
}

/// Whether an answer is a stream of events that can be followed: nothing else has encoded it.
fn has_events(response: &Response<Incoming>) -> bool {
    let value = |name| response.headers().get(name).map(HeaderValue::as_bytes).unwrap_or_default();
    let kind = value(header::CONTENT_TYPE).split(|byte| *byte == b';').next().unwrap_or_default();
    let is_plain = value(header::CONTENT_ENCODING).is_empty();
    response.status() == StatusCode::OK && is_plain && kind.trim_ascii().eq_ignore_ascii_case(EVENT_STREAM.as_bytes())
}

/// Ends a session at the app here; returns what the app answers.
pub(crate) async fn tell_app(sidecar: &Sidecar, farewell: Farewell, headers: &HeaderMap) -> Option<StatusCode> {
    let app = sidecar.config.upstream?;
    let mut request = Request::new(Either::Right(Full::from(farewell.body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::try_from(format!("http://{app}{}", farewell.target)).ok()?;
    request.headers_mut().clone_from(headers);
    let kind = HeaderValue::from_static("text/plain;charset=UTF-8");
    request.headers_mut().insert(header::CONTENT_TYPE, kind);
    sidecar.forwarder.0.request(request).await.ok().map(|response| response.status())
}

/// A request that can be sent again, as it is.
fn copy(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    if !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Either::Right(Full::default()));
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}

/// Whom a peer names in its stead, and under which epoch.
fn redirected(response: &Result<Response<Incoming>, Response<Body>>) -> Option<(Peer, u64)> {
    let response = response.as_ref().ok().filter(|response| response.status() == StatusCode::MISDIRECTED_REQUEST)?;
    origin::redirect(|name| response.headers().get(name).map(HeaderValue::as_bytes))
}

fn stripped(mut response: Response<Incoming>) -> Response<Incoming> {
    strip(response.headers_mut());
    response
}

/// Takes away what belongs to one hop (RFC 9110, 7.6.1), and every header of ours.
fn strip(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| name != header::TE)
        .collect();
    let ours = |name: &HeaderName| name.as_str().starts_with("wspool-") || name.as_str().starts_with("wspool_");
    let own: Vec<HeaderName> = headers.keys().filter(|name| ours(name)).cloned().collect();
    let hop = ["keep-alive", "proxy-connection"].map(HeaderName::from_static);
    let fixed = [header::CONNECTION, header::UPGRADE];
    for name in listed.iter().chain(&own).chain(&hop).chain(&fixed) {
        headers.remove(name);
    }
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
}

fn append_forwarded_for(headers: &mut HeaderMap, remote: SocketAddr) {
    let name = HeaderName::from_static("x-forwarded-for");
    let mut list: Vec<String> =
        headers.get_all(&name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
    list.push(remote.ip().to_string());
    if let Ok(value) = HeaderValue::try_from(list.join(", ")) {
        headers.insert(name, value);
    }
}

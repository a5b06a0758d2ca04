//! A WebSocket handshake: from its head to the connection it becomes, at the app here or through a peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use percent_encoding::percent_decode;
use ring::claim::Arrival;
use ring::settings::{Missing, NoticeProtocol, OwnerUnreachable, Trust};
use ring::wire::{Peer, header};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::admission::{self, Decision, PLACEMENT_WAIT, Place, REDIRECTS, Refusal};
use crate::handshakes::Sent;
use crate::head::{Edit, HeadError, HeadLimits, RequestHead};
use crate::held::Held;
use crate::key::KeyError;
use crate::origin::{self, Known, Origin};
use crate::relay::{self, Connect, Early, Link, Opening, Relay};
use crate::response::{self, ResponseHead};
use crate::server::{answer_and_close, text_answer};
use crate::sidecar::Sidecar;
use crate::view::View;
use crate::{identity, peers, sessions};

/// How long the search for a next-best slot may take in all.
const FALLBACK_LIMIT: Duration = Duration::from_millis(1500);
/// How long handshakes wait for an app that refuses connections, before its keys go to their next-best slots.
const APP_PATIENCE: Duration = Duration::from_secs(10);
/// How long one try to connect to it may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a handshake may take to be answered.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
const SWITCHING: StatusCode = StatusCode::SWITCHING_PROTOCOLS;
/// In a 503 between sidecars: the app behind the sidecar does not answer.
const APP_DOWN: &str = "wspool-app";

/// Where a handshake ended up.
enum Reached {
    /// The app here.
    App(TcpStream, Place),
    /// A peer, through which it reaches its owner.
    Peer(TcpStream),
}

/// Why a handshake reached nobody.
enum Failure {
    Refused(Refusal),
    /// For a peer that asked: this sidecar owns the key.
    Redirect(Peer),
    AppDown,
    /// The app or a peer ended the connection, or was silent.
    BadGateway(String),
}

/// A handshake that the app has accepted: held in the registry from now on.
pub struct Accepted {
    upstream: TcpStream,
    to_client: Vec<u8>,
    opening: Option<Box<Opening>>,
    link: Arc<Link>,
    held: Held,
}

/// A WebSocket connection, which relays itself.
pub type Connected = Relay<Held>;

impl Accepted {
    /// Joins it with its client; `rest` is what the client has sent behind its head.
    pub fn with_client(self, client: TcpStream, rest: Vec<u8>) -> Connected {
        let early = Early { to_app: rest, to_client: self.to_client, opening: self.opening };
        relay::relay(client, self.upstream, early, self.link, self.held)
    }
}

/// Takes one handshake to its app. `None` when it came to nothing, and the client has been told.
pub async fn serve(
    sidecar: Arc<Sidecar>,
    mut client: TcpStream,
    remote: SocketAddr,
    mut head: RequestHead,
) -> Option<Connected> {
    let reached = tokio::select! {
        biased;
        reached = reach(&sidecar, remote, &head) => reached,
        () = gone(&client) => {
            sidecar.metrics.abandoned.inc();
            return None;
        }
    };
    let (reached, response) = match reached {
        Ok(reached) => reached,
        Err(answer) => {
            answer_and_close(&mut client, &answer).await;
            return None;
        }
    };
    if response.status() != SWITCHING {
        let mut upstream = reached.into_stream();
        if let Err(error) = response::relay_response(response, &mut upstream, &mut client).await {
            tracing::debug!(%error, "an answer that is not a 101 could not be passed on whole");
        }
        return None;
    }
    let view = sidecar.view();
    let opening = opening(&view, &response);
    let (switching, to_client) = response.into_switching();
    // Held before the client can know: a claim that comes now finds it here.
    let accepted = reached.hold(&sidecar, &view, to_client, opening);
    client.write_all(&switching).await.ok()?;
    Some(accepted.with_client(client, head.take_rest()))
}

/// Waits until a client has gone: it would hold its place, and a connection of its app, for nobody. One that sends
/// before it is answered is not watched any more, since its end comes behind what it has sent.
async fn gone(client: &TcpStream) {
    if client.peek(&mut [0]).await.is_ok_and(|there| there > 0) {
        std::future::pending::<()>().await;
    }
}

/// What a connection can bear, by what was agreed on and what its pool says of it.
fn opening(view: &View, response: &ResponseHead) -> Option<Box<Opening>> {
    if response.has_unknown_extension() {
        Some(Box::new(Opening::Opaque))
    } else if view.settings().notice.protocol == NoticeProtocol::MQTT {
        Some(Box::new(Opening::Mqtt(Connect::default())))
    } else {
        None
    }
}

/// What came of a handshake on a connection that hyper serves.
pub enum Outcome {
    /// Its 101, and what follows.
    Switched(Vec<u8>, Accepted),
    /// The app's other answer, its body whole.
    Answered(Vec<u8>, Vec<u8>),
    /// Our own answer.
    Refused(Vec<u8>),
}

/// Takes a handshake to its app that came on a connection which hyper serves: the answer goes through hyper, too.
pub async fn accept(sidecar: &Arc<Sidecar>, remote: SocketAddr, head: RequestHead) -> Outcome {
    let (reached, response) = match reach(sidecar, remote, &head).await {
        Ok(reached) => reached,
        Err(answer) => return Outcome::Refused(answer),
    };
    if response.status() == SWITCHING {
        let view = sidecar.view();
        let opening = opening(&view, &response);
        let (raw, to_client) = response.into_switching();
        return Outcome::Switched(raw, reached.hold(sidecar, &view, to_client, opening));
    }
    match response::collect(response, &mut reached.into_stream()).await {
        Ok((raw, body)) => Outcome::Answered(raw, body),
        Err(error) => Outcome::Refused(text_answer(StatusCode::BAD_GATEWAY, "", &error.to_string())),
    }
}

/// Gets a handshake answered by its app or a peer; otherwise this is our own answer.
async fn reach(
    sidecar: &Arc<Sidecar>,
    remote: SocketAddr,
    head: &RequestHead,
) -> Result<(Reached, ResponseHead), Vec<u8>> {
    let handshake = Handshake::new(sidecar, remote, head).await?;
    let reached = handshake.reach(head).await;
    reached.map_err(|failure| failure.answer(sidecar, handshake.from_peer))
}

impl Reached {
    fn into_stream(self) -> TcpStream {
        match self {
            Self::App(stream, _) | Self::Peer(stream) => stream,
        }
    }

    fn hold(self, sidecar: &Arc<Sidecar>, view: &View, to_client: Vec<u8>, opening: Option<Box<Opening>>) -> Accepted {
        let link = Arc::new(Link::of(view.settings().notice.protocol));
        let (upstream, held) = match self {
            Self::App(stream, place) => (stream, Held::here(place, &link)),
            Self::Peer(stream) => (stream, Held::transit(sidecar, &link)),
        };
        Accepted { upstream, to_client, opening, link, held }
    }
}

/// A handshake whose origin and key are known.
struct Handshake<'a> {
    sidecar: &'a Arc<Sidecar>,
    view: Arc<View>,
    key: Option<String>,
    /// Whether the token that the key is from was checked.
    verified: bool,
    arrival: Arrival,
    from_peer: bool,
    forwarded_for: Option<std::net::IpAddr>,
    began: Instant,
}

impl<'a> Handshake<'a> {
    async fn new(sidecar: &'a Arc<Sidecar>, remote: SocketAddr, head: &RequestHead) -> Result<Self, Vec<u8>> {
        let (view, full) = {
            let registry = sidecar.registry();
            let view = Arc::clone(registry.view());
            let full = registry.is_full() && !sessions::is_here(sidecar, &view, head.target());
            (view, full)
        };
        let refuse = |refusal: Refusal| {
            sidecar.metrics.refused(refusal.label());
            text_answer(refusal.status(), RETRY_AFTER, &refusal.to_string())
        };
        if full {
            return Err(refuse(Refusal::Full));
        }
        let request = origin::Request { remote: remote.ip(), method: head.method(), target: head.target() };
        let spec = &view.settings().key;
        let (key, verified, arrival, from_peer) =
            match origin::origin(sidecar, &view, request, |name| head.header(name)) {
                Origin::Peer { key, verified, arrival } => (key, verified, arrival, true),
                Origin::Misdirected => {
                    let sentence = "this is another sidecar than the one that was meant";
                    return Err(text_answer(StatusCode::MISDIRECTED_REQUEST, "", sentence));
                }
                Origin::Client => {
                    head.check_client(HeadLimits::default()).map_err(|error| refuse_head(sidecar, error))?;
                    let key = identity::read(sidecar, spec, head).await.map_err(|error| refuse_key(sidecar, error))?;
                    let verified = key.is_some() && spec.trust == Trust::Verified;
                    (key, verified, Arrival::Owner, false)
                }
            };
        if key.is_none() && !from_peer && spec.missing == Missing::Reject {
            return Err(refuse(Refusal::KeyMissing));
        }
        let forwarded_for = (!from_peer).then(|| remote.ip());
        Ok(Self { sidecar, view, key, verified, arrival, from_peer, forwarded_for, began: Instant::now() })
    }

    /// Finds the app or the peer that takes the handshake, and gets its answer.
    async fn reach(&self, head: &RequestHead) -> Result<(Reached, ResponseHead), Failure> {
        let mut decision = self.begin(head).await;
        let mut arrival = self.arrival;
        let mut redirects = 0;
        let mut passed_over: Vec<String> = Vec::new();
        loop {
            let peer = match decision {
                Decision::Refused(refusal) => return Err(Failure::Refused(refusal)),
                Decision::There(peer) if self.from_peer => return Err(Failure::Redirect(peer)),
                Decision::There(peer) => peer,
                Decision::Here(place) => match self.ask_app(head, place).await {
                    Err(Failure::AppDown) if !self.from_peer && (self.key.is_some() || self.view.by_load()) => {
                        self.note_app_down(&self.view.me);
                        self.view.me.clone()
                    }
                    answered => return answered,
                },
            };
            let answer = if peer.uid == self.view.me.uid {
                Asked::Unreachable
            } else {
                self.ask_peer(head, &peer, arrival).await?
            };
            match answer {
                Asked::Answered(stream, response) => return Ok((Reached::Peer(stream), response)),
                Asked::Redirected { to, epoch } => {
                    redirects += 1;
                    self.sidecar.metrics.redirects.inc();
                    if redirects > REDIRECTS {
                        return Err(Failure::Refused(Refusal::StillLeaving));
                    }
                    if epoch < self.view.version().epoch {
                        tokio::time::sleep(PLACEMENT_WAIT).await;
                    }
                    let mine = to.uid == self.view.me.uid;
                    decision = if mine { self.decide(Arrival::Owner).await } else { Decision::There(to) };
                }
                Asked::Unreachable => {
                    passed_over.push(peer.uid);
                    arrival = Arrival::Fallback;
                    decision = self.next_best(&passed_over).await;
                }
            }
        }
    }

    /// Whom a handshake goes to first: one of a session to whoever holds that.
    async fn begin(&self, head: &RequestHead) -> Decision {
        let (key, target) = (self.key.as_deref(), head.target());
        let asked = sessions::Request { key, method: &Method::GET, target, is_handshake: true };
        if let Some(decision) = sessions::locate(self.sidecar, &self.view, asked).await {
            return decision;
        }
        if self.from_peer || !self.view.by_load() {
            return self.decide(self.arrival).await;
        }
        let host = head.header("host").and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default();
        admission::by_load(self.sidecar, &self.view, host, head.target())
    }

    async fn decide(&self, arrival: Arrival) -> Decision {
        admission::decide(self.sidecar, &self.view, self.key.as_deref(), arrival, self.from_peer).await
    }

    /// The best slot that has not failed yet.
    async fn next_best(&self, passed_over: &[String]) -> Decision {
        let unreachable = Decision::Refused(Refusal::Unreachable);
        if self.view.by_load() {
            let late = self.began.elapsed() > FALLBACK_LIMIT + APP_PATIENCE;
            return if late { unreachable } else { admission::balance(self.sidecar, &self.view, passed_over) };
        }
        let Some(key) = &self.key else {
            return if passed_over.len() > REDIRECTS as usize {
                unreachable
            } else {
                admission::spread(self.sidecar, &self.view)
            };
        };
        let late = self.began.elapsed() > FALLBACK_LIMIT + APP_PATIENCE;
        if late || self.view.settings().owner_unreachable == OwnerUnreachable::Reject {
            return unreachable;
        }
        let able = |peer: &Peer| !passed_over.contains(&peer.uid) && !self.sidecar.peers.is_suspect(&peer.uid);
        match self.view.fallbacks(key).into_iter().find(able) {
            None => unreachable,
            Some(peer) => {
                self.sidecar.metrics.fallbacks.inc();
                if peer.uid == self.view.me.uid { self.decide(Arrival::Fallback).await } else { Decision::There(peer) }
            }
        }
    }

    /// Passes the handshake to the app here.
    async fn ask_app(&self, head: &RequestHead, place: Place) -> Result<(Reached, ResponseHead), Failure> {
        let Some(address) = self.sidecar.config.upstream else { return Err(Failure::Refused(Refusal::NoHolder)) };
        let edit = Edit { forwarded_for: self.forwarded_for, add: &origin::headers_for_app(&self.view) };
        let (mut app, sent) = self.call_app(address, &head.rewrite(&edit)).await?;
        let metrics = &self.sidecar.metrics;
        let response = answer(&mut app).await.inspect_err(|_| {
            metrics.failed.inc();
        })?;
        let took = sent.answered();
        if response.status() == SWITCHING {
            metrics.handshake(took);
        } else if response.status().is_server_error() {
            metrics.failed.inc();
        }
        let place = place.trusted(self.is_trusted(&response));
        Ok((Reached::App(app, place), response))
    }

    /// Connects to the app with a handshake's head. In a pool one that is restarting is waited for. Each try takes a turn of
    /// its own: otherwise all that have waited would meet the app at once when it is back.
    async fn call_app(&self, address: SocketAddr, head: &[u8]) -> Result<(TcpStream, Sent<'_>), Failure> {
        let per_second = self.view.settings().limits.handshakes_per_second;
        let in_pool = self.view.placement.is_some();
        let until = Instant::now() + if in_pool { APP_PATIENCE } else { Duration::ZERO };
        let mut pause = Duration::from_millis(20);
        loop {
            let turn = self.sidecar.turnstile.pass(per_second).await;
            turn.map_err(|_| Failure::Refused(Refusal::QueueFull))?;
            let sent = self.sidecar.turnstile.sent(per_second);
            let error = match tokio::time::timeout(DIAL_TIMEOUT, peers::call(address, head)).await {
                Ok(Ok(stream)) => return Ok((stream, sent)),
                Ok(Err(error)) => error,
                Err(_) => std::io::ErrorKind::TimedOut.into(),
            };
            drop(sent);
            if Instant::now() + pause > until {
                self.sidecar.metrics.failed.inc();
                tracing::debug!(%address, %error, "the app cannot be reached");
                let sentence = || format!("the app at {address} cannot be reached: {error}");
                return Err(if in_pool { Failure::AppDown } else { Failure::BadGateway(sentence()) });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Whether the key proves who the client is, now that the app has answered.
    fn is_trusted(&self, response: &ResponseHead) -> bool {
        match self.view.settings().key.trust {
            Trust::Routing => false,
            Trust::Verified => self.verified,
            Trust::AppAsserted => {
                let Some(key) = self.key.as_deref().filter(|_| response.status() == SWITCHING) else { return false };
                let said = response.header(header::KEY);
                let confirmed = said.is_some_and(|said| percent_decode(said).eq(key.bytes()));
                self.sidecar.metrics.asserted(match said {
                    _ if confirmed => "confirmed",
                    Some(_) => "other_key",
                    None => "nothing",
                });
                confirmed
            }
        }
    }

    /// Where load decides, a server whose app is down would be chosen again and again: it holds nothing.
    fn note_app_down(&self, peer: &Peer) {
        if let Some(slot) = self.view.placement.as_ref().and_then(|placement| placement.slot_of(&peer.uid)) {
            self.sidecar.tally().fail(slot, Instant::now());
        }
    }

    /// Passes the handshake to a peer.
    async fn ask_peer(&self, head: &RequestHead, peer: &Peer, arrival: Arrival) -> Result<Asked, Failure> {
        let Ok(mut stream) = self.sidecar.peers.dial(peer).await else { return Ok(Asked::Unreachable) };
        let known = Known { key: self.key.as_deref(), verified: self.verified, arrival };
        let headers = origin::headers_for(self.sidecar, &self.view, peer, known, (head.method(), head.target()));
        let edit = Edit { forwarded_for: self.forwarded_for, add: &headers };
        let Ok(response) = exchange(&mut stream, &head.rewrite(&edit)).await else {
            return Ok(Asked::Unreachable);
        };
        if response.status() == StatusCode::MISDIRECTED_REQUEST {
            return Ok(redirected(&response));
        }
        if response.header(APP_DOWN).is_some() {
            self.note_app_down(peer);
            return Ok(Asked::Unreachable);
        }
        Ok(Asked::Answered(stream, response))
    }
}

/// The answer to a handshake that only a peer might send.
fn refuse_head(sidecar: &Sidecar, error: HeadError) -> Vec<u8> {
    sidecar.metrics.bad_request(error.label());
    error.response().unwrap_or_default()
}

/// The answer to a handshake whose key cannot be read, or whose token proves nothing.
fn refuse_key(sidecar: &Sidecar, error: KeyError) -> Vec<u8> {
    match error {
        KeyError::Token(error) => {
            sidecar.metrics.token_refused(error.label());
            let (name, value) = error.header();
            text_answer(error.status(), &format!("{name}: {value}\r\n"), &error.to_string())
        }
        error => {
            sidecar.metrics.bad_request(error.label());
            text_answer(StatusCode::BAD_REQUEST, "", &error.to_string())
        }
    }
}

/// What a peer made of a handshake.
enum Asked {
    Answered(TcpStream, ResponseHead),
    Redirected { to: Peer, epoch: u64 },
    Unreachable,
}

fn redirected(response: &ResponseHead) -> Asked {
    match origin::redirect(|name| response.header(name)) {
        Some((to, epoch)) => Asked::Redirected { to, epoch },
        // Not the sidecar that was meant: its address has been given to another.
        None => Asked::Unreachable,
    }
}

async fn exchange(stream: &mut TcpStream, head: &[u8]) -> Result<ResponseHead, Failure> {
    stream.write_all(head).await.map_err(|error| Failure::BadGateway(error.to_string()))?;
    answer(stream).await
}

async fn answer(stream: &mut TcpStream) -> Result<ResponseHead, Failure> {
    let response = response::read_response(stream, RESPONSE_TIMEOUT).await;
    response.map_err(|error| Failure::BadGateway(error.to_string()))
}

const RETRY_AFTER: &str = "Retry-After: 1\r\n";

impl Failure {
    fn answer(&self, sidecar: &Sidecar, from_peer: bool) -> Vec<u8> {
        match self {
            Self::Refused(refusal) => {
                sidecar.metrics.refused(refusal.label());
                text_answer(refusal.status(), RETRY_AFTER, &refusal.to_string())
            }
            Self::Redirect(owner) => {
                let headers = origin::headers_of_redirect(&sidecar.view(), owner);
                let headers: String = headers.iter().flat_map(|(name, value)| [*name, ": ", value, "\r\n"]).collect();
                text_answer(StatusCode::MISDIRECTED_REQUEST, &headers, "this key belongs to another sidecar")
            }
            Self::AppDown => {
                sidecar.metrics.refused("app_down");
                let extra = if from_peer { format!("{APP_DOWN}: down\r\n{RETRY_AFTER}") } else { RETRY_AFTER.into() };
                text_answer(StatusCode::SERVICE_UNAVAILABLE, &extra, "the app does not accept connections")
            }
            Self::BadGateway(why) => {
                sidecar.metrics.refused("bad_gateway");
                text_answer(StatusCode::BAD_GATEWAY, "", why)
            }
        }
    }
}

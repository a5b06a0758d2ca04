//! Other sidecars: asking them for keys, giving them messages, telling them of a drain, and remembering which cannot be
//! reached.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Body as _;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::wire::{Claim, ClaimReply, CutOver, Delivered, Draining, Peer, Presences, Returns, Whereabouts, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::auth::peer::PeerAuth;
use crate::auth::sha256;
use crate::message::Message;
use crate::messages::{Errand, SLOW, TURN, kind_name};
use crate::registry::Role;

/// How long a peer may take to accept a connection; it is tried twice.
pub const DIAL_TIMEOUT: Duration = Duration::from_millis(250);
/// How long a peer that could not be reached is passed over.
pub const SUSPECT_FOR: Duration = Duration::from_secs(10);
/// How long a peer that was reached is believed to be there still.
const REACHED_FOR: Duration = Duration::from_secs(1);
/// How long a reachable peer may take to answer a claim, beyond what it was asked to wait.
const CLAIM_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long a handshake waits for a key whose last connections are leaving.
pub const LEAVING_WAIT: Duration = Duration::from_secs(5);
/// Paths on a peer's client port that are for sidecars only begin so.
pub const BETWEEN_SIDECARS: &str = "/.wspool/";
/// The path of claims on a peer's client port.
pub const CLAIMS: &str = "/.wspool/v1/claims";
/// The path of what ends a cut-over, on a peer's client port.
pub const CUT_OVERS: &str = "/.wspool/v1/cut-overs";
/// The path of what is known of connections on their way, on a peer's client port.
pub const RETURNS: &str = "/.wspool/v1/returns";
/// The path of drain notices on a peer's client port.
pub const DRAINING: &str = "/.wspool/v1/draining";
/// The path of questions where a key is, on a peer's client port.
pub const WHEREABOUTS: &str = "/.wspool/v1/whereabouts";
/// The path of messages for a key, on a peer's client port.
pub const MESSAGES: &str = "/.wspool/v1/messages";
/// The path of messages for everybody, on a peer's client port.
pub const BROADCASTS: &str = "/.wspool/v1/broadcasts";
/// The path of questions who is connected, on a peer's client port.
pub const CONNECTIONS: &str = "/.wspool/v1/connections";
/// The path of questions whether a session is held, on a peer's client port.
pub const SESSIONS: &str = "/.wspool/v1/sessions";
/// What `connect` says of a connection that is being set up (`EINPROGRESS`).
const IN_PROGRESS: i32 = 115;
/// The longest answer of a peer that is read, in bytes.
pub const LARGEST_ANSWER: usize = 64 * 1024;
/// How many messages one peer is given at a time: as many connections are kept to it.
const AT_ONCE: usize = 256;
/// How many more messages may be with peers that have them and will say what became of them, each on its own connection.
const TAKEN: usize = 1_024;

/// The client side of everything between sidecars.
#[derive(Debug)]
pub struct Peers {
    me: String,
    auth: Option<Arc<PeerAuth>>,
    client: Client<HttpConnector, Full<Bytes>>,
    suspects: Mutex<HashMap<String, Instant>>,
    /// When each was last dialled with success.
    reached: Mutex<HashMap<String, Instant>>,
    /// Room for messages on their way to each.
    rooms: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Room for messages that have been taken.
    taken: Arc<Semaphore>,
}

/// A request to a peer.
struct Asked<'a> {
    method: Method,
    path: &'a str,
    key: Option<&'a str>,
    body: Bytes,
    /// Given back to others once the peer begins to answer.
    room: Option<OwnedSemaphorePermit>,
}

impl<'a> Asked<'a> {
    fn json(method: Method, path: &'a str, body: &impl Serialize) -> Result<Self, PeerError> {
        let body = serde_json::to_vec(body).map_err(|error| PeerError::Unreachable(error.to_string()))?;
        Ok(Self { method, path, key: None, body: body.into(), room: None })
    }
}

/// Why a peer gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No connection, or silence.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// The request may have reached it; the answer did not come.
    #[error("gave no answer: {0}")]
    Unanswered(String),
    /// It answered more than is read.
    #[error("gave an answer of more than {LARGEST_ANSWER} bytes")]
    TooLong,
    /// As much is on its way to it as may be.
    #[error("has as many messages on their way to it as it may")]
    Busy,
    /// What it knows of the key is about to change, for longer than a message waits.
    #[error("does not know yet where the key is")]
    Unsettled,
    /// It answered, but not what was asked.
    #[error("refused with {0}")]
    Refused(StatusCode),
}

impl Peers {
    /// A client that signs as the given sidecar.
    pub fn new(me: String, auth: Option<Arc<PeerAuth>>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(DIAL_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .retry_canceled_requests(true)
            .build(connector);
        let taken = Arc::new(Semaphore::new(TAKEN));
        Self { me, auth, client, suspects: Mutex::default(), reached: Mutex::default(), rooms: Mutex::default(), taken }
    }

    /// Claims a key from a previous owner. It is asked even if it could not be reached a moment ago: the key would be at
    /// two servers if it is there again. One that is silent is passed over for a while.
    pub async fn claim(&self, peer: &Peer, claim: &Claim) -> Result<ClaimReply, PeerError> {
        let limit = CLAIM_TIMEOUT + Duration::from_millis(claim.wait_ms);
        let answer = self.ask(peer, Asked::json(Method::POST, CLAIMS, claim)?, limit).await;
        match &answer {
            Err(PeerError::Unreachable(_) | PeerError::Unanswered(_)) => self.suspect(&peer.uid),
            _ if self.is_suspect(&peer.uid) => self.forgive(&peer.uid),
            _ => {}
        }
        read(&answer?)
    }

    /// Asks a peer where a handshake of a key would be accepted. The answer may wait for connections that are leaving.
    pub async fn whereabouts(&self, peer: &Peer, question: &Whereabouts) -> Result<Peer, PeerError> {
        read(&self.send_json(Method::POST, peer, WHEREABOUTS, question, CLAIM_TIMEOUT + LEAVING_WAIT).await?)
    }

    /// Tells a peer that it has got all that came before a marker.
    pub async fn cut_over(&self, peer: &Peer, cut_over: &CutOver) -> Result<(), PeerError> {
        self.send_json(Method::POST, peer, CUT_OVERS, cut_over, CLAIM_TIMEOUT).await.map(drop)
    }

    /// Tells a peer which connections are on their way to it.
    pub async fn tell_returns(&self, peer: &Peer, returns: &Returns) -> Result<(), PeerError> {
        self.send_json(Method::POST, peer, RETURNS, returns, CLAIM_TIMEOUT).await.map(drop)
    }

    /// Tells a peer that this sidecar is draining.
    pub async fn announce(&self, peer: &Peer, draining: &Draining) -> Result<(), PeerError> {
        self.send_json(Method::PUT, peer, DRAINING, draining, CLAIM_TIMEOUT).await.map(drop)
    }

    /// Gives a peer a message for a key. The answer may wait for a client that is slow, and for a key that is busy.
    pub async fn deliver(&self, peer: &Peer, key: &str, message: &Message, role: Role) -> Result<Delivered, PeerError> {
        let room = Some(self.room(peer).await?);
        let path = format!("{MESSAGES}?{}", Errand { kind: message.kind(), role }.to_query());
        let asked = Asked { method: Method::POST, path: &path, key: Some(key), body: message.payload(), room };
        match self.send(peer, asked, 2 * CLAIM_TIMEOUT + SLOW).await {
            Err(PeerError::Refused(StatusCode::TOO_MANY_REQUESTS)) => Err(PeerError::Busy),
            Err(PeerError::Refused(StatusCode::CONFLICT)) => Err(PeerError::Unsettled),
            answer => read(&answer?),
        }
    }

    /// Gives a peer a message for everybody.
    pub async fn broadcast(&self, peer: &Peer, message: &Message) -> Result<Delivered, PeerError> {
        let room = Some(self.room(peer).await?);
        let path = format!("{BROADCASTS}?kind={}", kind_name(message.kind()));
        let asked = Asked { method: Method::POST, path: &path, key: None, body: message.payload(), room };
        read(&self.send(peer, asked, CLAIM_TIMEOUT + TURN + SLOW).await?)
    }

    /// Asks a peer for the connections of a key that it holds.
    pub async fn connections(&self, peer: &Peer, key: &str) -> Result<Presences, PeerError> {
        let asked = Asked { method: Method::GET, path: CONNECTIONS, key: Some(key), body: Bytes::new(), room: None };
        read(&self.send(peer, asked, CLAIM_TIMEOUT).await?)
    }

    /// Asks a peer whether a session is held there.
    pub async fn holds(&self, peer: &Peer, session: &str) -> bool {
        let path = format!("{SESSIONS}?id={}", utf8_percent_encode(session, NON_ALPHANUMERIC));
        let asked = Asked { method: Method::GET, path: &path, key: None, body: Bytes::new(), room: None };
        self.send(peer, asked, CLAIM_TIMEOUT).await.is_ok()
    }

    /// Room for one more message on its way to a peer.
    async fn room(&self, peer: &Peer) -> Result<OwnedSemaphorePermit, PeerError> {
        let room = {
            let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
            if !rooms.contains_key(&peer.uid) {
                // Those that are not in use are made again when they are needed.
                rooms.retain(|_, room| Arc::strong_count(room) > 1);
            }
            Arc::clone(rooms.entry(peer.uid.clone()).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))))
        };
        timeout(CLAIM_TIMEOUT, room.acquire_owned()).await.ok().and_then(Result::ok).ok_or(PeerError::Busy)
    }

    async fn send_json(
        &self,
        method: Method,
        peer: &Peer,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<Bytes, PeerError> {
        self.send(peer, Asked::json(method, path, body)?, limit).await
    }

    /// Asks a peer, unless it could not be reached a moment ago.
    async fn send(&self, peer: &Peer, asked: Asked<'_>, limit: Duration) -> Result<Bytes, PeerError> {
        if self.is_suspect(&peer.uid) {
            return Err(PeerError::Unreachable("it could not be reached a moment ago".into()));
        }
        let answer = self.ask(peer, asked, limit).await;
        match &answer {
            Err(PeerError::Unreachable(_)) => self.suspect(&peer.uid),
            // One answer may be slow for its own reasons. Whether anybody is there, a new connection tells.
            Err(PeerError::Unanswered(_)) => drop(self.dial(peer).await),
            _ => {}
        }
        answer
    }

    async fn ask(&self, peer: &Peer, asked: Asked<'_>, limit: Duration) -> Result<Bytes, PeerError> {
        let Asked { method, path, key, body, room } = asked;
        let mut headers =
            vec![(header::FROM, self.me.clone()), (header::TARGET, peer.uid.clone()), (header::DIGEST, sha256(&body))];
        headers.extend(key.map(|key| (header::KEY, utf8_percent_encode(key, NON_ALPHANUMERIC).to_string())));
        if let Some(auth) = &self.auth {
            auth.prove(method.as_str(), path, &mut headers);
        }
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", peer.address))
            .header(http::header::CONTENT_TYPE, "application/json");
        let request = headers
            .into_iter()
            .fold(request, |request, (name, value)| request.header(name, value))
            .body(Full::new(body))
            .map_err(|error| PeerError::Unreachable(error.to_string()))?;
        let answer = async {
            let response = self.client.request(request).await.map_err(|error| {
                let why = error.to_string();
                if error.is_connect() { PeerError::Unreachable(why) } else { PeerError::Unanswered(why) }
            })?;
            if !response.status().is_success() {
                return Err(PeerError::Refused(response.status()));
            }
            // A body without a length is not known yet: the peer has the message, and waits for its clients.
            let later = response.body().size_hint().exact().is_none();
            let taken = later.then(|| Arc::clone(&self.taken).try_acquire_owned().ok()).flatten();
            let _room = taken.or(room);
            let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
            body.map(http_body_util::Collected::to_bytes).map_err(|error| {
                if error.is::<LengthLimitError>() {
                    PeerError::TooLong
                } else {
                    PeerError::Unanswered(error.to_string())
                }
            })
        };
        timeout(limit, answer).await.unwrap_or_else(|silent| Err(PeerError::Unanswered(silent.to_string())))
    }

    /// Connects to a peer; one that refuses, or is silent twice, is passed over for a while.
    pub async fn dial(&self, peer: &Peer) -> Result<TcpStream, PeerError> {
        let address: SocketAddr = peer
            .address
            .parse()
            .map_err(|_| PeerError::Unreachable(format!("{:?} is not an address", peer.address)))?;
        let mut reason = String::new();
        for _ in 0..2 {
            match timeout(DIAL_TIMEOUT, connect(address)).await {
                Ok(Ok(stream)) => {
                    self.forgive(&peer.uid);
                    return Ok(stream);
                }
                Ok(Err(error)) => {
                    reason = error.to_string();
                    break;
                }
                Err(_) => reason = "no answer".into(),
            }
        }
        self.suspect(&peer.uid);
        Err(PeerError::Unreachable(reason))
    }

    /// Whether a peer can be dialled, as far as is known from the last second; otherwise it is tried.
    pub async fn is_reachable(&self, peer: &Peer) -> bool {
        if self.is_suspect(&peer.uid) {
            return false;
        }
        let known = |reached: &Instant| reached.elapsed() < REACHED_FOR;
        let lately = self.reached().get(&peer.uid).is_some_and(known);
        lately || self.dial(peer).await.is_ok()
    }

    /// Passes a peer over for a while.
    pub fn suspect(&self, uid: &str) {
        self.suspects().insert(uid.to_owned(), Instant::now());
    }

    fn forgive(&self, uid: &str) {
        self.suspects().remove(uid);
        let mut reached = self.reached();
        reached.retain(|_, since| since.elapsed() < REACHED_FOR);
        reached.insert(uid.to_owned(), Instant::now());
    }

    /// Whether a peer could not be reached a moment ago.
    pub fn is_suspect(&self, uid: &str) -> bool {
        self.suspects().get(uid).is_some_and(|since| since.elapsed() < SUSPECT_FOR)
    }

    /// A new placement was pushed: whoever it names deserves another try.
    pub fn forgive_all(&self) {
        self.suspects().clear();
    }

    fn reached(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn suspects(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The session that a question of [`Peers::holds`] names.
pub fn session_in(query: &str) -> Option<String> {
    let id = query.strip_prefix("id=")?;
    percent_decode_str(id).decode_utf8().ok().map(Into::into)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, PeerError> {
    serde_json::from_slice(body).map_err(|error| PeerError::Unreachable(format!("unreadable answer: {error}")))
}

/// Connects to a peer.
async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    let socket = SockRef::from(&stream);
    if is_local(&socket, address) {
        socket.set_tcp_nodelay(true)?;
    } else {
        tune(&socket)?;
    }
    Ok(stream)
}

/// Connects to an app, and says the first words.
///
/// On this machine a connection is there as soon as it is asked for, so the words go at once: nothing waits until it is
/// writable, and the app finds them when it finds the connection.
pub async fn call(address: SocketAddr, words: &[u8]) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    // What ends the TCP handshake is not sent by itself, but with the words.
    socket.set_tcp_quickack(false)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(IN_PROGRESS) => return Err(error),
        _ => {}
    }
    let sent = match socket.send(words) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
        sent => sent?,
    };
    let mut stream = TcpStream::from_std(socket.into())?;
    stream.write_all(&words[sent..]).await?;
    let socket = SockRef::from(&stream);
    if !is_local(&socket, address) {
        tune(&socket)?;
    }
    Ok(stream)
}

/// Whether the other end is on this machine, where nobody can vanish without a word.
fn is_local(socket: &SockRef<'_>, other: SocketAddr) -> bool {
    let own = || socket.local_addr().ok()?.as_socket();
    other.ip().is_loopback() || own().is_some_and(|own| own.ip() == other.ip())
}

/// No Nagle delay, and whoever is dead is noticed after 60 s (keepalive 30 s + 3 probes of 10 s; unacknowledged data
/// likewise). What a listener has of these options its connections have, too.
pub fn tune(socket: &SockRef<'_>) -> std::io::Result<()> {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(60)))
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use ring::Version;
    use ring::claim::ClaimAnswer;
    use ring::notice::MessageKind;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// A peer that gives this answer to everything, or none.
    async fn peer(answer: Option<String>) -> (Peer, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let served = tokio::spawn(async move {
            let mut connections = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if let Some(answer) = &answer {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
                connections.push(stream);
            }
        });
        (Peer { uid: "b".into(), address }, served)
    }

    #[tokio::test]
    async fn a_peer_is_given_more_before_it_says_what_became_of_those_that_it_has_and_not_without_end() {
        let begun = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let (peer, _served) = peer(Some(begun.into())).await;
        let peers = Peers::new("a".into(), None);
        let message = Message::new(MessageKind::Text, b"hello").unwrap();
        let others = Arc::clone(&peers.taken).try_acquire_many_owned(1_000).unwrap();
        let all = join_all((0..AT_ONCE + TAKEN - 1_000).map(|_| peers.deliver(&peer, "ann", &message, Role::Previous)));
        let room = async {
            let busy = || peers.rooms.lock().unwrap().get(&peer.uid).is_some_and(|room| room.available_permits() == 0);
            while peers.taken.available_permits() > 0 || !busy() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            answers = all => panic!("{answers:?}"),
            () = room => {}
        }
        assert_eq!(peers.taken.available_permits(), TAKEN - 1_000, "nobody waits any more");
        drop(others);
    }

    fn claim() -> Claim {
        let claimant = Peer { uid: "a".into(), address: "a:1".into() };
        let version = Version::default();
        Claim { key: "ann".into(), version, pool_uid: "pool".into(), claimant, wait_ms: 0, hears: false }
    }

    #[tokio::test]
    async fn a_peer_whose_answer_is_too_long_is_there_all_the_same() {
        let (peer, _served) =
            peer(Some(format!("HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n{}", "x".repeat(70_000)))).await;
        let peers = Peers::new("a".into(), None);
        let answer = peers.connections(&peer, "ann").await;
        assert!(matches!(answer, Err(PeerError::TooLong)), "{answer:?}");
        assert!(!peers.is_suspect(&peer.uid));
    }

    #[tokio::test]
    async fn a_peer_that_is_silent_about_a_message_or_a_key_is_passed_over_only_once_it_is_gone() {
        let (peer, served) = peer(None).await;
        let peers = Peers::new("a".into(), None);
        let message = Message::new(MessageKind::Text, b"hello").unwrap();
        let (sent, found) = tokio::join!(peers.broadcast(&peer, &message), peers.connections(&peer, "ann"));
        assert!(matches!((&sent, &found), (Err(PeerError::Unanswered(_)), Err(PeerError::Unanswered(_)))));
        assert!(!peers.is_suspect(&peer.uid));
        served.abort();
        let _ = served.await;
        assert!(peers.connections(&peer, "ann").await.is_err());
        assert!(peers.is_suspect(&peer.uid));
    }

    #[tokio::test]
    async fn a_peer_that_is_silent_about_a_claim_is_passed_over_but_claimed_from() {
        let (silent, _served) = peer(None).await;
        let peers = Peers::new("a".into(), None);
        assert!(matches!(peers.claim(&silent, &claim()).await, Err(PeerError::Unanswered(_))));
        assert!(peers.is_suspect(&silent.uid));
        assert!(matches!(peers.connections(&silent, "ann").await, Err(PeerError::Unreachable(_))));
        let answer = serde_json::to_string(&ClaimAnswer::<Peer>::Held).unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        let (back, _served) = peer(Some(answer)).await;
        assert_eq!(peers.claim(&back, &claim()).await.unwrap().answer, ClaimAnswer::Held);
        assert!(!peers.is_suspect(&back.uid), "it is there again");
    }
}

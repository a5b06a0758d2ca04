//! Sessions that span requests: Engine.IO's, while they poll, and SignalR's negotiated connections, until their WebSocket.
//!
//! Such a session is a connection of its key, from the answer that names it. Its requests go where it is held, whoever owns
//! the key by now, and take no seat of their own:
//!
//! ```text
//!  request ──► held here? ──► the app          the first answer ──► begun: in the registry, with its key
//!                  │ no                        its WebSocket's 101 ──► goes on as that connection
//!                  ▼                           evicted ──► ended at the app ──► the key is released
//!  previous owners of its key ──► held there?  silent for too long ──► forgotten
//! ```

pub mod dialect;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderMap, Method};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::admission::{Decision, Place};
use crate::eviction::{DEADLINE, REPLY};
use crate::held::Held;
use crate::plain::forward;
use crate::registry::ConnectionId;
use crate::relay::{Command, Ended, Fate, Hooks as _, Link, Manner};
use crate::sidecar::Sidecar;
use crate::view::View;
use dialect::Dialect;

/// The sessions whose app is here.
#[derive(Default)]
pub struct Sessions {
    by_id: Mutex<HashMap<String, Arc<Session>>>,
    /// Those that nobody watches yet.
    begun: Mutex<Vec<Arc<Session>>>,
    unwatched: Notify,
}

/// A session, until it has a WebSocket.
struct Session {
    id: String,
    first: First,
    /// How long it lives without a request.
    silence: Duration,
    link: Arc<Link>,
    /// Empty once a WebSocket goes on with it, or it has ended.
    held: Mutex<Option<Held>>,
    /// Requests of it that are under way.
    open: AtomicU32,
    /// Of these, the ones that must not be cut short by its end.
    busy: AtomicU32,
    changed: Notify,
}

/// The request that began a session: one that ends it looks the same to its app.
#[derive(Clone, Debug)]
pub struct First {
    /// Its protocol.
    pub dialect: Dialect,
    /// Its target.
    pub target: String,
    /// Its headers, as the app got them.
    pub headers: HeaderMap,
}

/// A request of a session, on its way to the app here.
pub struct Visit {
    session: Arc<Session>,
    waited_for: bool,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sessions").field("sessions", &lock(&self.by_id).len()).finish_non_exhaustive()
    }
}

impl Sessions {
    /// The app here has named a session of a place.
    pub fn begin(&self, place: Place, id: String, silence: Duration, first: First) {
        let link = Arc::new(Link::new());
        // Its WebSocket will have a link of its own.
        link.shut_mailbox(Fate::Unable);
        let held = Held::here(place, &link);
        let session = Arc::new(Session {
            id: id.clone(),
            first,
            silence,
            link,
            held: Mutex::new(Some(held)),
            open: AtomicU32::new(0),
            busy: AtomicU32::new(0),
            changed: Notify::new(),
        });
        lock(&self.by_id).insert(id, Arc::clone(&session));
        lock(&self.begun).push(session);
        self.unwatched.notify_one();
    }

    /// Whether a session is held here.
    pub fn holds(&self, id: &str) -> bool {
        lock(&self.by_id).contains_key(id)
    }

    /// A request of a session that is held here. Those that wait for news (GET) can be cut short.
    fn visit(&self, id: &str, method: &Method, is_handshake: bool) -> Option<Visit> {
        let session = Arc::clone(lock(&self.by_id).get(id)?);
        let waited_for = is_handshake || method != Method::GET;
        session.link.touch();
        session.open.fetch_add(1, Ordering::AcqRel);
        session.busy.fetch_add(u32::from(waited_for), Ordering::AcqRel);
        Some(Visit { session, waited_for })
    }

    fn forget(&self, session: &Arc<Session>) {
        let mut by_id = lock(&self.by_id);
        if by_id.get(&session.id).is_some_and(|other| Arc::ptr_eq(other, session)) {
            by_id.remove(&session.id);
        }
    }
}

impl Visit {
    /// Takes the session's connection over, for the WebSocket that goes on with it.
    pub fn take_over(&self) -> Option<ConnectionId> {
        let held = lock(&self.session.held).take();
        self.session.changed.notify_waiters();
        held.map(Held::hand_over)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.session.link.touch();
        self.session.open.fetch_sub(1, Ordering::AcqRel);
        self.session.busy.fetch_sub(u32::from(self.waited_for), Ordering::AcqRel);
        self.session.changed.notify_waiters();
    }
}

impl fmt::Debug for Visit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Visit").finish_non_exhaustive()
    }
}

/// Where a request of a session goes. `None` when nobody is known to hold it: then its key decides.
pub async fn locate(sidecar: &Arc<Sidecar>, view: &View, request: Request<'_>) -> Option<Decision> {
    let Request { key, method, target, is_handshake } = request;
    let dialect = Dialect::of(view.settings().notice.protocol)?;
    let id = dialect.session_in(target)?;
    if let Some(visit) = sidecar.sessions.visit(id, method, is_handshake) {
        return Some(Decision::Here(Place::visiting(sidecar, visit)));
    }
    let previous = view.standing(key?)?.previous;
    let answers = join_all(previous.iter().map(|peer| sidecar.peers.holds(peer, id))).await;
    let holds = previous.into_iter().zip(answers).find(|(_, holds)| *holds);
    holds.map(|(peer, _)| Decision::There(peer))
}

/// Whether a request belongs to a session that is held here.
pub fn is_here(sidecar: &Sidecar, view: &View, target: &str) -> bool {
    let dialect = Dialect::of(view.settings().notice.protocol);
    dialect.and_then(|dialect| dialect.session_in(target)).is_some_and(|id| sidecar.sessions.holds(id))
}

/// A request that may belong to a session.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its key.
    pub key: Option<&'a str>,
    /// Its method.
    pub method: &'a Method,
    /// Its target.
    pub target: &'a str,
    /// Whether it asks for a WebSocket.
    pub is_handshake: bool,
}

/// Watches sessions until `stop` turns true.
pub async fn run(sidecar: Arc<Sidecar>, mut stop: watch::Receiver<bool>) {
    let mut watched = JoinSet::new();
    loop {
        tokio::select! {
            () = sidecar.sessions.unwatched.notified() => {
                let begun = std::mem::take(&mut *lock(&sidecar.sessions.begun));
                for session in begun {
                    watched.spawn(session.watch(Arc::clone(&sidecar)));
                }
            }
            Some(ended) = watched.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a session's task failed");
                }
            }
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    watched.shutdown().await;
}

impl Session {
    /// Until it has ended. One that has become a WebSocket is remembered for a while: a last poll may still come.
    async fn watch(self: Arc<Self>, sidecar: Arc<Sidecar>) {
        loop {
            tokio::select! {
                command = self.link.commanded() => match command {
                    Command::Evict => if self.part(&sidecar).await { break },
                    Command::Reset => {
                        self.end(&sidecar).await;
                        break;
                    }
                },
                () = self.silent() => break,
            }
        }
        sidecar.sessions.forget(&self);
        let held = lock(&self.held).take();
        drop(held);
    }

    /// Until its client has been silent for too long. One that waits for an answer is not: a poll may wait for longer.
    async fn silent(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.open.load(Ordering::Acquire) > 0 {
                changed.await;
                continue;
            }
            let left = self.silence.saturating_sub(self.link.quiet());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Evicts it; says whether it has ended.
    async fn part(&self, sidecar: &Sidecar) -> bool {
        // At the deadline it is ended all the same.
        let _ = tokio::time::timeout(DEADLINE, self.at_rest()).await;
        let Some(held) = lock(&self.held).take() else { return false };
        if held.confirm().is_none() {
            *lock(&self.held) = Some(held);
            return false;
        }
        let manner = self.end(sidecar).await;
        held.record(Ended::Evicted { manner, discarded: 0 });
        true
    }

    /// Waits until nothing is under way that its end would cut short: a message of its client, or its WebSocket.
    async fn at_rest(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let awaits_its_websocket = self.first.dialect == Dialect::SignalR && lock(&self.held).is_some();
            if self.busy.load(Ordering::Acquire) == 0 && !awaits_its_websocket {
                return;
            }
            changed.await;
        }
    }

    /// Ends it at its app, which answers its waiting poll.
    async fn end(&self, sidecar: &Sidecar) -> Manner {
        let Some(farewell) = self.first.dialect.farewell(&self.first.target, &self.id) else {
            return Manner::Unanswered;
        };
        match tokio::time::timeout(REPLY, forward::tell_app(sidecar, farewell, &self.first.headers)).await {
            Ok(Some(status)) if status.is_success() => Manner::Clean,
            answered => {
                tracing::debug!(?answered, "an app did not end a session");
                Manner::Unanswered
            }
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_session_is_not_forgotten_while_its_client_waits_for_an_answer() {
        let first = First { dialect: Dialect::SignalR, target: "/hub".into(), headers: HeaderMap::new() };
        let session = Arc::new(Session {
            id: "1".into(),
            first,
            silence: Duration::ZERO,
            link: Arc::new(Link::new()),
            held: Mutex::default(),
            open: AtomicU32::new(0),
            busy: AtomicU32::new(0),
            changed: Notify::new(),
        });
        let sessions = Sessions::default();
        lock(&sessions.by_id).insert("1".into(), Arc::clone(&session));
        let poll = sessions.visit("1", &Method::GET, false).expect("a session");
        let silent = session.silent();
        tokio::pin!(silent);
        assert!(silent.as_mut().now_or_never().is_none(), "a poll waits");
        drop(poll);
        silent.await;
    }
}

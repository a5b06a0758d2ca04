//! A connection after its 101: two sockets, the bytes between them, and its eviction.
//!
//! ```text
//!   client ──up──► app         Link: commands in, signs of life out
//!   client ◄─down── app        Hooks: what the registry must decide or learn
//! ```
//!
//! Messages of ours go between those of the app, in frames of their own that no extension has touched. On a connection
//! that has just begun they let the app speak first: clients may take the first message for its greeting.
//!
//! One task holds one connection. What is read goes straight to the other side; only what that side does not take is
//! kept, in at most one buffer for each way. There are no timers until an eviction begins.

mod link;
mod mailbox;
mod opening;
mod parting;
mod way;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ring::notice::Spoken;
use ring::settings::Notice;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Sleep;

pub use self::link::{Command, Link};
pub use self::mailbox::{CAPACITY, Fate, Mail};
pub use self::opening::{Connect, Opening};
use self::parting::Farewell;
use self::way::{Carried, Until, Way};
use crate::eviction::{self, Facts, Step};
use crate::frame;

/// How long after its beginning messages of ours let the app speak first.
const FIRST_WORD: Duration = Duration::from_millis(500);

/// What was read past the heads, and belongs to the connection.
#[derive(Debug, Default)]
pub struct Early {
    /// From the client, behind its request's head.
    pub to_app: Vec<u8>,
    /// From the app, behind its 101.
    pub to_client: Vec<u8>,
    /// What the handshake says of the messages of ours that it can bear. `None` when it can bear any.
    pub opening: Option<Box<Opening>>,
}

/// What a connection asks and tells its owner during an eviction.
pub trait Hooks {
    /// At the moment the client would be told: what to tell it, or `None` when the eviction is called off and the
    /// connection goes on as if nothing was. Called once in each eviction that comes so far.
    fn confirm(&self) -> Option<Arc<Notice>>;

    /// The app's side has closed after a confirmed eviction, or was given up at the deadline. Called once in each
    /// confirmed eviction, before the client is waited for any longer.
    fn app_closed(&self);
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The client closed it first.
    Client,
    /// The app closed it first.
    App,
    /// We evicted it.
    Evicted {
        /// How.
        manner: Manner,
        /// Bytes that the app wrote after our Close took their place, its own Close not counted.
        discarded: u64,
    },
    /// [`Link::reset`] ended it.
    Reset,
}

/// How an eviction went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Manner {
    /// The client has answered our Close.
    Clean,
    /// The client has not, but our Close and FIN went out before the connection was closed.
    Unanswered,
    /// It had to be reset: the client was in the middle of a frame, did not read, or its frames were malformed.
    Reset,
}

impl Manner {
    /// Its name in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Unanswered => "unanswered",
            Self::Reset => "reset",
        }
    }
}

/// Relays a connection until it ends. `early` goes first.
pub fn relay<H: Hooks>(client: TcpStream, app: TcpStream, early: Early, link: Arc<Link>, hooks: H) -> Relay<H> {
    let opening = early.opening.and_then(|opening| seen(opening, &early.to_app));
    let (up, down) = (Way::new(early.to_app), Way::new(early.to_client));
    Relay { client, app, up, down, link, hooks, opening, first: None, eviction: None }
}

fn seen(mut opening: Box<Opening>, bytes: &[u8]) -> Option<Box<Opening>> {
    opening.see(bytes).then_some(opening)
}

/// A connection being relayed: the future of [`relay`]. There are as many of these as connections, so it is small, and
/// owns what it needs: an `async fn` around it would keep its arguments a second time.
#[derive(Debug)]
#[must_use = "nothing moves until it is polled"]
pub struct Relay<H> {
    client: TcpStream,
    app: TcpStream,
    /// From the client to the app.
    up: Way,
    /// From the app to the client.
    down: Way,
    link: Arc<Link>,
    hooks: H,
    opening: Option<Box<Opening>>,
    /// Who began to close.
    first: Option<Side>,
    eviction: Option<Box<Eviction>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    App,
}

#[derive(Debug)]
struct Eviction {
    since: Instant,
    timer: Pin<Box<Sleep>>,
    /// Set when the client has been told.
    farewell: Option<Farewell>,
}

impl Eviction {
    fn begin() -> Self {
        Self { since: Instant::now(), timer: Box::pin(tokio::time::sleep(Duration::ZERO)), farewell: None }
    }

    /// Ready when the time has come.
    fn wait(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        let until = until.into();
        if self.timer.deadline() != until {
            self.timer.as_mut().reset(until);
        }
        self.timer.as_mut().poll(cx)
    }
}

impl<H: Hooks + Unpin> Future for Relay<H> {
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let relay = self.get_mut();
        relay.link.register(cx.waker());
        loop {
            match relay.link.take_command() {
                Some(Command::Reset) => return Poll::Ready(relay.abort()),
                Some(Command::Evict) if relay.eviction.is_none() => relay.eviction = Some(Box::new(Eviction::begin())),
                Some(Command::Evict) | None => {}
            }
            let Some(mut eviction) = relay.eviction.take() else {
                relay.carry(cx, Until::End);
                return relay.closed().map_or(Poll::Pending, Poll::Ready);
            };
            let wait = if eviction.farewell.is_some() {
                relay.part(cx, &mut eviction)
            } else {
                relay.evict(cx, &mut eviction)
            };
            match wait {
                Next::Wait(until) if eviction.wait(cx, until).is_pending() => {
                    relay.eviction = Some(eviction);
                    return Poll::Pending;
                }
                Next::Wait(_) | Next::Again => relay.eviction = Some(eviction),
                Next::CalledOff => {}
                Next::End(ended) => return Poll::Ready(ended),
            }
        }
    }
}

/// What follows a step of an eviction.
enum Next {
    Wait(Instant),
    Again,
    CalledOff,
    End(Ended),
}

impl<H: Hooks> Relay<H> {
    /// Its owner's side.
    pub fn hooks(&self) -> &H {
        &self.hooks
    }

    /// Passes on what there is, both ways; returns what the app wrote behind the place asked for, if it was reached.
    fn carry(&mut self, cx: &mut Context<'_>, until: Until) -> Option<Vec<u8>> {
        let opening = &mut self.opening;
        let look = |bytes: &[u8]| *opening = opening.take().and_then(|opening| seen(opening, bytes));
        let up = self.up.carry(cx, &mut self.client, &mut self.app, Until::End, look);
        let down = self.carry_down(cx, until);
        if up.moved || down.moved {
            self.link.touch();
            self.link.hear(self.up.follower.take_longest().max(self.down.follower.take_longest()));
        }
        // A side that has broken takes nothing more, either. The app is not waited for without a client; a client is,
        // since it may still have to read the app's last words.
        if up.broken {
            self.down.abandon();
        }
        if down.broken {
            self.up.block();
        }
        if self.first.is_none() {
            self.first = if self.up.follower.closed() || self.up.ended() {
                Some(Side::Client)
            } else if self.down.follower.closed() || self.down.ended() {
                Some(Side::App)
            } else {
                None
            };
            if self.first.is_some() {
                self.link.shut_mailbox(Fate::Gone);
            }
        }
        let up_open = !self.up.ended() || self.up.finish(cx, &mut self.app).is_pending();
        let down_open = !self.down.ended() || self.down.finish(cx, &mut self.client).is_pending();
        if up_open != down_open {
            self.link.set_half_closed();
        }
        down.behind
    }

    /// Passes on what the app writes, with messages of ours between its own.
    fn carry_down(&mut self, cx: &mut Context<'_>, until: Until) -> Carried {
        self.deliver(cx, false);
        // An eviction has cuts of its own to make, and an end in sight.
        if until != Until::End || !self.link.has_mail() {
            return self.down.carry(cx, &mut self.app, &mut self.client, until, |_| {});
        }
        let mut carried = self.down.carry(cx, &mut self.app, &mut self.client, Until::Message, |_| {});
        if let Some(behind) = carried.behind.take() {
            self.deliver(cx, true);
            self.pass_on(behind);
            cx.waker().wake_by_ref();
        }
        carried
    }

    /// Writes messages of ours, where the app's stream is between two of its own. `cut`: it was stopped there for this,
    /// and one goes even behind what the client has not taken yet, or a busy app and a slow client would leave no place.
    fn deliver(&mut self, cx: &mut Context<'_>, cut: bool) {
        let mut owed = cut;
        while self.link.has_mail() {
            if self.first.is_some() {
                return self.link.shut_mailbox(Fate::Gone);
            }
            if self.down.follower.malformed() || matches!(self.opening.as_deref(), Some(Opening::Opaque)) {
                return self.link.shut_mailbox(Fate::Unable);
            }
            if self.app_speaks_first(cx) {
                return;
            }
            let pending = self.down.flush(cx, &mut self.client).is_pending();
            if self.down.shut() {
                return self.link.shut_mailbox(Fate::Gone);
            }
            if !self.down.follower.between_messages() || (pending && !std::mem::take(&mut owed)) {
                return;
            }
            let Some(frame) = self.link.next_mail() else { return };
            self.down.insert(cx, &mut self.client, &frame);
            self.link.touch();
        }
    }

    /// Whether messages of ours are to wait for the app's first.
    fn app_speaks_first(&mut self, cx: &mut Context<'_>) -> bool {
        let left = FIRST_WORD.saturating_sub(self.link.age());
        self.down.follower.message_kind().is_none() && !left.is_zero() && self.link.hold_mail(cx, left).is_pending()
    }

    /// How it ended, if both ways have.
    fn closed(&self) -> Option<Ended> {
        let over = self.up.ended() && self.up.shut() && self.down.ended() && self.down.shut();
        over.then_some(if self.first == Some(Side::App) { Ended::App } else { Ended::Client })
    }

    /// Before the client is told.
    fn evict(&mut self, cx: &mut Context<'_>, eviction: &mut Eviction) -> Next {
        let now = Instant::now();
        let until = if self.first.is_some() { Until::End } else { eviction::cut(eviction.since, now).into() };
        let behind = self.carry(cx, until);
        if let Some(ended) = self.closed() {
            return Next::End(ended);
        }
        let closing = |bytes: &&[u8]| self.first.is_some() || self.down.follower.leads_to_close(bytes);
        if let Some(bytes) = behind.as_deref().filter(closing) {
            // One side is closing by itself: its own code goes to the other.
            self.pass_on(bytes.to_vec());
            self.first = self.first.or(Some(Side::App));
            return Next::Again;
        }
        let facts = Facts {
            quiet: self.link.quiet(),
            down: self.down.position(),
            up: self.up.position(),
            pending: self.down.pending() || self.up.pending(),
            closing: self.first.is_some(),
        };
        let step = match eviction::step(eviction.since, now, &facts) {
            // The app's stream has just been cut where the client may be told, pending or not.
            Step::Wait(_) if behind.is_some() => Step::Tell { message: self.down.follower.between_messages() },
            step => step,
        };
        let behind = behind.unwrap_or_default();
        match step {
            Step::Wait(until) => return Next::Wait(until),
            Step::Tell { message } => {
                if let Some(notice) = self.hooks.confirm() {
                    let spoken = self.spoken().filter(|_| message);
                    if let Some(message) = spoken.and_then(|spoken| notice.message_for(spoken)) {
                        self.down.queue(frame::message(message));
                    }
                    self.down.queue(frame::close(notice.code(), &notice.reason));
                    let discarded = self.down.drop_bytes(&behind);
                    eviction.farewell = Some(Farewell::new(now, notice.app_close_code, discarded));
                    return Next::Again;
                }
            }
            Step::Reset => {
                if self.hooks.confirm().is_some() {
                    self.reset();
                    self.hooks.app_closed();
                    return Next::End(Ended::Evicted { manner: Manner::Reset, discarded: behind.len() as u64 });
                }
            }
        }
        self.pass_on(behind);
        Next::CalledOff
    }

    /// What a message of ours may go by; `None` when there is no place for one.
    fn spoken(&self) -> Option<Spoken> {
        let app = self.down.follower.message_kind();
        match &self.opening {
            None => Some(Spoken { app, mqtt_level: None }),
            Some(opening) => opening.spoken(app),
        }
    }

    /// Gives the client what was read behind a cut that was not used.
    fn pass_on(&mut self, behind: Vec<u8>) {
        self.down.follower.feed(&behind);
        self.down.queue(behind);
    }

    /// [`Link::reset`] was called.
    fn abort(&mut self) -> Ended {
        self.reset();
        match self.eviction.take().and_then(|eviction| eviction.farewell) {
            Some(farewell) => self.cut_short(&farewell),
            None => Ended::Reset,
        }
    }

    /// Breaks both sides. The sockets themselves go with the relay.
    fn reset(&self) {
        for socket in [&self.client, &self.app] {
            // Both fail only on a socket that is broken already.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
        // The app must have closed before the key is released.
        let _ = SockRef::from(&self.app).shutdown(std::net::Shutdown::Both);
    }
}

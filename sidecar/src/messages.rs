//! Messages from the app beside any sidecar to the clients of a key, wherever they are connected.
//!
//! ```text
//!  app ──api──► send ─┬─► previous owners, while the key may be with them still ──► post, or "away: n"
//!                     └─► the owner ──► post, and hold for the n that are away until they arrive
//! ```
//!
//! With `unit: Key` a key is at one server at a time, so a message is written at one, or held at its owner for as many
//! connections as were told to go. Messages of one key go one after the other, in the order in which their senders asked.

mod errand;
mod lane;
mod passing;
mod published;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use ring::settings::{OwnerUnreachable, Trust, Unit};
use ring::wire::{Connected, Delivered, Peer, Presences};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

pub use self::errand::{Errand, broadcast_kind, kind_name};
use self::lane::Lanes;
pub use self::passing::run;
pub use self::published::{Published, hear};
use crate::admission::PLACEMENT_WAIT;
use crate::message::{LARGEST, Message};
use crate::peers::PeerError;
use crate::registry::{Posted, Role};
use crate::relay::Fate;
use crate::sidecar::Sidecar;
use crate::view::View;

/// How long a message is held for connections that are on their way.
pub const HOLD: Duration = Duration::from_secs(20);
/// How long a client that does not read may keep its sender waiting.
pub const SLOW: Duration = Duration::from_secs(2);
/// How long a peer is kept waiting for what becomes of a message before it hears that the message is here.
const PROMPT: Duration = Duration::from_millis(20);
/// How long a message waits for those of its key before it.
pub const TURN: Duration = Duration::from_secs(5);
/// How long a message waits while its key is claimed, or while held messages are passed on.
const BUSY: Duration = Duration::from_secs(1);
/// How long a message is sent on by sidecars with different placements.
const UNSETTLED: Duration = Duration::from_secs(2);
/// What all messages that are being sent or taken in may take up, in bytes.
const INTAKE: usize = 64 * 1024 * 1024;
/// What a message takes up at least: its task, its request.
const OVERHEAD: usize = 4 * 1024;
/// What messages of peers may take up that wait for slow clients, in bytes.
const WAITING: usize = 16 * 1024 * 1024;
/// What one of them takes up at least: it keeps a connection to its peer, of which there are 1,024 at most.
const CONNECTED: usize = 16 * 1024;

/// How many messages for everybody are written here at a time: each has a receipt for each connection.
const BROADCASTS: usize = 8;

/// The turn of a message for everybody.
#[derive(Debug)]
pub struct BroadcastTurn(#[allow(dead_code, reason = "given back when it is dropped")] OwnedSemaphorePermit);

/// Messages on their way to clients.
#[derive(Debug)]
pub struct Messages {
    lanes: Lanes,
    intake: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    broadcasts: Arc<Semaphore>,
    /// Wakes whoever passes held messages on.
    pub misplaced: Notify,
}

impl Default for Messages {
    fn default() -> Self {
        let [intake, waiting, broadcasts] =
            [INTAKE, WAITING, BROADCASTS].map(|permits| Arc::new(Semaphore::new(permits)));
        Self { lanes: Lanes::default(), intake, waiting, broadcasts, misplaced: Notify::new() }
    }
}

/// Why a message was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsent {
    /// Nobody may get messages here.
    #[error(
        "the keys of this pool prove nothing (spec.key.trust is Routing), so anybody could read these messages; set \
         spec.key.trust to Verified or AppAsserted, or spec.messages.allowUnverified to true"
    )]
    Unverified,
    /// No slot has a holder.
    #[error("no server is ready in this pool; nothing was sent")]
    NoHolder,
    /// The owner cannot be reached, nor who stands in for it.
    #[error("the server of this key cannot be reached; nothing was sent")]
    Unreachable,
    /// Connections have no keys.
    #[error(
        "the connections of this pool have no keys (spec.placement.strategy is LeastConnections); send to all of them, or \
         use the strategy ConsistentHash"
    )]
    Keyless,
    /// The sidecars do not agree on the owner.
    #[error("the servers of this pool do not agree yet where this key is; nothing was sent. Try again in a moment")]
    Unsettled,
    /// The owner does not believe this sidecar.
    #[error(
        "the server of this key refused the message: the clocks of the two differ, or what proves a sidecar of this pool; \
         nothing was sent"
    )]
    Refused,
    /// The connection to the owner broke off.
    #[error("the server of this key gave no answer; the message may have been written")]
    Unanswered,
    /// Too many messages wait for this key.
    #[error("the messages of this key are not taken as fast as they come; nothing was sent. Send fewer, or try again")]
    TooFast,
    /// Too many messages are on their way.
    #[error("this sidecar has as many messages on their way as it may; nothing was sent. Try again in a moment")]
    Overloaded,
}

impl Unsent {
    /// Its name, in answers and in metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unverified => "unverified",
            Self::NoHolder => "no-holder",
            Self::Unreachable => "unreachable",
            Self::Keyless => "keyless",
            Self::Unsettled => "unsettled",
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::TooFast => "too-fast",
            Self::Overloaded => "overloaded",
        }
    }

    /// By a peer that was asked.
    const fn by(error: &PeerError) -> Self {
        match error {
            PeerError::Unanswered(_) | PeerError::TooLong => Self::Unanswered,
            PeerError::Busy => Self::Overloaded,
            PeerError::Unsettled => Self::Unsettled,
            PeerError::Refused(_) => Self::Refused,
            PeerError::Unreachable(_) => Self::Unreachable,
        }
    }
}

impl Messages {
    /// Room for a message of so many bytes at most, for as long as it is on its way.
    pub async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Unsent> {
        let room = Arc::clone(&self.intake).acquire_many_owned(size(bytes));
        match tokio::time::timeout(BUSY, room).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_)) | Err(_) => Err(Unsent::Overloaded),
        }
    }

    /// The turn of a message for everybody, after those before it.
    pub async fn broadcast_turn(&self) -> Result<BroadcastTurn, Unsent> {
        match tokio::time::timeout(TURN, Arc::clone(&self.broadcasts).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(BroadcastTurn(turn)),
            Ok(Err(_)) | Err(_) => Err(Unsent::Overloaded),
        }
    }

    /// The same as [`Messages::room`] without a wait, which would hold up all that comes behind the message.
    pub fn room_now(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Unsent> {
        Arc::clone(&self.intake).try_acquire_many_owned(size(bytes)).map_err(|_| Unsent::Overloaded)
    }

    /// Room for a message of a peer that waits for slow clients, if there is any.
    fn waiting_room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let size = u32::try_from(bytes.max(CONNECTED)).unwrap_or(u32::MAX);
        Arc::clone(&self.waiting).try_acquire_many_owned(size).ok()
    }
}

fn size(bytes: usize) -> u32 {
    u32::try_from(bytes.clamp(OVERHEAD, LARGEST + OVERHEAD)).unwrap_or(u32::MAX)
}

/// Sends a message to every connection of a key.
pub async fn send(sidecar: &Arc<Sidecar>, key: &str, message: &Message) -> Result<Delivered, Unsent> {
    let view = sidecar.view();
    if view.by_load() {
        return Err(Unsent::Keyless);
    }
    check_trust(&view)?;
    let turn = sidecar.messages.lanes.enter(key, message.size()).ok_or(Unsent::TooFast)?;
    let _turn = tokio::time::timeout(TURN, turn).await.map_err(|_| Unsent::TooFast)?;
    Route { sidecar, key, message, began: Instant::now() }.follow().await
}

/// Sends a message to every connection of the pool. Also says how many sidecars could not be reached.
pub async fn send_to_all(sidecar: &Arc<Sidecar>, message: &Message) -> Result<(Delivered, u32), Unsent> {
    let view = sidecar.view();
    check_trust(&view)?;
    let turn = sidecar.messages.broadcast_turn().await?;
    let peers = view.peers();
    let there = join_all(peers.iter().map(|peer| sidecar.peers.broadcast(peer, message)));
    let (mut total, there) = tokio::join!(deliver_to_all(sidecar, message, turn), there);
    let mut unreachable = 0;
    for answer in there {
        match answer {
            Ok(answer) => add(&mut total, &answer),
            Err(_) => unreachable += 1,
        }
    }
    Ok((total, unreachable))
}

/// Whether anybody in the pool may get messages.
pub fn check_trust(view: &View) -> Result<(), Unsent> {
    let settings = view.settings();
    let nobody = settings.key.trust == Trust::Routing && !settings.messages.allow_unverified;
    if nobody { Err(Unsent::Unverified) } else { Ok(()) }
}

fn add(total: &mut Delivered, part: &Delivered) {
    total.written += part.written;
    total.held += part.held;
    total.dropped += part.dropped;
}

/// The way of one message to wherever its key is.
struct Route<'a> {
    sidecar: &'a Arc<Sidecar>,
    key: &'a str,
    message: &'a Message,
    began: Instant,
}

impl Route<'_> {
    async fn follow(&self) -> Result<Delivered, Unsent> {
        let view = self.sidecar.view();
        let mut total = Delivered::default();
        let Some(standing) = view.standing(self.key) else {
            let role = Role::Owner { away: 0, left: HOLD };
            return deliver(self.sidecar, self.key, self.message, role).await.map_err(|Unsettled| Unsent::Unsettled);
        };
        let mut owner = standing.owner.ok_or(Unsent::NoHolder)?;
        // This sidecar never claims from itself, but it may have the key still, or hold messages for it that go first.
        let mut previous = standing.previous;
        previous.push(view.me.clone());
        let mut asked: Vec<Peer> = Vec::new();
        // By who has told them to go: one that is asked again knows better.
        let mut away: HashMap<String, u32> = HashMap::new();
        // Why somebody who may have the key was not asked: then nobody knows that it has no connections.
        let mut unasked = None;
        let whole = view.settings().unit == Unit::Key;
        let mut newest = view.version().epoch;
        while self.began.elapsed() < UNSETTLED {
            previous.retain(|peer| peer.uid != owner.uid && asked.iter().all(|it| it.uid != peer.uid));
            for (peer, answer) in
                previous.iter().zip(join_all(previous.iter().map(|it| self.ask(it, Role::Previous))).await)
            {
                match answer {
                    Ok(answer) => {
                        add(&mut total, &answer);
                        away.insert(peer.uid.clone(), answer.away);
                    }
                    Err(PeerError::Unanswered(_) | PeerError::TooLong) => return Err(Unsent::Unanswered),
                    // One that cannot be reached has crashed, or is cut off: its clients come back elsewhere.
                    Err(error) => unasked = Some(Unsent::by(&error)),
                }
            }
            asked.append(&mut previous);
            if whole && total.written > 0 {
                return Ok(total);
            }
            match unasked {
                Some(Unsent::Unsettled) => break,
                Some(Unsent::Overloaded) => return conclude(total, unasked),
                _ => {}
            }
            let role = Role::Owner { away: away.values().sum(), left: self.left() };
            let answer = match self.ask(&owner, role).await {
                Ok(answer) => answer,
                Err(PeerError::Unanswered(_) | PeerError::TooLong) => return Err(Unsent::Unanswered),
                Err(PeerError::Unsettled) => break,
                Err(error @ PeerError::Busy) => return conclude(total, Some(Unsent::by(&error))),
                Err(error @ (PeerError::Refused(_) | PeerError::Unreachable(_))) => {
                    let why = unasked.insert(Unsent::by(&error)).clone();
                    match self.ask_next_best(&view, &owner).await {
                        Err(Unsent::Unreachable) => return conclude(total, Some(why)),
                        answer => answer?,
                    }
                }
            };
            add(&mut total, &answer);
            let Some(next) = answer.owner else {
                previous = answer.previous;
                previous.retain(|peer| asked.iter().all(|it| it.uid != peer.uid));
                if previous.is_empty() {
                    return conclude(total, unasked);
                }
                continue;
            };
            if whole && total.written > 0 {
                return Ok(total);
            }
            if answer.epoch < newest {
                if answer.written > 0 {
                    // Those that stay there have it: asked again, it would write it again.
                    return Ok(total);
                }
                // It will know that the key is its own: asking whom it takes for the owner would lead back here.
                tokio::time::sleep(PLACEMENT_WAIT).await;
            } else {
                newest = answer.epoch;
                away.insert(owner.uid.clone(), answer.away);
                asked.push(std::mem::replace(&mut owner, next));
            }
        }
        if total == Delivered::default() { Err(Unsent::Unsettled) } else { Ok(total) }
    }

    fn left(&self) -> Duration {
        HOLD.saturating_sub(self.began.elapsed())
    }

    async fn ask(&self, peer: &Peer, role: Role) -> Result<Delivered, PeerError> {
        if peer.uid == self.sidecar.config.uid {
            let here = deliver(self.sidecar, self.key, self.message, role).await;
            return here.map_err(|Unsettled| PeerError::Unsettled);
        }
        self.sidecar.peers.deliver(peer, self.key, self.message, role).await
    }

    /// Asks whoever takes the owner's clients while it cannot be reached.
    async fn ask_next_best(&self, view: &View, owner: &Peer) -> Result<Delivered, Unsent> {
        if view.settings().owner_unreachable == OwnerUnreachable::Reject {
            return Err(Unsent::Unreachable);
        }
        for peer in view.fallbacks(self.key).into_iter().filter(|peer| peer.uid != owner.uid) {
            match self.ask(&peer, Role::Fallback { left: self.left() }).await {
                Ok(answer) => return Ok(answer),
                Err(PeerError::Unanswered(_)) => return Err(Unsent::Unanswered),
                Err(_) => {}
            }
        }
        Err(Unsent::Unreachable)
    }
}

/// What is said of a message at last, if somebody was not asked. What some have is not to be sent again.
fn conclude(total: Delivered, unasked: Option<Unsent>) -> Result<Delivered, Unsent> {
    unasked.filter(|_| total.written + total.held + total.dropped == 0).map_or(Ok(total), Err)
}

/// What is known of a key here was about to change for longer than a message waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this key is being claimed")]
pub struct Unsettled;

/// Gives a message to the connections of a key that are here, and holds it for those on their way.
pub async fn deliver(sidecar: &Sidecar, key: &str, message: &Message, role: Role) -> Result<Delivered, Unsettled> {
    let mut delivery = Delivery::new(role);
    loop {
        delivery.post(sidecar, key, message).await?;
        delivery.wait(SLOW).await;
        if !delivery.settle(sidecar) {
            return Ok(delivery.conclude(sidecar));
        }
    }
}

/// What a peer is told of a message that it has given.
pub enum Answer {
    /// What became of it.
    Known(Delivered),
    /// It is here, and what becomes of it will be known.
    Later(BoxFuture<'static, Delivered>),
}

/// The same for a peer, which need not keep anything back meanwhile: a client that is slow holds up its own key only.
pub async fn deliver_for_peer(
    sidecar: &Arc<Sidecar>,
    key: String,
    message: Message,
    role: Role,
) -> Result<Answer, Unsettled> {
    let mut delivery = Delivery::new(role);
    loop {
        delivery.post(sidecar, &key, &message).await?;
        if !delivery.wait(PROMPT).await
            && let Some(room) = sidecar.messages.waiting_room(message.size())
        {
            let sidecar = Arc::clone(sidecar);
            let rest = async move {
                let _room = room;
                delivery.finish(&sidecar, &key, &message).await
            };
            return Ok(Answer::Later(rest.boxed()));
        }
        if !delivery.settle(sidecar) {
            return Ok(Answer::Known(delivery.conclude(sidecar)));
        }
    }
}

/// A message for the connections of a key, from when it is posted until all is known of it.
#[derive(Debug)]
struct Delivery {
    role: Role,
    /// Until when it is posted again where its connections have left.
    until: Instant,
    /// When it was posted last, and what came of that.
    since: tokio::time::Instant,
    posted: Posted,
    fates: Fates,
    /// With `unit: Key`.
    whole: bool,
    so_far: Delivered,
}

impl Delivery {
    fn new(role: Role) -> Self {
        let now = tokio::time::Instant::now();
        Self {
            role,
            until: now.into_std() + BUSY,
            since: now,
            posted: Posted::default(),
            fates: Fates::default(),
            whole: false,
            so_far: Delivered::default(),
        }
    }

    /// Posts it, once it is settled where the key is.
    async fn post(&mut self, sidecar: &Sidecar, key: &str, message: &Message) -> Result<(), Unsettled> {
        loop {
            let released = sidecar.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            let (posted, view) = {
                let mut registry = sidecar.registry();
                let view = Arc::clone(registry.view());
                (registry.post(key, message, self.role, Instant::now()), view)
            };
            if !posted.busy {
                self.since = tokio::time::Instant::now();
                (self.posted, self.fates) = (posted, Fates::default());
                self.whole = view.settings().unit == Unit::Key;
                self.so_far.epoch = view.version().epoch;
                return Ok(());
            }
            if Instant::now() >= self.until {
                return Err(Unsettled);
            }
            sidecar.messages.misplaced.notify_one();
            // Whatever woke us, the key is looked at once more.
            let _ = tokio::time::timeout_at(self.until.into(), released).await;
        }
    }

    /// Waits until all is known, for so long at most since it was posted. Says whether it is.
    async fn wait(&mut self, time: Duration) -> bool {
        self.fates.gather(&mut self.posted.receipts, self.since + time).await
    }

    /// Counts what came of it. What is not written by now never will be. Says whether it is to be posted again: all of it
    /// has begun to leave since, and where to is known now.
    fn settle(&mut self, sidecar: &Sidecar) -> bool {
        self.fates.take(&mut self.posted.receipts);
        self.fates.count(sidecar);
        if !matches!(self.role, Role::Successor { .. }) {
            sidecar.metrics.messages_held(self.posted.held);
        }
        sidecar.metrics.messages_dropped("no_room", self.posted.unkept.into());
        let Self { fates, posted, so_far, .. } = self;
        so_far.written += fates.written;
        so_far.held += posted.held;
        so_far.dropped += fates.unable + fates.slow + posted.unkept;
        fates.moved > 0 && so_far.written + posted.held == 0 && Instant::now() < self.until
    }

    /// The same as a peer hears it that knows already that the message is here.
    async fn finish(mut self, sidecar: &Sidecar, key: &str, message: &Message) -> Delivered {
        self.wait(SLOW).await;
        while self.settle(sidecar) && self.post(sidecar, key, message).await.is_ok() {
            self.wait(SLOW).await;
        }
        self.conclude(sidecar)
    }

    /// What is said of it.
    fn conclude(self, sidecar: &Sidecar) -> Delivered {
        let Self { fates, posted, so_far: mut delivered, .. } = self;
        // Some have it, and others of the key have begun to leave meanwhile. Where all of them arrive nobody could tell
        // the ones from the others; and who was asked as the owner passes nothing on.
        let passed_on = self.role == Role::Previous || posted.owner.is_some();
        if passed_on && !(self.whole && delivered.written > 0) {
            delivered.away = posted.away + fates.moved;
        } else {
            sidecar.metrics.messages_dropped("moved", fates.moved.into());
            delivered.dropped += fates.moved;
            delivered.away = posted.away;
        }
        delivered.owner = posted.owner;
        delivered.previous = posted.previous;
        delivered
    }
}

/// Gives a message to every connection here.
pub async fn deliver_to_all(sidecar: &Sidecar, message: &Message, _turn: BroadcastTurn) -> Delivered {
    let mut receipts = sidecar.registry().post_to_all(message);
    let mut fates = Fates::default();
    fates.gather(&mut receipts, tokio::time::Instant::now() + SLOW).await;
    fates.take(&mut receipts);
    fates.count(sidecar);
    sidecar.metrics.messages_dropped("moved", fates.moved.into());
    Delivered { written: fates.written, dropped: fates.unable + fates.slow + fates.moved, ..Delivered::default() }
}

/// The connections of a key here.
pub fn connections_here(sidecar: &Sidecar, key: &str) -> Presences {
    let presences = sidecar.registry().presences(key);
    let age_ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    list(presences.into_iter().map(|it| Connected { age_ms: age_ms(it.age), trusted: it.trusted }).collect())
}

/// A key may be a room of many: an answer has a limit.
fn list(mut connections: Vec<Connected>) -> Presences {
    let count = connections.len() as u64;
    connections.sort_unstable_by_key(|connection| Reverse(connection.age_ms));
    connections.truncate(Presences::LISTED);
    Presences { count, connections }
}

/// Where the connections of a key are: at each sidecar that may have any, or the reason why it did not say.
pub async fn find(sidecar: &Sidecar, key: &str) -> Vec<(Peer, Result<Presences, PeerError>)> {
    let view = sidecar.view();
    let standing = view.standing(key);
    let mut peers: Vec<Peer> = standing.map_or_else(Vec::new, |it| it.previous.into_iter().chain(it.owner).collect());
    // Clients that could not reach the owner are at its next-best.
    peers.extend(view.fallbacks(key).into_iter().take(2));
    if peers.is_empty() {
        peers.push(view.me.clone());
    }
    let mut seen = BTreeSet::new();
    peers.retain(|peer| seen.insert(peer.uid.clone()));
    let ask = async |peer: &Peer| {
        if peer.uid == view.me.uid {
            Ok(connections_here(sidecar, key))
        } else {
            sidecar.peers.connections(peer, key).await
        }
    };
    let answers = join_all(peers.iter().map(ask)).await;
    peers.into_iter().zip(answers).collect()
}

/// What became of a message, by connections.
#[derive(Debug, Default)]
struct Fates {
    written: u32,
    moved: u32,
    gone: u32,
    unable: u32,
    slow: u32,
}

impl Fates {
    /// Waits for what is known by then, and leaves the others. Says whether there are none.
    async fn gather(&mut self, receipts: &mut Vec<oneshot::Receiver<Fate>>, until: tokio::time::Instant) -> bool {
        while let Some(receipt) = receipts.last_mut() {
            let Ok(fate) = tokio::time::timeout_at(until, receipt).await else { return false };
            self.add(fate.unwrap_or(Fate::Gone));
            receipts.pop();
        }
        true
    }

    /// Takes them as they are. What is not written by now never will be.
    fn take(&mut self, receipts: &mut Vec<oneshot::Receiver<Fate>>) {
        for mut receipt in receipts.drain(..) {
            let fate = (&mut receipt).now_or_never().map(|fate| fate.unwrap_or(Fate::Gone));
            receipt.close();
            self.add(fate.or_else(|| receipt.try_recv().ok()).unwrap_or(Fate::Slow));
        }
    }

    fn add(&mut self, fate: Fate) {
        *match fate {
            Fate::Written => &mut self.written,
            Fate::Moved => &mut self.moved,
            Fate::Gone => &mut self.gone,
            Fate::Unable => &mut self.unable,
            Fate::Slow => &mut self.slow,
        } += 1;
    }

    fn count(&self, sidecar: &Sidecar) {
        sidecar.metrics.messages_written(self.written);
        for (reason, connections) in [("gone", self.gone), ("unable", self.unable), ("slow", self.slow)] {
            sidecar.metrics.messages_dropped(reason, connections.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use ring::notice::MessageKind;

    use super::*;
    use crate::cli::Cli;
    use crate::metrics::Metrics;
    use crate::relay::Link;
    use crate::sidecar::Installed;

    #[test]
    fn nothing_is_said_to_have_happened_where_somebody_was_not_asked_and_nothing_to_be_sent_again_where_some_have_it() {
        let why = || Some(Unsent::Refused);
        assert_eq!(conclude(Delivered::default(), why()), Err(Unsent::Refused));
        assert_eq!(conclude(Delivered::default(), None), Ok(Delivered::default()));
        for some in [
            Delivered { written: 1, ..Delivered::default() },
            Delivered { held: 1, ..Delivered::default() },
            Delivered { dropped: 1, ..Delivered::default() },
        ] {
            assert_eq!(conclude(some.clone(), why()), Ok(some));
        }
    }

    #[tokio::test]
    async fn messages_for_everybody_take_turns() {
        let messages = Messages::default();
        let mut turns = Vec::new();
        for _ in 0..BROADCASTS {
            turns.push(messages.broadcast_turn().await.expect("a turn"));
        }
        let next = messages.broadcast_turn();
        tokio::pin!(next);
        assert!(futures_util::poll!(&mut next).is_pending());
        turns.pop();
        next.await.expect("a turn");
    }

    #[test]
    fn what_is_published_finds_room_at_once_or_not_at_all() {
        let messages = Messages::default();
        let rooms: Vec<_> = std::iter::from_fn(|| messages.room_now(LARGEST).ok()).take(1_000).collect();
        assert_eq!(rooms.len(), INTAKE / LARGEST);
        drop(rooms);
        assert!(messages.room_now(LARGEST).is_ok());
    }

    #[test]
    fn what_waits_for_slow_clients_costs_peers_bounded_memory_and_connections() {
        for (bytes, most) in [(1, 1_024), (LARGEST, WAITING / LARGEST)] {
            let messages = Messages::default();
            let rooms: Vec<_> = std::iter::from_fn(|| messages.waiting_room(bytes)).take(5_000).collect();
            assert_eq!(rooms.len(), most);
        }
    }

    #[tokio::test]
    async fn a_peer_hears_at_once_that_its_message_waits_and_where_too_many_do_that_it_will_not_be_written() {
        let config = Cli::parse_from(["sidecar", "--upstream", "127.0.0.1:1"]).args.check().expect("a configuration");
        let sidecar = Sidecar::new(config, Installed::default(), Metrics::default());
        let link = Arc::new(Link::new());
        let seat = sidecar.registry().seat_unplaced("ann");
        sidecar.registry().register(&seat, Arc::clone(&link), true);
        let give = || {
            let message = Message::new(MessageKind::Text, b"hello").expect("a message");
            deliver_for_peer(&sidecar, "ann".into(), message, Role::Owner { away: 0, left: HOLD })
        };
        let Ok(Answer::Later(later)) = give().await else { panic!("nobody writes it") };
        let others: Vec<_> = std::iter::from_fn(|| sidecar.messages.waiting_room(1)).collect();
        let Ok(Answer::Known(said)) = give().await else { panic!("there is no room to wait") };
        assert_eq!((others.len(), said.written, said.dropped), (WAITING / CONNECTED - 1, 0, 1));
        link.shut_mailbox(Fate::Unable);
        let said = later.await;
        assert_eq!((said.written, said.dropped), (0, 1));
        assert!(sidecar.messages.waiting_room(1).is_some(), "it waits no more");
    }

    #[tokio::test]
    async fn what_becomes_of_a_message_is_waited_for_only_until_then() {
        let (receipts, senders): (Vec<_>, Vec<_>) = (0..4).map(|_| oneshot::channel()).map(|(s, r)| (r, s)).unzip();
        let (mut receipts, mut senders, mut fates) = (receipts, senders.into_iter(), Fates::default());
        let mut next = || senders.next().expect("a sender");
        let (first, second, third, fourth) = (next(), next(), next(), next());
        fourth.send(Fate::Written).expect("somebody waits");
        let now = tokio::time::Instant::now();
        assert!(!fates.gather(&mut receipts, now).await);
        first.send(Fate::Moved).expect("somebody waits");
        drop(second);
        fates.take(&mut receipts);
        assert_eq!((fates.written, fates.moved, fates.gone, fates.slow), (1, 1, 1, 1));
        assert!(third.is_closed() && fates.gather(&mut receipts, now).await, "nothing is left to wait for");
    }

    #[test]
    fn an_answer_lists_as_many_connections_as_a_peer_reads_and_counts_all() {
        let connections = (0..5_000).map(|n| Connected { age_ms: u64::MAX - n, trusted: false }).collect();
        let listed = list(connections);
        assert_eq!((listed.count, listed.connections.len()), (5_000, Presences::LISTED));
        assert_eq!(listed.connections[0].age_ms, u64::MAX);
        assert!(serde_json::to_vec(&listed).expect("JSON").len() < crate::peers::LARGEST_ANSWER);
    }
}

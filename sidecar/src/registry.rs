//! The connections that this sidecar holds, and the keys they belong to.
//!
//! One lock guards the view of the pool together with the keys, so that "is it mine?" and "then it is counted" are one
//! step. It is taken once when a connection begins and once when it ends, never for its bytes.

mod audience;
mod cut_over;
mod held;
mod pins;
mod post;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use ring::claim::{Arrival, ClaimAnswer, End, Entry, KeyState, Released};
use ring::delta::Delta;
use ring::settings::{Notice, Unit};
use ring::wire::{BreakCause, Claim, ClaimReply, Peer};
use ring::{Compiled, KeyHash, SlotId};
use slab::Slab;
use smallvec::SmallVec;

pub use self::audience::Audience;
use self::audience::Changes;
use self::cut_over::CutOvers;
pub use self::cut_over::{Heard, MARKER};
use self::held::Held;
pub use self::held::HeldMessage;
use self::pins::Pins;
pub use self::pins::{Pinned, Unpinned};
pub use self::post::{Misplaced, Posted, Presence, Role};
use crate::messages::HOLD;
use crate::relay::{Fate, Link, Mail};
use crate::view::View;

/// Identifies a connection for as long as it is held.
pub type ConnectionId = usize;
type KeyId = usize;

/// What the registry counts, since the process began.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Connections whose client was told to go as a grant allows: where keys decide, those with a key.
    pub evicted: u64,
    /// Connections of moved keys that arrived.
    pub returned: u64,
    /// Connections that we ended, by cause.
    pub breaks: BTreeMap<BreakCause, u64>,
}

/// What is held, and where it belongs.
#[derive(Debug)]
pub struct Registry {
    view: Arc<View>,
    /// When the placement came into force.
    placed: Option<Instant>,
    ids: HashMap<Arc<str>, KeyId>,
    keys: Slab<KeyEntry>,
    /// By key id, apart from the entries: a new placement walks all of them.
    hashes: Vec<KeyHash>,
    owners: Vec<Option<SlotId>>,
    /// Keys whose owner is elsewhere, in the random order of their hashes.
    moved: BTreeSet<(KeyHash, KeyId)>,
    /// Keys that may have something to forget under a newer placement.
    loose: HashSet<KeyId>,
    connections: Slab<Connection>,
    held: u64,
    trusted: u64,
    transit: u64,
    leaving: u64,
    /// Of those leaving for a grant, the ones whose client has not been told yet.
    undecided: u64,
    totals: Totals,
    held_messages: Held<KeyId>,
    /// Of the messages that were held, those on their way to other sidecars.
    passing: usize,
    /// Held messages for which there was no room, by connections, since they were last asked for.
    unkept: u64,
    /// The keys whose audience may have changed since it was last asked for.
    changes: Changes,
    cut_overs: CutOvers,
    pins: Pins,
}

#[derive(Debug)]
struct KeyEntry {
    key: Arc<str>,
    state: KeyState<Peer>,
    /// Most keys have one.
    connections: SmallVec<[ConnectionId; 2]>,
    /// Connections that the previous owner evicted and that have not arrived here yet.
    expected: u32,
    /// Of these, the ones that may get messages. Whoever else comes under this key does not come in their place.
    expected_receivers: u32,
    /// Of those that were evicted since the key was last claimed from here, the ones that may get messages.
    away_receivers: u32,
    /// How many are about to change what is known of it: claims under way, held messages being passed on.
    busy: u32,
}

impl KeyEntry {
    /// Whether connections that the previous owner evicted are on their way here.
    fn is_expecting(&self) -> bool {
        self.expected > 0 || self.expected_receivers > 0
    }

    /// Somebody else expects them from now on, and those that were evicted here. Says how many were on their way here, and
    /// of all of them how many may get messages.
    fn send_on(&mut self) -> (u32, u32) {
        let receivers = std::mem::take(&mut self.expected_receivers) + std::mem::take(&mut self.away_receivers);
        (std::mem::take(&mut self.expected), receivers)
    }
}

#[derive(Debug)]
struct Connection {
    link: Arc<Link>,
    kind: Kind,
    leaving: Option<Leaving>,
    /// Whether its key proves who the client is.
    trusted: bool,
}

/// What a connection is to this sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Its app is here, and it has a key.
    Keyed(KeyId),
    /// Its app is here.
    Keyless,
    /// Tunnelled to a peer.
    Transit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leaving {
    cause: BreakCause,
    /// Whether a grant pays for it.
    granted: bool,
    told: bool,
}

/// The right to one connection of a key, from its admission to its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Seat(KeyId);

/// What the registry holds of keys that moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Keys.
    pub keys: u64,
    /// Connections, without those already leaving and those that are pinned.
    pub connections: u64,
    /// The same by the slot they belong to.
    pub to: BTreeMap<SlotId, u64>,
    /// Connections that stay, because they are pinned.
    pub pinned: u64,
}

/// Whether a handshake may go to the app here.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Seated(Seat),
    /// Its key's previous owners must be asked first.
    Claim(Vec<Peer>),
    /// It belongs to this peer.
    Redirect(Peer),
    /// No slot has a holder.
    Nobody,
    /// There is no placement: everything is accepted.
    Unplaced,
    /// The key has as many connections as `limits.perKey` allows.
    KeyFull,
}

impl Registry {
    /// An empty registry.
    pub fn new(view: View) -> Self {
        Self {
            view: Arc::new(view),
            placed: None,
            ids: HashMap::new(),
            keys: Slab::new(),
            hashes: Vec::new(),
            owners: Vec::new(),
            moved: BTreeSet::new(),
            loose: HashSet::new(),
            connections: Slab::new(),
            held: 0,
            trusted: 0,
            transit: 0,
            leaving: 0,
            undecided: 0,
            totals: Totals::default(),
            held_messages: Held::default(),
            passing: 0,
            unkept: 0,
            changes: Changes::default(),
            cut_overs: CutOvers::default(),
            pins: Pins::default(),
        }
    }

    /// The pool as it is known now.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Puts a newer placement in force. The caller has checked that it is newer.
    pub fn place(&mut self, placement: &Arc<Compiled>) {
        let old = self.view.placement.clone();
        self.view = Arc::new(self.view.placed(Arc::clone(placement)));
        self.placed = Some(Instant::now());
        match old.filter(|old| old.placement().table.hasher == placement.placement().table.hasher) {
            Some(old) => {
                let delta = Delta::between(old.ring(), placement.ring());
                for (hash, owner) in self.hashes.iter().zip(&mut self.owners) {
                    *owner = match *owner {
                        Some(slot) => delta.owner(*hash, slot),
                        None => placement.ring().owner(*hash),
                    };
                }
            }
            None => {
                for (id, entry) in &self.keys {
                    self.hashes[id] = placement.hash(&entry.key);
                    self.owners[id] = placement.ring().owner(self.hashes[id]);
                }
            }
        }
        let moving = self.view.moving();
        for id in self.loose.clone() {
            if !moving {
                let entry = &mut self.keys[id];
                (entry.expected, entry.expected_receivers) = (0, 0);
            }
            self.forget_if_empty(id);
        }
        self.find_moved();
        self.changes.all();
    }

    /// Learns that a sidecar, perhaps this one, is draining, or no longer is.
    pub fn set_draining(&mut self, uid: &str, draining: bool) {
        let mut view = View::clone(&self.view);
        let changed = if draining { view.draining.insert(uid.to_owned()) } else { view.draining.remove(uid) };
        if changed {
            view.was_away |= uid == view.me.uid;
            self.view = Arc::new(view);
            self.find_moved();
        }
    }

    /// Learns that a sidecar, perhaps this one, is empty and about to end; or that it is there again.
    pub fn set_gone(&mut self, uid: &str, gone: bool) {
        if gone == self.view.gone.contains(uid) {
            return;
        }
        let mut view = View::clone(&self.view);
        if gone {
            view.gone.insert(uid.to_owned());
        } else {
            view.gone.remove(uid);
        }
        self.view = Arc::new(view);
    }

    /// The process was restarted under a placement: others may have taken its keys meanwhile.
    pub fn note_restart(&mut self) {
        self.view = Arc::new(View { was_away: true, ..View::clone(&self.view) });
    }

    /// Decides about a handshake for a key.
    pub fn enter(&mut self, key: &str, arrival: Arrival, proof: Option<&Released>) -> Admission {
        let limits = self.view.settings().limits;
        let id = self.key_id(key);
        if limits.per_key > 0 && self.keys[id].state.connections() >= limits.per_key {
            return Admission::KeyFull;
        }
        let Some(standing) = self.view.standing(key) else { return Admission::Unplaced };
        if self.view.gone.contains(&self.view.me.uid) {
            // Nobody asks here any more.
            self.forget_if_empty(id);
            return standing.owner.filter(|_| !standing.mine).map_or(Admission::Nobody, Admission::Redirect);
        }
        let free = Released(standing.version);
        let proof = match self.view.settings().unit {
            Unit::Key => proof,
            // The devices of a key need not be together: each goes to the owner, and asks nobody.
            Unit::Connection if standing.mine || arrival == Arrival::Fallback => Some(&free),
            Unit::Connection => {
                self.forget_if_empty(id);
                return standing.owner.map_or(Admission::Nobody, Admission::Redirect);
            }
        };
        let entry = self.keys[id].state.enter(&standing, arrival, proof);
        if entry == Entry::Admit {
            return Admission::Seated(Seat(id));
        }
        self.forget_if_empty(id);
        match entry {
            Entry::Claim(previous) => Admission::Claim(previous),
            Entry::Redirect(owner) => Admission::Redirect(owner),
            Entry::Nobody | Entry::Admit => Admission::Nobody,
        }
    }

    /// Takes a seat where there is no placement: the key is remembered for the one that will come.
    pub fn seat_unplaced(&mut self, key: &str) -> Seat {
        let id = self.key_id(key);
        let standing = ring::claim::Standing {
            version: ring::Version::default(),
            owner: Some(self.view.me.clone()),
            mine: true,
            previous: Vec::new(),
        };
        self.keys[id].state.enter(&standing, Arrival::Owner, None);
        Seat(id)
    }

    /// Answers a peer that claims a key. `listens`: what is published for keys is heard here, in the pool's Redis.
    pub fn claim(&mut self, claim: &Claim, listens: bool, now: Instant) -> Option<ClaimReply> {
        // If it was gone, its process was started again: it may have this key from now on.
        self.set_gone(&claim.claimant.uid, false);
        let standing = self.view.standing(&claim.key)?;
        let id = self.key_id(&claim.key);
        let listens = listens && self.has_audience(id);
        let state = &self.keys[id].state;
        if listens && self.cut_overs.takes(id) && state.connections() == 0 && !state.is_pinned() {
            // One after the other: what its owner before passes on is not all here.
            return Some(ClaimReply { answer: ClaimAnswer::Leaving, marker: None });
        }
        let mut answer = self.keys[id].state.claim(&standing, claim.version, &claim.claimant);
        let mut marker = None;
        if let ClaimAnswer::Released { away, receivers } = &mut answer {
            // Those that were on their way here go on to the claimant, and so does what is published for them.
            let (expected, all_receivers) = self.keys[id].send_on();
            *away += expected;
            *receivers = Some(all_receivers);
            if listens && claim.hears {
                marker = self.cut_overs.give(id, &claim.claimant, now);
            }
        }
        self.loose.insert(id);
        self.forget_if_empty(id);
        Some(ClaimReply { answer, marker })
    }

    /// Remembers how many connections of a key are on their way here, and how many that may get messages.
    pub fn expect(&mut self, key: &str, away: u32, receivers: u32) {
        if away > 0 || receivers > 0 {
            let id = self.key_id(key);
            let entry = &mut self.keys[id];
            entry.expected += away;
            entry.expected_receivers += receivers;
            self.loose.insert(id);
            self.changes.one(&entry.key);
        }
    }

    /// The app has accepted the handshake of a seat. `trusted`: its key proves who the client is. Returns how many held
    /// messages the connection gets, too.
    pub fn register(&mut self, seat: &Seat, link: Arc<Link>, trusted: bool) -> (ConnectionId, u64) {
        let id = self.connections.insert(Connection { link, kind: Kind::Keyed(seat.0), leaving: None, trusted });
        self.trusted += u64::from(trusted);
        let unclaimed = self.arrives_unclaimed(seat);
        let entry = &mut self.keys[seat.0];
        entry.connections.push(id);
        if entry.expected > 0 || unclaimed {
            entry.expected = entry.expected.saturating_sub(1);
            self.totals.returned += 1;
        }
        self.held += 1;
        self.note_moved(seat.0);
        self.note_receiver(seat.0, id);
        self.changes.one(&self.keys[seat.0].key);
        (id, self.hand_over(seat.0, id))
    }

    /// Whether a connection counts as returned although nobody was asked how many to expect: any connection of a key
    /// that moves, where connections move one by one.
    fn arrives_unclaimed(&self, seat: &Seat) -> bool {
        self.view.settings().unit == Unit::Connection
            && self.view.standing(&self.keys[seat.0].key).is_some_and(|it| it.mine && !it.previous.is_empty())
    }

    /// The seat's handshake came to nothing.
    pub fn vacate(&mut self, seat: &Seat) {
        self.keys[seat.0].state.close(End::Other);
        self.forget_if_empty(seat.0);
    }

    /// A connection without a key, whose app is here. `trusted`: it proves who the client is all the same.
    pub fn register_keyless(&mut self, link: Arc<Link>, trusted: bool) -> ConnectionId {
        self.held += 1;
        self.trusted += u64::from(trusted);
        self.connections.insert(Connection { link, kind: Kind::Keyless, leaving: None, trusted })
    }

    /// A session goes on as another connection, which is told to leave if the session was. What waits for it goes along;
    /// returns how many messages it gets that were held because the session could not take them.
    pub fn adopt(&mut self, id: ConnectionId, link: Arc<Link>, trusted: bool) -> u64 {
        let received = self.may_receive(&self.connections[id]);
        let connection = &mut self.connections[id];
        for (message, until) in connection.link.reclaim_mail() {
            link.post(Mail::promised(message, until));
        }
        if connection.leaving.is_some() {
            link.evict();
        }
        connection.link = link;
        self.trusted += u64::from(trusted && !connection.trusted);
        connection.trusted |= trusted;
        match connection.kind {
            Kind::Keyed(key) => {
                if !received {
                    self.note_receiver(key, id);
                }
                self.hand_over(key, id)
            }
            Kind::Keyless | Kind::Transit => 0,
        }
    }

    /// A connection that is tunnelled to a peer.
    pub fn register_transit(&mut self, link: Arc<Link>) -> ConnectionId {
        self.transit += 1;
        self.connections.insert(Connection { link, kind: Kind::Transit, leaving: None, trusted: false })
    }

    /// Begins the eviction of one moved key, the first in the order of hashes whose new slot is allowed; says how many
    /// connections it began with.
    ///
    /// A key for which messages are held goes in a hurry only: who of its devices comes is not known, and those that have
    /// come would get them once more at the next server, instead of those that have not. They have as much time for it as
    /// the messages, since the last placement.
    pub fn evict_next(&mut self, allows: impl Fn(Option<SlotId>) -> bool, hurry: bool) -> u64 {
        let hurry = hurry || self.placed.is_none_or(|placed| placed.elapsed() > HOLD);
        let is_whole = |id: KeyId| hurry || !self.held_messages.has(id);
        let may_go = |id: KeyId| allows(self.owners[id]) && self.staying(id) > 0 && is_whole(id) && !self.is_pinned(id);
        let next = self.moved.iter().find(|(_, id)| may_go(*id));
        let Some(&(_, key)) = next else { return 0 };
        let connections = self.keys[key].connections.clone();
        let cause = self.cause_of_moves();
        let one = self.view.settings().unit == Unit::Connection;
        let mut begun = 0;
        for id in connections {
            if self.connections[id].leaving.is_none() && !(one && begun > 0) {
                self.leave(id, cause, true);
                begun += 1;
            }
        }
        begun
    }

    /// Where load decides: begins the eviction of so many connections, those first that have said nothing for longest.
    /// Says how many there were.
    pub fn evict_idlest(&mut self, count: u64) -> u64 {
        if self.pins.pod() {
            return 0;
        }
        let staying = self.connections.iter().filter(|(_, c)| c.leaving.is_none() && c.kind != Kind::Transit);
        let mut silent: Vec<_> = staying.map(|(id, c)| (Reverse(c.link.silent_ticks()), id)).collect();
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(silent.len());
        if count > 0 {
            silent.select_nth_unstable(count - 1);
        }
        let cause = self.cause_of_moves();
        for (_, id) in silent.into_iter().take(count) {
            self.leave(id, cause, true);
        }
        count as u64
    }

    fn cause_of_moves(&self) -> BreakCause {
        if self.view.is_emptied() { BreakCause::Drain } else { BreakCause::Move }
    }

    /// Begins the eviction of one connection that has no key here: without one, or in transit.
    pub fn evict_unkeyed(&mut self) -> u64 {
        let unkeyed =
            |c: &Connection| c.leaving.is_none() && !matches!(c.kind, Kind::Keyed(_)) && !self.is_pinned_here(c.kind);
        let Some((id, kind)) = self.connections.iter().find(|(_, c)| unkeyed(c)).map(|(id, c)| (id, c.kind)) else {
            return 0;
        };
        self.leave(id, if kind == Kind::Transit { BreakCause::EntryLost } else { BreakCause::Drain }, false);
        1
    }

    fn leave(&mut self, id: ConnectionId, cause: BreakCause, granted: bool) {
        let connection = &mut self.connections[id];
        connection.leaving = Some(Leaving { cause, granted, told: false });
        connection.link.evict();
        if let Kind::Keyed(key) = connection.kind {
            self.keys[key].state.leave();
        }
        self.undecided += u64::from(granted);
        self.leaving += 1;
    }

    /// Closes a connection for a limit, at once.
    pub fn cut(&mut self, id: ConnectionId) {
        *self.totals.breaks.entry(BreakCause::Limit).or_default() += 1;
        self.connections[id].link.reset();
    }

    /// At the moment the notice would be sent: whether the connection must still go. From here on it is told.
    pub fn confirm(&mut self, id: ConnectionId) -> Option<Notice> {
        let connection = &self.connections[id];
        let leaving = connection.leaving.filter(|leaving| !leaving.told)?;
        self.undecided -= u64::from(leaving.granted);
        let kind = connection.kind;
        let is_back = |key| !self.view.by_load() && !self.moved.contains(&(self.hashes[key], key));
        if self.is_pinned_here(kind) || matches!(kind, Kind::Keyed(key) if is_back(key)) {
            if let Kind::Keyed(key) = kind {
                self.keys[key].state.stay();
            }
            self.connections[id].leaving = None;
            self.leaving -= 1;
            return None;
        }
        if let Kind::Keyed(key) = kind {
            connection.link.shut_mailbox(Fate::Moved);
            self.reclaim(key, id);
        }
        self.totals.evicted += u64::from(leaving.granted);
        self.connections[id].leaving = Some(Leaving { told: true, ..leaving });
        *self.totals.breaks.entry(leaving.cause).or_default() += 1;
        Some(self.view.settings().notice.clone())
    }

    /// The app's side of a connection has closed, or the connection is gone.
    pub fn remove(&mut self, id: ConnectionId) {
        if let Kind::Keyed(key) = self.connections[id].kind {
            self.reclaim(key, id);
        }
        let receives = self.may_receive(&self.connections[id]);
        let connection = self.connections.remove(id);
        self.trusted -= u64::from(connection.trusted);
        self.leaving -= u64::from(connection.leaving.is_some());
        self.undecided -= u64::from(connection.leaving.is_some_and(|leaving| leaving.granted && !leaving.told));
        match connection.kind {
            Kind::Transit => self.transit -= 1,
            Kind::Keyless => self.held -= 1,
            Kind::Keyed(key) => {
                self.held -= 1;
                let entry = &mut self.keys[key];
                entry.connections.retain(|other| *other != id);
                match connection.leaving {
                    Some(Leaving { told: true, .. }) => {
                        entry.state.close(End::Evicted);
                        entry.away_receivers += u32::from(receives);
                        self.loose.insert(key);
                    }
                    Some(Leaving { told: false, .. }) => {
                        entry.state.stay();
                        entry.state.close(End::Other);
                    }
                    None => entry.state.close(End::Other),
                }
                self.forget_if_empty(key);
            }
        }
    }

    /// What moved and is still here.
    pub fn moved(&self) -> Moved {
        let mut moved = Moved::default();
        if self.view.by_load() && self.view.is_emptied() {
            let staying = self.staying_here();
            *(if self.pins.pod() { &mut moved.pinned } else { &mut moved.connections }) = staying;
            return moved;
        }
        for (_, id) in &self.moved {
            let (entry, staying) = (&self.keys[*id], self.staying(*id));
            moved.keys += u64::from(!entry.connections.is_empty() || entry.state.is_pinned());
            if self.is_pinned(*id) {
                moved.pinned += staying;
                continue;
            }
            moved.connections += staying;
            if let Some(slot) = self.owners[*id] {
                *moved.to.entry(slot).or_default() += staying;
            }
        }
        moved
    }

    /// Evictions that a grant has paid for: told, or about to be.
    pub fn spent(&self) -> u64 {
        self.totals.evicted + self.undecided
    }

    /// Connections whose app is here, without those already leaving.
    pub fn staying_here(&self) -> u64 {
        let here = self.connections.iter().filter(|(_, c)| c.leaving.is_none() && c.kind != Kind::Transit);
        here.count() as u64
    }

    /// Totals since the process began.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Connections whose app is here.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Of these, the ones whose key proves who the client is.
    pub fn trusted(&self) -> u64 {
        self.trusted
    }

    /// Connections tunnelled to a peer.
    pub fn transit(&self) -> u64 {
        self.transit
    }

    /// Connections of every kind.
    pub fn all(&self) -> u64 {
        self.held + self.transit
    }

    /// Whether a key has connections here, or one that is being set up: then nobody else has it.
    pub fn holds(&self, key: &str) -> bool {
        self.ids.get(key).is_some_and(|id| self.keys[*id].state.connections() > 0)
    }

    /// Whether there are as many as `limits.connections` allows.
    pub fn is_full(&self) -> bool {
        let limit = u64::from(self.view.settings().limits.connections);
        limit > 0 && self.all() >= limit
    }

    /// Connections being evicted.
    pub fn leaving(&self) -> u64 {
        self.leaving
    }

    /// Every connection.
    pub fn links(&self) -> impl Iterator<Item = (ConnectionId, &Arc<Link>)> {
        self.connections.iter().map(|(id, connection)| (id, &connection.link))
    }

    /// Connections of a key, without those already leaving.
    fn staying(&self, id: KeyId) -> u64 {
        self.keys[id].connections.iter().filter(|c| self.connections[**c].leaving.is_none()).count() as u64
    }

    fn key_id(&mut self, key: &str) -> KeyId {
        if let Some(id) = self.ids.get(key) {
            return *id;
        }
        let key: Arc<str> = key.into();
        let state = KeyState::default();
        let id = self.keys.insert(KeyEntry {
            key: Arc::clone(&key),
            state,
            connections: SmallVec::new(),
            expected: 0,
            expected_receivers: 0,
            away_receivers: 0,
            busy: 0,
        });
        self.ids.insert(Arc::clone(&key), id);
        if self.hashes.len() <= id {
            self.hashes.resize(id + 1, KeyHash(0));
            self.owners.resize(id + 1, None);
        }
        if let Some(placement) = &self.view.placement {
            self.hashes[id] = placement.hash(&key);
            self.owners[id] = placement.ring().owner(self.hashes[id]);
        }
        id
    }

    fn forget_if_empty(&mut self, id: KeyId) {
        let (version, moving) = (self.view.version(), self.view.moving());
        let entry = &mut self.keys[id];
        self.changes.one(&entry.key);
        let settled = entry.state.settle(version, moving);
        if entry.state.away() == 0 {
            entry.away_receivers = 0;
        }
        let awaited = (moving && entry.is_expecting()) || entry.busy > 0;
        if settled || awaited || self.held_messages.has(id) || self.cut_overs.has(id) {
            return;
        }
        self.ids.remove(&entry.key);
        self.keys.remove(id);
        self.moved.remove(&(self.hashes[id], id));
        self.loose.remove(&id);
        self.pins.forget(id);
    }

    /// A connection of a key has come. If it may get messages, one less that may is expected.
    fn note_receiver(&mut self, key: KeyId, id: ConnectionId) {
        let receives = self.may_receive(&self.connections[id]);
        let entry = &mut self.keys[key];
        entry.expected_receivers = entry.expected_receivers.saturating_sub(receives.into());
    }

    fn note_moved(&mut self, id: KeyId) {
        if self.view.is_moved(self.owners[id]) {
            self.moved.insert((self.hashes[id], id));
        }
    }

    fn find_moved(&mut self) {
        self.moved.clear();
        for (id, _) in &self.keys {
            if self.view.is_moved(self.owners[id]) {
                self.moved.insert((self.hashes[id], id));
            }
        }
    }
}

#[cfg(test)]
mod tests;

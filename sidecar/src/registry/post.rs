//! Messages for the connections of a key: written to those that are here, held for those on their way here.
//!
//! Everything happens under the registry's lock, with the arrivals and departures of connections: so a message and a
//! move have one order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::settings::Unit;
use ring::wire::Peer;
use tokio::sync::oneshot;

use super::held::HeldMessage;
use super::{Connection, ConnectionId, KeyId, Kind, Leaving, Registry};
use crate::message::Message;
use crate::messages::HOLD;
use crate::relay::{Fate, Mail};

/// As whom a sidecar is asked to take a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// As the key's owner: it holds the message for connections that are on their way to it.
    Owner {
        /// How many of these its previous owners have told to go.
        away: u32,
        /// For how long the message is worth holding.
        left: Duration,
    },
    /// As the key's owner, by one that has held the message so far: there it is counted as held.
    Successor {
        /// How many connections it was held for.
        away: u32,
        /// For how long the message is worth holding.
        left: Duration,
    },
    /// In place of an owner that cannot be reached.
    Fallback {
        /// For how long the message is worth holding.
        left: Duration,
    },
    /// As one that may have the key still.
    Previous,
    /// As one that has heard what was published for the key.
    Hearer,
    /// As the key's owner, by a previous one that hears what is published for it. Once this sidecar has claimed the key,
    /// and what was published before is here, it hears that itself.
    Heir {
        /// How many connections the previous owner has told to go.
        away: u32,
        /// For how long the message is worth holding.
        left: Duration,
    },
}

/// What has become of a message here so far.
#[derive(Debug, Default)]
pub struct Posted {
    /// For each connection that is to get it: what becomes of that.
    pub receipts: Vec<oneshot::Receiver<Fate>>,
    /// How many connections it is held for.
    pub held: u32,
    /// How many connections would have to come for it, without room to hold it.
    pub unkept: u32,
    /// Connections that were told to go and have not been seen since; with `unit: Key` also those about to be told.
    pub away: u32,
    /// What is known of the key is about to change: ask again.
    pub busy: bool,
    /// Who owns the key, when it is not this sidecar that was asked as the owner.
    pub owner: Option<Peer>,
    /// Who may have the key still.
    pub previous: Vec<Peer>,
}

/// Held messages whose key belongs elsewhere. Its key is busy until they are [settled](Registry::settle_held).
#[derive(Debug)]
pub struct Misplaced {
    /// The key.
    pub key: Arc<str>,
    /// Whose it is.
    pub owner: Peer,
    /// The messages, in order.
    pub messages: Vec<HeldMessage>,
}

/// A connection of a key, for whoever asks where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// How long it has been there.
    pub age: Duration,
    /// Whether its key proves who the client is.
    pub trusted: bool,
}

impl Registry {
    /// Gives a message to the connections of a key.
    pub fn post(&mut self, key: &str, message: &Message, role: Role, now: Instant) -> Posted {
        let standing = self.view.standing(key);
        let mine = standing.as_ref().is_none_or(|standing| standing.mine);
        let id = self.ids.get(key).copied();
        let gone_to = id.and_then(|id| self.cut_overs.giving_to(id));
        if let Some(to) = gone_to.filter(|_| matches!(role, Role::Hearer | Role::Heir { .. })) {
            return Posted { owner: Some(to.clone()), ..Posted::default() };
        }
        let away = match role {
            Role::Hearer if mine => Some((0, HOLD)),
            Role::Owner { away, left } | Role::Successor { away, left } | Role::Heir { away, left } if mine => {
                Some((away, left))
            }
            Role::Fallback { left } => Some((0, left)),
            Role::Owner { .. } | Role::Successor { .. } | Role::Heir { .. } | Role::Hearer | Role::Previous => None,
        };
        let Some((away, left)) = away else {
            let mut posted = self.post_moved(id, message);
            if role != Role::Previous {
                posted.owner = standing.and_then(|standing| standing.owner);
            }
            return posted;
        };
        let here = id.map(|id| self.here(id)).unwrap_or_default();
        let entry = id.map(|id| &self.keys[id]);
        let expected = entry.map_or(0, |entry| entry.expected_receivers);
        // Whoever else came under this key says nothing of its client.
        let claimed = entry.is_some_and(|entry| entry.is_expecting() || self.receivers(&entry.connections) > 0);
        if claimed && matches!(role, Role::Heir { .. }) && !id.is_some_and(|id| self.cut_overs.takes(id)) {
            return Posted::default();
        }
        if !claimed && away == 0 && entry.is_some_and(|entry| entry.busy > 0) {
            return Posted { busy: true, ..Posted::default() };
        }
        let mut posted = Posted { receipts: self.write(&here.staying, message), ..Posted::default() };
        let coming = if claimed { expected + here.told } else { away.max(here.away + here.told) };
        if coming > 0 {
            let id = self.key_id(key);
            let held = HeldMessage { message: message.clone(), awaited: coming, until: now + left };
            match self.held_messages.keep(id, held) {
                true => posted.held = coming,
                false => posted.unkept = coming,
            }
            self.forget_if_empty(id);
        } else if !claimed {
            posted.previous = standing.map(|standing| standing.previous).unwrap_or_default();
        }
        posted
    }

    /// The same where the key belongs elsewhere, and its connections may be here still.
    fn post_moved(&mut self, id: Option<KeyId>, message: &Message) -> Posted {
        let Some(id) = id else { return Posted::default() };
        let here = self.here(id);
        // What is held here is passed on first.
        if here.staying.is_empty() && (self.keys[id].busy > 0 || self.held_messages.has(id)) {
            return Posted { busy: true, ..Posted::default() };
        }
        let away = here.away + here.told;
        if away > 0 && self.view.settings().unit == Unit::Key {
            // The others of the key are told in a moment, too: all of them get it where they arrive.
            return Posted { away: away + self.receivers(&here.staying), ..Posted::default() };
        }
        Posted { receipts: self.write(&here.staying, message), away, ..Posted::default() }
    }

    /// Gives a message to every connection whose app is here.
    pub fn post_to_all(&mut self, message: &Message) -> Vec<oneshot::Receiver<Fate>> {
        let held = |connection: &Connection| connection.kind != Kind::Transit && !connection.is_told();
        let all: Vec<_> = self.connections.iter().filter(|(_, c)| held(c)).map(|(id, _)| id).collect();
        self.write(&all, message)
    }

    fn write(&self, connections: &[ConnectionId], message: &Message) -> Vec<oneshot::Receiver<Fate>> {
        let connections = connections.iter().map(|id| &self.connections[*id]).filter(|c| self.may_receive(c));
        let post = |connection: &Connection| {
            let (mail, receipt) = Mail::awaited(message.clone());
            connection.link.post(mail);
            receipt
        };
        connections.map(post).collect()
    }

    pub(super) fn may_receive(&self, connection: &Connection) -> bool {
        connection.trusted || self.view.settings().messages.allow_unverified
    }

    fn here(&self, id: KeyId) -> Here {
        let entry = &self.keys[id];
        let (told, staying): (Vec<_>, _) =
            entry.connections.iter().copied().partition(|id| self.connections[*id].is_told());
        Here { away: entry.away_receivers + entry.expected_receivers, told: self.receivers(&told), staying }
    }

    /// How many of these connections may get messages.
    fn receivers(&self, connections: &[ConnectionId]) -> u32 {
        let receivers = connections.iter().filter(|id| self.may_receive(&self.connections[**id]));
        u32::try_from(receivers.count()).unwrap_or(u32::MAX)
    }

    /// Gives a connection that has just arrived what is held for it; returns how many messages it has taken. They wait for
    /// one that takes messages: a session that polls takes none until it has a WebSocket.
    pub(super) fn hand_over(&mut self, key: KeyId, id: ConnectionId) -> u64 {
        let connection = &self.connections[id];
        if !self.may_receive(connection) || connection.link.takes_no_mail() {
            return 0;
        }
        let mut taken = 0;
        for held in self.held_messages.arrive(key) {
            let refused = self.connections[id].link.post(Mail::promised(held.message, held.until));
            taken += u64::from(refused.is_none());
            self.keep_again(key, refused);
        }
        taken
    }

    /// Holds what was promised to a connection that has gone before it was written.
    pub(super) fn reclaim(&mut self, key: KeyId, id: ConnectionId) {
        let promised = self.connections[id].link.reclaim_mail();
        self.keep_again(key, promised);
    }

    fn keep_again(&mut self, key: KeyId, promised: impl IntoIterator<Item = (Message, Instant)>) {
        for (message, until) in promised {
            let kept = self.held_messages.keep(key, HeldMessage { message, awaited: 1, until });
            self.unkept += u64::from(!kept);
        }
    }

    /// What is known of a key is about to change.
    pub fn begin_change(&mut self, key: &str) {
        let id = self.key_id(key);
        self.keys[id].busy += 1;
    }

    /// It has changed.
    pub fn end_change(&mut self, key: &str) {
        let id = self.key_id(key);
        self.keys[id].busy -= 1;
        self.forget_if_empty(id);
    }

    /// For how many connections messages came back that could not be held again, since this was last asked.
    pub fn take_unkept(&mut self) -> u64 {
        std::mem::take(&mut self.unkept)
    }

    /// Forgets held messages whose time is over; returns for how many connections that was.
    pub fn expire_held(&mut self, now: Instant) -> u64 {
        let keys: Vec<KeyId> = self.held_messages.keys().collect();
        let expired = self.held_messages.expire(now);
        for id in keys {
            self.forget_if_empty(id);
        }
        expired
    }

    /// Takes out the held messages of keys that belong elsewhere now.
    pub fn misplaced(&mut self) -> Vec<Misplaced> {
        let keys: Vec<KeyId> = self.held_messages.keys().collect();
        let mut misplaced = Vec::new();
        for id in keys {
            let key = Arc::clone(&self.keys[id].key);
            let standing = self.view.standing(&key).filter(|standing| !standing.mine);
            let Some(owner) = standing.and_then(|standing| standing.owner) else { continue };
            // Connections that are still here, or come back to a pinned key, get it here, and those that left here arrive
            // there.
            let state = &self.keys[id].state;
            if self.keys[id].busy > 0 || state.staying() > 0 || state.is_pinned() {
                continue;
            }
            self.begin_change(&key);
            let messages = self.held_messages.take(id);
            self.passing += messages.len();
            misplaced.push(Misplaced { key, owner, messages });
        }
        misplaced
    }

    /// Ends what [`Registry::misplaced`] has begun with so many messages; holds those that could not be passed on.
    pub fn settle_held(&mut self, key: &str, taken: usize, left: Vec<HeldMessage>) {
        let id = self.key_id(key);
        self.passing -= taken;
        for held in left {
            let awaited = u64::from(held.awaited);
            self.unkept += if self.held_messages.keep(id, held) { 0 } else { awaited };
        }
        self.end_change(key);
    }

    /// How many messages are held, and how many bytes that are.
    pub fn held_messages(&self) -> (usize, usize) {
        (self.held_messages.count(), self.held_messages.bytes())
    }

    /// How many messages nobody else has yet: held, or being passed on.
    pub fn promised_messages(&self) -> usize {
        self.held_messages.count() + self.passing
    }

    /// The connections of a key that are here.
    pub fn presences(&self, key: &str) -> Vec<Presence> {
        let connections = self.ids.get(key).map(|id| self.keys[*id].connections.as_slice()).unwrap_or_default();
        let connections =
            connections.iter().map(|id| &self.connections[*id]).filter(|connection| !connection.is_told());
        connections.map(|c| Presence { age: c.link.age(), trusted: c.trusted }).collect()
    }
}

/// The connections of a key, as far as this sidecar knows of them.
#[derive(Debug, Default)]
struct Here {
    /// Told to go, and gone: from here, or from a previous owner on their way here. Only those that may get messages.
    away: u32,
    /// Told to go, and may get messages.
    told: u32,
    staying: Vec<ConnectionId>,
}

impl Connection {
    pub(super) fn is_told(&self) -> bool {
        matches!(self.leaving, Some(Leaving { told: true, .. }))
    }
}

#[cfg(test)]
mod tests {
    use ring::claim::{Arrival, ClaimAnswer, Released};
    use ring::notice::MessageKind;
    use ring::settings::{Messages, Settings};
    use ring::wire::Claim;
    use ring::{Placement, Version};

    use super::super::Admission;
    use super::super::tests::placement;
    use super::*;
    use crate::relay::Link;
    use crate::view::View;

    const LEFT: Duration = Duration::from_secs(20);

    fn message(text: &str) -> Message {
        Message::new(MessageKind::Text, text.as_bytes()).unwrap()
    }

    /// The sidecar `a`, which owns every key since it came back to it from `b`, in a pool that trusts everybody.
    fn owning() -> Registry {
        owning_in(Messages { allow_unverified: true })
    }

    fn owning_in(messages: Messages) -> Registry {
        let settings = Settings { messages, ..Settings::default() };
        let it = placement(2, &["a"], &[(1, &["b"])]);
        let mut registry =
            Registry::new(View::new(Peer { uid: "a".into(), address: "a:1".into() }, Settings::default()));
        registry.place(&Placement { settings, ..it.placement().clone() }.compile().map(Arc::new).unwrap());
        registry
    }

    fn enter(registry: &mut Registry, link: Arc<Link>) -> ConnectionId {
        enter_as(registry, link, false)
    }

    fn enter_as(registry: &mut Registry, link: Arc<Link>, trusted: bool) -> ConnectionId {
        let released = Released(Version { term: 1, epoch: 2 });
        let Admission::Seated(seat) = registry.enter("ann", Arrival::Owner, Some(&released)) else {
            panic!("it is ours")
        };
        registry.register(&seat, link, trusted).0
    }

    #[test]
    fn what_comes_back_and_finds_no_room_has_not_expired() {
        let mut registry = owning();
        let (now, large) = (Instant::now(), message(&"x".repeat(200_000)));
        registry.post("ann", &large, Role::Owner { away: 1, left: LEFT }, now);
        let id = enter(&mut registry, Arc::new(Link::new()));
        registry.expect("ann", 1, 1);
        assert_eq!(registry.post("ann", &large, Role::Owner { away: 0, left: LEFT }, now).held, 1);
        registry.remove(id);
        assert_eq!((registry.expire_held(now), registry.take_unkept(), registry.take_unkept()), (0, 1, 0));
    }

    #[test]
    fn what_an_arriving_connection_has_no_room_for_has_not_returned() {
        let mut registry = owning();
        let (now, large) = (Instant::now(), message(&"x".repeat(200_000)));
        registry.post("ann", &large, Role::Owner { away: 1, left: LEFT }, now);
        let polling = Arc::new(Link::new());
        polling.shut_mailbox(Fate::Unable);
        let id = enter(&mut registry, polling);
        let busy = Arc::new(Link::new());
        let (other, _receipt) = Mail::awaited(large);
        busy.post(other);
        assert_eq!((registry.adopt(id, busy, false), registry.held_messages().0), (0, 1));
        let next = Arc::new(Link::new());
        assert_eq!((registry.adopt(id, next, false), registry.held_messages().0), (1, 0));
    }

    #[test]
    fn messages_that_are_being_passed_on_are_promised_until_somebody_has_them() {
        let mut registry = owning();
        let now = Instant::now();
        for text in ["one", "two"] {
            registry.post("ann", &message(text), Role::Owner { away: 1, left: LEFT }, now);
        }
        registry.place(&placement(3, &["b"], &[]));
        let Misplaced { key, messages, .. } = registry.misplaced().remove(0);
        assert_eq!((registry.held_messages().0, registry.promised_messages()), (0, 2));
        registry.settle_held(&key, 2, messages[1..].to_vec());
        assert_eq!((registry.held_messages().0, registry.promised_messages()), (1, 1));
        let Misplaced { key, .. } = registry.misplaced().remove(0);
        registry.settle_held(&key, 1, Vec::new());
        assert_eq!((registry.promised_messages(), registry.ids.len()), (0, 0));
    }

    #[test]
    fn what_comes_for_a_client_on_its_way_is_held_whoever_comes_under_its_key() {
        let mut registry = owning_in(Messages::default());
        let (now, role) = (Instant::now(), Role::Owner { away: 0, left: LEFT });
        registry.expect("ann", 1, 1);
        let stranger = enter_as(&mut registry, Arc::new(Link::new()), false);
        assert_eq!(registry.totals().returned, 1, "it counts for the brake");
        assert_eq!(registry.post("ann", &message("one"), role, now).held, 1);
        registry.remove(stranger);
        assert_eq!(registry.post("ann", &message("two"), role, now).held, 1);
        let ann = Arc::new(Link::new());
        enter_as(&mut registry, Arc::clone(&ann), true);
        assert_eq!((registry.totals().returned, registry.held_messages().0), (1, 0));
        let mail = ann.reclaim_mail().into_iter().map(|(message, _)| message);
        assert_eq!(mail.collect::<Vec<_>>(), [message("one"), message("two")]);
        let posted = registry.post("ann", &message("three"), role, now);
        assert_eq!((posted.held, posted.receipts.len()), (0, 1));
    }

    #[test]
    fn a_key_is_not_moved_on_before_its_devices_have_what_is_held_for_them_unless_in_a_hurry() {
        for hurry in [false, true] {
            let mut registry = owning();
            registry.expect("ann", 2, 2);
            enter(&mut registry, Arc::new(Link::new()));
            let owner = Role::Owner { away: 0, left: LEFT };
            assert_eq!(registry.post("ann", &message("one"), owner, Instant::now()).held, 1);
            let settings = registry.view().settings().clone();
            let next = Placement { settings, ..placement(3, &["b"], &[(2, &["a"])]).placement().clone() };
            registry.place(&next.compile().map(Arc::new).unwrap());
            assert_eq!(registry.evict_next(|_| true, hurry), u64::from(hurry));
            if !hurry {
                enter(&mut registry, Arc::new(Link::new()));
                assert_eq!(registry.evict_next(|_| true, hurry), 2);
            }
        }
    }

    #[test]
    fn a_strangers_connection_does_not_answer_for_the_keys_others() {
        let mut registry = owning_in(Messages::default());
        enter_as(&mut registry, Arc::new(Link::new()), false);
        let posted = registry.post("ann", &message("one"), Role::Owner { away: 1, left: LEFT }, Instant::now());
        assert_eq!(posted.held, 1);
    }

    #[test]
    fn nothing_is_held_for_connections_that_may_not_get_it() {
        let mut registry = owning_in(Messages::default());
        let (now, owner) = (Instant::now(), Role::Owner { away: 0, left: LEFT });
        let ids = [true, false].map(|trusted| enter_as(&mut registry, Arc::new(Link::new()), trusted));
        registry.place(&placement(3, &["b"], &[(2, &["a"])]));
        assert_eq!(registry.evict_next(|_| true, false), 2);
        let hears = |registry: &mut Registry| registry.post("ann", &message("one"), Role::Previous, now).away;
        for id in ids {
            registry.confirm(id).expect("it is told");
            assert_eq!(hears(&mut registry), 1);
        }
        for id in ids {
            registry.remove(id);
            assert_eq!(hears(&mut registry), 1);
        }
        let version = Version { term: 1, epoch: 3 };
        let claimant = Peer { uid: "b".into(), address: "b:1".into() };
        let claim = Claim { key: "ann".into(), version, pool_uid: "pool".into(), claimant, wait_ms: 0, hears: false };
        let released = ClaimAnswer::Released { away: 2, receivers: Some(1) };
        assert_eq!(registry.claim(&claim, false, now).map(|reply| reply.answer), Some(released));
        assert_eq!(hears(&mut registry), 0);
        // Of a key whose last connection that may get messages has come, nothing is held for the other.
        let mut registry = owning_in(Messages::default());
        registry.expect("ann", 2, 1);
        enter_as(&mut registry, Arc::new(Link::new()), true);
        assert_eq!(registry.post("ann", &message("one"), owner, now).held, 0);
    }

    #[test]
    fn a_session_is_expected_until_it_may_get_messages() {
        let mut registry = owning_in(Messages::default());
        let (now, role) = (Instant::now(), Role::Owner { away: 0, left: LEFT });
        registry.expect("ann", 1, 1);
        let id = enter_as(&mut registry, Arc::new(Link::new()), false);
        assert_eq!(registry.post("ann", &message("one"), role, now).held, 1);
        assert_eq!(registry.adopt(id, Arc::new(Link::new()), true), 1);
        assert_eq!(registry.post("ann", &message("two"), role, now).held, 0);
    }

    #[test]
    fn what_is_held_for_a_session_that_polls_waits_for_its_websocket() {
        let mut registry = owning();
        let now = Instant::now();
        for text in ["one", "two"] {
            let posted = registry.post("ann", &message(text), Role::Owner { away: 1, left: LEFT }, now);
            assert_eq!(posted.held, 1);
        }
        let polling = Arc::new(Link::new());
        polling.shut_mailbox(Fate::Unable);
        let id = enter(&mut registry, polling);
        assert_eq!(registry.held_messages().0, 2);
        let websocket = Arc::new(Link::new());
        assert_eq!(registry.adopt(id, Arc::clone(&websocket), false), 2);
        assert_eq!(registry.held_messages(), (0, 0));
        let mail = websocket.reclaim_mail().into_iter().map(|(message, _)| message);
        assert_eq!(mail.collect::<Vec<_>>(), [message("one"), message("two")]);
    }
}

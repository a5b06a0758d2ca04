//! Who takes what is published for a key in Redis while the key goes from one sidecar to the next.
//!
//! Redis gives everything of a channel to all that listen to it, in one order. So the order can be cut: by a marker, which
//! the next owner publishes as soon as it listens itself.
//!
//! ```text
//!  the last owner hears   m1  m2  marker       and passes m1 and m2 on, then says that this was all
//!  the next one hears         m2  marker  m3   and leaves m2 to the last one; m3 waits until it has said so
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::wire::{Peer, Returning};

use super::{KeyId, Registry};

/// What is published as a marker begins so. It is no text: to sidecars that know no markers it is no message.
pub const MARKER: &[u8] = b"\xffwspool-cut-over:";
/// How long a cut-over may take: as long as Redis may take to answer a subscription, and somewhat more.
const LIMIT: Duration = Duration::from_secs(5);

/// The keys whose hearing goes from one sidecar to another.
#[derive(Debug, Default)]
pub(super) struct CutOvers(HashMap<KeyId, CutOver>);

#[derive(Debug)]
struct CutOver {
    marker: String,
    side: Side,
    until: Instant,
}

#[derive(Debug)]
enum Side {
    /// This sidecar has released the key, and passes on what it hears before the marker.
    Giving(Peer),
    /// This sidecar has claimed the key: what comes before the marker comes from its last owner.
    Taking(Taking),
}

#[derive(Debug, Default)]
struct Taking {
    published: bool,
    /// The marker has come.
    heard: bool,
    /// The last owner has said that this was all.
    complete: bool,
}

/// What to do with something that was published for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is a message for the key's connections.
    Message,
    /// Nothing: somebody else passes it on, or it is a marker of nobody here.
    Nothing,
    /// It is a marker. Whoever takes the key is told once all that came before it has been passed on.
    Last(String),
    /// It is a marker. What comes behind it waits until the key's last owner has passed on all that came before.
    First(String),
}

impl CutOvers {
    /// Whether a key must be remembered, and listened to, for its sake.
    pub(super) fn has(&self, key: KeyId) -> bool {
        self.0.contains_key(&key)
    }

    /// Whether what its last owner passes on for a key is still to be taken.
    pub(super) fn takes(&self, key: KeyId) -> bool {
        self.0.get(&key).is_some_and(|it| matches!(it.side, Side::Taking(_)))
    }

    /// To whom what comes for a key is passed on.
    pub(super) fn giving_to(&self, key: KeyId) -> Option<&Peer> {
        match &self.0.get(&key)?.side {
            Side::Giving(peer) => Some(peer),
            Side::Taking(_) => None,
        }
    }

    /// Begins to pass on, or goes on to the same one, until a marker comes; `None` when somebody else is passed to already.
    pub(super) fn give(&mut self, key: KeyId, to: &Peer, now: Instant) -> Option<String> {
        let begin = || {
            // Nobody can foresee it.
            let marker = format!("{:032x}", rand::random::<u128>());
            CutOver { marker, side: Side::Giving(to.clone()), until: now + LIMIT }
        };
        let it = self.0.entry(key).or_insert_with(begin);
        matches!(&it.side, Side::Giving(other) if other == to).then(|| it.marker.clone())
    }
}

impl Registry {
    /// What is published for a key from now on comes from its last owner, until the marker.
    pub fn take_over(&mut self, key: &str, marker: String, now: Instant) {
        if self.is_cut_over(key, &marker) {
            return;
        }
        let id = self.key_id(key);
        let side = Side::Taking(Taking::default());
        self.cut_overs.0.insert(id, CutOver { marker, side, until: now + LIMIT });
        self.changes.one(&self.keys[id].key);
    }

    /// Markers that are to be published, of keys that are listened to by now; with `again` also those that were: what was
    /// published on a connection that is gone may be lost.
    pub fn due_markers(&mut self, again: bool, listens: impl Fn(&str) -> bool) -> Vec<(Arc<str>, String)> {
        let mut due = Vec::new();
        for (id, it) in &mut self.cut_overs.0 {
            let Side::Taking(taking) = &mut it.side else { continue };
            let key = &self.keys[*id].key;
            if (!taking.published || again) && !taking.heard && listens(key) {
                taking.published = true;
                due.push((Arc::clone(key), it.marker.clone()));
            }
        }
        due
    }

    /// Says what to do with something that was published for a key. It is asked in the order in which that comes.
    pub fn hear(&mut self, key: &str, published: &[u8]) -> Heard {
        let marker = published.strip_prefix(MARKER);
        let Some((id, it)) = self.cut_over(key) else {
            return if marker.is_some() { Heard::Nothing } else { Heard::Message };
        };
        let is_its = marker == Some(it.marker.as_bytes());
        match &mut it.side {
            Side::Giving(_) if is_its => Heard::Last(it.marker.clone()),
            Side::Taking(taking) if is_its && !taking.heard => {
                taking.heard = true;
                let (marker, whole) = (it.marker.clone(), taking.complete);
                if whole {
                    self.end(id);
                }
                Heard::First(marker)
            }
            _ if marker.is_some() => Heard::Nothing,
            Side::Taking(Taking { heard: false, .. }) => Heard::Nothing,
            Side::Giving(_) | Side::Taking(_) => Heard::Message,
        }
    }

    /// To whom what comes for a key is passed on.
    pub fn giving_to(&self, key: &str) -> Option<Peer> {
        self.cut_overs.giving_to(*self.ids.get(key)?).cloned()
    }

    /// All that came before the marker has been passed on: whom to tell.
    pub fn give_last(&mut self, key: &str, marker: &str) -> Option<Peer> {
        let to = self.giving_to(key)?;
        self.end_cut_over(key, marker).then_some(to)
    }

    /// The last owner has passed on all that came before the marker.
    pub fn complete_cut_over(&mut self, key: &str, marker: &str) {
        let Some((id, it)) = self.cut_over(key).filter(|(_, it)| it.marker == marker) else { return };
        if let Side::Taking(taking) = &mut it.side {
            taking.complete = true;
            if taking.heard {
                self.end(id);
            }
        }
    }

    fn cut_over(&mut self, key: &str) -> Option<(KeyId, &mut CutOver)> {
        let id = *self.ids.get(key)?;
        Some((id, self.cut_overs.0.get_mut(&id)?))
    }

    fn end(&mut self, id: KeyId) {
        self.cut_overs.0.remove(&id);
        self.forget_if_empty(id);
    }

    /// Whether the cut-over with this marker is under way.
    pub fn is_cut_over(&self, key: &str, marker: &str) -> bool {
        self.ids.get(key).and_then(|id| self.cut_overs.0.get(id)).is_some_and(|it| it.marker == marker)
    }

    /// Ends the cut-over with this marker; says whether there was one.
    pub fn end_cut_over(&mut self, key: &str, marker: &str) -> bool {
        let under_way = self.cut_over(key).filter(|(_, it)| it.marker == marker).map(|(id, _)| id);
        under_way.inspect(|id| self.end(*id)).is_some()
    }

    /// Ends those that have taken too long: Redis, or the other sidecar, is away.
    pub fn expire_cut_overs(&mut self, now: Instant) {
        let late = self.cut_overs.0.iter().filter(|(_, it)| it.until <= now);
        let late: Vec<KeyId> = late.map(|(id, _)| *id).collect();
        for id in late {
            self.end(id);
        }
    }

    /// Whether anything is passed on.
    pub fn is_giving(&self) -> bool {
        self.cut_overs.0.values().any(|it| matches!(it.side, Side::Giving(_)))
    }

    /// What the owners of keys have to know before this sidecar ends: which connections are on their way to them. `listens`:
    /// what is published for keys is heard here, and is passed on.
    pub fn tell_returns(&mut self, listens: bool, now: Instant) -> HashMap<Peer, Vec<Returning>> {
        let mut all: HashMap<Peer, Vec<Returning>> = HashMap::new();
        for id in self.loose.clone() {
            let key = Arc::clone(&self.keys[id].key);
            let standing = self.view.standing(&key).filter(|standing| !standing.mine);
            let Some(owner) = standing.and_then(|standing| standing.owner) else { continue };
            let heard = listens && self.has_audience(id);
            let entry = &mut self.keys[id];
            let evicted = entry.state.tell_away();
            let (expected, receivers) = entry.send_on();
            let away = evicted + expected;
            if away > 0 || receivers > 0 {
                let marker = heard.then(|| self.cut_overs.give(id, &owner, now)).flatten();
                all.entry(owner).or_default().push(Returning { key: (*key).into(), away, receivers, marker });
            }
            self.forget_if_empty(id);
        }
        all
    }

    /// Learns which connections are on their way here. Those of keys that are not ours are left out.
    pub fn hear_returns(&mut self, keys: Vec<Returning>, now: Instant) {
        for returning in keys {
            if self.view.standing(&returning.key).is_some_and(|standing| standing.mine) {
                self.await_returning(returning, now);
            }
        }
    }

    /// Remembers what the last owner of a key has said of connections on their way here.
    pub fn await_returning(&mut self, Returning { key, away, receivers, marker }: Returning, now: Instant) {
        self.expect(&key, away, receivers);
        if let Some(marker) = marker {
            self.take_over(&key, marker, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use ring::claim::ClaimAnswer;
    use ring::notice::MessageKind;
    use ring::settings::{Messages, Settings};
    use ring::wire::{Claim, ClaimReply};
    use ring::{Placement, Version};

    use super::super::tests::{holding, placement};
    use super::super::{Audience, Role};
    use super::*;
    use crate::message::Message;
    use crate::view::View;

    const KEY: &str = "user-0";
    const RELEASED: ClaimAnswer<Peer> = ClaimAnswer::Released { away: 1, receivers: Some(1) };

    fn peer(uid: &str) -> Peer {
        Peer { uid: uid.into(), address: format!("{uid}:1") }
    }

    fn claim(epoch: u64, claimant: &str) -> Claim {
        let version = Version { term: 1, epoch };
        Claim { key: KEY.into(), version, pool_uid: "pool".into(), claimant: peer(claimant), wait_ms: 0, hears: true }
    }

    fn marker(marker: &str) -> Vec<u8> {
        [MARKER, marker.as_bytes()].concat()
    }

    /// The sidecar `a` after `b` has claimed its key, and the marker until which it passes on.
    fn giving(now: Instant) -> (Registry, String) {
        let (mut registry, held) = holding(1);
        registry.place(&placement(2, &["b"], &[(1, &["a"])]));
        registry.expect(KEY, 1, 1);
        registry.remove(held[0].1);
        let reply = registry.claim(&claim(2, "b"), true, now).unwrap();
        assert_eq!(reply.answer, RELEASED);
        (registry, reply.marker.expect("it passes on"))
    }

    /// The sidecar `a` after it has claimed the key from `b`.
    fn taking(now: Instant) -> Registry {
        let (mut registry, held) = holding(1);
        registry.remove(held[0].1);
        registry.place(&placement(2, &["a"], &[(1, &["b"])]));
        registry.expect(KEY, 1, 1);
        registry.take_over(KEY, "one".into(), now);
        registry
    }

    fn heard_here(registry: &mut Registry) -> bool {
        matches!(registry.whole_audience(), Audience::All(keys) if keys.contains(KEY))
    }

    #[test]
    fn the_last_owner_passes_on_what_comes_before_the_marker() {
        let now = Instant::now();
        let (mut registry, one) = giving(now);
        assert!(heard_here(&mut registry) && registry.is_giving());
        let message = Message::new(MessageKind::Text, b"hello").unwrap();
        assert_eq!(registry.hear(KEY, b"hello"), Heard::Message);
        let posted = registry.post(KEY, &message, Role::Hearer, now);
        assert_eq!((posted.owner, registry.giving_to(KEY)), (Some(peer("b")), Some(peer("b"))));
        assert_eq!(registry.hear(KEY, &marker("another")), Heard::Nothing);
        assert_eq!(registry.hear(KEY, &marker(&one)), Heard::Last(one.clone()));
        assert_eq!(registry.give_last(KEY, &one), Some(peer("b")));
        assert_eq!((registry.give_last(KEY, &one), registry.giving_to(KEY)), (None, None));
        assert!(!heard_here(&mut registry) && !registry.is_giving());
    }

    #[test]
    fn the_next_owner_takes_what_is_passed_on_and_hears_what_comes_behind_the_marker() {
        let now = Instant::now();
        let mut registry = taking(now);
        assert!(registry.due_markers(false, |_| false).is_empty(), "nothing is heard yet");
        assert_eq!(registry.due_markers(false, |_| true), [(KEY.into(), "one".to_owned())]);
        assert!(registry.due_markers(false, |_| true).is_empty());
        assert_eq!(registry.due_markers(true, |_| true).len(), 1, "on another connection");
        assert_eq!(registry.hear(KEY, b"hello"), Heard::Nothing, "it is passed on");
        let message = Message::new(MessageKind::Text, b"hello").unwrap();
        let heir = Role::Heir { away: 0, left: Duration::from_secs(1) };
        assert_eq!(registry.post(KEY, &message, heir, now).held, 1);
        assert_eq!(registry.hear(KEY, &marker("one")), Heard::First("one".into()));
        assert_eq!(registry.hear(KEY, b"hello"), Heard::Message);
        assert!(registry.is_cut_over(KEY, "one"));
        registry.complete_cut_over(KEY, "another");
        assert_eq!(registry.post(KEY, &message, heir, now).held, 1, "it is on its way");
        registry.complete_cut_over(KEY, "one");
        assert!(!registry.is_cut_over(KEY, "one"));
        assert_eq!(registry.post(KEY, &message, heir, now).held, 0, "it is heard here");
    }

    #[test]
    fn the_last_owner_may_have_heard_the_marker_first() {
        let mut registry = taking(Instant::now());
        registry.complete_cut_over(KEY, "one");
        assert_eq!(registry.hear(KEY, b"hello"), Heard::Nothing, "it was passed on");
        assert_eq!(registry.hear(KEY, &marker("one")), Heard::First("one".into()));
        assert!(!registry.is_cut_over(KEY, "one"));
    }

    #[test]
    fn a_key_that_is_being_taken_over_is_not_released_before() {
        let now = Instant::now();
        let mut registry = taking(now);
        registry.place(&placement(3, &["c"], &[(2, &["a"]), (1, &["b"])]));
        let leaving = Some(ClaimReply { answer: ClaimAnswer::Leaving, marker: None });
        assert_eq!(registry.claim(&claim(3, "c"), true, now), leaving);
        registry.hear(KEY, &marker("one"));
        assert_eq!(registry.claim(&claim(3, "c"), true, now), leaving);
        registry.complete_cut_over(KEY, "one");
        let reply = registry.claim(&claim(3, "c"), true, now).unwrap();
        assert!(reply.answer == RELEASED && reply.marker.is_some_and(|marker| marker != "one"));
    }

    #[test]
    fn whoever_claims_again_is_told_of_the_same_marker_and_nobody_else_is_passed_to() {
        let now = Instant::now();
        let (mut registry, one) = giving(now);
        let answer = ClaimAnswer::Released { away: 0, receivers: Some(0) };
        let again = ClaimReply { answer: answer.clone(), marker: Some(one.clone()) };
        assert_eq!(registry.claim(&claim(2, "b"), true, now), Some(again));
        registry.place(&placement(3, &["c"], &[(2, &["b"]), (1, &["a"])]));
        assert_eq!(registry.claim(&claim(3, "c"), true, now), Some(ClaimReply { answer, marker: None }));
        assert_eq!(registry.hear(KEY, &marker(&one)), Heard::Last(one));
    }

    #[test]
    fn a_cut_over_that_is_told_of_again_goes_on() {
        let now = Instant::now();
        let mut registry = taking(now);
        registry.hear(KEY, &marker("one"));
        registry.take_over(KEY, "one".into(), now);
        assert_eq!(registry.hear(KEY, b"hello"), Heard::Message, "it came behind the marker");
        registry.take_over(KEY, "two".into(), now);
        assert_eq!(registry.hear(KEY, b"hello"), Heard::Nothing);
    }

    #[test]
    fn where_nothing_is_heard_nothing_is_passed_on() {
        let now = Instant::now();
        for (listens, hears) in [(false, true), (true, false)] {
            let (mut registry, held) = holding(1);
            registry.place(&placement(2, &["b"], &[(1, &["a"])]));
            registry.expect(KEY, 1, 1);
            registry.remove(held[0].1);
            let reply = registry.claim(&Claim { hears, ..claim(2, "b") }, listens, now);
            assert_eq!(reply, Some(ClaimReply { answer: RELEASED, marker: None }));
        }
    }

    #[test]
    fn a_sidecar_that_ends_tells_who_is_on_its_way_and_passes_on_what_comes() {
        let now = Instant::now();
        let (mut last, held) = holding(2);
        let settings = Settings { messages: Messages { allow_unverified: true }, ..Settings::default() };
        let two = Placement { settings, ..placement(2, &["b"], &[(1, &["a"])]).placement().clone() };
        let two = two.compile().map(Arc::new).unwrap();
        last.place(&two);
        while last.evict_next(|_| true, false) > 0 {}
        for (_, id) in &held {
            last.confirm(*id).unwrap();
            last.remove(*id);
        }
        let mut told = last.tell_returns(true, now);
        let mut keys = told.remove(&peer("b")).unwrap();
        keys.sort_by(|one, other| one.key.cmp(&other.key));
        let said = keys.iter().map(|it| (it.key.as_str(), it.away, it.receivers, it.marker.is_some()));
        assert_eq!((said.collect::<Vec<_>>(), told.len()), (vec![(KEY, 1, 1, true), ("user-1", 1, 1, true)], 0));
        assert_eq!((last.giving_to(KEY), last.tell_returns(true, now).len()), (Some(peer("b")), 0));

        let mut next = Registry::new(View::new(peer("b"), Settings::default()));
        next.place(&two);
        next.hear_returns(keys.clone(), now);
        assert!(heard_here(&mut next) && next.is_cut_over(KEY, keys[0].marker.as_ref().unwrap()));
        let message = Message::new(MessageKind::Text, b"hello").unwrap();
        let owner = Role::Owner { away: 0, left: Duration::from_secs(1) };
        assert_eq!(next.post(KEY, &message, owner, now).held, 1);
        last.hear_returns(keys, now);
        assert!(last.giving_to("user-1").is_some(), "it is not the owner");
    }

    #[test]
    fn a_cut_over_ends_by_itself_when_the_other_side_is_silent() {
        let now = Instant::now();
        for (mut registry, one) in [giving(now), (taking(now), "one".into())] {
            registry.expire_cut_overs(now + LIMIT / 2);
            assert!(registry.is_cut_over(KEY, &one));
            registry.expire_cut_overs(now + LIMIT);
            assert!(!registry.is_cut_over(KEY, &one));
            assert_eq!(registry.hear(KEY, &marker(&one)), Heard::Nothing);
            assert_eq!(registry.hear(KEY, b"hello"), Heard::Message);
        }
    }
}

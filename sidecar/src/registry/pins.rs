//! What stays where it is for a while, because the app or its pod says so: a match, a call.
//!
//! A pinned key is held here as a connection holds it, also while it has none. Everything of a pinned pod stays, whatever
//! decides where connections go.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{KeyId, Kind, Registry};

/// What is pinned at this sidecar.
#[derive(Debug, Default)]
pub(super) struct Pins {
    keys: HashMap<KeyId, Pin>,
    /// The same by when they end.
    ends: BTreeSet<(Instant, KeyId)>,
    /// Keys that have been pinned for as long as they may be: they are not pinned anew before they have moved.
    spent: HashSet<KeyId>,
    pod: Option<Pin>,
    /// Until when the pod is pinned, as it was told last, in milliseconds since 1970.
    told: u64,
    /// The pod is about to end: nothing can be kept in it any more.
    over: bool,
}

/// A time for which something stays.
#[derive(Clone, Copy, Debug)]
struct Pin {
    since: Instant,
    until: Instant,
    /// Whether it ends because it may last no longer.
    is_spent: bool,
}

/// Why a key was not pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpinned {
    /// No connection of it is here.
    NotHere,
    /// It belongs elsewhere, and has been pinned for as long as it may be.
    Spent,
    /// The pod is about to end.
    Ending,
}

/// How much is pinned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Keys that the app has pinned.
    pub keys: u64,
    /// Connections that stay, for their keys or for the whole pod.
    pub connections: u64,
}

impl Pin {
    /// A pin that begins or goes on now. However often it goes on, it ends `most` after it began.
    fn renew(before: Option<Self>, ttl: Duration, most: Duration, now: Instant) -> Self {
        let since = before.map_or(now, |before| before.since);
        let (asked, last) = (now + ttl.min(most), since + most);
        Self { since, until: asked.min(last), is_spent: asked >= last }
    }
}

impl Pins {
    /// Whether everything in the pod is pinned.
    pub(super) fn pod(&self) -> bool {
        self.pod.is_some()
    }

    fn put(&mut self, key: KeyId, pin: Pin) {
        self.take(key);
        self.keys.insert(key, pin);
        self.ends.insert((pin.until, key));
    }

    fn take(&mut self, key: KeyId) {
        if let Some(pin) = self.keys.remove(&key) {
            self.ends.remove(&(pin.until, key));
        }
    }

    /// A key is gone: its id will be another one's.
    pub(super) fn forget(&mut self, key: KeyId) {
        self.spent.remove(&key);
    }
}

impl Registry {
    /// Keeps a key here that has a connection here; says until when.
    pub fn pin(&mut self, key: &str, ttl: Duration, now: Instant) -> Result<Instant, Unpinned> {
        if self.pins.over {
            return Err(Unpinned::Ending);
        }
        self.expire_pins(now);
        let id = self.ids.get(key).copied().ok_or(Unpinned::NotHere)?;
        if self.pins.spent.contains(&id) && self.moved.contains(&(self.hashes[id], id)) {
            return Err(Unpinned::Spent);
        }
        let entry = &mut self.keys[id];
        let stays = entry.connections.iter().any(|id| !self.connections[*id].is_told());
        let is_pinned = entry.state.is_pinned() || (stays && entry.state.pin());
        if !is_pinned {
            return Err(Unpinned::NotHere);
        }
        let most = self.view.settings().max_pinned.0.0;
        let pin = Pin::renew(self.pins.keys.get(&id).copied(), ttl, most, now);
        self.pins.spent.remove(&id);
        self.pins.put(id, pin);
        Ok(pin.until)
    }

    /// Lets a key go where it belongs.
    pub fn unpin(&mut self, key: &str) {
        if let Some(id) = self.ids.get(key).copied() {
            self.release(id);
        }
    }

    /// Until when a key is pinned here.
    pub fn pinned_until(&self, key: &str) -> Option<Instant> {
        self.pins.keys.get(self.ids.get(key)?).map(|pin| pin.until)
    }

    /// Keeps everything in this pod for so long. `until` tells one wish from the next: the same one again is no news, also
    /// after it has ended.
    pub fn pin_pod(&mut self, until: u64, ttl: Duration, now: Instant) {
        if std::mem::replace(&mut self.pins.told, until) == until || self.pins.over {
            return;
        }
        self.expire_pins(now);
        let most = self.view.settings().max_pinned.0.0;
        let pin = Pin::renew(self.pins.pod, ttl, most, now);
        self.pins.pod = Some(pin).filter(|pin| pin.until > now);
    }

    /// Until when the pod is pinned, as it was told last, in milliseconds since 1970.
    pub fn pod_told(&self) -> u64 {
        self.pins.told
    }

    /// Ends what has been pinned for long enough.
    pub fn expire_pins(&mut self, now: Instant) {
        self.pins.pod.take_if(|pin| pin.until <= now);
        while let Some((_, id)) = self.pins.ends.first().copied().filter(|(until, _)| *until <= now) {
            // One that belongs here has kept nobody waiting.
            let is_moved = self.moved.contains(&(self.hashes[id], id));
            if is_moved && self.pins.keys.get(&id).is_some_and(|pin| pin.is_spent) {
                self.pins.spent.insert(id);
            }
            self.release(id);
        }
    }

    /// Ends all pins: the pod is about to end. No other begins until [`Registry::allow_pins`].
    pub fn end_pins(&mut self) {
        self.pins.over = true;
        self.pins.pod = None;
        for id in self.pins.keys.keys().copied().collect::<Vec<_>>() {
            self.release(id);
        }
    }

    /// The pod stays.
    pub fn allow_pins(&mut self) {
        self.pins.over = false;
    }

    /// What is pinned.
    pub fn pinned(&self) -> Pinned {
        let connections = match self.pins.pod() {
            true => self.staying_here(),
            false => self.pins.keys.keys().map(|id| self.staying(*id)).sum(),
        };
        Pinned { keys: self.pins.keys.len() as u64, connections }
    }

    /// Whether a key stays here, wherever it belongs.
    pub(super) fn is_pinned(&self, id: KeyId) -> bool {
        self.pins.pod() || self.keys[id].state.is_pinned()
    }

    /// Whether a connection stays here, wherever it belongs.
    pub(super) fn is_pinned_here(&self, kind: Kind) -> bool {
        match kind {
            Kind::Keyed(key) => self.is_pinned(key),
            Kind::Keyless => self.pins.pod(),
            Kind::Transit => false,
        }
    }

    fn release(&mut self, id: KeyId) {
        self.pins.take(id);
        self.keys[id].state.unpin();
        self.forget_if_empty(id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{holding, placement};
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_pinned_key_stays_until_its_pin_ends_and_then_moves_as_any_other() {
        let (mut registry, held) = holding(20);
        let now = Instant::now();
        let two = placement(2, &["a", "b"], &[(1, &["a"])]);
        registry.place(&two);
        let moved = registry.moved();
        let (key, id) = held.iter().find(|(key, _)| two.ring().owner(two.hash(key)) != two.slot_of("a")).unwrap();
        assert_eq!(registry.pin(key, MINUTE, now), Ok(now + MINUTE));
        let left = registry.moved();
        assert_eq!((left.keys, left.connections, left.pinned), (moved.keys, moved.connections - 1, 1));
        assert_eq!(registry.pinned(), Pinned { keys: 1, connections: 1 });
        let begun: u64 =
            std::iter::from_fn(|| Some(registry.evict_next(|_| true, false)).filter(|begun| *begun > 0)).sum();
        assert_eq!(begun, moved.connections - 1);
        registry.expire_pins(now + MINUTE);
        assert_eq!(registry.evict_next(|_| true, false), 1);
        assert!(registry.confirm(*id).is_some());
        assert_eq!(registry.pin(key, MINUTE, now), Err(Unpinned::NotHere), "its client has been told");
    }

    #[test]
    fn a_pin_ends_as_long_after_it_began_as_one_may_last_however_often_it_is_renewed() {
        let (mut registry, held) = holding(1);
        let (key, most) = (&held[0].0, registry.view().settings().max_pinned.0.0);
        let began = Instant::now();
        let mut now = began;
        while now < began + most {
            assert!(registry.pin(key, MINUTE, now).unwrap() <= began + most);
            now += MINUTE / 2;
        }
        registry.expire_pins(now);
        assert_eq!(registry.pinned_until(key), None);
    }

    #[test]
    fn a_key_that_belongs_elsewhere_is_not_pinned_anew_when_its_time_is_over() {
        let (mut registry, held) = holding(1);
        let (key, most) = (&held[0].0, registry.view().settings().max_pinned.0.0);
        let began = Instant::now();
        registry.pin(key, most, began).unwrap();
        let again = began + most;
        assert_eq!(registry.pin(key, MINUTE, again), Ok(again + MINUTE), "nothing waits for it");
        registry.pin(key, most, again).unwrap();
        registry.place(&placement(2, &["b"], &[(1, &["a"])]));
        assert_eq!(registry.pin(key, MINUTE, again + most), Err(Unpinned::Spent));
        assert_eq!(registry.evict_next(|_| true, false), 1);
        registry.place(&placement(3, &["a"], &[(2, &["b"])]));
        assert!(registry.pin(key, MINUTE, again + most).is_ok(), "it belongs here again");
    }

    #[test]
    fn a_pin_that_kept_nobody_waiting_does_not_count_against_a_later_one() {
        let (mut registry, held) = holding(1);
        let (key, most) = (&held[0].0, registry.view().settings().max_pinned.0.0);
        let began = Instant::now();
        registry.pin(key, most, began).unwrap();
        registry.expire_pins(began + most);
        let later = began + most * 3;
        registry.place(&placement(2, &["b"], &[(1, &["a"])]));
        assert_eq!(registry.pin(key, MINUTE, later), Ok(later + MINUTE));
    }

    #[test]
    fn a_pinned_key_is_not_forgotten_while_it_has_no_connection() {
        let (mut registry, held) = holding(1);
        let (now, (key, id)) = (Instant::now(), held[0].clone());
        registry.pin(&key, MINUTE, now).unwrap();
        registry.remove(id);
        assert_eq!(registry.pinned_until(&key), Some(now + MINUTE));
        registry.place(&placement(2, &["b"], &[(1, &["a"])]));
        assert_eq!(registry.moved().keys, 1, "the move must not end before the pin");
        registry.unpin(&key);
        assert_eq!((registry.moved().keys, registry.ids.len()), (0, 0));
    }

    #[test]
    fn an_eviction_is_called_off_when_the_key_is_pinned_before_its_client_was_told() {
        let (mut registry, held) = holding(1);
        let (key, id) = &held[0];
        registry.place(&placement(2, &["b"], &[(1, &["a"])]));
        assert_eq!(registry.evict_next(|_| true, false), 1);
        registry.pin(key, MINUTE, Instant::now()).unwrap();
        assert_eq!(registry.confirm(*id), None);
        assert_eq!((registry.leaving(), registry.spent(), registry.moved().pinned), (0, 0, 1));
    }

    #[test]
    fn a_pinned_pod_keeps_everything_for_one_wish_once() {
        let (mut registry, _) = holding(5);
        let now = Instant::now();
        registry.place(&placement(2, &["b"], &[(1, &["a"])]));
        registry.pin_pod(7, MINUTE, now);
        assert_eq!(
            (registry.moved().connections, registry.moved().pinned, registry.evict_next(|_| true, false)),
            (0, 5, 0)
        );
        registry.expire_pins(now + MINUTE);
        registry.pin_pod(7, MINUTE, now + MINUTE);
        assert_eq!(registry.moved().connections, 5, "it is no news");
        registry.pin_pod(0, Duration::ZERO, now + MINUTE);
        assert_eq!((registry.evict_next(|_| true, false), registry.pod_told()), (1, 0));
    }

    #[test]
    fn nothing_is_pinned_in_a_pod_that_is_about_to_end() {
        let (mut registry, held) = holding(1);
        registry.pin(&held[0].0, MINUTE, Instant::now()).unwrap();
        registry.end_pins();
        assert_eq!(registry.pinned(), Pinned::default());
        assert_eq!(registry.pin(&held[0].0, MINUTE, Instant::now()), Err(Unpinned::Ending));
        registry.allow_pins();
        assert!(registry.pin(&held[0].0, MINUTE, Instant::now()).is_ok());
    }
}

//! Messages for clients that are on their way here: each is written to so many of a key's connections as they arrive.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::message::Message;

/// The most that is held here, in bytes.
const CAPACITY: usize = 16 * 1024 * 1024;
/// The most that is held for one key, in bytes: what one mailbox takes.
const PER_KEY: usize = crate::relay::CAPACITY;

/// What a message costs beside its frame, in bytes: its place here, and the frame's in memory.
const OVERHEAD: usize = 128;

/// A message that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldMessage {
    /// The message.
    pub message: Message,
    /// How many connections are still to get it.
    pub awaited: u32,
    /// When it is worth nothing any more.
    pub until: Instant,
}

impl HeldMessage {
    fn size(&self) -> usize {
        self.message.size() + OVERHEAD
    }
}

/// What is held, by key and in the order in which it came.
#[derive(Debug)]
pub(super) struct Held<K> {
    queues: HashMap<K, Queue>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<HeldMessage>,
    bytes: usize,
}

impl<K> Default for Held<K> {
    fn default() -> Self {
        Self { queues: HashMap::new(), bytes: 0 }
    }
}

impl<K: Copy + Eq + std::hash::Hash> Held<K> {
    /// Keeps a message behind those that are there. False when there is no room.
    #[must_use]
    pub(super) fn keep(&mut self, key: K, held: HeldMessage) -> bool {
        let size = held.size();
        let taken = self.queues.get(&key).map_or(0, |queue| queue.bytes);
        if self.bytes + size > CAPACITY || (taken > 0 && taken + size > PER_KEY) {
            return false;
        }
        let queue = self.queues.entry(key).or_default();
        queue.bytes += size;
        self.bytes += size;
        queue.messages.push_back(held);
        true
    }

    /// What a connection that has arrived is to get, in order.
    pub(super) fn arrive(&mut self, key: K) -> Vec<HeldMessage> {
        let Some(queue) = self.queues.get_mut(&key) else { return Vec::new() };
        let due: Vec<_> = queue.messages.iter().cloned().collect();
        for held in &mut queue.messages {
            held.awaited -= 1;
        }
        self.retain(key, |held| held.awaited > 0);
        due
    }

    /// Everything of a key.
    pub(super) fn take(&mut self, key: K) -> Vec<HeldMessage> {
        let queue = self.queues.remove(&key).unwrap_or_default();
        self.bytes -= queue.bytes;
        queue.messages.into()
    }

    /// Forgets what is worth nothing any more; returns for how many connections that was.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let keys: Vec<K> = self.queues.keys().copied().collect();
        let mut expired = 0;
        for key in keys {
            self.retain(key, |held| {
                let alive = held.until > now;
                expired += if alive { 0 } else { u64::from(held.awaited) };
                alive
            });
        }
        expired
    }

    fn retain(&mut self, key: K, mut keep: impl FnMut(&HeldMessage) -> bool) {
        let Some(queue) = self.queues.get_mut(&key) else { return };
        let before = queue.bytes;
        queue.messages.retain(|held| {
            let stays = keep(held);
            queue.bytes -= if stays { 0 } else { held.size() };
            stays
        });
        self.bytes -= before - queue.bytes;
        if queue.messages.is_empty() {
            self.queues.remove(&key);
        }
    }

    /// Whether anything is held for a key.
    pub(super) fn has(&self, key: K) -> bool {
        self.queues.contains_key(&key)
    }

    /// The keys that something is held for.
    pub(super) fn keys(&self) -> impl Iterator<Item = K> {
        self.queues.keys().copied()
    }

    /// How much is held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many messages are held.
    pub(super) fn count(&self) -> usize {
        self.queues.values().map(|queue| queue.messages.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ring::notice::MessageKind;

    use super::*;

    fn held(text: &str, awaited: u32, until: Instant) -> HeldMessage {
        HeldMessage { message: Message::new(MessageKind::Text, text.as_bytes()).unwrap(), awaited, until }
    }

    fn texts(held: Vec<HeldMessage>) -> Vec<String> {
        held.into_iter().map(|held| String::from_utf8(held.message.payload().to_vec()).unwrap()).collect()
    }

    #[test]
    fn each_connection_that_arrives_gets_what_waits_for_it_in_order() {
        let until = Instant::now();
        let mut all = Held::default();
        assert!(all.keep(1, held("one", 2, until)) && all.keep(1, held("two", 1, until)));
        assert_eq!(texts(all.arrive(1)), ["one", "two"]);
        assert!(all.keep(1, held("three", 1, until)));
        assert_eq!(texts(all.arrive(1)), ["one", "three"]);
        assert_eq!((all.arrive(1).len(), all.bytes(), all.count()), (0, 0, 0));
    }

    #[test]
    fn what_has_expired_is_counted_by_connections() {
        let now = Instant::now();
        let mut all = Held::default();
        assert!(all.keep(1, held("old", 3, now)) && all.keep(1, held("new", 1, now + Duration::from_secs(1))));
        assert_eq!((all.expire(now), all.expire(now)), (3, 0));
        assert_eq!(texts(all.take(1)), ["new"]);
        assert_eq!(all.bytes(), 0);
    }

    #[test]
    fn neither_one_key_nor_all_of_them_cost_more_than_they_may() {
        let until = Instant::now();
        let text = "a".repeat(100_000);
        let mut all = Held::default();
        let kept = (0..10).filter(|_| all.keep(0, held(&text, 1, until))).count();
        assert_eq!(kept, 2);
        let kept = (1..1_000).filter(|key| all.keep(*key, held(&text, 1, until))).count();
        assert!((0..10_000).filter(|_| all.keep(0, held("tiny", 1, until))).count() < PER_KEY / OVERHEAD);
        assert!(all.bytes() <= CAPACITY && kept < 200, "{kept} of {} bytes", all.bytes());
    }
}

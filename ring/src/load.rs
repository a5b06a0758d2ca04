//! Where a connection goes when load decides, and not a key: to the less loaded of two slots, chosen at random.
//!
//! One random choice leaves the fullest of n slots log n above the mean; two leave it log log n above (Mitzenmacher, The
//! Power of Two Choices in Randomized Load Balancing). The least loaded of all would be better still if the counts were of
//! now: with counts of a moment ago every sidecar would choose the same slot until the next ones.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::wire::Loads;
use crate::{SlotId, Version};

/// For so long counts say something about now. With older ones a slot that was empty then would get everything.
pub const FRESH: Duration = Duration::from_secs(10);

/// What one sidecar knows of the slots' loads: what it was told, and what it has chosen since that was counted.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    version: Version,
    /// Since when this is known.
    told: Option<Instant>,
    /// Nobody has told it: the own choices are all there is.
    guessed: bool,
    slots: BTreeMap<SlotId, Count>,
    /// When slots did not take a connection, whatever is told of them.
    failed: BTreeMap<SlotId, Instant>,
}

#[derive(Clone, Debug, Default)]
struct Count {
    connections: u64,
    /// When the choices were made that the count cannot have in it yet.
    chosen: VecDeque<Instant>,
}

impl Count {
    fn estimate(&self) -> u64 {
        self.connections + self.chosen.len() as u64
    }
}

impl Tally {
    /// Takes newer counts in.
    pub fn hear(&mut self, loads: &Loads, now: Instant) {
        let mut before = std::mem::take(&mut self.slots);
        (self.version, self.told, self.guessed) = (loads.version, Some(now), false);
        for (&slot, load) in &loads.slots {
            let mut chosen = before.remove(&slot).unwrap_or_default().chosen;
            let counted = now.checked_sub(Duration::from_millis(load.age_ms));
            while chosen.front().is_some_and(|at| counted.is_some_and(|counted| *at <= counted)) {
                chosen.pop_front();
            }
            self.slots.insert(slot, Count { connections: load.connections, chosen });
        }
    }

    /// Whether a slot takes connections, as far as is known: counts of now name those that do. Where they name none it is as
    /// good as any other.
    pub fn takes(&self, slot: SlotId, version: Version, now: Instant) -> bool {
        let told = self.is_fresh(version, now) && !self.guessed && !self.slots.is_empty();
        !self.has_failed(slot, now) && (!told || self.slots.contains_key(&slot))
    }

    /// A slot has not taken a connection: it holds few, perhaps, because its app is down. It is passed over for a while.
    pub fn fail(&mut self, slot: SlotId, now: Instant) {
        self.failed.retain(|_, since| now.duration_since(*since) < FRESH);
        self.failed.insert(slot, now);
    }

    fn has_failed(&self, slot: SlotId, now: Instant) -> bool {
        self.failed.get(&slot).is_some_and(|since| now.duration_since(*since) < FRESH)
    }

    fn is_fresh(&self, version: Version, now: Instant) -> bool {
        version == self.version && self.told.is_some_and(|told| now.duration_since(told) < FRESH)
    }

    /// Chooses one of the slots that can be reached, with their weights, under the placement in force. `below` gives a
    /// random number below another. Slots that do not take connections, have failed to, or have as many as `limit` says
    /// (0: any number), are passed over while there are others.
    ///
    /// Without counts of now it goes by its own choices alone.
    pub fn choose(
        &mut self,
        able: &[(SlotId, u8)],
        limit: u64,
        version: Version,
        now: Instant,
        mut below: impl FnMut(usize) -> usize,
    ) -> Option<SlotId> {
        if !self.is_fresh(version, now) {
            (self.version, self.told, self.guessed) = (version, Some(now), true);
            self.slots.clear();
        }
        if self.guessed {
            for (slot, _) in able {
                self.slots.entry(*slot).or_default();
            }
        }
        let mut told: Vec<_> = able.iter().filter(|(slot, _)| self.slots.contains_key(slot)).collect();
        let has_room = |slot: &SlotId| limit == 0 || self.slots[slot].estimate() < limit;
        let is_good = |slot: &SlotId| has_room(slot) && !self.has_failed(*slot, now);
        if told.iter().any(|(slot, _)| is_good(slot)) {
            told.retain(|(slot, _)| is_good(slot));
        }
        if told.is_empty() {
            return able.get(below(able.len().max(1))).map(|(slot, _)| *slot);
        }
        let first = below(told.len());
        let other = (first + 1 + below(told.len().max(2) - 1)) % told.len();
        // By each share of the weight: a / wa <= b / wb.
        let load = |at: usize, other: usize| self.slots[&told[at].0].estimate() * u64::from(told[other].1);
        let (slot, _) = *told[if load(first, other) <= load(other, first) { first } else { other }];
        self.slots.entry(slot).or_default().chosen.push_back(now);
        Some(slot)
    }
}

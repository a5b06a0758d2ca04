//! Rendezvous hashing, `hrw-v1`: every slot gives every key a score, and the highest score owns the key.
//!
//! A slot that joins takes only the keys it scores highest, and one that leaves gives up only its own, so both move the
//! minimum. A slot of weight w draws w tickets and scores the best of them, which gives it w shares of the keys.

use std::hint::select_unpredictable;

use xxhash_rust::xxh64::xxh64;

use crate::{KeyHash, SlotId};

/// The most tickets a slot may draw.
pub const MAX_WEIGHT: u8 = 64;

/// The seed of one ticket of one slot: XXH64 of both as little-endian 32-bit integers, with seed 0.
pub fn ticket_seed(slot: SlotId, ticket: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&slot.0.to_le_bytes());
    bytes[4..].copy_from_slice(&ticket.to_le_bytes());
    xxh64(&bytes, 0)
}

/// Spreads the bits of a key's hash combined with a ticket's seed: Pelle Evensen's mixer `moremur`.
#[inline]
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 27;
    x = x.wrapping_mul(0x3C79_AC49_2BA7_B653);
    x ^= x >> 33;
    x = x.wrapping_mul(0x1C69_B3F7_4AC4_AE35);
    x ^ (x >> 27)
}

/// The score of one ticket for a key.
#[inline]
pub const fn score(key: KeyHash, ticket_seed: u64) -> u64 {
    mix(key.0 ^ ticket_seed)
}

/// A set of slots, ready to be asked for owners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendezvous {
    /// The tickets' seeds, ascending by slot, so that the first of equal scores is the lowest slot.
    seeds: Vec<u64>,
    /// Whose ticket each of them is.
    slots: Vec<SlotId>,
    /// Where a slot's tickets begin: a hash table with open addressing, at most half full, in which dense ids never
    /// collide. Empty when there is no slot.
    begins: Vec<Option<u32>>,
}

impl Rendezvous {
    /// Builds the set from slots and weights; a slot named twice counts once.
    pub fn new(slots: impl IntoIterator<Item = (SlotId, u8)>) -> Self {
        let mut wanted: Vec<_> = slots.into_iter().collect();
        wanted.sort_unstable();
        wanted.dedup_by_key(|(slot, _)| *slot);
        let cells = if wanted.is_empty() { 0 } else { (2 * wanted.len()).next_power_of_two() };
        let mut set = Self { begins: vec![None; cells], ..Self::default() };
        for (slot, weight) in wanted {
            let cell = set.cell(slot);
            set.begins[cell] = Some(u32::try_from(set.seeds.len()).expect("fewer than 2^32 tickets"));
            for ticket in 0..u32::from(weight.clamp(1, MAX_WEIGHT)) {
                set.seeds.push(ticket_seed(slot, ticket));
                set.slots.push(slot);
            }
        }
        set
    }

    /// Whether there is no slot at all.
    pub fn is_empty(&self) -> bool {
        self.seeds.is_empty()
    }

    /// The slot that owns the key: `None` only when there is no slot at all.
    #[inline]
    pub fn owner(&self, key: KeyHash) -> Option<SlotId> {
        self.best(key).map(|(slot, _)| slot)
    }

    /// The owner with its score.
    #[inline]
    pub(crate) fn best(&self, key: KeyHash) -> Option<(SlotId, u64)> {
        let (first, rest) = self.seeds.split_first()?;
        let mut best = score(key, *first);
        let mut winner = 0;
        for (ticket, seed) in (1..).zip(rest) {
            let score = score(key, *seed);
            // A branch would be mispredicted about ln(n) times a key, which costs more than all the scores.
            let wins = score > best;
            best = select_unpredictable(wins, score, best);
            winner = select_unpredictable(wins, ticket, winner);
        }
        Some((self.slots[winner], best))
    }

    /// The score that one slot gives a key, if it is in the set.
    #[inline]
    pub fn score_of(&self, key: KeyHash, slot: SlotId) -> Option<u64> {
        self.seeds_of(slot).iter().map(|seed| score(key, *seed)).max()
    }

    /// The weight of a slot: 0 when it is not in the set.
    #[inline]
    pub fn weight(&self, slot: SlotId) -> u8 {
        u8::try_from(self.seeds_of(slot).len()).expect("at most MAX_WEIGHT tickets a slot")
    }

    /// All slots, best first: where a key goes when its owner cannot be reached.
    pub fn ranked(&self, key: KeyHash) -> Vec<SlotId> {
        let mut scored: Vec<(u64, SlotId)> = Vec::with_capacity(self.seeds.len());
        for (seed, slot) in self.seeds.iter().zip(&self.slots) {
            let score = score(key, *seed);
            match scored.last_mut() {
                Some((best, last)) if last == slot => *best = (*best).max(score),
                _ => scored.push((score, *slot)),
            }
        }
        scored.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        scored.into_iter().map(|(_, slot)| slot).collect()
    }

    /// The slots with their weights, ascending.
    pub fn slots(&self) -> impl Iterator<Item = (SlotId, u8)> + '_ {
        self.slots.chunk_by(|a, b| a == b).map(|tickets| (tickets[0], self.weight(tickets[0])))
    }

    #[inline]
    fn seeds_of(&self, slot: SlotId) -> &[u64] {
        let begin = if self.begins.is_empty() { None } else { self.begins[self.cell(slot)] };
        let Some(begin) = begin else { return &[] };
        let begin = begin as usize;
        let weight = self.slots[begin..].iter().take_while(|owner| **owner == slot).count();
        &self.seeds[begin..begin + weight]
    }

    /// The cell that names a slot, or the empty one where it would go.
    #[inline]
    fn cell(&self, slot: SlotId) -> usize {
        let mask = self.begins.len() - 1;
        let mut cell = slot.0 as usize & mask;
        while self.begins[cell].is_some_and(|begin| self.slots[begin as usize] != slot) {
            cell = (cell + 1) & mask;
        }
        cell
    }
}

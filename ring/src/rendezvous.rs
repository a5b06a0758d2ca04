//! Rendezvous hashing, `hrw-v1`: every slot gives every key a score, and the highest score owns the key.
//!
//! A slot that joins takes only the keys it scores highest, and one that leaves gives up only its own, so both move the
//! minimum. A slot of weight w draws w tickets and scores the best of them, which gives it w shares of the keys.

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

/// Spreads the bits of a key's hash combined with a ticket's seed.
///
/// The constants are those of Pelle Evensen's `rrmxmx` family, as `hashing.md` fixes them for `hrw-v1`.
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
    /// Ascending by slot, so that the first of equal scores is the lowest slot.
    tickets: Vec<Ticket>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticket {
    seed: u64,
    slot: SlotId,
}

impl Rendezvous {
    /// Builds the set from slots and weights; a slot named twice counts once.
    pub fn new(slots: impl IntoIterator<Item = (SlotId, u8)>) -> Self {
        let mut slots: Vec<_> = slots.into_iter().collect();
        slots.sort_unstable();
        slots.dedup_by_key(|(slot, _)| *slot);
        let tickets = slots
            .into_iter()
            .flat_map(|(slot, weight)| {
                (0..u32::from(weight.clamp(1, MAX_WEIGHT)))
                    .map(move |ticket| Ticket { seed: ticket_seed(slot, ticket), slot })
            })
            .collect();
        Self { tickets }
    }

    /// The slot that owns the key: `None` only when there is no slot at all.
    #[inline]
    pub fn owner(&self, key: KeyHash) -> Option<SlotId> {
        self.best(key).map(|(slot, _)| slot)
    }

    /// The owner and its score.
    #[inline]
    pub fn best(&self, key: KeyHash) -> Option<(SlotId, u64)> {
        let (first, rest) = self.tickets.split_first()?;
        let mut best = (first.slot, score(key, first.seed));
        for ticket in rest {
            let score = score(key, ticket.seed);
            if score > best.1 {
                best = (ticket.slot, score);
            }
        }
        Some(best)
    }

    /// The score that one slot gives a key, if it is in the set.
    #[inline]
    pub fn score_of(&self, key: KeyHash, slot: SlotId) -> Option<u64> {
        let first = self.tickets.partition_point(|ticket| ticket.slot < slot);
        let own = self.tickets[first..].iter().take_while(|ticket| ticket.slot == slot);
        own.map(|ticket| score(key, ticket.seed)).max()
    }

    /// All slots, best first: where a key goes when its owner cannot be reached.
    pub fn ranked(&self, key: KeyHash) -> Vec<SlotId> {
        let mut scored: Vec<(u64, SlotId)> = Vec::with_capacity(self.tickets.len());
        for ticket in &self.tickets {
            let score = score(key, ticket.seed);
            match scored.last_mut() {
                Some((best, slot)) if *slot == ticket.slot => *best = (*best).max(score),
                _ => scored.push((score, ticket.slot)),
            }
        }
        scored.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        scored.into_iter().map(|(_, slot)| slot).collect()
    }

    /// The slots with their weights, ascending.
    pub fn slots(&self) -> impl Iterator<Item = (SlotId, u8)> + '_ {
        self.tickets.chunk_by(|a, b| a.slot == b.slot).map(|tickets| {
            let weight = u8::try_from(tickets.len()).expect("at most MAX_WEIGHT tickets a slot");
            (tickets[0].slot, weight)
        })
    }
}

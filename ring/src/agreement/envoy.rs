//! Envoy: XXH64 of addresses, for its ring and for its Maglev table.

use std::collections::HashSet;

use xxhash_rust::xxh64::xxh64;

use super::Server;
use crate::{KeyHash, SlotId};

const MAXIMUM_RING_SIZE: f64 = 8_388_608.0;

/// The points of a ring: for each server its share of at least `minimum` of them.
///
/// The arithmetic is Envoy's, in its order: another one would round some share another way.
#[expect(clippy::while_float, reason = "see above; the numbers counted are below 2^53")]
pub(super) fn points(servers: &[Server], minimum: u32) -> Vec<(u64, SlotId)> {
    let shares = shares(servers);
    let least = shares.iter().copied().fold(1.0, f64::min);
    let scale = ((least * f64::from(minimum)).ceil() / least).min(MAXIMUM_RING_SIZE);
    let mut points = Vec::new();
    let (mut current, mut target) = (0.0, 0.0);
    for (server, share) in servers.iter().zip(shares) {
        let key = server.canonical();
        target += scale * share;
        let mut number = 0;
        while current < target {
            points.push((xxh64(format!("{key}_{number}").as_bytes(), 0), server.slot));
            number += 1;
            current += 1.0;
        }
    }
    points
}

/// The servers' weights as parts of one.
fn shares(servers: &[Server]) -> Vec<f64> {
    let sum: u32 = servers.iter().map(|server| u32::from(server.weight)).sum();
    servers.iter().map(|server| f64::from(server.weight) / f64::from(sum)).collect()
}

/// A Maglev table: each server takes places in an order of its own, in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maglev {
    places: Vec<SlotId>,
    /// All slots, also those that found no place.
    slots: Vec<SlotId>,
}

impl Maglev {
    pub(super) fn new(servers: &[Server], size: u32) -> Self {
        struct Entry {
            slot: SlotId,
            share: f64,
            target: f64,
            /// The place that it wants next, and the step to the one after that.
            place: u64,
            step: u64,
        }
        let size = u64::from(size);
        let mut keyed: Vec<_> = servers
            .iter()
            .zip(shares(servers))
            .map(|(server, share)| (server.canonical(), server.slot, share))
            .collect();
        keyed.sort_by(|a, b| a.0.cmp(&b.0));
        let mut entries: Vec<Entry> = keyed
            .into_iter()
            .map(|(key, slot, share)| {
                let (place, step) = (xxh64(key.as_bytes(), 0) % size, xxh64(key.as_bytes(), 1) % (size - 1) + 1);
                Entry { slot, share, target: 0.0, place, step }
            })
            .collect();
        let most = entries.iter().map(|entry| entry.share).fold(0.0, f64::max);
        let mut places: Vec<Option<SlotId>> = vec![None; if entries.is_empty() { 0 } else { index(size) }];
        let mut free = places.len();
        let mut round = 0.0;
        while free > 0 {
            round += 1.0;
            for entry in &mut entries {
                // One of less weight waits until its turn has come.
                if free == 0 || round * entry.share < entry.target {
                    continue;
                }
                entry.target += most;
                while places[index(entry.place)].is_some() {
                    entry.place = (entry.place + entry.step) % size;
                }
                places[index(entry.place)] = Some(entry.slot);
                free -= 1;
            }
        }
        let slots = servers.iter().map(|server| server.slot).collect();
        Self { places: places.into_iter().flatten().collect(), slots }
    }

    /// The slot that owns the key.
    #[inline]
    pub fn owner(&self, key: KeyHash) -> Option<SlotId> {
        self.places.get(self.place(key)?).copied()
    }

    /// All slots, in the order in which they follow in the table; those without a place last.
    pub fn ranked(&self, key: KeyHash) -> Vec<SlotId> {
        let Some(place) = self.place(key) else { return Vec::new() };
        let (before, after) = self.places.split_at(place);
        let mut seen = HashSet::new();
        let in_order = after.iter().chain(before).chain(&self.slots);
        in_order.copied().filter(|slot| seen.insert(*slot)).take(self.slots.len()).collect()
    }

    fn place(&self, key: KeyHash) -> Option<usize> {
        let size = u64::try_from(self.places.len()).expect("a table fits into memory");
        key.0.checked_rem(size).map(index)
    }
}

fn index(place: u64) -> usize {
    usize::try_from(place).expect("a table fits into memory")
}

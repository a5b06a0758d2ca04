//! How many connections a change of slots would move, before it is made.

use std::collections::{BTreeMap, BTreeSet};

use ring::placement::Table;
use ring::rendezvous::mix;
use ring::{Owners, SlotId};

use super::level::{self, Pod};
use crate::planner::Roster;

/// Keys in the sample: the error is within a percent of the pool.
const SAMPLE: u64 = 16_384;

/// Estimates how many connections would move, from the connections that each member has now, by UID.
///
/// Without slots nothing says where a connection belongs: it would stay only where its key's new owner happens to be.
pub fn moved(now: &Table, then: &Table, connections: &BTreeMap<&str, u64>) -> u64 {
    let owners = |table: &Table| Owners::new(&table.hasher, &table.slots);
    let (old, new) = (owners(now), owners(then));
    let mut keys = BTreeMap::<&str, u64>::new();
    let mut kept = BTreeMap::<&str, u64>::new();
    for key in (0..SAMPLE).map(sample) {
        let owner_then = new.owner(then.hasher.hash(&key)).and_then(|slot| holder(then, slot));
        let owner_now = old.owner(now.hasher.hash(&key)).and_then(|slot| holder(now, slot));
        for &uid in owner_now.as_slice() {
            *keys.entry(uid).or_default() += 1;
        }
        if let Some(owner) = owner_then.filter(|owner| owner_now.is_none_or(|was| was == *owner)) {
            *kept.entry(owner).or_default() += 1;
        }
    }
    let stay = connections.iter().map(|(uid, count)| {
        let of = keys.get(uid).copied().unwrap_or(SAMPLE);
        count * kept.get(uid).copied().unwrap_or(0) / of
    });
    connections.values().sum::<u64>() - stay.sum::<u64>()
}

/// The same where load decides: what members without a slot have, and those above the tolerance above the mean.
pub fn levelled(then: &Roster, connections: &BTreeMap<&str, u64>, tolerance: u64) -> u64 {
    let slots = then.slots.iter().filter_map(|slot| Some((slot.holder.as_ref()?.uid.as_str(), u64::from(slot.weight))));
    let weights: BTreeMap<&str, u64> = slots.collect();
    let uids: BTreeSet<&str> = weights.keys().chain(connections.keys()).copied().collect();
    let pod = |uid: &str| Pod {
        staying: connections.get(uid).copied().unwrap_or(0),
        pinned: 0,
        weight: weights.get(uid).copied().unwrap_or(0),
    };
    let pods: Vec<Pod> = uids.into_iter().map(pod).collect();
    let over = level::overloaded(&pods, 0, tolerance);
    let moved =
        level::excess(&pods, 0).into_iter().zip(over).zip(&pods).filter(|((_, over), pod)| *over || pod.weight == 0);
    moved.map(|((excess, _), _)| excess).sum()
}

/// A key for the sample. Its bits are spread: a weak hash would keep the pattern of plain numbers.
fn sample(index: u64) -> [u8; 8] {
    mix(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes()
}

fn holder(table: &Table, slot: SlotId) -> Option<&str> {
    let slot = table.slots.iter().find(|s| s.id == slot)?;
    Some(slot.holder.as_ref()?.uid.as_str())
}

#[cfg(test)]
mod tests {
    use ring::{Holder, Slot};

    use super::*;

    fn table(holders: &[&str]) -> Table {
        let holder = |uid: &&str| Holder { name: (*uid).into(), uid: (*uid).into(), address: "127.0.0.1:1".into() };
        let slot = |(id, uid)| Slot { id: SlotId(id), weight: 1, holder: Some(holder(uid).into()) };
        Table { slots: (0..).zip(holders).map(slot).collect(), ..Table::default() }
    }

    #[test]
    fn a_second_slot_would_move_about_half() {
        let moved = moved(&table(&["a"]), &table(&["a", "b"]), &BTreeMap::from([("a", 1_000), ("b", 0)]));
        assert!((485..=515).contains(&moved), "{moved}");
    }

    #[test]
    fn a_new_holder_would_get_all_connections_of_its_slot_and_nothing_else() {
        let connections = BTreeMap::from([("a", 30), ("b", 70), ("c", 0)]);
        assert_eq!(moved(&table(&["a", "b"]), &table(&["a", "c"]), &connections), 70);
    }

    #[test]
    fn a_first_placement_would_leave_only_what_is_at_its_owner_by_chance() {
        let moved = moved(&Table::default(), &table(&["a", "b"]), &BTreeMap::from([("a", 500), ("b", 500)]));
        assert!((485..=515).contains(&moved), "{moved}");
    }
}

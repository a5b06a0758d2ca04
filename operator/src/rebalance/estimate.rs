//! How many connections a change of slots would move, before it is made.

use std::collections::BTreeMap;

use ring::rendezvous::Rendezvous;
use ring::{KeyHash, SlotId};

use crate::planner::Roster;

/// Keys in the sample: the error is within a percent of the pool.
const SAMPLE: u64 = 16_384;

/// Estimates how many connections would move, from the connections that each member has now, by UID.
///
/// Without slots nothing says where a connection belongs: it would stay only where its key's new owner happens to be.
pub fn moved(now: &Roster, then: &Roster, connections: &BTreeMap<&str, u64>) -> u64 {
    let (old, new) = (held(now), held(then));
    let mut keys = BTreeMap::<&str, u64>::new();
    let mut kept = BTreeMap::<&str, u64>::new();
    for key in (0..SAMPLE).map(sample) {
        let owner_then = new.owner(key).and_then(|slot| holder(then, slot));
        let owner_now = old.owner(key).and_then(|slot| holder(now, slot));
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

/// The slots that own keys.
pub fn held(roster: &Roster) -> Rendezvous {
    Rendezvous::new(roster.slots.iter().filter(|slot| slot.holder.is_some()).map(|slot| (slot.id, slot.weight)))
}

/// A key's hash is uniform, so any uniform 64 bits stand for a key.
fn sample(index: u64) -> KeyHash {
    KeyHash(ring::rendezvous::mix(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

fn holder(roster: &Roster, slot: SlotId) -> Option<&str> {
    let slot = roster.slots.iter().find(|s| s.id == slot)?;
    Some(slot.holder.as_ref()?.uid.as_str())
}

#[cfg(test)]
mod tests {
    use ring::{Holder, Slot};

    use super::*;

    fn roster(holders: &[&str]) -> Roster {
        let holder = |uid: &&str| Holder { name: (*uid).into(), uid: (*uid).into(), address: "127.0.0.1:1".into() };
        let slot = |(id, uid)| Slot { id: SlotId(id), weight: 1, holder: Some(holder(uid)) };
        Roster { slots: (0..).zip(holders).map(slot).collect(), ..Roster::default() }
    }

    #[test]
    fn a_second_slot_would_move_about_half() {
        let moved = moved(&roster(&["a"]), &roster(&["a", "b"]), &BTreeMap::from([("a", 1_000), ("b", 0)]));
        assert!((485..=515).contains(&moved), "{moved}");
    }

    #[test]
    fn a_new_holder_would_get_all_connections_of_its_slot_and_nothing_else() {
        let connections = BTreeMap::from([("a", 30), ("b", 70), ("c", 0)]);
        assert_eq!(moved(&roster(&["a", "b"]), &roster(&["a", "c"]), &connections), 70);
    }

    #[test]
    fn a_first_placement_would_leave_only_what_is_at_its_owner_by_chance() {
        let moved = moved(&Roster::default(), &roster(&["a", "b"]), &BTreeMap::from([("a", 500), ("b", 500)]));
        assert!((485..=515).contains(&moved), "{moved}");
    }
}

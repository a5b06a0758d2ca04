//! Which earlier tables a placement lists: those under which a key may still be held.

use std::collections::BTreeSet;

use ring::placement::{Predecessor, Table};
use ring::{KeyHasher, SlotId};

/// The predecessors of `current`, newest first, out of the tables that were in force before.
///
/// A dead process holds nothing, and while it was dead its keys went to their next-best slots; so its slots are vacant in
/// a predecessor, and claims go to where the keys may be. A table that then gives keys out as another one does, or
/// gives none out, says nothing and is dropped: a restart or a crash leaves no predecessor, and nobody waits for an
/// answer from the dead.
pub fn predecessors(
    current: &Table,
    before: impl IntoIterator<Item = Predecessor>,
    is_dead: impl Fn(&str) -> bool,
) -> Vec<Predecessor> {
    let mut kept: Vec<Predecessor> = Vec::new();
    for mut predecessor in before {
        for slot in &mut predecessor.table.slots {
            slot.holder.take_if(|holder| is_dead(&holder.uid));
        }
        let gives = ownership(&predecessor.table);
        let known = gives == ownership(current) || kept.iter().any(|k| gives == ownership(&k.table));
        if !gives.1.is_empty() && !known {
            kept.push(predecessor);
        }
    }
    kept
}

/// The same tables as if some slots had been vacant: where keys are that went to their next-best slots meanwhile.
pub fn without<'a>(
    tables: impl IntoIterator<Item = &'a Predecessor>,
    absent: &BTreeSet<SlotId>,
) -> impl Iterator<Item = Predecessor> {
    tables.into_iter().cloned().map(|mut predecessor| {
        let absent = predecessor.table.slots.iter_mut().filter(|slot| absent.contains(&slot.id));
        absent.for_each(|slot| slot.holder = None);
        predecessor
    })
}

/// A held slot: its weight, its holder's UID, and the address where that is hashed.
type Held<'a> = (SlotId, u8, &'a str, Option<&'a str>);

/// What decides who owns a key.
fn ownership(table: &Table) -> (&KeyHasher, Vec<Held<'_>>) {
    let held = table.slots.iter().filter_map(|slot| {
        let holder = slot.holder.as_ref()?;
        // An ingress hashes addresses.
        let hashed = matches!(table.hasher, KeyHasher::Agreed(_)).then_some(holder.address.as_str());
        Some((slot.id, slot.weight, holder.uid.as_str(), hashed))
    });
    let mut held: Vec<_> = held.collect();
    held.sort_unstable();
    (&table.hasher, held)
}

#[cfg(test)]
mod tests {
    use ring::{Holder, Slot, Version};

    use super::*;

    fn table(holders: &[(u32, &str)]) -> Table {
        let holder = |uid: &str| Holder { name: uid.into(), uid: uid.into(), address: "127.0.0.1:1".into() };
        let slot = |&(id, uid): &(u32, &str)| Slot { id: SlotId(id), weight: 1, holder: Some(holder(uid).into()) };
        Table { hasher: KeyHasher::Xxh64, slots: holders.iter().map(slot).collect() }
    }

    fn old(epoch: u64, holders: &[(u32, &str)]) -> Predecessor {
        Predecessor { version: Version { term: 1, epoch }, table: table(holders) }
    }

    fn epochs(kept: &[Predecessor]) -> Vec<u64> {
        kept.iter().map(|p| p.version.epoch).collect()
    }

    #[test]
    fn a_slot_that_changed_hands_between_living_members_leaves_a_predecessor() {
        let kept = predecessors(&table(&[(0, "a"), (1, "c")]), [old(1, &[(0, "a"), (1, "b")])], |_| false);
        assert_eq!(epochs(&kept), [1]);
    }

    #[test]
    fn a_crash_leaves_no_predecessor() {
        let kept = predecessors(&table(&[(0, "a")]), [old(1, &[(0, "a"), (1, "b")])], |uid| uid == "b");
        assert!(kept.is_empty());
    }

    #[test]
    fn after_a_restart_keys_are_claimed_from_where_they_fell_back_to() {
        let kept = predecessors(&table(&[(0, "a"), (1, "b2")]), [old(1, &[(0, "a"), (1, "b")])], |uid| uid == "b");
        assert_eq!(epochs(&kept), [1]);
        assert_eq!(kept[0].table.slots[1].holder, None);
    }

    #[test]
    fn an_absent_holder_gives_its_keys_to_the_next_best() {
        let tables = [old(1, &[(0, "a"), (1, "b")])];
        let meanwhile: Vec<_> = without(&tables, &BTreeSet::from([SlotId(1)])).collect();
        assert_eq!(epochs(&predecessors(&tables[0].table, meanwhile, |_| false)), [1]);
        assert!(predecessors(&tables[0].table, without(&tables, &BTreeSet::new()), |_| false).is_empty());
    }

    #[test]
    fn tables_that_say_the_same_are_listed_once_and_empty_ones_never() {
        let now = table(&[(0, "a")]);
        let before = [old(4, &[(0, "a"), (1, "b")]), old(3, &[(0, "a")]), old(2, &[(0, "a"), (1, "b")]), old(1, &[])];
        assert_eq!(epochs(&predecessors(&now, before, |_| false)), [4]);
    }
}

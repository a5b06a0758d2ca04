//! Owners: the vectors of `hrw-v1`, the least possible moves, and the balance.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ring::rendezvous::{MAX_WEIGHT, Rendezvous, mix, score, ticket_seed};
use ring::{KeyHash, KeyHasher, SlotId};

const KEYS: u32 = 100_000;

fn first_slots(n: u32) -> Rendezvous {
    Rendezvous::new((0..n).map(|slot| (SlotId(slot), 1)))
}

fn hash(key: &str) -> KeyHash {
    KeyHasher::Xxh64.hash(key.as_bytes())
}

/// A user's keys in one of several pools: each pool is another sample.
fn hashes(pool: u32) -> impl Iterator<Item = KeyHash> {
    (0..KEYS).map(move |user| hash(&format!("pool-{pool}/user-{user}")))
}

/// Sets of slots: ids anywhere, weights mostly 1.
fn sets() -> impl Strategy<Value = BTreeMap<u32, u8>> {
    let id = prop_oneof![4 => 0..40_u32, 1 => any::<u32>()];
    let weight = prop_oneof![3 => Just(1), 1 => 1..=MAX_WEIGHT];
    proptest::collection::btree_map(id, weight, 0..20)
}

fn build(set: &BTreeMap<u32, u8>) -> Rendezvous {
    Rendezvous::new(set.iter().map(|(slot, weight)| (SlotId(*slot), *weight)))
}

/// The definition, word for word: the highest score of any ticket wins, and the lowest slot breaks ties.
fn owner_by_definition(set: &BTreeMap<u32, u8>, key: KeyHash) -> Option<SlotId> {
    let best = |(slot, weight): (&u32, &u8)| {
        let scores = (0..u32::from(*weight)).map(|ticket| score(key, ticket_seed(SlotId(*slot), ticket)));
        (scores.max(), std::cmp::Reverse(*slot))
    };
    set.iter().map(best).max().map(|(_, slot)| SlotId(slot.0))
}

#[test]
fn seeds_and_scores_agree_with_the_vectors() {
    assert_eq!(mix(1), 0x3c02_aa47_7582_92bd);
    assert_eq!(ticket_seed(SlotId(0), 0), 0x34c9_6acd_cadb_1bbb);
    assert_eq!(ticket_seed(SlotId(1), 0), 0x9f29_cb17_a2a4_9995);
    assert_eq!(ticket_seed(SlotId(9), 0), 0xb10c_404a_145d_c98c);
}

#[test]
fn owners_agree_with_the_vectors() {
    let of_ten = [("", 6), ("a", 8), ("user-1", 7), ("user-2", 4), ("user-3", 2), ("user-42", 4)];
    let of_three = [("user-1", 1), ("user-2", 0), ("user-3", 2)];
    for (n, owners) in [(10, &of_ten[..]), (3, &of_three[..])] {
        for (key, slot) in owners {
            assert_eq!(first_slots(n).owner(hash(key)), Some(SlotId(*slot)), "{key:?} among {n}");
        }
    }
}

#[test]
fn a_slot_named_twice_counts_once() {
    let twice = Rendezvous::new([(SlotId(3), 1), (SlotId(7), 2), (SlotId(3), 1)]);
    assert_eq!(twice, Rendezvous::new([(SlotId(7), 2), (SlotId(3), 1)]));
}

#[test]
fn one_more_slot_moves_the_minimum_within_3_percent() {
    const POOLS: u32 = 10; // So that chance alone stays well below 3 %.
    for n in [3, 10, 50] {
        let (old, new) = (first_slots(n), first_slots(n + 1));
        let differs = |key| old.owner(key) != new.owner(key);
        let moved: u32 = (0..POOLS).flat_map(hashes).map(|key| u32::from(differs(key))).sum();
        let minimum = f64::from(POOLS * KEYS) / f64::from(n + 1);
        let ratio = f64::from(moved) / minimum;
        assert!((0.97..=1.03).contains(&ratio), "{n} slots: {ratio:.3} of the minimum");
    }
}

/// The fullest slot is near what chance allows: `z` is the expected maximum of n normal deviates.
#[test]
fn the_fullest_slot_is_as_full_as_chance_makes_it() {
    for (n, z) in [(3, 0.85), (10, 1.54), (50, 2.25), (200, 2.75)] {
        let ring = first_slots(n);
        let mut counts = BTreeMap::<SlotId, u32>::new();
        for key in hashes(0) {
            *counts.entry(ring.owner(key).expect("there are slots")).or_default() += 1;
        }
        let (n, keys) = (f64::from(n), f64::from(KEYS));
        let fullest = counts.values().max().copied().map_or(0.0, f64::from) / (keys / n);
        let limit = 1.0 + 1.5 * z * (n / keys).sqrt();
        assert!(fullest <= limit, "{n} slots: {fullest:.4} of the mean, at most {limit:.4}");
    }
}

#[test]
fn a_slot_gets_keys_in_proportion_to_its_weight() {
    let ring = Rendezvous::new([(SlotId(0), 1), (SlotId(1), 3)]);
    let heavy: u32 = hashes(0).map(|key| u32::from(ring.owner(key) == Some(SlotId(1)))).sum();
    let share = f64::from(heavy) / f64::from(KEYS);
    assert!((0.74..=0.76).contains(&share), "{share:.3} of the keys");
}

proptest! {
    #[test]
    fn the_owner_is_the_one_that_the_definition_gives(set in sets(), key in any::<u64>()) {
        let key = KeyHash(key);
        prop_assert_eq!(build(&set).owner(key), owner_by_definition(&set, key));
    }

    #[test]
    fn an_added_slot_takes_keys_and_no_other_gets_any(set in sets(), added in any::<u32>(), keys in any::<[u64; 32]>()) {
        let mut larger = set.clone();
        larger.entry(added).or_insert(1);
        let (old, new) = (build(&set), build(&larger));
        for key in keys.map(KeyHash) {
            let owner = new.owner(key);
            prop_assert!(owner == old.owner(key) || owner == Some(SlotId(added)));
        }
    }

    #[test]
    fn a_removed_slot_loses_its_keys_and_no_other_loses_any(
        set in sets(), index in any::<prop::sample::Index>(), keys in any::<[u64; 32]>(),
    ) {
        prop_assume!(!set.is_empty());
        let removed = *index.get(&set.keys().copied().collect::<Vec<_>>());
        let mut smaller = set.clone();
        smaller.remove(&removed);
        let (old, new) = (build(&set), build(&smaller));
        for key in keys.map(KeyHash) {
            let moved = old.owner(key) != new.owner(key);
            prop_assert_eq!(moved, old.owner(key) == Some(SlotId(removed)));
        }
    }

    #[test]
    fn ranked_starts_with_the_owner_and_holds_every_slot_once(set in sets(), key in any::<u64>()) {
        let (ring, key) = (build(&set), KeyHash(key));
        let ranked = ring.ranked(key);
        prop_assert_eq!(ranked.first().copied(), ring.owner(key));
        prop_assert_eq!(ranked.len(), set.len());
        prop_assert_eq!(ranked.into_iter().collect::<BTreeSet<_>>(), set.keys().copied().map(SlotId).collect());
    }

    #[test]
    fn the_next_best_slot_owns_the_key_when_the_owner_is_gone(set in sets(), key in any::<u64>()) {
        let mut left = set;
        for slot in build(&left).ranked(KeyHash(key)) {
            prop_assert_eq!(build(&left).owner(KeyHash(key)), Some(slot));
            left.remove(&slot.0);
        }
    }

    #[test]
    fn a_set_tells_its_slots_and_weights(set in sets(), stranger in any::<u32>()) {
        let ring = build(&set);
        let slots: BTreeMap<u32, u8> = ring.slots().map(|(slot, weight)| (slot.0, weight)).collect();
        prop_assert_eq!(&slots, &set);
        prop_assert_eq!(ring.weight(SlotId(stranger)), set.get(&stranger).copied().unwrap_or(0));
        prop_assert_eq!(ring.is_empty(), set.is_empty());
    }

    #[test]
    fn the_owner_scores_as_much_as_any_slot(set in sets(), key in any::<u64>(), stranger in any::<u32>()) {
        let (ring, key) = (build(&set), KeyHash(key));
        let scores: Vec<_> = set.keys().map(|slot| ring.score_of(key, SlotId(*slot))).collect();
        prop_assert!(scores.iter().all(Option::is_some));
        let best = ring.owner(key).and_then(|owner| ring.score_of(key, owner));
        prop_assert_eq!(best, scores.into_iter().flatten().max());
        prop_assert_eq!(ring.score_of(key, SlotId(stranger)).is_some(), set.contains_key(&stranger));
    }
}

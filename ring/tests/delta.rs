//! A delta gives held keys the owners that a full look-up would give.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ring::delta::Delta;
use ring::rendezvous::{MAX_WEIGHT, Rendezvous};
use ring::{KeyHash, Owners, SlotId};

/// Sets of slots that overlap when two are drawn: few ids, and one range far away.
fn sets(least: usize) -> impl Strategy<Value = BTreeMap<u32, u8>> {
    let id = prop_oneof![4 => 0..16_u32, 1 => u32::MAX - 4..=u32::MAX];
    let weight = prop_oneof![3 => Just(1), 1 => 1..=MAX_WEIGHT];
    proptest::collection::btree_map(id, weight, least..12)
}

fn build(set: &BTreeMap<u32, u8>) -> Owners {
    Rendezvous::new(set.iter().map(|(slot, weight)| (SlotId(*slot), *weight))).into()
}

proptest! {
    #[test]
    fn a_held_key_gets_the_owner_that_a_full_look_up_gives(
        old in sets(1), new in sets(0), keys in any::<[u64; 32]>(),
    ) {
        let (old, new) = (build(&old), build(&new));
        let delta = Delta::between(&old, &new);
        for key in keys.map(KeyHash) {
            let held_by = old.owner(key).expect("there is a slot");
            prop_assert_eq!(delta.owner(key, held_by), new.owner(key));
        }
    }

    #[test]
    fn owners_stay_right_over_any_number_of_changes(
        sets in proptest::collection::vec(sets(1), 2..8), keys in any::<[u64; 32]>(),
    ) {
        let rings: Vec<_> = sets.iter().map(build).collect();
        for key in keys.map(KeyHash) {
            let mut owner = rings[0].owner(key).expect("there is a slot");
            for pair in rings.windows(2) {
                owner = Delta::between(&pair[0], &pair[1]).owner(key, owner).expect("there is a slot");
            }
            prop_assert_eq!(Some(owner), rings[rings.len() - 1].owner(key));
        }
    }
}

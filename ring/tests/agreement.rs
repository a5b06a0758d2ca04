//! The hashes of ingresses, against vectors that were taken from the programs themselves.
//!
//! The vectors: servers 127.0.1.1 to 127.0.1.10, all at port 9000, and the last octet of the one that owned `user-1`,
//! `user-2` and so on at nginx 1.22.1, ingress-nginx's own Lua, Envoy 1.40, and HAProxy 2.6 and 3.5-dev5.
//! `tests/golden` has many more, and `tests/tests/agreement` asks the programs again.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ring::agreement::{Agreement, AgreementError, HashKey};
use ring::placement::{PlacementError, Predecessor, Table};
use ring::{Holder, KeyHasher, Owners, Placement, Slot, SlotId, Version};

const ENVOY_RING: Agreement = Agreement::EnvoyRing { minimum_ring_size: 1_024 };
const ENVOY_MAGLEV: Agreement = Agreement::EnvoyMaglev { table_size: 65_537 };
const HAPROXY: Agreement = Agreement::HAProxy { hash_key: HashKey::Id, weight: 1 };
const ALL: [Agreement; 5] = [Agreement::NginxKetama, Agreement::IngressNginx, ENVOY_RING, ENVOY_MAGLEV, HAPROXY];

fn slot(id: u32, weight: u8, address: &str) -> Slot {
    Slot {
        id: SlotId(id),
        weight,
        holder: Some(Holder { name: format!("h{id}"), uid: format!("u{id}"), address: address.to_owned() }.into()),
    }
}

/// Slot 0 at 127.0.1.1 and so on.
fn slots(ids: impl IntoIterator<Item = u32>) -> Vec<Slot> {
    ids.into_iter().map(|id| slot(id, 1, &format!("127.0.1.{}:9000", id + 1))).collect()
}

fn owner(agreement: Agreement, owners: &Owners, key: &str) -> SlotId {
    owners.owner(agreement.hash(key.as_bytes())).expect("an owner")
}

#[test]
fn owners_are_those_of_the_programs() {
    for (agreement, octets) in [
        (Agreement::NginxKetama, [3, 6, 1, 5, 9, 8, 10, 8]),
        (Agreement::IngressNginx, [10, 9, 1, 6, 9, 6, 7, 3]),
        (ENVOY_RING, [3, 4, 4, 8, 8, 6, 1, 9]),
        (ENVOY_MAGLEV, [7, 9, 2, 4, 1, 8, 3, 2]),
        (HAPROXY, [5, 9, 3, 5, 3, 2, 9, 1]),
        (Agreement::HAProxy { hash_key: HashKey::AddrPort, weight: 128 }, [6, 1, 5, 3, 5, 1, 6, 8]),
    ] {
        let owners = agreement.owners(&slots(0..10));
        let answers = (1..=8).map(|user| owner(agreement, &owners, &format!("user-{user}")).0 + 1);
        assert_eq!(answers.collect::<Vec<_>>(), octets, "{agreement:?}");
    }
}

#[test]
fn a_slot_without_a_holder_owns_nothing() {
    let mut all = slots(0..10);
    for slot in &mut all[3..] {
        slot.holder = None;
    }
    for agreement in ALL {
        let (vacant, absent) = (agreement.owners(&all), agreement.owners(&slots(0..3)));
        assert_eq!(vacant, absent, "{agreement:?}");
        let hash = agreement.hash(b"user-1");
        assert_eq!(agreement.owners(&[]).owner(hash), None, "{agreement:?}");
        assert_eq!(agreement.owners(&[]).ranked(hash), [], "{agreement:?}");
    }
}

#[test]
fn the_next_best_slots_are_all_slots_once_and_the_owner_first() {
    for agreement in ALL {
        let owners = agreement.owners(&slots(0..10));
        for user in 0..500 {
            let hash = agreement.hash(format!("user-{user}").as_bytes());
            let ranked = owners.ranked(hash);
            assert_eq!(ranked.first().copied(), owners.owner(hash), "{agreement:?}");
            assert_eq!(ranked.iter().collect::<BTreeSet<_>>().len(), 10, "{agreement:?}: {ranked:?}");
        }
    }
}

/// So a client of a server that is gone meets the one to which the ingress sends it.
#[test]
fn on_a_circle_the_next_best_is_who_owns_the_key_without_the_owner() {
    for agreement in [Agreement::NginxKetama, Agreement::IngressNginx, HAPROXY] {
        let owners = agreement.owners(&slots(0..10));
        for user in 0..500 {
            let hash = agreement.hash(format!("user-{user}").as_bytes());
            let ranked = owners.ranked(hash);
            for gone in 1..4 {
                let rest = agreement.owners(&slots((0..10).filter(|id| !ranked[..gone].contains(&SlotId(*id)))));
                assert_eq!(rest.owner(hash), Some(ranked[gone]), "{agreement:?}");
            }
        }
    }
}

#[test]
fn shares_follow_weights() {
    let weighted: Vec<Slot> =
        (0..4).map(|id| slot(id, [1, 2, 4, 8][id as usize], &format!("10.0.0.{id}:80"))).collect();
    for agreement in ALL {
        let owners = agreement.owners(&weighted);
        let mut counts = BTreeMap::<u32, u32>::new();
        for user in 0..30_000 {
            *counts.entry(owner(agreement, &owners, &format!("user-{user}")).0).or_default() += 1;
        }
        let counts: Vec<u32> = counts.into_values().collect();
        assert!(counts.is_sorted() && counts[3] > 13_000 && counts[0] < 4_000, "{agreement:?}: {counts:?}");
    }
}

#[test]
fn what_a_program_cannot_be_configured_with_is_refused() {
    for (agreement, weight, says) in [
        (Agreement::EnvoyRing { minimum_ring_size: 0 }, 1, "minimumRingSize is 0; write 1 to 131072"),
        (Agreement::EnvoyRing { minimum_ring_size: 131_073 }, 1, "minimumRingSize is 131073; write 1 to 131072"),
        (Agreement::EnvoyMaglev { table_size: 1 }, 1, "tableSize is 1; write a prime number from 2 to 1048573"),
        (Agreement::EnvoyMaglev { table_size: 65_536 }, 1, "tableSize is 65536; write a prime number"),
        (Agreement::EnvoyMaglev { table_size: 1_046_529 }, 1, "tableSize is 1046529; write a prime number"),
        (Agreement::EnvoyMaglev { table_size: 1_048_583 }, 1, "tableSize is 1048583; write a prime number"),
        (
            Agreement::HAProxy { hash_key: HashKey::Id, weight: 128 },
            3,
            "weight 3 times haproxy.weight 128 is no weight",
        ),
        (Agreement::HAProxy { hash_key: HashKey::Id, weight: 0 }, 1, "weight 1 times haproxy.weight 0 is no weight"),
    ] {
        let table = Table { hasher: KeyHasher::Agreed(agreement), slots: vec![slot(7, weight, "10.0.0.1:80")] };
        let refused = Placement { pool_uid: "p".into(), table, ..Placement::default() }.compile().unwrap_err();
        assert!(matches!(refused, PlacementError::Agreement(_)), "{refused}");
        assert!(refused.to_string().starts_with(says), "{refused}");
    }
    let all = Agreement::HAProxy { hash_key: HashKey::Id, weight: 128 };
    assert_eq!(all.check([1, 2]), Ok(()));
    assert_eq!(all.check([1, 3]), Err(AgreementError::Weight(3, 128)));
}

#[test]
fn a_placement_says_which_ingress_it_agrees_with() {
    for (agreement, json) in [
        (Agreement::NginxKetama, r#"{"agreed":"nginxKetama"}"#),
        (ENVOY_RING, r#"{"agreed":{"envoyRing":{"minimumRingSize":1024}}}"#),
        (ENVOY_MAGLEV, r#"{"agreed":{"envoyMaglev":{"tableSize":65537}}}"#),
        (HAPROXY, r#"{"agreed":{"haproxy":{"hashKey":"Id","weight":1}}}"#),
    ] {
        let hasher = KeyHasher::Agreed(agreement);
        assert_eq!(serde_json::to_string(&hasher).unwrap(), json);
        assert_eq!(serde_json::from_str::<KeyHasher>(json).unwrap(), hasher);
    }
}

proptest! {
    /// Of nginx and HAProxy: Envoy's ring and its Maglev move a few more.
    #[test]
    fn a_circle_gives_a_new_slot_keys_and_takes_them_from_a_removed_one_and_moves_no_others(
        ids in proptest::collection::btree_set(0..30_u32, 1..8), changed in 0..30_u32, users in any::<[u16; 16]>(),
    ) {
        for agreement in [Agreement::NginxKetama, Agreement::IngressNginx, HAPROXY] {
            let without = agreement.owners(&slots(ids.iter().copied().filter(|id| *id != changed)));
            let with = agreement.owners(&slots(ids.iter().copied().chain([changed]).collect::<BTreeSet<_>>()));
            for user in users {
                let hash = agreement.hash(format!("user-{user}").as_bytes());
                let after = with.owner(hash);
                prop_assert!(after == without.owner(hash) || after == Some(SlotId(changed)));
            }
        }
    }

    /// Also when the algorithm itself changes.
    #[test]
    fn a_key_is_claimed_from_the_holder_that_the_table_before_gave_it_to(
        before in 0..ALL.len(), now in 0..ALL.len(), user in any::<u16>(),
    ) {
        let table = |which: usize, ids| Table { hasher: KeyHasher::Agreed(ALL[which]), slots: slots(ids) };
        let (old, new) = (table(before, 0..4), table(now, 0..5));
        let placement = Placement {
            pool_uid: "p".into(),
            version: Version { term: 1, epoch: 2 },
            table: new,
            predecessors: vec![Predecessor { version: Version { term: 1, epoch: 1 }, table: old.clone() }],
            ..Placement::default()
        };
        let compiled = placement.compile().unwrap();
        let key = format!("user-{user}");
        let was = Owners::new(&old.hasher, &old.slots).owner(old.hasher.hash(key.as_bytes())).unwrap();
        let is = compiled.ring().owner(compiled.hash(&key)).unwrap();
        let previous: Vec<_> = compiled.previous_holders(&key).into_iter().map(|holder| holder.uid.clone()).collect();
        prop_assert_eq!(previous, if was == is { vec![] } else { vec![format!("u{}", was.0)] });
    }
}

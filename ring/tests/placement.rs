//! Placements: what is refused, what is asked, and how they are written.

use proptest::prelude::*;
use ring::hash::SipKey;
use ring::placement::{MAX_PREDECESSORS, PlacementError, Predecessor, Table};
use ring::rendezvous::MAX_WEIGHT;
use ring::{Compiled, Holder, KeyHasher, Placement, Slot, SlotId, Version};
use serde_json::json;

fn version(epoch: u64) -> Version {
    Version { term: 1, epoch }
}

fn holder(name: &str) -> Holder {
    Holder { name: name.into(), uid: format!("uid-of-{name}"), address: format!("{name}:7480") }
}

fn slot(id: u32, name: &str) -> Slot {
    Slot { id: SlotId(id), weight: 1, holder: (!name.is_empty()).then(|| holder(name).into()) }
}

/// A table with these holders; no name means no holder.
fn table(names: &[&str]) -> Table {
    let slots = (0..).zip(names).map(|(id, name)| slot(id, name)).collect();
    Table { slots, ..Table::default() }
}

fn placement(table: Table) -> Placement {
    Placement { pool_uid: "pool-1".into(), version: version(9), table, ..Placement::default() }
}

/// The current holders, and those before, the newest first.
fn moving(now: &[&str], before: &[&[&str]]) -> Compiled {
    let predecessors =
        (1..).zip(before).map(|(age, names)| Predecessor { version: version(9 - age), table: table(names) });
    let moving = Placement { predecessors: predecessors.collect(), ..placement(table(now)) };
    moving.compile().expect("a placement that is right")
}

fn refusal(placement: Placement) -> PlacementError {
    placement.compile().expect_err("a placement that is wrong")
}

fn previous(compiled: &Compiled, key: &str) -> Vec<String> {
    compiled.previous_holders(key).into_iter().map(|holder| holder.name.clone()).collect()
}

#[test]
fn a_slot_listed_twice_is_refused() {
    let twice = Table { slots: vec![slot(4, "a"), slot(4, "b")], ..Table::default() };
    assert_eq!(refusal(placement(twice)), PlacementError::DuplicateSlot(SlotId(4)));
}

#[test]
fn a_pod_that_holds_two_slots_is_refused() {
    assert_eq!(refusal(placement(table(&["a", "b", "a"]))), PlacementError::DuplicateHolder("a".into()));
}

#[test]
fn a_weight_out_of_range_is_refused() {
    for weight in [0, MAX_WEIGHT + 1] {
        let heavy = Table { slots: vec![Slot { weight, ..slot(2, "a") }], ..Table::default() };
        assert_eq!(refusal(placement(heavy)), PlacementError::Weight(SlotId(2), weight));
    }
}

#[test]
fn more_predecessors_than_a_placement_may_list_are_refused() {
    let predecessor = Predecessor { version: version(1), table: Table::default() };
    let long = |n| Placement { predecessors: vec![predecessor.clone(); n], ..placement(table(&["a"])) };
    assert_eq!(refusal(long(MAX_PREDECESSORS + 1)), PlacementError::Predecessors(MAX_PREDECESSORS + 1));
    assert!(long(MAX_PREDECESSORS).compile().is_ok());
}

#[test]
fn a_predecessor_that_is_not_older_is_refused() {
    let predecessor = Predecessor { version: version(9), table: Table::default() };
    let wrong = Placement { predecessors: vec![predecessor], ..placement(table(&["a"])) };
    assert_eq!(refusal(wrong), PlacementError::PredecessorVersion(version(9), version(9)));
}

#[test]
fn a_predecessor_is_checked_like_the_table_itself() {
    let predecessor = Predecessor { version: version(8), table: table(&["a", "a"]) };
    let wrong = Placement { predecessors: vec![predecessor], ..placement(table(&["a"])) };
    assert_eq!(refusal(wrong), PlacementError::DuplicateHolder("a".into()));
}

#[test]
fn an_address_that_cannot_be_dialled_is_refused_wherever_it_stands() {
    for address in
        ["", "a", ":80", "a:", "a:0", "a:65536", "a:+80", "a b:80", "a\r\n:80", "http://a:80", "::1:80", "[a]:80"]
    {
        let wrong = Holder { address: address.into(), ..holder("a") };
        let refused = PlacementError::Address("a".into(), address.into());
        let held =
            Table { slots: vec![Slot { holder: Some(wrong.clone().into()), ..slot(0, "") }], ..Table::default() };
        assert_eq!(refusal(placement(held)), refused);
        assert_eq!(refusal(Placement { others: vec![wrong], ..placement(table(&["b"])) }), refused);
    }
    for address in ["127.0.0.1:8000", "[::1]:8000", "chat-0.chat.default.svc:7480", "my_host:1"] {
        let others = vec![Holder { address: address.into(), ..holder("a") }];
        assert!(Placement { others, ..placement(table(&["b"])) }.compile().is_ok(), "{address}");
    }
}

#[test]
fn a_placement_for_no_pool_is_refused() {
    assert_eq!(refusal(Placement { pool_uid: String::new(), ..placement(table(&["a"])) }), PlacementError::NoPool);
}

#[test]
fn every_refusal_says_what_is_wrong_and_what_would_be_right() {
    for (error, words) in [
        (PlacementError::DuplicateSlot(SlotId(4)), ["slot 4", "once"]),
        (PlacementError::DuplicateHolder("a".into()), ["pod a", "at most one"]),
        (PlacementError::Weight(SlotId(2), 65), ["weight 65", "1 to 64"]),
        (PlacementError::Predecessors(9), ["9 predecessors", "at most 8"]),
        (PlacementError::PredecessorVersion(version(9), version(8)), ["term 1 epoch 9", "not older"]),
        (PlacementError::Address("a".into(), "b".into()), ["\"b\"", "host:port"]),
        (PlacementError::NoPool, ["poolUid", "empty"]),
    ] {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn versions_are_ordered_by_term_and_then_by_epoch() {
    let ordered = [(1, 7), (1, 8), (2, 1), (2, 8)].map(|(term, epoch)| Version { term, epoch });
    assert!(ordered.is_sorted());
}

#[test]
fn a_slot_without_a_holder_owns_nothing() {
    let compiled = moving(&["a", "", "c"], &[]);
    assert_eq!(compiled.holders().map(|holder| holder.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(compiled.holder(SlotId(1)), None);
    // Among three slots it would belong to slot 1.
    let owner = compiled.ring().owner(compiled.hash("user-1"));
    assert!(owner == Some(SlotId(0)) || owner == Some(SlotId(2)));
}

#[test]
fn a_pod_is_recognised_by_its_uid_alone() {
    let compiled = moving(&["a", "b"], &[]);
    assert_eq!(compiled.slot_of("uid-of-b"), Some(SlotId(1)));
    assert_eq!(compiled.slot_of("b"), None);
}

/// By the vectors, user-1 belongs to slot 1 of 3.
#[test]
fn the_previous_holders_are_all_that_the_predecessors_name_but_the_owner() {
    for (now, before, asked) in [
        (["a", "b", "c"], &[][..], &[][..]),
        (["a", "x", "c"], &[&["a", "b", "c"][..]], &["b"]),
        (["a", "y", "c"], &[&["a", "x", "c"], &["a", "b", "c"]], &["x", "b"]),
        (["a", "b", "c"], &[&["a", "x", "c"], &["a", "b", "c"]], &["x"]),
        (["a", "y", "c"], &[&["a", "x", "c"], &["a", "b", "c"], &["a", "x", "c"]], &["x", "b"]),
        (["x", "b", "c"], &[&["a", "b", "c"]], &[]),
        (["", "", ""], &[&["a", "b", "c"]], &["b"]),
        (["a", "b", "c"], &[&["", "", ""]], &[]),
    ] {
        let compiled = moving(&now, before);
        assert_eq!(previous(&compiled, "user-1"), asked, "{now:?} after {before:?}");
        assert_eq!(compiled.moving(), !before.is_empty());
    }
}

#[test]
fn a_predecessor_hashes_keys_in_its_own_way() {
    let secret = SipKey::try_from("00".repeat(16)).expect("32 digits");
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let keyed = Table { hasher: KeyHasher::SipHash24(secret.clone()), ..table(&names) };
    let predecessors = vec![Predecessor { version: version(8), table: table(&names) }];
    let now = Placement { predecessors, ..placement(keyed) }.compile().expect("right");
    let then = placement(table(&names)).compile().expect("right");

    let mut moved = 0;
    for user in 0..100 {
        let key = format!("user-{user}");
        let owner_of = |compiled: &Compiled| {
            let slot = compiled.ring().owner(compiled.hash(&key)).expect("there are slots");
            compiled.holder(slot).expect("all are held").name.clone()
        };
        let asked: Vec<_> = Some(owner_of(&then)).filter(|name| *name != owner_of(&now)).into_iter().collect();
        moved += asked.len();
        assert_eq!(previous(&now, &key), asked);
    }
    assert!(moved > 50, "another hasher moves most keys: {moved} of 100");
}

#[test]
fn a_placement_reads_what_it_needs_and_supplies_the_rest() {
    let text = json!({
        "pool": "chat",
        "poolUid": "pool-1",
        "term": 2,
        "epoch": 7,
        "slots": [
            {"id": 0, "holder": {"name": "a", "uid": "u", "address": "a:7480"}},
            {"id": 5, "weight": 3, "holder": null},
        ],
        "predecessors": [{"term": 1, "epoch": 6, "hasher": {"sipHash24": "00".repeat(16)}, "slots": [{"id": 5}]}],
        "added in a later release": {},
    });
    let read: Placement = serde_json::from_value(text).expect("it reads");
    assert_eq!(read.version, Version { term: 2, epoch: 7 });
    assert_eq!(read.table.hasher, KeyHasher::Xxh64);
    assert_eq!(read.table.slots[0].weight, 1);
    assert_eq!(read.table.slots[1], Slot { weight: 3, ..slot(5, "") });
    assert_eq!(read.predecessors[0].version, version(6));
    assert!(matches!(read.predecessors[0].table.hasher, KeyHasher::SipHash24(_)));
    assert_eq!(read.predecessors[0].table.slots, [slot(5, "")]);
    assert_eq!(read.settings, ring::settings::Settings::default());
}

#[test]
fn a_predecessor_is_written_as_what_differs_from_the_table_in_force() {
    let moving = moving(&["a", "b", "c"], &[&["a", "x"], &["y", "x"]]);
    let written = serde_json::to_value(moving.placement()).expect("it writes");
    let slots = |table: usize| written["predecessors"][table]["slots"].as_array().map(Vec::len);
    assert_eq!((slots(0), slots(1)), (Some(1), Some(1)), "{written}");
    assert_eq!(written["predecessors"][0]["without"], json!([2]));
    assert_eq!(&serde_json::from_value::<Placement>(written).expect("it reads"), moving.placement());
}

#[test]
fn a_placement_without_its_version_or_its_slots_is_refused_by_name() {
    let whole = serde_json::to_value(placement(table(&["a"]))).expect("it writes");
    for field in ["pool", "poolUid", "term", "epoch", "slots"] {
        let mut part = whole.clone();
        part.as_object_mut().expect("an object").remove(field);
        let error = serde_json::from_value::<Placement>(part).expect_err(field).to_string();
        assert!(error.contains(field), "{error}");
    }
}

fn holders() -> impl Strategy<Value = Holder> {
    ("[a-z]{1,8}", "[0-9a-f]{8}", 1..=u16::MAX).prop_map(|(name, uid, port)| {
        let address = format!("{name}:{port}");
        Holder { name, uid, address }
    })
}

fn tables() -> impl Strategy<Value = Table> {
    let slot = (any::<u32>(), 1..=MAX_WEIGHT, proptest::option::of(holders()));
    let slots = proptest::collection::vec(slot, 0..6);
    let hasher = prop_oneof![
        Just(KeyHasher::Xxh64),
        "[0-9a-f]{32}".prop_map(|text| KeyHasher::SipHash24(text.try_into().expect("32 digits"))),
    ];
    (hasher, slots).prop_map(|(hasher, slots)| {
        let slots = slots
            .into_iter()
            .map(|(id, weight, holder)| Slot { id: SlotId(id), weight, holder: holder.map(Into::into) })
            .collect();
        Table { hasher, slots }
    })
}

fn versions() -> impl Strategy<Value = Version> {
    (any::<u64>(), any::<u64>()).prop_map(|(term, epoch)| Version { term, epoch })
}

proptest! {
    #[test]
    fn every_placement_survives_being_written(
        version in versions(),
        table in tables(),
        before in proptest::collection::vec((versions(), tables()), 0..4),
        others in proptest::collection::vec(holders(), 0..3),
    ) {
        let predecessors = before.into_iter().map(|(version, table)| Predecessor { version, table }).collect();
        let written = Placement { version, predecessors, others, ..placement(table) };
        let text = serde_json::to_string(&written).expect("it writes");
        prop_assert_eq!(serde_json::from_str::<Placement>(&text).expect("it reads"), written);
    }
}

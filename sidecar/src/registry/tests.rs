use std::time::{Duration, Instant};

use ring::placement::{Predecessor, Slot, Table};
use ring::settings::{Settings, Strategy};
use ring::{Holder, Placement, Version};

use super::*;
use crate::message::Message;

fn peer(uid: &str) -> Peer {
    Peer { uid: uid.into(), address: format!("{uid}:1") }
}

fn table(holders: &[&str]) -> Table {
    let slots = holders.iter().enumerate().map(|(id, uid)| Slot {
        id: SlotId(u32::try_from(id).unwrap()),
        weight: 1,
        holder: Some(Holder { name: (*uid).into(), uid: (*uid).into(), address: format!("{uid}:1") }.into()),
    });
    Table { slots: slots.collect(), ..Table::default() }
}

/// A placement under an epoch, with the tables before it, newest first.
pub(super) fn placement(epoch: u64, holders: &[&str], before: &[(u64, &[&str])]) -> Arc<Compiled> {
    let predecessors = before
        .iter()
        .map(|(epoch, holders)| Predecessor { version: Version { term: 1, epoch: *epoch }, table: table(holders) });
    let placement = Placement {
        pool: "chat".into(),
        pool_uid: "pool".into(),
        version: Version { term: 1, epoch },
        table: table(holders),
        predecessors: predecessors.collect(),
        ..Placement::default()
    };
    Arc::new(placement.compile().unwrap())
}

/// The sidecar `a`, alone in its pool, with one connection of each key.
pub(super) fn holding(keys: u32) -> (Registry, Vec<(String, ConnectionId)>) {
    let mut registry = Registry::new(View::new(peer("a"), Settings::default()));
    registry.place(&placement(1, &["a"], &[]));
    let held = (0..keys).map(|n| {
        let key = format!("user-{n}");
        let Admission::Seated(seat) = registry.enter(&key, Arrival::Owner, None) else { panic!("{key} is ours") };
        let (id, _) = registry.register(&seat, Arc::new(Link::new()), false);
        (key, id)
    });
    let held = held.collect();
    (registry, held)
}

/// The placement of a pool where load decides.
fn by_load(epoch: u64, holders: &[&str]) -> Arc<Compiled> {
    let settings = Settings { strategy: Strategy::LeastConnections, ..Settings::default() };
    let placement = Placement { settings, ..placement(epoch, holders, &[]).placement().clone() };
    Arc::new(placement.compile().unwrap())
}

fn answer(registry: &mut Registry, claim: &Claim) -> Option<ClaimAnswer<Peer>> {
    registry.claim(claim, false, Instant::now()).map(|reply| reply.answer)
}

fn evict_all(registry: &mut Registry) -> u64 {
    std::iter::from_fn(|| Some(registry.evict_next(|_| true, false)).filter(|begun| *begun > 0)).sum()
}

#[test]
fn a_new_slot_moves_the_keys_it_owns_and_no_others() {
    let (mut registry, held) = holding(1000);
    let two = placement(2, &["a", "b"], &[(1, &["a"])]);
    registry.place(&two);
    let elsewhere = |key: &str| two.ring().owner(two.hash(key)) == Some(SlotId(1));
    let expected = held.iter().filter(|(key, _)| elsewhere(key)).count() as u64;
    assert_eq!(registry.moved().connections, expected);
    assert_eq!(registry.moved().to, BTreeMap::from([(SlotId(1), expected)]));
    assert_eq!(evict_all(&mut registry), expected);
    for (key, id) in held {
        let told = registry.confirm(id).is_some();
        assert_eq!(told, elsewhere(&key), "{key}");
    }
    assert_eq!(registry.totals().evicted, expected);
}

#[test]
fn an_eviction_is_called_off_when_the_key_comes_back_before_its_client_was_told() {
    let (mut registry, held) = holding(100);
    registry.place(&placement(2, &["a", "b"], &[(1, &["a"])]));
    let begun = evict_all(&mut registry);
    assert!(begun > 0 && registry.spent() == begun);
    registry.place(&placement(3, &["a"], &[(2, &["a", "b"]), (1, &["a"])]));
    assert!(held.iter().all(|(_, id)| registry.confirm(*id).is_none()));
    assert_eq!((registry.totals().evicted, registry.spent(), registry.leaving()), (0, 0, 0));
}

#[test]
fn a_slot_that_has_not_acknowledged_gets_nothing() {
    let (mut registry, _) = holding(100);
    registry.place(&placement(2, &["a", "b"], &[(1, &["a"])]));
    assert_eq!(registry.evict_next(|slot| slot == Some(SlotId(7)), false), 0);
}

#[test]
fn a_key_moves_whole() {
    let (mut registry, held) = holding(50);
    for (key, _) in &held {
        let Admission::Seated(seat) = registry.enter(key, Arrival::Owner, None) else { panic!("{key} is ours") };
        registry.register(&seat, Arc::new(Link::new()), false);
    }
    registry.place(&placement(2, &["a", "b"], &[(1, &["a"])]));
    assert_eq!(registry.evict_next(|_| true, false), 2);
}

#[test]
fn what_was_evicted_is_told_to_the_claimant_once_it_is_released() {
    let (mut registry, held) = holding(100);
    registry.place(&placement(2, &["a", "b"], &[(1, &["a"])]));
    let moved = |id: ConnectionId, registry: &Registry| registry.connections[id].leaving.is_some();
    evict_all(&mut registry);
    let (key, id) = held.into_iter().find(|(_, id)| moved(*id, &registry)).unwrap();
    let version = Version { term: 1, epoch: 2 };
    let claim = Claim { key, version, pool_uid: "pool".into(), claimant: peer("b"), wait_ms: 0, hears: false };
    assert_eq!(answer(&mut registry, &claim), Some(ClaimAnswer::Leaving));
    registry.confirm(id).unwrap();
    registry.remove(id);
    assert_eq!(answer(&mut registry, &claim), Some(ClaimAnswer::Released { away: 1, receivers: Some(0) }));
    assert_eq!(answer(&mut registry, &claim), Some(ClaimAnswer::Released { away: 0, receivers: Some(0) }));
}

#[test]
fn whoever_claims_a_key_learns_of_connections_that_have_not_arrived_from_its_owner_before() {
    let mut registry = Registry::new(View::new(peer("a"), Settings::default()));
    registry.place(&placement(2, &["a"], &[(1, &["b"])]));
    registry.expect("ann", 2, 2);
    registry.place(&placement(3, &["c"], &[(2, &["a"]), (1, &["b"])]));
    let message = Message::new(ring::notice::MessageKind::Text, b"hello").unwrap();
    let now = std::time::Instant::now();
    assert_eq!(registry.post("ann", &message, Role::Previous, now).away, 2);
    let version = Version { term: 1, epoch: 3 };
    let (key, pool_uid, claimant) = ("ann".into(), "pool".into(), peer("c"));
    let claim = Claim { key, version, pool_uid, claimant, wait_ms: 0, hears: false };
    assert_eq!(answer(&mut registry, &claim), Some(ClaimAnswer::Released { away: 2, receivers: Some(2) }));
    assert_eq!(answer(&mut registry, &claim), Some(ClaimAnswer::Released { away: 0, receivers: Some(0) }));
    assert_eq!(registry.post("ann", &message, Role::Previous, now).away, 0);
}

#[test]
fn returns_are_counted_against_what_the_previous_owner_evicted() {
    let mut registry = Registry::new(View::new(peer("b"), Settings::default()));
    registry.place(&placement(2, &["a", "b"], &[(1, &["a"])]));
    let version = Released(Version { term: 1, epoch: 2 });
    let two = placement(2, &["a", "b"], &[]);
    let key =
        (0..1000).map(|n| format!("user-{n}")).find(|k| two.ring().owner(two.hash(k)) == Some(SlotId(1))).unwrap();
    assert_eq!(registry.enter(&key, Arrival::Owner, None), Admission::Claim(vec![peer("a")]));
    registry.expect(&key, 1, 1);
    for _ in 0..2 {
        let Admission::Seated(seat) = registry.enter(&key, Arrival::Owner, Some(&version)) else { panic!("released") };
        registry.register(&seat, Arc::new(Link::new()), false);
    }
    assert_eq!(registry.totals().returned, 1, "the second device is new");
}

#[test]
fn nothing_is_remembered_of_connections_that_have_gone() {
    let (mut registry, held) = holding(100);
    registry.place(&placement(2, &["a", "b"], &[(1, &["a"])]));
    evict_all(&mut registry);
    for (_, id) in held {
        registry.confirm(id);
        registry.remove(id);
    }
    registry.place(&placement(3, &["a", "b"], &[]));
    assert_eq!((registry.keys.len(), registry.ids.len(), registry.connections.len()), (0, 0, 0));
    assert_eq!((registry.held(), registry.leaving(), registry.moved.len(), registry.loose.len()), (0, 0, 0, 0));
}

#[test]
fn a_draining_sidecar_moves_everything_to_the_next_best_slots() {
    let (mut registry, held) = holding(100);
    registry.place(&placement(2, &["a", "b"], &[]));
    registry.set_draining("a", true);
    assert_eq!(registry.moved().connections, 100);
    let (key, _) = &held[0];
    assert!(matches!(registry.enter("new-key", Arrival::Owner, None), Admission::Redirect(to) if to == peer("b")));
    assert!(matches!(registry.enter(key, Arrival::Owner, None), Admission::Seated(_)), "its other device is here");
}

#[test]
fn a_sidecar_that_is_gone_is_not_asked_until_it_claims_again() {
    let mut registry = Registry::new(View::new(peer("a"), Settings::default()));
    registry.place(&placement(2, &["a"], &[(1, &["b"])]));
    let enter = |registry: &mut Registry| registry.enter("ann", Arrival::Owner, None);
    assert_eq!(enter(&mut registry), Admission::Claim(vec![peer("b")]));
    registry.set_gone("b", true);
    let Admission::Seated(seat) = enter(&mut registry) else { panic!("nobody else has it") };
    registry.vacate(&seat);
    registry.place(&placement(3, &["a"], &[(2, &["a"]), (1, &["b"])]));
    assert!(matches!(enter(&mut registry), Admission::Seated(_)), "it is known under newer placements, too");
    let version = Version { term: 1, epoch: 3 };
    let (key, pool_uid, claimant) = ("bob".into(), "pool".into(), peer("b"));
    let claim = Claim { key, version, pool_uid, claimant, wait_ms: 0, hears: false };
    assert!(answer(&mut registry, &claim).is_some());
    assert_eq!(registry.enter("cid", Arrival::Owner, None), Admission::Claim(vec![peer("b")]));
    registry.set_gone("b", true);
    registry.place(&placement(4, &["a"], &[]));
    assert!(registry.view().gone.is_empty(), "nobody would ask it");
}

#[test]
fn a_sidecar_that_has_said_it_is_gone_takes_nobody() {
    let (mut registry, _) = holding(0);
    registry.set_gone("a", true);
    assert_eq!(registry.enter("ann", Arrival::Fallback, None), Admission::Nobody);
    registry.place(&placement(2, &["b"], &[(1, &["a"])]));
    assert_eq!(registry.enter("ann", Arrival::Fallback, None), Admission::Redirect(peer("b")));
}

#[test]
fn a_sidecar_whose_drain_was_called_off_asks_for_keys_that_went_elsewhere_meanwhile() {
    let (mut registry, _) = holding(0);
    registry.place(&placement(2, &["a", "b"], &[]));
    registry.set_draining("a", true);
    registry.set_draining("a", false);
    let two = placement(2, &["a", "b"], &[]);
    let key =
        (0..1000).map(|n| format!("user-{n}")).find(|k| two.ring().owner(two.hash(k)) == Some(SlotId(0))).unwrap();
    assert_eq!(registry.enter(&key, Arrival::Owner, None), Admission::Claim(vec![peer("b")]));
    registry.place(&placement(3, &["a", "b"], &[]));
    assert!(matches!(registry.enter(&key, Arrival::Owner, None), Admission::Seated(_)), "all is where it belongs");
}

#[test]
fn where_load_decides_no_connection_is_moved_for_its_key_and_any_may_be_evicted() {
    let (mut registry, held) = holding(10);
    registry.place(&by_load(2, &["a", "b"]));
    let keyless = registry.register_keyless(Arc::new(Link::new()), false);
    registry.register_transit(Arc::new(Link::new()));
    assert_eq!((registry.moved(), evict_all(&mut registry)), (Moved::default(), 0));
    assert_eq!((registry.evict_idlest(20), registry.spent(), registry.staying_here()), (11, 11, 0));
    assert!(held.iter().all(|(_, id)| registry.confirm(*id).is_some()));
    // One that goes by itself is no eviction.
    registry.remove(keyless);
    for (_, id) in held {
        registry.remove(id);
    }
    assert_eq!((registry.totals().evicted, registry.spent(), registry.leaving()), (10, 10, 0));
    assert_eq!(registry.totals().breaks, BTreeMap::from([(BreakCause::Move, 10)]));
}

#[test]
fn a_sidecar_without_a_slot_says_that_all_it_holds_has_to_go_where_load_decides() {
    let (mut registry, _) = holding(10);
    registry.place(&by_load(2, &["b"]));
    assert_eq!(registry.moved(), Moved { connections: 10, ..Moved::default() });
    registry.evict_idlest(4);
    assert_eq!(registry.moved().connections, 6);
}

#[test]
fn a_pinned_pod_gives_nothing_away_where_load_decides() {
    const MINUTE: Duration = Duration::from_secs(60);
    let mut registry = Registry::new(View::new(peer("a"), Settings::default()));
    registry.place(&by_load(1, &["a"]));
    let ids: Vec<_> = (0..5).map(|_| registry.register_keyless(Arc::new(Link::new()), false)).collect();
    let now = Instant::now();
    assert_eq!(registry.evict_idlest(2), 2);
    registry.pin_pod(7, MINUTE, now);
    assert!(ids.iter().all(|id| registry.confirm(*id).is_none()), "their clients have not been told yet");
    assert_eq!((registry.leaving(), registry.spent(), registry.evict_idlest(5)), (0, 0, 0));
    registry.place(&by_load(2, &["b"]));
    let moved = registry.moved();
    assert_eq!((moved.connections, moved.pinned, registry.pinned().connections), (0, 5, 5));
    registry.expire_pins(now + MINUTE);
    let moved = registry.moved();
    assert_eq!((moved.connections, moved.pinned, registry.evict_idlest(5)), (5, 0, 5));
}

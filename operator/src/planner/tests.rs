//! The slot policy on examples, and on random sequences of events.

use std::collections::BTreeSet;

use proptest::prelude::*;
use ring::KeyHasher;
use ring::rendezvous::Rendezvous;

use super::*;

fn member(name: &str, state: MemberState) -> Member {
    Member {
        name: name.into(),
        uid: Some(format!("{name}-uid")),
        address: "127.0.0.1:1".into(),
        weight: 1,
        role: Role::App,
        ordinal: None,
        state,
        silent: false,
    }
}

fn ready(name: &str) -> Member {
    member(name, MemberState::Ready)
}

fn leaving(name: &str) -> Member {
    member(name, MemberState::Leaving { overdue: false })
}

/// `id:holder` of each slot, `-` for none.
fn show(roster: &Roster) -> String {
    let holder =
        |slot: &Slot| slot.holder.as_ref().map_or("-".to_owned(), |h| h.uid.trim_end_matches("-uid").to_owned());
    roster.slots.iter().map(|slot| format!("{}:{}", slot.id, holder(slot))).collect::<Vec<_>>().join(" ")
}

fn whole(roster: &Roster, members: &[Member], desired: usize) -> Roster {
    plan(roster, members, desired, Scope::Whole)
}

fn abc() -> Roster {
    whole(&Roster::default(), &[ready("a"), ready("b"), ready("c")], 3)
}

/// The pod of a StatefulSet.
fn ordinal(number: u32, state: MemberState) -> Member {
    Member { ordinal: Some(SlotId(number)), ..member(&format!("web-{number}"), state) }
}

#[test]
fn a_member_that_two_slots_are_kept_for_gets_the_lower() {
    let vacant = |id| Slot { id: SlotId(id), weight: 1, holder: None };
    let homes = [0, 1].map(|id| (SlotId(id), "a".to_owned())).into();
    let roster = Roster { slots: vec![vacant(0), vacant(1)], homes };
    assert_eq!(show(&whole(&roster, &[ready("a")], 2)), "0:a 1:-");
}

#[test]
fn a_statefulsets_pod_holds_the_slot_of_its_ordinal_in_whatever_order_they_come() {
    let mut pods = vec![ordinal(2, MemberState::Ready)];
    let first = plan(&Roster::default(), &pods, 3, Scope::Whole);
    assert_eq!(show(&first), "2:web-2");
    pods.insert(0, ordinal(0, MemberState::Ready));
    pods.push(ordinal(1, MemberState::Starting));
    let then = plan(&first, &pods, 3, Scope::Whole);
    assert_eq!(show(&then), "0:web-0 1:- 2:web-2");
    pods[2] = ordinal(1, MemberState::Ready);
    assert_eq!(show(&plan(&then, &pods, 3, Scope::Whole)), "0:web-0 1:web-1 2:web-2");
}

#[test]
fn a_statefulset_shrinks_from_the_highest_ordinal_also_when_a_lower_one_is_vacant() {
    let pods: Vec<_> = [0, 2].map(|number| ordinal(number, MemberState::Ready)).into();
    let whole = plan(&Roster::default(), &[0, 1, 2].map(|n| ordinal(n, MemberState::Ready)), 3, Scope::Whole);
    assert_eq!(show(&plan(&whole, &pods, 2, Scope::Whole)), "0:web-0 1:-");
}

#[test]
fn a_statefulsets_pod_that_leaves_waits_for_no_successor_and_the_next_of_its_name_gets_its_slot() {
    let mut pods = [0, 1].map(|number| ordinal(number, MemberState::Ready));
    let both = plan(&Roster::default(), &pods, 2, Scope::Whole);
    pods[1].state = MemberState::Leaving { overdue: false };
    let left = plan(&both, &pods, 2, Scope::Forced);
    assert_eq!(show(&left), "0:web-0 1:-");
    pods[1] = Member { uid: Some("reborn".into()), ..ordinal(1, MemberState::Ready) };
    assert_eq!(show(&plan(&left, &pods, 2, Scope::Whole)), "0:web-0 1:reborn");
    assert_eq!(show(&plan(&both, &pods, 1, Scope::Forced)), "0:web-0", "what is to go goes at once when it is dead");
}

#[test]
fn slots_are_given_in_the_order_of_the_list_whoever_is_ready_first() {
    let starting = member("a", MemberState::Starting);
    let first = whole(&Roster::default(), &[starting, ready("b"), ready("c")], 3);
    assert_eq!(show(&first), "0:- 1:b 2:c");
    assert_eq!(show(&whole(&first, &[ready("a"), ready("b"), ready("c")], 3)), "0:a 1:b 2:c");
}

#[test]
fn a_ready_member_beyond_desired_is_a_spare() {
    let members = [ready("a"), ready("b"), ready("c")];
    let roster = whole(&Roster::default(), &members, 2);
    assert_eq!(show(&roster), "0:a 1:b");
    assert_eq!(spares(&roster, &members).map(|m| m.name.as_str()).collect::<Vec<_>>(), ["c"]);
}

#[test]
fn a_router_never_gets_a_slot() {
    let forwarder = Member { role: Role::Router, ..ready("r") };
    let roster = whole(&abc(), &[forwarder.clone(), leaving("a"), ready("b"), ready("c")], 4);
    assert_eq!(show(&roster), "0:a 1:b 2:c");
    assert_eq!(spares(&roster, &[forwarder]).count(), 0);
}

#[test]
fn a_leaving_member_hands_its_slot_to_a_spare() {
    let members = [ready("a"), leaving("b"), ready("c"), ready("d")];
    assert_eq!(show(&plan(&abc(), &members, 3, Scope::Forced)), "0:a 1:d 2:c");
}

#[test]
fn without_a_spare_a_leaving_member_keeps_its_slot_until_it_is_overdue() {
    let members = |overdue| [ready("a"), member("b", MemberState::Leaving { overdue }), ready("c")];
    assert_eq!(show(&plan(&abc(), &members(false), 3, Scope::Forced)), "0:a 1:b 2:c");
    assert_eq!(show(&plan(&abc(), &members(true), 3, Scope::Forced)), "0:a 1:- 2:c");
}

#[test]
fn the_last_member_keeps_its_slot_to_the_end() {
    let only = whole(&Roster::default(), &[ready("a")], 1);
    let overdue = member("a", MemberState::Leaving { overdue: true });
    assert_eq!(show(&plan(&only, &[overdue], 1, Scope::Forced)), "0:a");
}

#[test]
fn when_fewer_are_desired_the_leaving_members_slot_is_retired_although_there_is_a_spare() {
    let members = [ready("a"), leaving("b"), ready("c"), ready("d")];
    assert_eq!(show(&plan(&abc(), &members, 2, Scope::Forced)), "0:a 2:c");
}

#[test]
fn when_nobody_leaves_the_highest_slot_is_retired_but_not_in_a_hurry() {
    let members = [ready("a"), ready("b"), ready("c")];
    assert_eq!(show(&plan(&abc(), &members, 2, Scope::Forced)), "0:a 1:b 2:c");
    assert_eq!(show(&whole(&abc(), &members, 2)), "0:a 1:b");
}

#[test]
fn a_retired_id_is_given_to_the_next_new_slot() {
    let shrunk = whole(&abc(), &[ready("a"), leaving("b"), ready("c")], 2);
    let grown = whole(&shrunk, &[ready("a"), ready("c"), ready("d")], 3);
    assert_eq!(show(&grown), "0:a 1:d 2:c");
}

#[test]
fn a_dead_members_slot_is_vacant_until_it_returns() {
    let crashed = plan(&abc(), &[ready("a"), member("b", MemberState::Dead), ready("c")], 3, Scope::Forced);
    assert_eq!(show(&crashed), "0:a 1:- 2:c");
    let reborn = Member { uid: Some("b2".into()), ..ready("b") };
    assert_eq!(show(&whole(&crashed, &[ready("a"), reborn, ready("c")], 3)), "0:a 1:b2 2:c");
}

#[test]
fn a_member_restarted_under_a_new_uid_keeps_its_slot_at_once() {
    let reborn = Member { uid: Some("b2".into()), ..ready("b") };
    let members = [ready("a"), reborn, ready("c"), ready("d")];
    assert_eq!(show(&plan(&abc(), &members, 3, Scope::Forced)), "0:a 1:b2 2:c");
}

#[test]
fn the_slots_of_dead_members_are_taken_over_before_those_of_leaving_ones() {
    let members = [leaving("a"), ready("c"), ready("d")];
    assert_eq!(show(&plan(&abc(), &members, 3, Scope::Forced)), "0:a 1:d 2:c");
}

#[test]
fn an_unreachable_member_keeps_its_slot_and_gets_no_other() {
    let lost_sight = |name| member(name, MemberState::Unreachable);
    let members = [ready("a"), lost_sight("b"), leaving("c"), lost_sight("d")];
    assert_eq!(show(&whole(&abc(), &members, 3)), "0:a 1:b 2:c");
}

#[test]
fn a_rollout_with_a_surge_of_one_moves_each_key_exactly_once() {
    let pods = 10;
    let mut members: Vec<Member> = (0..pods).map(|i| ready(&format!("old-{i}"))).collect();
    let mut roster = whole(&Roster::default(), &members, pods);
    let keys = keys();
    let mut moves = vec![0; keys.len()];
    for i in 0..pods {
        for change in
            [Change::Join(format!("new-{i}")), Change::Leave(format!("old-{i}")), Change::Die(format!("old-{i}"))]
        {
            let before = owners(&roster, &keys);
            change.apply(&mut members);
            roster = whole(&roster, &members, pods);
            for (moved, (old, new)) in moves.iter_mut().zip(before.iter().zip(owners(&roster, &keys))) {
                *moved += i32::from(*old != new);
            }
        }
    }
    assert!(moves.iter().all(|moves| *moves == 1));
}

#[test]
fn one_more_slot_moves_the_minimum_within_3_percent() {
    let members: Vec<Member> = (0..11).map(|i| ready(&format!("m-{i}"))).collect();
    let ten = whole(&Roster::default(), &members[..10], 10);
    let eleven = whole(&ten, &members, 11);
    let keys: Vec<ring::KeyHash> =
        (0..100_000).map(|i| KeyHasher::Xxh64.hash(format!("user-{i}").as_bytes())).collect();
    let (before, after) = (ring_of(&ten), ring_of(&eleven));
    let moved = keys.iter().filter(|key| before.owner(**key) != after.owner(**key)).count();
    let minimum = keys.len() / 11;
    assert!(moved.abs_diff(minimum) * 100 <= 3 * minimum, "{moved} moved, the minimum is {minimum}");
}

enum Change {
    Join(String),
    Leave(String),
    Die(String),
}

impl Change {
    fn apply(self, members: &mut Vec<Member>) {
        match self {
            Self::Join(name) => members.push(ready(&name)),
            Self::Leave(name) => {
                members.iter_mut().filter(|m| m.name == name).for_each(|m| m.state = leaving("").state);
            }
            Self::Die(name) => members.retain(|m| m.name != name),
        }
    }
}

fn keys() -> Vec<ring::KeyHash> {
    (0..500).map(|i| KeyHasher::Xxh64.hash(format!("user-{i}").as_bytes())).collect()
}

fn ring_of(roster: &Roster) -> Rendezvous {
    Rendezvous::new(roster.slots.iter().filter(|slot| slot.holder.is_some()).map(|slot| (slot.id, slot.weight)))
}

fn owners(roster: &Roster, keys: &[ring::KeyHash]) -> Vec<Option<(SlotId, String)>> {
    let ring = ring_of(roster);
    let holder = |id| roster.slots.iter().find(|slot| slot.id == id).and_then(|slot| slot.holder.clone());
    keys.iter().map(|key| ring.owner(*key).and_then(|id| Some((id, holder(id)?.uid.clone())))).collect()
}

/// One thing that happens to a pool; numbers choose a member.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Join { weight: u8 },
    BecomesReady(usize),
    Hangs(usize),
    Leaves(usize),
    IsOverdue(usize),
    Dies(usize),
    Returns(usize),
    Goes(usize),
    Scales(usize),
    RollsOne(usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => (1u8..4).prop_map(|weight| Happens::Join { weight }),
        4 => any::<usize>().prop_map(Happens::BecomesReady),
        1 => any::<usize>().prop_map(Happens::Hangs),
        2 => any::<usize>().prop_map(Happens::Leaves),
        1 => any::<usize>().prop_map(Happens::IsOverdue),
        1 => any::<usize>().prop_map(Happens::Dies),
        2 => any::<usize>().prop_map(Happens::Returns),
        2 => any::<usize>().prop_map(Happens::Goes),
        2 => (0usize..7).prop_map(Happens::Scales),
        2 => any::<usize>().prop_map(Happens::RollsOne),
    ]
}

#[derive(Debug, Default)]
struct World {
    members: Vec<Member>,
    desired: usize,
    born: u32,
}

impl World {
    fn join(&mut self, weight: u8, state: MemberState) {
        self.born += 1;
        self.members.push(Member { weight, ..member(&format!("m{}", self.born), state) });
    }

    fn chosen(&mut self, index: usize) -> Option<&mut Member> {
        let count = self.members.len().max(1);
        self.members.get_mut(index % count)
    }

    fn step(&mut self, happens: Happens) {
        let born = self.born;
        match happens {
            Happens::Join { weight } => self.join(weight, MemberState::Starting),
            Happens::Scales(desired) => self.desired = desired,
            Happens::Goes(index) => {
                if let Some(name) = self.chosen(index).map(|m| m.name.clone()) {
                    self.members.retain(|m| m.name != name);
                }
            }
            Happens::RollsOne(index) => {
                if let Some(member) = self.chosen(index) {
                    member.state = MemberState::Leaving { overdue: false };
                    self.join(1, MemberState::Ready);
                }
            }
            Happens::Returns(index) => {
                if let Some(member) = self.chosen(index).filter(|m| m.state == MemberState::Dead) {
                    member.uid = Some(format!("{}-{born}", member.name));
                    member.state = MemberState::Ready;
                    self.born += 1;
                }
            }
            Happens::BecomesReady(index) => set(self.chosen(index), MemberState::Ready),
            Happens::Hangs(index) => set(self.chosen(index), MemberState::Unreachable),
            Happens::Leaves(index) => set(self.chosen(index), MemberState::Leaving { overdue: false }),
            Happens::IsOverdue(index) => set(self.chosen(index), MemberState::Leaving { overdue: true }),
            Happens::Dies(index) => set(self.chosen(index), MemberState::Dead),
        }
    }

    fn state_of(&self, uid: &str) -> MemberState {
        self.members.iter().find(|m| m.uid.as_deref() == Some(uid)).map_or(MemberState::Dead, |m| m.state)
    }
}

fn set(member: Option<&mut Member>, state: MemberState) {
    if let Some(member) = member.filter(|m| !matches!(m.state, MemberState::Dead | MemberState::Leaving { .. })) {
        member.state = state;
    }
}

/// Why a key may change its owner: its old holder left, died or was retired, or a slot appeared that wins it.
fn check_moves(world: &World, old: &Roster, new: &Roster, keys: &[ring::KeyHash]) -> Result<(), TestCaseError> {
    let was = |id| old.slots.iter().find(|slot| slot.id == id && slot.holder.is_some());
    let is = |id| new.slots.iter().find(|slot| slot.id == id && slot.holder.is_some());
    let retired = old.slots.len().saturating_sub(world.desired);
    let mut firm_lost = BTreeSet::new();
    for (before, after) in owners(old, keys).into_iter().zip(owners(new, keys)) {
        let Some((slot, uid)) = before.clone() else { continue };
        if before == after {
            continue;
        }
        let loose = matches!(world.state_of(&uid), MemberState::Dead | MemberState::Leaving { .. });
        let shrunk = is(slot).is_some_and(|now| now.weight < was(slot).expect("it owned the key").weight);
        let won = after.is_some_and(|(winner, _)| {
            is(winner).is_some_and(|now| was(winner).is_none_or(|then| then.weight < now.weight))
        });
        if is(slot).is_none_or(|slot| slot.holder.as_ref().is_some_and(|h| h.uid != uid)) && !loose {
            firm_lost.insert(slot);
        } else {
            prop_assert!(loose || shrunk || won, "{uid} lost a key of slot {slot} for nothing");
        }
    }
    prop_assert!(firm_lost.len() <= retired, "{firm_lost:?} lost their slots, {retired} had to go");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_key_moves_that_did_not_have_to_and_every_key_has_an_owner(
        events in proptest::collection::vec((happens(), any::<bool>()), 1..60)
    ) {
        let keys = keys();
        let mut world = World { desired: 3, ..World::default() };
        let mut roster = Roster::default();
        for (event, hurry) in events {
            world.step(event);
            let scope = if hurry { Scope::Forced } else { Scope::Whole };
            let next = plan(&roster, &world.members, world.desired, scope);
            check_moves(&world, &roster, &next, &keys)?;
            prop_assert_eq!(&plan(&next, &world.members, world.desired, scope), &next, "planning twice");
            prop_assert!(next.slots.windows(2).all(|pair| pair[0].id < pair[1].id));
            let holders: BTreeSet<_> = next.slots.iter().filter_map(|s| s.holder.as_ref()).map(|h| &h.uid).collect();
            prop_assert_eq!(holders.len(), next.slots.iter().filter(|s| s.holder.is_some()).count(), "a member holds two");
            prop_assert!(holders.iter().all(|uid| world.state_of(uid) != MemberState::Dead), "a dead member holds one");
            if scope == Scope::Whole {
                prop_assert!(next.slots.len() <= world.desired);
                let ready = world.members.iter().filter(|m| m.is_ready()).count();
                let waiting = next.slots.iter().any(|s| s.holder.is_none());
                prop_assert!(spares(&next, &world.members).next().is_none() || !waiting, "a spare and a vacant slot");
                if ready > 0 && world.desired > 0 {
                    prop_assert!(owners(&next, &keys).iter().all(Option::is_some));
                }
            }
            roster = next;
        }
    }
}

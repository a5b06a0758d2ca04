//! The machine on examples and on random sequences, in a simulated pool.

mod sim;

use proptest::prelude::*;
use ring::wire::RedisHealth;

use super::*;
use crate::pool::Rate;
use sim::{At, STEP, Sim, pool};

const SECOND: Duration = Duration::from_secs(1);

fn condition<'a>(view: &'a view::PoolView, kind: &str) -> &'a view::ConditionView {
    view.conditions.iter().find(|condition| condition.kind == kind).unwrap()
}

#[test]
fn a_second_server_gets_its_share_and_every_other_connection_stays() {
    let mut sim = Sim::new(1, 1_000, 7);
    sim.desired = 2;
    sim.join("m1");
    sim.settle_down();
    let newcomer = sim.members[1].uid.clone().unwrap();
    let there = sim.clients.iter().filter(|client| client.at == At::Sidecar(newcomer.clone())).count();
    assert!((450..=550).contains(&there), "{there}");
    assert_eq!(sim.evicted(), u64::try_from(there).unwrap());
    assert!(sim.clients.iter().all(|client| client.evictions <= 1));
    let moved = sim.machine.view(sim.now).moving;
    assert_eq!((moved.evicted, moved.returned, moved.lost, moved.pending), (sim.evicted(), sim.evicted(), 0, 0));
}

#[test]
fn a_move_settles_publishes_evicts_and_ends() {
    let mut sim = Sim::new(1, 200, 3);
    let mut states = vec![sim.machine.state()];
    sim.desired = 2;
    sim.join("m1");
    while states.len() == 1 || !sim.is_at_rest() {
        sim.run(STEP);
        if states.last() != Some(&sim.machine.state()) {
            states.push(sim.machine.state());
        }
    }
    // A second publication may be seen when the predecessors are dropped.
    assert_eq!(states[..4], [State::Stable, State::Settling, State::Publishing, State::Evicting]);
    assert_eq!(states.last(), Some(&State::Stable));
}

#[test]
fn nothing_is_moved_to_a_new_holder_before_its_address_can_be_known() {
    let mut slow = pool();
    slow.pace.lead = Duration::from_secs(3);
    let mut sim = Sim::with(slow, 1, 200, 3);
    sim.desired = 2;
    sim.join("m1");
    let until_evicting = |sim: &mut Sim| {
        while sim.machine.state() != State::Evicting {
            sim.run(STEP);
        }
    };
    until_evicting(&mut sim);
    sim.run(Duration::from_millis(2_500));
    assert_eq!(sim.evicted(), 0);
    sim.settle_down();
    assert!(sim.evicted() > 50, "{} were moved", sim.evicted());
}

#[test]
fn a_rollout_with_a_spare_moves_each_connection_of_the_old_member_exactly_once() {
    let mut sim = Sim::new(2, 300, 5);
    sim.join("m2");
    sim.settle_down();
    assert_eq!(sim.evicted(), 0, "a spare moves nothing");
    let old = sim.members[0].uid.clone().unwrap();
    let held: Vec<bool> = sim.clients.iter().map(|client| client.at == At::Sidecar(old.clone())).collect();
    sim.leave(0);
    sim.settle_down();
    for (client, held) in sim.clients.iter().zip(held) {
        assert_eq!(client.evictions, u32::from(held));
    }
}

#[test]
fn a_leaving_member_is_not_waited_for() {
    let mut sim = Sim::new(2, 10, 5);
    sim.join("m2");
    sim.settle_down();
    let before = sim.machine.version();
    sim.leave(0);
    assert_eq!(sim.machine.version().epoch, before.epoch + 1, "placed at once");
}

#[test]
fn a_member_that_joins_is_waited_with_until_membership_stands_still() {
    let mut sim = Sim::new(1, 10, 5);
    sim.desired = 4;
    let before = sim.machine.version();
    for index in 1..4 {
        sim.join(&format!("m{index}"));
        sim.run(SECOND / 2);
        assert_eq!(sim.machine.version(), before);
    }
    sim.run(SECOND);
    assert_eq!(sim.machine.version().epoch, before.epoch + 1, "all of them in one placement");
}

#[test]
fn clients_that_do_not_return_stop_the_move_and_it_goes_on_when_they_do() {
    let mut sim = Sim::new(1, 1_000, 11);
    sim.desired = 2;
    sim.stay_away = 1_000;
    sim.join("m1");
    sim.run(20 * SECOND);
    let stopped = sim.evicted();
    let view = sim.machine.view(sim.now);
    assert!((6..=20).contains(&stopped), "{stopped}");
    assert_eq!(condition(&view, "Degraded").reason, "ClientsNotReturning");
    sim.run(20 * SECOND);
    assert_eq!(sim.evicted(), stopped);

    sim.stay_away = 0;
    for client in &mut sim.clients {
        if let At::Away { back, .. } = &mut client.at {
            *back = Some(sim.now);
        }
    }
    sim.settle_down();
    assert!(sim.evicted() > 450);
    assert_eq!(condition(&sim.machine.view(sim.now), "Degraded").reason, "AsExpected");
}

#[test]
fn clients_that_stop_returning_in_mid_move_stop_it() {
    let mut sim = Sim::new(1, 2_000, 13);
    sim.desired = 2;
    sim.join("m1");
    while sim.evicted() < 200 {
        sim.run(STEP);
    }
    sim.stay_away = 2_000;
    sim.run(30 * SECOND);
    let stopped = sim.evicted();
    assert!(stopped < 700, "{stopped}");
    sim.run(20 * SECOND);
    assert_eq!(sim.evicted(), stopped);
    assert_eq!(sim.machine.view(sim.now).moving.reason, Some("ClientsNotReturning"));
}

#[test]
fn a_destination_that_fails_slows_the_move_and_the_condition_says_so() {
    let mut sim = Sim::new(1, 2_000, 17);
    sim.desired = 2;
    sim.join("m1");
    while sim.evicted() < 100 {
        sim.run(STEP);
    }
    let newcomer = sim.members[1].uid.clone().unwrap();
    for _ in 0..10 {
        sim.sidecars.get_mut(&newcomer).unwrap().app.failed += 10;
        sim.run(SECOND / 2);
    }
    let before = sim.evicted();
    assert_eq!(condition(&sim.machine.view(sim.now), "Degraded").reason, "DestinationFailing");
    sim.run(SECOND);
    assert!(sim.evicted() - before <= 15, "{}", sim.evicted() - before);
    sim.settle_down();
}

#[test]
fn nothing_moves_to_an_unreachable_holder_and_the_rest_goes_on() {
    let mut sim = Sim::new(1, 600, 19);
    sim.desired = 3;
    sim.join("m1");
    sim.join("m2");
    while sim.evicted() < 20 {
        sim.run(STEP);
    }
    sim.hang(2, true);
    sim.run(60 * SECOND);
    let view = sim.machine.view(sim.now);
    assert_eq!(condition(&view, "Degraded").message, "m2 cannot be reached: nothing is moved there");
    assert!(view.slots[0].moved > 100, "what belongs to m2 waits at m0");
    assert!(view.slots[1].connections > 180, "m1 has its share");
    assert!(!sim.machine.saved.predecessors.is_empty());
    sim.hang(2, false);
    sim.settle_down();
}

#[test]
fn a_restarted_operator_finishes_the_move_under_a_new_term_and_evicts_nobody_twice() {
    let mut sim = Sim::new(1, 1_000, 23);
    sim.desired = 2;
    sim.join("m1");
    while sim.evicted() < 100 {
        sim.run(STEP);
    }
    let before = sim.machine.version();
    sim.restart_operator();
    sim.settle_down();
    assert_eq!(sim.machine.version().term, before.term + 1);
    assert!(sim.machine.version() > before);
    assert!(sim.clients.iter().all(|client| client.evictions <= 1));
    let moved = sim.machine.view(sim.now).moving;
    assert_eq!((moved.evicted, moved.returned), (sim.evicted(), sim.evicted()), "counted from the start of the move");
}

#[test]
fn an_operator_without_its_state_begins_above_what_the_sidecars_have() {
    let mut sim = Sim::new(3, 100, 29);
    let before = sim.machine.version();
    sim.saved = None;
    sim.restart_operator();
    sim.settle_down();
    assert!(sim.machine.version().term > before.term && sim.machine.version().epoch > before.epoch);
    assert_eq!(sim.evicted(), 0, "the same members get the same slots");
}

#[test]
fn an_operator_without_its_state_takes_the_slots_over_that_sidecars_report_in_whatever_order_members_are_listed() {
    let mut sim = Sim::new(3, 100, 31);
    sim.members.reverse();
    sim.tell_members();
    sim.settle_down();
    let slots = |sim: &Sim| sim.machine.saved().roster.slots.clone();
    let before = slots(&sim);
    sim.saved = None;
    sim.restart_operator();
    sim.settle_down();
    assert_eq!((slots(&sim), sim.evicted()), (before, 0));
}

#[test]
fn an_operator_that_is_outranked_stops() {
    let mut sim = Sim::new(2, 100, 31);
    let mut older = Machine::new(pool(), "pool-uid", None);
    let report = Report {
        uid: sim.members[0].uid.clone().unwrap(),
        pool_uid: "pool-uid".into(),
        version: Version { term: 9, epoch: 100 },
        started: u64::MAX,
        evicted: 1_000,
        returned: 1_000,
        ..Report::default()
    };
    let actions = sim.machine.step(Event::Report(Box::new(report)), sim.now);
    assert!(matches!(actions[..], [Action::Resign { newer: Version { term: 9, .. } }]));
    assert!(sim.machine.step(Event::Tick, sim.now + SECOND).is_empty());
    assert_eq!(condition(&sim.machine.view(sim.now), "Degraded").reason, "Superseded");
    assert!(older.step(Event::Tick, sim.now).is_empty());
}

#[test]
fn who_does_not_hear_redis_is_named_with_the_reason() {
    let mut sim = Sim::new(2, 0, 33);
    let uid = sim.members[1].uid.clone().unwrap();
    let mut report = sim.machine.fleet.get(&uid).unwrap().report.clone();
    report.redis = Some(RedisHealth::Down("connection refused".into()));
    sim.machine.step(Event::Report(Box::new(report.clone())), sim.now);
    let view = sim.machine.view(sim.now);
    let degraded = condition(&view, "Degraded");
    let expected =
        format!("what is published in Redis does not reach the clients of {}: connection refused", sim.members[1].name);
    assert_eq!((degraded.reason, degraded.message.as_str()), ("RedisAway", expected.as_str()));
    assert_eq!(view.troubles, [("RedisAway", expected)]);
    report.redis = Some(RedisHealth::Up);
    sim.machine.step(Event::Report(Box::new(report)), sim.now);
    assert!(sim.machine.view(sim.now).troubles.is_empty());
}

#[test]
fn a_crash_is_placed_at_once_without_predecessors_and_its_clients_return_when_it_is_back() {
    let mut sim = Sim::new(3, 300, 37);
    let dead = sim.members[1].name.clone();
    sim.crash(1);
    assert!(sim.machine.saved.predecessors.is_empty());
    sim.settle_down();
    assert_eq!(sim.evicted(), 0, "nobody else moved");
    sim.join(&dead);
    sim.settle_down();
    assert!((60..=140).contains(&sim.evicted()), "{}", sim.evicted());
    assert!(sim.clients.iter().all(|client| client.evictions <= 1));
}

#[test]
fn connections_that_fell_back_are_moved_home_and_their_return_is_seen() {
    let mut sim = Sim::new(2, 200, 41);
    let slots = sim.machine.saved.roster.clone();
    let (hung, other) = (sim.members[0].uid.clone().unwrap(), sim.members[1].uid.clone().unwrap());
    sim.hang(0, true);
    for client in &mut sim.clients {
        if client.at == At::Sidecar(hung.clone()) {
            client.at = At::Sidecar(other.clone());
        }
    }
    sim.run(5 * SECOND);
    assert_eq!(sim.evicted(), 0);
    sim.hang(0, false);
    sim.settle_down();
    assert!(sim.evicted() > 50);
    assert_eq!(sim.machine.saved.roster, slots);
    assert_eq!(sim.machine.view(sim.now).moving.returned, sim.evicted());
}

#[test]
fn what_fell_back_from_a_node_that_died_is_claimed_by_the_successor_of_its_pod_however_late_that_comes() {
    let mut sim = Sim::new(3, 600, 43);
    let dead = sim.members[0].uid.clone().unwrap();
    sim.hang(0, true);
    // Their connections are gone with the node, and they come back at once, to their next-best slots.
    let back = Some(sim.now + STEP);
    for client in sim.clients.iter_mut().filter(|client| client.at == At::Sidecar(dead.clone())) {
        client.at = At::Away { back, from: None };
    }
    sim.run(5 * SECOND);
    // The pod is evicted from the node, which nobody tells.
    sim.leave(0);
    sim.run(13 * SECOND);
    sim.join("m3");
    while sim.evicted() == 0 || sim.machine.view(sim.now).moving.in_flight > 0 {
        sim.run(STEP);
    }
    sim.run(20 * SECOND);
    let moved = sim.machine.view(sim.now).moving;
    assert!(sim.evicted() > 150, "{} came home", sim.evicted());
    assert_eq!((moved.returned, moved.lost), (sim.evicted(), 0));
    assert_eq!(sim.machine.state(), State::Evicting, "the dead pod is not waited for until it has the placement");
    sim.set(0, MemberState::Dead);
    sim.settle_down();
}

#[test]
fn a_process_that_restarts_in_mid_move_gets_its_clients_back() {
    let mut sim = Sim::new(2, 600, 42);
    sim.desired = 3;
    sim.join("m2");
    while sim.evicted() < 50 {
        sim.run(STEP);
    }
    sim.restart(0);
    sim.settle_down();
    assert_eq!(sim.machine.view(sim.now).moving.lost, 0);
}

#[test]
fn connections_without_an_owner_are_claimed_when_there_is_one_again() {
    let mut sim = Sim::new(2, 100, 44);
    sim.desired = 1;
    sim.leave(1);
    sim.run(STEP);
    sim.crash(0);
    sim.run(5 * SECOND);
    assert!(sim.machine.saved.roster.slots.iter().all(|slot| slot.holder.is_none()));
    sim.join("m2");
    sim.settle_down();
    let moved = sim.machine.view(sim.now).moving;
    assert_eq!((moved.returned, moved.lost), (sim.evicted(), 0));
}

#[test]
fn a_drain_may_exceed_the_rate_and_the_state_says_so() {
    let mut sim = Sim::new(2, 1_000, 43);
    sim.join("m2");
    sim.settle_down();
    let leaving = sim.members[0].uid.clone().unwrap();
    sim.sidecars.get_mut(&leaving).unwrap().seconds_left = Some(8);
    sim.leave(0);
    let mut hurried = false;
    for _ in 0..120 {
        sim.run(STEP);
        hurried |= sim.machine.view(sim.now).moving.reason == Some("Draining");
    }
    assert!(hurried);
    assert!(sim.evicted() > 400, "{} in six seconds", sim.evicted());
}

#[test]
fn a_drain_that_waits_for_a_successor_is_kept_waiting_by_empty_grants() {
    let mut sim = Sim::new(2, 10, 47);
    sim.leave(0);
    let actions = sim.machine.step(Event::Tick, sim.now);
    let leaving = sim.members[0].uid.clone().unwrap();
    assert!(matches!(&actions[..], [Action::Grant(grant)] if grant.target == leaving && grant.allow_total == 0));
    sim.set(0, MemberState::Leaving { overdue: true });
    sim.settle_down();
    assert_eq!(sim.machine.view(sim.now).slots[0].member, None, "overdue: its keys belong to the others");
}

#[test]
fn paused_moves_nothing_but_places_what_is_forced() {
    let mut paused = pool();
    paused.pace.mode = Mode::Paused;
    let mut sim = Sim::new(2, 100, 53);
    let before = sim.machine.version();
    sim.machine.step(Event::Pool(Box::new(paused)), sim.now);
    sim.desired = 3;
    sim.join("m2");
    sim.run(10 * SECOND);
    assert_eq!(sim.machine.version(), before);
    assert_eq!(condition(&sim.machine.view(sim.now), "Rebalancing").reason, "Paused");
    sim.crash(0);
    assert_eq!(sim.machine.version().epoch, before.epoch + 1);
    sim.run(10 * SECOND);
    assert_eq!(sim.evicted(), 0);
}

#[test]
fn a_dry_run_publishes_nothing_and_says_how_many_would_move() {
    let mut dry = pool();
    dry.pace.mode = Mode::DryRun;
    let mut sim = Sim::new(1, 1_000, 59);
    let before = sim.machine.version();
    sim.machine.step(Event::Pool(Box::new(dry)), sim.now);
    sim.desired = 2;
    sim.join("m1");
    sim.run(10 * SECOND);
    assert_eq!(sim.machine.version(), before);
    let would_move = sim.machine.view(sim.now).would_move.unwrap();
    assert!((470..=530).contains(&would_move), "{would_move}");
}

#[test]
fn a_share_per_minute_is_a_rate() {
    let mut slow = pool();
    slow.pace.rate = Rate::Share(crate::pool::PerMinute(30_000));
    let mut sim = Sim::with(slow, 1, 200, 61);
    sim.desired = 2;
    sim.join("m1");
    while sim.evicted() < 2 {
        sim.run(STEP);
    }
    let before = sim.evicted();
    sim.run(30 * SECOND);
    let evicted = sim.evicted() - before;
    assert!((28..=31).contains(&evicted), "30 % of 200 a minute is one a second, not {evicted} in 30 s");
}

/// Evictions per second in the random sequences: few, so that the bound means something.
const RATE: u32 = 10;

/// One thing that happens to a pool; numbers choose a member or a number of steps.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Join,
    Leave(usize),
    Overdue(usize),
    Crash(usize),
    Return(usize),
    Hang(usize),
    Wake(usize),
    Scale(usize),
    RestartOperator,
    Restart(usize),
    Roll(usize),
}

fn happens() -> impl Strategy<Value = (Happens, u32)> {
    let member = || 0usize..6;
    let happens = prop_oneof![
        3 => Just(Happens::Join),
        2 => member().prop_map(Happens::Leave),
        1 => member().prop_map(Happens::Overdue),
        2 => member().prop_map(Happens::Crash),
        2 => member().prop_map(Happens::Return),
        1 => member().prop_map(Happens::Hang),
        2 => member().prop_map(Happens::Wake),
        2 => (1usize..6).prop_map(Happens::Scale),
        1 => Just(Happens::RestartOperator),
        1 => member().prop_map(Happens::Restart),
        2 => member().prop_map(Happens::Roll),
    ];
    (happens, 0u32..120)
}

impl Sim {
    fn happen(&mut self, event: Happens, born: usize) {
        let state = |sim: &Self, index: usize| sim.members.get(index).map(|member| member.state);
        match event {
            Happens::Join => self.join(&format!("n{born}")),
            Happens::Scale(desired) => {
                self.desired = desired;
                self.tell_members();
            }
            Happens::RestartOperator => self.restart_operator(),
            Happens::Roll(index) if state(self, index) == Some(MemberState::Ready) => {
                self.join(&format!("n{born}"));
                self.leave(index);
            }
            Happens::Leave(index) if state(self, index) == Some(MemberState::Ready) => self.leave(index),
            Happens::Overdue(index) if matches!(state(self, index), Some(MemberState::Leaving { .. })) => {
                self.set(index, MemberState::Leaving { overdue: true });
            }
            Happens::Crash(index) if state(self, index).is_some_and(|s| s != MemberState::Dead) => self.crash(index),
            Happens::Return(index) if state(self, index) == Some(MemberState::Dead) => {
                let name = self.members[index].name.clone();
                self.join(&name);
            }
            Happens::Restart(index) if state(self, index) == Some(MemberState::Ready) => self.restart(index),
            Happens::Hang(index) => self.hang(index, true),
            Happens::Wake(index) => self.hang(index, false),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_rate_holds_nothing_moves_needlessly_and_all_comes_to_rest(
        seed in 1u64..u64::MAX,
        events in proptest::collection::vec(happens(), 1..14),
    ) {
        let mut slow = pool();
        slow.pace.rate = Rate::PerSecond(RATE);
        let mut sim = Sim::with(slow, 3, 120, seed);
        for (born, (event, steps)) in events.into_iter().enumerate() {
            sim.happen(event, born);
            sim.run(STEP * steps);
        }
        for index in 0..sim.members.len() {
            sim.hang(index, false);
            sim.happen(Happens::Overdue(index), 0);
        }
        if sim.members.iter().all(|m| m.state != MemberState::Ready) {
            sim.join("last");
        }
        sim.settle_down();
        prop_assert!(!sim.resigned);
        prop_assert!(sim.evicted() <= sim.must_move, "{} evicted, {} had to move", sim.evicted(), sim.must_move);
        for (index, (since, before)) in sim.evictions.iter().enumerate() {
            for (now, after) in &sim.evictions[index..] {
                let earned = u64::try_from((*now - *since).as_millis()).unwrap() * u64::from(RATE) / 1_000;
                // A full bucket, and what was granted before and not spent at once.
                let at_once = u64::from(RATE) * 5 / 2;
                prop_assert!(after - before <= earned + at_once, "{} within {:?}", after - before, *now - *since);
            }
        }
    }
}

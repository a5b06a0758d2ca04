//! Choosing by load.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ring::load::{FRESH, Tally};
use ring::wire::{Load, Loads};
use ring::{SlotId, Version};

const VERSION: Version = Version { term: 1, epoch: 7 };
const SECOND: Duration = Duration::from_secs(1);

fn loads(counts: &[u64], age: Duration) -> Loads {
    let age_ms = u64::try_from(age.as_millis()).expect("an age");
    let slots = (0..).map(SlotId).zip(counts.iter().map(|&connections| Load { connections, age_ms }));
    Loads { version: VERSION, slots: slots.collect() }
}

fn able(slots: u32) -> Vec<(SlotId, u8)> {
    (0..slots).map(|slot| (SlotId(slot), 1)).collect()
}

/// So many choices at one moment, by slot.
fn burst(tally: &mut Tally, able: &[(SlotId, u8)], count: usize, now: Instant) -> BTreeMap<u32, usize> {
    let mut chosen = BTreeMap::new();
    for _ in 0..count {
        let slot = tally.choose(able, 0, VERSION, now, |below| rand::random_range(0..below)).expect("a slot");
        *chosen.entry(slot.0).or_default() += 1;
    }
    chosen
}

#[test]
fn a_burst_fills_the_emptier_slot_up_and_is_spread_from_then_on() {
    let (mut tally, now) = (Tally::default(), Instant::now());
    tally.hear(&loads(&[500, 100], Duration::ZERO), now);
    assert_eq!(burst(&mut tally, &able(2), 400, now), BTreeMap::from([(1, 400)]));
    assert_eq!(burst(&mut tally, &able(2), 100, now), BTreeMap::from([(0, 50), (1, 50)]));
}

#[test]
fn a_choice_counts_until_a_count_that_is_younger_has_it() {
    let (mut tally, start) = (Tally::default(), Instant::now());
    tally.hear(&loads(&[100, 0], Duration::ZERO), start);
    burst(&mut tally, &able(2), 60, start + SECOND);
    burst(&mut tally, &able(2), 30, start + 2 * SECOND);
    // Counted between the two: 60 are in it.
    let now = start + 3 * SECOND;
    tally.hear(&loads(&[100, 60], SECOND * 3 / 2), now);
    assert_eq!(burst(&mut tally, &able(2), 10, now), BTreeMap::from([(1, 10)]), "60, 30 and 10 are there");
    assert_eq!(burst(&mut tally, &able(2), 40, now), BTreeMap::from([(0, 20), (1, 20)]));
}

#[test]
fn among_many_slots_the_fullest_stays_close_to_the_mean() {
    let (mut tally, now) = (Tally::default(), Instant::now());
    tally.hear(&loads(&[0; 100], Duration::ZERO), now);
    let chosen = burst(&mut tally, &able(100), 10_000, now);
    let (least, most) = (chosen.values().min().unwrap(), chosen.values().max().unwrap());
    assert!(*least > 90 && *most < 110, "{least} to {most} where 100 are the mean");
}

#[test]
fn a_slot_of_twice_the_weight_gets_twice_as_many() {
    let (mut tally, now) = (Tally::default(), Instant::now());
    tally.hear(&loads(&[0, 0], Duration::ZERO), now);
    assert_eq!(burst(&mut tally, &[(SlotId(0), 1), (SlotId(1), 2)], 300, now), BTreeMap::from([(0, 100), (1, 200)]));
}

#[test]
fn a_slot_that_takes_no_connections_is_passed_over_while_there_are_others() {
    let (mut tally, now) = (Tally::default(), Instant::now());
    tally.hear(&loads(&[900, 900], Duration::ZERO), now);
    assert_eq!(burst(&mut tally, &able(3), 50, now).keys().collect::<Vec<_>>(), [&0, &1]);
    assert_eq!(burst(&mut tally, &[(SlotId(2), 1)], 5, now), BTreeMap::from([(2, 5)]));
    assert_eq!(tally.choose(&[], 0, VERSION, now, |_| 0), None);
}

#[test]
fn a_slot_that_is_full_is_passed_over_while_others_have_room() {
    let (mut tally, now) = (Tally::default(), Instant::now());
    tally.hear(&loads(&[100, 100, 90], Duration::ZERO), now);
    let mut choose = |limit| tally.choose(&able(3), limit, VERSION, now, |_| 0).expect("a slot");
    // Of the first two, which would be chosen by chance, none has room.
    assert!((0..10).all(|_| choose(100) == SlotId(2)));
    assert_eq!((choose(100), choose(0)), (SlotId(0), SlotId(1)), "all are full, and any may have room by now");
}

#[test]
fn a_slot_that_has_failed_is_passed_over_for_a_while() {
    let (mut tally, now) = (Tally::default(), Instant::now());
    tally.hear(&loads(&[900, 0], Duration::ZERO), now);
    tally.fail(SlotId(1), now);
    tally.hear(&loads(&[900, 0], Duration::ZERO), now + SECOND);
    assert!(!tally.takes(SlotId(1), VERSION, now + SECOND));
    assert_eq!(burst(&mut tally, &able(2), 50, now + SECOND), BTreeMap::from([(0, 50)]));
    assert_eq!(burst(&mut tally, &able(2)[1..], 5, now + SECOND), BTreeMap::from([(1, 5)]), "there is no other");
    tally.hear(&loads(&[900, 0], Duration::ZERO), now + FRESH);
    assert_eq!(burst(&mut tally, &able(2), 50, now + FRESH), BTreeMap::from([(1, 50)]));
}

#[test]
fn a_slot_takes_connections_unless_counts_of_now_leave_it_out() {
    let (mut tally, now) = (Tally::default(), Instant::now());
    assert!(tally.takes(SlotId(2), VERSION, now), "nothing is known");
    tally.hear(&loads(&[900, 900], Duration::ZERO), now);
    assert!(tally.takes(SlotId(1), VERSION, now));
    assert!(!tally.takes(SlotId(2), VERSION, now));
    assert!(tally.takes(SlotId(2), VERSION, now + FRESH), "they are of long ago");
    assert!(tally.takes(SlotId(2), Version { epoch: 8, ..VERSION }, now), "they are of another placement");
    tally.choose(&able(1), 0, VERSION, now + FRESH, |_| 0);
    assert!(tally.takes(SlotId(2), VERSION, now + FRESH), "the own choices say nothing of others");
    tally.hear(&loads(&[], Duration::ZERO), now);
    assert!(tally.takes(SlotId(2), VERSION, now), "no other one takes any");
}

#[test]
fn without_counts_of_now_and_of_this_placement_the_own_choices_are_spread() {
    let (mut tally, now) = (Tally::default(), Instant::now());
    let both = |chosen: BTreeMap<u32, usize>| chosen == BTreeMap::from([(0, 500), (1, 500)]);
    assert!(both(burst(&mut tally, &able(2), 1_000, now)), "nothing is known");
    tally.hear(&loads(&[1_000_000, 0], Duration::ZERO), now);
    assert!(both(burst(&mut tally, &able(2), 1_000, now + FRESH)), "that was long ago");
    tally.hear(&Loads { version: Version { term: 1, epoch: 6 }, ..loads(&[1_000_000, 0], Duration::ZERO) }, now);
    assert!(both(burst(&mut tally, &able(2), 1_000, now)), "those were other slots");
}

//! Evening out a pool whose strategy is `LeastConnections`: who holds too much, and how much of it.
//!
//! Nobody is moved for being a little above the mean, and never while nothing has changed: connections that come and go
//! even themselves out. After a slot has got a new holder, or one that was away is back, the members above the mean by more
//! than the tolerance go down to the mean, once each. So the same connections never go to and fro.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::settings::Strategy;
use ring::wire::{Load, Loads};
use ring::{SlotId, Version};

use super::pace::GRANT_TTL;
use super::{Action, Machine, Roster, TICK};
use crate::planner::MemberState;
use crate::pool::Mode;

/// How often sidecars are told the loads.
const TELL: Duration = Duration::from_secs(1);

/// What there is to even out, and since when it may be looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Levelling {
    /// Somebody was new, or away: from then on the members are compared, once.
    due: Option<Instant>,
    /// Members above the tolerance, by UID, until all of them are down at the mean.
    shedding: BTreeSet<String>,
    /// Since when nothing is left to move.
    calm: Option<Instant>,
    told: Option<ToldLoads>,
}

/// What sidecars were told last.
#[derive(Clone, Debug)]
struct ToldLoads {
    version: Version,
    /// The slots that take connections, and since when all know that these do.
    takes: Vec<SlotId>,
    since: Instant,
    at: Instant,
}

/// One member, as its load counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Connections, without those that are leaving.
    pub staying: u64,
    /// Of these, the ones that are pinned.
    pub pinned: u64,
    /// Its share of the pool's; 0 when it is to be emptied.
    pub weight: u64,
}

/// The connections that each member has above its share of the mean. `away` are between two servers: they belong to
/// the mean.
pub fn excess(pods: &[Pod], away: u64) -> Vec<u64> {
    let (total, weights) = sums(pods, away);
    let share = |pod: &Pod| (total * pod.weight).div_ceil(weights.max(1));
    pods.iter().map(|pod| pod.staying.saturating_sub(share(pod))).collect()
}

/// Which members are above their share by more than so many percent.
pub fn overloaded(pods: &[Pod], away: u64, tolerance: u64) -> Vec<bool> {
    let (total, weights) = sums(pods, away);
    let over = |pod: &Pod| pod.weight > 0 && pod.staying * weights * 100 > total * pod.weight * (100 + tolerance);
    pods.iter().map(over).collect()
}

fn sums(pods: &[Pod], away: u64) -> (u64, u64) {
    pods.iter().fold((away, 0), |(total, weights), pod| (total + pod.staying, weights + pod.weight))
}

impl Machine {
    /// Whether load decides where connections go.
    pub(super) fn levels(&self) -> bool {
        self.settings.strategy == Strategy::LeastConnections
    }

    /// Somebody is new, or was away: the members are compared once this time has come.
    pub(super) fn compare_from(&mut self, due: Instant) {
        self.levelling.due = Some(due);
    }

    /// Whether other members hold the slots than before.
    pub(super) fn has_newcomers(&self, roster: &Roster) -> bool {
        let holders = |roster: &Roster| -> BTreeSet<String> {
            roster.slots.iter().filter_map(|slot| Some(slot.holder.as_ref()?.uid.clone())).collect()
        };
        !holders(roster).is_subset(&holders(&self.saved.roster))
    }

    /// Compares the members when that is due, and begins to move what must move.
    pub(super) fn level(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.levels() {
            self.levelling = Levelling::default();
            return;
        }
        if !self.absent.is_empty() {
            self.compare_from(now + self.pool.pace.settle);
        }
        let due = self.levelling.due.is_some_and(|due| now >= due) && self.is_announced();
        // A newcomer that nothing may be moved to yet is waited for.
        let lead = self.saved.roster.slots.iter().filter_map(|slot| slot.holder.as_ref()).any(|holder| {
            self.state_of(&holder.uid) == MemberState::Ready
                && self.fleet.get(&holder.uid).is_none_or(|s| now < s.slot_since + self.pool.pace.lead)
        });
        if due && !lead && self.pool.pace.mode == Mode::Automatic {
            self.levelling.due = None;
            let (uids, pods) = self.pods(now);
            let overloaded = overloaded(&pods, self.away(), self.pool.pace.tolerance);
            self.levelling
                .shedding
                .extend(uids.into_iter().zip(overloaded).filter(|(_, over)| *over).map(|(uid, _)| uid));
        }
        let excess = self.excess_by_member(now);
        if self.moving.is_none() && (!excess.is_empty() || !self.saved.baselines.is_empty()) {
            self.begin_move(now);
            actions.push(Action::Save(Box::new(self.saved.clone())));
        }
    }

    /// Whether everybody is where they may stay. Reports are of different moments, and a grant may yet be spent: so it has
    /// to have been so for as long as a grant lives.
    pub(super) fn is_level(&mut self, now: Instant) -> bool {
        let away = self.moving.as_ref().map_or(0, |moving| moving.flight.in_flight(now)) + self.leaving();
        if away > 0 || !self.overweight(now).is_empty() {
            self.levelling.calm = None;
            return false;
        }
        now >= *self.levelling.calm.get_or_insert(now) + GRANT_TTL
    }

    /// All that was to be moved has been.
    pub(super) fn end_levelling(&mut self) {
        self.levelling.shedding.clear();
        self.levelling.calm = None;
    }

    /// The connections that have to go elsewhere now, by the UID of who holds them: all of one that is to be emptied, but
    /// for those that are pinned.
    pub(super) fn excess_by_member(&self, now: Instant) -> BTreeMap<String, u64> {
        let overweight = self.overweight(now).into_iter();
        let due = overweight.map(|(uid, pod, excess)| (uid, excess.min(pod.staying - pod.pinned)));
        due.filter(|(_, excess)| *excess > 0).collect()
    }

    /// Who has to give connections away, now or when their pins end, and how many.
    fn overweight(&self, now: Instant) -> Vec<(String, Pod, u64)> {
        let (uids, pods) = self.pods(now);
        let excess = excess(&pods, self.away());
        let members = uids.into_iter().zip(pods).zip(excess).map(|((uid, pod), excess)| (uid, pod, excess));
        let gives = |uid: &String, pod: &Pod| pod.weight == 0 || self.levelling.shedding.contains(uid);
        members.filter(|(uid, pod, excess)| *excess > 0 && gives(uid, pod)).collect()
    }

    fn pods(&self, now: Instant) -> (Vec<String>, Vec<Pod>) {
        let takes = self.destinations(now);
        let slots = self.saved.roster.slots.iter();
        let held: BTreeMap<_, _> = slots.filter_map(|slot| Some((slot.holder.as_ref()?.uid.as_str(), slot))).collect();
        let leaves = |uid: &str| matches!(self.state_of(uid), MemberState::Leaving { .. });
        let pods = self.placed().filter_map(|sidecar| {
            let report = &sidecar.report;
            let weight = match held.get(report.uid.as_str()) {
                Some(slot) if !report.draining && !leaves(&report.uid) => {
                    // One that is neither emptied nor takes anything, such as one that does not answer, is no part of
                    // the mean.
                    takes.contains_key(&slot.id).then_some(u64::from(slot.weight))?
                }
                Some(_) | None => 0,
            };
            let staying = report.connections.saturating_sub(report.in_flight);
            Some((report.uid.clone(), Pod { staying, pinned: report.pinned.min(staying), weight }))
        });
        pods.unzip()
    }

    /// Connections between two servers. Those that stay away for good count to the end of the move, or the mean would fall
    /// with each of them, and others be moved in their place.
    fn away(&self) -> u64 {
        self.leaving() + self.moving.as_ref().map_or(0, |moving| moving.flight.evicted() - moving.flight.returned())
    }

    /// Connections that have begun to leave.
    fn leaving(&self) -> u64 {
        self.placed().map(|sidecar| sidecar.report.in_flight.min(sidecar.report.connections)).sum()
    }

    /// The slots that take connections, with their holders. Who has too much takes none: it would have to give them away
    /// again.
    fn takers(&self, now: Instant) -> BTreeMap<SlotId, String> {
        let mut takers = self.destinations(now);
        takers.retain(|_, uid| !self.levelling.shedding.contains(uid));
        takers
    }

    /// Whether sidecars have had time to hear which slots take connections. Before that whoever is moved could come back to
    /// where it was.
    pub(super) fn knows_takers(&self, now: Instant) -> bool {
        let told = self.levelling.told.as_ref().filter(|told| told.version == self.saved.version);
        told.is_some_and(|told| now >= told.since + TICK && told.takes.iter().eq(self.takers(now).keys()))
    }

    /// Tells every sidecar what each slot holds: once a second, and at once when other slots take connections.
    pub(super) fn tell_loads(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.levels() {
            return;
        }
        let version = self.saved.version;
        let takers = self.takers(now);
        let slots: Vec<SlotId> = takers.keys().copied().collect();
        let told = self.levelling.told.take().filter(|told| told.version == version && told.takes == slots);
        let since = told.as_ref().map_or(now, |told| told.since);
        if let Some(told) = told.filter(|told| now < told.at + TELL) {
            self.levelling.told = Some(told);
            return;
        }
        self.levelling.told = Some(ToldLoads { version, takes: slots, since, at: now });
        let load = |(slot, uid): (SlotId, String)| {
            let sidecar = self.fleet.get(&uid)?;
            let connections = sidecar.report.connections.saturating_sub(sidecar.report.in_flight);
            let age = now.saturating_duration_since(sidecar.heard).as_millis();
            Some((slot, Load { connections, age_ms: u64::try_from(age).unwrap_or(u64::MAX) }))
        };
        let loads = Arc::new(Loads { version, slots: takers.into_iter().filter_map(load).collect() });
        actions.extend(self.placed().map(|s| Action::Tell { uid: s.report.uid.clone(), loads: Arc::clone(&loads) }));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pods(staying: &[u64]) -> Vec<Pod> {
        staying.iter().map(|&staying| Pod { staying, pinned: 0, weight: 1 }).collect()
    }

    #[test]
    fn a_thousand_on_one_and_none_on_a_second_are_evened_out_by_moving_five_hundred() {
        assert_eq!(excess(&pods(&[1_000, 0]), 0), [500, 0]);
        assert_eq!(excess(&pods(&[600, 300]), 100), [100, 0], "those between two servers count");
        assert_eq!(excess(&pods(&[500, 500]), 0), [0, 0]);
    }

    #[test]
    fn a_member_that_is_emptied_has_no_share_and_weights_have_theirs() {
        let emptied = [(90, 0), (100, 1), (110, 2)].map(|(staying, weight)| Pod { staying, pinned: 0, weight });
        assert_eq!(excess(&emptied, 0), [90, 0, 0]);
        assert_eq!(overloaded(&emptied, 0, 10), [false, false, false]);
    }

    #[test]
    fn only_who_is_above_the_tolerance_is_overloaded() {
        assert_eq!(overloaded(&pods(&[110, 90]), 0, 10), [false, false]);
        assert_eq!(overloaded(&pods(&[111, 89]), 0, 10), [true, false]);
        assert_eq!(overloaded(&pods(&[2, 1]), 0, 10), [true, false]);
        assert_eq!(excess(&pods(&[2, 1]), 0), [0, 0], "an odd one stays");
    }

    proptest! {
        /// The members above the tolerance shed in random steps, and what was evicted comes back a while later, to the less
        /// loaded of two: nothing is moved that did not have to be.
        #[test]
        fn connections_never_go_to_and_fro(
            held in prop::collection::vec(0u64..300, 2..6),
            steps in prop::collection::vec((any::<u16>(), any::<u16>(), 1u64..40), 400),
        ) {
            const TOLERANCE: u64 = 10;
            let mut pool = pods(&held);
            let must: u64 = excess(&pool, 0).iter().sum();
            let mut shedding = overloaded(&pool, 0, TOLERANCE);
            let (mut away, mut moved) = (0, 0);
            let at = |random: u16| usize::from(random) % held.len();
            for (one, other, size) in steps {
                let from = at(one);
                let due = if shedding[from] { excess(&pool, away)[from].min(size) } else { 0 };
                pool[from].staying -= due;
                away += due;
                moved += due;
                let left = excess(&pool, away);
                for (shedding, left) in shedding.iter_mut().zip(left) {
                    *shedding &= left > 0;
                }
                let takes: Vec<usize> = (0..held.len()).filter(|pod| !shedding[*pod]).collect();
                for _ in 0..size.min(away) {
                    let [one, other] = [one, other].map(|random| takes[usize::from(random) % takes.len()]);
                    let to = if pool[one].staying < pool[other].staying { one } else { other };
                    pool[to].staying += 1;
                    away -= 1;
                }
            }
            prop_assert!(moved <= must, "{moved} were moved where {must} had to");
        }
    }
}

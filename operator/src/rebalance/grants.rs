//! Who may evict how much, and where to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ring::SlotId;
use ring::wire::{Grant, Report};

use super::brake::Destination;
use super::pace::{GRANT_TTL, Source};
use super::{Action, Machine};
use crate::planner::MemberState;
use crate::pool::Mode;

impl Machine {
    pub(super) fn grant(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.pool.pace.mode != Mode::Automatic || !self.announced(now) {
            return;
        }
        let to = self.destinations(now);
        let sources = self.sources(&to, now);
        let connections = self.connections();
        let Some(moving) = &mut self.moving else {
            return self.keep_drains_waiting(&BTreeSet::new(), &to, actions);
        };
        let holders = to.values().filter_map(|uid| self.fleet.get(uid));
        let evidence = holders.map(|s| Destination { uid: &s.report.uid, app: s.report.app, before: s.baseline() });
        self.pace.brake().weigh(evidence, now);
        moving.allowance = self.pace.allow(&sources, &moving.flight, &self.pool.pace, connections, now);
        let (totals, ttl) = (moving.allowance.totals.clone(), moving.allowance.ttl);
        for (source, total) in sources.iter().zip(totals) {
            let Some(total) = total else { continue };
            if let Some(sidecar) = self.fleet.get_mut(&source.uid) {
                sidecar.allowed = total;
            }
            actions.push(self.grant_to(&source.uid, total, ttl, &to));
        }
        let granted = sources.into_iter().map(|source| source.uid).collect();
        self.keep_drains_waiting(&granted, &to, actions);
    }

    pub(super) fn grant_to(&self, uid: &str, total: u64, ttl: Duration, to: &BTreeMap<SlotId, String>) -> Action {
        Action::Grant(Grant {
            target: uid.to_owned(),
            version: self.saved.version,
            allow_total: total,
            ttl_ms: u64::try_from(ttl.as_millis()).expect("a second at most"),
            to: to.keys().copied().collect(),
        })
    }

    /// A draining sidecar that hears nothing gives its keys to its peers' next-best slots. While its slot waits for a
    /// successor, or the successor for the placement, it gets a grant of nothing.
    pub(super) fn keep_drains_waiting(
        &self,
        granted: &BTreeSet<String>,
        to: &BTreeMap<SlotId, String>,
        actions: &mut Vec<Action>,
    ) {
        let waiting = self.members.iter().filter(|m| m.state == MemberState::Leaving { overdue: false });
        for uid in waiting.filter_map(|member| member.uid.as_ref()).filter(|uid| !granted.contains(*uid)) {
            if let Some(sidecar) = self.fleet.get(uid).filter(|s| s.has(&self.saved.pool_uid, self.saved.version)) {
                actions.push(self.grant_to(uid, sidecar.allowed, GRANT_TTL, to));
            }
        }
    }

    /// The slots that connections may be moved to, with their holders: those whose holder is well and has the placement, and has
    /// had its slot for a moment.
    pub(super) fn destinations(&self, now: Instant) -> BTreeMap<SlotId, String> {
        let slots = self.saved.roster.slots.iter();
        let held = slots.filter_map(|slot| Some((slot.id, &slot.holder.as_ref()?.uid)));
        let known = |uid: &str| self.fleet.get(uid).is_some_and(|s| now >= s.slot_since + self.pool.pace.lead);
        let ready = held
            .filter(|(_, uid)| self.state_of(uid) == MemberState::Ready && self.has_acknowledged(uid) && known(uid));
        ready.map(|(id, uid)| (id, uid.clone())).collect()
    }

    pub(super) fn sources(&self, to: &BTreeMap<SlotId, String>, now: Instant) -> Vec<Source> {
        let may_shed = || !to.is_empty() && self.knows_takers(now);
        let by_load = self.levels().then(|| if may_shed() { self.excess_by_member(now) } else { BTreeMap::default() });
        let pending = |report: &Report| match &by_load {
            Some(excess) => excess.get(&report.uid).copied().unwrap_or(0),
            None => report.moved_to.iter().filter(|(slot, _)| to.contains_key(slot)).map(|(_, count)| count).sum(),
        };
        let sources = self.placed().filter(|sidecar| sidecar.is_fresh(now)).map(|sidecar| {
            let report = &sidecar.report;
            Source {
                uid: report.uid.clone(),
                pending: pending(report),
                evicted: report.evicted,
                allowed: sidecar.allowed,
                seconds_left: report.drain_seconds_left.filter(|_| report.draining),
            }
        });
        sources.filter(|source| source.pending > 0).collect()
    }
}

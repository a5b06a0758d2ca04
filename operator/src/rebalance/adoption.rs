//! Putting a change in force: when it is due, and what it is published with.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use ring::placement::{MAX_PREDECESSORS, Table};
use ring::settings::{Settings, Strategy};
use ring::{Holder, KeyHasher, Placement};

use super::saved::Saved;
use super::{Action, Machine, succession};
use crate::planner::{self, MemberState, Roster, Scope};
use crate::pool::Mode;

/// A change that is waited with.
#[derive(Clone, Debug)]
pub(super) struct Settling {
    pub(super) since: Instant,
    pub(super) target: Target,
}

/// What is to be in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) roster: Roster,
    hasher: KeyHasher,
    settings: Settings,
    others: Vec<Holder>,
    /// Whether membership has stood still before it.
    waited: bool,
}

impl Target {
    pub(super) fn table(&self) -> Table {
        Table { hasher: self.hasher.clone(), slots: self.roster.slots.clone() }
    }
}

impl Machine {
    pub(super) fn target(&self, scope: Scope) -> Target {
        let roster = planner::plan(&self.saved.roster, &self.members, self.desired, scope);
        let (hasher, settings) = match scope {
            Scope::Whole => (&self.pool.hasher, &self.pool.settings),
            Scope::Forced => (&self.saved.hasher, &self.settings),
        };
        let others = self.others(&roster);
        Target { roster, hasher: hasher.clone(), settings: settings.clone(), others, waited: scope == Scope::Whole }
    }

    /// Notes the change that is not in force yet. Answers it once it has stood still for long enough.
    pub(super) fn settle(&mut self, now: Instant) -> Option<Target> {
        let target = self.target(Scope::Whole);
        let in_force = target.roster == self.saved.roster
            && target.hasher == self.saved.hasher
            && target.settings == self.settings
            && target.others == self.others;
        if in_force {
            self.settling = None;
            return None;
        }
        if self.settling.as_ref().is_none_or(|settling| settling.target != target) {
            self.settling = Some(Settling { since: now, target });
        }
        let settling = self.settling.as_ref()?;
        (now >= settling.since + self.pool.pace.settle).then(|| settling.target.clone())
    }

    pub(super) fn adopt_what_is_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let forced = self.target(Scope::Forced);
        if forced.roster != self.saved.roster {
            self.adopt(forced, now, actions);
        }
        if let Some(settled) = self.settle(now)
            && self.pool.pace.mode == Mode::Automatic
            && self.adopt(settled, now, actions)
        {
            self.settling = None;
        }
    }

    /// Puts a new table in force. Refused while too many earlier ones may still hold keys.
    pub(super) fn adopt(&mut self, target: Target, now: Instant, actions: &mut Vec<Action>) -> bool {
        let table = target.table();
        let Target { roster, hasher, settings, others, waited } = target;
        let before = self.tables();
        let predecessors = match settings.strategy {
            Strategy::ConsistentHash => {
                succession::predecessors(&table, before.iter().cloned(), |uid| self.is_dead(uid))
            }
            // Nobody claims anything.
            Strategy::LeastConnections => Vec::new(),
        };
        self.full = predecessors.len() > MAX_PREDECESSORS;
        if self.full {
            return false;
        }
        let mut absences = Vec::new();
        // While nothing moves, what has fallen back is brought home when its owner is back.
        if !predecessors.is_empty() {
            let absent = self.absent.keys().copied().collect();
            let meanwhile = self.saved.absences.iter().cloned().chain(succession::without(&before, &absent));
            let all = predecessors.iter().cloned().chain(meanwhile);
            absences = succession::predecessors(&table, all, |uid| self.is_dead(uid)).split_off(predecessors.len());
        }
        if self.has_newcomers(&roster) || settings.strategy != self.settings.strategy {
            // What could not wait for membership to stand still is followed by clients that come back.
            self.compare_from(if waited { now } else { now + self.pool.pace.settle });
        }
        self.saved = Saved { hasher, roster, predecessors, absences, ..std::mem::take(&mut self.saved) };
        self.saved.version.epoch += 1;
        (self.settings, self.others) = (settings, others);
        if self.saved.is_moving() {
            self.begin_move(now);
        }
        self.put_in_force(actions);
        true
    }

    /// Saves what is in force and sends it to everyone.
    pub(super) fn put_in_force(&mut self, actions: &mut Vec<Action>) {
        for uid in self.fleet.iter().map(|s| s.report.uid.clone()).collect::<Vec<_>>() {
            // A grant dies with its version, and what was not spent of it.
            let sidecar = self.fleet.get_mut(&uid).expect("it was just listed");
            sidecar.allowed = sidecar.report.evicted;
        }
        actions.push(Action::Save(Box::new(self.saved.clone())));
        self.publish(actions);
    }

    pub(super) fn table(&self) -> Table {
        Table { hasher: self.saved.hasher.clone(), slots: self.saved.roster.slots.clone() }
    }

    /// The living members that hold no slot. One that starts is none yet: it would change the placement twice.
    pub(super) fn others(&self, roster: &Roster) -> Vec<Holder> {
        let holders = roster.slots.iter().filter_map(|slot| Some(slot.holder.as_ref()?.uid.as_str()));
        let holders: HashSet<&str> = holders.collect();
        let others = self.members.iter();
        let others = others.filter(|member| !matches!(member.state, MemberState::Dead | MemberState::Starting));
        let others = others.filter_map(|member| {
            let uid = member.uid.clone().filter(|uid| !holders.contains(uid.as_str()))?;
            Some(Holder { name: member.name.clone(), uid, address: member.address.clone() })
        });
        others.collect()
    }

    /// The placement in force.
    pub fn placement(&self) -> Placement {
        Placement {
            pool: self.pool.name.clone(),
            pool_uid: self.saved.pool_uid.clone(),
            version: self.saved.version,
            table: self.table(),
            predecessors: self.saved.listed(),
            others: self.others.clone(),
            settings: self.settings.clone(),
        }
    }

    pub(super) fn publish(&self, actions: &mut Vec<Action>) {
        if self.saved.roster.slots.is_empty() && !self.saved.is_moving() {
            return;
        }
        let mut behind = self.living().filter(|uid| !self.has_acknowledged(uid)).peekable();
        if behind.peek().is_none() {
            return;
        }
        let placement = Arc::new(self.placement());
        for uid in behind {
            actions.push(Action::Publish { uid: uid.to_owned(), placement: placement.clone() });
        }
    }
}

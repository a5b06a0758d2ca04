//! The machine that moves connections: one for each pool, a function of (state, event, now).
//!
//! ```text
//!             membership or pool changes            still for `settle`, or forced
//!   Stable ──────────────────────────► Settling ──────────────────────────────► Publishing
//!     ▲                                                                              │ every sidecar that answers
//!     └── nothing is pending or in flight: predecessors are dropped ── Evicting ◄────┘ has acknowledged
//! ```
//!
//! | file | what |
//! |---|---|
//! | `adoption` | a change, from when it is seen until it is in force |
//! | `succession` | which earlier tables a placement lists |
//! | `recall` | what went elsewhere while a holder was out of reach |
//! | `level` | who holds too much, where load decides |
//! | `fleet` | what the sidecars say of themselves |
//! | `flight` | connections between two servers |
//! | `pace`, `brake` | how many may be evicted now |
//! | `grants` | by whom, and where to |
//! | `saved` | what a restarted operator goes on from |
//! | `view`, `estimate` | what there is to say of it all |
//!
//! A change may come at any point; connections go on moving under the placement in force while the next one settles.
//! Events go in, [`Action`]s come out, and the [`driver`](crate::driver) carries them out.

mod adoption;
pub mod brake;
pub mod estimate;
pub mod fleet;
pub mod flight;
mod grants;
pub mod level;
pub mod pace;
mod recall;
mod saved;
pub mod succession;
pub mod view;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::settings::Settings;
use ring::wire::{Grant, Loads, Report};
use ring::{Holder, Placement, Slot, SlotId, Version};
use serde::Serialize;

use crate::planner::{Member, MemberState, Roster};
use crate::pool::CheckedPool;
use crate::pool::Mode;
use adoption::Settling;
use fleet::Fleet;
use flight::Flight;
use level::Levelling;
use pace::{Allowance, Pace};
use view::MoveView;

pub use saved::Saved;

/// How often [`Event::Tick`] is due while something moves; grants last four of them.
pub const TICK: Duration = Duration::from_millis(250);
/// A sidecar that has not acknowledged a new term by then holds up the others no longer.
const ANNOUNCEMENT: Duration = Duration::from_secs(5);

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Who is there now, and how many slots there should be.
    Members {
        /// All members, also those that leave.
        members: Vec<Member>,
        /// The desired number of slots.
        desired: usize,
    },
    /// The pool has changed.
    Pool(Box<CheckedPool>),
    /// A sidecar has answered.
    Report(Box<Report>),
    /// Time has passed.
    Tick,
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Write this down before what follows is carried out.
    Save(Box<Saved>),
    /// Send the placement to a sidecar.
    Publish {
        /// The sidecar's UID.
        uid: String,
        /// The placement in force.
        placement: Arc<Placement>,
    },
    /// Send a grant to the sidecar that it names.
    Grant(Grant),
    /// Tell a sidecar what the slots hold.
    Tell {
        /// The sidecar's UID.
        uid: String,
        /// The loads.
        loads: Arc<Loads>,
    },
    /// Stop: a newer operator leads.
    Resign {
        /// What it has published.
        newer: Version,
    },
}

/// Where a pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum State {
    /// Nothing is to be done.
    Stable,
    /// Membership has changed; the machine waits until it stands still.
    Settling,
    /// The placement is on its way to the sidecars.
    Publishing,
    /// Connections move.
    Evicting,
}

/// The machine of one pool.
#[derive(Clone, Debug)]
pub struct Machine {
    pool: CheckedPool,
    saved: Saved,
    settings: Settings,
    others: Vec<Holder>,
    members: Vec<Member>,
    /// How they are, by UID: it is asked for each slot with each event.
    states: HashMap<String, MemberState>,
    desired: usize,
    fleet: Fleet,
    term: Term,
    settling: Option<Settling>,
    moving: Option<Move>,
    pace: Pace,
    /// What the last move came to.
    last: MoveView,
    /// Slots whose holder was out of reach, and when last: their keys may be held at their next-best slots.
    absent: BTreeMap<SlotId, Instant>,
    levelling: Levelling,
    /// The predecessors are at their limit: no new placement until a move ends.
    full: bool,
}

/// How far this operator's term is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Term {
    /// It learns what sidecars have, so that its versions are newer.
    Learning { since: Option<Instant> },
    /// It is being announced: no grants until every sidecar that answers has heard of it.
    Announcing { since: Instant },
    /// It is in force.
    InForce,
    /// A newer operator leads.
    Over { newer: Version },
}

/// A move under way.
#[derive(Clone, Debug)]
struct Move {
    flight: Flight,
    allowance: Allowance,
}

impl Machine {
    /// A machine for a pool, which goes on from what an earlier operator has saved.
    pub fn new(pool: CheckedPool, pool_uid: &str, saved: Option<Saved>) -> Self {
        let saved = saved.filter(|saved| saved.pool_uid == pool_uid).unwrap_or_else(|| Saved {
            pool_uid: pool_uid.to_owned(),
            hasher: pool.hasher.clone(),
            ..Saved::default()
        });
        Self {
            settings: pool.settings.clone(),
            pool,
            saved,
            others: Vec::new(),
            members: Vec::new(),
            states: HashMap::new(),
            desired: 0,
            fleet: Fleet::default(),
            term: Term::Learning { since: None },
            settling: None,
            moving: None,
            pace: Pace::default(),
            last: MoveView::default(),
            absent: BTreeMap::new(),
            levelling: Levelling::default(),
            full: false,
        }
    }

    /// Takes an event in and says what to do. What a report makes due waits for the next tick: each look at the pool costs as
    /// much as the pool is large, and the larger it is the more reports come.
    pub fn step(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let tick = matches!(event, Event::Tick);
        match event {
            Event::Members { members, desired } => {
                // Of two with the same UID the first counts.
                let states = members.iter().rev().filter_map(|member| Some((member.uid.clone()?, member.state)));
                self.states = states.collect();
                (self.members, self.desired) = (members, desired);
            }
            Event::Pool(pool) => self.pool = *pool,
            Event::Report(report) => {
                let is_newer = report.version > self.saved.version;
                self.hear(*report, now);
                if is_newer {
                    self.resign_if_outranked(&mut actions);
                }
                return actions;
            }
            Event::Tick => {}
        }
        if self.resign_if_outranked(&mut actions) {
            return actions;
        }
        if self.learns(now) || self.pool.pace.mode == Mode::DryRun {
            self.settle(now);
            return actions;
        }
        self.take_over(now, &mut actions);
        self.note_absences(now);
        self.adopt_what_is_due(now, &mut actions);
        if tick {
            self.recall(now, &mut actions);
            self.level(now, &mut actions);
        }
        self.follow_move(now, &mut actions);
        if tick {
            self.publish(&mut actions);
            self.tell_loads(now, &mut actions);
            self.grant(now, &mut actions);
        }
        actions
    }

    /// Where the pool stands.
    pub fn state(&self) -> State {
        match (&self.moving, &self.settling) {
            (Some(_), _) if !self.is_announced() => State::Publishing,
            (Some(_), _) => State::Evicting,
            (None, Some(_)) => State::Settling,
            (None, None) if self.pool.pace.mode == Mode::DryRun => State::Stable,
            (None, None) if matches!(self.term, Term::Learning { .. }) => State::Settling,
            (None, None) => State::Stable,
        }
    }

    /// The version in force.
    pub fn version(&self) -> Version {
        self.saved.version
    }

    /// What a restarted operator would have to know now.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    /// The pool as it was given last.
    pub fn pool(&self) -> &CheckedPool {
        &self.pool
    }

    /// The sidecars that a placement leads to, or did while their keys move, by UID.
    pub fn needed(&self) -> HashSet<&str> {
        let current = self.saved.roster.slots.iter().filter_map(|slot| slot.holder.as_deref());
        current.chain(self.saved.former_holders()).map(|holder| holder.uid.as_str()).collect()
    }

    /// The sidecars whose reports a move waits for, by UID: those without the placement in force, and those that connections
    /// go from and to.
    pub fn awaited(&self) -> HashSet<&str> {
        if self.moving.is_none() {
            return HashSet::new();
        }
        if self.levels() {
            return self.answering().collect();
        }
        let pending = self.pending_by_slot();
        let receiving = self.saved.roster.slots.iter().filter(|slot| pending.contains_key(&slot.id));
        let receiving = receiving.filter_map(|slot| Some(slot.holder.as_ref()?.uid.as_str()));
        let taking_part = self.answering().filter(|uid| match self.fleet.get(uid) {
            Some(sidecar) => {
                let (report, counted) = (&sidecar.report, sidecar.counted());
                let moves = report.moved_keys + report.in_flight + counted.evicted + counted.returned > 0;
                moves || !self.has_acknowledged(uid)
            }
            None => true,
        });
        receiving.chain(taking_part).collect()
    }

    fn hear(&mut self, report: Report, now: Instant) {
        let uid = report.uid.clone();
        if self.fleet.hear(report, &self.saved.baselines, now) {
            self.absent.extend(self.slot_of(&uid).map(|slot| (slot, now)));
        }
    }

    fn resign_if_outranked(&mut self, actions: &mut Vec<Action>) -> bool {
        let Some(newer) = self.outranked_by() else { return false };
        if !matches!(self.term, Term::Over { .. }) {
            self.term = Term::Over { newer };
            self.moving = None;
            actions.push(Action::Resign { newer });
        }
        true
    }

    fn outranked_by(&self) -> Option<Version> {
        if let Term::Over { newer } = self.term {
            return Some(newer);
        }
        let newest = self.fleet.newest(&self.saved.pool_uid)?;
        let learning = matches!(self.term, Term::Learning { .. });
        (!learning && newest > self.saved.version).then_some(newest)
    }

    /// Whether it is too early to publish: a sidecar that could answer may have a newer version than the saved one.
    fn learns(&mut self, now: Instant) -> bool {
        let Term::Learning { since } = &mut self.term else { return false };
        let since = *since.get_or_insert(now);
        let waits = self.members.iter().any(|member| {
            let answers =
                matches!(member.state, MemberState::Ready | MemberState::Leaving { .. } | MemberState::Starting);
            answers && member.uid.as_ref().is_none_or(|uid| self.fleet.get(uid).is_none())
        });
        self.members.is_empty() || (waits && now < since + self.pool.pace.settle)
    }

    /// The term begins: it is raised above every version known, and the placement that was in force is announced under it.
    fn take_over(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !matches!(self.term, Term::Learning { .. }) {
            return;
        }
        let known = self.fleet.newest(&self.saved.pool_uid).unwrap_or_default();
        let version = &mut self.saved.version;
        *version = Version { term: version.term.max(known.term) + 1, epoch: version.epoch.max(known.epoch) };
        self.term = Term::Announcing { since: now };
        // Nobody knows what was begun before.
        self.compare_from(now + self.pool.pace.settle);
        if self.saved.roster.slots.is_empty() {
            self.saved.roster = self.reported_roster(known);
        }
        if !self.saved.roster.slots.is_empty() {
            self.saved.version.epoch += 1;
            self.others = self.others(&self.saved.roster);
            self.put_in_force(actions);
        }
    }

    /// The slots as those sidecars know them that have the newest version: what is left of a state that was lost. Which
    /// tables were in force before is lost with it.
    fn reported_roster(&self, newest: Version) -> Roster {
        let mut roster = Roster::default();
        let reported = self.fleet.iter().filter(|sidecar| sidecar.has(&self.saved.pool_uid, newest));
        let slots = reported.filter_map(|sidecar| {
            let member = self.members.iter().find(|member| member.uid.as_ref() == Some(&sidecar.report.uid))?;
            Some((sidecar.report.slot?, member))
        });
        for (id, member) in slots.collect::<BTreeMap<_, _>>() {
            roster.slots.push(Slot { id, weight: member.weight, holder: member.holder() });
            roster.homes.insert(id, member.name.clone());
        }
        roster
    }

    fn begin_move(&mut self, now: Instant) {
        if self.moving.is_some() {
            return;
        }
        // An operator that took over in mid-move goes on from the baselines that were saved when it began.
        if self.saved.baselines.is_empty() {
            self.fleet.begin_move();
            let baselines = self.fleet.iter().map(|s| (s.report.uid.clone(), s.baseline()));
            self.saved.baselines = baselines.collect();
        }
        let flight = Flight::new(self.pool.pace.return_timeout);
        self.pace.restart(now);
        self.moving = Some(Move { flight, allowance: Allowance::default() });
    }

    /// Begins, follows and ends the move.
    fn follow_move(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.moving.is_none() && self.saved.is_moving() {
            self.begin_move(now);
        }
        let by_load = self.levels();
        let Some(moving) = &mut self.moving else {
            self.fleet.retain(|uid| self.states.contains_key(uid));
            return;
        };
        moving.flight.set_timeout(self.pool.pace.return_timeout);
        let (evicted, returned) = self.fleet.moved_so_far();
        if by_load {
            moving.flight.record_arrivals(evicted, self.fleet.accepted_so_far(), now);
        } else {
            moving.flight.record(evicted, returned, now);
        }
        let in_flight = moving.flight.in_flight(now) > 0;
        if if by_load { !self.is_level(now) } else { in_flight || self.may_hold_moved_keys() } {
            return;
        }
        self.last = self.move_view(now);
        self.fleet.retain(|uid| self.states.contains_key(uid));
        self.saved.baselines.clear();
        self.moving = None;
        if by_load {
            self.end_levelling();
            actions.push(Action::Save(Box::new(self.saved.clone())));
        }
        if self.saved.is_moving() {
            self.saved.predecessors.clear();
            self.saved.absences.clear();
            self.saved.version.epoch += 1;
            self.full = false;
            self.put_in_force(actions);
        }
    }

    /// Whether a key may be held anywhere but at its owner.
    fn may_hold_moved_keys(&self) -> bool {
        let unheard = |uid: &str| !self.is_dead(uid) && !self.has_acknowledged(uid);
        let silent = self.saved.former_holders().any(|holder| unheard(&holder.uid));
        // Without any owner no key counts as moved, and yet somebody may hold it.
        let ownerless = self.saved.roster.slots.iter().all(|slot| slot.holder.is_none());
        let holds_moved = |report: &Report| report.moved_keys > 0 || report.in_flight > 0;
        silent || self.placed().map(|s| &s.report).any(|r| holds_moved(r) || (ownerless && r.connections > 0))
    }

    /// Connections that have yet to go elsewhere.
    fn pending(&self, now: Instant) -> u64 {
        if self.levels() {
            return self.excess_by_member(now).values().sum();
        }
        self.placed().map(|sidecar| sidecar.report.moved).sum()
    }

    /// The same by the slot they belong to, without those slots that miss none.
    fn pending_by_slot(&self) -> BTreeMap<SlotId, u64> {
        let mut sums = BTreeMap::new();
        for (&slot, &count) in self.placed().flat_map(|sidecar| &sidecar.report.moved_to) {
            if count > 0 {
                *sums.entry(slot).or_default() += count;
            }
        }
        sums
    }

    /// The living sidecars that have the placement in force.
    fn placed(&self) -> impl Iterator<Item = &fleet::Sidecar> {
        let living = self.living().filter_map(|uid| self.fleet.get(uid));
        living.filter(|sidecar| sidecar.has(&self.saved.pool_uid, self.saved.version))
    }

    fn slot_of(&self, uid: &str) -> Option<SlotId> {
        let holds = |slot: &&ring::Slot| slot.holder.as_ref().is_some_and(|holder| holder.uid == uid);
        self.saved.roster.slots.iter().find(holds).map(|slot| slot.id)
    }

    fn connections(&self) -> u64 {
        self.living().filter_map(|uid| self.fleet.get(uid)).map(|sidecar| sidecar.report.connections).sum()
    }

    /// Whether every sidecar that answers has heard of this term: then an older operator's grants are refused.
    fn announced(&mut self, now: Instant) -> bool {
        if let Term::Announcing { since } = self.term {
            let heard =
                |uid: &str| self.fleet.get(uid).is_some_and(|s| s.report.version.term == self.saved.version.term);
            if now >= since + ANNOUNCEMENT || self.answering().all(heard) {
                self.term = Term::InForce;
            }
        }
        self.term == Term::InForce
    }

    /// Whether every sidecar that answers has the placement in force.
    fn is_announced(&self) -> bool {
        self.answering().all(|uid| self.has_acknowledged(uid))
    }

    fn has_acknowledged(&self, uid: &str) -> bool {
        self.fleet.get(uid).is_some_and(|sidecar| sidecar.has(&self.saved.pool_uid, self.saved.version))
    }

    fn state_of(&self, uid: &str) -> MemberState {
        self.states.get(uid).copied().unwrap_or(MemberState::Dead)
    }

    fn is_dead(&self, uid: &str) -> bool {
        self.state_of(uid) == MemberState::Dead
    }

    /// Members that may hold connections, by UID.
    fn living(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter(|m| m.state != MemberState::Dead).filter_map(|m| m.uid.as_deref())
    }

    /// Members that answer, by UID. One that leaves may have ended.
    fn answering(&self) -> impl Iterator<Item = &str> {
        let answers = |m: &&Member| match m.state {
            MemberState::Ready => true,
            MemberState::Leaving { .. } => !m.silent,
            _ => false,
        };
        self.members.iter().filter(answers).filter_map(|member| member.uid.as_deref())
    }
}

#[cfg(test)]
mod tests;

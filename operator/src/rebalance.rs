//! The machine that moves connections: one for each pool, a function of (state, event, now).
//!
//! ```text
//!             membership or pool changes            still for `settle`, or forced
//!   Stable ──────────────────────────► Settling ──────────────────────────────► Publishing
//!     ▲                                                                              │ every sidecar that answers
//!     └── nothing is pending or in flight: predecessors are dropped ── Evicting ◄────┘ has acknowledged
//! ```
//!
//! A change may come at any point; connections go on moving under the placement in force while the next one settles.
//! Events go in, [`Action`]s come out, and the [`driver`](crate::driver) carries them out.

pub mod brake;
pub mod estimate;
pub mod fleet;
pub mod flight;
pub mod pace;
pub mod succession;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::placement::{MAX_PREDECESSORS, Predecessor, Table};
use ring::settings::Settings;
use ring::wire::{Grant, Report};
use ring::{Holder, KeyHasher, Placement, Slot, SlotId, Version};
use serde::{Deserialize, Serialize};

use crate::planner::{self, Member, MemberState, Roster, Scope};
use crate::pool::CheckedPool;
use crate::pool::Mode;
use brake::Destination;
use fleet::{Fleet, Totals};
use flight::Flight;
use pace::{Allowance, GRANT_TTL, Pace, Source};
use view::MoveView;

/// How often [`Event::Tick`] is due while something moves; grants last four of them.
pub const TICK: Duration = Duration::from_millis(250);
/// A sidecar that has not acknowledged a new term by then holds up the others no longer.
const ANNOUNCEMENT: Duration = Duration::from_secs(5);

/// Sidecars avoid a peer that did not answer for ten seconds, and then report what they hold: for so long its keys may
/// still go to their next-best slots.
const STILL_AVOIDED: Duration = Duration::from_secs(12);

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
    /// Stop: a newer operator leads.
    Resign {
        /// What it has published.
        newer: Version,
    },
}

/// What a restarted operator must know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// The pool's UID.
    pub pool_uid: String,
    /// The version in force.
    #[serde(flatten)]
    pub version: Version,
    /// How keys are hashed under it.
    pub hasher: KeyHasher,
    /// Its slots. Not flattened: serde would then no longer read the ids, which are keys of a map, as numbers.
    pub roster: Roster,
    /// Tables under which keys may still be held, newest first.
    #[serde(default)]
    pub predecessors: Vec<Predecessor>,
    /// What such tables came to while holders were out of reach: their slots are vacant. Listed as predecessors too, as far
    /// as there is room: they stand for what a crash or a partition left behind.
    #[serde(default)]
    pub absences: Vec<Predecessor>,
    /// What sidecars had counted when the move began.
    #[serde(default)]
    pub baselines: BTreeMap<String, Totals>,
}

impl Saved {
    /// Whether keys may be held by others than their owners.
    fn is_moving(&self) -> bool {
        !self.predecessors.is_empty() || !self.absences.is_empty()
    }

    /// The predecessors that the placement lists, newest first.
    fn listed(&self) -> Vec<Predecessor> {
        let all = self.predecessors.iter().chain(&self.absences);
        let mut listed: Vec<_> = all.take(MAX_PREDECESSORS).cloned().collect();
        listed.sort_by_key(|predecessor| std::cmp::Reverse(predecessor.version));
        listed
    }

    fn former_holders(&self) -> impl Iterator<Item = &Holder> {
        let tables = self.predecessors.iter().chain(&self.absences);
        tables.flat_map(|predecessor| &predecessor.table.slots).filter_map(|slot| slot.holder.as_ref())
    }
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

/// A change that is waited with.
#[derive(Clone, Debug)]
struct Settling {
    since: Instant,
    target: Target,
}

/// What is to be in force.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    roster: Roster,
    hasher: KeyHasher,
    settings: Settings,
    others: Vec<Holder>,
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
            desired: 0,
            fleet: Fleet::default(),
            term: Term::Learning { since: None },
            settling: None,
            moving: None,
            pace: Pace::default(),
            last: MoveView::default(),
            absent: BTreeMap::new(),
            full: false,
        }
    }

    /// Takes an event in and says what to do.
    pub fn step(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let tick = matches!(event, Event::Tick);
        match event {
            Event::Members { members, desired } => (self.members, self.desired) = (members, desired),
            Event::Pool(pool) => self.pool = *pool,
            Event::Report(report) => {
                let slot = self.slot_of(&report.uid);
                let restarted = self.fleet.hear(*report, &self.saved.baselines, now);
                self.absent.extend(slot.filter(|_| restarted).map(|slot| (slot, now)));
            }
            Event::Tick => {}
        }
        if let Some(newer) = self.outranked_by() {
            if !matches!(self.term, Term::Over { .. }) {
                self.term = Term::Over { newer };
                self.moving = None;
                actions.push(Action::Resign { newer });
            }
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
        }
        self.follow_move(now, &mut actions);
        if tick {
            self.publish(&mut actions);
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

    /// Whether a placement leads to a sidecar, or did while its keys move.
    pub fn needs(&self, uid: &str) -> bool {
        let current = self.saved.roster.slots.iter().filter_map(|slot| slot.holder.as_ref());
        current.chain(self.saved.former_holders()).any(|holder| holder.uid == uid)
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

    fn target(&self, scope: Scope) -> Target {
        let roster = planner::plan(&self.saved.roster, &self.members, self.desired, scope);
        let (hasher, settings) = match scope {
            Scope::Whole => (&self.pool.hasher, &self.pool.settings),
            Scope::Forced => (&self.saved.hasher, &self.settings),
        };
        let others = self.others(&roster);
        Target { roster, hasher: hasher.clone(), settings: settings.clone(), others }
    }

    /// Notes the change that is not in force yet. Answers it once it has stood still for long enough.
    fn settle(&mut self, now: Instant) -> Option<Target> {
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

    fn adopt_what_is_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
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
    fn adopt(&mut self, target: Target, now: Instant, actions: &mut Vec<Action>) -> bool {
        let Target { roster, hasher, settings, others } = target;
        let table = Table { hasher: hasher.clone(), slots: roster.slots.clone() };
        let before = self.tables();
        let predecessors = succession::predecessors(&table, before.iter().cloned(), |uid| self.is_dead(uid));
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
        self.saved = Saved { hasher, roster, predecessors, absences, ..std::mem::take(&mut self.saved) };
        self.saved.version.epoch += 1;
        (self.settings, self.others) = (settings, others);
        if self.saved.is_moving() {
            self.begin_move(now);
        }
        self.put_in_force(actions);
        true
    }

    /// Brings home what fell back while a slot's holder was out of reach. Under the placement as it is nobody would claim
    /// those keys from where they are, and nobody would count their return. So it is published again, with what was true
    /// meanwhile as predecessors: the slots were vacant.
    fn recall(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.pool.pace.mode != Mode::Automatic {
            return;
        }
        let away = self.pending_by_slot();
        // While nothing else moves, whatever is not at its owner has fallen back.
        let fell_back = |slot: &SlotId| !self.saved.is_moving() || self.absent.contains_key(slot);
        let ready = self.destinations().into_keys();
        let back: BTreeSet<SlotId> = ready.filter(|slot| away.contains_key(slot) && fell_back(slot)).collect();
        if back.is_empty() {
            return;
        }
        // Slots that are still out of reach were so meanwhile: a key may have gone to its third-best.
        let all = self.absent.keys().chain(&back).copied().collect();
        let each = back.iter().map(|slot| BTreeSet::from([*slot]));
        let absences: Vec<BTreeSet<SlotId>> = [all, back.clone()].into_iter().chain(each).collect();
        let tables = self.tables();
        let meanwhile = absences.iter().flat_map(|absent| succession::without(&tables, absent));
        let known: Vec<Predecessor> = self.saved.predecessors.iter().chain(&self.saved.absences).cloned().collect();
        let is_dead = |uid: &str| self.is_dead(uid);
        let known = succession::predecessors(&self.table(), known, is_dead);
        let more = succession::predecessors(&self.table(), known.iter().cloned().chain(meanwhile), is_dead);
        let more = more.get(known.len()..).unwrap_or_default().to_vec();
        self.begin_move(now);
        if !more.is_empty() {
            self.saved.absences.extend(more);
            self.saved.version.epoch += 1;
            self.put_in_force(actions);
        }
    }

    /// Every table under which a key may be held, newest first.
    fn tables(&self) -> Vec<Predecessor> {
        let current = Predecessor { version: self.saved.version, table: self.table() };
        std::iter::once(current).chain(self.saved.predecessors.iter().cloned()).collect()
    }

    fn note_absences(&mut self, now: Instant) {
        let slots = self.saved.roster.slots.iter();
        let silent = slots.filter(|slot| {
            slot.holder.as_ref().is_some_and(|holder| self.state_of(&holder.uid) == MemberState::Unreachable)
        });
        let silent: Vec<(SlotId, Instant)> = silent.map(|slot| (slot.id, now)).collect();
        self.absent.extend(silent);
        self.absent.retain(|_, last| now < *last + STILL_AVOIDED);
    }

    /// Saves what is in force and sends it to everyone.
    fn put_in_force(&mut self, actions: &mut Vec<Action>) {
        for uid in self.fleet.iter().map(|s| s.report.uid.clone()).collect::<Vec<_>>() {
            // A grant dies with its version, and what was not spent of it.
            let sidecar = self.fleet.get_mut(&uid).expect("it was just listed");
            sidecar.allowed = sidecar.report.evicted;
        }
        actions.push(Action::Save(Box::new(self.saved.clone())));
        self.publish(actions);
    }

    fn table(&self) -> Table {
        Table { hasher: self.saved.hasher.clone(), slots: self.saved.roster.slots.clone() }
    }

    /// The living members that hold no slot. One that starts is none yet: it would change the placement twice.
    fn others(&self, roster: &Roster) -> Vec<Holder> {
        let holds = |uid: &str| roster.slots.iter().any(|slot| slot.holder.as_ref().is_some_and(|h| h.uid == uid));
        let others = self.members.iter();
        let others = others.filter(|member| !matches!(member.state, MemberState::Dead | MemberState::Starting));
        let others = others.filter_map(|member| {
            let uid = member.uid.clone().filter(|uid| !holds(uid))?;
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

    fn publish(&self, actions: &mut Vec<Action>) {
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
        let members: BTreeSet<_> = self.members.iter().filter_map(|m| m.uid.clone()).collect();
        let Some(moving) = &mut self.moving else {
            self.fleet.retain(|uid| members.contains(uid));
            return;
        };
        let (evicted, returned) = self.fleet.moved_so_far();
        moving.flight.set_timeout(self.pool.pace.return_timeout);
        moving.flight.record(evicted, returned, now);
        if moving.flight.in_flight(now) > 0 || self.may_hold_moved_keys() {
            return;
        }
        self.last = self.move_view(now);
        self.fleet.retain(|uid| members.contains(uid));
        self.saved.baselines.clear();
        self.moving = None;
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

    /// Connections whose owner is elsewhere now.
    fn pending(&self) -> u64 {
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

    fn grant(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.pool.pace.mode != Mode::Automatic || !self.announced(now) {
            return;
        }
        let to = self.destinations();
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

    fn grant_to(&self, uid: &str, total: u64, ttl: Duration, to: &BTreeMap<SlotId, String>) -> Action {
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
    fn keep_drains_waiting(
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

    /// The slots that keys may be moved to, with their holders: those whose holder is well and has the placement.
    fn destinations(&self) -> BTreeMap<SlotId, String> {
        let slots = self.saved.roster.slots.iter();
        let held = slots.filter_map(|slot| Some((slot.id, &slot.holder.as_ref()?.uid)));
        let ready = held.filter(|(_, uid)| self.state_of(uid) == MemberState::Ready && self.has_acknowledged(uid));
        ready.map(|(id, uid)| (id, uid.clone())).collect()
    }

    fn sources(&self, to: &BTreeMap<SlotId, String>, now: Instant) -> Vec<Source> {
        let sources = self.placed().filter(|sidecar| sidecar.is_fresh(now)).map(|sidecar| {
            let report = &sidecar.report;
            Source {
                uid: report.uid.clone(),
                pending: report.moved_to.iter().filter(|(slot, _)| to.contains_key(slot)).map(|(_, count)| count).sum(),
                evicted: report.evicted,
                allowed: sidecar.allowed,
                seconds_left: report.drain_seconds_left.filter(|_| report.draining),
            }
        });
        sources.filter(|source| source.pending > 0).collect()
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
        self.members.iter().find(|m| m.uid.as_deref() == Some(uid)).map_or(MemberState::Dead, |member| member.state)
    }

    fn is_dead(&self, uid: &str) -> bool {
        self.state_of(uid) == MemberState::Dead
    }

    /// Members that may hold connections, by UID.
    fn living(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter(|m| m.state != MemberState::Dead).filter_map(|m| m.uid.as_deref())
    }

    /// Members that answer, by UID.
    fn answering(&self) -> impl Iterator<Item = &str> {
        let answers = |m: &&Member| matches!(m.state, MemberState::Ready | MemberState::Leaving { .. });
        self.members.iter().filter(answers).filter_map(|member| member.uid.as_deref())
    }
}

#[cfg(test)]
mod tests;

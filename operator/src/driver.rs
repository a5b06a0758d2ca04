//! Drives the machine of one pool: tells it who is there, carries its actions to the sidecars, and writes its state down.
//!
//! ```text
//!  Input: pool, members, desired ─► ┌──────────────┐ ──mailbox──► courier ──HTTP──► sidecar
//!  sidecars' answers ─────────────► │ the machine  │ ──mailbox──► courier ──HTTP──► sidecar
//!  time ──────────────────────────► └──────────────┘ ──► Store, PoolView
//! ```
//!
//! Where the input comes from, and where the state is kept, differs: files for `standalone`, an API server for `cluster`.

pub mod courier;
pub mod health;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::wire::{PodPin, Report};
use ring::{Placement, SlotId, Version};
use tokio::sync::{mpsc, watch as latest};
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::control::{Control, ControlError, Written};
use crate::planner::{Member, MemberState, Role};
use crate::pool::CheckedPool;
use crate::rebalance::view::PoolView;
use crate::rebalance::{Action, Event, Machine, Saved, State, TICK};
use courier::{Answer, Mailbox, Route};
use health::{Health, Patience};

/// How many ticks pass between two questions to a sidecar that nothing waits for.
const IDLE_TICKS: u64 = 4;
/// How long passes between two tries to write the state down.
const SAVE_AGAIN: Duration = Duration::from_secs(1);

/// What is wanted of a pool, and who is there. The newest input counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The pool.
    pub pool: CheckedPool,
    /// Its members, in the order in which they get slots.
    pub entries: Vec<Entry>,
    /// How many slots there should be.
    pub desired: usize,
    /// What becomes of members that are listed no more.
    pub unlisted: Unlisted,
    /// What is wrong where the input comes from: a reason in one word, and a sentence.
    pub troubles: Vec<(&'static str, String)>,
}

/// A member, as a file or an API server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its pod's UID; `None` where only its sidecar knows one.
    pub uid: Option<String>,
    /// Where its sidecar accepts clients and peers, `host:port`.
    pub address: String,
    /// Where its sidecar takes control requests, `host:port`.
    pub control: String,
    /// Its share of the keys, 1 to 64.
    pub weight: u8,
    /// What it does.
    pub role: Role,
    /// The only slot that it may hold; `None` means any.
    pub ordinal: Option<SlotId>,
    /// How it is, as far as its source knows.
    pub standing: Standing,
    /// Until when everything in it stays, in milliseconds since 1970; 0 when nothing is said.
    pub pinned_until: u64,
}

impl Entry {
    /// What tells it from every other member: one whose ports or UID have changed is another one, and the old one leaves.
    fn identity(&self) -> (&str, Option<&str>, &str, &str) {
        (&self.name, self.uid.as_deref(), &self.address, &self.control)
    }
}

/// How a listed member is, before its sidecar was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not ready to serve.
    Starting,
    /// It may serve.
    Present,
    /// It is going away.
    Leaving {
        /// How long it may take to end.
        grace: Duration,
    },
}

/// What becomes of a member that is listed no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlisted {
    /// Its process may live: it is emptied.
    Leaves,
    /// Its process has ended.
    IsGone,
}

/// Where the state is written down.
pub trait Store: Send {
    /// Where that is, for people.
    fn place(&self) -> String;

    /// Writes down what is in force.
    fn save(&mut self, saved: &Saved, placement: &Placement) -> impl Future<Output = Result<(), SaveError>> + Send;

    /// Whether what was written is gone, and must be written again.
    fn is_lost(&self) -> bool {
        false
    }
}

/// Why the state was not written down.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It may be tried again.
    #[error("{0}")]
    Failed(String),
    /// Somebody newer has written there.
    #[error("another operator has written {0}")]
    Superseded(Version),
}

/// Why a driver had to end.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Somebody else leads.
    #[error("a newer operator leads this pool: there is {0}")]
    Superseded(Version),
    /// A courier panicked.
    #[error("a courier ended: {0}")]
    Courier(#[from] JoinError),
    /// Nobody gives input any more.
    #[error("what feeds the pool ended unexpectedly")]
    Input,
}

/// The owner of a pool's machine.
#[derive(Debug)]
pub struct Driver<S> {
    machine: Machine,
    store: S,
    /// A state that could not be written: nothing is published before it is.
    unsaved: Option<Box<Saved>>,
    save_again: Instant,
    tracked: Vec<Tracked>,
    born: u64,
    /// What the machine was told of the members last.
    told: (Vec<Member>, usize),
    /// Where the machine stood when that was said last.
    stood: (State, Version),
    /// When all members were last looked at between two ticks.
    looked: Option<Instant>,
    couriers: JoinSet<()>,
    control: Control,
    ticks: u64,
    input: latest::Receiver<Input>,
    view: latest::Sender<PoolView>,
}

/// A member that is listed, or was, and is followed until nothing more is expected of it.
#[derive(Debug)]
struct Tracked {
    id: u64,
    entry: Entry,
    health: Health,
    mailbox: Mailbox,
    complained: Option<String>,
}

impl<S: Store> Driver<S> {
    /// A driver that has not begun, and what it will say of its pool. It goes on from what an earlier one has saved.
    pub fn new(
        mut input: latest::Receiver<Input>,
        pool_uid: &str,
        saved: Option<Saved>,
        store: S,
        control: Control,
    ) -> (Self, latest::Receiver<PoolView>) {
        let now = Instant::now();
        let pool = input.borrow_and_update().pool.clone();
        let machine = Machine::new(pool, pool_uid, saved);
        let (view, viewed) = latest::channel(machine.view(now));
        let stood = (machine.state(), machine.version());
        let driver = Self {
            machine,
            store,
            unsaved: None,
            save_again: now,
            tracked: Vec::new(),
            born: 0,
            told: (Vec::new(), 0),
            stood,
            looked: None,
            couriers: JoinSet::new(),
            control,
            ticks: 0,
            input,
            view,
        };
        (driver, viewed)
    }

    /// Drives until something is wrong that it cannot mend.
    pub async fn run(&mut self) -> DriverError {
        let (answer, mut answers) = mpsc::channel(64);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                _ = ticks.tick() => self.tick(&answer).await,
                Some(answer) = answers.recv() => self.answered(answer).await,
                changed = self.input.changed() => match changed {
                    Ok(()) => self.input_changed(&answer).await,
                    Err(_) => Err(DriverError::Input),
                },
                Some(ended) = self.couriers.join_next() => ended.map_err(DriverError::Courier),
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    /// Ends the couriers, each after what it carries now.
    pub async fn close(mut self) -> Result<(), JoinError> {
        for tracked in &self.tracked {
            tracked.mailbox.close();
        }
        while let Some(ended) = self.couriers.join_next().await {
            ended?;
        }
        Ok(())
    }

    async fn tick(&mut self, answers: &mpsc::Sender<Answer>) -> Result<(), DriverError> {
        let now = Instant::now();
        self.track(answers, now);
        self.tell_members(now).await?;
        self.step(Event::Tick).await?;
        if self.unsaved.is_none() && self.store.is_lost() {
            self.unsaved = Some(Box::new(self.machine.saved().clone()));
            self.save().await?;
        }
        self.ask(now);
        self.show();
        Ok(())
    }

    /// Asks those that something waits for, and a part of the others.
    fn ask(&mut self, now: Instant) {
        self.ticks = self.ticks.wrapping_add(1);
        let patience = self.patience();
        let awaited = self.machine.awaited();
        for tracked in &self.tracked {
            let is_awaited = tracked.uid().is_some_and(|uid| awaited.contains(uid));
            if is_awaited || !tracked.is_well(patience, now) || (self.ticks + tracked.id).is_multiple_of(IDLE_TICKS) {
                tracked.mailbox.ask();
            }
        }
    }

    async fn input_changed(&mut self, answers: &mpsc::Sender<Answer>) -> Result<(), DriverError> {
        let pool = self.input.borrow().pool.clone();
        if *self.machine.pool() != pool {
            self.step(Event::Pool(Box::new(pool))).await?;
        }
        let now = Instant::now();
        if self.may_look(now) {
            self.track(answers, now);
            self.tell_members(now).await?;
        }
        Ok(())
    }

    /// Whether all members are looked at before the tick because one has changed. While a pool forms they change all the
    /// time: at most once between two ticks.
    fn may_look(&mut self, now: Instant) -> bool {
        let may = self.looked.is_none_or(|looked| now >= looked + TICK);
        if may {
            self.looked = Some(now);
        }
        may
    }

    /// Follows the members that are listed, and those that no longer are until nothing more is expected of them.
    fn track(&mut self, answers: &mpsc::Sender<Answer>, now: Instant) {
        let patience = self.patience();
        let input = self.input.borrow();
        // Of two that are listed alike the first counts.
        let listed = input.entries.iter().rev().map(|entry| (entry.identity(), entry));
        let listed: HashMap<_, &Entry> = listed.collect();
        for tracked in &mut self.tracked {
            let entry = listed.get(&tracked.entry.identity()).copied();
            tracked.health.listed(entry.map(|entry| entry.standing), now);
            if let Some(entry) = entry {
                tracked.entry.clone_from(entry);
            }
        }
        let needed = match self.tracked.iter().any(|tracked| tracked.health.is_unlisted()) {
            true => self.machine.needed(),
            false => HashSet::new(),
        };
        self.tracked.retain(|tracked| {
            let needed = tracked.uid().is_some_and(|uid| needed.contains(uid));
            let over = match input.unlisted {
                Unlisted::Leaves => tracked.health.is_over(patience, needed, now),
                Unlisted::IsGone => tracked.health.is_unlisted(),
            };
            if over {
                tracing::info!(member = tracked.entry.name, "is no longer followed");
                tracked.mailbox.close();
            }
            !over
        });
        let mut known: HashSet<_> = self.tracked.iter().map(|tracked| tracked.entry.identity()).collect();
        let new: Vec<&Entry> = input.entries.iter().filter(|entry| known.insert(entry.identity())).collect();
        for entry in new {
            self.born += 1;
            let (id, mailbox) = (self.born, Mailbox::default());
            let route = Route { member: id, address: entry.control.clone(), uid: entry.uid.clone() };
            self.couriers.spawn(courier::serve(route, mailbox.clone(), self.control.clone(), answers.clone()));
            mailbox.ask();
            let mut health = Health::default();
            health.listed(Some(entry.standing), now);
            self.tracked.push(Tracked { id, entry: entry.clone(), health, mailbox, complained: None });
        }
    }

    /// Tells the machine who is there, if that has changed.
    async fn tell_members(&mut self, now: Instant) -> Result<(), DriverError> {
        let patience = self.patience();
        let told = {
            let input = self.input.borrow();
            let positions: HashMap<_, usize> = input.entries.iter().map(Entry::identity).zip(0..).collect();
            let mut order: Vec<&Tracked> = self.tracked.iter().collect();
            order.sort_by_cached_key(|tracked| positions.get(&tracked.entry.identity()).copied().unwrap_or(usize::MAX));
            (order.into_iter().map(|tracked| tracked.member(patience, now)).collect(), input.desired)
        };
        if told == self.told {
            return Ok(());
        }
        self.told.clone_from(&told);
        let (members, desired) = told;
        self.step(Event::Members { members, desired }).await
    }

    async fn answered(&mut self, answer: Answer) -> Result<(), DriverError> {
        let (now, patience) = (Instant::now(), self.patience());
        // They are tracked in the order of their ids.
        let Ok(at) = self.tracked.binary_search_by_key(&answer.member, |tracked| tracked.id) else { return Ok(()) };
        let tracked = &mut self.tracked[at];
        let before = tracked.member(patience, now);
        match &answer.result {
            Ok(report) => {
                tracked.complained = None;
                tracked.health.heard(report, now);
                let until = tracked.entry.pinned_until;
                if report.pod_pinned_until != until {
                    let pin = PodPin { target: report.uid.clone(), until };
                    tracked.mailbox.pin(self.machine.version().term, pin);
                }
            }
            Err(error) => {
                tracked.health.failed(error, now);
                tracked.complain(error);
            }
        }
        // Every sidecar answers all the time, and an answer says nothing of the other members.
        if tracked.member(patience, now) != before && self.may_look(now) {
            self.tell_members(now).await?;
        }
        match answer.result {
            Ok(report) => self.hear(report),
            Err(_) => Ok(()),
        }
    }

    /// What a report makes due is done with the next tick.
    fn hear(&mut self, report: Report) -> Result<(), DriverError> {
        match self.machine.step(Event::Report(Box::new(report)), Instant::now()).first() {
            Some(Action::Resign { newer }) => Err(DriverError::Superseded(*newer)),
            _ => Ok(()),
        }
    }

    async fn step(&mut self, event: Event) -> Result<(), DriverError> {
        let actions = self.machine.step(event, Instant::now());
        let stands = (self.machine.state(), self.machine.version());
        let changed = std::mem::replace(&mut self.stood, stands) != stands;
        if changed {
            let pool = &self.machine.pool().name;
            tracing::info!(pool, state = ?self.machine.state(), version = %self.machine.version(), "the pool");
        }
        for action in &actions {
            match action {
                Action::Save(saved) => {
                    self.unsaved = Some(saved.clone());
                    self.save_again = Instant::now();
                }
                Action::Resign { newer } => return Err(DriverError::Superseded(*newer)),
                Action::Publish { .. } | Action::Grant(_) | Action::Tell { .. } => {}
            }
        }
        // The machine publishes again with every tick until a sidecar has the placement.
        let may_publish = self.save().await?;
        self.post(actions, may_publish);
        // What else there is to see can wait for the next tick: a view is as large as the pool.
        if changed {
            self.show();
        }
        Ok(())
    }

    /// Writes down what is in force; whether nothing is left to write.
    async fn save(&mut self) -> Result<bool, DriverError> {
        let Some(saved) = &self.unsaved else { return Ok(true) };
        if Instant::now() < self.save_again {
            return Ok(false);
        }
        match self.store.save(saved, &self.machine.placement()).await {
            Ok(()) => self.unsaved = None,
            Err(SaveError::Failed(why)) => {
                tracing::error!("{why}; nothing is published until the state is saved");
                self.save_again = Instant::now() + SAVE_AGAIN;
            }
            Err(SaveError::Superseded(newer)) => return Err(DriverError::Superseded(newer)),
        }
        Ok(self.unsaved.is_none())
    }

    /// Puts what is for sidecars into their mailboxes.
    fn post(&self, actions: Vec<Action>, may_publish: bool) {
        if actions.is_empty() {
            return;
        }
        // Of two with the same UID the first counts.
        let mailboxes = self.tracked.iter().rev().filter_map(|tracked| Some((tracked.uid()?, &tracked.mailbox)));
        let mailboxes: HashMap<&str, &Mailbox> = mailboxes.collect();
        let mut written = None;
        for action in actions {
            match action {
                Action::Publish { uid, placement } if may_publish => {
                    if let Some(mailbox) = mailboxes.get(uid.as_str()) {
                        let known = written
                            .take()
                            .filter(|written: &Arc<Written>| Arc::ptr_eq(written.placement(), &placement));
                        let known = known.unwrap_or_else(|| Arc::new(Written::new(placement)));
                        mailbox.place(uid, Arc::clone(written.insert(known)));
                    }
                }
                Action::Grant(grant) => {
                    if let Some(mailbox) = mailboxes.get(grant.target.as_str()) {
                        mailbox.grant(grant);
                    }
                }
                Action::Tell { uid, loads } => {
                    if let Some(mailbox) = mailboxes.get(uid.as_str()) {
                        mailbox.tell(uid, loads);
                    }
                }
                Action::Publish { .. } | Action::Save(_) | Action::Resign { .. } => {}
            }
        }
    }

    fn patience(&self) -> Patience {
        let pool = self.machine.pool();
        let drain: Duration = pool.settings.drain.timeout.0;
        // The other half of the time is for moving what it holds.
        Patience { settle: pool.pace.settle, handover: drain / 2 }
    }

    fn show(&self) {
        let mut view = self.machine.view(Instant::now());
        for (reason, message) in &self.input.borrow().troubles {
            view.degrade(reason, message);
        }
        if self.unsaved.is_some() {
            view.degrade("StateNotSaved", &format!("{} cannot be written", self.store.place()));
        }
        self.view.send_replace(view);
    }
}

impl Tracked {
    /// Its UID, as its sidecar or its source says.
    fn uid(&self) -> Option<&str> {
        self.health.uid.as_deref().or(self.entry.uid.as_deref())
    }

    fn is_well(&self, patience: Patience, now: Instant) -> bool {
        self.health.state(patience, now) == MemberState::Ready
    }

    fn member(&self, patience: Patience, now: Instant) -> Member {
        Member {
            name: self.entry.name.clone(),
            uid: self.uid().map(str::to_owned),
            address: self.entry.address.clone(),
            weight: self.entry.weight,
            role: self.entry.role,
            ordinal: self.entry.ordinal,
            state: self.health.state(patience, now),
            silent: self.health.is_silent(),
        }
    }

    /// Says once what is wrong with it.
    fn complain(&mut self, error: &ControlError) {
        let text = error.to_string();
        if self.complained.as_ref() != Some(&text) {
            tracing::warn!(member = self.entry.name, "{text}");
            self.complained = Some(text);
        }
    }
}

#[cfg(test)]
mod tests;

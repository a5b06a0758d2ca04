//! The operator without Kubernetes: members come from a file that is watched.
//!
//! ```text
//!  pool.yaml, members.yaml ──watch──► ┌───────────────┐ ──mailbox──► courier ──HTTP──► sidecar
//!  sidecars' answers ───────────────► │  the machine  │ ──mailbox──► courier ──HTTP──► sidecar
//!  time ────────────────────────────► └───────────────┘ ──► members.yaml.state.json, admin port
//! ```
//!
//! One task owns the machine and carries its actions out. A file that cannot be read leaves the last good one in force.

pub mod courier;
pub mod health;
pub mod members;
pub mod state;
pub mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ring::Version;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch as latest};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::admin;
use crate::control::{Control, ControlError};
use crate::planner::{Member, MemberState, Role};
use crate::pool::{CheckedPool, check};
use crate::pool::{SeedSource, WebSocketPool};
use crate::rebalance::view::PoolView;
use crate::rebalance::{Action, Event, Machine, Saved, State, TICK};
use courier::{Answer, Mailbox};
use health::{Health, Patience};
use members::{Listed, MembersError};
use state::{StateError, StateFile};

/// How many ticks pass between two questions while nothing is to be done.
const IDLE_TICKS: u32 = 4;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pool's file.
    pub pool: PathBuf,
    /// The members' file.
    pub members: PathBuf,
    /// Where the admin port listens.
    pub admin: Option<SocketAddr>,
}

/// Why it could not begin, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The state cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The admin port cannot be bound.
    #[error("--admin {address}: cannot listen there: {source}")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The admin port has stopped answering.
    #[error("the admin port failed: {0}")]
    Serve(std::io::Error),
    /// Somebody else leads.
    #[error("a newer operator leads this pool: its sidecars have {0}")]
    Superseded(Version),
    /// A task ended that should run as long as the process.
    #[error("a task ended: {0}")]
    Task(#[from] JoinError),
    /// A part ended that should run as long as the process.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a pool.
    #[error("{}: {source}", path.display())]
    Pool {
        /// The file.
        path: PathBuf,
        /// Why, with line and field.
        source: serde_yaml::Error,
    },
    /// The pool is wrong.
    #[error("{}:\n{source}", path.display())]
    Faults {
        /// The file.
        path: PathBuf,
        /// All that is wrong.
        source: check::Faults,
    },
    /// It is not a list of members.
    #[error("{}: {source}", path.display())]
    Members {
        /// The file.
        path: PathBuf,
        /// Why, with line and value.
        source: MembersError,
    },
}

/// Reads and checks a pool's file, and the secret that it may name, relative to its own folder.
pub fn read_pool(path: &Path) -> Result<CheckedPool, FileError> {
    parse_pool(path, &read(path)?)
}

/// Reads and checks a members file.
pub fn read_members(path: &Path) -> Result<Vec<Listed>, FileError> {
    parse_members(path, &read(path)?)
}

fn parse_pool(path: &Path, text: &str) -> Result<CheckedPool, FileError> {
    let pool = WebSocketPool::from_yaml(text).map_err(|source| FileError::Pool { path: path.to_owned(), source })?;
    let seed = match &pool.spec.hashing.seed_from {
        Some(SeedSource::File(seed)) => Some(read(&path.with_file_name("").join(seed))?),
        Some(SeedSource::SecretKeyRef(_)) | None => None,
    };
    check::check(&pool, seed.as_deref()).map_err(|source| FileError::Faults { path: path.to_owned(), source })
}

fn parse_members(path: &Path, text: &str) -> Result<Vec<Listed>, FileError> {
    members::parse(text).map_err(|source| FileError::Members { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })
}

/// The UID of a pool to which no API server has given one: the same after a restart, also without the state file.
pub fn pool_uid(pool: &CheckedPool) -> String {
    pool.uid.clone().unwrap_or_else(|| format!("standalone-{}", pool.name))
}

/// How many slots there should be: as the pool says, or one for each app in the file.
pub fn desired(pool: &CheckedPool, listed: &[Listed]) -> usize {
    let apps = listed.iter().filter(|member| member.role == Role::App).count();
    pool.replicas.map_or(apps, |replicas| usize::try_from(replicas).unwrap_or(usize::MAX))
}

/// A checked operator, with its port bound, that has not begun.
#[derive(Debug)]
pub struct Standalone {
    driver: Driver,
    watched: (Vec<PathBuf>, Vec<String>),
    admin: Option<TcpListener>,
    view: latest::Receiver<PoolView>,
}

impl Standalone {
    /// Reads and checks everything, then binds the port.
    pub async fn build(options: Options) -> Result<Self, Error> {
        let texts = vec![read(&options.pool)?, read(&options.members)?];
        let pool = parse_pool(&options.pool, &texts[0])?;
        let listed = parse_members(&options.members, &texts[1])?;
        let state_file = StateFile::beside(&options.members);
        let saved = state_file.load()?;
        let admin = match options.admin {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|source| Error::Admin { address, source })?)
            }
            None => None,
        };
        let machine = Machine::new(pool.clone(), &pool_uid(&pool), saved);
        let (view, viewed) = latest::channel(machine.view(Instant::now()));
        let driver = Driver {
            pool,
            listed,
            machine,
            state_file,
            unsaved: None,
            tracked: Vec::new(),
            born: 0,
            told: (Vec::new(), 0),
            couriers: JoinSet::new(),
            control: Control::default(),
            bad_files: [None, None],
            ticks: 0,
            view,
        };
        Ok(Self { driver, watched: (vec![options.pool, options.members], texts), admin, view: viewed })
    }

    /// Where the admin port listens.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Runs until `shutdown` resolves. Every task has ended when it returns.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let (stop_admin, stopped) = oneshot::channel::<()>();
        let mut admin = self.admin.map(|listener| {
            tokio::spawn(admin::serve(listener, self.view, async {
                // Told, or its sender is gone: both mean to stop.
                let _ = stopped.await;
            }))
        });
        let (changes, changed) = mpsc::channel(2);
        let (files, known) = self.watched.clone();
        let follower = tokio::spawn(watch::follow(files, known, changes));
        let (mut driver, files) = (self.driver, self.watched.0);
        let result = tokio::select! {
            result = driver.drive(&files, changed) => result,
            ended = finished(&mut admin) => ended,
            () = shutdown => Ok(()),
        };
        // The follower ends when `changed`, which `drive` owned, is dropped.
        drop(stop_admin);
        if let Some(admin) = admin.filter(|admin| !admin.is_finished()) {
            admin.await?.map_err(Error::Serve)?;
        }
        follower.await?;
        driver.close().await?;
        result
    }
}

async fn finished(admin: &mut Option<JoinHandle<std::io::Result<()>>>) -> Result<(), Error> {
    match admin {
        Some(admin) => {
            admin.await?.map_err(Error::Serve)?;
            Err(Error::Ended("the admin port"))
        }
        None => std::future::pending().await,
    }
}

/// The task that owns the machine.
#[derive(Debug)]
struct Driver {
    pool: CheckedPool,
    listed: Vec<Listed>,
    machine: Machine,
    state_file: StateFile,
    /// A state that could not be written: nothing is published before it is.
    unsaved: Option<Box<Saved>>,
    tracked: Vec<Tracked>,
    born: u64,
    told: (Vec<Member>, usize),
    couriers: JoinSet<()>,
    control: Control,
    bad_files: [Option<String>; 2],
    ticks: u32,
    view: latest::Sender<PoolView>,
}

/// A member that is listed, or was, and is followed until it is empty or dead.
#[derive(Debug)]
struct Tracked {
    id: u64,
    listed: Listed,
    health: Health,
    mailbox: Mailbox,
    complained: Option<String>,
}

impl Driver {
    async fn drive(&mut self, files: &[PathBuf], mut changed: mpsc::Receiver<watch::Change>) -> Result<(), Error> {
        let (answer, mut answers) = mpsc::channel(64);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.tick(&answer)?,
                Some(answer) = answers.recv() => self.answered(answer)?,
                change = changed.recv() => {
                    let change = change.ok_or(Error::Ended("the task that follows the files"))?;
                    self.file_changed(&files[change.index], change);
                }
                Some(ended) = self.couriers.join_next() => ended?,
            }
            self.show();
        }
    }

    async fn close(&mut self) -> Result<(), Error> {
        for tracked in &self.tracked {
            tracked.mailbox.close();
        }
        while let Some(ended) = self.couriers.join_next().await {
            ended?;
        }
        Ok(())
    }

    fn tick(&mut self, answers: &mpsc::Sender<Answer>) -> Result<(), Error> {
        let now = Instant::now();
        self.track(answers, now);
        self.tell_members(now)?;
        self.step(Event::Tick)?;
        self.ticks += 1;
        let idle =
            self.machine.state() == State::Stable && self.tracked.iter().all(|t| t.is_well(self.patience(), now));
        if !idle || self.ticks % IDLE_TICKS == 0 {
            self.tracked.iter().for_each(|tracked| tracked.mailbox.ask());
        }
        Ok(())
    }

    /// Follows the members that are listed, and those that no longer are until nothing more is expected of them.
    fn track(&mut self, answers: &mpsc::Sender<Answer>, now: Instant) {
        let patience = self.patience();
        for tracked in &mut self.tracked {
            let entry = self.listed.iter().find(|listed| tracked.is(listed));
            if let Some(entry) = entry {
                tracked.listed = entry.clone();
            }
            tracked.health.listed(entry.is_some(), now);
        }
        let machine = &self.machine;
        self.tracked.retain(|tracked| {
            let needed = tracked.health.uid.as_ref().is_some_and(|uid| machine.needs(uid));
            let over = tracked.health.is_over(patience, needed, now);
            if over {
                tracing::info!(member = tracked.listed.name, "is no longer followed");
                tracked.mailbox.close();
            }
            !over
        });
        for listed in &self.listed {
            if self.tracked.iter().any(|tracked| tracked.is(listed)) {
                continue;
            }
            self.born += 1;
            let (id, mailbox) = (self.born, Mailbox::default());
            let (address, control) = (listed.control.clone(), self.control.clone());
            self.couriers.spawn(courier::serve(id, address, mailbox.clone(), control, answers.clone()));
            mailbox.ask();
            let health = Health::default();
            self.tracked.push(Tracked { id, listed: listed.clone(), health, mailbox, complained: None });
        }
    }

    /// Tells the machine who is there, if that has changed.
    fn tell_members(&mut self, now: Instant) -> Result<(), Error> {
        let patience = self.patience();
        let position = |tracked: &Tracked| self.listed.iter().position(|listed| tracked.is(listed));
        let mut order: Vec<&Tracked> = self.tracked.iter().collect();
        order.sort_by_key(|tracked| position(tracked).unwrap_or(usize::MAX));
        let members = order.into_iter().map(|tracked| tracked.member(patience, now)).collect();
        let told = (members, desired(&self.pool, &self.listed));
        if told == self.told {
            return Ok(());
        }
        self.told.clone_from(&told);
        let (members, desired) = told;
        self.step(Event::Members { members, desired })
    }

    fn answered(&mut self, answer: Answer) -> Result<(), Error> {
        let now = Instant::now();
        let Some(tracked) = self.tracked.iter_mut().find(|tracked| tracked.id == answer.member) else { return Ok(()) };
        match answer.result {
            Ok(report) => {
                tracked.complained = None;
                tracked.health.heard(&report, now);
                self.tell_members(now)?;
                self.step(Event::Report(Box::new(report)))
            }
            Err(error) => {
                tracked.health.failed(&error, now);
                tracked.complain(&error);
                self.tell_members(now)
            }
        }
    }

    fn file_changed(&mut self, path: &Path, change: watch::Change) {
        let text = change.text.map_err(|source| FileError::Read { path: path.to_owned(), source });
        let result = match (change.index, text) {
            (_, Err(error)) => Err(error),
            (0, Ok(text)) => parse_pool(path, &text).map(|pool| self.pool = pool),
            (_, Ok(text)) => parse_members(path, &text).map(|listed| self.listed = listed),
        };
        if let Err(error) = &result {
            tracing::error!("{error}\nThe last good one stays in force.");
        } else {
            tracing::info!(file = %path.display(), "is in force");
        }
        self.bad_files[change.index] = result.err().map(|error| error.to_string());
    }

    fn step(&mut self, event: Event) -> Result<(), Error> {
        let now = Instant::now();
        if matches!(event, Event::Members { .. } | Event::Tick) && self.machine.pool() != &self.pool {
            let actions = self.machine.step(Event::Pool(Box::new(self.pool.clone())), now);
            self.carry_out(actions)?;
        }
        let (state, version) = (self.machine.state(), self.machine.version());
        let actions = self.machine.step(event, now);
        if (state, version) != (self.machine.state(), self.machine.version()) {
            tracing::info!(state = ?self.machine.state(), version = %self.machine.version(), "the pool");
        }
        self.carry_out(actions)
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> Result<(), Error> {
        for action in actions {
            match action {
                Action::Save(saved) => self.unsaved = Some(saved),
                Action::Publish { uid, placement } => {
                    // The machine publishes again with every tick until a sidecar has the placement.
                    if let (true, Some(mailbox)) = (self.save(), self.mailbox(&uid)) {
                        mailbox.place(uid, placement);
                    }
                }
                Action::Grant(grant) => {
                    if let Some(mailbox) = self.mailbox(&grant.target) {
                        mailbox.grant(grant);
                    }
                }
                Action::Resign { newer } => return Err(Error::Superseded(newer)),
            }
        }
        self.save();
        Ok(())
    }

    /// Writes down what is in force; whether nothing is left to write.
    fn save(&mut self) -> bool {
        let Some(saved) = &self.unsaved else { return true };
        match self.state_file.save(saved) {
            Ok(()) => self.unsaved = None,
            Err(error) => tracing::error!("{error}; nothing is published until it is"),
        }
        self.unsaved.is_none()
    }

    fn mailbox(&self, uid: &str) -> Option<&Mailbox> {
        let of = |tracked: &&Tracked| tracked.health.uid.as_deref() == Some(uid);
        self.tracked.iter().find(of).map(|tracked| &tracked.mailbox)
    }

    fn patience(&self) -> Patience {
        let drain: Duration = self.pool.settings.drain.timeout.0;
        // The other half of the time is for moving what it holds.
        Patience { settle: self.pool.pace.settle, handover: drain / 2 }
    }

    fn show(&self) {
        let mut view = self.machine.view(Instant::now());
        for problem in self.bad_files.iter().flatten() {
            view.degrade("BadFile", problem);
        }
        if self.unsaved.is_some() {
            view.degrade("StateNotSaved", &format!("{} cannot be written", self.state_file.path().display()));
        }
        self.view.send_replace(view);
    }
}

impl Tracked {
    /// A member whose ports have changed is another one, and the old one leaves.
    fn is(&self, listed: &Listed) -> bool {
        let own = &self.listed;
        (&own.name, &own.address, &own.control) == (&listed.name, &listed.address, &listed.control)
    }

    fn is_well(&self, patience: Patience, now: Instant) -> bool {
        self.health.state(patience, now) == MemberState::Ready
    }

    fn member(&self, patience: Patience, now: Instant) -> Member {
        Member {
            name: self.listed.name.clone(),
            uid: self.health.uid.clone(),
            address: self.listed.address.clone(),
            weight: self.listed.weight,
            role: self.listed.role,
            state: self.health.state(patience, now),
        }
    }

    /// Says once what is wrong with it.
    fn complain(&mut self, error: &ControlError) {
        let text = error.to_string();
        if self.complained.as_ref() != Some(&text) {
            tracing::warn!(member = self.listed.name, "{text}");
            self.complained = Some(text);
        }
    }
}

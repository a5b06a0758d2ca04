//! The operator without Kubernetes: members come from a file that is watched.
//!
//! ```text
//!  pool.yaml, members.yaml ──watch──► files ──Input──► driver ──HTTP──► sidecars
//!                                                        └──► members.yaml.state.json, admin port
//! ```
//!
//! A file that cannot be read leaves the last good one in force.

pub mod members;
pub mod state;
pub mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::KeyHasher;
use ring::agreement::AgreementError;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch as latest};
use tokio::task::{JoinError, JoinHandle};

use crate::admin::{self, Views};
use crate::control::Control;
use crate::driver::{Driver, DriverError, Entry, Input, Standing, Unlisted};
use crate::planner::Role;
use crate::pool::{CheckedPool, check};
use crate::pool::{SeedSource, WebSocketPool};
use crate::rebalance::view::PoolView;
use members::{Listed, MembersError};
use state::{StateError, StateFile};

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
    /// The pool cannot be driven any more.
    #[error(transparent)]
    Driver(#[from] DriverError),
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
    /// Members whose weights the hash of the pool does not know.
    #[error("{}: {source}", path.display())]
    Weights {
        /// The members' file.
        path: PathBuf,
        /// What is wrong.
        source: AgreementError,
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

/// Checks what only both files together say.
pub fn check_weights(pool: &CheckedPool, path: &Path, listed: &[Listed]) -> Result<(), FileError> {
    let KeyHasher::Agreed(agreement) = &pool.hasher else { return Ok(()) };
    let checked = agreement.check(listed.iter().map(|member| member.weight));
    checked.map_err(|source| FileError::Weights { path: path.to_owned(), source })
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
    driver: Driver<StateFile>,
    files: Files,
    texts: Vec<String>,
    admin: Option<TcpListener>,
    view: latest::Receiver<PoolView>,
}

impl Standalone {
    /// Reads and checks everything, then binds the port.
    pub async fn build(options: Options) -> Result<Self, Error> {
        let texts = vec![read(&options.pool)?, read(&options.members)?];
        let pool = parse_pool(&options.pool, &texts[0])?;
        let listed = parse_members(&options.members, &texts[1])?;
        check_weights(&pool, &options.members, &listed)?;
        let state_file = StateFile::beside(&options.members);
        let saved = state_file.load()?;
        let admin = match options.admin {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|source| Error::Admin { address, source })?)
            }
            None => None,
        };
        let pool_uid = pool_uid(&pool);
        let paths = [options.pool, options.members];
        let (files, input) = Files::new(paths, pool, listed);
        let (driver, view) = Driver::new(input, &pool_uid, saved, state_file, Control::default());
        Ok(Self { driver, files, texts, admin, view })
    }

    /// Where the admin port listens.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Runs until `shutdown` resolves. Every task has ended when it returns.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Self { mut driver, mut files, texts, admin, view } = self;
        let (stop_admin, stopped) = oneshot::channel::<()>();
        let views: Views = Arc::new(move || vec![view.borrow().clone()]);
        let routes = admin::pools(Arc::clone(&views)).merge(admin::observation(views));
        let mut admin = admin.map(|listener| {
            tokio::spawn(admin::serve(listener, routes, async {
                // Told, or its sender is gone: both mean to stop.
                let _ = stopped.await;
            }))
        });
        let (noticed, changes) = mpsc::channel(2);
        let follower = tokio::spawn(watch::follow(files.paths.to_vec(), texts, noticed));
        let result = tokio::select! {
            error = driver.run() => Err(error.into()),
            () = files.feed(changes) => Err(Error::Ended("the task that follows the files")),
            ended = finished(&mut admin) => ended,
            () = shutdown => Ok(()),
        };
        // The follower ends when `changes`, which `feed` owned, is dropped.
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

/// The two files, and what they say: the last good of each.
#[derive(Debug)]
struct Files {
    /// Of the pool, and of the members.
    paths: [PathBuf; 2],
    listed: Vec<Listed>,
    /// What is wrong with each now.
    bad: [Option<String>; 2],
    input: latest::Sender<Input>,
}

impl Files {
    fn new(paths: [PathBuf; 2], pool: CheckedPool, listed: Vec<Listed>) -> (Self, latest::Receiver<Input>) {
        let input = Input {
            desired: desired(&pool, &listed),
            entries: entries(&listed),
            pool,
            unlisted: Unlisted::Leaves,
            troubles: Vec::new(),
        };
        let (input, received) = latest::channel(input);
        (Self { paths, listed, bad: [None, None], input }, received)
    }

    /// Passes changes on until there are no more.
    async fn feed(&mut self, mut changed: mpsc::Receiver<watch::Change>) {
        while let Some(change) = changed.recv().await {
            self.take(change);
        }
    }

    fn take(&mut self, change: watch::Change) {
        let index = change.index;
        let path = &self.paths[index];
        let text = change.text.map_err(|source| FileError::Read { path: path.clone(), source });
        let mut pool = self.input.borrow().pool.clone();
        let result = match (index, text) {
            (_, Err(error)) => Err(error),
            (0, Ok(text)) => parse_pool(path, &text).and_then(|parsed| {
                check_weights(&parsed, &self.paths[1], &self.listed)?;
                pool = parsed;
                Ok(())
            }),
            (_, Ok(text)) => parse_members(path, &text).and_then(|listed| {
                check_weights(&pool, path, &listed)?;
                self.listed = listed;
                Ok(())
            }),
        };
        if let Err(error) = &result {
            tracing::error!("{error}\nThe last good one stays in force.");
        } else {
            tracing::info!(file = %path.display(), "is in force");
        }
        self.bad[index] = result.err().map(|error| error.to_string());
        let (listed, bad) = (&self.listed, &self.bad);
        self.input.send_modify(|input| {
            input.desired = desired(&pool, listed);
            input.entries = entries(listed);
            input.troubles = bad.iter().flatten().map(|why| ("BadFile", why.clone())).collect();
            input.pool = pool;
        });
    }
}

fn entries(listed: &[Listed]) -> Vec<Entry> {
    let entry = |listed: &Listed| Entry {
        name: listed.name.clone(),
        uid: None,
        address: listed.address.clone(),
        control: listed.control.clone(),
        weight: listed.weight,
        role: listed.role,
        ordinal: None,
        standing: Standing::Present,
        pinned_until: 0,
    };
    listed.iter().map(entry).collect()
}

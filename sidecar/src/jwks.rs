//! The keys that clients' tokens are checked with: fetched from their issuer, or read from a mounted file.
//!
//! A handshake never fetches. A task does, when a pool names another address, every [`INTERVAL`], and when a token names
//! a key that is not there; handshakes that need its outcome wait for it, a moment at most. What was fetched stays good
//! while the issuer cannot be reached.

mod fetch;
mod key;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::settings::{Jwt, Mounted};
use tokio::sync::{Notify, watch};

use crate::auth::KeyFile;
use crate::sidecar::Sidecar;

pub use self::key::{VerifyingKey, parse};

/// How old fetched keys get. A key that its issuer withdraws is believed for so long.
const INTERVAL: Duration = Duration::from_secs(300);
/// How long after a failure the next attempt is made, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often tokens with unknown keys may cause a fetch: anybody can make one up.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How long a handshake waits for a fetch.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where keys are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    /// Certificates of the authorities that are believed, in place of the public ones.
    ca: Option<PathBuf>,
}

/// The keys of a pool's tokens.
#[derive(Debug)]
pub struct Jwks {
    /// Where the pool's Secret is mounted.
    folder: Option<PathBuf>,
    file: Mutex<Option<(PathBuf, Arc<KeyFile<VerifyingKey>>)>>,
    fetched: Mutex<Fetched>,
    wanted: Notify,
    /// Goes up with each attempt's end.
    ended: watch::Sender<u64>,
}

/// What fetching has brought.
#[derive(Debug, Default)]
struct Fetched {
    source: Option<Source>,
    keys: Arc<[VerifyingKey]>,
    /// The next attempt is due then.
    due: Option<Instant>,
    failures: u32,
    /// The last attempt that a handshake asked for.
    asked: Option<Instant>,
    under_way: bool,
}

impl Jwks {
    /// No keys yet. `folder`: where the pool's Secret is mounted.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self {
            folder,
            file: Mutex::default(),
            fetched: Mutex::default(),
            wanted: Notify::new(),
            ended: watch::Sender::new(0),
        }
    }

    /// The keys known now.
    pub fn keys(&self, jwt: &Jwt) -> Arc<[VerifyingKey]> {
        let Some(source) = self.source(jwt) else { return self.read(jwt) };
        let fetched = self.fetched();
        if fetched.source.as_ref() == Some(&source) { Arc::clone(&fetched.keys) } else { Arc::default() }
    }

    /// Whether the keys known now are the issuer's newest, as far as one can tell: its last answer was good.
    pub fn are_current(&self, jwt: &Jwt) -> bool {
        let Some(source) = self.source(jwt) else { return true };
        let fetched = self.fetched();
        fetched.source == Some(source) && fetched.failures == 0 && !fetched.keys.is_empty()
    }

    /// Has keys fetched for a token that none of the known ones fits, and waits for them.
    pub async fn renew(&self, jwt: &Jwt) {
        let Some(source) = self.source(jwt) else { return };
        let mut ended = self.ended.subscribe();
        {
            let mut fetched = self.fetched();
            // One that is under way, or about to be, is waited for: it costs no further one.
            if fetched.source == Some(source) && !fetched.under_way {
                if fetched.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
                    return;
                }
                let now = Instant::now();
                (fetched.asked, fetched.due) = (Some(now), Some(now));
            }
        }
        self.wanted.notify_one();
        // Without an answer in time the token is judged by what is known.
        let _ = tokio::time::timeout(PATIENCE, ended.changed()).await;
    }

    /// The pool's settings may have changed.
    pub fn wake(&self) {
        self.wanted.notify_one();
    }

    fn source(&self, jwt: &Jwt) -> Option<Source> {
        let ca = jwt.ca_from.as_ref().map(|ca| self.path(ca));
        Some(Source { uri: jwt.jwks_uri.clone()?, ca })
    }

    fn read(&self, jwt: &Jwt) -> Arc<[VerifyingKey]> {
        let Some(path) = jwt.jwks_from.as_ref().map(|from| self.path(from)) else { return Arc::default() };
        let file = {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            match &*file {
                Some((known, file)) if *known == path => Arc::clone(file),
                _ => {
                    let new = Arc::new(KeyFile::new(path.clone(), parse));
                    *file = Some((path, Arc::clone(&new)));
                    new
                }
            }
        };
        file.keys()
    }

    fn path(&self, mounted: &Mounted) -> PathBuf {
        mounted.path(self.folder.as_deref())
    }

    fn fetched(&self) -> MutexGuard<'_, Fetched> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches what is due, and says when to look again; `None` while there is nothing to fetch.
    async fn fetch_due(&self, sidecar: &Sidecar) -> Option<Instant> {
        let source = self.source(sidecar.view().settings().key.jwt.as_ref()?)?;
        {
            let mut fetched = self.fetched();
            if fetched.source.as_ref() != Some(&source) {
                *fetched = Fetched { source: Some(source.clone()), ..Fetched::default() };
            }
            if let Some(due) = fetched.due.filter(|due| *due > Instant::now()) {
                return Some(due);
            }
            fetched.under_way = true;
        }
        let outcome = fetch::fetch(&source.uri, source.ca.as_deref()).await;
        let label = outcome.as_ref().map_or_else(fetch::FetchError::label, |_| "fetched");
        sidecar.metrics.jwks_fetched(label);
        let due = {
            let mut fetched = self.fetched();
            fetched.under_way = false;
            let pause = match outcome {
                Ok(keys) => {
                    tracing::debug!(keys = keys.len(), "the keys of tokens have been fetched");
                    (fetched.keys, fetched.failures) = (keys.into(), 0);
                    INTERVAL
                }
                Err(error) => {
                    let known = fetched.keys.len();
                    tracing::warn!(%error, known, "the keys of tokens cannot be fetched; those that are known go on");
                    fetched.failures = fetched.failures.saturating_add(1);
                    (RETRY.0 * 2_u32.saturating_pow(fetched.failures - 1)).min(RETRY.1)
                }
            };
            *fetched.due.insert(Instant::now() + pause)
        };
        self.ended.send_modify(|ended| *ended += 1);
        Some(due)
    }
}

/// Keeps the keys that come from an address, until `stop` turns true.
pub async fn run(sidecar: Arc<Sidecar>, mut stop: watch::Receiver<bool>) {
    loop {
        let due = tokio::select! {
            due = sidecar.jwks.fetch_due(&sidecar) => due,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let next = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = next => {}
            () = sidecar.jwks.wanted.notified() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

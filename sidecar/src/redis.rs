//! The pool's Redis: what anybody publishes for a key reaches its connections here, and sessions are kept there.
//!
//! ```text
//!  PUBLISH <prefix>key:ann ──► every sidecar that has connections of ann ──► messages::hear
//!  PUBLISH <prefix>all     ──► every sidecar ──► every connection here
//! ```
//!
//! Redis hears of a key from the sidecar that has it, and from nobody else. While Redis is away connections stay as they
//! are; what is published meanwhile is lost, as pub/sub has it.

mod client;
mod listening;
pub mod session;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fred::clients::Client;
use ring::settings::{Mounted, Published, Redis as Settings};
use ring::wire::RedisHealth;
use tokio::sync::{Notify, watch};

use self::client::Unusable;
use crate::sidecar::Sidecar;
use crate::tls::TlsError;

/// How often the mounted files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// What a pool says of its Redis, with the files read.
#[derive(Clone, PartialEq, Eq)]
struct Target {
    /// A secret.
    url: String,
    ca: Option<Authorities>,
    prefix: String,
    messages: Published,
}

/// Whose certificates are believed. Compared by what they are: the file keeps its name when they are renewed.
#[derive(Clone, PartialEq, Eq)]
struct Authorities {
    file: PathBuf,
    pem: Vec<u8>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// The connection to the pool's Redis.
#[derive(Debug)]
pub struct Redis {
    /// Where the pool's Secret is mounted.
    folder: Option<PathBuf>,
    /// Whether the pool has one, and how that fares.
    health: Mutex<Option<RedisHealth>>,
    /// For sessions, with what their names begin with.
    client: Mutex<Option<(Client, String)>>,
    /// Whether our user may publish: without it nobody knows which message was the last one heard elsewhere.
    publishes: AtomicBool,
    /// Wakes when the pool's settings may have changed.
    changed: Notify,
}

impl Redis {
    /// None yet. `folder`: where the pool's Secret is mounted.
    pub fn new(folder: Option<PathBuf>) -> Self {
        let publishes = AtomicBool::new(true);
        Self { folder, health: Mutex::default(), client: Mutex::default(), publishes, changed: Notify::new() }
    }

    /// The pool's settings may have changed.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// How the pool's Redis fares. `None` without one.
    pub fn health(&self) -> Option<RedisHealth> {
        self.health_now().clone()
    }

    /// Whether what is published for a key can be cut in two as the key moves: a marker is published between the parts.
    pub fn cuts(&self) -> bool {
        self.publishes.load(Ordering::Relaxed) && matches!(*self.health_now(), Some(RedisHealth::Up))
    }

    /// Says how it fares; logs a change.
    fn fares(&self, health: Option<RedisHealth>) {
        let mut now = self.health_now();
        match (&*now, &health) {
            (Some(RedisHealth::Down(_)), Some(RedisHealth::Down(_))) => {}
            (_, Some(RedisHealth::Down(why))) => {
                tracing::warn!(%why, "the pool's Redis is away: what is published does not reach clients");
            }
            (Some(RedisHealth::Down(_)) | None, Some(RedisHealth::Up)) => tracing::info!("the pool's Redis is there"),
            (_, None | Some(RedisHealth::Up)) => {}
        }
        *now = health;
    }

    fn health_now(&self) -> MutexGuard<'_, Option<RedisHealth>> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> MutexGuard<'_, Option<(Client, String)>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to connect to.
    fn target(&self, settings: &Settings) -> Result<Target, Unusable> {
        let path = self.path(&settings.url_from);
        let url = std::fs::read_to_string(&path).map_err(|error| Unusable::File(path.clone(), error.to_string()))?;
        let url = url.trim().to_owned();
        let prefix = settings.prefix.clone().ok_or(Unusable::Prefix)?;
        let authorities = |file: PathBuf| match std::fs::read(&file) {
            Ok(pem) => Ok(Authorities { file, pem }),
            Err(error) => Err(TlsError::Authorities(file, error.to_string())),
        };
        let ca = settings.ca_from.as_ref().map(|ca| authorities(self.path(ca))).transpose()?;
        Ok(Target { url, ca, prefix, messages: settings.messages })
    }

    fn path(&self, mounted: &Mounted) -> PathBuf {
        mounted.path(self.folder.as_deref())
    }
}

/// Runs until `stop` turns true. A router has no connections of its own.
pub async fn run(sidecar: Arc<Sidecar>, mut stop: watch::Receiver<bool>) {
    let follow = async {
        if !sidecar.config.is_router() {
            follow(&sidecar).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = follow => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Connects to what the pool's settings say, and anew when they say something else.
async fn follow(sidecar: &Arc<Sidecar>) {
    loop {
        let view = sidecar.view();
        let Some(settings) = &view.settings().redis else {
            sidecar.redis.fares(None);
            sidecar.redis.changed.notified().await;
            continue;
        };
        let target = match sidecar.redis.target(settings) {
            Ok(target) => target,
            Err(unusable) => {
                sidecar.redis.fares(Some(RedisHealth::Down(unusable.to_string())));
                // A Secret that is made later is mounted later.
                let _ = tokio::time::timeout(LOOK, sidecar.redis.changed.notified()).await;
                continue;
            }
        };
        tokio::select! {
            () = serve(sidecar, &target) => {}
            () = until_other(sidecar, &target) => {}
        }
        *sidecar.redis.client() = None;
        sidecar.registry().ignore_audience();
    }
}

async fn serve(sidecar: &Arc<Sidecar>, target: &Target) {
    // Apart: what Redis says against a subscription comes as the answer to the next command.
    let (ears, sessions) = match (client::new(target), client::new(target)) {
        (Ok(ears), Ok(sessions)) => (ears, sessions),
        (Err(unusable), _) | (_, Err(unusable)) => {
            sidecar.redis.fares(Some(RedisHealth::Down(unusable.to_string())));
            return std::future::pending().await;
        }
    };
    *sidecar.redis.client() = Some((sessions.clone(), target.prefix.clone()));
    let listening = Box::pin(listening::run(sidecar, target, &ears));
    tokio::join!(listening, listening::connect(sidecar, &sessions));
}

/// Ends when the settings, or the files that they name, say something else.
async fn until_other(sidecar: &Sidecar, target: &Target) {
    loop {
        let _ = tokio::time::timeout(LOOK, sidecar.redis.changed.notified()).await;
        let view = sidecar.view();
        let Some(settings) = &view.settings().redis else { return };
        // A file that cannot be read for a moment, as it is renewed, changes nothing.
        if sidecar.redis.target(settings).is_ok_and(|now| now != *target) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewed_authorities_are_another_target_and_missing_ones_none() {
        let folder = tempfile::tempdir().unwrap();
        let (url, ca) = (folder.path().join("url"), folder.path().join("ca"));
        std::fs::write(&url, "rediss://redis\n").unwrap();
        let redis = Redis::new(None);
        let settings = Settings {
            url_from: Mounted::File(url),
            ca_from: Some(Mounted::File(ca.clone())),
            prefix: Some("test:".into()),
            messages: Published::Text,
        };
        assert!(matches!(redis.target(&settings), Err(Unusable::Tls(_))));
        std::fs::write(&ca, "one").unwrap();
        let one = redis.target(&settings).unwrap();
        assert!(redis.target(&settings).unwrap() == one);
        std::fs::write(&ca, "two").unwrap();
        assert!(redis.target(&settings).unwrap() != one);
    }
}

//! Who may speak to this sidecar: the operator, by a signed token for each request; peers, by the pool's secret.
//!
//! Keys are files (mounted Secrets), looked at again when they change, so that they can be renewed without a restart.

pub mod control;
pub mod peer;

use std::collections::HashMap;
use std::hash::Hash;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// A file of keys, read again when it has changed.
#[derive(Debug)]
pub struct KeyFile<K> {
    path: PathBuf,
    parse: fn(&[u8]) -> Option<Vec<K>>,
    read: Mutex<(Option<Stamp>, Arc<[K]>)>,
}

/// What tells one content of a file from the next. A clock tick has room for two, which are then two files.
type Stamp = (SystemTime, u64);

impl<K> KeyFile<K> {
    /// A file that need not be there yet. `parse` says `None` to what is not a file of keys.
    pub fn new(path: PathBuf, parse: fn(&[u8]) -> Option<Vec<K>>) -> Self {
        Self { path, parse, read: Mutex::new((None, Arc::new([]))) }
    }

    /// The keys in it. A file that vanishes or cannot be understood changes nothing.
    pub fn keys(&self) -> Arc<[K]> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = std::fs::metadata(&self.path).and_then(|file| Ok((file.modified()?, file.ino()))).ok();
        if changed.is_some() && changed != read.0 {
            let keys = std::fs::read(&self.path).ok().and_then(|bytes| (self.parse)(&bytes));
            read.0 = changed;
            if let Some(keys) = keys.filter(|keys| !keys.is_empty()) {
                read.1 = keys.into();
            } else {
                tracing::error!(file = %self.path.display(), "this is no file of keys; nothing changes");
            }
        }
        Arc::clone(&read.1)
    }
}

/// What has been used, until it could not be used again anyway.
#[derive(Debug)]
pub struct Seen<T> {
    used: Mutex<HashMap<T, u64>>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self { used: Mutex::default() }
    }
}

impl<T: Hash + Eq> Seen<T> {
    /// Notes a use; false if it was used before. Times are in any one unit.
    fn first_use(&self, what: T, until: u64, now: u64) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        // Swept when it has doubled, so that a use costs little.
        if used.len() >= 64 && used.len().is_power_of_two() {
            used.retain(|_, until| *until >= now);
        }
        used.insert(what, until).is_none()
    }
}

/// The time since 1970, in milliseconds.
pub fn since_1970_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

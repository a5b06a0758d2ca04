//! One claim of a key at a time. Its answers say how many connections are on their way here, and only one claim is told: a
//! second one could be over first, and its connection be there before the others are known of.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

type ByKey = Mutex<HashMap<String, Arc<Notify>>>;

/// The keys that are being claimed, and who wakes when they no longer are.
#[derive(Debug, Default)]
pub struct Claims(ByKey);

/// A claim under way.
#[derive(Debug)]
pub struct Turn<'a> {
    claims: &'a ByKey,
    key: &'a str,
}

impl Claims {
    /// Begins a claim. When one is under way, its end can be waited for.
    pub fn begin<'a>(&'a self, key: &'a str) -> Result<Turn<'a>, OwnedNotified> {
        match lock(&self.0).entry(key.to_owned()) {
            Entry::Occupied(claim) => Err(Arc::clone(claim.get()).notified_owned()),
            Entry::Vacant(none) => {
                none.insert(Arc::default());
                Ok(Turn { claims: &self.0, key })
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(ended) = lock(self.claims).remove(self.key) {
            ended.notify_waiters();
        }
    }
}

fn lock(claims: &ByKey) -> MutexGuard<'_, HashMap<String, Arc<Notify>>> {
    claims.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_key_is_claimed_once_at_a_time_and_all_who_wait_wake_at_the_end() {
        let claims = Claims::default();
        let turn = claims.begin("ann").expect("nobody has begun");
        assert!(claims.begin("bob").is_ok());
        let mut waiting = [claims.begin("ann").unwrap_err(), claims.begin("ann").unwrap_err()].map(Box::pin);
        assert!(waiting.iter_mut().all(|ended| ended.as_mut().now_or_never().is_none()));
        drop(turn);
        assert!(waiting.iter_mut().all(|ended| ended.as_mut().now_or_never().is_some()));
        assert!(claims.begin("ann").is_ok());
        assert!(lock(&claims.0).is_empty());
    }
}

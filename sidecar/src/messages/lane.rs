//! One message of a key at a time, in the order in which they came: so a slow key holds up no other, and those that wait
//! for it leave room for the messages of others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{INTAKE, OVERHEAD};

/// The most messages of one key that wait for their turn.
const LONGEST: usize = 1_024;
/// The most that waits for its turn of one key, in bytes: the others need room, too.
const LARGEST: usize = 4 * 1024 * 1024;
/// When all lanes together have taken up so much, in bytes, a key that has a message on its way gets no place for another:
/// the rest is for keys that have none.
const CROWDED: usize = INTAKE / 4 * 3;

/// The lanes of all keys that have messages on their way.
#[derive(Debug, Default)]
pub(super) struct Lanes(Arc<Mutex<All>>);

#[derive(Debug, Default)]
struct All {
    by_key: HashMap<Arc<str>, Arc<Lane>>,
    /// What the messages of all take up.
    bytes: usize,
}

#[derive(Debug)]
struct Lane {
    turn: Arc<Semaphore>,
    /// What its messages take up. Changed under the lock of all lanes.
    bytes: AtomicUsize,
}

/// A message's place in its lane.
#[derive(Debug)]
struct Place {
    lanes: Arc<Mutex<All>>,
    key: Arc<str>,
    bytes: usize,
    /// Given back first.
    lane: Option<Arc<Lane>>,
}

/// A message's turn.
#[derive(Debug)]
pub(super) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
    _place: Place,
}

impl Lanes {
    /// Takes a place for so many bytes behind those that are there; `None` when there are too many. The turn comes in the
    /// order of the places, from the first poll on.
    pub(super) fn enter(&self, key: &str, bytes: usize) -> Option<impl Future<Output = Turn> + use<>> {
        let bytes = bytes.max(OVERHEAD);
        let (key, lane) = {
            let mut lanes = lock(&self.0);
            let lane = if let Some((key, lane)) = lanes.by_key.get_key_value(key) {
                (Arc::clone(key), Arc::clone(lane))
            } else {
                let lane = Lane { turn: Arc::new(Semaphore::new(1)), bytes: AtomicUsize::new(0) };
                let (key, lane) = (Arc::<str>::from(key), Arc::new(lane));
                lanes.by_key.insert(Arc::clone(&key), Arc::clone(&lane));
                (key, lane)
            };
            // The map has one, and this place another.
            let waiting = lane.1.bytes.load(Ordering::Relaxed);
            let too_much = waiting + bytes > LARGEST || lanes.bytes + bytes > CROWDED;
            if Arc::strong_count(&lane.1) - 2 >= LONGEST || (waiting > 0 && too_much) {
                return None;
            }
            lanes.bytes += bytes;
            lane.1.bytes.store(waiting + bytes, Ordering::Relaxed);
            lane
        };
        let turn = Arc::clone(&lane.turn);
        let place = Place { lanes: Arc::clone(&self.0), key, bytes, lane: Some(lane) };
        Some(async move {
            // A lane's semaphore is never closed.
            let permit = turn.acquire_owned().await.ok();
            Turn { _permit: permit, _place: place }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lanes = lock(&self.lanes);
        lanes.bytes -= self.bytes;
        if let Some(lane) = self.lane.take() {
            lane.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        if lanes.by_key.get(&self.key).is_some_and(|lane| Arc::strong_count(lane) == 1) {
            lanes.by_key.remove(&self.key);
        }
    }
}

fn lock(lanes: &Mutex<All>) -> MutexGuard<'_, All> {
    lanes.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn messages_of_a_key_take_turns_and_those_of_another_do_not_wait() {
        let lanes = Lanes::default();
        let mut second = Box::pin(lanes.enter("ann", 1).unwrap());
        let first = lanes.enter("ann", 1).unwrap().now_or_never().expect("nobody was polled before");
        assert!((&mut second).now_or_never().is_none());
        assert!(lanes.enter("bob", 1).unwrap().now_or_never().is_some());
        drop(first);
        assert!(second.now_or_never().is_some());
        assert!(lock(&lanes.0).by_key.is_empty());
    }

    #[test]
    fn a_lane_has_an_end() {
        let lanes = Lanes::default();
        let places: Vec<_> = std::iter::from_fn(|| lanes.enter("ann", 1)).take(LONGEST + 10).collect();
        assert_eq!(places.len(), LONGEST);
        assert!(lanes.enter("bob", 1).is_some());
        drop(places);
        assert!(lock(&lanes.0).by_key.is_empty());
        let places: Vec<_> = std::iter::from_fn(|| lanes.enter("ann", LARGEST / 4)).take(10).collect();
        assert_eq!(places.len(), 4);
        assert!(lanes.enter("bob", 2 * LARGEST).is_some(), "one always has a place");
        drop(places);
        assert!(lock(&lanes.0).by_key.is_empty());
    }

    #[test]
    fn keys_that_have_many_waiting_leave_room_for_those_that_have_none() {
        let lanes = Lanes::default();
        let mut places = Vec::new();
        for slow in 0..100 {
            places.extend(std::iter::from_fn(|| lanes.enter(&format!("slow-{slow}"), 1)));
        }
        let taken = lock(&lanes.0).bytes;
        assert!(taken < CROWDED + 100 * OVERHEAD, "{taken} bytes");
        let others: Vec<_> = (0..1_000).map(|key| lanes.enter(&format!("other-{key}"), 1).expect("a place")).collect();
        assert!(lanes.enter("other-1", 1).is_none());
        drop((places, others));
        assert!(lock(&lanes.0).by_key.is_empty() && lock(&lanes.0).bytes == 0);
    }
}

//! The pace of handshakes towards the app: those past the limit wait their turn, and a full queue is refused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest that a handshake waits for its turn. Clients give up on a handshake after 10 s and more; this leaves the
/// app time to answer.
pub const LONGEST_WAIT: Duration = Duration::from_secs(8);

/// Gives out turns, evenly spaced once a burst of a tenth of a second is used up.
#[derive(Debug, Default)]
pub struct Turnstile {
    next: Mutex<Option<Instant>>,
    waiting: AtomicU64,
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("more handshakes wait than limits.handshakesPerSecond passes in {} s", LONGEST_WAIT.as_secs())]
pub struct QueueFull;

impl Turnstile {
    /// Waits for a turn. `per_second` 0 means no limit.
    pub async fn pass(&self, per_second: u32) -> Result<(), QueueFull> {
        let now = Instant::now();
        let Some(turn) = self.turn(per_second, now)? else { return Ok(()) };
        let _waiting = Waiting::new(&self.waiting);
        tokio::time::sleep_until(turn.into()).await;
        Ok(())
    }

    /// Handshakes that wait now.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The time of the next turn; `None` is now.
    fn turn(&self, per_second: u32, now: Instant) -> Result<Option<Instant>, QueueFull> {
        if per_second == 0 {
            return Ok(None);
        }
        let gap = Duration::from_secs(1) / per_second;
        let burst = gap * (per_second / 10);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(burst).unwrap_or(now);
        let turn = next.unwrap_or(earliest).max(earliest);
        if turn > now + LONGEST_WAIT {
            return Err(QueueFull);
        }
        *next = Some(turn + gap);
        Ok((turn > now).then_some(turn))
    }
}

/// Counts a waiting handshake, also when its client goes away.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spaced_after_a_small_burst_and_the_queue_is_bounded() {
        let turnstile = Turnstile::default();
        let now = Instant::now();
        let turns: Vec<_> = std::iter::from_fn(|| turnstile.turn(100, now).ok()).take(2_000).collect();
        assert_eq!(turns.iter().filter(|turn| turn.is_none()).count(), 11);
        assert_eq!(turns[20].unwrap() - turns[19].unwrap(), Duration::from_millis(10));
        assert_eq!(turns.len(), 811, "the burst, and eight seconds of turns");
        assert_eq!(turnstile.turn(100, now + Duration::from_secs(30)), Ok(None), "a pause brings the burst back");
    }

    #[test]
    fn no_limit_means_no_wait() {
        let turnstile = Turnstile::default();
        for _ in 0..10_000 {
            assert_eq!(turnstile.turn(0, Instant::now()), Ok(None));
        }
    }
}

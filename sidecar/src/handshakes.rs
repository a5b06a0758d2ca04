//! The pace of handshakes towards the app: those past the limit wait their turn, and a full queue is refused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// The longest that a handshake waits for its turn. Clients give up on a handshake after 10 s and more; this leaves the
/// app time to answer.
pub const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// The share of a second's handshakes that pass at once after a pause: a hundredth. So no tenth of a second sees more than
/// 1.1 times the limit, and the app no more than 1.2 times, when what is under way bunches by up to 10 ms.
const BURST: u32 = 100;

/// Gives out turns in the order in which they are asked for.
#[derive(Debug, Default)]
pub struct Turnstile {
    /// Whoever waits for the next turn holds the lock, the others wait for that.
    pace: Mutex<Pace>,
    waiting: AtomicU64,
}

/// Turns, evenly spaced once a small burst is used up.
///
/// A turn is spaced from when the one before it was taken, not from when it was due: a process that stood still for a
/// moment does not let everybody through at once.
#[derive(Debug, Default)]
struct Pace {
    /// When the next turn is due; `None` before the first.
    next: Option<Instant>,
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("more handshakes wait than limits.handshakesPerSecond passes in {} s", LONGEST_WAIT.as_secs())]
pub struct QueueFull;

impl Turnstile {
    /// Waits for a turn. `per_second` 0 means no limit.
    pub async fn pass(&self, per_second: u32) -> Result<(), QueueFull> {
        if per_second == 0 {
            return Ok(());
        }
        if self.waiting() >= u64::from(per_second) * LONGEST_WAIT.as_secs() {
            return Err(QueueFull);
        }
        let _waiting = Waiting::new(&self.waiting);
        let mut pace = self.pace.lock().await;
        if let Some(due) = pace.next {
            tokio::time::sleep_until(due.into()).await;
        }
        pace.take(per_second, Instant::now());
        Ok(())
    }

    /// Handshakes that wait now.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl Pace {
    /// A turn is taken.
    fn take(&mut self, per_second: u32, now: Instant) {
        let gap = Duration::from_secs(1) / per_second;
        let earliest = now.checked_sub(gap * (per_second / BURST)).unwrap_or(now);
        self.next = Some(self.next.map_or(earliest, |next| next.max(earliest)) + gap);
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

    /// When so many turns pass that are asked for at `now`. The process stands still for a second after `stalls` of them.
    fn storm(pace: &mut Pace, turns: usize, per_second: u32, stalls: usize, mut now: Instant) -> Vec<Instant> {
        let mut passed = Vec::new();
        for turn in 0..turns {
            now = pace.next.map_or(now, |due| due.max(now));
            if turn == stalls {
                now += Duration::from_secs(1);
            }
            pace.take(per_second, now);
            passed.push(now);
        }
        passed
    }

    #[test]
    fn no_tenth_of_a_second_sees_more_than_a_tenth_above_the_limit_after_a_pause_or_a_stall_either() {
        for per_second in [50, 100, 500] {
            let (mut pace, start) = (Pace::default(), Instant::now());
            let turns = 2 * per_second as usize;
            let mut passed = storm(&mut pace, turns, per_second, usize::MAX, start);
            let took = *passed.last().unwrap() - start;
            assert!(took > Duration::from_millis(1_900) && took < Duration::from_secs(2), "{took:?}");
            let later = start + Duration::from_secs(30);
            passed.extend(storm(&mut pace, turns, per_second, turns / 2, later));
            let within = |first: &Instant| {
                passed.iter().filter(|at| *at >= first && **at < *first + Duration::from_millis(100)).count()
            };
            let peak = passed.iter().map(within).max().unwrap();
            assert!(peak * 100 <= per_second as usize * 11, "{peak} within 100 ms at {per_second} a second");
        }
    }

    #[tokio::test]
    async fn no_limit_means_no_wait_and_a_full_queue_is_refused_at_once() {
        let turnstile = Turnstile::default();
        assert_eq!(turnstile.pass(0).await, Ok(()));
        turnstile.waiting.store(800, Ordering::Relaxed);
        assert_eq!(turnstile.pass(100).await, Err(QueueFull));
        assert_eq!(turnstile.pass(101).await, Ok(()));
        assert_eq!(turnstile.waiting(), 800);
    }
}

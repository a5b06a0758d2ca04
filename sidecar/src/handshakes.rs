//! The pace of handshakes towards the app: those past the limit wait their turn, and a full queue is refused.
//!
//! An app that stands still for a moment, such as for its garbage, is sent no more meanwhile: they would pile up in its
//! backlog, and it would take them all at once.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify};

/// The longest that a handshake waits for its turn. Clients give up on a handshake after 10 s and more; this leaves the
/// app time to answer.
pub const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// The share of a second's handshakes that pass at once after a pause: a hundredth. So no tenth of a second sees more than
/// 1.1 times the limit, and the app no more than 1.2 times, when what is under way bunches by up to 10 ms.
const BURST: u32 = 100;
/// An app stands still when it has been silent for this long and twice its usual time to answer.
const SILENCE: Duration = Duration::from_millis(50);
/// The share of a second's handshakes, and the number, that must be unanswered before silence says anything.
const UNANSWERED_SHARE: u32 = 20;
const UNANSWERED: u32 = 3;
/// The longest that one silence holds turns back: an app may have become slower for good.
const LONGEST_HOLD: Duration = Duration::from_secs(1);

/// Gives out turns in the order in which they are asked for.
#[derive(Debug, Default)]
pub struct Turnstile {
    /// Whoever waits for the next turn holds the lock, the others wait for that.
    pace: Mutex<Pace>,
    waiting: AtomicU64,
    app: std::sync::Mutex<App>,
    /// The app has answered, or nobody waits for its answer any more. One waits for it at a time.
    heard: Notify,
}

/// What the app does with the handshakes that it is sent.
#[derive(Debug, Default)]
struct App {
    unanswered: u32,
    /// When it answered last, or was sent the first that it has not answered.
    since: Option<Instant>,
    /// How long it takes to answer; `None` before it has.
    usual: Option<Duration>,
    /// After it stood still: when what had piled up is as good as paced.
    resumes: Option<Instant>,
}

/// A handshake that the app was sent.
#[derive(Debug)]
pub struct Sent<'a> {
    turnstile: &'a Turnstile,
    per_second: u32,
    at: Instant,
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
        while let Some(until) = self.holds_until(per_second) {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                () = self.heard.notified() => {}
            }
        }
        pace.take(per_second, Instant::now());
        Ok(())
    }

    /// Notes that the app is sent a handshake.
    pub fn sent(&self, per_second: u32) -> Sent<'_> {
        let at = Instant::now();
        self.app().is_sent(at);
        Sent { turnstile: self, per_second, at }
    }

    /// Apart, so that the lock is not held while an answer is waited for: that needs it.
    fn holds_until(&self, per_second: u32) -> Option<Instant> {
        self.app().holds_until(per_second, Instant::now())
    }

    fn app(&self) -> std::sync::MutexGuard<'_, App> {
        self.app.lock().unwrap_or_else(PoisonError::into_inner)
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

impl App {
    fn is_sent(&mut self, now: Instant) {
        if self.unanswered == 0 {
            self.since = Some(now);
        }
        self.unanswered += 1;
    }

    /// It has answered one that was sent `took` ago.
    fn answers(&mut self, per_second: u32, took: Duration, now: Instant) {
        if per_second > 0 && self.stands_since(per_second).is_some_and(|still| now >= still) {
            let backlog = Duration::from_secs(1) / per_second * self.unanswered;
            self.resumes = Some(now + backlog.min(LONGEST_HOLD));
        }
        self.usual = Some(self.usual.map_or(took, |usual| usual * 7 / 8 + took / 8));
        self.since = Some(now);
    }

    /// From when its silence means that it stands still, unless it answers before. Who answers slowly answers all the time.
    fn stands_since(&self, per_second: u32) -> Option<Instant> {
        let enough = self.unanswered >= UNANSWERED.max(per_second / UNANSWERED_SHARE);
        Some(self.since.filter(|_| enough)? + SILENCE + self.usual? * 2)
    }

    /// Until when no turn is given; `None` when one may be.
    fn holds_until(&self, per_second: u32, now: Instant) -> Option<Instant> {
        let silent = self.stands_since(per_second).filter(|still| now >= *still).map(|still| still + LONGEST_HOLD);
        [silent, self.resumes].into_iter().flatten().filter(|until| now < *until).max()
    }
}

impl Sent<'_> {
    /// The app has answered it; returns how long that took.
    pub fn answered(self) -> Duration {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.at);
        self.turnstile.app().answers(self.per_second, took, now);
        took
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.turnstile.app().unanswered -= 1;
        self.turnstile.heard.notify_one();
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

    const MS: Duration = Duration::from_millis(1);

    /// An app that is sent a handshake every 10 ms, and answers each `latency` after it has met it, for two seconds:
    /// when it was sent them, and when it met them.
    fn paced(latency: Duration, stands: std::ops::Range<u32>) -> (Vec<u32>, Vec<u32>) {
        let start = Instant::now();
        let (mut app, mut sent, mut met, mut answers) = (App::default(), Vec::new(), Vec::new(), Vec::new());
        for ms in 0..2_000 {
            let now = start + MS * ms;
            answers.retain(|(at, due)| {
                if *due > ms {
                    return true;
                }
                app.answers(100, MS * (ms - at), now);
                app.unanswered -= 1;
                false
            });
            let may = sent.last().is_none_or(|last| ms >= last + 10);
            if may && app.holds_until(100, now).is_none() {
                app.is_sent(now);
                let meets = if stands.contains(&ms) { stands.end } else { ms };
                answers.push((ms, meets + u32::try_from(latency.as_millis()).unwrap()));
                sent.push(ms);
                met.push(meets);
            }
        }
        (sent, met)
    }

    #[test]
    fn an_app_that_stands_still_meets_no_more_at_once_than_an_app_that_does_not() {
        let (sent, met) = paced(MS * 2, 500..800);
        let peak = met.iter().map(|first| met.iter().filter(|at| (*first..first + 100).contains(*at)).count()).max();
        assert!(peak <= Some(12), "{peak:?} within 100 ms");
        let meanwhile = sent.iter().filter(|at| (500..800).contains(*at)).count();
        assert!((3..=7).contains(&meanwhile), "{meanwhile} were sent while it stood still");
    }

    #[test]
    fn an_app_that_answers_slowly_but_answers_gets_its_full_rate() {
        let (sent, _) = paced(MS * 200, 0..0);
        assert_eq!(sent.len(), 200);
    }

    #[test]
    fn an_app_that_is_silent_for_long_is_held_back_for_a_second_and_no_longer() {
        let (sent, _) = paced(MS * 2, 100..5_000);
        let after = sent.iter().find(|at| **at > 200).copied().unwrap();
        assert!((1_100..1_300).contains(&after), "the next after {after} ms");
        assert!(sent.iter().filter(|at| **at >= after).count() > 60);
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

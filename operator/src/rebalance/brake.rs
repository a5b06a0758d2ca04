//! Evidence at the destinations: a move must not press an app that suffers already.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ring::wire::AppHealth;

use super::fleet::Totals;

/// How often the evidence is weighed.
const WINDOW: Duration = Duration::from_secs(1);
/// The most halvings: a thirty-second of the rate still finds out whether the apps have recovered.
const MOST_HALVINGS: u32 = 5;
/// Good windows after which one halving is taken back.
const GOOD_WINDOWS: u32 = 3;
/// Fewer failures than this in a window may be chance.
const FEW_FAILURES: u64 = 3;
/// From this share of failed handshakes on, the app fails: one in five.
const FAILING_SHARE: u64 = 5;
/// Fewer handshakes than this in a window have no meaningful mean.
const FEW_HANDSHAKES: u64 = 5;
/// Slow is this many times the mean before the move...
const SLOWER: u64 = 4;
/// ... and never less than this.
const SLOW_MS: u64 = 250;
/// Without a mean from before the move, this is slow.
const SLOW_UNKNOWN_MS: u64 = 1_000;

/// Halves the rate while destinations suffer, and takes that back step by step.
#[derive(Clone, Debug, Default)]
pub struct Brake {
    halvings: u32,
    good: u32,
    weighed: Option<Instant>,
    suffering: Option<Suffering>,
    seen: BTreeMap<String, Totals>,
}

/// How a destination suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suffering {
    /// Handshakes queue.
    Busy,
    /// Handshakes take long.
    Slow,
    /// Handshakes fail.
    Failing,
}

/// A destination's evidence.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// Its sidecar's UID.
    pub uid: &'a str,
    /// How its app fares now.
    pub app: AppHealth,
    /// What it had counted when the move began.
    pub before: Totals,
}

impl Brake {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self { weighed: Some(now), ..Self::default() }
    }

    /// How often the rate is halved.
    pub fn halvings(&self) -> u32 {
        self.halvings
    }

    /// What is wrong, while the brake is on.
    pub fn suffering(&self) -> Option<Suffering> {
        self.suffering.filter(|_| self.halvings > 0)
    }

    /// Weighs the evidence, at most once a window.
    pub fn weigh<'a>(&mut self, destinations: impl IntoIterator<Item = Destination<'a>>, now: Instant) {
        if self.weighed.is_some_and(|then| now.saturating_duration_since(then) < WINDOW) {
            return;
        }
        self.weighed = Some(now);
        let mut worst = None;
        for destination in destinations {
            worst = worst.max(self.look_at(&destination));
        }
        if worst.is_some() {
            self.suffering = worst;
            self.good = 0;
            self.halvings = (self.halvings + 1).min(MOST_HALVINGS);
        } else if self.halvings > 0 {
            self.good += 1;
            if self.good == GOOD_WINDOWS {
                self.good = 0;
                self.halvings -= 1;
            }
        }
    }

    fn look_at(&mut self, destination: &Destination<'_>) -> Option<Suffering> {
        let app = destination.app;
        let totals =
            Totals { accepted: app.accepted, failed: app.failed, handshake_ms: app.handshake_ms, ..destination.before };
        let last = self.seen.insert(destination.uid.to_owned(), totals).unwrap_or(destination.before);
        let now = totals.since(last);
        let mean = |totals: Totals| totals.handshake_ms / totals.accepted;
        let slow = match destination.before {
            before if before.accepted >= FEW_HANDSHAKES => (mean(before) * SLOWER).max(SLOW_MS),
            _ => SLOW_UNKNOWN_MS,
        };
        if now.failed >= FEW_FAILURES && now.failed * FAILING_SHARE >= now.failed + now.accepted {
            Some(Suffering::Failing)
        } else if now.accepted >= FEW_HANDSHAKES && mean(now) > slow {
            Some(Suffering::Slow)
        } else if app.queued > now.accepted.max(FEW_HANDSHAKES) {
            // More wait than were let in within a window: the queue grows.
            Some(Suffering::Busy)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        brake: Brake,
        app: AppHealth,
        before: Totals,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            let before = Totals { accepted: 100, handshake_ms: 1_000, ..Totals::default() };
            let app = AppHealth { accepted: 100, handshake_ms: 1_000, ..AppHealth::default() };
            Self { brake: Brake::new(now), app, before, now }
        }

        fn second(&mut self, accepted: u64, failed: u64, each_ms: u64, queued: u64) -> (u32, Option<Suffering>) {
            self.now += WINDOW;
            self.app.accepted += accepted;
            self.app.failed += failed;
            self.app.handshake_ms += accepted * each_ms;
            self.app.queued = queued;
            self.brake.weigh([Destination { uid: "a", app: self.app, before: self.before }], self.now);
            (self.brake.halvings(), self.brake.suffering())
        }
    }

    #[test]
    fn healthy_destinations_are_left_at_the_full_rate() {
        let mut bench = Bench::new();
        assert_eq!(bench.second(50, 2, 20, 5), (0, None));
    }

    #[test]
    fn failures_slow_handshakes_and_queues_halve_the_rate_each() {
        assert_eq!(Bench::new().second(10, 5, 10, 0), (1, Some(Suffering::Failing)));
        assert_eq!(Bench::new().second(10, 0, 300, 0), (1, Some(Suffering::Slow)));
        assert_eq!(Bench::new().second(10, 0, 10, 60), (1, Some(Suffering::Busy)));
    }

    #[test]
    fn the_rate_recovers_step_by_step() {
        let mut bench = Bench::new();
        for halvings in 1..=7 {
            assert_eq!(bench.second(0, 10, 0, 0).0, halvings.min(MOST_HALVINGS));
        }
        for halvings in (0..MOST_HALVINGS).rev() {
            assert_eq!(bench.second(10, 0, 10, 0).0, halvings + 1);
            assert_eq!(bench.second(10, 0, 10, 0).0, halvings + 1);
            assert_eq!(bench.second(10, 0, 10, 0).0, halvings);
        }
        assert_eq!(bench.brake.suffering(), None);
    }
}

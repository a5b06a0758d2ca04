//! Connections between two servers: evicted, and not yet seen at their new owner.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A report may be so much older than another one that is heard before it.
const OUT_OF_ORDER: Duration = Duration::from_secs(1);

/// What has been evicted and what has returned since a move began, over time.
///
/// Returns are counted against the oldest evictions. So a connection that returns after all makes the losses smaller.
#[derive(Clone, Debug)]
pub struct Flight {
    timeout: Duration,
    /// Ascending by time; an entry only where something changed.
    series: VecDeque<Mark>,
    /// Arrivals of any clients, where who returns cannot be told from who is new.
    arrived: u64,
    /// Of these, the latest that nobody was away for.
    early: VecDeque<(Instant, u64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    evicted: u64,
    returned: u64,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    sums: Sums,
}

/// A point from which cohorts are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Evictions that were older than the timeout.
    pub expired: u64,
    /// Of these, the ones that had not returned.
    pub lost: u64,
}

impl Flight {
    /// Nothing is in flight yet. After `timeout` an evicted connection counts as lost.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, series: VecDeque::new(), arrived: 0, early: VecDeque::new() }
    }

    /// The pool's `returnTimeout` has changed.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Takes in the sums over all sidecars since the move began. They never fall.
    pub fn record(&mut self, evicted: u64, returned: u64, now: Instant) {
        let last = self.newest();
        let sums = Sums { evicted: evicted.max(last.evicted), returned: returned.max(last.returned) };
        if sums != last {
            self.series.push_back(Mark { at: now, sums });
        }
        // Judging looks back over two timeouts; the newest mark before that says what was so far.
        let horizon = now.checked_sub(self.timeout * 2);
        while self.series.get(1).is_some_and(|mark| horizon.is_some_and(|horizon| mark.at <= horizon)) {
            self.series.pop_front();
        }
    }

    /// The same where a client that returns cannot be told from a new one: whoever arrives while somebody is away counts as
    /// returned. Those who arrive while nobody is away count for nothing, or they would stand for others later; but an
    /// arrival may be reported before the eviction that it follows.
    pub fn record_arrivals(&mut self, evicted: u64, arrived: u64, now: Instant) {
        self.early.retain(|(at, _)| now.saturating_duration_since(*at) <= OUT_OF_ORDER);
        if arrived > self.arrived {
            self.early.push_back((now, arrived - self.arrived));
            self.arrived = arrived;
        }
        let mut away = evicted.max(self.evicted()) - self.returned();
        let mut returned = self.returned();
        for (_, count) in &mut self.early {
            let matched = away.min(*count);
            *count -= matched;
            away -= matched;
            returned += matched;
        }
        self.record(evicted, returned, now);
    }

    /// Connections evicted since the move began.
    pub fn evicted(&self) -> u64 {
        self.newest().evicted
    }

    /// Connections that arrived at their new owner since the move began.
    pub fn returned(&self) -> u64 {
        self.newest().returned
    }

    /// Connections evicted more than the timeout ago, and not returned.
    pub fn lost(&self, now: Instant) -> u64 {
        self.lost_at(now)
    }

    /// Connections evicted, not returned, and not yet lost.
    pub fn in_flight(&self, now: Instant) -> u64 {
        self.evicted().saturating_sub(self.returned()).saturating_sub(self.lost(now))
    }

    /// The point from which the cohorts that expired within the last timeout are judged.
    pub fn a_timeout_ago(&self, now: Instant) -> Base {
        now.checked_sub(self.timeout).map(|then| self.base(then)).unwrap_or_default()
    }

    /// The point from which what expires from now on is judged.
    pub fn base(&self, now: Instant) -> Base {
        Base { expired: self.expired_at(now), lost: self.lost_at(now) }
    }

    /// Whether too few of the connections that expired since `base` have returned.
    pub fn falls_short(&self, base: Base, min_returned: u64, now: Instant) -> bool {
        let expired = self.expired_at(now).saturating_sub(base.expired);
        let lost = self.lost_at(now).saturating_sub(base.lost);
        lost * 100 > expired * 100u64.saturating_sub(min_returned)
    }

    fn newest(&self) -> Sums {
        self.series.back().map(|mark| mark.sums).unwrap_or_default()
    }

    fn at(&self, then: Instant) -> Sums {
        let after = self.series.partition_point(|mark| mark.at <= then);
        after.checked_sub(1).map(|index| self.series[index].sums).unwrap_or_default()
    }

    fn expired_at(&self, then: Instant) -> u64 {
        then.checked_sub(self.timeout).map_or(0, |since| self.at(since).evicted)
    }

    fn lost_at(&self, then: Instant) -> u64 {
        self.expired_at(then).saturating_sub(self.at(then).returned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_evicted_connection_is_in_flight_until_it_returns_or_is_lost() {
        let start = Instant::now();
        let mut flight = Flight::new(TIMEOUT);
        flight.record(10, 0, start);
        flight.record(10, 7, start + seconds(5));
        assert_eq!((flight.in_flight(start + seconds(59)), flight.lost(start + seconds(59))), (3, 0));
        assert_eq!((flight.in_flight(start + seconds(60)), flight.lost(start + seconds(60))), (0, 3));
    }

    #[test]
    fn a_connection_that_returns_late_is_no_longer_lost() {
        let start = Instant::now();
        let mut flight = Flight::new(TIMEOUT);
        flight.record(10, 0, start);
        let late = start + seconds(70);
        assert_eq!(flight.lost(late), 10);
        flight.record(10, 9, late);
        assert_eq!((flight.in_flight(late), flight.lost(late)), (0, 1));
    }

    #[test]
    fn a_steady_share_of_losses_is_judged_by_the_last_cohorts_only() {
        let start = Instant::now();
        let mut flight = Flight::new(TIMEOUT);
        // One eviction a second; all return after a second, until minute 5.
        for second in 0..=600u64 {
            let returned = second.saturating_sub(1).min(300);
            flight.record(second, returned, start + seconds(second));
            let now = start + seconds(second);
            let short = flight.falls_short(flight.a_timeout_ago(now), 80, now);
            assert!(!short || second > 360, "too early, at second {second}");
            assert!(short || second < 390, "too late, at second {second}");
        }
    }

    #[test]
    fn what_a_reordered_report_says_never_takes_an_eviction_back() {
        let start = Instant::now();
        let mut flight = Flight::new(TIMEOUT);
        flight.record(10, 5, start);
        flight.record(8, 2, start + seconds(1));
        assert_eq!((flight.evicted(), flight.returned()), (10, 5));
    }

    #[test]
    fn who_arrives_while_nobody_is_away_has_not_returned() {
        let start = Instant::now();
        let mut flight = Flight::new(TIMEOUT);
        flight.record_arrivals(0, 50, start);
        flight.record_arrivals(10, 53, start + seconds(2));
        assert_eq!((flight.returned(), flight.in_flight(start + seconds(2))), (3, 7));
        flight.record_arrivals(10, 90, start + seconds(3));
        flight.record_arrivals(20, 90, start + seconds(5));
        assert_eq!((flight.returned(), flight.in_flight(start + seconds(5))), (10, 10));
    }

    #[test]
    fn an_arrival_that_is_reported_before_its_eviction_counts() {
        let start = Instant::now();
        let mut flight = Flight::new(TIMEOUT);
        flight.record_arrivals(0, 0, start);
        flight.record_arrivals(0, 5, start + seconds(1));
        flight.record_arrivals(7, 5, start + seconds(2));
        assert_eq!((flight.returned(), flight.in_flight(start + seconds(2))), (5, 2));
    }

    #[test]
    fn the_series_stays_short() {
        let start = Instant::now();
        let mut flight = Flight::new(seconds(1));
        for tick in 0..10_000u64 {
            flight.record(tick, tick, start + Duration::from_millis(250 * tick));
        }
        assert!(flight.series.len() < 12, "{}", flight.series.len());
    }
}

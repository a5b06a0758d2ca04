use super::*;
use crate::pool::{Mode, Rate};

fn limits() -> Limits {
    Limits {
        mode: Mode::Automatic,
        settle: Duration::ZERO,
        rate: Rate::PerSecond(50),
        max_in_flight: 200,
        return_timeout: Duration::from_secs(60),
        min_returned: 80,
        tolerance: 10,
        lead: Duration::ZERO,
    }
}

fn source(uid: &str, pending: u64) -> Source {
    Source { uid: uid.into(), pending, evicted: 0, allowed: 0, seconds_left: None }
}

struct Bench {
    pace: Pace,
    flight: Flight,
    sources: Vec<Source>,
    limits: Limits,
    now: Instant,
}

impl Bench {
    fn new(sources: Vec<Source>) -> Self {
        let limits = limits();
        Self { pace: Pace::default(), flight: Flight::new(limits.return_timeout), sources, limits, now: Instant::now() }
    }

    /// One tick, after which every source evicts all that it may.
    fn tick(&mut self, returned: u64) -> Allowance {
        self.now += Duration::from_millis(250);
        let evicted = self.sources.iter().map(|s| s.evicted).sum();
        self.flight.record(evicted, returned.min(evicted), self.now);
        let allowance = self.pace.allow(&self.sources, &self.flight, &self.limits, 10_000, self.now);
        for (source, total) in self.sources.iter_mut().zip(&allowance.totals) {
            let Some(total) = *total else { continue };
            source.allowed = total;
            source.pending -= (total - source.evicted).min(source.pending);
            source.evicted = total;
        }
        allowance
    }

    fn evicted(&self) -> u64 {
        self.sources.iter().map(|s| s.evicted).sum()
    }
}

#[test]
fn a_move_begins_with_one_percent_and_waits_for_it() {
    let mut bench = Bench::new(vec![source("a", 600), source("b", 400)]);
    for _ in 0..40 {
        let allowance = bench.tick(0);
        assert_eq!(allowance.reason, Some(Reason::Canary));
        assert_eq!(bench.evicted(), 10);
    }
    assert_eq!((bench.sources[0].evicted, bench.sources[1].evicted), (6, 4), "in proportion");
    bench.tick(8);
    assert!(bench.evicted() > 10);
}

#[test]
fn the_smallest_canary_is_one_connection() {
    let mut bench = Bench::new(vec![source("a", 3)]);
    bench.tick(0);
    assert_eq!(bench.evicted(), 1);
}

#[test]
fn the_rate_is_kept_whatever_the_number_of_sources() {
    let mut bench = Bench::new((0..7).map(|i| source(&i.to_string(), 1_000)).collect());
    while bench.evicted() < 200 {
        bench.tick(u64::MAX);
    }
    let (before, since) = (bench.evicted(), bench.now);
    while bench.now < since + Duration::from_secs(20) {
        bench.tick(u64::MAX);
    }
    let evicted = bench.evicted() - before;
    assert!((950..=1_050).contains(&evicted), "{evicted} in 20 s at 50 per second");
}

#[test]
fn no_more_than_max_in_flight_are_away() {
    let mut bench = Bench::new(vec![source("a", 5_000)]);
    for _ in 0..100 {
        bench.tick(60);
        assert!(bench.evicted() <= 60 + 200);
    }
    assert_eq!(bench.evicted(), 260);
    assert_eq!(bench.tick(60).reason, Some(Reason::MaxInFlight));
}

#[test]
fn a_key_larger_than_its_grant_is_paid_for_by_what_comes_next() {
    let mut bench = Bench::new(vec![source("a", 5_000)]);
    while bench.evicted() < 100 {
        bench.tick(u64::MAX);
    }
    bench.sources[0].evicted += 40;
    let before = bench.evicted();
    for _ in 0..4 {
        bench.tick(u64::MAX);
    }
    assert!(bench.evicted() - before <= 12, "{}", bench.evicted() - before);
}

#[test]
fn a_draining_source_is_emptied_in_the_time_it_has_left() {
    let draining = Source { seconds_left: Some(15), ..source("a", 1_000) };
    let mut bench = Bench::new(vec![draining, source("b", 1_000)]);
    let allowance = bench.tick(0);
    assert_eq!(allowance.reason, Some(Reason::Draining));
    assert_eq!(allowance.totals[0], Some(100), "1,000 in the ten seconds before the margin");
}

#[test]
fn a_drain_with_enough_time_keeps_to_the_rate() {
    let draining = Source { seconds_left: Some(55), ..source("a", 100) };
    let mut bench = Bench::new(vec![draining]);
    assert_eq!(bench.tick(0).reason, Some(Reason::Canary));
}

#[test]
fn what_is_given_is_never_more_than_what_is_asked_for() {
    let sources = [source("a", 3), source("b", 1), source("c", 0)];
    for raise in 0..10 {
        let mut totals = vec![0; 3];
        assert_eq!(distribute(raise, &sources, &mut totals), raise.min(4));
        assert_eq!(totals.iter().sum::<u64>(), raise.min(4));
        assert!(totals.iter().zip(&sources).all(|(total, source)| *total <= source.pending));
    }
}

#[test]
fn a_stopped_move_asks_with_one_connection_and_goes_on_when_that_returns() {
    let mut bench = Bench::new(vec![source("a", 1_000)]);
    while bench.tick(0).totals != [None] {}
    let (stopped, since) = (bench.evicted(), bench.now);
    while bench.evicted() == stopped {
        bench.tick(0);
    }
    assert!(bench.now >= since + bench.limits.return_timeout * PROBE_AFTER);
    assert_eq!(bench.evicted(), stopped + 1);
    for _ in 0..1_000 {
        bench.tick(0);
        assert_eq!(bench.evicted(), stopped + 1, "the next one waits longer");
    }
    let mut returned = 0;
    while bench.evicted() < stopped + 100 {
        returned += u64::from(bench.evicted() > stopped + 1);
        bench.tick(returned + bench.evicted() - stopped - 1);
        assert!(bench.now < since + bench.limits.return_timeout * 100);
    }
}

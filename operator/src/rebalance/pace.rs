//! How many connections may be evicted, where, and now.
//!
//! A move starts with a canary. What follows is bounded by the rate, by the connections in flight, and by evidence: too few
//! of a cohort returned (slow, then stop), or the destinations suffer (brake). A draining source is emptied in the time it
//! has left, whatever the bounds say: its connections break anyway.

use std::time::{Duration, Instant};

use super::brake::{Brake, Suffering};
use super::flight::{Base, Flight};
use crate::pool::check::Pace as Limits;

/// How long a grant lasts at most. It is renewed with every tick, so that a move stops this long after its operator.
pub const GRANT_TTL: Duration = Duration::from_secs(1);
/// How long a grant lasts at least: longer than a tick. A sidecar spends a grant evenly, so a small one is short, or its
/// last connections would take longer than the rate asks for.
const SHORTEST_TTL: Duration = Duration::from_millis(300);
/// A second canary is at least this large: one client that is gone for good says nothing about the others.
const SECOND_CANARY: u64 = 5;
/// A stopped move sends one connection after this many return timeouts, then waits twice as long: those that were evicted
/// may be back where nobody counted them, for example because that sidecar crashed.
const PROBE_AFTER: u32 = 10;
/// The most doublings of that wait.
const MOST_PROBES: u32 = 6;
/// One eviction, in the unit of the budget.
const ONE: i64 = 1_000_000;
/// Seconds that a draining sidecar keeps for its last evictions to finish.
const DRAIN_MARGIN: u64 = 5;

/// The pace of a pool's moves.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    phase: Phase,
    brake: Brake,
    budget: Budget,
}

/// How much is known about clients that were evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Nothing has been evicted yet.
    #[default]
    Fresh,
    /// A few were evicted; the rest waits for them.
    Canary { trial: Trial, second: bool },
    /// They return.
    Full,
    /// Too few of the last cohorts returned.
    Slow { since: Instant, base: Base },
    /// Too few still: nothing moves until they return.
    Stopped { since: Instant, base: Base, probes: u32 },
    /// They have not been seen to return; one connection finds out whether clients do now.
    Probe { base: Base, trial: Trial, probes: u32 },
}

/// A canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trial {
    base: Base,
    /// Evicted and returned before it.
    from: (u64, u64),
    size: u64,
    /// When the last of it was evicted.
    spent: Option<Instant>,
}

/// How a trial ends.
enum Outcome {
    Open,
    Passed,
    Failed,
}

impl Trial {
    fn begin(size: u64, flight: &Flight, now: Instant) -> Self {
        Self { base: flight.base(now), from: (flight.evicted(), flight.returned()), size, spent: None }
    }

    fn outcome(&mut self, flight: &Flight, limits: &Limits, now: Instant) -> Outcome {
        let evicted = flight.evicted().saturating_sub(self.from.0);
        let returned = flight.returned().saturating_sub(self.from.1);
        if evicted < self.size {
            return Outcome::Open;
        }
        let spent = *self.spent.get_or_insert(now);
        if returned * 100 >= limits.min_returned * evicted {
            Outcome::Passed
        } else if now >= spent + limits.return_timeout {
            Outcome::Failed
        } else {
            Outcome::Open
        }
    }
}

/// Why a move is not at its full rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It waits for the first few to return.
    Canary,
    /// As many as allowed are in flight.
    MaxInFlight,
    /// Evicted clients do not come back.
    ClientsNotReturning,
    /// Apps at the destination fail.
    DestinationFailing,
    /// Apps at the destination have become slow.
    DestinationSlow,
    /// Handshakes queue at the destination.
    DestinationBusy,
    /// A member that leaves is emptied faster than the rate.
    Draining,
}

impl Reason {
    /// Its name in conditions and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Canary => "Canary",
            Self::MaxInFlight => "MaxInFlight",
            Self::ClientsNotReturning => "ClientsNotReturning",
            Self::DestinationFailing => "DestinationFailing",
            Self::DestinationSlow => "DestinationSlow",
            Self::DestinationBusy => "DestinationBusy",
            Self::Draining => "Draining",
        }
    }

    /// Whether somebody should look at it.
    pub const fn is_trouble(self) -> bool {
        !matches!(self, Self::Canary | Self::MaxInFlight | Self::Draining)
    }
}

/// A sidecar that holds moved keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its UID.
    pub uid: String,
    /// Connections whose new owner is ready for them.
    pub pending: u64,
    /// Evicted by its process.
    pub evicted: u64,
    /// Allowed to its process so far.
    pub allowed: u64,
    /// Seconds until it goes away, when it drains.
    pub seconds_left: Option<u64>,
}

impl Source {
    fn outstanding(&self) -> u64 {
        self.allowed.saturating_sub(self.evicted).min(self.pending)
    }

    /// Evictions per second that empty it in time.
    fn hurry(&self) -> u64 {
        let left = self.seconds_left.map(|left| left.saturating_sub(DRAIN_MARGIN).max(1));
        left.map_or(0, |left| self.pending.div_ceil(left))
    }
}

/// What may be evicted until the next tick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// `Grant.allowTotal` of each source, in the order given; `None` lets its last grant run out.
    pub totals: Vec<Option<u64>>,
    /// How long these grants last.
    pub ttl: Duration,
    /// Evictions per second that this comes to, at most.
    pub rate: u64,
    /// Why it is not the full rate.
    pub reason: Option<Reason>,
}

impl Pace {
    /// A move begins now. Evidence of the last one says nothing about it; what the last one spent counts.
    pub fn restart(&mut self, now: Instant) {
        self.phase = Phase::Fresh;
        self.brake = Brake::new(now);
    }

    /// The evidence about destinations.
    pub fn brake(&mut self) -> &mut Brake {
        &mut self.brake
    }

    /// Decides what each source may have evicted in all by the next tick.
    pub fn allow(
        &mut self,
        sources: &[Source],
        flight: &Flight,
        limits: &Limits,
        connections: u64,
        now: Instant,
    ) -> Allowance {
        let pending: u64 = sources.iter().map(|source| source.pending).sum();
        self.judge(pending, flight, limits, now);
        let rate = limits.rate.per_1000_seconds(connections) >> self.halvings();
        self.budget.fill(rate, now);
        for source in sources {
            self.budget.charge(source.evicted.saturating_sub(source.allowed));
        }
        let outstanding: u64 = sources.iter().map(Source::outstanding).sum();
        // A report is up to two ticks old: what it does not show yet must not hold up what comes next.
        let at_once = Budget::burst(rate).saturating_mul(3).div_ceil(2 * ONE.unsigned_abs());
        let room_in_flight = limits.max_in_flight.saturating_sub(flight.in_flight(now));
        let bound = at_once.min(room_in_flight).min(self.trial_left(flight));
        let raise = self.budget.whole().min(bound.saturating_sub(outstanding));
        let mut totals: Vec<u64> = sources.iter().map(|source| source.allowed.max(source.evicted)).collect();
        let given = distribute(raise, sources, &mut totals);
        self.budget.charge(given);

        // A grant in force cannot be lowered, so what a source was allowed and has not spent would still move.
        let stopped = matches!(self.phase, Phase::Stopped { .. });
        let mut hurry = 0;
        let totals = sources.iter().zip(totals).map(|(source, total)| {
            if source.hurry() * 1_000 > rate || (stopped && source.hurry() > 0) {
                hurry += source.hurry();
                return Some(total.max(source.evicted + source.hurry()));
            }
            (!stopped).then_some(total)
        });
        let totals = totals.collect();
        let full = limits.rate.per_1000_seconds(connections).div_ceil(1_000);
        let reason = match self.trouble() {
            _ if hurry > 0 => Some(Reason::Draining),
            None if matches!(self.phase, Phase::Canary { .. }) => Some(Reason::Canary),
            None if room_in_flight <= outstanding && pending > 0 => Some(Reason::MaxInFlight),
            trouble => trouble,
        };
        let spend = Duration::from_millis(((outstanding + given) * 1_000_000).div_ceil(rate.max(1)));
        let ttl = if hurry > 0 { GRANT_TTL } else { spend.clamp(SHORTEST_TTL, GRANT_TTL) };
        let rate = if bound == 0 { hurry } else { rate.div_ceil(1_000).min(full).max(hurry) };
        Allowance { totals, ttl, rate: if pending == 0 { 0 } else { rate }, reason }
    }

    /// What is wrong, if anything.
    pub fn trouble(&self) -> Option<Reason> {
        match self.phase {
            Phase::Slow { .. } | Phase::Stopped { .. } | Phase::Probe { .. } | Phase::Canary { second: true, .. } => {
                Some(Reason::ClientsNotReturning)
            }
            Phase::Fresh | Phase::Canary { .. } | Phase::Full => {
                self.brake.suffering().map(|suffering| match suffering {
                    Suffering::Failing => Reason::DestinationFailing,
                    Suffering::Slow => Reason::DestinationSlow,
                    Suffering::Busy => Reason::DestinationBusy,
                })
            }
        }
    }

    fn halvings(&self) -> u32 {
        let slow = matches!(self.phase, Phase::Slow { .. } | Phase::Canary { second: true, .. });
        self.brake.halvings() + u32::from(slow)
    }

    /// Evictions that the phase still allows.
    fn trial_left(&self, flight: &Flight) -> u64 {
        match self.phase {
            Phase::Fresh | Phase::Stopped { .. } => 0,
            Phase::Canary { trial, .. } | Phase::Probe { trial, .. } => {
                (trial.from.0 + trial.size).saturating_sub(flight.evicted())
            }
            Phase::Full | Phase::Slow { .. } => u64::MAX,
        }
    }

    fn judge(&mut self, pending: u64, flight: &Flight, limits: &Limits, now: Instant) {
        let begin = |size| Trial::begin(size, flight, now);
        let first = pending.div_ceil(100).max(1);
        self.phase = match self.phase {
            Phase::Fresh if pending > 0 => Phase::Canary { trial: begin(first), second: false },
            Phase::Fresh => Phase::Fresh,
            Phase::Canary { mut trial, second } => match trial.outcome(flight, limits, now) {
                Outcome::Passed => Phase::Full,
                Outcome::Failed if second => Phase::Stopped { since: now, base: trial.base, probes: 0 },
                Outcome::Failed => {
                    let base = trial.base;
                    Phase::Canary { trial: Trial { base, ..begin(first.max(SECOND_CANARY)) }, second: true }
                }
                Outcome::Open => Phase::Canary { trial, second },
            },
            Phase::Full => {
                let base = flight.a_timeout_ago(now);
                if flight.falls_short(base, limits.min_returned, now) {
                    Phase::Slow { since: now, base }
                } else {
                    Phase::Full
                }
            }
            Phase::Slow { since, base } => {
                if !flight.falls_short(base, limits.min_returned, now) {
                    Phase::Full
                } else if now >= since + limits.return_timeout / 2 {
                    Phase::Stopped { since: now, base, probes: 0 }
                } else {
                    Phase::Slow { since, base }
                }
            }
            Phase::Stopped { base, .. } | Phase::Probe { base, .. }
                if !flight.falls_short(base, limits.min_returned, now) =>
            {
                Phase::Full
            }
            Phase::Stopped { since, base, probes }
                if pending > 0 && now >= since + limits.return_timeout * (PROBE_AFTER << probes.min(MOST_PROBES)) =>
            {
                Phase::Probe { base, trial: begin(1), probes: probes + 1 }
            }
            Phase::Stopped { .. } => self.phase,
            Phase::Probe { base, mut trial, probes } => match trial.outcome(flight, limits, now) {
                Outcome::Passed => Phase::Canary { trial: begin(first), second: false },
                Outcome::Failed => Phase::Stopped { since: now, base, probes },
                Outcome::Open => Phase::Probe { base, trial, probes },
            },
        };
    }
}

/// Shares `raise` out by what is pending, the most urgent source first. Answers how much was given.
fn distribute(raise: u64, sources: &[Source], totals: &mut [u64]) -> u64 {
    let wants = |source: &Source| source.pending - source.outstanding();
    let wanted: u64 = sources.iter().map(wants).sum();
    let raise = raise.min(wanted);
    let mut left = raise;
    if raise == 0 {
        return 0;
    }
    for (source, total) in sources.iter().zip(totals.iter_mut()) {
        let share = raise * wants(source) / wanted;
        *total += share;
        left -= share;
    }
    let mut order: Vec<usize> = (0..sources.len()).collect();
    order.sort_by_key(|&i| (sources[i].seconds_left.is_none(), std::cmp::Reverse(wants(&sources[i]))));
    for index in order {
        let given = totals[index] - sources[index].allowed.max(sources[index].evicted);
        let more = (wants(&sources[index]) - given).min(left);
        totals[index] += more;
        left -= more;
    }
    raise
}

/// A token bucket in millionths of an eviction: exact for every rate and tick.
#[derive(Clone, Debug, Default)]
struct Budget {
    millionths: i64,
    filled: Option<Instant>,
}

impl Budget {
    /// What the bucket holds at most, in millionths: the evictions of one grant's life, and at least two, so that the
    /// time until the first one is reported is not lost.
    fn burst(per_1000_seconds: u64) -> u64 {
        per_1000_seconds.saturating_mul(millis(GRANT_TTL)).max(2 * ONE.unsigned_abs())
    }

    fn fill(&mut self, per_1000_seconds: u64, now: Instant) {
        let burst = i64::try_from(Self::burst(per_1000_seconds)).unwrap_or(i64::MAX);
        let earned = match self.filled {
            None => burst,
            Some(then) => {
                // A rate per 1,000 seconds times milliseconds is millionths.
                let passed = millis(now.saturating_duration_since(then));
                i64::try_from(per_1000_seconds.saturating_mul(passed)).unwrap_or(i64::MAX)
            }
        };
        self.filled = Some(now);
        self.millionths = self.millionths.saturating_add(earned).clamp(-burst, burst);
    }

    fn whole(&self) -> u64 {
        u64::try_from(self.millionths / ONE).unwrap_or(0)
    }

    fn charge(&mut self, evictions: u64) {
        let cost = i64::try_from(evictions).unwrap_or(i64::MAX).saturating_mul(ONE);
        self.millionths = self.millionths.saturating_sub(cost);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

//! Emptying a sidecar whose pod goes away.
//!
//! The order matters: a new holder first acknowledges the slot, then connections are evicted; otherwise clients come back
//! to the dying pod. So a drain asks the operator first, by reporting itself. If no grant comes, the sidecar tells its
//! peers, which use each key's next-best slot from then on, and paces itself.

use std::time::{Duration, Instant};

/// How long the operator may be silent before a draining sidecar goes on without it.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How long those who send clients here may take to hear that this pod drains: the kubelet's next probe, and every node's
/// rules for Services.
pub const HEARD: Duration = Duration::from_secs(3);
/// Kept at the end of the time, for the last evictions to finish cleanly.
pub const MARGIN: Duration = Duration::from_secs(5);

/// A drain under way.
#[derive(Clone, Debug, PartialEq)]
pub struct DrainState {
    timeout: Duration,
    deadline: Instant,
    /// When clients that come back no longer come in here.
    heard: Instant,
    /// When a grant was last in force.
    granted: Instant,
    /// Peers have been told.
    pub announced: bool,
    /// Evictions earned by the own pace, and not yet begun.
    credit: f64,
    stepped: Instant,
}

/// What a drain sees.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Whether there is a placement, and so somewhere to move to.
    pub placed: bool,
    /// Whether a grant is in force.
    pub granted: bool,
    /// Whether a slot is held, whose keys peers send here.
    pub holds_slot: bool,
    /// Connections that have not begun to leave.
    pub staying: u64,
    /// All connections.
    pub all: u64,
    /// Of those staying, the ones that are pinned.
    pub pinned: u64,
    /// Of those staying and not pinned, the ones that grants cover: where keys decide, those with a key.
    pub granted_for: u64,
    /// `rebalance.rate`.
    pub rate: u32,
}

/// What a drain does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The operator's grants do the work, or may still come.
    Wait,
    /// Tell the peers, then evict this many connections.
    Evict(u64),
    /// Nothing is left.
    Done,
    /// The time is up: close what is left.
    GiveUp,
}

impl DrainState {
    /// A drain that begins now.
    pub fn new(timeout: Duration, now: Instant) -> Self {
        let heard = now + HEARD.min(timeout / 2);
        Self { timeout, deadline: now + timeout, heard, granted: now, announced: false, credit: 0.0, stepped: now }
    }

    /// The time left.
    pub fn left(&self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now)
    }

    /// Whether pinned connections must go now, for there to be time to move them at the pool's rate. Half of the time is
    /// theirs in any case.
    pub fn ends_pins(&self, facts: &Facts, now: Instant) -> bool {
        let moving = Duration::from_secs(facts.pinned / u64::from(facts.rate.max(1)));
        self.left(now) <= (MARGIN + moving.max(MARGIN)).min(self.timeout / 2)
    }

    /// Decides what to do next, and accounts for it.
    pub fn step(&mut self, facts: &Facts, now: Instant) -> Step {
        if facts.all == 0 {
            // Nobody has to be moved before others take the keys: whoever comes now is not sent to an app about to end.
            return if facts.holds_slot && !self.announced { Step::Evict(0) } else { Step::Done };
        }
        if now >= self.deadline {
            return Step::GiveUp;
        }
        if facts.granted {
            self.granted = now;
        }
        let since = std::mem::replace(&mut self.stepped, now);
        let staying = facts.staying - facts.pinned;
        if staying == 0 && facts.pinned > 0 {
            // The operator is given its time again once there is something to move.
            self.granted = now;
            return Step::Wait;
        }
        if !facts.placed {
            // There is nowhere to move to: everyone is told at once.
            return Step::Evict(staying);
        }
        // Only those are left that belong elsewhere, and came in here: too soon, they would do so again.
        let would_return = facts.granted_for == 0 && now < self.heard;
        let operator_at_work = facts.granted_for > 0 && now < self.granted + PATIENCE;
        if would_return || operator_at_work {
            return Step::Wait;
        }
        let left = self.left(now).saturating_sub(MARGIN).as_secs_f64().max(0.1);
        #[allow(clippy::cast_precision_loss, reason = "connections are far below 2^52")]
        let rate = f64::from(facts.rate.max(1)).max(staying as f64 / left);
        self.credit += rate * now.duration_since(since).as_secs_f64();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative, and small")]
        let due = (self.credit as u64).min(staying);
        #[allow(clippy::cast_precision_loss, reason = "small")]
        {
            self.credit -= due as f64;
        }
        Step::Evict(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            placed: true,
            granted: false,
            holds_slot: true,
            staying: 1000,
            all: 1000,
            pinned: 0,
            granted_for: 1000,
            rate: 50,
        }
    }

    #[test]
    fn a_drain_waits_for_the_operator_and_then_paces_itself() {
        let start = Instant::now();
        let mut drain = DrainState::new(Duration::from_secs(60), start);
        assert_eq!(drain.step(&facts(), start + Duration::from_secs(1)), Step::Wait);
        assert_eq!(drain.step(&facts(), start + Duration::from_millis(2_900)), Step::Wait);
        assert_eq!(drain.step(&facts(), start + Duration::from_millis(3_900)), Step::Evict(50));
    }

    #[test]
    fn a_granted_drain_leaves_the_pace_to_the_operator() {
        let start = Instant::now();
        let mut drain = DrainState::new(Duration::from_secs(60), start);
        let granted = Facts { granted: true, ..facts() };
        assert_eq!(drain.step(&granted, start + Duration::from_secs(20)), Step::Wait);
        assert_eq!(drain.step(&facts(), start + Duration::from_secs(22)), Step::Wait);
        assert!(matches!(drain.step(&facts(), start + Duration::from_millis(23_500)), Step::Evict(1..)));
    }

    #[test]
    fn a_drain_waits_for_pins_and_then_for_the_operator_again() {
        let start = Instant::now();
        let mut drain = DrainState::new(Duration::from_secs(60), start);
        let pinned = Facts { pinned: 1000, granted_for: 0, ..facts() };
        assert_eq!(drain.step(&pinned, start + Duration::from_secs(30)), Step::Wait);
        assert_eq!(drain.step(&facts(), start + Duration::from_millis(32_900)), Step::Wait);
        assert!(matches!(drain.step(&facts(), start + Duration::from_millis(33_900)), Step::Evict(1..)));
    }

    #[test]
    fn pins_end_while_there_is_time_to_move_what_they_held() {
        let start = Instant::now();
        let left = |timeout, pinned| {
            let drain = DrainState::new(Duration::from_secs(timeout), start);
            let ends =
                |second: &u64| drain.ends_pins(&Facts { pinned, ..facts() }, start + Duration::from_secs(*second));
            timeout - (0..timeout).find(ends).unwrap()
        };
        assert_eq!((left(60, 10), left(60, 1_000), left(60, 100_000), left(4, 1)), (10, 25, 30, 2));
    }

    #[test]
    fn a_drain_hurries_when_its_time_is_short() {
        let start = Instant::now();
        let mut drain = DrainState::new(Duration::from_secs(15), start);
        assert_eq!(drain.step(&facts(), start + Duration::from_millis(4_000)), Step::Evict(666));
    }

    #[test]
    fn connections_that_no_grant_is_for_wait_only_until_they_do_not_come_back() {
        let start = Instant::now();
        let mut drain = DrainState::new(Duration::from_secs(60), start);
        let keyless = Facts { granted_for: 0, ..facts() };
        assert_eq!(drain.step(&keyless, start + Duration::from_millis(2_900)), Step::Wait);
        assert_eq!(drain.step(&keyless, start + Duration::from_millis(3_900)), Step::Evict(50));
        let mut short = DrainState::new(Duration::from_secs(2), start);
        assert!(matches!(short.step(&keyless, start + Duration::from_secs(1)), Step::Evict(1..)));
    }

    #[test]
    fn peers_are_told_at_once_when_there_is_nobody_to_move() {
        let start = Instant::now();
        let empty = Facts { staying: 0, granted_for: 0, all: 0, ..facts() };
        let mut drain = DrainState::new(Duration::from_secs(60), start);
        assert_eq!(drain.step(&empty, start), Step::Evict(0));
        drain.announced = true;
        assert_eq!(drain.step(&empty, start), Step::Done);
    }

    #[test]
    fn a_drain_ends_when_nothing_is_left_or_its_time_is_up() {
        let start = Instant::now();
        let mut drain = DrainState::new(Duration::from_secs(60), start);
        assert_eq!(drain.step(&Facts { all: 0, holds_slot: false, ..facts() }, start), Step::Done);
        assert_eq!(drain.step(&facts(), start + Duration::from_secs(60)), Step::GiveUp);
    }
}

//! What contact with a member's sidecar says of the member.

use std::time::{Duration, Instant};

use ring::wire::Report;

use super::Standing;
use crate::control::ControlError;
use crate::planner::MemberState;

/// How long after its grace period the processes of a pod may still be there.
const KILLED: Duration = Duration::from_secs(10);

/// What is known of one member.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Its UID, once its sidecar has reported.
    pub uid: Option<String>,
    connections: u64,
    /// It has not answered when it was asked last.
    silent: bool,
    /// Since when its control port has refused connections.
    refused: Option<Instant>,
    /// Since when it has been leaving.
    leaving: Option<Instant>,
    /// Since when its source has listed it as going away.
    deleted: Option<Instant>,
    draining: bool,
    /// It has lost its slot, and says that it is not ready for that reason alone.
    retired: bool,
    /// How its source lists it; `None` when it no longer does.
    standing: Option<Standing>,
}

/// The times by which a member is judged.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A port that has refused for this long belongs to a dead process. And a member that has drained for this long, and is
    /// still listed to stay, has no successor to come: its app alone is restarted.
    pub settle: Duration,
    /// A member that goes, and has waited this long for a successor, waits no more.
    pub handover: Duration,
}

impl Health {
    /// Its sidecar has answered.
    pub fn heard(&mut self, report: &Report, now: Instant) {
        self.uid = Some(report.uid.clone());
        self.connections = report.connections;
        self.silent = false;
        self.refused = None;
        self.draining = report.draining;
        self.retired = report.retired;
        self.note_leaving(now);
    }

    /// Its sidecar could not be asked. One that answers with an error is there.
    pub fn failed(&mut self, error: &ControlError, now: Instant) {
        match error {
            ControlError::Refused { .. } => {
                self.silent = true;
                self.refused.get_or_insert(now);
            }
            ControlError::Unreachable { .. } | ControlError::Timeout { .. } => {
                self.silent = true;
                self.refused = None;
            }
            ControlError::Denied { .. } | ControlError::Malformed { .. } | ControlError::Unsigned { .. } => {}
        }
    }

    /// How its source lists it, if it still does.
    pub fn listed(&mut self, standing: Option<Standing>, now: Instant) {
        self.standing = standing;
        match standing {
            Some(Standing::Leaving { .. }) => self.deleted = self.deleted.or(Some(now)),
            _ => self.deleted = None,
        }
        self.note_leaving(now);
    }

    /// Whether its source no longer lists it.
    pub fn is_unlisted(&self) -> bool {
        self.standing.is_none()
    }

    /// Whether its sidecar has not answered when it was asked last.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    fn note_leaving(&mut self, now: Instant) {
        if self.draining || matches!(self.standing, None | Some(Standing::Leaving { .. })) {
            self.leaving.get_or_insert(now);
        } else {
            self.leaving = None;
        }
    }

    /// How the member is.
    pub fn state(&self, patience: Patience, now: Instant) -> MemberState {
        let known = self.uid.is_some();
        if !known && self.is_unlisted() {
            return MemberState::Dead;
        }
        if known && self.refused.is_some_and(|since| now >= since + patience.settle) {
            return MemberState::Dead;
        }
        if self.is_past_its_end(now) {
            return MemberState::Dead;
        }
        match self.leaving {
            Some(since) => {
                let goes = matches!(self.standing, None | Some(Standing::Leaving { .. }));
                let wait = if goes { patience.handover } else { patience.settle.min(patience.handover) };
                MemberState::Leaving { overdue: now >= since + wait }
            }
            None if !known || (self.standing == Some(Standing::Starting) && !self.retired) => MemberState::Starting,
            None if !self.silent => MemberState::Ready,
            None => MemberState::Unreachable,
        }
    }

    /// Whether it should have ended, and does not answer: its node is gone, and its object stays until somebody removes that.
    fn is_past_its_end(&self, now: Instant) -> bool {
        let Some((Standing::Leaving { grace }, since)) = self.standing.zip(self.deleted) else { return false };
        self.silent && now >= since + grace + KILLED
    }

    /// Whether nothing more is expected of a member that the file no longer lists. `needed` says that the placement still
    /// leads there: a connection may come yet.
    pub fn is_over(&self, patience: Patience, needed: bool, now: Instant) -> bool {
        let empty = !self.silent && self.connections == 0 && !needed;
        self.is_unlisted() && (empty || self.state(patience, now) == MemberState::Dead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { settle: Duration::from_secs(5), handover: Duration::from_secs(30) };

    const LEAVING: Option<Standing> = Some(Standing::Leaving { grace: Duration::from_secs(60) });

    fn refused() -> ControlError {
        ControlError::Refused { address: "a:1".into() }
    }

    fn reported(connections: u64, draining: bool) -> Report {
        Report { uid: "a".into(), connections, draining, ..Report::default() }
    }

    fn present() -> Health {
        Health { standing: Some(Standing::Present), ..Health::default() }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_member_gets_no_keys_before_its_sidecar_has_answered() {
        let now = Instant::now();
        let mut health = present();
        health.failed(&refused(), now);
        assert_eq!(health.state(PATIENCE, now + seconds(60)), MemberState::Starting);
        health.heard(&reported(0, false), now + seconds(60));
        assert_eq!(health.state(PATIENCE, now + seconds(60)), MemberState::Ready);
    }

    #[test]
    fn a_pod_that_is_not_ready_gets_no_keys_however_well_its_sidecar_answers() {
        let now = Instant::now();
        let mut health = Health { standing: Some(Standing::Starting), ..Health::default() };
        health.heard(&reported(0, false), now);
        assert_eq!(health.state(PATIENCE, now), MemberState::Starting);
        health.listed(Some(Standing::Present), now);
        assert_eq!(health.state(PATIENCE, now), MemberState::Ready);
        health.listed(LEAVING, now);
        assert_eq!(health.state(PATIENCE, now), MemberState::Leaving { overdue: false });
    }

    #[test]
    fn a_pod_that_is_not_ready_because_its_slot_is_gone_can_have_one_again() {
        let now = Instant::now();
        let mut health = Health { standing: Some(Standing::Starting), ..Health::default() };
        health.heard(&Report { retired: true, ..reported(0, false) }, now);
        assert_eq!(health.state(PATIENCE, now), MemberState::Ready);
    }

    #[test]
    fn a_pod_that_leaves_before_its_sidecar_was_heard_is_not_taken_for_one_that_starts() {
        let now = Instant::now();
        let mut health = Health::default();
        health.listed(LEAVING, now);
        assert_eq!(health.state(PATIENCE, now), MemberState::Leaving { overdue: false });
    }

    #[test]
    fn a_port_that_refuses_for_longer_than_settle_is_dead_and_one_that_is_silent_is_not() {
        let now = Instant::now();
        let mut health = present();
        health.heard(&reported(0, false), now);
        health.failed(&refused(), now);
        assert_eq!(health.state(PATIENCE, now + seconds(4)), MemberState::Unreachable);
        assert_eq!(health.state(PATIENCE, now + seconds(5)), MemberState::Dead);
        health.failed(&ControlError::Timeout { address: "a:1".into() }, now);
        assert_eq!(health.state(PATIENCE, now + seconds(500)), MemberState::Unreachable);
        health.heard(&reported(0, false), now);
        assert_eq!(health.state(PATIENCE, now), MemberState::Ready);
    }

    #[test]
    fn a_member_that_goes_waits_for_a_successor_for_a_while_and_one_that_drains_and_stays_does_not() {
        let now = Instant::now();
        let mut restarts = present();
        restarts.heard(&reported(9, true), now);
        let mut unlisted = present();
        unlisted.heard(&reported(9, false), now);
        unlisted.listed(None, now);
        // Its sidecar was heard before its source.
        let mut leaves = restarts.clone();
        leaves.listed(LEAVING, now + seconds(1));
        for (health, wait) in [(restarts, 5), (unlisted, 30), (leaves, 30)] {
            assert_eq!(health.state(PATIENCE, now + seconds(wait - 1)), MemberState::Leaving { overdue: false });
            assert_eq!(health.state(PATIENCE, now + seconds(wait)), MemberState::Leaving { overdue: true });
        }
    }

    #[test]
    fn a_pod_that_should_have_ended_and_is_silent_is_dead_also_when_nobody_has_heard_it() {
        let now = Instant::now();
        let mut heard = present();
        heard.heard(&reported(9, false), now);
        for mut health in [heard, Health::default()] {
            health.listed(LEAVING, now);
            assert_eq!(health.state(PATIENCE, now + seconds(500)), MemberState::Leaving { overdue: true });
            health.failed(&ControlError::Timeout { address: "a:1".into() }, now + seconds(5));
            health.listed(LEAVING, now + seconds(69));
            assert_eq!(health.state(PATIENCE, now + seconds(69)), MemberState::Leaving { overdue: true });
            assert_eq!(health.state(PATIENCE, now + seconds(70)), MemberState::Dead);
            health.heard(&reported(9, false), now + seconds(71));
            assert_eq!(health.state(PATIENCE, now + seconds(71)), MemberState::Leaving { overdue: true });
        }
    }

    #[test]
    fn an_unlisted_member_is_followed_until_it_is_empty_or_dead() {
        let now = Instant::now();
        let mut health = present();
        health.heard(&reported(1, false), now);
        health.listed(None, now);
        assert!(!health.is_over(PATIENCE, false, now + seconds(100)));
        let mut empty = health.clone();
        empty.heard(&reported(0, false), now);
        assert!(!empty.is_over(PATIENCE, true, now), "the placement still leads there");
        assert!(empty.is_over(PATIENCE, false, now));
        health.failed(&refused(), now);
        assert!(health.is_over(PATIENCE, true, now + seconds(5)));
    }
}

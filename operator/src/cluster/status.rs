//! The status of a pool: what its resource says of it, and when that is worth a write.

use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::inject::POOL_LABEL;
use crate::pool::{MoveStatus, PoolStatus};
use crate::rebalance::view::{ConditionView, PoolView};

/// The least time between two writes.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// The age at which a figure that somebody scales by is written again, though it has not changed: well before
/// [`figure::MAX_AGE`](super::figure::MAX_AGE).
const RENEWAL: Duration = Duration::from_secs(10);

/// What the status is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The pool's name.
    pub name: &'a str,
    /// The generation of its spec.
    pub generation: i64,
    /// The target's replicas.
    pub replicas: i32,
    /// What the status says now.
    pub before: &'a PoolStatus,
    /// The time.
    pub now: Timestamp,
}

/// The status of a pool that is driven.
pub fn of_view(subject: Subject<'_>, view: &PoolView) -> PoolStatus {
    let held = view.slots.iter().filter(|slot| slot.member.is_some()).count();
    PoolStatus {
        slots: u32::try_from(held).unwrap_or(u32::MAX),
        connections: view.connections,
        connections_at: view.counted.then_some(Time(subject.now)),
        epoch: view.epoch,
        moving: MoveStatus {
            pending: view.moving.pending,
            evicted: view.moving.evicted,
            returned: view.moving.returned,
            lost: view.moving.lost,
            pinned: view.moving.pinned,
            rate: view.moving.rate,
        },
        ..with_conditions(subject, &view.conditions)
    }
}

/// The status of a pool that cannot be driven.
pub fn of_refusal(subject: Subject<'_>, reason: &'static str, message: &str) -> PoolStatus {
    let condition = |kind, status| ConditionView { kind, status, reason, message: message.to_owned() };
    with_conditions(subject, &[condition("Ready", false), condition("Degraded", true)])
}

fn with_conditions(subject: Subject<'_>, conditions: &[ConditionView]) -> PoolStatus {
    let condition = |view: &ConditionView| {
        let status = if view.status { "True" } else { "False" };
        let before = subject.before.conditions.iter().find(|before| before.type_ == view.kind);
        let since = before.filter(|before| before.status == status).map(|before| before.last_transition_time.clone());
        Condition {
            type_: view.kind.to_owned(),
            status: status.to_owned(),
            reason: view.reason.to_owned(),
            message: view.message.clone(),
            observed_generation: Some(subject.generation),
            last_transition_time: since.unwrap_or(Time(subject.now)),
        }
    };
    PoolStatus {
        observed_generation: subject.generation,
        conditions: conditions.iter().map(condition).collect(),
        replicas: subject.replicas,
        selector: format!("{POOL_LABEL}={}", subject.name),
        ..PoolStatus::default()
    }
}

/// When the next write is due: `None` when there is nothing to write. A later time of the same figure is no news, unless
/// `is_scaled` says that somebody scales by it: then it is written again while it is still young enough to be used.
pub fn due(
    before: &PoolStatus,
    after: &PoolStatus,
    is_scaled: bool,
    written: Option<Instant>,
    now: Instant,
) -> Option<Instant> {
    let (old, new) = (before.connections_at.as_ref(), after.connections_at.as_ref());
    let is_old = |old: &Time, new: &Time| new.0.duration_since(old.0).unsigned_abs() >= RENEWAL;
    let renews = match (old, new) {
        (Some(old), Some(new)) => is_scaled && is_old(old, new),
        (old, new) => old.is_some() != new.is_some(),
    };
    let same_time = PoolStatus { connections_at: before.connections_at.clone(), ..after.clone() };
    (renews || *before != same_time).then(|| written.map_or(now, |written| written + INTERVAL))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use ring::SlotId;

    use super::*;
    use crate::rebalance::State;
    use crate::rebalance::view::{MoveView, SlotView};

    pub(crate) fn view() -> PoolView {
        PoolView {
            namespace: None,
            name: "chat".into(),
            term: 1,
            epoch: 7,
            state: State::Stable,
            conditions: vec![condition("Ready", true, "AllSlotsHeld"), condition("Degraded", false, "AsExpected")],
            slots: vec![slot(0, "chat-a")],
            spares: Vec::new(),
            members: Vec::new(),
            desired: 1,
            connections: 40,
            counted: true,
            moving: MoveView::default(),
            would_move: None,
            breaks: BTreeMap::new(),
            troubles: Vec::new(),
        }
    }

    pub(crate) fn slot(id: u32, member: &str) -> SlotView {
        let member = Some(member.to_owned());
        SlotView { id: SlotId(id), member, connections: 0, transit: 0, moved: 0, ready: true }
    }

    pub(crate) fn condition(kind: &'static str, status: bool, reason: &'static str) -> ConditionView {
        ConditionView { kind, status, reason, message: format!("{reason} it is") }
    }

    fn subject(before: &PoolStatus, second: i64) -> Subject<'_> {
        let now = Timestamp::from_second(second).unwrap();
        Subject { name: "chat", generation: 2, replicas: 1, before, now }
    }

    #[test]
    fn a_condition_keeps_the_time_at_which_it_last_changed() {
        let first = of_view(subject(&PoolStatus::default(), 100), &view());
        let mut later = view();
        later.conditions[0] = condition("Ready", true, "StillHeld");
        later.conditions[1] = condition("Degraded", true, "Unreachable");
        let second = of_view(subject(&first, 200), &later);
        let times: Vec<_> = second.conditions.iter().map(|c| c.last_transition_time.0.as_second()).collect();
        assert_eq!(times, [100, 200]);
        assert_eq!(second.conditions[0].reason, "StillHeld");
        assert_eq!(second.conditions[0].observed_generation, Some(2));
    }

    #[test]
    fn the_status_has_what_kubectl_prints_and_what_an_autoscaler_needs() {
        let status = of_view(subject(&PoolStatus::default(), 1), &view());
        assert_eq!((status.slots, status.connections, status.epoch, status.replicas), (1, 40, 7, 1));
        assert_eq!(status.selector, "wspool.dev/pool=chat");
    }

    #[test]
    fn a_pool_that_is_refused_is_not_ready_and_degraded_with_the_reason() {
        let status = of_refusal(subject(&PoolStatus::default(), 1), "InvalidPool", "spec.port: 0 is not a port");
        let said: Vec<_> = status.conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
        assert_eq!(said, [("Ready", "False"), ("Degraded", "True")]);
        assert!(status.conditions.iter().all(|c| c.reason == "InvalidPool"));
    }

    #[test]
    fn it_is_written_only_when_changed_and_not_too_often() {
        let now = Instant::now();
        let (same, other) = (PoolStatus::default(), of_view(subject(&PoolStatus::default(), 1), &view()));
        assert_eq!(due(&same, &same, true, None, now), None);
        assert_eq!(due(&same, &other, false, None, now), Some(now));
        assert_eq!(due(&same, &other, false, Some(now), now), Some(now + INTERVAL));
    }

    #[test]
    fn the_time_of_a_figure_is_written_again_only_for_those_who_scale_by_it() {
        let now = Instant::now();
        let at = |second| of_view(subject(&PoolStatus::default(), second), &view());
        let mut first = at(100);
        let due = |before: &PoolStatus, after: &PoolStatus, is_scaled| {
            // The conditions' times are those of the first status.
            let after = PoolStatus { conditions: before.conditions.clone(), ..after.clone() };
            due(before, &after, is_scaled, None, now).is_some()
        };
        assert_eq!(
            [due(&first, &at(109), true), due(&first, &at(110), true), due(&first, &at(500), false)],
            [false, true, false]
        );
        first.connections_at = None;
        assert!(due(&first, &at(101), false), "a figure is there again");
        assert!(due(&at(101), &first, false), "there is none any more");
    }

    #[test]
    fn a_count_that_is_not_whole_has_no_time() {
        let mut view = view();
        view.counted = false;
        assert_eq!(of_view(subject(&PoolStatus::default(), 1), &view).connections_at, None);
    }
}

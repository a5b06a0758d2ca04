//! The status of a pool: what its resource says of it, and when that is worth a write.

use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::inject::POOL_LABEL;
use crate::pool::{MoveStatus, PoolStatus};
use crate::rebalance::view::{ConditionView, PoolView};

/// The least time between two writes.
pub const INTERVAL: Duration = Duration::from_secs(5);

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
        epoch: view.epoch,
        moving: MoveStatus {
            pending: view.moving.pending,
            evicted: view.moving.evicted,
            returned: view.moving.returned,
            lost: view.moving.lost,
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

/// When the next write is due: `None` when there is nothing to write.
pub fn due(before: &PoolStatus, after: &PoolStatus, written: Option<Instant>, now: Instant) -> Option<Instant> {
    (before != after).then(|| written.map_or(now, |written| written + INTERVAL))
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
        assert_eq!(due(&same, &same, None, now), None);
        assert_eq!(due(&same, &other, None, now), Some(now));
        assert_eq!(due(&same, &other, Some(now), now), Some(now + INTERVAL));
    }
}

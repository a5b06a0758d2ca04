//! What is worth an event: the phases of a move, and trouble. A function of what was and what is, so that nothing is said
//! twice.

use kube::runtime::events::{Event, EventType};

use super::trouble::NO_MEMBERS;
use crate::rebalance::State;
use crate::rebalance::view::PoolView;

/// What has happened between two views of a pool.
pub fn between(before: &PoolView, after: &PoolView) -> Vec<Event> {
    let mut events = Vec::new();
    let holders = |view: &PoolView| view.slots.iter().map(|slot| (slot.id, slot.member.clone())).collect::<Vec<_>>();
    if after.epoch > before.epoch && holders(before) != holders(after) {
        let held = after.slots.iter().filter_map(|slot| Some(format!("{} {}", slot.id, slot.member.as_ref()?)));
        let held = held.collect::<Vec<_>>().join(", ");
        let held = if held.is_empty() { "no slot has a holder".to_owned() } else { format!("slots {held}") };
        events.push(normal("Placed", "Place", format!("epoch {}: {held}", after.epoch)));
    }
    let (was_moving, is_moving) = (is_moving(before), is_moving(after));
    let moved = &after.moving;
    // A short move may be over before anybody has looked.
    let passed = !was_moving && !is_moving && moved.evicted > 0 && *moved != before.moving;
    if (is_moving && !was_moving) || passed {
        let count = moved.pending + moved.evicted;
        events.push(normal("MoveStarted", "Move", format!("{count} of {} connections are to move", after.connections)));
    }
    if (was_moving && !is_moving && moved.evicted > 0) || passed {
        let note = format!(
            "{} connections were evicted, {} of them returned, {} were lost",
            moved.evicted, moved.returned, moved.lost
        );
        events.push(normal("MoveEnded", "Move", note));
    }
    let is_new = |reason: &str| before.troubles.iter().all(|(before, _)| *before != reason);
    let new = after.troubles.iter().filter(|(reason, _)| is_new(reason));
    events.extend(new.map(|(reason, message)| trouble_of(after, reason, message)));
    if !before.troubles.is_empty() && after.troubles.is_empty() {
        let reasons: Vec<_> = before.troubles.iter().map(|(reason, _)| *reason).collect();
        events.push(normal("Recovered", "Watch", format!("over: {}", reasons.join(", "))));
    }
    events
}

/// What is worth an event when a pool is seen for the first time.
pub fn first(view: &PoolView) -> Vec<Event> {
    view.troubles.iter().map(|(reason, message)| trouble_of(view, reason, message)).collect()
}

/// Who applies a pool has yet to label its pods: that is no reason to be warned while nobody has a connection to lose.
fn trouble_of(view: &PoolView, reason: &str, message: &str) -> Event {
    if reason == NO_MEMBERS && view.connections == 0 {
        normal(reason, "Watch", message.to_owned())
    } else {
        trouble(reason, message)
    }
}

/// Something is wrong.
pub fn trouble(reason: &str, message: &str) -> Event {
    Event { type_: EventType::Warning, ..normal(reason, "Watch", message.to_owned()) }
}

/// The target was scaled.
pub fn scaled(kind: &str, name: &str, from: u32, to: u32) -> Event {
    normal("Scaled", "Scale", format!("{kind} {name} from {from} to {to} replicas"))
}

fn normal(reason: &str, action: &str, note: String) -> Event {
    Event {
        type_: EventType::Normal,
        reason: reason.to_owned(),
        note: Some(note),
        action: action.to_owned(),
        secondary: None,
    }
}

fn is_moving(view: &PoolView) -> bool {
    matches!(view.state, State::Publishing | State::Evicting) && view.moving.pending + view.moving.evicted > 0
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{slot, view};
    use super::*;

    fn reasons(before: &PoolView, after: &PoolView) -> Vec<String> {
        between(before, after).into_iter().map(|event| event.reason).collect()
    }

    #[test]
    fn a_move_is_told_from_its_placement_to_its_end_and_nothing_in_between() {
        let stable = view();
        let mut placed = view();
        placed.epoch += 1;
        placed.slots.push(slot(1, "chat-b"));
        placed.state = State::Publishing;
        let mut evicting = placed.clone();
        evicting.state = State::Evicting;
        evicting.moving.pending = 20;
        let mut further = evicting.clone();
        (further.moving.pending, further.moving.evicted) = (3, 17);
        let mut ended = further.clone();
        (ended.state, ended.epoch, ended.moving.pending, ended.moving.evicted) =
            (State::Stable, placed.epoch + 1, 0, 20);
        assert_eq!(reasons(&stable, &placed), ["Placed"]);
        assert_eq!(reasons(&placed, &evicting), ["MoveStarted"]);
        assert_eq!(reasons(&evicting, &further), [""; 0]);
        assert_eq!(reasons(&further, &ended), ["MoveEnded"]);
        assert_eq!(reasons(&ended, &ended), [""; 0]);
        assert_eq!(reasons(&stable, &ended), ["Placed", "MoveStarted", "MoveEnded"], "one that nobody has seen");
    }

    #[test]
    fn a_placement_without_holders_says_so() {
        let mut empty = view();
        (empty.epoch, empty.slots[0].member) = (8, None);
        assert_eq!(between(&view(), &empty)[0].note.as_deref(), Some("epoch 8: no slot has a holder"));
    }

    #[test]
    fn a_pool_whose_pods_are_yet_to_be_labelled_is_no_warning_and_one_that_has_lost_them_is() {
        let warns = |connections| {
            let mut view = view();
            view.connections = connections;
            view.degrade(NO_MEMBERS, "add it to the pod template");
            first(&view).iter().map(|event| matches!(event.type_, EventType::Warning)).collect::<Vec<_>>()
        };
        assert_eq!((warns(0), warns(40)), (vec![false], vec![true]));
    }

    #[test]
    fn trouble_is_told_when_it_begins_when_it_changes_and_when_it_ends() {
        let with = |reason: &'static str, message: &str| {
            let mut view = view();
            view.degrade(reason, message);
            view
        };
        let well = view();
        assert_eq!(reasons(&well, &with("Unreachable", "chat-a")), ["Unreachable"]);
        assert_eq!(reasons(&with("Unreachable", "chat-a"), &with("Unreachable", "chat-b")), [""; 0]);
        assert_eq!(reasons(&with("Unreachable", ""), &with("GraceTooShort", "")), ["GraceTooShort"]);
        assert_eq!(reasons(&with("Unreachable", ""), &well), ["Recovered"]);
    }

    #[test]
    fn a_second_trouble_is_told_beside_the_first_and_the_condition_names_both() {
        let mut one = view();
        one.degrade("HostNetwork", "chat-a is on hostNetwork");
        let mut both = one.clone();
        both.degrade("GraceTooShort", "chat-b has 5s");
        assert_eq!(reasons(&one, &both), ["GraceTooShort"]);
        let condition = &both.conditions[1];
        assert_eq!(
            (condition.reason, condition.message.as_str()),
            ("HostNetwork", "chat-a is on hostNetwork; GraceTooShort: chat-b has 5s")
        );
    }
}

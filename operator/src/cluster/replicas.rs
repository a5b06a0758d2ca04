//! How many replicas the target should have, and which pods should go first, as functions of what is there.

use std::collections::{BTreeSet, HashMap};

use super::pod::PodFacts;
use crate::planner::Role;
use crate::rebalance::State;
use crate::rebalance::view::{MemberView, PoolView};

/// The deletion cost of a pod that holds no slot: it goes before any that does.
pub const SPARE: i32 = i32::MIN;
/// How much more a pod costs with pinned connections: it goes after all that have none.
const PINNED: i32 = 1_000_000;

/// What to do with the target's scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// Write this number.
    Set(u32),
    /// Fewer are wanted, and it is too early.
    Wait(&'static str),
}

/// Decides about the target's scale, when the pool says how many replicas it wants.
///
/// Growth is written at once. Before a shrink the slots that go are retired and their holders drained, by the plan for as many
/// slots as are wanted; then as many pods as go hold no slot and no connection, and their deletion cost says so.
pub fn step(wanted: Option<u32>, desired: u32, view: &PoolView, pods: &[PodFacts]) -> Step {
    let Some(wanted) = wanted else { return Step::Keep };
    if wanted >= desired {
        return if wanted > desired { Step::Set(wanted) } else { Step::Keep };
    }
    let members = by_uid(view);
    // The object of a pod whose node is gone may stay for long.
    let has_ended = |pod: &PodFacts| !pod.stays() && members.get(pod.uid.as_str()).is_some_and(|member| member.dead);
    let pods = pods.iter().filter(|pod| pod.role == Role::App && pod.standing.is_some() && !has_ended(pod));
    if is_rolling(pods.clone()) {
        return Step::Wait("the target is rolling out");
    }
    let staying = pods.clone().filter(|pod| pod.stays()).count();
    if staying == 0 {
        return Step::Set(wanted);
    }
    if u32::try_from(staying) != Ok(desired) || pods.clone().any(|pod| !pod.stays()) {
        return Step::Wait("pods are coming or going");
    }
    let retired = view.slots.len() <= usize::try_from(wanted).unwrap_or(usize::MAX);
    if !retired || view.state != State::Stable {
        return Step::Wait("connections move away from the pods that go");
    }
    let is_empty = |member: &MemberView| member.slot.is_none() && member.connections.is_none_or(|held| held == 0);
    let emptied = pods.clone().filter(|pod| members.get(pod.uid.as_str()).copied().is_none_or(is_empty)).count();
    if u32::try_from(emptied).is_ok_and(|emptied| emptied < desired - wanted) {
        return Step::Wait("connections move away from the pods that go");
    }
    if !costs_to_write(pods, view).is_empty() {
        return Step::Wait("deletion costs are being written");
    }
    Step::Set(wanted)
}

/// Whether pods of more than one template are there.
fn is_rolling<'a>(pods: impl Iterator<Item = &'a PodFacts>) -> bool {
    pods.map(|pod| &pod.revision).collect::<BTreeSet<_>>().len() > 1
}

/// The deletion costs that pods should have and have not: lower ones go first. In a pool that forms nobody holds anything yet.
pub fn costs_to_write<'a>(pods: impl IntoIterator<Item = &'a PodFacts>, view: &PoolView) -> Vec<(&'a PodFacts, i32)> {
    if view.slots.is_empty() {
        return Vec::new();
    }
    let members = by_uid(view);
    // A StatefulSet takes the highest ordinal, whatever it costs.
    let counts = |pod: &&PodFacts| pod.role == Role::App && pod.ordinal.is_none() && pod.stays();
    let costs = pods.into_iter().filter(counts).filter_map(|pod| {
        let member = members.get(pod.uid.as_str())?;
        let cost = match member.slot {
            Some(slot) => i32::try_from(slot.0).map_or(SPARE, |slot| -slot),
            None if member.pinned > 0 => -PINNED / 2,
            None => SPARE,
        };
        let cost = if member.pinned > 0 { cost.saturating_add(PINNED) } else { cost };
        (pod.cost.as_deref() != Some(cost.to_string().as_str())).then_some((pod, cost))
    });
    costs.collect()
}

fn by_uid(view: &PoolView) -> HashMap<&str, &MemberView> {
    view.members.iter().filter_map(|member| Some((member.uid.as_deref()?, member))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ring::SlotId;
    use serde_json::json;

    use super::super::pod::tests::facts;
    use super::super::status::tests::{slot, view};
    use super::*;
    use crate::driver::Standing;

    const LEAVING: Option<Standing> = Some(Standing::Leaving { grace: Duration::ZERO });

    /// Ready pods `0..n` of which the first ones hold slots, with costs to match.
    fn pool(n: u32, slots: u32) -> (Vec<PodFacts>, PoolView) {
        let mut of = view();
        of.slots = (0..slots).map(|id| slot(id, &format!("chat-{id}"))).collect();
        let pods = (0..n).map(|index| {
            let cost = if index < slots { -i64::from(index) } else { i64::from(SPARE) };
            facts(&format!("chat-{index}"), |pod| {
                pod["metadata"]["annotations"] = json!({super::super::pod::DELETION_COST: cost.to_string()});
            })
        });
        let pods: Vec<_> = pods.collect();
        let member = |(index, pod): (u32, &PodFacts)| MemberView {
            name: pod.name.clone(),
            uid: Some(pod.uid.clone()),
            slot: (index < slots).then_some(SlotId(index)),
            ready: true,
            dead: false,
            connections: Some(if index < slots { 100 } else { 0 }),
            pinned: 0,
        };
        of.members = (0..).zip(&pods).map(member).collect();
        (pods, of)
    }

    #[test]
    fn without_a_wish_of_the_pool_the_target_is_left_alone() {
        let (pods, view) = pool(3, 1);
        assert_eq!(step(None, 3, &view, &pods), Step::Keep);
    }

    #[test]
    fn growth_is_written_at_once_also_in_a_rollout() {
        let (mut pods, view) = pool(2, 2);
        pods[0].revision = "new".into();
        assert_eq!(step(Some(3), 2, &view, &pods), Step::Set(3));
        assert_eq!(step(Some(2), 2, &view, &pods), Step::Keep);
        assert_eq!(step(Some(2), 0, &view, &[]), Step::Set(2));
    }

    #[test]
    fn a_shrink_waits_until_the_pods_that_go_are_empty_and_marked() {
        type Change = fn(&mut Vec<PodFacts>, &mut PoolView);
        let (pods, view) = pool(3, 2);
        assert_eq!(step(Some(2), 3, &view, &pods), Step::Set(2));
        let early: [Change; 7] = [
            |_, view| view.slots.push(slot(2, "chat-2")),
            |_, view| view.state = State::Evicting,
            |_, view| view.members[2].connections = Some(1),
            |pods, _| pods[2].cost = None,
            |pods, _| pods[0].revision = "new".into(),
            |pods, _| drop(pods.pop()),
            |pods, _| pods[1].standing = LEAVING,
        ];
        for (index, change) in early.into_iter().enumerate() {
            let (mut pods, mut view) = pool(3, 2);
            change(&mut pods, &mut view);
            assert!(matches!(step(Some(2), 3, &view, &pods), Step::Wait(_)), "case {index}");
        }
    }

    #[test]
    fn a_shrink_does_not_wait_for_a_pod_whose_node_is_gone() {
        let (mut pods, mut view) = pool(4, 2);
        pods[3].standing = LEAVING;
        assert!(matches!(step(Some(2), 3, &view, &pods), Step::Wait(_)));
        view.members[3].dead = true;
        assert_eq!(step(Some(2), 3, &view, &pods), Step::Set(2));
    }

    #[test]
    fn a_target_without_pods_is_not_waited_for() {
        assert_eq!(step(Some(1), 3, &view(), &[]), Step::Set(1));
    }

    #[test]
    fn a_holder_costs_less_the_higher_its_slot_a_spare_least_and_what_is_pinned_most() {
        let (mut pods, view) = pool(3, 2);
        let costs = |pods: &[PodFacts], view: &PoolView| -> Vec<i32> {
            costs_to_write(pods, view).into_iter().map(|(_, cost)| cost).collect()
        };
        assert_eq!(costs(&pods, &view), [0; 0], "they have it already");
        for pod in &mut pods {
            pod.cost = None;
        }
        assert_eq!(costs(&pods, &view), [0, -1, SPARE]);
        let mut pinned = view.clone();
        (pinned.members[1].pinned, pinned.members[2].pinned) = (1, 1);
        assert_eq!(costs(&pods, &pinned), [0, PINNED - 1, PINNED / 2], "pinned ones last");
        pods[0].standing = LEAVING;
        pods[1].ordinal = Some(1);
        assert_eq!(costs(&pods, &view), [SPARE]);
    }

    #[test]
    fn while_a_pool_forms_no_pod_gets_a_cost_that_its_slot_will_change() {
        let (mut pods, mut view) = pool(3, 0);
        for pod in &mut pods {
            pod.cost = None;
        }
        assert!(costs_to_write(&pods, &view).is_empty());
        view.slots.push(slot(0, "chat-0"));
        assert_eq!(costs_to_write(&pods, &view).len(), 3);
    }
}

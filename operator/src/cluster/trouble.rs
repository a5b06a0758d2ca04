//! What is wrong around a pool that its machine cannot see: as functions of the pool and its pods, in words that tell what
//! to do.

use ring::settings::{Drain, Limits};

use super::pod::{Injected, PodFacts};
use crate::pool::CheckedPool;
use crate::rebalance::view::PoolView;

/// A reason in one word, and a sentence.
pub type Trouble = (&'static str, String);

/// How many pods a sentence names.
const NAMED: usize = 3;

/// What is wrong with the pods.
pub fn of_pods(pool: &CheckedPool, pods: &[PodFacts]) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let staying = pods.iter().filter(|pod| pod.stays());
    if let Some(names) = names(staying.clone().filter(|pod| pod.sidecar == Injected::HostNetwork)) {
        let sentence = format!(
            "{names} on hostNetwork, where no sidecar can be: remove hostNetwork from the pod template, or its label \
             wspool.dev/pool"
        );
        troubles.push(("HostNetwork", sentence));
    }
    if let Some(names) = names(staying.clone().filter(|pod| pod.sidecar == Injected::No)) {
        let sentence = format!(
            "{names} without a sidecar, and outside the pool: delete it, so that its successor is injected on its way in"
        );
        troubles.push(("PodsWithoutSidecar", sentence));
    }
    let drain = pool.settings.drain.timeout;
    let seconds = i64::try_from(drain.0.as_secs()).unwrap_or(i64::MAX);
    let short = staying.filter(|pod| pod.sidecar == Injected::Yes && pod.grace_seconds < seconds);
    if let Some(names) = names(short) {
        let sentence = format!(
            "{names} with less than the {drain} that spec.drain.timeout gives to a drain: roll the workload out again, so \
             that its pods get their time"
        );
        troubles.push(("GraceTooShort", sentence));
    }
    troubles
}

/// What is held where it could not be drained in time.
pub fn of_load(limits: Limits, drain: Drain, view: &PoolView) -> Option<Trouble> {
    let per_second = u64::from(limits.handshakes_per_second);
    if per_second == 0 {
        return None;
    }
    let drain = drain.timeout;
    let apps = view.slots.iter().filter(|slot| slot.ready).count().saturating_sub(1);
    let most = per_second * drain.0.as_secs() * u64::try_from(apps).unwrap_or(u64::MAX).max(1);
    let over = view.members.iter().find(|member| member.connections.is_some_and(|held| held > most))?;
    let held = over.connections.unwrap_or_default();
    let sentence = format!(
        "{} holds {held} connections, and in {drain} the others accept at most {most}: raise spec.drain.timeout, or \
         spec.limits.handshakesPerSecond",
        over.name
    );
    Some(("DrainTooLong", sentence))
}

/// `chat-a, chat-b and 3 more are`.
fn names<'a>(pods: impl Iterator<Item = &'a PodFacts>) -> Option<String> {
    let names: Vec<&str> = pods.map(|pod| pod.name.as_str()).collect();
    let verb = if names.len() == 1 { "is" } else { "are" };
    let first = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        count if count > NAMED => Some(format!("{first} and {} more {verb}", count - NAMED)),
        _ => Some(format!("{first} {verb}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::pod::tests::facts;
    use super::super::status::tests::view;
    use super::*;
    use crate::pool::{WebSocketPool, check};
    use crate::rebalance::view::MemberView;

    fn pool() -> CheckedPool {
        let yaml = "{apiVersion: wspool.dev/v1alpha1, kind: WebSocketPool, metadata: {name: chat}, \
                    spec: {key: {from: [{query: user}]}, drain: {timeout: 60s}, limits: {handshakesPerSecond: 10}}}";
        check::check(&WebSocketPool::from_yaml(yaml).unwrap(), None).unwrap()
    }

    #[test]
    fn pods_that_cannot_be_members_are_named_and_no_more_than_three() {
        let bare = |name: &str, host: bool| {
            facts(name, |pod| {
                pod["spec"]["initContainers"] = json!([]);
                pod["spec"]["hostNetwork"] = json!(host);
            })
        };
        let mut pods: Vec<_> = (0..5).map(|index| bare(&format!("chat-{index}"), false)).collect();
        pods.push(bare("chat-host", true));
        pods.push(facts("chat-good", |_| {}));
        let troubles = of_pods(&pool(), &pods);
        let reasons: Vec<_> = troubles.iter().map(|(reason, _)| *reason).collect();
        assert_eq!(reasons, ["HostNetwork", "PodsWithoutSidecar"]);
        assert!(troubles[0].1.starts_with("chat-host is on hostNetwork"), "{troubles:?}");
        assert!(troubles[1].1.starts_with("chat-0, chat-1, chat-2 and 2 more are without"), "{troubles:?}");
    }

    #[test]
    fn a_grace_period_that_is_shorter_than_a_drain_is_said_beforehand() {
        let short = facts("chat-a", |pod| pod["spec"]["terminationGracePeriodSeconds"] = json!(30));
        assert_eq!(of_pods(&pool(), &[short])[0].0, "GraceTooShort");
        assert_eq!(of_pods(&pool(), &[facts("chat-a", |_| {})]), []);
    }

    #[test]
    fn a_pod_that_holds_more_than_a_drain_can_move_is_said_beforehand() {
        let holds = |connections| {
            let mut view = view();
            let member = MemberView {
                name: "chat-a".into(),
                uid: None,
                slot: None,
                ready: true,
                connections: Some(connections),
            };
            view.members.push(member);
            view
        };
        let of_load = |view: &PoolView| of_load(pool().settings.limits, pool().settings.drain, view);
        assert_eq!(of_load(&holds(600)), None);
        assert_eq!(of_load(&holds(601)).unwrap().0, "DrainTooLong");
    }
}

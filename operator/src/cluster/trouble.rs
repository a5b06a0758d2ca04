//! What is wrong around a pool that its machine cannot see: as functions of the pool and its pods, in words that tell what
//! to do.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use ring::settings::{Drain, Limits};

use super::pod::{Injected, PINNED_UNTIL, PodFacts};
use crate::planner::Role;
use crate::pool::CheckedPool;
use crate::rebalance::view::PoolView;

/// A reason in one word, and a sentence.
pub type Trouble = (&'static str, String);

/// The target has pods, and none of them is of the pool.
pub const NO_MEMBERS: &str = "NoMembers";

/// How many pods a sentence names.
const NAMED: usize = 3;
/// A drain evicts nobody in the last part of its time: as `MARGIN` in the sidecar.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);

/// What is wrong with the pods. `image` is what new pods get as their sidecar's, where this operator injects it.
pub fn of_pods(pool: &CheckedPool, pods: &[PodFacts], image: Option<&str>) -> Vec<Trouble> {
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
    if let Some(names) = names(staying.clone().filter(|pod| pod.pinned_until.is_none())) {
        let sentence = format!(
            "{names} not pinned, as the annotation {PINNED_UNTIL} is no time: write one like 2026-01-01T12:00:00Z, or \
             remove it"
        );
        troubles.push(("BadPin", sentence));
    }
    let drain = pool.settings.drain.timeout;
    let seconds = i64::try_from(drain.0.as_secs()).unwrap_or(i64::MAX);
    // The operator rolls routers out itself.
    let injected = |pod: &&PodFacts| pod.sidecar == Injected::Yes && pod.role == Role::App;
    let outdated = |pod: &&PodFacts| injected(pod) && image.is_some_and(|image| pod.image != image);
    if let (Some(names), Some(image)) = (names(staying.clone().filter(outdated)), image) {
        let sentence = format!(
            "{names} with a sidecar of another image than {image}: roll the workload out again, so that its pods get that"
        );
        troubles.push(("OutdatedSidecar", sentence));
    }
    let short = staying.filter(|pod| injected(pod) && pod.grace_seconds < seconds);
    if let Some(names) = names(short) {
        let sentence = format!(
            "{names} with less than the {drain} that spec.drain.timeout gives to a drain: roll the workload out again, so \
             that its pods get their time"
        );
        troubles.push(("GraceTooShort", sentence));
    }
    troubles
}

/// Services that lead clients to the app itself, past the sidecar: what comes in there is neither placed nor moved.
/// `port` is the app's. Headless ones are left out: they name the pods of a `StatefulSet`.
pub fn of_services(pool: &str, port: u16, services: &[Service], pods: &[PodFacts]) -> Option<Trouble> {
    let bypasses = |service: &&Service| {
        let Some(spec) = &service.spec else { return false };
        let selector = spec.selector.iter().flatten();
        let headless = spec.cluster_ip.as_deref() == Some("None");
        if headless || spec.selector.as_ref().is_none_or(BTreeMap::is_empty) {
            return false;
        }
        let selected =
            pods.iter().filter(|pod| selector.clone().all(|(name, value)| pod.reach.labels.get(name) == Some(value)));
        let leads_to_app = |pod: &PodFacts, from: &ServicePort| match &from.target_port {
            None => from.port == i32::from(port),
            Some(IntOrString::Int(to)) => *to == i32::from(port),
            Some(IntOrString::String(name)) => pod.reach.ports.get(name) == Some(&i32::from(port)),
        };
        selected.into_iter().any(|pod| spec.ports.iter().flatten().any(|from| leads_to_app(pod, from)))
    };
    let names: Vec<String> = services.iter().filter(bypasses).map(ResourceExt::name_any).collect();
    let (first, verb) = (names.first()?, if names.len() == 1 { "leads" } else { "lead" });
    let sentence = format!(
        "Service {} {verb} to port {port} of the pods, past their sidecars: set targetPort of {first} to 7480, or let \
         clients use the Service {pool}",
        names.join(", ")
    );
    Some(("SidecarBypassed", sentence))
}

/// What is held where it could not be drained in time.
pub fn of_load(limits: Limits, drain: Drain, view: &PoolView) -> Option<Trouble> {
    let per_second = u64::from(limits.handshakes_per_second);
    if per_second == 0 {
        return None;
    }
    let drain = drain.timeout;
    // In a rollout one pod takes all of it over. A drain that is hardly longer than its margin is hurried.
    let most = per_second * drain.0.saturating_sub(DRAIN_MARGIN).max(drain.0 / 2).as_secs();
    let over = view.members.iter().find(|member| member.connections.is_some_and(|held| held > most))?;
    let held = over.connections.unwrap_or_default();
    let sentence = format!(
        "{} holds {held} connections, and in {drain} a pod that takes its place accepts at most {most}: raise \
         spec.drain.timeout, or spec.limits.handshakesPerSecond",
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
    use super::super::status::tests::{slot, view};
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
        let troubles = of_pods(&pool(), &pods, None);
        let reasons: Vec<_> = troubles.iter().map(|(reason, _)| *reason).collect();
        assert_eq!(reasons, ["HostNetwork", "PodsWithoutSidecar"]);
        assert!(troubles[0].1.starts_with("chat-host is on hostNetwork"), "{troubles:?}");
        assert!(troubles[1].1.starts_with("chat-0, chat-1, chat-2 and 2 more are without"), "{troubles:?}");
    }

    #[test]
    fn a_grace_period_that_is_shorter_than_a_drain_is_said_beforehand() {
        let short = facts("chat-a", |pod| pod["spec"]["terminationGracePeriodSeconds"] = json!(30));
        assert_eq!(of_pods(&pool(), &[short], None)[0].0, "GraceTooShort");
        assert_eq!(of_pods(&pool(), &[facts("chat-a", |_| {})], None), []);
    }

    #[test]
    fn a_pod_whose_sidecar_is_another_than_new_pods_get_is_named() {
        let pods = [facts("chat-a", |_| {})];
        assert_eq!(of_pods(&pool(), &pods, Some("wspool-sidecar:1")), []);
        let troubles = of_pods(&pool(), &pods, Some("wspool-sidecar:2"));
        assert_eq!(troubles[0].0, "OutdatedSidecar");
        assert!(troubles[0].1.starts_with("chat-a is with a sidecar of another image than wspool-sidecar:2"));
    }

    #[test]
    fn a_service_that_leads_past_the_sidecar_is_named_and_no_other() {
        let service = |name: &str, spec: serde_json::Value| -> Service {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
        };
        let of = |selector: &str, port: serde_json::Value| json!({"selector": {"app": selector}, "ports": [port]});
        let pods = [facts("chat-a", |pod| {
            pod["metadata"]["labels"]["app"] = json!("chat");
            pod["spec"]["containers"][0]["ports"] = json!([{"name": "ws", "containerPort": 3000}]);
        })];
        let past = [
            of("chat", json!({"port": 80, "targetPort": 3000})),
            of("chat", json!({"port": 80, "targetPort": "ws"})),
            of("chat", json!({"port": 3000})),
        ];
        for spec in past {
            let trouble = of_services("chat", 3000, &[service("web", spec.clone())], &pods).expect("it leads past");
            assert!(trouble.1.starts_with("Service web leads to port 3000"), "{trouble:?}");
        }
        let mut headless = of("chat", json!({"port": 3000}));
        headless["clusterIP"] = json!("None");
        let right = [
            of("chat", json!({"port": 3000, "targetPort": 7480})),
            of("other", json!({"port": 3000})),
            json!({"ports": [{"port": 3000}]}),
            headless,
        ];
        for spec in right {
            assert_eq!(of_services("chat", 3000, &[service("web", spec.clone())], &pods), None, "{spec}");
        }
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
                dead: false,
                connections: Some(connections),
                pinned: 0,
            };
            view.members.push(member);
            view
        };
        let of_load = |view: &PoolView| of_load(pool().settings.limits, pool().settings.drain, view);
        assert_eq!(of_load(&holds(550)), None);
        let mut three_slots = holds(551);
        three_slots.slots = (0..3).map(|id| slot(id, &format!("chat-{id}"))).collect();
        for view in [holds(551), three_slots] {
            let (reason, sentence) = of_load(&view).expect("its successor alone takes it over");
            assert_eq!(reason, "DrainTooLong");
            assert!(
                sentence.starts_with("chat-a holds 551 connections, and in 1m a pod that takes its place"),
                "{sentence}"
            );
        }
    }
}

//! What a pod says of the member that it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use ring::SlotId;

use crate::driver::{Entry, Standing};
use crate::inject::{self, POOL_LABEL, port};
use crate::planner::Role;

/// The label that makes a pod of a pool a router: a sidecar without an app.
pub const ROLE_LABEL: &str = "wspool.dev/role";
/// The annotation by which a ReplicaSet chooses its victims: lowest first.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// The annotation by which everything in a pod stays where it is until a time (RFC 3339).
pub const PINNED_UNTIL: &str = "wspool.dev/pinned-until";
/// A StatefulSet's pods carry their ordinal in this label.
const ORDINAL: &str = "apps.kubernetes.io/pod-index";
/// Pods of one owner and of different templates differ in this label.
const REVISION: &str = "controller-revision-hash";
/// How long pods may take to end where nobody says it.
const GRACE_SECONDS: i64 = 30;

/// A pod, as far as its pool is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The pool that its label names.
    pub pool: String,
    /// Its place among the pods of a `StatefulSet`.
    pub ordinal: Option<u32>,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its address, once it has one.
    pub ip: Option<IpAddr>,
    /// What it does.
    pub role: Role,
    /// How it stands; `None` when its processes have ended.
    pub standing: Option<Standing>,
    /// Whether the sidecar is in it.
    pub sidecar: Injected,
    /// The sidecar's image; empty without one.
    pub image: String,
    /// How Services find it: these facts are copied for each round, and it is looked at seldom.
    pub reach: Arc<Reach>,
    /// How long it may take to end, in seconds.
    pub grace_seconds: i64,
    /// Its deletion cost, as it is written.
    pub cost: Option<String>,
    /// Until when everything in it stays, in milliseconds since 1970; 0 when nothing is said, `None` when that is no time.
    pub pinned_until: Option<u64>,
    /// Who made it, from which template.
    pub revision: String,
}

/// What Services select a pod by, and lead to in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The ports that its containers name.
    pub ports: BTreeMap<String, i32>,
}

/// Whether a pod has the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// It has.
    Yes,
    /// It has not.
    No,
    /// It has not, and cannot have: it shares its node's network.
    HostNetwork,
}

impl PodFacts {
    /// What a pod says; `None` when no label makes it part of a pool. The label decides, not the target's selector: the
    /// sidecar was injected by it, and follows that pool's placement.
    pub fn read(pod: &Pod) -> Option<Self> {
        let pool = pod.labels().get(POOL_LABEL)?.clone();
        let label = |name: &str| pod.labels().get(name);
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
        let owner = owner.map_or("", |owner| owner.uid.as_str());
        let container = inject::sidecar_of(spec);
        let sidecar = match container {
            Some(_) => Injected::Yes,
            None if spec.host_network == Some(true) => Injected::HostNetwork,
            None => Injected::No,
        };
        let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
        Some(Self {
            name: pod.name_any(),
            uid: pod.uid()?,
            pool,
            ordinal: label(ORDINAL).and_then(|ordinal| ordinal.parse().ok()),
            created: pod.creation_timestamp().map(|time| time.0),
            ip: status.and_then(|status| status.pod_ip.as_ref()?.parse().ok()),
            role: if label(ROLE_LABEL).is_some_and(|role| role == "router") { Role::Router } else { Role::App },
            standing: standing(pod),
            sidecar,
            image: container.and_then(|container| container.image.clone()).unwrap_or_default(),
            reach: Arc::new(Reach {
                labels: pod.labels().clone(),
                ports: ports.filter_map(|port| Some((port.name.clone()?, port.container_port))).collect(),
            }),
            grace_seconds: spec.termination_grace_period_seconds.unwrap_or(GRACE_SECONDS),
            cost: pod.annotations().get(DELETION_COST).cloned(),
            pinned_until: pod.annotations().get(PINNED_UNTIL).map_or(Some(0), |time| since_1970_ms(time)),
            revision: format!("{owner}/{}", label(REVISION).map_or("", String::as_str)),
        })
    }

    /// The member that it is; `None` while it has no address, and when it has no sidecar or its processes have ended.
    pub fn entry(&self) -> Option<Entry> {
        let (standing, ip) = (self.standing?, self.ip?);
        if self.sidecar != Injected::Yes {
            return None;
        }
        Some(Entry {
            name: self.name.clone(),
            uid: Some(self.uid.clone()),
            address: at(ip, port::CLIENTS),
            control: at(ip, port::CONTROL),
            weight: 1,
            role: self.role,
            ordinal: self.ordinal.map(SlotId),
            standing,
            pinned_until: self.pinned_until.unwrap_or_default(),
        })
    }

    /// Whether it will stay.
    pub fn stays(&self) -> bool {
        matches!(self.standing, Some(Standing::Starting | Standing::Present))
    }
}

fn since_1970_ms(time: &str) -> Option<u64> {
    time.parse::<Timestamp>().ok()?.as_millisecond().try_into().ok()
}

fn standing(pod: &Pod) -> Option<Standing> {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Failed" | "Succeeded") {
        return None;
    }
    if pod.metadata.deletion_timestamp.is_some() {
        // Who deletes it may give it another time than its template does.
        let deleted = pod.metadata.deletion_grace_period_seconds;
        let grace = deleted.or_else(|| pod.spec.as_ref()?.termination_grace_period_seconds).unwrap_or(GRACE_SECONDS);
        return Some(Standing::Leaving { grace: Duration::from_secs(grace.try_into().unwrap_or(0)) });
    }
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    Some(if ready { Standing::Present } else { Standing::Starting })
}

fn at(ip: IpAddr, port: u16) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => v6_at(ip, port),
    }
}

fn v6_at(ip: Ipv6Addr, port: u16) -> String {
    format!("[{ip}]:{port}")
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::inject::SIDECAR;

    /// A ready pod with its sidecar, and changes to it.
    pub(crate) fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": name, "namespace": "chats", "uid": format!("uid-{name}"),
                "labels": {POOL_LABEL: "chat"}, "creationTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "chat-1", "uid": "rs-1",
                    "controller": true}],
            },
            "spec": {
                "initContainers": [{"name": SIDECAR, "image": "wspool-sidecar:1", "restartPolicy": "Always"}],
                "containers": [{"name": "app"}], "terminationGracePeriodSeconds": 90,
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    pub(crate) fn facts(name: &str, change: impl FnOnce(&mut Value)) -> PodFacts {
        PodFacts::read(&pod(name, change)).unwrap()
    }

    #[test]
    fn a_ready_pod_is_a_member_at_its_address() {
        let entry = facts("chat-a", |_| {}).entry().unwrap();
        assert_eq!((entry.address.as_str(), entry.control.as_str()), ("10.0.0.7:7480", "10.0.0.7:7481"));
        assert_eq!((entry.uid.as_deref(), entry.standing), (Some("uid-chat-a"), Standing::Present));
        let entry = facts("chat-a", |pod| pod["status"]["podIP"] = json!("fd00::7")).entry().unwrap();
        assert_eq!(entry.control, "[fd00::7]:7481");
    }

    #[test]
    fn a_pod_says_until_when_everything_in_it_stays() {
        let facts = |time: &str| facts("chat-a", |pod| pod["metadata"]["annotations"] = json!({PINNED_UNTIL: time}));
        let said = facts("2026-01-01T01:00:00+01:00");
        assert_eq!(said.pinned_until, Some(1_767_225_600_000));
        assert_eq!(said.entry().unwrap().pinned_until, 1_767_225_600_000);
        for wrong in ["", "soon", "1h", "2026-01-01", "1960-01-01T00:00:00Z"] {
            assert_eq!((facts(wrong).pinned_until, facts(wrong).entry().unwrap().pinned_until), (None, 0), "{wrong}");
        }
        assert_eq!(self::facts("chat-a", |_| {}).pinned_until, Some(0));
    }

    fn leaving(seconds: u64) -> Standing {
        Standing::Leaving { grace: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_pod_that_is_deleted_with_another_grace_period_has_that() {
        let deleted = |pod: &mut Value| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(7);
        };
        assert_eq!(facts("chat-a", deleted).standing, Some(leaving(7)));
    }

    #[test]
    fn what_a_pod_goes_through_is_told_apart() {
        type Change = fn(&mut Value);
        let cases: [(Change, Option<Standing>); 6] = [
            (|pod| pod["status"]["conditions"][0]["status"] = json!("False"), Some(Standing::Starting)),
            (|pod| pod["status"] = json!({"phase": "Pending"}), Some(Standing::Starting)),
            (|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"), Some(leaving(90))),
            (|pod| pod["status"]["phase"] = json!("Failed"), None),
            (|pod| pod["status"]["phase"] = json!("Succeeded"), None),
            (|_| {}, Some(Standing::Present)),
        ];
        for (change, standing) in cases {
            assert_eq!(facts("chat-a", change).standing, standing);
        }
    }

    #[test]
    fn a_pod_without_an_address_or_a_sidecar_or_whose_processes_have_ended_is_no_member() {
        type Change = fn(&mut Value);
        let changes: [Change; 3] = [
            |pod| pod["status"] = json!({"phase": "Pending"}),
            |pod| pod["spec"]["initContainers"] = json!([]),
            |pod| pod["status"]["phase"] = json!("Failed"),
        ];
        for change in changes {
            assert_eq!(facts("chat-a", change).entry(), None);
        }
    }

    #[test]
    fn a_pod_on_its_nodes_network_is_told_from_one_that_was_not_injected() {
        let without = |host: bool| {
            facts("chat-a", |pod| {
                pod["spec"]["initContainers"] = json!([]);
                pod["spec"]["hostNetwork"] = json!(host);
            })
        };
        assert_eq!((without(true).sidecar, without(false).sidecar), (Injected::HostNetwork, Injected::No));
    }

    #[test]
    fn a_pod_of_no_pool_says_nothing() {
        assert_eq!(PodFacts::read(&pod("other", |pod| pod["metadata"]["labels"] = json!({}))), None);
    }
}

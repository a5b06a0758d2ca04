//! Plays the kubelet: says what runs in a pod, and where.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use k8s_openapi::api::core::v1::{
    Binding, Container, ContainerState, ContainerStateRunning, ContainerStatus, ObjectReference, Pod, PodCondition,
    PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Error, ResourceExt as _};
use serde_json::json;

use super::{NODE, NODE_ADDRESS};
use crate::wait::until;

/// The addresses of pods: 198.18.1.0 to 198.19.255.255.
const FIRST_ADDRESS: u32 = u32::from_be_bytes([198, 18, 1, 0]);
const ADDRESSES: u32 = (1 << 17) - (1 << 8);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address for a pod, given once. A process that is to be found there listens at it. Test programs begin at random
/// places: pods of an earlier one may still be in the API.
pub fn free_address() -> Ipv4Addr {
    let _ = NEXT.compare_exchange(0, rand::random_range(1..ADDRESSES), Ordering::Relaxed, Ordering::Relaxed);
    Ipv4Addr::from(FIRST_ADDRESS + NEXT.fetch_add(1, Ordering::Relaxed) % ADDRESSES)
}

/// What a pod's kubelet reports of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Its containers run, and its probes succeed.
    Ready,
    /// Its containers run, and a probe fails.
    NotReady,
}

/// The kubelet of one namespace's pods.
#[derive(Clone)]
pub struct Kubelet {
    pods: Api<Pod>,
}

impl Kubelet {
    pub(super) fn new(pods: Api<Pod>) -> Self {
        Self { pods }
    }

    /// Reports that the pod's containers run, at this address, and are ready.
    pub async fn ready(&self, pod: &Pod, address: Ipv4Addr) -> Pod {
        self.report(pod, address, Readiness::Ready).await
    }

    /// Reports that the pod's containers run, at this address. A pod that is bound to no node is bound first, as a
    /// scheduler does. One that has been deleted meanwhile is left as it was: what is bound to no node goes at once.
    pub async fn report(&self, pod: &Pod, address: Ipv4Addr, readiness: Readiness) -> Pod {
        let name = pod.name_any();
        let Some(current) = if_there(&name, self.pods.get(&name).await) else { return pod.clone() };
        if current.spec.is_some_and(|spec| spec.node_name.is_none()) {
            if_there(&name, self.bind(&name).await);
        }
        let status = running(pod, address, readiness, Timestamp::now());
        // With the UID a pod of the same name that has come since is left alone.
        let patch = Patch::Merge(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}));
        let reported = self.pods.patch_status(&name, &PatchParams::default(), &patch).await;
        if_there(&name, reported).unwrap_or_else(|| pod.clone())
    }

    /// Reports that everything in a pod has ended, after which it is gone. A kubelet does so for a pod that has been
    /// deleted, once its processes have ended within their grace period: end them first.
    pub async fn gone(&self, pod: &Pod) {
        let name = pod.name_any();
        let this = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let now = DeleteParams::default().grace_period(0).preconditions(this);
        // Somebody may have deleted it without waiting for its kubelet.
        if_there(&name, self.pods.delete(&name, &now).await);
        until(&format!("pod {name} is gone"), async || {
            match self.pods.get_opt(&name).await.map_err(|error| error.to_string())? {
                Some(left) if left.metadata.uid == pod.metadata.uid => Err("it is still there".into()),
                _ => Ok(()),
            }
        })
        .await;
    }

    async fn bind(&self, name: &str) -> kube::Result<Status> {
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        let node = ObjectReference { kind: Some("Node".into()), name: Some(NODE.into()), ..ObjectReference::default() };
        let binding = Binding { metadata, target: node };
        self.pods.create_subresource("binding", name, &PostParams::default(), &binding).await
    }
}

/// What the API server answers of a pod, unless that is gone.
fn if_there<T>(pod: &str, answer: kube::Result<T>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(Error::Api(refusal)) if refusal.is_not_found() => None,
        Err(error) => panic!("pod {pod}: {error}"),
    }
}

/// The status of a pod whose containers, also those that run beside them from its beginning, all run.
fn running(pod: &Pod, address: Ipv4Addr, readiness: Readiness, now: Timestamp) -> PodStatus {
    let ready = readiness == Readiness::Ready;
    let condition = |kind: &str, holds: bool| PodCondition {
        type_: kind.into(),
        status: if holds { "True" } else { "False" }.into(),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    let container = |container: &Container| ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        ready,
        started: Some(true),
        state: Some(ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(now)) }),
            ..ContainerState::default()
        }),
        ..ContainerStatus::default()
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let beside = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    PodStatus {
        phase: Some("Running".into()),
        pod_ip: Some(address.to_string()),
        pod_ips: Some(vec![PodIP { ip: address.to_string() }]),
        host_ip: Some(NODE_ADDRESS.to_string()),
        start_time: Some(Time(now)),
        conditions: Some(vec![
            condition("PodScheduled", true),
            condition("Initialized", true),
            condition("ContainersReady", ready),
            condition("Ready", ready),
        ]),
        container_statuses: Some(spec.containers.iter().map(container).collect()),
        init_container_statuses: Some(spec.init_containers.iter().flatten().filter(beside).map(container).collect()),
        ..PodStatus::default()
    }
}

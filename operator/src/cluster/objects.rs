//! The objects that make a pool reachable: its Service, and for each slot a Service with one EndpointSlice.
//!
//! They are functions of the pool and its slots. A slot's EndpointSlice is written by the operator, so that a handover is one
//! atomic change: no label of a pod has to follow, and its address is never that of two pods.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource as _;
use ring::SlotId;

use super::index::PoolKey;
use super::pod::PodFacts;
use super::router::Entrance;
use crate::inject::{POOL_LABEL, port};
use crate::pool::WebSocketPool;
use crate::rebalance::view::PoolView;

/// Who writes these objects, in `managedFields` and in labels.
pub const MANAGER: &str = "wspool";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The slot whose object it is.
pub const SLOT_LABEL: &str = "wspool.dev/slot";
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const SLICE_MANAGER: &str = "endpointslice.kubernetes.io/managed-by";
const PORT_NAME: &str = "websocket";
/// The port of the pool's Service while the pool does not say its app's.
const DEFAULT_PORT: u16 = 80;

/// A pool, as its objects name it.
#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    /// Its namespace and name.
    pub key: PoolKey,
    /// Its UID.
    pub uid: String,
    /// The port that clients use.
    pub port: Option<u16>,
}

/// A slot's holder, where clients may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotAddress {
    /// The pod's address.
    pub ip: IpAddr,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
}

impl Owner {
    /// Name, labels and owner of an object of the pool.
    pub fn metadata(&self, name: String) -> ObjectMeta {
        let labels = [(POOL_LABEL, self.key.name.as_str()), (MANAGED_BY, MANAGER)];
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.key.namespace.clone()),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            owner_references: Some(vec![self.reference()]),
            ..ObjectMeta::default()
        }
    }

    /// As owner. It does not block its deletion, which would need more rights.
    fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: WebSocketPool::api_version(&()).into_owned(),
            kind: WebSocketPool::kind(&()).into_owned(),
            name: self.key.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }
    }

    /// Whether an object is one of a pool of this name, perhaps of one that is gone.
    pub fn has(&self, object: &impl kube::Resource) -> bool {
        let own = self.reference();
        let owners = object.meta().owner_references.iter().flatten();
        owners.into_iter().any(|owner| (&owner.kind, &owner.name) == (&own.kind, &own.name))
    }

    /// As what an event is about.
    pub fn object(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(WebSocketPool::api_version(&()).into_owned()),
            kind: Some(WebSocketPool::kind(&()).into_owned()),
            name: Some(self.key.name.clone()),
            namespace: Some(self.key.namespace.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }

    /// What lists the objects of the pool's slots.
    pub fn slot_selector(&self) -> String {
        format!("{},{SLOT_LABEL}", self.selector())
    }

    /// What lists the objects of the pool.
    pub fn selector(&self) -> String {
        format!("{POOL_LABEL}={},{MANAGED_BY}={MANAGER}", self.key.name)
    }

    /// The pool's Service: any pod that is ready where clients enter, at its sidecar. Its port has the number that clients
    /// of the app know. It leads to a name: pods that got in without a sidecar do not have it, and are left out.
    pub fn service(&self, entrance: Entrance) -> Service {
        Service {
            metadata: self.metadata(self.key.name.clone()),
            spec: Some(ServiceSpec {
                selector: Some(entrance.selector(&self.key.name)),
                ports: Some(vec![service_port(
                    self.port.unwrap_or(DEFAULT_PORT),
                    IntOrString::String(port::CLIENTS_NAME.to_owned()),
                )]),
                publish_not_ready_addresses: Some(false),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    /// A slot's Service: headless, so that it costs neither an address nor a variable in each pod. Then nothing translates
    /// its port: it is the sidecar's own, or whoever connects by the Service's name would reach the app past its sidecar.
    pub fn slot_service(&self, slot: SlotId) -> Service {
        Service {
            metadata: self.slot_metadata(slot),
            spec: Some(ServiceSpec {
                cluster_ip: Some("None".to_owned()),
                ports: Some(vec![service_port(port::CLIENTS, IntOrString::Int(port::CLIENTS.into()))]),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    /// A slot's endpoint: its holder, or nobody.
    pub fn slot_slice(&self, slot: SlotId, holder: Option<&SlotAddress>) -> EndpointSlice {
        let mut metadata = self.slot_metadata(slot);
        let labels = metadata.labels.get_or_insert_default();
        labels.insert(SERVICE_LABEL.to_owned(), self.slot_name(slot));
        labels.insert(SLICE_MANAGER.to_owned(), "wspool.dev".to_owned());
        let endpoint = |holder: &SlotAddress| Endpoint {
            addresses: vec![holder.ip.to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: Some(self.key.namespace.clone()),
                name: Some(holder.pod.clone()),
                uid: Some(holder.uid.clone()),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        };
        EndpointSlice {
            metadata,
            address_type: if holder.is_some_and(|holder| holder.ip.is_ipv6()) { "IPv6" } else { "IPv4" }.to_owned(),
            endpoints: Some(holder.into_iter().map(endpoint).collect()),
            ports: Some(vec![EndpointPort {
                name: Some(PORT_NAME.to_owned()),
                port: Some(port::CLIENTS.into()),
                protocol: Some("TCP".to_owned()),
                app_protocol: None,
            }]),
        }
    }

    /// What a slot's objects are called.
    pub fn slot_name(&self, slot: SlotId) -> String {
        format!("{}-{slot}", self.key.name)
    }

    fn slot_metadata(&self, slot: SlotId) -> ObjectMeta {
        let mut metadata = self.metadata(self.slot_name(slot));
        metadata.labels.get_or_insert_default().insert(SLOT_LABEL.to_owned(), slot.to_string());
        metadata
    }
}

fn service_port(port: u16, target: IntOrString) -> ServicePort {
    ServicePort {
        name: Some(PORT_NAME.to_owned()),
        port: port.into(),
        target_port: Some(target),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

/// Where each slot is to be found: its holder's pod, if that is ready.
pub fn slot_addresses(view: &PoolView, pods: &[PodFacts]) -> BTreeMap<SlotId, Option<SlotAddress>> {
    let ready = view.members.iter().filter(|member| member.ready);
    let holders: HashMap<SlotId, &str> = ready.filter_map(|m| Some((m.slot?, m.uid.as_deref()?))).collect();
    let pods: HashMap<&str, &PodFacts> = pods.iter().map(|pod| (pod.uid.as_str(), pod)).collect();
    let address = |slot: SlotId| {
        let pod = pods.get(holders.get(&slot)?)?;
        Some(SlotAddress { ip: pod.ip?, pod: pod.name.clone(), uid: pod.uid.clone() })
    };
    view.slots.iter().map(|slot| (slot.id, address(slot.id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_of_a_slot_has_the_port_that_its_endpoint_has_since_nothing_translates_it() {
        let key = PoolKey { namespace: "chats".into(), name: "chat".into() };
        let owner = Owner { key, uid: "1".into(), port: Some(3000) };
        let service = owner.slot_service(SlotId(1)).spec.unwrap();
        let slice = owner.slot_slice(SlotId(1), None);
        assert_eq!(service.cluster_ip.as_deref(), Some("None"));
        assert_eq!(service.ports.unwrap()[0].port, 7480);
        assert_eq!(slice.ports.unwrap()[0].port, Some(7480));
    }
}

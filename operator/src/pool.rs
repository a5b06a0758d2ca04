//! The `WebSocketPool` resource: what a user writes, and what the operator answers in its status.
//!
//! The types parse every field of the API, also those whose work comes later; [`check`] refuses what is wrong or not yet
//! built. The CRD is generated from here: what stands at a field is what `kubectl explain` says of it.

pub mod check;
mod rate;
mod routes;
mod rules;
mod schema;

use std::path::PathBuf;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use ring::agreement::HashKey;
use ring::duration::GoDuration;
use ring::settings::{
    Drain, Gateway, KeySpec, Limits, MaxPinned, Messages, Notice, OwnerUnreachable, Redis, SecretKey, Strategy, Unit,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use check::{CheckedPool, Faults};
pub use rate::{PerMinute, Rate};
pub use routes::{HttpRoutes, IngressRoutes, ParentRef, Routes};
pub(crate) use rules::JWKS_SUFFIX;
pub use schema::crd;

/// What the pool is made of, and how its connections are placed and moved.
#[expect(clippy::duplicated_attributes, reason = "several columns are of one type")]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "wspool.dev",
    version = "v1alpha1",
    kind = "WebSocketPool",
    plural = "websocketpools",
    doc = "A pool of WebSocket servers whose connections are placed by key, and moved only when their owner changes.",
    shortname = "wsp",
    namespaced,
    status = "PoolStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Slots", type_ = "integer", json_path = ".status.slots"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Connections", type_ = "integer", json_path = ".status.connections"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch"),
    printcolumn(name = "Moving", type_ = "integer", json_path = ".status.move.pending"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolSpec {
    /// The workload whose pods form the pool: a Deployment, a StatefulSet, or anything else that `kubectl scale` can
    /// scale. Its pods carry the label wspool.dev/pool with the pool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The port in its pods at which the app takes WebSocket connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// How many slots the pool has, 0 to 1000. When it is set, the operator scales the target, and drains pods before
    /// it takes them away; `kubectl scale` and autoscalers of the pool write it. Left out, the target's own replicas
    /// count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<u32>,
    /// Where a connection's key is read from. With the strategy LeastConnections it may be left out.
    #[serde(default)]
    pub key: KeySpec,
    /// How connections are spread. ConsistentHash: by the hash of their key, each key at one slot. LeastConnections: to
    /// the less loaded pods; a key decides nothing then.
    #[serde(default)]
    pub strategy: Strategy,
    /// How keys are given to slots, with the strategy ConsistentHash.
    #[serde(default)]
    pub hashing: Hashing,
    /// What happens to a handshake whose owner cannot be reached. Fallback: the key's next-best slot takes it until its
    /// owner is back. Reject: it is refused with 503.
    #[serde(default)]
    pub owner_unreachable: OwnerUnreachable,
    /// How connections are moved.
    #[serde(default)]
    pub rebalance: Rebalance,
    /// What a client is told before its connection is closed.
    #[serde(default)]
    pub notice: Notice,
    /// How a pod that goes away is emptied first.
    #[serde(default)]
    pub drain: Drain,
    /// What one pod accepts.
    #[serde(default)]
    pub limits: Limits,
    /// An address book for clients that ask before they connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// Routes to the slots' addresses, by the host or the path of gateway.url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Routes>,
    /// Pods of their own at which connections enter, so that none has to enter at a server that may go away.
    #[serde(default)]
    pub router: Router,
    /// Scales the pool by its connections. The autoscaler writes `replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Messages that apps send to clients of any server, through the sidecar beside them.
    #[serde(default)]
    pub messages: Messages,
    /// The Redis that carries messages and sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
}

impl WebSocketPool {
    /// Reads a pool as a user has written it. An error says line, column and field.
    pub fn from_yaml(text: &str) -> Result<Self, serde_yaml::Error> {
        // By itself the parser takes an enum's variant from a YAML tag; Kubernetes writes it as a map with one key.
        serde_yaml::with::singleton_map_recursive::deserialize(serde_yaml::Deserializer::from_str(text))
    }
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// Its API group and version: apps/v1.
    #[schemars(length(max = 253))]
    pub api_version: String,
    /// Its kind: Deployment.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// Its name, in the pool's namespace.
    #[schemars(length(max = 253))]
    pub name: String,
}

/// How keys are given to slots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hashing {
    /// The algorithm. Rendezvous moves the fewest keys; the others exist to agree with a hashing ingress.
    pub algorithm: Algorithm,
    /// A secret that keys the hash, 32 hexadecimal digits: for keys that untrusted clients choose, who could otherwise
    /// aim at one server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed_from: Option<SeedSource>,
    /// How Envoy's ring is configured, for the algorithm EnvoyRing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_ring: Option<EnvoyRing>,
    /// How Envoy's Maglev is configured, for the algorithm EnvoyMaglev.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_maglev: Option<EnvoyMaglev>,
    /// How HAProxy is configured, for the algorithm HAProxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub haproxy: Option<HAProxy>,
}

/// How Envoy's ring is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EnvoyRing {
    /// Its minimum_ring_size, 1 to 131072.
    #[schemars(range(min = 1, max = 131_072))]
    pub minimum_ring_size: u32,
}

impl Default for EnvoyRing {
    fn default() -> Self {
        Self { minimum_ring_size: 1_024 }
    }
}

/// How Envoy's Maglev is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EnvoyMaglev {
    /// Its table_size, a prime number from 2 to 1048573.
    #[schemars(range(min = 2, max = 1_048_573))]
    pub table_size: u32,
}

impl Default for EnvoyMaglev {
    fn default() -> Self {
        Self { table_size: 65_537 }
    }
}

/// How HAProxy is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HAProxy {
    /// Its hash-key. Id: a server's number, which is 1 for slot 0, 2 for slot 1 and so on. Addr: its address. AddrPort:
    /// its address and port.
    pub hash_key: HashKey,
    /// The weight of a server there, 1 to 256: its default is 1, that of HAProxy's own ingress controller is 128.
    #[schemars(range(min = 1, max = 256))]
    pub weight: u16,
}

impl Default for HAProxy {
    fn default() -> Self {
        Self { hash_key: HashKey::Id, weight: 1 }
    }
}

/// How keys are given to slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// Highest random weight: moves only what must move.
    #[default]
    Rendezvous,
    /// nginx's `hash $key consistent`.
    NginxKetama,
    /// ingress-nginx's `upstream-hash-by`.
    IngressNginx,
    /// Envoy's `ring_hash`.
    EnvoyRing,
    /// Envoy's `maglev`.
    EnvoyMaglev,
    /// HAProxy's `hash-type consistent`.
    HAProxy,
}

/// Where the secret of the hash is: 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum SeedSource {
    /// A file beside the operator, without Kubernetes.
    File(#[schemars(with = "String", length(max = 4096))] PathBuf),
    /// A key of a Secret.
    SecretKeyRef(SecretKey),
}

/// How connections are moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rebalance {
    /// Whether anything moves. Automatic: what must move is moved. DryRun: nothing is placed or moved, and the status
    /// says what would be. Paused: only what a leaving or dead pod makes necessary is placed.
    pub mode: Mode,
    /// What moves at once. Key: all connections of a key, which is never on two servers. Connection: one by one, and a
    /// key may be on two servers while it moves.
    pub unit: Unit,
    /// How long membership must stand still before a new placement, 0s to 1h.
    pub settle: GoDuration,
    /// How fast connections are evicted in the whole pool: 1 to 100000 per second, or a share of its connections per
    /// minute, 0.001% to 100%.
    pub rate: Rate,
    /// The most connections that are on their way at once: evicted, and neither returned nor lost. 1 to 1000000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_in_flight: u32,
    /// After this time an evicted connection that has not returned counts as lost, 1s to 1h.
    pub return_timeout: GoDuration,
    /// Percent of the evicted connections that must have returned within returnTimeout, 0 to 100. Below it evictions
    /// slow, then stop.
    #[schemars(range(min = 0, max = 100))]
    pub min_returned: u8,
    /// How long a key or a pod may be pinned in one piece, 1s to 24h: a pin keeps connections from being moved, for a match
    /// or a call, and a drain waits for it as long as it can. 0s means that nothing is pinned.
    pub max_pinned: GoDuration,
    /// With the strategy LeastConnections: by how many percent a pod may hold more connections than the mean, 0 to 100.
    /// A pod above that gives its excess to new or returned pods, the longest idle connections first.
    #[schemars(range(min = 0, max = 100))]
    pub tolerance: u8,
}

impl Default for Rebalance {
    fn default() -> Self {
        Self {
            mode: Mode::Automatic,
            unit: Unit::Key,
            settle: GoDuration::from_secs(5),
            rate: Rate::PerSecond(50),
            max_in_flight: 200,
            return_timeout: GoDuration::from_secs(60),
            min_returned: 80,
            max_pinned: MaxPinned::default().0,
            tolerance: 10,
        }
    }
}

/// Whether anything moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// What must move is moved.
    #[default]
    Automatic,
    /// Nothing is placed or moved; the status says what would be.
    DryRun,
    /// Nothing is moved; only what a leaving or dead member makes necessary is placed.
    Paused,
}

/// Sidecars without an app, behind the pool's Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Router {
    /// How many of these pods, 0 to 1000. 0 means that connections enter at the servers themselves.
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: u32,
}

/// Scales the pool by its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Autoscaling {
    /// The fewest replicas, 1 to 1000.
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: u32,
    /// The most replicas, 1 to 1000, and no fewer than minReplicas.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: u32,
    /// The connections that one pod should hold, 1 to 1000000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections_per_pod: u32,
}

/// What the operator says of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolStatus {
    /// The generation of the spec that this status is about.
    pub observed_generation: i64,
    /// Ready, Rebalancing and Degraded, each with a reason for programs and a message for people.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The target's replicas, for the scale subresource.
    pub replicas: i32,
    /// The pods' label selector, for the scale subresource.
    pub selector: String,
    /// Slots that have a holder.
    pub slots: u32,
    /// Connections held in the pool.
    pub connections: u64,
    /// When these were all the connections there were; missing while a sidecar has not been heard. An older figure is
    /// not scaled by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_at: Option<Time>,
    /// The placement's epoch.
    pub epoch: u64,
    /// The move under way, or the last one.
    #[serde(rename = "move")]
    pub moving: MoveStatus,
}

/// How far a move is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MoveStatus {
    /// Connections that are still to move.
    pub pending: u64,
    /// Connections evicted since the move began.
    pub evicted: u64,
    /// Of these, the ones seen at their new owner.
    pub returned: u64,
    /// Of these, the ones not seen there within returnTimeout.
    pub lost: u64,
    /// Connections that will move when their pins end.
    pub pinned: u64,
    /// Evictions per second that are allowed now.
    pub rate: u64,
}

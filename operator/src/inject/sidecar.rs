//! The sidecar's container, and its volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
    HTTPGetAction, ObjectFieldSelector, PodSpec, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource,
    SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::pool::JWKS_SUFFIX;

use super::resources::{self, Resources};
use super::{BIN, SIDECAR};

/// The sidecar's ports.
pub mod port {
    /// Clients and peers.
    pub const CLIENTS: u16 = 7480;
    /// What that port is called in a pod that has a sidecar.
    pub const CLIENTS_NAME: &str = "wspool";
    /// The operator.
    pub const CONTROL: u16 = 7481;
    /// The app's local API. It is on loopback only, so no container declares it.
    pub const API: u16 = 7482;
    /// Metrics and health.
    pub const METRICS: u16 = 7483;
}

/// The volume that brings the binary to the app's container.
pub(super) const BIN_VOLUME: &str = "wspool-bin";
const STATE_VOLUME: &str = "wspool-state";
const PLACEMENT_VOLUME: &str = "wspool-placement";
const PEERS_VOLUME: &str = "wspool-peers";
const JWKS_VOLUME: &str = "wspool-jwks";
const REDIS_VOLUME: &str = "wspool-redis";
/// What a pool's ConfigMap is called: the pool's name, and this.
const PLACEMENT_SUFFIX: &str = "-placement";
const STATE: &str = "/var/lib/wspool";
const PLACEMENT: &str = "/etc/wspool/placement";
/// What a pool's Secret is called: the pool's name, and this.
const PEERS_SUFFIX: &str = "-peers";
const PEERS: &str = "/etc/wspool/peers";
const JWKS: &str = "/etc/wspool/jwks";
/// What the Secret of a pool's Redis is taken to be called while nobody knows the pool: its name, and this.
const REDIS_SUFFIX: &str = "-redis";
const REDIS: &str = "/etc/wspool/redis";
/// The user of the image, for pods that would override it with root.
const USER: i64 = 65_532;

/// What injected pods get.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Sidecar {
    /// The sidecar's image.
    #[arg(
        id = "sidecar_image",
        long = "sidecar-image",
        env = "WSPOOL_SIDECAR_IMAGE",
        value_name = "IMAGE",
        default_value = concat!("wspool-sidecar:", env!("CARGO_PKG_VERSION"))
    )]
    pub image: String,
    /// The CPU that a sidecar requests. The annotation wspool.dev/sidecar-cpu of a pod says otherwise.
    #[arg(
        id = "sidecar_cpu",
        long = "sidecar-cpu",
        env = "WSPOOL_SIDECAR_CPU",
        value_name = "QUANTITY",
        default_value = "100m",
        value_parser = resources::quantity
    )]
    pub cpu: String,
    /// The memory that a sidecar requests. The annotation wspool.dev/sidecar-memory of a pod says otherwise.
    #[arg(
        id = "sidecar_memory",
        long = "sidecar-memory",
        env = "WSPOOL_SIDECAR_MEMORY",
        value_name = "QUANTITY",
        default_value = "128Mi",
        value_parser = resources::quantity
    )]
    pub memory: String,
}

/// What a sidecar stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// The app, at this port of its pod.
    App(u16),
    /// Nothing: it is a router.
    Nothing,
}

/// The pool whose sidecar a pod has.
pub(super) fn pool_of(spec: &PodSpec) -> Option<&str> {
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == PLACEMENT_VOLUME)?;
    volume.config_map.as_ref()?.name.strip_suffix(PLACEMENT_SUFFIX)
}

pub(super) fn container(sidecar: &Sidecar, spec: &PodSpec, behind: Behind, resources: Option<Resources>) -> Container {
    let mut behind = match behind {
        Behind::App(port) => {
            vec![variable("WSPOOL_UPSTREAM", format!("$(POD_IP):{port}")), variable("WSPOOL_API", api_address())]
        }
        Behind::Nothing => vec![variable("WSPOOL_ROLE", "router")],
    };
    let mut env = vec![
        downward("POD_IP", "status.podIP"),
        downward("WSPOOL_POD_UID", "metadata.uid"),
        variable("WSPOOL_LISTEN", format!("0.0.0.0:{}", port::CLIENTS)),
        variable("WSPOOL_ADVERTISE", format!("$(POD_IP):{}", port::CLIENTS)),
        variable("WSPOOL_CONTROL", format!("0.0.0.0:{}", port::CONTROL)),
        variable("WSPOOL_CONTROL_KEYS", format!("{PLACEMENT}/control.pem")),
        variable("WSPOOL_PEER_KEYS", format!("{PEERS}/keys")),
        variable("WSPOOL_JWKS", JWKS),
        variable("WSPOOL_REDIS", REDIS),
        variable("WSPOOL_METRICS", format!("0.0.0.0:{}", port::METRICS)),
        variable("WSPOOL_PLACEMENT", format!("{PLACEMENT}/placement.json.gz")),
        variable("WSPOOL_STATE_DIR", STATE),
        variable("WSPOOL_INSTALL", BIN),
    ];
    env.append(&mut behind);
    Container {
        name: SIDECAR.to_owned(),
        image: Some(sidecar.image.clone()),
        restart_policy: Some("Always".to_owned()),
        env: Some(env),
        ports: Some(vec![
            named_port(port::CLIENTS_NAME, port::CLIENTS),
            named_port("wspool-control", port::CONTROL),
            named_port("wspool-metrics", port::METRICS),
        ]),
        // A minute: a node that starts many pods at once is slow.
        startup_probe: Some(Probe { period_seconds: Some(1), failure_threshold: Some(60), ..probe("/healthz") }),
        // One "no" is enough: it says that a drain has begun, and then no client should come in here any more. A slow
        // answer on a busy node says nothing.
        readiness_probe: Some(Probe {
            period_seconds: Some(2),
            timeout_seconds: Some(5),
            failure_threshold: Some(1),
            ..probe("/readyz")
        }),
        resources: resources.map(requirements),
        security_context: Some(restricted(spec)),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![
            mount(BIN_VOLUME, BIN),
            mount(STATE_VOLUME, STATE),
            VolumeMount { read_only: Some(true), ..mount(PLACEMENT_VOLUME, PLACEMENT) },
            VolumeMount { read_only: Some(true), ..mount(PEERS_VOLUME, PEERS) },
            VolumeMount { read_only: Some(true), ..mount(JWKS_VOLUME, JWKS) },
            VolumeMount { read_only: Some(true), ..mount(REDIS_VOLUME, REDIS) },
        ]),
        ..Container::default()
    }
}

/// What tells the app where the local API is, and what to prove itself with.
pub(super) fn api_variables() -> [EnvVar; 2] {
    [
        variable("WSPOOL_API_URL", format!("http://{}", api_address())),
        variable("WSPOOL_API_TOKEN_FILE", format!("{BIN}/api-token")),
    ]
}

fn api_address() -> String {
    format!("127.0.0.1:{}", port::API)
}

pub(super) fn volumes(pool: &str, redis: Option<String>) -> Vec<Volume> {
    let in_memory = |name: &str, limit: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(Quantity(limit.to_owned())),
        }),
        ..Volume::default()
    };
    // Optional: the pod may be older than its pool, and the sidecar works without.
    let placement = ConfigMapVolumeSource {
        name: format!("{pool}{PLACEMENT_SUFFIX}"),
        optional: Some(true),
        ..ConfigMapVolumeSource::default()
    };
    let secret = |name: String| SecretVolumeSource {
        secret_name: Some(name),
        optional: Some(true),
        ..SecretVolumeSource::default()
    };
    let own = |suffix| format!("{pool}{suffix}");
    let redis = redis.unwrap_or_else(|| own(REDIS_SUFFIX));
    vec![
        in_memory(BIN_VOLUME, "32Mi"),
        // A placement, and room for the next one beside it: a ConfigMap holds 1 MiB, compressed.
        in_memory(STATE_VOLUME, "32Mi"),
        Volume { name: PLACEMENT_VOLUME.to_owned(), config_map: Some(placement), ..Volume::default() },
        Volume { name: PEERS_VOLUME.to_owned(), secret: Some(secret(own(PEERS_SUFFIX))), ..Volume::default() },
        Volume { name: JWKS_VOLUME.to_owned(), secret: Some(secret(own(JWKS_SUFFIX))), ..Volume::default() },
        Volume { name: REDIS_VOLUME.to_owned(), secret: Some(secret(redis)), ..Volume::default() },
    ]
}

/// A variable that holds a field of the pod.
pub(super) fn downward(name: &str, field: &str) -> EnvVar {
    let field = ObjectFieldSelector { field_path: field.to_owned(), ..ObjectFieldSelector::default() };
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        ..EnvVar::default()
    }
}

fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.into()), ..EnvVar::default() }
}

fn named_port(name: &str, port: u16) -> ContainerPort {
    ContainerPort { name: Some(name.to_owned()), container_port: port.into(), ..ContainerPort::default() }
}

fn probe(path: &str) -> Probe {
    let get = HTTPGetAction {
        path: Some(path.to_owned()),
        port: IntOrString::Int(port::METRICS.into()),
        ..HTTPGetAction::default()
    };
    Probe { http_get: Some(get), ..Probe::default() }
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

fn requirements(resources: Resources) -> ResourceRequirements {
    let Resources { cpu, memory, limited } = resources;
    let amounts = BTreeMap::from([("cpu".to_owned(), Quantity(cpu)), ("memory".to_owned(), Quantity(memory))]);
    ResourceRequirements {
        limits: limited.then(|| amounts.clone()),
        requests: Some(amounts),
        ..ResourceRequirements::default()
    }
}

/// What the `restricted` Pod Security Standard asks for.
fn restricted(spec: &PodSpec) -> SecurityContext {
    // The image names its user. A user here would be refused where the namespace prescribes a range of them, so it is
    // named only for pods that run as root otherwise.
    let root = spec.security_context.as_ref().is_some_and(|pod| pod.run_as_user == Some(0));
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        run_as_user: root.then_some(USER),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
        ..SecurityContext::default()
    }
}

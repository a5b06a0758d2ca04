//! Injection: what a pod needs to be part of a pool, as a pure function of the pod.
//!
//! A pod asks for it with the label [`POOL_LABEL`]. The webhook and `wspool-operator inject` share this function, so that
//! a manifest injected beforehand and a pod injected on its way in are the same.
//!
//! | added | why |
//! |---|---|
//! | the init container [`SIDECAR`], `restartPolicy: Always`, **last** of the init containers | what the app's own and other injectors' init containers set up (a mesh, certificates) is there when it starts, and native sidecars stop in reverse order: it ends before the mesh that its connections pass through |
//! | its startup probe on `/healthz` | the app starts after it, so the probe must not ask for the app; it passes when the `prestop` binary is in place |
//! | its readiness probe on `/readyz` | a draining pod leaves the Service |
//! | the volumes `wspool-bin`, `wspool-state` | in memory: a disk-backed `emptyDir` keeps the cluster autoscaler from removing a node |
//! | the volumes `wspool-placement`, `wspool-peers` | the ConfigMap `<pool>-placement` (`placement.json.gz`, and `control.pem`: no secret, and renewed with the operator's key) and the Secret `<pool>-peers` (`keys`: made once, and read by nobody else), if they are there |
//! | the volume `wspool-jwks` | the Secret `<pool>-jwks`, which a user makes for `key.jwt`, if it is there |
//! | `preStop` on the app's container, and the binary at [`BIN`] in it | it holds the app until its sidecar has moved everything, then does what the hook before it did |
//! | `terminationGracePeriodSeconds`: the drain timeout on top of what was there | the app keeps all the time that it had |
//!
//! Everything else is untouched: the app's ports, probes and other containers. A pod that has the sidecar already is left
//! alone, whatever was added to it since.
//!
//! # What the pod may say
//! | annotation | meaning |
//! |---|---|
//! | [`CONTAINER`] | the app's container, and after it, comma-separated, others that must be held as long. Otherwise the one that declares the pool's port, else `kubectl.kubernetes.io/default-container`, else the first |
//! | [`PORT`] | the app's port, while no pool says it. Otherwise the only port that the app's container declares |
//! | [`CPU`], [`MEMORY`] | what the sidecar requests |
//!
//! A pool need not exist: a pod is then injected with the defaults (a drain of 60 s) and the port found as above. When the
//! port cannot be told it is refused, which its ReplicaSet repeats until the pool is there.
//!
//! # What the sidecar's binary must do
//! With `WSPOOL_INSTALL` it copies itself there as `wspool-sidecar`, mode 0755, before its health port opens.
//! ```text
//! wspool-sidecar prestop --timeout=60s [--delay=3s] [HOOK]
//!     -- COMMAND [ARG]...                                                     an exec hook
//!     --http-get=PATH --port=PORT [--host=HOST] [--header='NAME: VALUE']...   an httpGet hook
//!     --sleep=5s                                                              a sleep hook
//! ```
//! After the delay `prestop` asks the sidecar on loopback to drain and waits until it is empty, but never longer than the
//! timeout; then it does what the hook says and ends with its status. HOST is by default `WSPOOL_POD_IP`, which the app's
//! container then has. (A `tcpSocket` hook is accepted by Kubernetes and never run: there is nothing to keep.)

mod app;
pub mod command;
mod edits;
mod hook;
pub mod manifest;
mod resources;
pub mod router;
mod sidecar;
mod splice;
mod yaml;

use std::time::Duration;

use json_patch::AddOperation;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use ring::settings::{Drain, Mounted};
use serde_json::json;

use crate::pool::WebSocketPool;
use app::App;
use edits::Edits;
use resources::Resources;
use sidecar::Behind;
pub use sidecar::{Sidecar, port};

/// The label that asks for injection, and names the pool.
pub const POOL_LABEL: &str = "wspool.dev/pool";
/// The annotation that names the app's container, and others to be held with it.
pub const CONTAINER: &str = "wspool.dev/container";
/// The annotation that names the app's port.
pub const PORT: &str = "wspool.dev/port";
/// The annotation that says how much CPU the sidecar requests.
pub const CPU: &str = "wspool.dev/sidecar-cpu";
/// The annotation that says how much memory the sidecar requests.
pub const MEMORY: &str = "wspool.dev/sidecar-memory";
/// The name of the sidecar's container.
pub const SIDECAR: &str = "wspool-sidecar";
/// Where the app's container finds the binary.
pub const BIN: &str = "/wspool/bin";

/// The longest pool name, as the CRD has it.
const MAX_POOL_NAME: usize = 50;
/// Kubernetes' own default, which a template leaves out.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// What injection must know of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFacts {
    /// The app's port.
    pub port: Option<u16>,
    /// The Secret with the URL of its Redis.
    pub redis: Option<String>,
    /// How long a drain may take.
    pub drain: Duration,
}

impl Default for PoolFacts {
    fn default() -> Self {
        Self { port: None, redis: None, drain: Drain::default().timeout.0 }
    }
}

impl From<&WebSocketPool> for PoolFacts {
    fn from(pool: &WebSocketPool) -> Self {
        let redis = pool.spec.redis.as_ref().and_then(|redis| match &redis.url_from {
            Mounted::SecretKeyRef(secret) => Some(secret.name.clone()),
            Mounted::File(_) => None,
        });
        Self { port: pool.spec.port, redis, drain: pool.spec.drain.timeout.0 }
    }
}

/// What is to be done with a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing: it does not ask.
    NotAsked,
    /// Nothing: the sidecar is there.
    AlreadyInjected,
    /// These additions.
    Inject(Injection),
}

/// The additions that make a pod part of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Injection {
    /// The pool.
    pub pool: String,
    /// The app's container.
    pub container: String,
    /// The app's port.
    pub port: u16,
    /// The additions in order, with paths from the pod or the pod template.
    pub edits: Vec<AddOperation>,
}

/// Why a pod cannot be injected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The label is there, without a name.
    #[error("the label {POOL_LABEL} is empty; give it the name of a WebSocketPool, or remove it")]
    EmptyLabel,
    /// No pool can have this name.
    #[error(
        "the label {POOL_LABEL} is {0:?}, which cannot be a pool's name; use at most {MAX_POOL_NAME} lower-case letters, digits and hyphens"
    )]
    PoolName(String),
    /// It has the sidecar of another pool.
    #[error(
        "the pod has the sidecar of the pool {present:?}, and its label {POOL_LABEL} says {label:?}; change the label back, or inject the original manifest again"
    )]
    OtherPool {
        /// The pool of its sidecar.
        present: String,
        /// The pool of its label.
        label: String,
    },
    /// It shares its node's network.
    #[error(
        "the pod uses hostNetwork, where its address and the sidecar's ports are its node's; remove hostNetwork, or the label {POOL_LABEL}"
    )]
    HostNetwork,
    /// It does not run on Linux.
    #[error("the pod is for Windows, and the sidecar runs on Linux; remove the label {POOL_LABEL}")]
    Windows,
    /// It has no app.
    #[error("the pod has no containers; wspool needs the app's")]
    NoContainers,
    /// The annotation names a container that is not there.
    #[error("the annotation {CONTAINER} names {name:?}; the pod has {present}")]
    UnknownContainer {
        /// What it names.
        name: String,
        /// The containers there are.
        present: String,
    },
    /// Nothing says which port the app has.
    #[error(
        "there is no WebSocketPool {pool:?} that says the app's port, and container {container:?} declares {declared} TCP ports; create the pool first, or set the annotation {PORT}"
    )]
    NoPort {
        /// The pool.
        pool: String,
        /// The app's container.
        container: String,
        /// How many ports it declares.
        declared: usize,
    },
    /// An annotation with a value that cannot be.
    #[error("the annotation {annotation} is {value:?}; write {right}")]
    Annotation {
        /// The annotation.
        annotation: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        right: &'static str,
    },
    /// Somebody in the pod listens where the sidecar must.
    #[error(
        "container {container:?} uses port {taken}; the sidecar needs {first} to {last}: let the app listen on another port",
        first = port::CLIENTS,
        last = port::METRICS
    )]
    PortTaken {
        /// The container.
        container: String,
        /// The port.
        taken: u16,
    },
    /// A hook's port that cannot be told.
    #[error(
        "the preStop hook of container {container:?} names the port {port:?}, which the container does not declare"
    )]
    HookPort {
        /// The container.
        container: String,
        /// The port.
        port: String,
    },
    /// A hook that cannot be repeated.
    #[error(
        "the preStop hook of container {container:?} is an httpGet over HTTPS, which wspool cannot repeat after the drain; use exec or HTTP"
    )]
    HttpsHook {
        /// The container.
        container: String,
    },
}

/// Decides what is to be added to a pod, or to a pod template. `pools` says what is known of the pool with a name.
pub fn inject(
    metadata: &ObjectMeta,
    spec: &PodSpec,
    sidecar: &Sidecar,
    pools: impl FnOnce(&str) -> Option<PoolFacts>,
) -> Result<Verdict, Refusal> {
    let Some(pool) = pool_of(metadata)? else { return Ok(Verdict::NotAsked) };
    if is_injected(spec) {
        return match sidecar::pool_of(spec) {
            Some(present) if present != pool => {
                Err(Refusal::OtherPool { present: present.to_owned(), label: pool.to_owned() })
            }
            _ => Ok(Verdict::AlreadyInjected),
        };
    }
    if spec.host_network == Some(true) {
        return Err(Refusal::HostNetwork);
    }
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return Err(Refusal::Windows);
    }
    let facts = pools(pool).unwrap_or_default();
    let app = App::find(metadata, spec, pool, &facts)?;
    let resources = Resources::of_sidecar(metadata, spec, sidecar)?;

    let mut edits = Edits::default();
    let container = sidecar::container(sidecar, spec, Behind::App(app.port), resources);
    edits.append("/spec/initContainers", spec.init_containers.as_deref(), &[container]);
    edits.append("/spec/volumes", spec.volumes.as_deref(), &sidecar::volumes(pool, facts.redis));
    for (index, container) in &app.held {
        hook::hold(&mut edits, &format!("/spec/containers/{index}"), container, facts.drain)?;
    }
    edits.set("/spec/terminationGracePeriodSeconds", json!(grace_seconds(spec, facts.drain)));
    Ok(Verdict::Inject(Injection {
        pool: pool.to_owned(),
        container: app.container().name.clone(),
        port: app.port,
        edits: edits.into(),
    }))
}

/// The pool that a pod's label names.
fn pool_of(metadata: &ObjectMeta) -> Result<Option<&str>, Refusal> {
    let Some(pool) = metadata.labels.as_ref().and_then(|labels| labels.get(POOL_LABEL)) else { return Ok(None) };
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = pool.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) if edge(first) && edge(last) => {}
        (None, _) => return Err(Refusal::EmptyLabel),
        _ => return Err(Refusal::PoolName(pool.clone())),
    }
    if bytes.len() > MAX_POOL_NAME || !bytes.iter().all(|b| edge(b) || *b == b'-') {
        return Err(Refusal::PoolName(pool.clone()));
    }
    Ok(Some(pool))
}

/// The sidecar's container: beside the app one that starts before it, in a router the only one.
pub fn sidecar_of(spec: &PodSpec) -> Option<&Container> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.into_iter().find(|container| container.name == SIDECAR)
}

fn is_injected(spec: &PodSpec) -> bool {
    sidecar_of(spec).is_some()
}

fn grace_seconds(spec: &PodSpec, drain: Duration) -> i64 {
    let before = spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS).max(0);
    let drain = drain.as_secs() + u64::from(drain.subsec_nanos() > 0);
    before.saturating_add(i64::try_from(drain).unwrap_or(i64::MAX))
}

//! A real etcd, kube-apiserver and kube-controller-manager, without kubelets: the tests play them.
//!
//! ```text
//!  tests/control-plane/run ──► namespaces without a way out, every address of 198.18.0.0/15 local
//!    └─ control-plane (a program of this crate) ── starts the ControlPlane, ends it and all else with the command
//!         └─ cargo test ── Access::shared() ── Namespace (one per test) ── Kubelet
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`access`] | the way to an API server: clients, kubeconfigs, kubectl |
//! | [`audit`] | what a service account has asked of it |
//! | [`certificates`] | who everybody is |
//! | [`namespace`] | a test's own corner: what it applies, the pods that come of it |
//! | [`kubelet`] | plays the kubelet: pods become ready, and go |
//! | [`host`] | plays it with real processes: what a pod says is started at its address |
//! | [`gate`] | a way to the API server that can be shut |
//! | [`scene`] | a whole pool: operator, pods, clients |
//! | [`release`] | the chart in a namespace, with the operator's real processes in its pods |
//!
//! Tests share one control plane. A test that stops its API server starts one for itself, which does not disturb the
//! others: [`ControlPlane::start`].

pub mod access;
pub mod audit;
pub mod certificates;
pub mod gate;
pub mod host;
pub mod kubelet;
pub mod namespace;
pub mod release;
pub mod scene;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;

pub use access::Access;
pub use audit::Audit;
pub use host::Host;
pub use kubelet::Kubelet;
pub use namespace::Namespace;
pub use release::Operators;
pub use scene::Scene;

use crate::ports;
use crate::process::Process;
use crate::wait::until;
use certificates::Certificates;

/// The node that all pods are bound to. It has no kubelet, and nobody expects its heartbeat.
pub const NODE: &str = "fake";
/// The node's own address. All of 198.18.0.0/15 is local in the tests' network namespace; loopback addresses would be
/// refused in `EndpointSlices`.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// How many complaints of each program are shown when a test has failed.
const COMPLAINTS: usize = 10;

/// A control plane of its own. It ends when it is dropped; the ends of its logs are shown when a test fails.
#[derive(Debug)]
pub struct ControlPlane {
    // In the order in which they end.
    controllers: Process,
    apiserver: Process,
    etcd: Process,
    files: Files,
}

/// What its programs are started with.
#[derive(Debug)]
struct Files {
    /// Certificates, kubeconfigs, logs, etcd's data.
    folder: TempDir,
    etcd: SocketAddr,
    etcd_peer: SocketAddr,
    apiserver: SocketAddr,
}

impl ControlPlane {
    /// Starts one, and waits until its API server is ready. It takes about six seconds.
    pub async fn start() -> Self {
        check_namespace();
        let files = Files::new();
        let etcd = files.start_etcd();
        let mut apiserver = files.start_apiserver();
        files.ready(&mut apiserver).await;
        let controllers = files.start_controllers();
        make_node(&files.access()).await;
        Self { controllers, apiserver, etcd, files }
    }

    /// The way to it.
    pub fn access(&self) -> Access {
        self.files.access()
    }

    /// Kills the API server: whoever is connected is cut off, and nobody new gets in. (SIGTERM would not end it for as
    /// long as clients are connected.)
    pub fn stop_apiserver(&mut self) {
        self.apiserver.kill();
    }

    /// Starts it again, and waits until it is ready. The controllers are started anew: by themselves they might come
    /// back only a minute after a longer outage.
    pub async fn start_apiserver(&mut self) {
        self.apiserver = self.files.start_apiserver();
        self.files.ready(&mut self.apiserver).await;
        self.controllers.kill();
        self.controllers = self.files.start_controllers();
    }

    /// Halts the API server where it is: its connections stay open, and nothing is answered.
    pub fn pause_apiserver(&self) {
        self.apiserver.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume_apiserver(&self) {
        self.apiserver.signal(Signal::SIGCONT);
    }

    /// Shows the last complaints in its logs.
    pub fn show_complaints(&self) {
        for (name, process) in
            [("etcd", &self.etcd), ("kube-apiserver", &self.apiserver), ("kube-controller-manager", &self.controllers)]
        {
            let log = process.log();
            // Lines that only inform begin with I.
            let complaints: Vec<&str> = log.lines().filter(|line| !line.starts_with('I')).collect();
            let last = &complaints[complaints.len().saturating_sub(COMPLAINTS)..];
            eprintln!("--- complaints of {name}:\n{}\n---", last.join("\n"));
        }
    }
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("control-plane-").tempdir().expect("a temporary folder");
        let files = Self { folder, etcd: ports::free(), etcd_peer: ports::free(), apiserver: ports::free() };
        Certificates::write(files.folder.path(), files.apiserver.ip());
        let access = files.access();
        access.write_kubeconfig(certificates::ADMIN, files.apiserver);
        access.write_kubeconfig(certificates::CONTROLLERS, files.apiserver);
        files
    }

    fn access(&self) -> Access {
        Access::at(self.folder.path())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a program with a flag from each line. Lines with `#` say why.
    fn start(&self, program: &str, flags: &str) -> Process {
        let flags = flags.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Process::start(program, &binary(program), flags, &self.path(&format!("{program}.log")))
    }

    fn start_etcd(&self) -> Process {
        let Self { etcd, etcd_peer, .. } = self;
        let folder = self.folder.path().display();
        let flags = format!(
            "
            --name=etcd
            --data-dir={folder}/etcd
            --listen-client-urls=http://{etcd}
            --advertise-client-urls=http://{etcd}
            --listen-peer-urls=http://{etcd_peer}
            --initial-advertise-peer-urls=http://{etcd_peer}
            --initial-cluster=etcd=http://{etcd_peer}
            # What it stores is thrown away anyhow.
            --unsafe-no-fsync
            --log-level=warn
            "
        );
        self.start("etcd", &flags)
    }

    fn start_apiserver(&self) -> Process {
        let etcd = self.etcd;
        let (ip, port) = (self.apiserver.ip(), self.apiserver.port());
        let folder = self.folder.path().display();
        let front_proxy = certificates::FRONT_PROXY;
        let audit_log = audit::LOG;
        let policy = self.path("audit-policy.json");
        std::fs::write(&policy, audit::POLICY).expect("a folder that can be written");
        let policy = policy.display();
        let flags = format!(
            "
            --etcd-servers=http://{etcd}
            --bind-address={ip}
            --advertise-address={ip}
            --secure-port={port}
            # A loopback address may not be an endpoint, not of the Service `kubernetes` either.
            --endpoint-reconciler-type=none
            --service-cluster-ip-range=10.96.0.0/16
            --cert-dir={folder}/apiserver
            --tls-cert-file={folder}/apiserver.crt
            --tls-private-key-file={folder}/apiserver.key
            --client-ca-file={folder}/ca.crt
            --authorization-mode=RBAC
            --service-account-issuer=https://kubernetes.default.svc
            --service-account-signing-key-file={folder}/accounts.key
            --service-account-key-file={folder}/accounts.pub
            # How an aggregated API server knows that a request comes from this one, and for whom.
            --requestheader-client-ca-file={folder}/front-proxy-ca.crt
            --requestheader-allowed-names={front_proxy}
            --requestheader-username-headers=X-Remote-User
            --requestheader-group-headers=X-Remote-Group
            --requestheader-extra-headers-prefix=X-Remote-Extra-
            --proxy-client-cert-file={folder}/front-proxy.crt
            --proxy-client-key-file={folder}/front-proxy.key
            # Nothing translates the addresses of Services here: webhooks are called at their endpoints.
            --enable-aggregator-routing
            --audit-policy-file={policy}
            --audit-log-path={folder}/{audit_log}
            --profiling=false
            "
        );
        self.start("kube-apiserver", &flags)
    }

    fn start_controllers(&self) -> Process {
        let kubeconfig = self.access().kubeconfig_of(certificates::CONTROLLERS);
        let kubeconfig = kubeconfig.display();
        let folder = self.folder.path().display();
        let flags = format!(
            "
            --kubeconfig={kubeconfig}
            # Not those that take the pods of a silent node away.
            --controllers=*,-node-lifecycle-controller,-taint-eviction-controller,-pod-garbage-collector-controller
            --use-service-account-credentials
            --service-account-private-key-file={folder}/accounts.key
            --root-ca-file={folder}/ca.crt
            --leader-elect=false
            --secure-port=0
            --kube-api-qps=200
            --kube-api-burst=400
            --horizontal-pod-autoscaler-sync-period=2s
            --horizontal-pod-autoscaler-downscale-stabilization=0s
            --profiling=false
            "
        );
        self.start("kube-controller-manager", &flags)
    }

    /// Waits until the API server is ready, in two steps because a busy machine may need patience for each.
    async fn ready(&self, apiserver: &mut Process) {
        until("the API server listens", async || {
            apiserver.check();
            TcpStream::connect(self.apiserver).map(drop).map_err(|error| error.to_string())
        })
        .await;
        let access = self.access();
        until("the API server is ready", async || {
            apiserver.check();
            access.kubectl(&["get", "--raw", "/readyz"], "").await.map(drop)
        })
        .await;
    }
}

/// Where a program of Kubernetes is.
pub(crate) fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("KUBEBUILDER_ASSETS").expect("KUBEBUILDER_ASSETS is set by tests/control-plane/run");
    Path::new(&folder).join(name)
}

fn check_namespace() {
    if let Err(error) = TcpListener::bind((NODE_ADDRESS, 0)) {
        panic!("{NODE_ADDRESS} is not local ({error}): tests of this tier are run by `make test-api`");
    }
}

/// Makes the node. Without a Node object the controllers leave its pods out of `EndpointSlices`.
async fn make_node(access: &Access) {
    let nodes: Api<Node> = Api::all(access.client().await);
    let node = json!({
        "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux"}},
        "status": {
            "capacity": {"cpu": "64", "memory": "256Gi", "pods": "1000"},
            "allocatable": {"cpu": "64", "memory": "256Gi", "pods": "1000"},
            "addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Fake"}],
        },
    });
    let node: Node = serde_json::from_value(node).expect("a node");
    until("the node is made", async || {
        nodes.create(&PostParams::default(), &node).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

//! The chart, installed in a namespace, and the operator's real processes in the pods that come of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::kubelet::free_address;
use super::{Access, Namespace};
use crate::helm::Release;
use crate::http::Http;
use crate::process::{Process, program};
use crate::until;

/// Where the operator answers `GET /v1/pools`, beside what the chart says.
const ADMIN: u16 = 8081;
const METRICS: u16 = 8080;

/// The operator of one release, as many replicas as the chart was given.
pub struct Operators {
    namespace: Namespace,
    name: String,
    replicas: Vec<Replica>,
    kubeconfig: PathBuf,
    http: Http,
    folder: TempDir,
}

/// One replica: a pod of the chart's Deployment, and its process.
pub struct Replica {
    pod: Pod,
    ip: Ipv4Addr,
    process: Process,
}

impl Operators {
    /// Installs the chart for pools of this namespace, and starts a process for each pod of its Deployment.
    pub async fn install(namespace: &Namespace, replicas: usize) -> Self {
        Self::install_with(namespace, replicas, "").await
    }

    /// The same with further values: a part of YAML in flow style, without its braces.
    pub async fn install_with(namespace: &Namespace, replicas: usize, values: &str) -> Self {
        install_crd(namespace).await;
        let access = namespace.access();
        let release = Release::new(access, namespace.name(), namespace.name());
        let values = format!(
            "{{replicas: {replicas}, watchNamespaces: [{}], crd: {{install: false}}, log: 'info,operator=debug', \
             {values}}}",
            namespace.name()
        );
        release.install(&values, &[]).await.unwrap_or_else(|error| panic!("the chart is not installed: {error}"));
        let name = format!("{}-wspool", namespace.name());
        let pods = namespace.pods("app.kubernetes.io/name=wspool", replicas).await;
        let kubeconfig = access.service_account(namespace.name(), &name).await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut operators = Self {
            namespace: namespace.clone(),
            name,
            replicas: Vec::new(),
            kubeconfig,
            http: Http::default(),
            folder,
        };
        for pod in pods {
            let ip = free_address();
            let process = operators.start_process(&pod, ip, &operators.kubeconfig);
            operators.replicas.push(Replica { pod, ip, process });
            operators.ready(operators.replicas.len() - 1).await;
        }
        operators
    }

    /// The name of the chart's objects.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The identity of the replica that leads, from the Lease, and its number.
    pub async fn leader(&self) -> usize {
        until("one of the replicas leads", async || {
            let lease = ["get", "lease", &self.name, "-o", "jsonpath={.spec.holderIdentity}"];
            let holder = self.namespace.kubectl(&lease, "").await?;
            let leads = |replica: &Replica| replica.pod.uid().is_some_and(|uid| holder.starts_with(&uid));
            self.replicas.iter().position(leads).ok_or(holder)
        })
        .await
    }

    /// The process ID of a replica.
    pub fn pid(&self, replica: usize) -> u32 {
        self.replicas[replica].process.pid()
    }

    /// The address of a replica's pod.
    pub fn address(&self, replica: usize) -> Ipv4Addr {
        self.replicas[replica].ip
    }

    /// Kills a replica's process (SIGKILL).
    pub fn kill(&mut self, replica: usize) {
        self.replicas[replica].process.kill();
    }

    /// Ends a replica's process as its kubelet does (SIGTERM), and waits until it has ended.
    pub async fn end(&mut self, replica: usize) {
        let process = &mut self.replicas[replica].process;
        process.signal(Signal::SIGTERM);
        let status = process.ended().await;
        assert!(status.success(), "the operator ended with {status}:\n{}", process.log());
    }

    /// Starts a replica's process again after it has ended, by this kubeconfig.
    pub async fn start_again(&mut self, replica: usize, kubeconfig: Option<&Path>) {
        let kubeconfig = kubeconfig.unwrap_or(&self.kubeconfig).to_owned();
        let Replica { pod, ip, .. } = &self.replicas[replica];
        let process = self.start_process(pod, *ip, &kubeconfig);
        self.replicas[replica].process = process;
        self.ready(replica).await;
    }

    /// The kubeconfig of the chart's service account.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Everything that a replica has written.
    pub fn log(&self, replica: usize) -> String {
        self.replicas[replica].process.log()
    }

    /// What the replicas that answer say of their pools.
    pub async fn pools(&self) -> Vec<Value> {
        let mut pools = Vec::new();
        for replica in &self.replicas {
            let said: Result<Vec<Value>, _> = self.http.get((replica.ip, ADMIN).into(), "/v1/pools").await;
            pools.extend(said.unwrap_or_default());
        }
        pools
    }

    /// Waits until what the leader says of a pool satisfies.
    pub async fn until(&self, what: &str, pool: &str, holds: impl Fn(&Value) -> bool) -> Value {
        until(what, async || {
            let pools = self.pools().await;
            let found = pools.iter().find(|view| view["name"] == pool);
            match found {
                Some(view) if holds(view) => Ok(view.clone()),
                Some(view) => Err(view.to_string()),
                None => Err("nobody knows the pool".into()),
            }
        })
        .await
    }

    /// Waits until so many slots have ready holders and nothing moves.
    pub async fn stable(&self, pool: &str, slots: usize) -> Value {
        self.until(&format!("the pool is stable with {slots} slots"), pool, |view| {
            let ready = view["slots"].as_array().map_or(0, |slots| slots.iter().filter(|s| s["ready"] == true).count());
            let all = view["slots"].as_array().map_or(0, Vec::len);
            (ready, all) == (slots, slots) && view["state"] == "Stable" && view["move"]["pending"] == 0
        })
        .await
    }

    fn start_process(&self, pod: &Pod, ip: Ipv4Addr, kubeconfig: &Path) -> Process {
        let container = &pod.spec.as_ref().expect("a stored pod has a spec").containers[0];
        let words = container.args.iter().flatten().map(|word| word.replace("0.0.0.0", &ip.to_string()));
        let arguments: Vec<String> = words.chain([format!("--admin={ip}:{ADMIN}")]).collect();
        let variables = container.env.iter().flatten().map(|variable| {
            let field = || variable.value_from.as_ref()?.field_ref.as_ref().map(|field| field.field_path.as_str());
            let value = match (&variable.value, field()) {
                (Some(value), _) => value.clone(),
                (None, Some("metadata.namespace")) => pod.namespace().unwrap_or_default(),
                (None, Some("metadata.uid")) => pod.uid().unwrap_or_default(),
                (None, other) => panic!("the variable {} is of {other:?}", variable.name),
            };
            (variable.name.clone(), value)
        });
        let mut variables: Vec<_> = variables.collect();
        variables.push(("KUBECONFIG".into(), kubeconfig.to_string_lossy().into_owned()));
        let name = pod.name_any();
        let log = self.folder.path().join(format!("{name}.log"));
        Process::start_in(&name, &program("wspool-operator"), &arguments, variables, &log)
    }

    /// Waits as its kubelet does, by its readiness probe, and reports.
    async fn ready(&mut self, index: usize) {
        let http = self.http.clone();
        let Replica { pod, ip, process } = &mut self.replicas[index];
        let address = SocketAddr::from((*ip, METRICS));
        until("the operator is ready", async || {
            process.check();
            let answer = http.send(http::Method::GET, address, "/readyz", "").await?;
            if answer.status.is_success() { Ok(()) } else { Err(answer.status.to_string()) }
        })
        .await;
        self.namespace.kubelet().ready(pod, *ip).await;
    }
}

/// The CRD of the repository, which all tests of a control plane share.
async fn install_crd(namespace: &Namespace) {
    let crd = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/websocketpools.wspool.dev.yaml");
    let crd = std::fs::read_to_string(&crd).unwrap_or_else(|error| panic!("{}: {error}", crd.display()));
    let access: &Access = namespace.access();
    access.kubectl(&["apply", "--server-side", "-f", "-"], &crd).await.expect("the CRD is accepted");
    until("the resource is served", async || access.kubectl(&["get", "websocketpools", "-A"], "").await).await;
}

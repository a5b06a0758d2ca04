//! One way to run a pool: its workload, its way in, its clients.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use harness::control_plane::{Access, Namespace};
use harness::until;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::client::Crowd;
use super::fault;
use crate::usage::Usage;

/// Its pods that are ready are looked up this often, as an ingress would hear of them.
const LOOK: Duration = Duration::from_millis(250);

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// wspool, and its plain Service in front.
    Service,
    /// wspool, with routers behind its Service.
    Router,
    /// nginx with `hash $uri consistent`, which is told of the pods that are ready and reloaded when they change. Its old
    /// workers have ten seconds for what they hold.
    Nginx,
}

impl Way {
    /// Its name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "wspool, Service",
            Self::Router => "wspool, router",
            Self::Nginx => "nginx",
        }
    }
}

/// A workload with its clients.
pub struct Arm {
    /// Its way in.
    pub way: Way,
    /// Its clients.
    pub crowd: Crowd,
    namespace: Namespace,
    nginx: Option<Nginx>,
}

fn workload(label: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: chat}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: chat}}}}
  strategy: {{rollingUpdate: {{maxSurge: 1, maxUnavailable: 0}}}}
  template:
    metadata: {{labels: {{app: chat{label}}}}}
    spec:
      # Otherwise pods of a node that is gone are replaced after five minutes.
      tolerations:
      - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 5}}
      - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 5}}
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{app: chat}}}}}}
      containers:
      - name: chat
        image: wspool.test/node:1
        args: [/chat/server.js, --listen=0.0.0.0:3000, --name=$(POD_NAME)]
        env: [{{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
        ports: [{{containerPort: 3000}}]
        readinessProbe: {{tcpSocket: {{port: 3000}}, periodSeconds: 1}}
"
    )
}

fn pool(routers: u32) -> String {
    format!(
        "
apiVersion: wspool.dev/v1alpha1
kind: WebSocketPool
metadata: {{name: chat}}
spec:
  target: {{apiVersion: apps/v1, kind: Deployment, name: chat}}
  port: 3000
  key: {{from: [{{path: '/rooms/{{key}}'}}]}}
  rebalance: {{settle: 2s}}
  drain: {{timeout: 30s}}
  limits: {{handshakesPerSecond: 100}}
  router: {{replicas: {routers}}}
"
    )
}

const APP_SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: chat}, spec: {selector: {app: chat}, \
                           ports: [{port: 3000}]}}";

impl Arm {
    /// Its workload is up, and so many clients are connected.
    pub async fn start(access: &Access, way: Way, clients: usize) -> Self {
        let purpose = format!("{way:?}").to_lowercase();
        let namespace = Namespace::create(access, &purpose).await;
        let manifests = match way {
            Way::Nginx => format!("{APP_SERVICE}\n---{}", workload("")),
            Way::Service => format!("{}---{}", pool(0), workload(", wspool.dev/pool: chat")),
            Way::Router => format!("{}---{}", pool(2), workload(", wspool.dev/pool: chat")),
        };
        namespace.apply(&manifests).await.expect("the workload is accepted");
        until_rolled_out(&namespace).await;
        let nginx = if way == Way::Nginx { Some(Nginx::start(&namespace).await) } else { None };
        let entry = match &nginx {
            Some(nginx) => nginx.entry,
            None => service(&namespace).await,
        };
        until("the pool is ready", async || {
            if is_settled(&namespace, way, 3).await {
                Ok(())
            } else {
                namespace.kubectl(&["get", "all,wsp"], "").await.and_then(Err)
            }
        })
        .await;
        Self { way, crowd: Crowd::start(clients, entry), namespace, nginx }
    }

    /// Runs kubectl in its namespace; says what it complains about.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        self.namespace.kubectl(arguments, "").await.unwrap_or_else(|error| {
            eprintln!("kubectl {arguments:?}: {error}");
            String::new()
        })
    }

    /// The UID of one of its pods.
    pub async fn pod(&self) -> String {
        self.pods().await.first().and_then(kube::ResourceExt::uid).expect("a pod")
    }

    /// Its workload's pods that stay, by name.
    pub async fn pods(&self) -> Vec<Pod> {
        let these = ListParams::default().labels("app=chat");
        let pods = self.namespace.api::<Pod>().list(&these).await.map(|list| list.items).unwrap_or_default();
        pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }

    /// Whether it has so many pods, all of them new, and nothing is to be moved.
    pub async fn is_settled(&self, replicas: usize) -> bool {
        is_settled(&self.namespace, self.way, replicas).await
    }

    /// Resident memory of everything in front of its apps, in bytes.
    pub async fn memory(&self) -> u64 {
        if let Some(nginx) = &self.nginx {
            return nginx.memory();
        }
        let these = ListParams::default().labels("wspool.dev/pool=chat");
        let pods = self.namespace.api::<Pod>().list(&these).await.map(|list| list.items).unwrap_or_default();
        let processes = pods.iter().filter_map(kube::ResourceExt::uid).flat_map(|uid| fault::of_pod(&uid));
        processes.filter(|process| process.command.contains("wspool-sidecar")).map(|p| p.usage().resident).sum()
    }
}

async fn is_settled(namespace: &Namespace, way: Way, replicas: usize) -> bool {
    let get = async |what: &str| {
        let said = namespace.kubectl(&["get", what, "chat", "--output=json"], "").await;
        said.ok().and_then(|json| serde_json::from_str::<Value>(&json).ok()).unwrap_or_default()
    };
    let deployment = get("deployment").await;
    let status = &deployment["status"];
    let all = ["updatedReplicas", "readyReplicas"].iter().all(|count| status[count] == replicas);
    if !all || status["observedGeneration"] != deployment["metadata"]["generation"] {
        return false;
    }
    if way == Way::Nginx {
        return true;
    }
    let status = &get("websocketpool").await["status"];
    let ready = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    ready && status["slots"] == replicas && status["move"]["pending"] == 0
}

async fn until_rolled_out(namespace: &Namespace) {
    let status = ["rollout", "status", "deployment/chat", "--timeout=15s"];
    until("the workload is up", async || namespace.kubectl(&status, "").await).await;
}

async fn service(namespace: &Namespace) -> SocketAddr {
    let address = ["get", "service", "chat", "--output=jsonpath={.spec.clusterIP}"];
    until("the pool's Service", async || {
        let address = namespace.kubectl(&address, "").await?;
        let ip: IpAddr = address.parse().map_err(|error| format!("{address:?}: {error}"))?;
        Ok::<_, String>(SocketAddr::new(ip, 3000))
    })
    .await
}

/// nginx in front of the pods of a namespace. It ends when it is dropped.
struct Nginx {
    entry: SocketAddr,
    process: Child,
    following: JoinHandle<()>,
    _folder: TempDir,
}

impl Nginx {
    async fn start(namespace: &Namespace) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (entry, file) = (harness::ports::free(), folder.path().join("nginx.conf"));
        let slices: Api<EndpointSlice> = namespace.api();
        let first = until("pods that are ready", async || {
            let ready = ready(&slices).await;
            if ready.is_empty() { Err("there are none".to_owned()) } else { Ok(ready) }
        })
        .await;
        write(&file, entry, &first);
        let process = Command::new("nginx").arg("-c").arg(&file).spawn().expect("nginx runs");
        let pid = Pid::from_raw(process.id().try_into().expect("a process id"));
        let following = tokio::spawn(async move {
            let mut known = first;
            loop {
                tokio::time::sleep(LOOK).await;
                let now = ready(&slices).await;
                // While the API server is away the last list holds.
                if !now.is_empty() && now != known {
                    write(&file, entry, &now);
                    let _ = kill(pid, Signal::SIGHUP);
                    known = now;
                }
            }
        });
        Self { entry, process, following, _folder: folder }
    }

    fn memory(&self) -> u64 {
        let own = Usage::of(self.process.id()).resident;
        let workers = fault::processes().into_iter().filter(|process| process.command.contains("nginx: worker"));
        own + workers.map(|process| process.usage().resident).sum::<u64>()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.following.abort();
        let pid = Pid::from_raw(self.process.id().try_into().expect("a process id"));
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// The addresses of the pods that are ready, ascending.
async fn ready(slices: &Api<EndpointSlice>) -> Vec<String> {
    let these = ListParams::default().labels("kubernetes.io/service-name=chat");
    let Ok(list) = slices.list(&these).await else { return Vec::new() };
    let endpoints = list.items.into_iter().flat_map(|slice| slice.endpoints.unwrap_or_default());
    let ready = endpoints.filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true)));
    let mut addresses: Vec<String> = ready.flat_map(|endpoint| endpoint.addresses).collect();
    addresses.sort();
    addresses
}

fn write(file: &PathBuf, entry: SocketAddr, pods: &[String]) {
    let folder = file.parent().expect("a folder").display();
    let servers = pods.iter().map(|ip| format!("server {ip}:3000;")).collect::<Vec<_>>().join(" ");
    let text = format!(
        "daemon off; pid {folder}/pid; error_log {folder}/log; worker_processes 1; worker_shutdown_timeout 10s;
         events {{ worker_connections 8192; }}
         http {{
           access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
           uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
           upstream chat {{ hash $uri consistent; {servers} }}
           server {{
             listen {entry};
             location / {{
               proxy_pass http://chat; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;
               proxy_set_header Connection upgrade; proxy_connect_timeout 2s; proxy_read_timeout 1h;
             }}
           }}
         }}"
    );
    std::fs::write(file, text).expect("a folder that can be written");
}

//! One way to run a pool: its workload, its way in, its clients.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use harness::cluster::{Departure, Departures};
use harness::control_plane::{Access, Namespace};
use harness::until;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use kube::api::ListParams;
use operator::pool::WebSocketPool;
use serde_json::{Value, json};

use super::client::Crowd;
use super::fault;
use super::nginx::Nginx;

/// `limits.handshakesPerSecond` of the pools.
pub const HANDSHAKES_PER_SECOND: usize = 100;

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// wspool, and its plain Service in front.
    Service,
    /// wspool, with routers behind its Service.
    Router,
    /// [nginx](super::nginx::Nginx) with `hash $uri consistent`.
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

    /// Whether there are sidecars.
    pub fn is_wspool(self) -> bool {
        self != Self::Nginx
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
    departures: Departures,
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
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{app: chat}}}}, matchLabelKeys: [pod-template-hash]}}
      containers:
      - name: chat
        image: wspool.test/node:1
        args: [/pod/pod-rooms.js, $(POD_NAME)]
        env: [{{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
        ports: [{{containerPort: 3000}}]
        readinessProbe: {{tcpSocket: {{port: 3000}}, periodSeconds: 1}}
        # Without it the app has next to no share of the processors beside its sidecar, which asks for one.
        resources: {{requests: {{cpu: 200m}}}}
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
  replicas: 3
  port: 3000
  key: {{from: [{{path: '/rooms/{{key}}'}}]}}
  rebalance: {{settle: 2s, returnTimeout: 10s}}
  drain: {{timeout: 30s}}
  limits: {{handshakesPerSecond: {HANDSHAKES_PER_SECOND}}}
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
        let departures = Departures::watch(&namespace);
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
        Self { way, crowd: Crowd::start(clients, guests(clients), entry), namespace, nginx, departures }
    }

    /// Runs kubectl in its namespace; says what it complains about.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        self.namespace.kubectl(arguments, "").await.unwrap_or_else(|error| {
            eprintln!("kubectl {arguments:?}: {error}");
            String::new()
        })
    }

    /// What is there, for people.
    pub async fn state(&self) -> String {
        let pods = self.kubectl(&["get", "pods", "--output=wide"]).await;
        let pool = self.kubectl(&["get", "websocketpool", "--output=jsonpath={.items[*].status}"]).await;
        let operator = ["logs", "--namespace=wspool-system", "--selector=app.kubernetes.io/name=wspool", "--tail=40"];
        format!("{pods}\n{pool}\n{}", self.kubectl(&operator).await)
    }

    /// Wants so many pods. A pool is scaled itself: it empties the pods that go, and then scales its target.
    pub async fn scale(&self, replicas: usize) {
        let what = if self.way.is_wspool() { "websocketpool/chat" } else { "deployment/chat" };
        self.kubectl(&["scale", what, &format!("--replicas={replicas}")]).await;
    }

    /// Has the pool scaled by its connections from now on, or no more. Of nginx's connections Kubernetes knows nothing.
    pub async fn autoscale(&self, on: bool) {
        if self.way.is_wspool() {
            let bounds =
                json!({"minReplicas": 3, "maxReplicas": 4, "connectionsPerPod": self.crowd.members() * 35 / 100});
            let patch = json!({"spec": {"autoscaling": if on { bounds } else { Value::Null }}}).to_string();
            self.kubectl(&["patch", "websocketpool", "chat", "--type=merge", "--patch", &patch]).await;
        }
    }

    /// The pods that went, if they had sidecars.
    pub fn departures(&self) -> Vec<Departure> {
        self.departures.injected()
    }

    /// The names of its pods on a node.
    pub async fn pods_on(&self, node: &str) -> BTreeSet<String> {
        let pods = self.pods().await.into_iter();
        pods.filter(|pod| node_of(pod).as_deref() == Some(node)).map(|pod| pod.name_any()).collect()
    }

    /// Its workload's pods that stay, by name.
    pub async fn pods(&self) -> Vec<Pod> {
        self.staying("app=chat").await
    }

    /// Its routers.
    pub async fn routers(&self) -> Vec<Pod> {
        self.staying("wspool.dev/role=router").await
    }

    async fn staying(&self, labels: &str) -> Vec<Pod> {
        let these = ListParams::default().labels(labels);
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
        let processes = pods.iter().filter_map(Pod::uid).flat_map(|uid| fault::of_pod(&uid));
        processes.filter(|process| process.command.contains("wspool-sidecar")).map(|p| p.usage().resident).sum()
    }
}

/// How many guests may come: enough for a fourth pod.
fn guests(members: usize) -> usize {
    members * 3 / 10
}

/// The node of a pod.
pub fn node_of(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}

/// Asked often, so not by kubectl, which takes a tenth of a second of a processor each time.
async fn is_settled(namespace: &Namespace, way: Way, replicas: usize) -> bool {
    let Ok(deployment) = namespace.api::<Deployment>().get("chat").await else { return false };
    let generation = deployment.metadata.generation;
    let status = deployment.status.unwrap_or_default();
    let all = [status.updated_replicas, status.ready_replicas, status.replicas];
    let all = all.iter().all(|count| count.and_then(|count| usize::try_from(count).ok()) == Some(replicas));
    if !all || status.observed_generation != generation {
        return false;
    }
    if !way.is_wspool() {
        return true;
    }
    let pool = namespace.api::<WebSocketPool>().get("chat").await;
    let Some(status) = pool.ok().and_then(|pool| pool.status) else { return false };
    let is_ready = |condition: &Condition| condition.type_ == "Ready" && condition.status == "True";
    let ready = status.conditions.iter().any(is_ready);
    ready && usize::try_from(status.slots) == Ok(replicas) && status.moving.pending == 0
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

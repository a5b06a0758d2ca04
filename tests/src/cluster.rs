//! Whole nodes with real pods: a pool `chat`, whose app is a Node server that knows nothing of wspool, and clients that come
//! through the pool's Service. One scene at a time is in the cluster.

mod departures;
pub mod readme;

use std::io::Read as _;
use std::net::SocketAddr;

use flate2::read::GzDecoder;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use ring::{Compiled, Placement, Version};

use crate::Crowd;
use crate::control_plane::{Access, Namespace};
use crate::crowd::Life;
use crate::helm::Release;
use crate::wait::{equal, until};
pub use departures::{Departure, Departures};

/// What makes pods of the target pods of the pool.
pub const LABEL: &str = r#"{"spec":{"template":{"metadata":{"labels":{"wspool.dev/pool":"chat"}}}}}"#;
/// The port of the app, and of the pool's Service.
const PORT: u16 = 3000;
/// `kubectl` waits so long by itself, and then fails: a rollout takes longer than other things that tests wait for.
pub const TIMEOUT: &str = "--timeout=180s";
/// Namespaces of scenes have this label.
const MARK: &str = "wspool.test/scene";
const VALUES: &str = "metricsApi: {enabled: true}";

/// A pool and its target, before both have met.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The script in the image and its arguments.
    pub app: &'static str,
    /// A further line of the container.
    pub container: &'static str,
    /// A further line of the pod.
    pub pod: &'static str,
    /// Further lines of the pool's spec.
    pub pool: &'static str,
}

/// A server made with `ws`, moved quickly.
pub const PLAN: Plan = Plan { app: "/pod/pod-server.js, $(POD_NAME)", container: "", pod: "", pool: PACE };
/// A pace that is over soon.
const PACE: &str = "rebalance: {settle: 1s, rate: 200}";

impl Plan {
    /// The Deployment, which knows nothing of the pool.
    pub fn target(&self) -> String {
        let Self { app, container, pod, .. } = self;
        format!(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: chat}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: chat}}}}
  template:
    metadata: {{labels: {{app: chat}}}}
    spec:
      {pod}
      containers:
      - name: chat
        image: wspool.test/node:1
        args: [{app}]
        env: [{{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
        ports: [{{containerPort: {PORT}}}]
        readinessProbe: {{tcpSocket: {{port: {PORT}}}, periodSeconds: 1}}
        {container}
"
        )
    }

    /// The pool.
    pub fn pool(&self) -> String {
        format!(
            "
apiVersion: wspool.dev/v1alpha1
kind: WebSocketPool
metadata: {{name: chat}}
spec:
  target: {{apiVersion: apps/v1, kind: Deployment, name: chat}}
  port: {PORT}
  key: {{from: [{{query: user}}]}}
  {}
",
            self.pool
        )
    }
}

/// A pool in a namespace, its clients, and the pods that went.
pub struct Scene {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its clients.
    pub crowd: Crowd,
    departures: Departures,
}

impl Scene {
    /// A workload of two pods in a cluster that has nothing else.
    pub async fn alone(purpose: &str, plan: Plan) -> Self {
        let access = Access::shared();
        let others = ["delete", "namespace", "--selector", MARK, TIMEOUT];
        access.kubectl(&others, "").await.unwrap_or_else(|error| panic!("another scene does not go: {error}"));
        let namespace = Namespace::create(&access, purpose).await;
        let mark = ["label", "namespace", namespace.name(), &format!("{MARK}={purpose}")].map(str::to_owned);
        access.kubectl(&mark, "").await.expect("a label");
        namespace.apply(&plan.target()).await.expect("the workload is accepted");
        let scene = Self { departures: Departures::watch(&namespace), namespace, crowd: Crowd::default() };
        scene.rolled_out().await;
        scene
    }

    /// A stable pool of two pods, by the chart as it is installed for all scenes.
    pub async fn new(purpose: &str, plan: Plan) -> Self {
        install().await;
        let scene = Self::alone(purpose, plan).await;
        scene.namespace.apply(&plan.pool()).await.expect("the pool is accepted");
        scene.kubectl(&["patch", "deployment", "chat", "--patch", LABEL]).await;
        scene.rolled_out().await;
        scene.stable(2).await;
        scene
    }

    /// So many clients come, and are at their owners.
    pub async fn fill(&mut self, clients: usize) -> Owners {
        let entry = self.service().await;
        self.crowd.join_users(clients, &[entry]).await;
        self.at_home().await
    }

    /// Waits until the pool says that so many slots are held, and that nothing moves.
    pub async fn stable(&self, slots: usize) {
        let held = format!("{slots} slots are held by ready members, nothing is to be moved");
        until(&held, async || {
            let messages = "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}, \
                            {.status.conditions[?(@.type==\"Rebalancing\")].message}";
            let said = self.kubectl(&["get", "websocketpool", "chat", "--output", messages]).await;
            equal(&said, &held)
        })
        .await;
    }

    /// Waits until the pool is degraded in these words.
    pub async fn degraded(&self, words: &str) {
        until(&format!("the pool says: {words}"), async || {
            let condition = "jsonpath={.status.conditions[?(@.type==\"Degraded\")]}";
            let said = self.kubectl(&["get", "websocketpool", "chat", "--output", condition]).await;
            if said.contains(words) { Ok(()) } else { Err(said) }
        })
        .await;
    }

    /// Runs kubectl in the namespace.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        self.namespace.kubectl(arguments, "").await.unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// The one address that clients know.
    pub async fn service(&self) -> SocketAddr {
        let address = self.kubectl(&["get", "service", "chat", "--output", "jsonpath={.spec.clusterIP}"]).await;
        SocketAddr::new(address.parse().expect("an address"), PORT)
    }

    /// Waits until the target is rolled out.
    pub async fn rolled_out(&self) {
        self.kubectl(&["rollout", "status", "deployment/chat", TIMEOUT]).await;
    }

    /// What kubectl says of one field of an object.
    pub async fn field(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, "--output", &format!("jsonpath={{{path}}}")]).await
    }

    /// The name of a pod of the pool.
    pub async fn some_pod(&self) -> String {
        let first = "jsonpath={.items[0].metadata.name}";
        self.kubectl(&["get", "pods", "--selector=wspool.dev/pool", "--output", first]).await
    }

    /// Who owns what, by the placement that the pods have mounted.
    pub async fn owners(&self) -> Result<Owners, String> {
        let maps: Api<ConfigMap> = self.namespace.api();
        let map = maps.get("chat-placement").await.map_err(|error| error.to_string())?;
        let packed = map.binary_data.unwrap_or_default().remove("placement.json.gz").ok_or("no placement yet")?;
        let mut json = String::new();
        GzDecoder::new(packed.0.as_slice()).read_to_string(&mut json).map_err(|error| error.to_string())?;
        let placement: Placement = serde_json::from_str(&json).map_err(|error| error.to_string())?;
        placement.compile().map(Owners).map_err(|error| error.to_string())
    }

    /// Waits until each client is at the pod that owns its key; says who owns what.
    pub async fn at_home(&self) -> Owners {
        until("every client is at its owner", async || {
            let owners = self.owners().await?;
            let stray = |life: &Life| server(life).is_none() || server(life) != owners.of(&life.key);
            match self.crowd.lives().into_iter().find(stray) {
                None => Ok(owners),
                Some(life) => Err(format!("{life:?} belongs to {:?}", owners.of(&life.key))),
            }
        })
        .await
    }

    /// Waits until so many pods with a sidecar have gone.
    pub async fn have_gone(&self, count: usize) -> Vec<Departure> {
        until(&format!("{count} pods have gone"), async || {
            let gone = self.departures.injected();
            if gone.len() >= count { Ok(gone) } else { Err(format!("{} have", gone.len())) }
        })
        .await
    }

    /// Checks that nobody was cut off: each connection that has ended was told to come back.
    pub fn all_were_told(&self) {
        for life in self.crowd.lives() {
            for goodbye in life.goodbyes() {
                assert_eq!(goodbye.as_ref().map(|(code, _)| *code), Some(1012), "{life:?}");
            }
        }
    }

    /// Checks how often each was broken: so often as its key says, and once more if it had come in by a pod that went, as
    /// happens behind a plain Service.
    pub fn were_broken(&self, least: impl Fn(&str) -> usize) {
        for life in self.crowd.lives() {
            let least = least(&life.key);
            assert!((least..=least + 1).contains(&life.breaks()), "{least} times, or once more: {life:?}");
        }
    }

    /// Checks that those whose owner has changed were broken once, and nobody else; says how many they are.
    pub fn only_the_moved_were_broken(&self, before: &Owners, after: &Owners) -> usize {
        let lives = self.crowd.lives();
        for life in &lives {
            let must_move = before.of(&life.key) != after.of(&life.key);
            assert_eq!(life.breaks(), usize::from(must_move), "{life:?}");
        }
        lives.iter().map(Life::breaks).sum()
    }
}

/// Installs the chart, unless it is.
pub async fn install() {
    let flags = ["--install", "--create-namespace", "--wait", "--timeout=3m"];
    let installed = release().upgrade(VALUES, &flags).await;
    installed.unwrap_or_else(|error| panic!("the chart is not installed: {error}"));
}

/// Begins to install the chart: its objects are there, and the operator is about to start.
pub async fn begin_install() {
    let begun = release().upgrade(VALUES, &["--install", "--create-namespace", "--timeout=3m"]).await;
    begun.unwrap_or_else(|error| panic!("the chart is not installed: {error}"));
}

/// Uninstalls the chart, and waits until it is gone.
pub async fn uninstall() {
    let gone = release().uninstall(&["--ignore-not-found", "--wait", "--timeout=3m"]).await;
    gone.unwrap_or_else(|error| panic!("the chart is not uninstalled: {error}"));
}

/// The release of the chart that scenes share, as the README names it.
fn release() -> Release {
    Release::new(&Access::shared(), "wspool", "wspool")
}

/// Which pod owns which key.
pub struct Owners(Compiled);

impl Owners {
    /// The version of the placement that says so.
    pub fn version(&self) -> Version {
        self.0.version()
    }

    /// The name of the pod that owns a key.
    pub fn of(&self, key: &str) -> Option<String> {
        let slot = self.0.ring().owner(self.0.hash(key))?;
        self.0.holder(slot).map(|holder| holder.name.clone())
    }
}

/// The pod that a client is at: the server has greeted it with its name.
pub fn server(life: &Life) -> Option<String> {
    let greeting: serde_json::Value = serde_json::from_str(life.server()?).ok()?;
    greeting["server"].as_str().map(str::to_owned)
}

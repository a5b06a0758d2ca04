//! A pool in a whole cluster: the chart, real pods on three nodes, a Node server that knows nothing of wspool, and clients
//! that come through the pool's Service.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::GzDecoder;
use futures_util::TryStreamExt as _;
use harness::Crowd;
use harness::control_plane::{Access, Namespace};
use harness::crowd::Life;
use harness::helm::Release;
use harness::wait::{equal, until};
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt as _};
use ring::{Compiled, Placement};
use tokio::task::JoinHandle;

const POOL: &str = "
apiVersion: wspool.dev/v1alpha1
kind: WebSocketPool
metadata: {name: chat}
spec:
  target: {apiVersion: apps/v1, kind: Deployment, name: chat}
  port: 3000
  key: {from: [{query: user}]}
  rebalance: {settle: 1s, rate: 200}
";
/// A workload that was there before its pool. Its image is the server of `examples/node`.
const APP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: chat}
spec:
  replicas: 2
  selector: {matchLabels: {app: chat}}
  template:
    metadata: {labels: {app: chat}}
    spec:
      containers:
      - name: chat
        image: wspool.test/chat-node:1
        args: [--listen=0.0.0.0:3000, --name=$(POD_NAME)]
        env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        ports: [{containerPort: 3000}]
        readinessProbe: {tcpSocket: {port: 3000}, periodSeconds: 1}
";
const LABEL: &str = r#"{"spec":{"template":{"metadata":{"labels":{"wspool.dev/pool":"chat"}}}}}"#;
const CLIENTS: usize = 60;
/// `kubectl` waits so long by itself, and then fails: a rollout takes longer than other things that tests wait for.
const TIMEOUT: &str = "--timeout=180s";

/// A pool in a namespace, its clients, and the pods that went.
struct Scene {
    namespace: Namespace,
    crowd: Crowd,
    departures: Departures,
}

impl Scene {
    /// A pool of two pods, with all clients at their owners.
    async fn new(purpose: &str) -> Self {
        let access = Access::shared();
        // The first command. It is the same release for all tests.
        let release = Release::new(&access, "wspool-system", "wspool");
        let flags = ["--install", "--create-namespace", "--wait", "--timeout=3m"];
        release.upgrade("{}", &flags).await.unwrap_or_else(|error| panic!("the chart is not installed: {error}"));

        let namespace = Namespace::create(&access, purpose).await;
        namespace.apply(APP).await.expect("the workload is accepted");
        // The second and the third.
        namespace.apply(POOL).await.expect("the pool is accepted");
        let scene = Self { departures: Departures::watch(&namespace), namespace, crowd: Crowd::default() };
        scene.kubectl(&["patch", "deployment", "chat", "--patch", LABEL]).await;
        scene.rolled_out().await;
        scene.filled().await
    }

    /// Waits until the pool says that so many slots are held, and that nothing moves.
    async fn stable(&self, slots: usize) {
        let held = format!("{slots} slots are held by ready members, nothing is to be moved");
        until(&held, async || {
            let messages = "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}, \
                            {.status.conditions[?(@.type==\"Rebalancing\")].message}";
            let said = self.kubectl(&["get", "websocketpool", "chat", "--output", messages]).await;
            equal(&said, &held)
        })
        .await;
    }

    async fn filled(mut self) -> Self {
        self.stable(2).await;
        let entry = self.service().await;
        self.crowd.join_users(CLIENTS, &[entry]).await;
        self.at_home().await;
        self
    }

    async fn kubectl(&self, arguments: &[&str]) -> String {
        self.namespace.kubectl(arguments, "").await.unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// The one address that clients know.
    async fn service(&self) -> SocketAddr {
        let address = self.kubectl(&["get", "service", "chat", "--output", "jsonpath={.spec.clusterIP}"]).await;
        SocketAddr::new(address.parse().expect("an address"), 3000)
    }

    async fn rolled_out(&self) {
        self.kubectl(&["rollout", "status", "deployment/chat", TIMEOUT]).await;
    }

    /// Who owns what, by the placement that the pods have mounted.
    async fn owners(&self) -> Result<Owners, String> {
        let maps: Api<ConfigMap> = self.namespace.api();
        let map = maps.get("chat-placement").await.map_err(|error| error.to_string())?;
        let packed = map.binary_data.unwrap_or_default().remove("placement.json.gz").ok_or("no placement yet")?;
        let mut json = String::new();
        GzDecoder::new(packed.0.as_slice()).read_to_string(&mut json).map_err(|error| error.to_string())?;
        let placement: Placement = serde_json::from_str(&json).map_err(|error| error.to_string())?;
        placement.compile().map(Owners).map_err(|error| error.to_string())
    }

    /// Waits until nothing moves any more and each client is at the pod that owns its key; says who owns what.
    async fn at_home(&self) -> Owners {
        until("every client is at its owner", async || {
            let status = self.kubectl(&["get", "websocketpool", "chat", "--output", "jsonpath={.status}"]).await;
            let owners = self.owners().await?;
            let stray = |life: &Life| server(life).is_none() || server(life) != owners.of(&life.key);
            match self.crowd.lives().into_iter().find(stray) {
                None => Ok(owners),
                Some(life) => Err(format!("{life:?} belongs to {:?}; {status}", owners.of(&life.key))),
            }
        })
        .await
    }

    /// Waits until so many pods have gone, and checks how each went.
    async fn have_gone(&self, count: usize) {
        let gone = until(&format!("{count} pods have gone"), async || {
            let gone = self.departures.injected();
            if gone.len() >= count { Ok(gone) } else { Err(format!("{} have", gone.len())) }
        })
        .await;
        for Departure { pod, deadline } in gone {
            for container in containers(&pod) {
                let name = &container.name;
                let end = container.state.as_ref().and_then(|state| state.terminated.as_ref());
                let end = end.unwrap_or_else(|| panic!("{name} of {} did not end: {container:?}", pod.name_any()));
                // 137 would be a kill at the end of the grace period.
                assert_eq!(end.exit_code, 0, "{name} of {}: {end:?}", pod.name_any());
                let finished = end.finished_at.as_ref().expect("an end has a time").0;
                assert!(finished < deadline, "{name} of {} ended at {finished}, after {deadline}", pod.name_any());
            }
        }
    }

    /// Checks that nobody was cut off: each connection that has ended was told to come back.
    fn all_were_told(&self) {
        for life in self.crowd.lives() {
            for goodbye in life.goodbyes() {
                assert_eq!(goodbye.as_ref().map(|(code, _)| *code), Some(1012), "{life:?}");
            }
        }
    }
}

struct Owners(Compiled);

impl Owners {
    fn of(&self, key: &str) -> Option<String> {
        let slot = self.0.ring().owner(self.0.hash(key))?;
        self.0.holder(slot).map(|holder| holder.name.clone())
    }
}

/// The pod that a client is at: the server has greeted it with its name.
fn server(life: &Life) -> Option<String> {
    let greeting: serde_json::Value = serde_json::from_str(life.server()?).ok()?;
    greeting["server"].as_str().map(str::to_owned)
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status.flat_map(|status| status.container_statuses.iter().chain(&status.init_container_statuses).flatten())
}

/// A pod that went.
#[derive(Clone)]
struct Departure {
    /// As it was at last.
    pod: Pod,
    /// When its grace period was to end. Whoever removes the object in the end writes another time there.
    deadline: Timestamp,
}

/// The pods of a namespace that went.
struct Departures {
    gone: Arc<Mutex<Vec<Departure>>>,
    watching: JoinHandle<()>,
}

impl Departures {
    fn watch(namespace: &Namespace) -> Self {
        let gone = Arc::<Mutex<Vec<Departure>>>::default();
        let (pods, seen): (Api<Pod>, _) = (namespace.api(), Arc::clone(&gone));
        let watching = tokio::spawn(async move {
            let mut deadlines = BTreeMap::new();
            let mut events = pin!(watcher(pods, watcher::Config::default()));
            while let Some(event) = events.try_next().await.expect("the watch of pods goes on") {
                match event {
                    Event::Apply(pod) | Event::InitApply(pod) => {
                        if let Some(deadline) = &pod.metadata.deletion_timestamp {
                            deadlines.entry(pod.uid()).or_insert(deadline.0);
                        }
                    }
                    Event::Delete(pod) => {
                        let deadline = deadlines.remove(&pod.uid()).expect("it was told to go before it went");
                        seen.lock().unwrap_or_else(PoisonError::into_inner).push(Departure { pod, deadline });
                    }
                    Event::Init | Event::InitDone => {}
                }
            }
        });
        Self { gone, watching }
    }

    /// Those that had the sidecar.
    fn injected(&self) -> Vec<Departure> {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.iter().filter(|gone| gone.pod.labels().contains_key("wspool.dev/pool")).cloned().collect()
    }
}

impl Drop for Departures {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn install_apply_label_and_scale_move_the_first_connections_and_no_other() {
    let scene = Scene::new("grow").await;
    let before = scene.owners().await.expect("a placement");
    assert_eq!(scene.crowd.breaks(), 0);

    // The fourth command.
    scene.kubectl(&["scale", "deployment/chat", "--replicas=3"]).await;
    scene.rolled_out().await;
    scene.stable(3).await;
    let after = scene.at_home().await;
    let mut moved = 0;
    for life in scene.crowd.lives() {
        let must_move = before.of(&life.key) != after.of(&life.key);
        assert_eq!(life.breaks(), usize::from(must_move), "{life:?}");
        moved += usize::from(must_move);
    }
    // About a third of them, at random.
    assert!(moved > 0 && moved < CLIENTS / 2, "{moved} moved");
    scene.all_were_told();
}

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn a_rollout_lets_every_pod_go_when_its_connections_have_moved() {
    let scene = Scene::new("roll").await;
    scene.kubectl(&["rollout", "restart", "deployment/chat"]).await;
    scene.rolled_out().await;
    scene.have_gone(2).await;
    scene.at_home().await;
    assert!(scene.crowd.breaks() >= CLIENTS, "every pod was replaced");
    scene.all_were_told();
}

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn a_drained_node_lets_its_pods_go_when_their_connections_have_moved() {
    let scene = Scene::new("drain").await;
    let pod = scene.kubectl(&["get", "pods", "--selector=wspool.dev/pool", "--output=name"]).await;
    let pod = pod.lines().next().expect("a pod");
    let node = scene.kubectl(&["get", pod, "--output=jsonpath={.spec.nodeName}"]).await;
    scene.kubectl(&["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", TIMEOUT]).await;
    scene.rolled_out().await;
    scene.have_gone(1).await;
    scene.at_home().await;
    scene.all_were_told();
    scene.kubectl(&["uncordon", &node]).await;
}

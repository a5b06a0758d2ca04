//! A pool in a namespace, with everything real: the chart's operator, the webhook, the pods' processes, clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use kube::api::ListParams;
use ring::{Compiled, Holder, Placement, Slot, SlotId};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::{Access, Host, Namespace, Operators};
use crate::crowd::Habit;
use crate::{Crowd, Guestbook};

/// How often the slots' endpoints are looked up.
const LOOK: Duration = Duration::from_millis(50);
/// The port of a pod's sidecar.
const CLIENTS: u16 = 7480;

/// A pool named `chat` and its Deployment of that name, as users write them. `pool` is a further line of the pool's spec.
pub fn manifests(replicas: u32, pool: &str) -> String {
    let strategy = "strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}";
    workload("Deployment", replicas, strategy, pool)
}

/// The same with a StatefulSet.
pub fn stateful(replicas: u32, pool: &str) -> String {
    workload("StatefulSet", replicas, "podManagementPolicy: Parallel", pool)
}

fn workload(kind: &str, replicas: u32, how: &str, pool: &str) -> String {
    format!(
        "
apiVersion: wspool.dev/v1alpha1
kind: WebSocketPool
metadata: {{name: chat}}
spec:
  target: {{apiVersion: apps/v1, kind: {kind}, name: chat}}
  port: 3000
  key: {{from: [{{query: user}}]}}
  drain: {{timeout: 20s}}
  {pool}
---
apiVersion: apps/v1
kind: {kind}
metadata: {{name: chat}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: chat}}}}
  {how}
  template:
    metadata: {{labels: {{app: chat, wspool.dev/pool: chat}}}}
    spec:
      containers:
      - {{name: chat, image: chat, ports: [{{containerPort: 3000}}]}}
"
    )
}

/// A pace that is over soon.
pub const FAST: &str = "rebalance: {settle: 500ms, rate: 500, maxInFlight: 1000, returnTimeout: 5s}";

/// The scene.
pub struct Scene {
    /// Its namespace.
    pub namespace: Namespace,
    /// The operator.
    pub operators: Operators,
    /// The pods' processes.
    pub host: Host,
    /// Who was at which app.
    pub book: Guestbook,
    /// The clients.
    pub crowd: Crowd,
}

impl Scene {
    /// A stable pool with so many pods, run by so many operators.
    pub async fn new(purpose: &str, replicas: u32, operators: usize, pool: &str) -> Self {
        Self::of(&Access::shared(), purpose, replicas, operators, &manifests(replicas, pool)).await
    }

    /// The same at any control plane, and with any manifests of a pool `chat`.
    pub async fn of(access: &Access, purpose: &str, replicas: u32, operators: usize, manifests: &str) -> Self {
        let namespace = Namespace::create(access, purpose).await;
        let operators = Operators::install(&namespace, operators).await;
        let book = Guestbook::default();
        let host = Host::start(&namespace, &book);
        namespace.apply(manifests).await.expect("the pool and its workload are accepted");
        operators.stable("chat", replicas as usize).await;
        Self { namespace, operators, host, book, crowd: Crowd::default() }
    }

    /// So many clients come, each with a key of its own, and enter at any pod that is ready.
    pub async fn fill(&mut self, clients: usize) {
        for number in 0..clients {
            self.crowd.join_by(&format!("user-{number}"), Habit::Returns, self.host.directory());
        }
        self.crowd.settled().await;
    }

    /// So many clients come that enter at their owner, also when they come back, while the directory lives.
    pub async fn fill_at_owners(&mut self, clients: usize) -> SlotDirectory {
        let directory = SlotDirectory::follow(&self.namespace);
        for number in 0..clients {
            self.crowd.join_by(&format!("user-{number}"), Habit::Returns, directory.entries());
        }
        self.crowd.settled().await;
        directory
    }

    /// Runs kubectl in the namespace.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        self.namespace.kubectl(arguments, "").await.unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// Waits until the pool is stable with so many slots; who owns what then.
    pub async fn owners(&self, slots: usize) -> Owners {
        Owners::of(&self.operators.stable("chat", slots).await)
    }

    /// Panics unless exactly the clients whose owner is another one have been moved, once, and all are at home.
    pub async fn moved_exactly(&self, before: &Owners, after: &Owners) {
        self.crowd.at_home(|key| after.owner(key)).await;
        let mut moved = 0;
        for life in self.crowd.lives() {
            let must_move = before.owner(&life.key) != after.owner(&life.key);
            moved += usize::from(must_move);
            assert_eq!(life.breaks(), usize::from(must_move), "{life:?}");
        }
        assert!(moved > 0, "nothing had to move");
        assert_eq!(self.book.on_two_servers(), Vec::<String>::new());
    }
}

/// Who owns what, by the operator's view of its slots.
#[derive(Clone, Debug)]
pub struct Owners(Compiled);

impl Owners {
    /// By a view.
    pub fn of(view: &Value) -> Self {
        let slots = view["slots"].as_array().expect("slots").iter().map(|slot| {
            let id = slot["id"].as_u64().and_then(|id| u32::try_from(id).ok()).expect("an id");
            (SlotId(id), slot["member"].as_str().map(str::to_owned))
        });
        Self::by(slots)
    }

    /// By slots and the names of their holders.
    pub fn by(slots: impl Iterator<Item = (SlotId, Option<String>)>) -> Self {
        let slot = |(id, name): (SlotId, Option<String>)| {
            let holder = name.map(|name| Holder { uid: name.clone(), name, address: "127.0.0.1:1".into() });
            Slot { id, weight: 1, holder: holder.map(Into::into) }
        };
        let mut placement = Placement { pool_uid: "any".into(), ..Placement::default() };
        placement.table.slots = slots.map(slot).collect();
        Self(placement.compile().expect("a right placement"))
    }

    /// The pod that owns a key.
    pub fn owner(&self, key: &str) -> String {
        self.try_owner(key).expect("an owner")
    }

    fn try_owner(&self, key: &str) -> Option<String> {
        let slot = self.0.ring().owner(self.0.hash(key))?;
        Some(self.0.holder(slot)?.name.clone())
    }
}

/// Where each slot's endpoint is, as a client would look it up: it enters at its owner.
pub struct SlotDirectory {
    known: Arc<Mutex<Option<Known>>>,
    task: JoinHandle<()>,
}

/// The owners, and where they are.
type Known = (Owners, BTreeMap<String, SocketAddr>);

impl SlotDirectory {
    /// Follows the EndpointSlices of the slots of the pool `chat`.
    pub fn follow(namespace: &Namespace) -> Self {
        let slices = namespace.api::<EndpointSlice>();
        let known = Arc::new(Mutex::new(None));
        let written = Arc::clone(&known);
        let task = tokio::spawn(async move {
            let of_slots = ListParams::default().labels("wspool.dev/pool=chat,wspool.dev/slot");
            loop {
                if let Ok(list) = slices.list(&of_slots).await {
                    let read = read(&list.items);
                    *written.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Self { known, task }
    }

    /// Where a key's owner is.
    pub fn entries(&self) -> impl Fn(&str) -> Vec<SocketAddr> + Clone + Send + use<> {
        let known = Arc::clone(&self.known);
        move |key| {
            let known = known.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = known.as_ref().and_then(|(owners, places)| places.get(&owners.try_owner(key)?).copied());
            entry.into_iter().collect()
        }
    }
}

impl Drop for SlotDirectory {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where a Service leads, as a node knows it.
pub struct ServiceDirectory {
    known: Arc<Mutex<Vec<SocketAddr>>>,
    task: JoinHandle<()>,
}

impl ServiceDirectory {
    /// Follows the EndpointSlices of a Service, by their ready endpoints.
    pub fn follow(namespace: &Namespace, service: &str) -> Self {
        let slices = namespace.api::<EndpointSlice>();
        let known = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&known);
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let task = tokio::spawn(async move {
            loop {
                if let Ok(list) = slices.list(&of_service).await {
                    let endpoints = list.items.iter().flat_map(|slice| slice.endpoints.iter().flatten());
                    let ready = endpoints.filter(|endpoint| {
                        endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true))
                    });
                    let places = ready.flat_map(|endpoint| &endpoint.addresses);
                    let places = places.map(|ip| SocketAddr::new(ip.parse().expect("an address"), CLIENTS));
                    *written.lock().unwrap_or_else(PoisonError::into_inner) = places.collect();
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Self { known, task }
    }

    /// Where it leads now.
    pub fn places(&self) -> Vec<SocketAddr> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, for clients that look it up each time.
    pub fn entries(&self) -> impl Fn(&str) -> Vec<SocketAddr> + Clone + Send + use<> {
        let known = Arc::clone(&self.known);
        move |_| known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ServiceDirectory {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn read(slices: &[EndpointSlice]) -> Known {
    let mut places = BTreeMap::new();
    let slots = slices.iter().filter_map(|slice| {
        let slot = SlotId(slice.labels().get("wspool.dev/slot")?.parse().ok()?);
        let endpoint = slice.endpoints.iter().flatten().next();
        let name = endpoint.and_then(|endpoint| endpoint.target_ref.as_ref()?.name.clone());
        if let (Some(name), Some(endpoint)) = (&name, endpoint) {
            let ip = endpoint.addresses[0].parse().expect("an address");
            places.insert(name.clone(), SocketAddr::new(ip, CLIENTS));
        }
        Some((slot, name))
    });
    let owners = Owners::by(slots.collect::<Vec<_>>().into_iter());
    (owners, places)
}

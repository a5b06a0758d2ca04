//! Pools of a real API server: the chart's operator with its own rights, its webhook, real sidecars at the pods' addresses,
//! and real clients.

use std::collections::BTreeMap;

use harness::control_plane::{Access, Host, Namespace, Operators};
use harness::{Crowd, Guestbook};
use ring::{Compiled, Holder, Placement, Slot, SlotId};
use serde_json::Value;

/// A pool and its workload, as users write them.
fn manifests(replicas: u32, pool: &str) -> String {
    format!(
        "
apiVersion: wspool.dev/v1alpha1
kind: WebSocketPool
metadata: {{name: chat}}
spec:
  target: {{apiVersion: apps/v1, kind: Deployment, name: chat}}
  port: 3000
  key: {{from: [{{query: user}}]}}
  rebalance: {{settle: 500ms, rate: 500, maxInFlight: 1000, returnTimeout: 5s}}
  drain: {{timeout: 20s}}
  {pool}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: chat}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: chat}}}}
  template:
    metadata: {{labels: {{app: chat, wspool.dev/pool: chat}}}}
    spec:
      containers:
      - {{name: chat, image: chat, ports: [{{containerPort: 3000}}]}}
"
    )
}

struct Scene {
    namespace: Namespace,
    operators: Operators,
    host: Host,
    book: Guestbook,
    crowd: Crowd,
}

impl Scene {
    /// A pool with so many pods, stable, and so many clients at their owners.
    async fn new(purpose: &str, replicas: u32, clients: usize) -> Self {
        Self::with(purpose, replicas, clients, 1, "").await
    }

    async fn with(purpose: &str, replicas: u32, clients: usize, operators: usize, pool: &str) -> Self {
        let namespace = Namespace::create(&Access::shared(), purpose).await;
        let operators = Operators::install(&namespace, operators).await;
        let book = Guestbook::default();
        let host = Host::start(&namespace, &book);
        namespace.apply(&manifests(replicas, pool)).await.expect("the pool and its workload are accepted");
        operators.stable("chat", replicas as usize).await;
        let mut crowd = Crowd::default();
        let entries = host.entries();
        for number in 0..clients {
            crowd.join(&format!("user-{number}"), &entries);
        }
        crowd.settled().await;
        Self { namespace, operators, host, book, crowd }
    }

    async fn kubectl(&self, arguments: &[&str]) -> String {
        self.namespace.kubectl(arguments, "").await.unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }
}

/// Who owns what, by what the operator says of its slots.
struct Owners(Compiled);

impl Owners {
    fn of(view: &Value) -> Self {
        let slots = view["slots"].as_array().expect("slots").iter().map(|slot| {
            let id = SlotId(u32::try_from(slot["id"].as_u64().expect("an id")).expect("a small one"));
            let name = slot["member"].as_str().map(str::to_owned);
            let holder = name.map(|name| Holder { uid: name.clone(), name, address: "127.0.0.1:1".into() });
            Slot { id, weight: 1, holder }
        });
        let mut placement = Placement { pool_uid: "any".into(), ..Placement::default() };
        placement.table.slots = slots.collect();
        Self(placement.compile().expect("a right placement"))
    }

    fn owner(&self, key: &str) -> String {
        let slot = self.0.ring().owner(self.0.hash(key)).expect("an owner");
        self.0.holder(slot).expect("a holder").name.clone()
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_third_pod_gets_its_share_and_nobody_else_is_disturbed() {
    let scene = Scene::new("grow", 2, 60).await;
    let before = Owners::of(&scene.operators.stable("chat", 2).await);
    scene.crowd.at_home(|key| before.owner(key)).await;
    assert_eq!(scene.crowd.breaks(), 0);

    scene.kubectl(&["scale", "deployment/chat", "--replicas=3"]).await;
    let after = Owners::of(&scene.operators.stable("chat", 3).await);
    scene.crowd.at_home(|key| after.owner(key)).await;
    let mut moved = BTreeMap::new();
    for life in scene.crowd.lives() {
        let must_move = before.owner(&life.key) != after.owner(&life.key);
        assert_eq!(life.breaks(), usize::from(must_move), "{life:?}");
        *moved.entry(must_move).or_insert(0) += 1;
    }
    assert!(moved[&true] > 0 && moved[&false] > moved[&true], "{moved:?}");
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
    let _ = &scene.host;
}

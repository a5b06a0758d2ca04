//! One measurement: a pool of some size is formed, filled, left alone, and grows by one pod.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream;
use harness::control_plane::audit::Asked;
use harness::control_plane::kubelet::free_address;
use harness::control_plane::{Access, Audit, Namespace, Operators};
use harness::until;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use operator::pool::{PoolStatus, WebSocketPool};
use ring::Compiled;
use tempfile::TempDir;

use crate::fleet::{Fleet, Keys};
use crate::table::{Figure, Unit};
use crate::usage::{Usage, float};

const POOL: &str = "chat";
const REPLICA: usize = 0;
/// Where sidecars take placements, and grants.
const PLACEMENT: &str = "/v1/placement";
const GRANTS: &str = "/v1/evictions";
/// How often the fleet is looked at: what is measured is no finer.
const LOOK: Duration = Duration::from_millis(5);
/// How often the API server is asked, which costs the machine more.
const ASK: Duration = Duration::from_millis(250);
/// Longer than anything that ever comes.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the pool is left alone.
const IDLE: Duration = Duration::from_secs(10);
/// Pods that become ready at once.
const KUBELETS: usize = 8;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Pods, before one is added.
    pub pods: usize,
    /// Connections for each of them, each of a key of its own.
    pub connections: usize,
}

/// The operator over some time.
struct Phase {
    cpu: Duration,
    took: Duration,
    asked: BTreeMap<Asked, u64>,
}

/// The way of a placement, from the first sidecar that has it to the last one.
struct Spread {
    took: Duration,
    /// CPU time of all sidecars.
    fleet: Duration,
}

/// A pool under measurement.
struct Round {
    namespace: Namespace,
    operators: Operators,
    fleet: Rc<Fleet>,
    audit: Audit,
    _folder: TempDir,
}

/// Takes all figures once.
pub async fn measure(access: &Access, size: Size) -> Vec<Figure> {
    let mut round = Round::begin(access, size.pods).await;
    let fleet = Rc::clone(&round.fleet);
    let figures = tokio::select! {
        figures = round.run(size) => figures,
        never = fleet.churn() => match never {},
    };
    drop(fleet);
    round.end().await;
    figures
}

impl Round {
    async fn begin(access: &Access, pods: usize) -> Self {
        let namespace = Namespace::create(access, "bench").await;
        let operators = Operators::install(&namespace, 1).await;
        namespace.apply(&manifests(pods)).await.expect("the pool and its workload are accepted");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fleet = Rc::new(Fleet::new(keys(&namespace, folder.path()).await));
        let audit = Audit::of(access, namespace.name(), operators.name());
        Self { namespace, operators, fleet, audit, _folder: folder }
    }

    async fn run(&mut self, size: Size) -> Vec<Figure> {
        let Size { pods, connections } = size;
        self.started(pods).await;
        let mut figures = self.form(pods).await;
        let keys: Vec<String> = (0..pods * connections).map(|number| format!("user-{number}")).collect();
        self.fleet.connect(keys.iter().cloned()).await;
        self.told(|status| status.connections == keys.len() as u64).await;
        figures.extend(self.idle().await);
        figures.extend(self.grow(pods, &keys).await);
        let usage = self.usage();
        figures.push(bytes("operator: memory at the end (RSS)", usage.resident));
        figures.push(bytes("operator: most memory (VmHWM)", usage.peak));
        figures
    }

    /// All pods become ready, and get their first placement.
    async fn form(&mut self, pods: usize) -> Vec<Figure> {
        let phase = self.begin_phase();
        let began = Instant::now();
        self.become_ready().await;
        let ready = Instant::now();
        let (_, spread) = self.placed(pods).await;
        let placed = ready.elapsed();
        let sent = self.placing("forming", &spread);
        self.told(|status| status.slots as usize == pods && is(status, "Ready", "True")).await;
        let told = ready.elapsed();
        self.when("nothing moves", |fleet| fleet.agreed().is_some_and(|placement| !placement.moving())).await;
        let phase = phase.end(self);
        let mut figures = vec![
            seconds("forming: first pod Ready to last pod Ready", ready - began),
            seconds("forming: last pod Ready to every sidecar having the epoch", placed),
            seconds("forming: last pod Ready to the pool's status saying so, all objects written", told),
            count("forming: API writes", phase.writes()),
            count("forming: API reads", phase.reads()),
            seconds("forming: operator's CPU time", phase.cpu),
        ];
        figures.extend(sent);
        figures.extend(phase.writes_by_kind("forming"));
        figures
    }

    /// Nothing happens.
    async fn idle(&mut self) -> Vec<Figure> {
        let phase = self.begin_phase();
        tokio::time::sleep(IDLE).await;
        let phase = phase.end(self);
        vec![
            count(&format!("idle for {} s: API writes (the Lease)", IDLE.as_secs()), phase.writes()),
            Figure { name: "idle: operator's CPU, of one core".into(), value: phase.load(), unit: Unit::Percent },
            bytes("idle: operator's memory (RSS)", self.usage().resident),
        ]
    }

    /// One pod more.
    async fn grow(&mut self, pods: usize, keys: &[String]) -> Vec<Figure> {
        let before = self.fleet.agreed().expect("a placement that all have");
        let evicted = self.fleet.evicted();
        let phase = self.begin_phase();
        let replicas = format!("--replicas={}", pods + 1);
        let scaled = self.namespace.kubectl(&["scale", "deployment", POOL, &replicas], "").await;
        scaled.expect("the workload is scaled");
        self.started(pods + 1).await;
        self.become_ready().await;
        let ready = Instant::now();
        let (after, spread) = self.placed(pods + 1).await;
        let placed = ready.elapsed();
        let sent = self.placing("one pod more", &spread);
        let (before_move, began) = (self.usage(), Instant::now());
        let minimum = moved(&before, &after, keys);
        self.when("the move is over", |fleet| {
            fleet.agreed().is_some_and(|placement| !placement.moving() && placement.version() >= after.version())
        })
        .await;
        let moved = ready.elapsed();
        let granted = self.granting(before_move, began);
        let epoch = self.fleet.agreed().map_or(0, |placement| placement.version().epoch);
        let all = keys.len() as u64;
        self.told(|status| {
            let whole = status.connections == all && status.moving.pending == 0;
            whole && status.epoch >= epoch && is(status, "Rebalancing", "False")
        })
        .await;
        let phase = phase.end(self);
        let evicted = self.fleet.evicted() - evicted;
        assert_eq!(self.fleet.connections(), all, "every client is back");
        let mut figures = vec![
            seconds("one pod more: its being Ready to every sidecar having the epoch", placed),
            seconds("one pod more: from then to the end of the move", moved.saturating_sub(placed)),
            count("one pod more: connections moved", evicted),
            count("one pod more: connections that had to move", minimum),
            count("one pod more: API writes", phase.writes()),
            count("one pod more: API reads", phase.reads()),
            seconds("one pod more: operator's CPU time", phase.cpu),
            seconds("one pod more: the time that these are of", phase.took),
        ];
        figures.extend(sent);
        figures.extend(granted);
        figures.extend(phase.writes_by_kind("one pod more"));
        figures
    }

    /// What it took to give the placement to every sidecar.
    fn placing(&self, phase: &str, spread: &Spread) -> Vec<Figure> {
        let sent = self.fleet.traffic.take().remove(PLACEMENT);
        let sent = sent.expect("a placement was sent");
        vec![
            seconds(&format!("{phase}: first sidecar having the epoch to every sidecar having it"), spread.took),
            seconds(&format!("{phase}: the sidecars' CPU time in that, all on one thread"), spread.fleet),
            count(&format!("{phase}: placements sent"), sent.requests),
            Figure {
                name: format!("{phase}: size of a placement"),
                value: float(sent.bytes) / float(sent.requests),
                unit: Unit::KiB,
            },
        ]
    }

    /// What grants cost while connections moved.
    fn granting(&self, before: Usage, began: Instant) -> Vec<Figure> {
        let (cpu, took) = (self.usage().cpu.saturating_sub(before.cpu), began.elapsed());
        let grants = self.fleet.traffic.take().remove(GRANTS);
        let (requests, bytes) = grants.map_or((0, 0), |sent| (sent.requests, sent.bytes));
        let load = cpu.as_secs_f64() / took.as_secs_f64() * 100.0;
        vec![
            count("moving: grants", requests),
            Figure {
                name: "moving: size of a grant".into(),
                value: float(bytes) / float(requests.max(1)),
                unit: Unit::KiB,
            },
            Figure { name: "moving: operator's CPU, of one core".into(), value: load, unit: Unit::Percent },
        ]
    }

    async fn end(self) {
        let Self { namespace, operators, fleet, .. } = self;
        drop((operators, fleet));
        let admin = namespace.access();
        admin.kubectl(&["delete", "namespace", namespace.name(), "--wait=false"], "").await.expect("it is the bench's");
        let pods = ["delete", "pods", "--all", "--grace-period=0", "--force", "--wait=false"];
        namespace.kubectl(&pods, "").await.expect("no kubelet is waited for");
    }

    /// Waits until the workload has made its pods, and starts the sidecars of those that are new.
    async fn started(&self, count: usize) {
        let deployments: Api<Deployment> = self.namespace.api();
        let made = async || {
            let deployment = deployments.get(POOL).await.expect("the workload");
            deployment.status.and_then(|status| status.replicas).and_then(|made| usize::try_from(made).ok())
        };
        let began = Instant::now();
        while made().await != Some(count) {
            assert!(began.elapsed() < PATIENCE, "the workload never has {count} pods");
            tokio::time::sleep(ASK).await;
        }
    }

    /// Every pod that is not ready gets its sidecar, and is.
    async fn become_ready(&self) {
        let kubelet = self.namespace.kubelet();
        let mut pods = self.pods().await;
        pods.retain(|pod| pod.status.as_ref().is_none_or(|status| status.pod_ip.is_none()));
        let begin = stream::iter(pods).map(async |pod| {
            let ip = free_address();
            self.fleet.start(&pod.uid().expect("a stored pod has a UID"), ip).await;
            kubelet.ready(&pod, ip).await;
        });
        begin.buffer_unordered(KUBELETS).collect::<()>().await;
    }

    async fn pods(&self) -> Vec<Pod> {
        let these = ListParams::default().labels(&format!("{}={POOL}", operator::inject::POOL_LABEL));
        self.namespace.api().list(&these).await.expect("the pods").items
    }

    /// Waits until every sidecar has a placement with so many slots held.
    async fn placed(&self, slots: usize) -> (Compiled, Spread) {
        self.when("a sidecar has the placement", |fleet| fleet.newest().is_some_and(|newest| held(&newest) == slots))
            .await;
        let (fleet, began) = (Usage::of(std::process::id()).cpu, Instant::now());
        self.when("every sidecar has the placement", |fleet| {
            fleet.agreed().is_some_and(|placement| held(&placement) == slots)
        })
        .await;
        let (took, fleet) = (began.elapsed(), Usage::of(std::process::id()).cpu.saturating_sub(fleet));
        let placement = self.fleet.agreed().expect("it has just been there");
        (Compiled::clone(&placement), Spread { took, fleet })
    }

    async fn when(&self, what: &str, holds: impl Fn(&Fleet) -> bool) {
        let began = Instant::now();
        while !holds(&self.fleet) {
            let versions = || self.fleet.versions();
            assert!(began.elapsed() < PATIENCE, "never came true: {what}; sidecars have {:?}", versions());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the status of the pool satisfies.
    async fn told(&self, holds: impl Fn(&PoolStatus) -> bool) {
        let pools: Api<WebSocketPool> = self.namespace.api();
        let began = Instant::now();
        loop {
            let status = pools.get(POOL).await.expect("the pool").status.unwrap_or_default();
            if holds(&status) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "the status stays at {status:?}");
            tokio::time::sleep(ASK).await;
        }
    }

    fn usage(&self) -> Usage {
        Usage::of(self.operators.pid(REPLICA))
    }

    fn begin_phase(&mut self) -> Begun {
        self.audit.take();
        self.fleet.traffic.take();
        Begun { usage: self.usage(), at: Instant::now() }
    }
}

/// A phase that has begun.
struct Begun {
    usage: Usage,
    at: Instant,
}

impl Begun {
    fn end(self, round: &mut Round) -> Phase {
        let cpu = round.usage().cpu.saturating_sub(self.usage.cpu);
        Phase { cpu, took: self.at.elapsed(), asked: round.audit.take() }
    }
}

impl Phase {
    fn of(&self, is_write: bool) -> impl Iterator<Item = (&Asked, u64)> {
        self.asked.iter().filter(move |(asked, _)| asked.is_write() == is_write).map(|(asked, count)| (asked, *count))
    }

    fn writes(&self) -> u64 {
        self.of(true).map(|(_, count)| count).sum()
    }

    fn reads(&self) -> u64 {
        self.of(false).map(|(_, count)| count).sum()
    }

    fn writes_by_kind(&self, phase: &str) -> Vec<Figure> {
        let name = |asked: &Asked| format!("{phase}: {} {}", asked.verb, asked.resource);
        self.of(true).map(|(asked, number)| count(&name(asked), number)).collect()
    }

    fn load(&self) -> f64 {
        self.cpu.as_secs_f64() / self.took.as_secs_f64() * 100.0
    }
}

/// A pool and its workload, with the defaults of everything that has one.
fn manifests(pods: usize) -> String {
    format!(
        "
apiVersion: wspool.dev/v1alpha1
kind: WebSocketPool
metadata: {{name: {POOL}}}
spec:
  target: {{apiVersion: apps/v1, kind: Deployment, name: {POOL}}}
  port: 3000
  key: {{from: [{{query: user}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {POOL}}}
spec:
  replicas: {pods}
  selector: {{matchLabels: {{app: {POOL}}}}}
  template:
    metadata: {{labels: {{app: {POOL}, wspool.dev/pool: {POOL}}}}}
    spec:
      containers:
      - {{name: {POOL}, image: {POOL}, ports: [{{containerPort: 3000}}]}}
"
    )
}

/// What the pods' volumes bring, once it is there.
async fn keys(namespace: &Namespace, folder: &Path) -> Keys {
    let (maps, secrets): (Api<ConfigMap>, Api<Secret>) = (namespace.api(), namespace.api());
    let control = until("the operator's key in the ConfigMap", async || {
        let map = maps.get(&format!("{POOL}-placement")).await.map_err(|error| error.to_string())?;
        map.data.and_then(|mut data| data.remove("control.pem")).ok_or_else(|| "no key".to_owned())
    })
    .await;
    let peers = until("the pool's Secret", async || {
        let secret = secrets.get(&format!("{POOL}-peers")).await.map_err(|error| error.to_string())?;
        secret.data.and_then(|mut data| data.remove("keys")).ok_or_else(|| "no keys".to_owned())
    })
    .await;
    let keys = Keys { control: folder.join("control.pem"), peers: folder.join("keys") };
    std::fs::write(&keys.control, control).expect("a folder that can be written");
    std::fs::write(&keys.peers, peers.0).expect("a folder that can be written");
    keys
}

fn held(placement: &Compiled) -> usize {
    placement.placement().table.slots.iter().filter(|slot| slot.holder.is_some()).count()
}

/// How many keys have another owner.
fn moved(before: &Compiled, after: &Compiled, keys: &[String]) -> u64 {
    let owner = |placement: &Compiled, key: &String| placement.ring().owner(placement.hash(key));
    keys.iter().filter(|key| owner(before, key) != owner(after, key)).count() as u64
}

fn is(status: &PoolStatus, condition: &str, value: &str) -> bool {
    status.conditions.iter().any(|found| found.type_ == condition && found.status == value)
}

fn count(name: &str, value: u64) -> Figure {
    Figure { name: name.to_owned(), value: float(value), unit: Unit::Count }
}

fn bytes(name: &str, value: u64) -> Figure {
    Figure { name: name.to_owned(), value: float(value), unit: Unit::Bytes }
}

fn seconds(name: &str, value: Duration) -> Figure {
    Figure { name: name.to_owned(), value: value.as_secs_f64(), unit: Unit::Seconds }
}

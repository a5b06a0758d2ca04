//! The sidecars of many pods in one process: real ones, with their ports, their tokens and their registries, but without the
//! bytes. A connection is an entry in a registry; its client obeys a notice at once and comes back at once.
//!
//! Everything runs on one thread, inside a [`LocalSet`](tokio::task::LocalSet).

mod traffic;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::{self, FuturesUnordered};
use operator::inject::port;
use ring::claim::Arrival;
use ring::settings::Settings;
use ring::{Compiled, Version};
use sidecar::admission::{self, Decision, PLACEMENT_WAIT};
use sidecar::cli::Config;
use sidecar::metrics::Metrics;
use sidecar::registry::ConnectionId;
use sidecar::relay::Link;
use sidecar::sidecar::{Installed, Sidecar};
use sidecar::{control, evictor, server};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use traffic::{Sent, Traffic};

/// How often clients look whether they were told to go.
const LOOK: Duration = Duration::from_millis(10);
/// Where a pod's app would listen.
const APP: u16 = 3000;
/// Redirects that a client follows before it waits: sidecars do not get a placement in the same moment.
const REDIRECTS: u32 = 2;
/// Clients that enter at once.
const ENTERING: usize = 64;

/// The files that a pod's volumes bring.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The operator's public key.
    pub control: PathBuf,
    /// The pool's secret.
    pub peers: PathBuf,
}

/// The sidecars, and the clients of their pool.
pub struct Fleet {
    keys: Keys,
    members: RefCell<BTreeMap<String, Rc<Member>>>,
    tasks: RefCell<JoinSet<()>>,
    /// What the operator sends them.
    pub traffic: Traffic,
    /// Its sidecars stop when it is gone.
    stop: watch::Sender<bool>,
}

struct Member {
    sidecar: Arc<Sidecar>,
    held: RefCell<HashMap<ConnectionId, Rc<str>>>,
}

impl Fleet {
    /// One without sidecars.
    pub fn new(keys: Keys) -> Self {
        let (stop, _) = watch::channel(false);
        Self { keys, members: RefCell::default(), tasks: RefCell::default(), traffic: Traffic::default(), stop }
    }

    /// Starts the sidecar of a pod.
    pub async fn start(&self, uid: &str, ip: Ipv4Addr) {
        let bind = async |port| {
            let bound = TcpListener::bind((ip, port)).await;
            bound.unwrap_or_else(|error| panic!("cannot listen on {ip}:{port}: {error}"))
        };
        let (clients, operator) = (bind(port::CLIENTS).await, bind(port::CONTROL).await);
        let sidecar = Sidecar::new(self.config(uid, ip), Installed::default(), Metrics::default());
        let mut tasks = self.tasks.borrow_mut();
        tasks.spawn_local(server::run(Arc::clone(&sidecar), clients, || {}, self.stop.subscribe()));
        tasks.spawn_local(evictor::run(Arc::clone(&sidecar), self.stop.subscribe()));
        let count = axum::middleware::from_fn_with_state(self.traffic.clone(), Traffic::count);
        let routes = control::routes(Arc::clone(&sidecar)).layer(count);
        tasks.spawn_local(async move {
            axum::serve(operator, routes).await.expect("a control port that is served");
        });
        let member = Member { sidecar, held: RefCell::default() };
        self.members.borrow_mut().insert(uid.to_owned(), Rc::new(member));
    }

    fn config(&self, uid: &str, ip: Ipv4Addr) -> Config {
        Config {
            listen: (ip, port::CLIENTS).into(),
            upstream: Some((ip, APP).into()),
            control: Some((ip, port::CONTROL).into()),
            control_keys: Some(self.keys.control.clone()),
            jwks: None,
            redis: None,
            peer_keys: Some(self.keys.peers.clone()),
            api: None,
            api_token_file: None,
            metrics: None,
            settings: Settings::default(),
            placement: None,
            state_dir: None,
            install: None,
            uid: uid.to_owned(),
            advertise: format!("{ip}:{}", port::CLIENTS),
            workers: 1,
        }
    }

    /// The placement that every sidecar has, if it is the same.
    pub fn agreed(&self) -> Option<Arc<Compiled>> {
        let members = self.members.borrow();
        let mut placements = members.values().map(|member| member.sidecar.view().placement.clone());
        let first = placements.next()??;
        let version = |placement: Option<Arc<Compiled>>| placement.map(|placement| placement.version());
        placements.all(|other| version(other) == Some(first.version())).then_some(first)
    }

    /// The newest placement that a sidecar has.
    pub fn newest(&self) -> Option<Arc<Compiled>> {
        let members = self.members.borrow();
        let placements = members.values().filter_map(|member| member.sidecar.view().placement.clone());
        placements.max_by_key(|placement| placement.version())
    }

    /// What sidecars have now, for complaints.
    pub fn versions(&self) -> BTreeMap<Version, usize> {
        self.members.borrow().values().fold(BTreeMap::new(), |mut versions, member| {
            *versions.entry(member.sidecar.view().version()).or_default() += 1;
            versions
        })
    }

    /// Clients of these keys connect, one of each.
    pub async fn connect(&self, keys: impl IntoIterator<Item = String>) {
        let entering = keys.into_iter().map(|key| self.enter(key.into()));
        stream::iter(entering).buffer_unordered(ENTERING).collect::<()>().await;
    }

    /// Clients that are told to go come back: for ever.
    pub async fn churn(&self) -> Infallible {
        let mut returning = FuturesUnordered::new();
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                _ = looks.tick() => returning.extend(self.told().into_iter().map(|key| self.enter(key))),
                Some(()) = returning.next() => {}
            }
        }
    }

    /// Connections held.
    pub fn connections(&self) -> u64 {
        self.members.borrow().values().map(|member| member.sidecar.registry().held()).sum()
    }

    /// Connections evicted so far.
    pub fn evicted(&self) -> u64 {
        self.members.borrow().values().map(|member| member.sidecar.registry().totals().evicted).sum()
    }

    /// The keys of connections that were told to go. They are gone.
    fn told(&self) -> Vec<Rc<str>> {
        let mut told = Vec::new();
        for member in self.members.borrow().values() {
            let mut registry = member.sidecar.registry();
            if registry.leaving() == 0 {
                continue;
            }
            let mut held = member.held.borrow_mut();
            let gone: Vec<ConnectionId> = held.keys().copied().filter(|id| registry.confirm(*id).is_some()).collect();
            for id in gone {
                registry.remove(id);
                told.extend(held.remove(&id));
            }
            drop(registry);
            member.sidecar.released.notify_waiters();
        }
        told
    }

    /// A client connects: it enters anywhere, and gets to where its key is.
    async fn enter(&self, key: Rc<str>) {
        let began = Instant::now();
        let mut at = None;
        let mut redirects = 0;
        loop {
            let Some(member) = self.member(at.as_deref()) else {
                // Its sidecar is not of this fleet any more.
                at = None;
                tokio::time::sleep(PLACEMENT_WAIT).await;
                continue;
            };
            match admission::admit(&member.sidecar, &key, Arrival::Owner).await {
                Decision::Here(place) => {
                    let id = place.register(Arc::new(Link::new()));
                    member.sidecar.metrics.handshake(began.elapsed());
                    member.held.borrow_mut().insert(id, key);
                    return;
                }
                Decision::There(peer) => at = Some(peer.uid),
                Decision::Refused(_) => at = None,
            }
            redirects += 1;
            if redirects > REDIRECTS {
                tokio::time::sleep(PLACEMENT_WAIT).await;
            }
        }
    }

    /// A sidecar by its UID; without one, any.
    fn member(&self, uid: Option<&str>) -> Option<Rc<Member>> {
        let members = self.members.borrow();
        match uid {
            Some(uid) => members.get(uid).cloned(),
            None => members.values().next().cloned(),
        }
    }
}

//! The operator in a cluster: pools and pods come from an API server, and placements are kept there.
//!
//! ```text
//!  API server ──watch──► Index ─┬──► webhook: what a pod needs (every replica)
//!                               │
//!  Lease ──► Candidate ──► leader: one Steward for each pool (one replica)
//!                               ├─ Feeder: Index + /scale ──Input──► Driver ──HTTP──► sidecars
//!                               │                                      └──► ConfigMap <pool>-placement
//!                               └─ Upkeep: PoolView ──► Services, endpoints, routers, deletion costs, scale, status, events
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`ask`] | a request to the API server, with its deadline |
//! | [`pod`], [`index`], [`watches`] | what is known of pods and pools, and how it is heard |
//! | [`lease`] | who leads |
//! | [`keys`] | the secrets that the operator makes |
//! | [`store`] | the ConfigMap of a placement |
//! | [`target`], [`replicas`] | the workload of a pool, and how many replicas it should have |
//! | [`autoscaler`], [`figure`] | who scales a pool, and by which number |
//! | [`objects`], [`router`] | the Services of a pool and of its slots, and its routers |
//! | [`status`], [`notice`], [`trouble`] | what is said of a pool |
//! | [`feeder`], [`upkeep`], [`steward`] | what is done for one pool |
//!
//! The modules that decide do no I/O: `pod`, `index`, `replicas`, `objects`, `router`, `status`, `notice`, `trouble`,
//! `autoscaler`, `figure`, and the election in `lease`.

pub mod ask;
pub mod autoscaler;
pub mod feeder;
pub mod figure;
pub mod index;
pub mod keys;
pub mod lease;
pub mod notice;
pub mod objects;
pub mod pod;
pub mod replicas;
pub mod router;
pub mod routes;
pub mod status;
pub mod steward;
pub mod store;
pub mod target;
pub mod trouble;
pub mod upkeep;
pub mod watches;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::http::StatusCode;
use axum::routing::get;
use axum_server::tls_rustls::RustlsConfig;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::{Recorder, Reporter};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};

use crate::admin::{self, Views};
use crate::certificate::keeper::{Keeper, KeeperError, Place};
use crate::certificate::{Certificate, CertificateError};
use crate::control::Control;
use crate::inject::Sidecar;
use crate::metrics_api::front_proxy;
use crate::metrics_api::reviews::Reviews;
use crate::metrics_api::trust::Trust;
use crate::metrics_api::{self, MetricsApi};
use crate::webhook::{self, Webhook};
use ask::Kube;
use index::PoolKey;
use keys::KeysError;
use lease::Candidate;
use steward::{Means, Shown, Steward};
use watches::SharedIndex;

/// The name in events.
const CONTROLLER: &str = "wspool.dev/operator";

/// How long a question about somebody's rights may take.
const REVIEW: Duration = Duration::from_secs(3);

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The operator's own namespace.
    pub namespace: String,
    /// The UID of its pod.
    pub pod_uid: String,
    /// The namespaces of pools; none means all.
    pub watch_namespaces: Vec<String>,
    /// The Lease, in its own namespace.
    pub lease: String,
    /// The Secret with the key that signs control requests, in its own namespace.
    pub keys_secret: String,
    /// The webhook, if it is to be served.
    pub webhook: Option<WebhookOptions>,
    /// The sidecars that it injects, and runs as routers.
    pub sidecar: Sidecar,
    /// Where metrics and health are answered.
    pub metrics: Option<SocketAddr>,
    /// Where `GET /v1/pools` is answered.
    pub admin: Option<SocketAddr>,
}

/// The webhook.
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    /// Where it listens.
    pub address: SocketAddr,
    /// The `MutatingWebhookConfiguration`.
    pub configuration: String,
    /// The Secret of its certificate.
    pub secret: String,
    /// The Service by which the API server reaches it.
    pub service: String,
    /// Where the metrics API listens, if it is to be served: with the same certificate, by the same Service.
    pub metrics_api: Option<SocketAddr>,
}

/// Why it could not begin, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no way to an API server.
    #[error("no API server: {0}")]
    NoServer(Box<kube::Error>),
    /// There is no key to sign with.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A port cannot be bound.
    #[error("--{flag} {address}: cannot listen there: {source}")]
    Bind {
        /// The flag.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The webhook has no certificate.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// Its certificate cannot be served.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A port has stopped answering.
    #[error("the {0} port failed: {1}")]
    Serve(&'static str, std::io::Error),
    /// A task ended that should run as long as the process.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
    /// A task panicked.
    #[error("a task ended: {0}")]
    Task(#[from] JoinError),
}

/// A checked operator, with its ports bound, that has not begun.
pub struct Cluster {
    options: Options,
    kube: Kube,
    means: Means,
    webhook: Option<Serving>,
    metrics: Option<TcpListener>,
    admin: Option<TcpListener>,
}

/// A webhook with its certificate.
struct Serving {
    listener: std::net::TcpListener,
    keeper: Keeper,
    certificate: Certificate,
    sidecar: Sidecar,
    metrics: Option<MetricsServing>,
}

/// The metrics API, with the Service that leads to it.
struct MetricsServing {
    listener: std::net::TcpListener,
    service: (String, String),
}

impl Cluster {
    /// Finds the API server, binds the ports, and makes what must be there: the key, and the webhook's certificate.
    pub async fn build(options: Options) -> Result<Self, Error> {
        let kube = Kube::infer().await.map_err(|error| Error::NoServer(Box::new(error)))?;
        let metrics = bind("metrics", options.metrics).await?;
        let admin = bind("admin", options.admin).await?;
        let signer = keys::signer(&kube, &options.namespace, &options.keys_secret).await?;
        let webhook = match &options.webhook {
            Some(webhook) => Some(Serving::build(&kube, &options, webhook).await?),
            None => None,
        };
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(options.pod_uid.clone()) };
        let means = Means {
            kube: kube.clone(),
            public_key: signer.public().to_owned(),
            control: Control::signed(signer),
            recorder: Recorder::new(kube.client(), reporter),
            shown: Shown::default(),
            sidecar: options.sidecar.clone(),
            injects: options.webhook.is_some(),
            serves_metrics: options.webhook.as_ref().is_some_and(|webhook| webhook.metrics_api.is_some()),
        };
        Ok(Self { options, kube, means, webhook, metrics, admin })
    }

    /// Runs until `shutdown` resolves, then gives the Lease back. Every task has ended when it returns.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Self { options, kube, means, webhook, metrics, admin } = self;
        let (stop_work, stopped) = watch::channel(false);
        let (stop_lease, lease_stopped) = watch::channel(false);
        let (leads_until, leading) = watch::channel(None);
        let (missing, unread) = watch::channel(usize::MAX);
        let index = SharedIndex::default();
        let mut tasks = JoinSet::new();

        let (client, namespaces, watched) = (kube.client(), options.watch_namespaces.clone(), index.clone());
        let stop = stopped.clone();
        tasks.spawn(async move {
            until_stopped(watches::run(client, &namespaces, watched, missing), stop).await;
            ("the watches", Ok(()))
        });
        let views: Views = {
            let shown = means.shown.clone();
            Arc::new(move || shown.views())
        };
        if let Some(listener) = metrics {
            let routes = admin::observation(Arc::clone(&views)).merge(readiness(unread.clone())).merge(figures(&index));
            let serving = admin::serve(listener, routes, told(stopped.clone()));
            tasks.spawn(async { ("the metrics port", serving.await.map_err(|error| Error::Serve("metrics", error))) });
        }
        if let Some(listener) = admin {
            let routes = admin::pools(Arc::clone(&views)).merge(admin::observation(views));
            let serving = admin::serve(listener, routes, told(stopped.clone()));
            tasks.spawn(async { ("the admin port", serving.await.map_err(|error| Error::Serve("admin", error))) });
        }
        if let Some(serving) = webhook {
            let tls = RustlsConfig::from_config(Arc::new(serving.certificate.server_config()?));
            let known = index.clone();
            let pools: webhook::Pools = Arc::new(move |namespace, name| known.lock().facts(namespace, name));
            let routes = webhook::routes(Webhook { sidecar: serving.sidecar, pools });
            let (certificate, renewed) = watch::channel(serving.certificate);
            if let Some(metrics) = serving.metrics {
                let tls = RustlsConfig::from_config(Arc::new(renewed.borrow().server_config()?));
                let (found, front_proxy) = watch::channel(None);
                let following = front_proxy::follow(kube.client(), found);
                let trust = Trust::new(&kube, metrics.service, renewed, front_proxy.clone(), tls.clone());
                let reviews = Reviews::new(&kube.apart(REVIEW));
                let routes = metrics_api::routes(MetricsApi { index: index.clone(), front_proxy, reviews });
                let (begun, ready) = oneshot::channel();
                let serving = webhook::serve(metrics.listener, routes, tls, stopped.clone());
                // Until then connections wait; told to stop before, there is nothing to serve.
                let served = async { if ready.await.is_ok() { serving.await } else { Ok(()) } };
                let stop = stopped.clone();
                tasks.spawn(async {
                    until_stopped(Box::pin(async { tokio::join!(following, trust.keep(begun)) }), stop).await;
                    ("the trust in the metrics API", Ok(()))
                });
                tasks.spawn(async {
                    ("the metrics API", served.await.map_err(|error| Error::Serve("metrics API", error)))
                });
            }
            let keeping = serving.keeper.keep(certificate, tls.clone(), stopped.clone());
            tasks.spawn(async {
                keeping.await;
                ("the keeper of the certificate", Ok(()))
            });
            let served = webhook::serve(serving.listener, routes, tls, stopped.clone());
            tasks.spawn(async { ("the webhook", served.await.map_err(|error| Error::Serve("webhook", error))) });
        }
        let work = lead(means, index, unread, leading);
        tasks.spawn(async move {
            let ended = until_stopped(work, stopped).await;
            ("the leader", ended.map_or(Ok(()), Err))
        });
        let candidate = Candidate::new(&kube, &options.namespace, &options.lease, &options.pod_uid);
        let mut election = tokio::spawn(candidate.run(leads_until, lease_stopped));

        let result = tokio::select! {
            Some(ended) = tasks.join_next() => finished(ended),
            ended = &mut election => ended.map_err(Error::from).and(Err(Error::Ended("the election"))),
            () = shutdown => Ok(()),
        };
        stop_work.send_replace(true);
        while tasks.join_next().await.is_some() {}
        // Only now: nothing is done any more in the name of this replica.
        stop_lease.send_replace(true);
        if !election.is_finished() {
            election.await?;
        }
        result
    }
}

/// A task that has ended while it should run.
fn finished(ended: Result<(&'static str, Result<(), Error>), JoinError>) -> Result<(), Error> {
    let (name, result) = ended?;
    result.and(Err(Error::Ended(name)))
}

/// Runs something that would not end until told to stop; drops it then.
async fn until_stopped<T>(work: impl Future<Output = T>, stop: watch::Receiver<bool>) -> Option<T> {
    tokio::select! {
        ended = work => Some(ended),
        () = told(stop) => None,
    }
}

async fn told(mut stop: watch::Receiver<bool>) {
    // Nobody left who could tell is the same as being told.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Ready once all lists have been read: from then on the webhook knows every pool.
fn readiness(unread: watch::Receiver<usize>) -> axum::Router {
    let answer = async move || match *unread.borrow() {
        0 => (StatusCode::OK, "ok\n"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "pools and pods have not been read yet\n"),
    };
    axum::Router::new().route("/readyz", get(answer))
}

/// Looks after all pools whenever this replica leads. Ends only when a part of it fails.
async fn lead(
    means: Means,
    index: SharedIndex,
    mut unread: watch::Receiver<usize>,
    mut leading: watch::Receiver<Option<Instant>>,
) -> Error {
    if unread.wait_for(|unread| *unread == 0).await.is_err() {
        return Error::Ended("the watches");
    }
    loop {
        if leading.wait_for(|until| until.is_some_and(|until| until > Instant::now())).await.is_err() {
            return Error::Ended("the election");
        }
        tracing::info!("this replica leads");
        tokio::select! {
            // First, so that nothing is done in a round that begins too late.
            biased;
            () = expired(leading.clone()) => tracing::warn!("this replica leads no longer"),
            ended = look_after(&means, &index) => return ended,
        }
    }
}

/// Resolves when the Lease was not renewed by its deadline.
async fn expired(mut leading: watch::Receiver<Option<Instant>>) {
    loop {
        let until = *leading.borrow_and_update();
        let Some(until) = until.filter(|until| *until > Instant::now()) else { return };
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => {}
            changed = leading.changed() => if changed.is_err() { return },
        }
    }
}

/// Has one steward for each pool. Dropping it ends them all.
async fn look_after(means: &Means, index: &SharedIndex) -> Error {
    let mut pools = index.lock().pools();
    let mut stewards = JoinSet::new();
    let mut at_work: BTreeMap<PoolKey, (String, AbortHandle)> = BTreeMap::new();
    loop {
        let wanted = pools.borrow_and_update().clone();
        at_work.retain(|key, (uid, steward)| {
            let stays = wanted.get(key) == Some(uid);
            if !stays {
                steward.abort();
            }
            stays
        });
        for (key, uid) in wanted {
            if let Entry::Vacant(vacant) = at_work.entry(key) {
                let state = index.lock().follow(vacant.key());
                let steward = Steward::new(means.clone(), vacant.key().clone(), uid.clone(), state);
                vacant.insert((uid, stewards.spawn(steward.run())));
            }
        }
        tokio::select! {
            changed = pools.changed() => if changed.is_err() { return Error::Ended("the index") },
            Some(ended) = stewards.join_next() => match ended {
                Err(error) if error.is_cancelled() => {}
                Err(error) => return Error::Task(error),
                Ok(never) => match never {},
            },
        }
    }
}

impl Serving {
    async fn build(kube: &Kube, all: &Options, options: &WebhookOptions) -> Result<Self, Error> {
        let listener = bind_now("webhook", options.address)?;
        let metrics = options.metrics_api.map(|address| {
            let service = (all.namespace.clone(), options.service.clone());
            bind_now("metrics-api", address).map(|listener| MetricsServing { listener, service })
        });
        let metrics = metrics.transpose()?;
        let place = Place {
            namespace: all.namespace.clone(),
            secret: options.secret.clone(),
            configuration: options.configuration.clone(),
            service: options.service.clone(),
        };
        let keeper = Keeper::new(kube.client(), place);
        let certificate = keeper.settle(SystemTime::now()).await?;
        Ok(Self { listener, keeper, certificate, sidecar: all.sidecar.clone(), metrics })
    }
}

/// The figures of the pools, by the index.
fn figures(index: &SharedIndex) -> axum::Router {
    let index = index.clone();
    admin::figures(Arc::new(move |key| {
        let pool = index.lock().resource(key)?;
        Some(figure::of(&pool, Timestamp::now()))
    }))
}

fn bind_now(flag: &'static str, address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let bound = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|source| Error::Bind { flag, address, source })
}

async fn bind(flag: &'static str, address: Option<SocketAddr>) -> Result<Option<TcpListener>, Error> {
    let Some(address) = address else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|source| Error::Bind { flag, address, source })
}

//! Looks after one pool while this operator leads: feeds its driver, and keeps the objects around it as they should be.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::runtime::events::Recorder;
use tokio::sync::watch;

use super::ask::Kube;
use super::feeder::Feeder;
use super::index::{PoolKey, PoolState};
use super::keys;
use super::objects::Owner;
use super::store::{self, PlacementMap};
use super::upkeep::Upkeep;
use crate::control::Control;
use crate::driver::{Driver, DriverError};
use crate::inject::Sidecar;
use crate::rebalance::view::PoolView;

/// How long passes before something is begun again that went wrong.
const AGAIN: Duration = Duration::from_secs(1);
/// The Secret of a pool: its name, and this.
const PEERS_SUFFIX: &str = "-peers";

/// What the pools look like now, as the admin port shows them.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<Mutex<BTreeMap<PoolKey, PoolView>>>);

impl Shown {
    /// All views.
    pub fn views(&self) -> Vec<PoolView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn show(&self, key: &PoolKey, view: &PoolView) {
        let view = PoolView { namespace: Some(key.namespace.clone()), ..view.clone() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), view);
    }

    fn hide(&self, key: &PoolKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// What stewards share.
#[derive(Clone)]
pub struct Means {
    /// The API server.
    pub kube: Kube,
    /// The client of control ports, which signs.
    pub control: Control,
    /// What sidecars check its signatures with: PEM.
    pub public_key: String,
    /// Where events go.
    pub recorder: Recorder,
    /// Where views go.
    pub shown: Shown,
    /// The sidecars that this operator injects, and runs as routers.
    pub sidecar: Sidecar,
    /// Whether it injects.
    pub injects: bool,
    /// Whether the metrics API is served: then every pool's figure is kept current.
    pub serves_metrics: bool,
}

/// One pool's.
pub struct Steward {
    means: Means,
    key: PoolKey,
    uid: String,
    state: watch::Receiver<PoolState>,
}

/// Takes a pool's view away when its steward ends, however it ends.
struct Exhibit<'a>(&'a Shown, &'a PoolKey);

impl Drop for Exhibit<'_> {
    fn drop(&mut self) {
        self.0.hide(self.1);
    }
}

impl Steward {
    /// A steward that has not begun.
    pub fn new(means: Means, key: PoolKey, uid: String, state: watch::Receiver<PoolState>) -> Self {
        Self { means, key, uid, state }
    }

    /// Looks after the pool until it is dropped.
    pub async fn run(self) -> Infallible {
        let Self { means, key, uid, state } = self;
        let _exhibit = Exhibit(&means.shown, &key);
        let image = means.injects.then(|| means.sidecar.image.clone());
        let (mut feeder, seen) = Feeder::new(means.kube.clone(), key.clone(), image, state.clone());
        let owner = Owner { key: key.clone(), uid: uid.clone(), port: None };
        let mut upkeep = Upkeep::new(means.clone(), owner.clone(), state.clone(), seen);
        let first = loop {
            match feeder.first().await {
                Ok(input) => break input,
                Err(refused) => upkeep.refuse(refused.reason, &refused.message).await,
            }
            feeder.changed().await;
        };
        let (inputs, input) = watch::channel(first);
        loop {
            let metadata = owner.metadata(store::name_of(&key.name));
            let mut map = PlacementMap::new(means.kube.clone(), metadata, &means.public_key, state.clone());
            let made = async {
                let peers = owner.metadata(format!("{}{PEERS_SUFFIX}", key.name));
                keys::make_peers(&means.kube, peers).await.map_err(|error| error.to_string())?;
                map.load().await.map_err(|error| error.to_string())
            };
            let saved = match made.await {
                Ok(saved) => saved,
                Err(error) => {
                    tracing::error!(pool = %key, "{error}");
                    upkeep.refuse("StateNotRead", &error).await;
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            let (mut driver, view) = Driver::new(input.clone(), &uid, saved, map, means.control.clone());
            let ended = tokio::select! {
                ended = driver.run() => ended,
                () = feeder.feed(&inputs) => DriverError::Input,
                () = upkeep.run(view) => DriverError::Input,
            };
            // What is in force is read again, and a term raised above it, if this operator still leads.
            tracing::warn!(pool = %key, error = %ended, "begins again");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

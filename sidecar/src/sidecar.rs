//! One sidecar: what its listeners and tasks share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ring::wire::{Peer, Report};
use tokio::sync::Notify;

use crate::cli::Config;
use crate::drain::DrainState;
use crate::grants::Bucket;
use crate::handshakes::Turnstile;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::plain::Forwarder;
use crate::registry::Registry;
use crate::view::View;

/// Shared by everything in the process.
#[derive(Debug)]
pub struct Sidecar {
    /// The checked configuration.
    pub config: Config,
    /// Counters for Prometheus.
    pub metrics: Metrics,
    /// Requests to other sidecars.
    pub peers: Peers,
    /// Plain HTTP to the app and to other sidecars.
    pub forwarder: Forwarder,
    /// The pace of handshakes towards the app.
    pub turnstile: Turnstile,
    /// Wakes whoever waits for a key to be released.
    pub released: Notify,
    /// Wakes the evictor: a grant has come in, or a drain has begun.
    pub evictions: Notify,
    registry: Mutex<Registry>,
    grant: Mutex<Option<Bucket>>,
    drain: Mutex<Option<DrainState>>,
    started: u64,
}

impl Sidecar {
    /// A sidecar that knows of no pool yet.
    pub fn new(config: Config, metrics: Metrics) -> Arc<Self> {
        let me = Peer { uid: config.uid.clone(), address: config.advertise.clone() };
        let view = View::new(me, config.settings.clone());
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Arc::new(Self {
            peers: Peers::new(config.uid.clone()),
            forwarder: Forwarder::default(),
            turnstile: Turnstile::default(),
            metrics,
            released: Notify::new(),
            evictions: Notify::new(),
            registry: Mutex::new(Registry::new(view)),
            grant: Mutex::new(None),
            drain: Mutex::new(None),
            started: u64::try_from(started).unwrap_or(u64::MAX),
            config,
        })
    }

    /// The connections and keys. Held for moments only, never across an await.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The grant in force.
    pub fn grant(&self) -> MutexGuard<'_, Option<Bucket>> {
        self.grant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The drain under way, if any.
    pub fn drain(&self) -> MutexGuard<'_, Option<DrainState>> {
        self.drain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool as it is known now.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(self.registry().view())
    }

    /// What this sidecar says of itself.
    pub fn report(&self) -> Report {
        let now = Instant::now();
        let drain = self.drain().clone();
        let app = self.metrics.app_health(self.turnstile.waiting());
        let registry = self.registry();
        let view = registry.view();
        let moved = registry.moved();
        let totals = registry.totals();
        Report {
            uid: view.me.uid.clone(),
            started: self.started,
            pool_uid: view.pool_uid().to_owned(),
            version: view.version(),
            slot: view.slot,
            draining: drain.is_some(),
            drain_seconds_left: drain.map(|drain| drain.left(now).as_secs()),
            connections: registry.held(),
            transit: registry.transit(),
            moved_keys: moved.keys,
            moved: moved.connections,
            moved_to: moved.to,
            evicted: totals.evicted,
            in_flight: registry.leaving(),
            returned: totals.returned,
            breaks: totals.breaks.clone(),
            app,
        }
    }
}

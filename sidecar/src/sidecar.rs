//! One sidecar: what its listeners and tasks share.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ring::load::Tally;
use ring::wire::{Peer, Report};
use tokio::sync::Notify;

use crate::api;
use crate::auth::control::ControlAuth;
use crate::auth::peer::PeerAuth;
use crate::auth::{KeyFile, since_1970_ms};
use crate::claims::Claims;
use crate::cli::Config;
use crate::drain::DrainState;
use crate::gateway::Visitors;
use crate::grants::Bucket;
use crate::handshakes::Turnstile;
use crate::jwks::Jwks;
use crate::messages::Messages;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::plain::forward::Forwarder;
use crate::redis::Redis;
use crate::registry::Registry;
use crate::retirement::Retirement;
use crate::sessions::Sessions;
use crate::view::View;

/// Shared by everything in the process.
#[derive(Debug)]
pub struct Sidecar {
    /// The checked configuration.
    pub config: Config,
    /// Counters for Prometheus.
    pub metrics: Metrics,
    /// Checks the operator's tokens. `None` on a loopback port without keys.
    pub control_auth: Option<ControlAuth>,
    /// What the app container's preStop hook proves itself with: good for draining only.
    pub hook_token: Option<String>,
    /// The tokens of the local API. `None` when whoever can reach it may use it.
    pub api_tokens: Option<KeyFile<Vec<u8>>>,
    /// Signs and checks requests between sidecars. `None` where peers are believed by their addresses.
    pub peer_auth: Option<Arc<PeerAuth>>,
    /// The keys that clients' tokens are checked with.
    pub jwks: Jwks,
    /// The pool's Redis.
    pub redis: Redis,
    /// Requests to other sidecars.
    pub peers: Peers,
    /// Shared with each request of theirs that is being answered.
    pub asked: Arc<()>,
    /// Plain HTTP to the app and to other sidecars.
    pub forwarder: Forwarder,
    /// The keys that are being claimed from their previous owners.
    pub claims: Claims,
    /// The pace of handshakes towards the app.
    pub turnstile: Turnstile,
    /// Who has asked the gateway how often.
    pub visitors: Mutex<Visitors>,
    /// Messages on their way to clients.
    pub messages: Messages,
    /// Sessions that span requests.
    pub sessions: Sessions,
    /// Wakes whoever waits for a key to be released, or to be known of again.
    pub released: Notify,
    /// Wakes whoever looks for the app to come back.
    pub drain_begun: Notify,
    /// Wakes the evictor: a grant has come in, or a drain has begun.
    pub evictions: Notify,
    registry: Mutex<Registry>,
    tally: Mutex<Tally>,
    grant: Mutex<Option<Bucket>>,
    drain: Mutex<Option<DrainState>>,
    retirement: Mutex<Retirement>,
    started: u64,
}

/// What was put into the folder that the app's container shares.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    /// What its preStop hook proves itself with.
    pub hook_token: Option<String>,
    /// The file with the token of the local API.
    pub api_token_file: Option<PathBuf>,
}

impl Sidecar {
    /// A sidecar that knows of no pool yet.
    pub fn new(config: Config, installed: Installed, metrics: Metrics) -> Arc<Self> {
        let me = Peer { uid: config.uid.clone(), address: config.advertise.clone() };
        let view = View::new(me, config.settings.clone());
        let peer_auth = config.peer_keys.clone().map(|file| Arc::new(PeerAuth::new(file)));
        Arc::new(Self {
            control_auth: config.control_keys.clone().map(ControlAuth::new),
            hook_token: installed.hook_token,
            api_tokens: config.api_token_file.clone().or(installed.api_token_file).map(api::tokens),
            jwks: Jwks::new(config.jwks.clone()),
            redis: Redis::new(config.redis.clone()),
            peers: Peers::new(config.uid.clone(), peer_auth.clone()),
            asked: Arc::default(),
            peer_auth,
            forwarder: Forwarder::default(),
            claims: Claims::default(),
            turnstile: Turnstile::default(),
            visitors: Mutex::default(),
            metrics,
            messages: Messages::default(),
            sessions: Sessions::default(),
            released: Notify::new(),
            drain_begun: Notify::new(),
            evictions: Notify::new(),
            registry: Mutex::new(Registry::new(view)),
            tally: Mutex::default(),
            grant: Mutex::new(None),
            drain: Mutex::new(None),
            retirement: Mutex::default(),
            started: since_1970_ms(),
            config,
        })
    }

    /// The connections and keys. Held for moments only, never across an await.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How loaded the slots are, where load decides.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The grant in force.
    pub fn grant(&self) -> MutexGuard<'_, Option<Bucket>> {
        self.grant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The drain under way, if any.
    pub fn drain(&self) -> MutexGuard<'_, Option<DrainState>> {
        self.drain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the slot was lost.
    pub fn retirement(&self) -> MutexGuard<'_, Retirement> {
        self.retirement.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool as it is known now.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(self.registry().view())
    }

    /// What this sidecar says of itself.
    pub fn report(&self) -> Report {
        let now = Instant::now();
        let drain = self.drain().clone();
        let retired = self.retirement().is_retired(now);
        let app = self.metrics.app_health(self.turnstile.waiting());
        let registry = self.registry();
        let view = registry.view();
        let (moved, pinned) = (registry.moved(), registry.pinned());
        let totals = registry.totals();
        let (held_messages, held_bytes) = registry.held_messages();
        Report {
            uid: view.me.uid.clone(),
            started: self.started,
            pool_uid: view.pool_uid().to_owned(),
            version: view.version(),
            slot: view.slot,
            draining: drain.is_some(),
            retired,
            drain_seconds_left: drain.map(|drain| drain.left(now).as_secs()),
            connections: registry.held(),
            trusted: registry.trusted(),
            transit: registry.transit(),
            moved_keys: moved.keys,
            moved: moved.connections,
            moved_to: moved.to,
            moved_pinned: moved.pinned,
            pinned_keys: pinned.keys,
            pinned: pinned.connections,
            pod_pinned_until: registry.pod_told(),
            evicted: totals.evicted,
            in_flight: registry.leaving(),
            returned: totals.returned,
            breaks: totals.breaks.clone(),
            held_messages: held_messages as u64,
            held_bytes: held_bytes as u64,
            redis: self.redis.health(),
            app,
        }
    }
}

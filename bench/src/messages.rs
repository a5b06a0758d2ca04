//! Messages from one server to the clients of another: straight to the owner, through Redis, and by Socket.IO.
//!
//! ```text
//!  core 1: node/measure.js                                 core 0
//!   the sending server ─┬─ POST ────► sidecar `near` ──► sidecar `far` ──────┐
//!                       ├─ PUBLISH ─► Redis ───────────► sidecar `far` ──────┤
//!                       └─ emit ────► Redis ───────────► node/socket-io.js ──┤
//!   the clients ◄────────────────────────────────────────────────────────────┘
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use harness::process::Process;
use harness::redis::Redis;
use harness::{App, Guestbook, Plan, Sidecar, ports};
use ring::settings::{Messages, Mounted, Published, Redis as RedisSpec, Settings};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::data_path::cores::Cores;
use crate::table::{Figure, Unit};

/// What the names of the sidecars' channels begin with.
const PREFIX: &str = "bench:";

/// How a message gets to the other server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the local API, straight to the sidecar that owns the key.
    Ring,
    /// Published in Redis, for the sidecar that listens to the key's channel.
    Redis,
    /// Emitted to a room by one Socket.IO server, for another, with the Redis adapter between them.
    SocketIo,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ring, Self::Redis, Self::SocketIo];

    /// What is written above its column.
    pub fn head(self) -> &'static str {
        match self {
            Self::Ring => "wspool, ring-routed",
            Self::Redis => "wspool, through Redis",
            Self::SocketIo => "Socket.IO's Redis adapter",
        }
    }

    /// What `ways.js` calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Redis => "redis",
            Self::SocketIo => "socket.io",
        }
    }
}

/// All servers of all ways, on a core of their own. They end when they are dropped.
#[derive(Debug)]
pub struct Servers {
    near: Sidecar,
    far: Sidecar,
    plan: Plan,
    socket_io: (Process, SocketAddr),
    redis: Redis,
    _app: App,
    _folder: TempDir,
}

impl Servers {
    /// Starts them.
    pub async fn start(cores: Cores) -> Self {
        cores.on_proxy_core(Self::start_here()).await
    }

    async fn start_here() -> Self {
        let redis = Redis::start().await;
        let app = App::start("app", &Guestbook::default()).await;
        let (near, far) = (sidecar("near", &app).await, sidecar("far", &app).await);
        let mut plan = Plan::with(settings(&redis));
        plan.hold(&[(0, &near), (1, &far)]);
        plan.publish(&[&near, &far]).await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = ports::free();
        let arguments = [script("socket-io.js"), address.port().to_string(), redis.url()];
        let process = Process::start("socket-io.js", Path::new("node"), arguments, &folder.path().join("log"));
        Self { near, far, plan, socket_io: (process, address), redis, _app: app, _folder: folder }
    }

    /// Sends for some seconds, each sender to a key of its own; an error is what the script said.
    pub async fn measure(&mut self, way: Way, senders: usize) -> Result<Vec<Figure>, String> {
        self.socket_io.0.check();
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let arguments = [script("measure.js"), self.setting(way, senders).to_string()];
        let mut process = Process::start("measure.js", Path::new("node"), arguments, &folder.path().join("log"));
        let status = process.ended().await;
        let said = process.log();
        let figures: Value = serde_json::from_str(&said).map_err(|_| format!("{}: {status}: {said}", way.head()))?;
        let name = if senders == 1 { "1 sender".to_owned() } else { format!("{senders} senders") };
        let figure = |what: &str, field: &str, unit| {
            let value = figures[field].as_f64();
            value
                .map(|value| Figure { name: format!("{name}: {what}"), value, unit })
                .ok_or_else(|| format!("no {field} in {said}"))
        };
        Ok(vec![
            figure("p50", "p50", Unit::Micros)?,
            figure("p99", "p99", Unit::Micros)?,
            figure("messages per second", "rate", Unit::Count)?,
            figure("CPU of sender and client for each", "cpu", Unit::Micros)?,
        ])
    }

    /// What `measure.js` is to do.
    fn setting(&self, way: Way, senders: usize) -> Value {
        let (from, to) = match way {
            Way::Ring => (self.near.api.expect("a local API").to_string(), self.far.listen),
            Way::Redis => (self.redis.url(), self.far.listen),
            Way::SocketIo => (self.redis.url(), self.socket_io.1),
        };
        let keys = self.plan.keys_of(&self.far, senders);
        json!({"way": way.name(), "from": from, "to": to, "prefix": PREFIX, "keys": keys})
    }
}

async fn sidecar(name: &str, app: &App) -> Sidecar {
    let sidecar = Sidecar::named(name).with_file("--peer-keys", "peers", "secret-between-sidecars");
    sidecar.upstream(app.address).with_api().start().await
}

/// A pool that trusts every key, with a Redis.
fn settings(redis: &Redis) -> Settings {
    let url = redis.path("url");
    std::fs::write(&url, redis.url()).expect("a file in a temporary folder");
    let redis = RedisSpec {
        url_from: Mounted::File(url),
        ca_from: None,
        prefix: Some(PREFIX.into()),
        messages: Published::Text,
    };
    Settings { messages: Messages { allow_unverified: true }, redis: Some(redis), ..Settings::default() }
}

/// A script of `bench/node`.
fn script(name: &str) -> String {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "node"].iter().collect();
    folder.join(name).to_string_lossy().into_owned()
}

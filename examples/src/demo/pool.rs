//! The pool: chat servers with their sidecars, a router, and the operator, all real processes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ring::wire::Report;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::Error;
use super::ports::Ports;
use super::process::{Launcher, Process};
use super::view::View;

/// How long a process may take to answer after its start.
const START: Duration = Duration::from_secs(10);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(2);

/// The pool, and the processes that make it.
#[derive(Debug)]
pub struct Pool {
    launcher: Launcher,
    ports: Ports,
    http: Http,
    members_file: PathBuf,
    admin: SocketAddr,
    router: Addresses,
    /// Router and operator.
    backbone: Vec<Process>,
    addresses: BTreeMap<String, Addresses>,
    running: BTreeMap<String, Running>,
}

/// What decides where connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placing {
    /// Their keys.
    ByKey,
    /// How loaded the servers are.
    ByLoad,
}

/// A server and its sidecar.
#[derive(Debug)]
struct Running {
    app: Process,
    sidecar: Process,
}

/// Where a sidecar and its app listen.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    app: SocketAddr,
    listen: SocketAddr,
    control: SocketAddr,
    metrics: SocketAddr,
}

/// One entry of the members file.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    address: SocketAddr,
    control: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
}

impl Pool {
    /// Starts the router and the operator; the pool has no servers yet. `folder` is the demo's own.
    pub async fn open(launcher: Launcher, folder: PathBuf, rate: u32, placing: Placing) -> Result<Self, Error> {
        let mut ports = Ports::new();
        std::fs::create_dir_all(&folder).map_err(Error::io("making the pool's folder"))?;
        let pool_file = folder.join("pool.yaml");
        std::fs::write(&pool_file, pool_yaml(rate, placing)).map_err(Error::io("writing the pool's file"))?;
        let mut pool = Self {
            launcher,
            http: Http::new(),
            members_file: folder.join("members.yaml"),
            admin: ports.free()?,
            router: Addresses::free(&mut ports)?,
            ports,
            backbone: Vec::new(),
            addresses: BTreeMap::new(),
            running: BTreeMap::new(),
        };
        pool.list(&[])?;
        let mut router = pool.start_sidecar("router", pool.router, &["--role", "router"])?;
        pool.answers(&mut router, pool.router.control, "/v1/status").await?;
        pool.backbone.push(router);
        let mut operator = pool.launcher.start(
            "operator",
            "wspool-operator",
            &[
                "standalone",
                "--pool",
                &pool_file.to_string_lossy(),
                "--members",
                &pool.members_file.to_string_lossy(),
                "--admin",
                &pool.admin.to_string(),
            ],
        )?;
        pool.answers(&mut operator, pool.admin, "/v1/pools").await?;
        pool.backbone.push(operator);
        Ok(pool)
    }

    /// Where clients enter.
    pub fn entry(&self) -> SocketAddr {
        self.router.listen
    }

    /// Starts a server and its sidecar, at the addresses that they had if they ran before. They are not listed yet.
    pub async fn start(&mut self, name: &str) -> Result<(), Error> {
        let addresses = if let Some(known) = self.addresses.get(name) {
            *known
        } else {
            let free = Addresses::free(&mut self.ports)?;
            self.addresses.insert(name.into(), free);
            free
        };
        let app = start_chat_server(&self.launcher, name, addresses.app)?;
        let state = self.members_file.with_file_name(name);
        std::fs::create_dir_all(&state).map_err(Error::io(format!("making the state folder of {name}")))?;
        let (upstream, state) = (addresses.app.to_string(), state.to_string_lossy().into_owned());
        let own = ["--upstream", &upstream, "--state-dir", &state];
        let mut sidecar = self.start_sidecar(&format!("{name}-sidecar"), addresses, &own)?;
        self.answers(&mut sidecar, addresses.control, "/v1/status").await?;
        self.running.insert(name.into(), Running { app, sidecar });
        Ok(())
    }

    /// Writes the members file: the router and these servers, all at once.
    pub fn list(&self, servers: &[&str]) -> Result<(), Error> {
        let router =
            Listed { name: "router", address: self.router.listen, control: self.router.control, role: Some("router") };
        let known = servers.iter().filter_map(|name| Some((*name, self.addresses.get(*name)?)));
        let listed = known.map(|(name, at)| Listed { name, address: at.listen, control: at.control, role: None });
        let members: Vec<Listed> = std::iter::once(router).chain(listed).collect();
        let text = serde_yaml::to_string(&members).map_err(|e| Error::Machine(e.to_string()))?;
        let draft = self.members_file.with_extension("draft");
        let written = std::fs::write(&draft, text).and_then(|()| std::fs::rename(&draft, &self.members_file));
        written.map_err(Error::io("writing the members file"))
    }

    /// Stops a server that has been emptied, and its sidecar.
    pub async fn stop(&mut self, name: &str) -> Result<(), Error> {
        if let Some(running) = self.running.remove(name) {
            running.sidecar.stop().await?;
            running.app.stop().await?;
        }
        Ok(())
    }

    /// Kills a server and its sidecar, as the loss of their pod would.
    pub async fn kill(&mut self, name: &str) -> Result<(), Error> {
        if let Some(running) = self.running.remove(name) {
            let (app, sidecar) = tokio::join!(running.app.kill(), running.sidecar.kill());
            app?;
            sidecar?;
        }
        Ok(())
    }

    /// Stops what still runs, the operator first: it would take the others for lost.
    pub async fn close(self) -> Result<(), Error> {
        for process in self.backbone.into_iter().rev() {
            process.stop().await?;
        }
        for running in self.running.into_values() {
            running.sidecar.kill().await?;
            running.app.kill().await?;
        }
        Ok(())
    }

    /// An error when a process has ended that should run.
    pub fn check(&mut self) -> Result<(), Error> {
        self.backbone.iter_mut().try_for_each(Process::check)?;
        self.running.values_mut().try_for_each(|running| running.app.check().and_then(|()| running.sidecar.check()))
    }

    /// What the operator says now.
    pub async fn view(&self) -> Result<View, Error> {
        let pools: Vec<View> = self.http.get(self.admin, "/v1/pools").await?;
        pools.into_iter().next().ok_or_else(|| Error::Machine("the operator knows no pool".into()))
    }

    /// What a server's sidecar says of itself.
    pub async fn report(&self, name: &str) -> Result<Report, Error> {
        let addresses = self.addresses.get(name).copied().unwrap_or(self.router);
        self.http.get(addresses.control, "/v1/status").await
    }

    fn start_sidecar(&self, name: &str, at: Addresses, more: &[&str]) -> Result<Process, Error> {
        let (listen, control, metrics) = (at.listen.to_string(), at.control.to_string(), at.metrics.to_string());
        let mut arguments = vec!["--listen", &listen, "--control", &control, "--metrics", &metrics];
        arguments.extend(more);
        self.launcher.start(name, "wspool-sidecar", &arguments)
    }

    /// Waits until a process answers.
    async fn answers(&self, process: &mut Process, at: SocketAddr, path: &str) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            process.check()?;
            match self.http.get::<serde_json::Value>(at, path).await {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > START => return Err(error),
                Err(_) => sleep(LOOK).await,
            }
        }
    }
}

/// Starts a chat server on its own.
pub fn start_chat_server(launcher: &Launcher, name: &str, listen: SocketAddr) -> Result<Process, Error> {
    launcher.start(name, "chat-server", &["--listen", &listen.to_string(), "--name", name])
}

fn pool_yaml(rate: u32, placing: Placing) -> String {
    let placing = match placing {
        Placing::ByKey => "key: {from: [{query: user}]}",
        Placing::ByLoad => "strategy: LeastConnections",
    };
    format!(
        "apiVersion: wspool.dev/v1alpha1
kind: WebSocketPool
metadata: {{name: demo}}
spec:
  {placing}
  rebalance: {{settle: 1s, rate: {rate}, returnTimeout: 10s}}
"
    )
}

impl Addresses {
    fn free(ports: &mut Ports) -> Result<Self, Error> {
        Ok(Self { app: ports.free()?, listen: ports.free()?, control: ports.free()?, metrics: ports.free()? })
    }
}

/// A client for small JSON answers.
#[derive(Clone, Debug)]
struct Http(Client<HttpConnector, Empty<Bytes>>);

impl Http {
    fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    async fn get<T: DeserializeOwned>(&self, at: SocketAddr, path: &str) -> Result<T, Error> {
        let url = format!("http://{at}{path}");
        let failed = |why: String| Error::Request { url: url.clone(), why };
        let uri = url.parse().map_err(|e: http::uri::InvalidUri| failed(e.to_string()))?;
        let asking = async {
            let response = self.0.get(uri).await.map_err(|e| failed(e.to_string()))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|e| failed(e.to_string()))?.to_bytes();
            if !status.is_success() {
                return Err(failed(format!("{status}: {}", String::from_utf8_lossy(&body))));
            }
            serde_json::from_slice(&body).map_err(|e| failed(e.to_string()))
        };
        timeout(REQUEST, asking).await.unwrap_or_else(|_| Err(failed("no answer".into())))
    }
}

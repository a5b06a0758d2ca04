//! What stands between the clients and the app.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use harness::process::Process;
use harness::{Plan, Sidecar, ports, until};
use ring::settings::Settings;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::cores::Cores;
use crate::usage::Usage;

/// Kinds of proxies. All place connections by the parameter `user`, of which there is one place only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// A sidecar that owns all keys.
    Wspool,
    /// Two sidecars: the second owns all keys, and clients enter at the first.
    Transit,
    /// nginx with its own buffer sizes.
    Nginx,
    /// HAProxy.
    #[value(name = "haproxy")]
    HaProxy,
    /// None at all.
    Direct,
}

impl Kind {
    /// In the order of the table.
    pub const ALL: [Self; 5] = [Self::Wspool, Self::Transit, Self::Nginx, Self::HaProxy, Self::Direct];

    /// Its name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wspool => "wspool",
            Self::Transit => "wspool, through a peer",
            Self::Nginx => "nginx",
            Self::HaProxy => "HAProxy",
            Self::Direct => "no proxy",
        }
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    processes: Vec<u32>,
    _running: Running,
}

/// What ends when it is dropped.
#[derive(Debug)]
enum Running {
    Nothing,
    Sidecars { _all: Vec<Sidecar> },
    Program { _process: Process, _folder: TempDir },
}

impl Proxy {
    /// Starts one before an app, and waits until it accepts connections.
    pub async fn start(kind: Kind, cores: Cores, app: SocketAddr) -> Self {
        cores.on_proxy_core(Self::start_here(kind, app)).await
    }

    async fn start_here(kind: Kind, app: SocketAddr) -> Self {
        match kind {
            Kind::Wspool => {
                let own = Sidecar::named("own").upstream(app).start().await;
                Self::sidecars(vec![own]).await
            }
            Kind::Transit => {
                let entry = Sidecar::named("entry").upstream(app).start().await;
                let owner = Sidecar::named("owner").upstream(app).start().await;
                Self::sidecars(vec![entry, owner]).await
            }
            Kind::Nginx => Self::program("nginx", &["-c"], nginx, app).await,
            Kind::HaProxy => Self::program("haproxy", &["-db", "-f"], haproxy, app).await,
            Kind::Direct => Self { address: app, processes: Vec::new(), _running: Running::Nothing },
        }
    }

    /// The last owns all keys.
    async fn sidecars(mut all: Vec<Sidecar>) -> Self {
        let mut plan = unlimited();
        plan.hold(&[(0, all.last().expect("a sidecar"))]);
        plan.publish(&all.iter().collect::<Vec<_>>()).await;
        let processes = all.iter_mut().map(|sidecar| sidecar.process().pid()).collect();
        Self { address: all[0].listen, processes, _running: Running::Sidecars { _all: all } }
    }

    async fn program(
        name: &str,
        flags: &[&str],
        configuration: impl Fn(&Path, SocketAddr, SocketAddr) -> String,
        app: SocketAddr,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = ports::free();
        let file = folder.path().join("configuration");
        std::fs::write(&file, configuration(folder.path(), address, app)).expect("a file in a temporary folder");
        let arguments = flags.iter().map(AsRef::as_ref).chain([file.as_os_str()]);
        let mut process = Process::start(name, Path::new(name), arguments, &folder.path().join("log"));
        until(&format!("{name} accepts connections"), async || {
            process.check();
            TcpStream::connect(address).await.map_err(|error| error.to_string())
        })
        .await;
        let processes = vec![process.pid()];
        Self { address, processes, _running: Running::Program { _process: process, _folder: folder } }
    }

    /// The CPU time that it has used.
    pub fn cpu(&self) -> Duration {
        self.processes.iter().map(|pid| Usage::precise_cpu(*pid)).sum()
    }

    /// Its resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        self.processes.iter().map(|pid| Usage::of(*pid).resident).sum()
    }
}

/// A pool without a limit of handshakes per second: the others have none either.
pub fn unlimited() -> Plan {
    let mut settings = Settings::default();
    settings.limits.handshakes_per_second = 0;
    Plan::with(settings)
}

/// One process, so that nothing is left when it is killed: what carries bytes is the same with a master.
fn nginx(folder: &Path, listen: SocketAddr, app: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 20000;
error_log stderr warn;
pid {folder}/pid;
events {{ worker_connections 19900; }}
http {{
  access_log off;
  client_body_temp_path {folder}/client_body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream app {{ hash $arg_user consistent; server {app}; }}
  server {{
    listen {listen} backlog=4096;
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
    }}
  }}
}}
"
    )
}

fn haproxy(_: &Path, listen: SocketAddr, app: SocketAddr) -> String {
    format!(
        "global
  nbthread 1
  maxconn 9900
defaults
  mode http
  option forwardfor
  timeout connect 5s
  timeout http-request 10s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
frontend clients
  bind {listen} backlog 4096
  default_backend apps
backend apps
  balance url_param user
  hash-type consistent
  server app {app}
"
    )
}

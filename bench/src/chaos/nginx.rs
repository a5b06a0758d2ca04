//! nginx in front of the pods of a namespace, as an ingress would have it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use harness::control_plane::Namespace;
use harness::until;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::fault;
use crate::usage::Usage;

/// Its pods that are ready are looked up this often, as an ingress would hear of them.
const LOOK: Duration = Duration::from_millis(250);

/// nginx with `hash $uri consistent`, which is told of the pods that are ready and reloaded when they change. Its old workers
/// have five seconds for what they hold. It ends when it is dropped.
pub struct Nginx {
    /// Where clients enter.
    pub entry: SocketAddr,
    process: Child,
    following: JoinHandle<()>,
    _folder: TempDir,
}

impl Nginx {
    /// It is in front of the Service `chat`.
    pub async fn start(namespace: &Namespace) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (entry, file) = (harness::ports::free(), folder.path().join("nginx.conf"));
        let slices: Api<EndpointSlice> = namespace.api();
        let first = until("pods that are ready", async || {
            let ready = ready(&slices).await;
            if ready.is_empty() { Err("there are none".to_owned()) } else { Ok(ready) }
        })
        .await;
        write(&file, entry, &first);
        let process = Command::new("nginx").arg("-c").arg(&file).spawn().expect("nginx runs");
        let pid = Pid::from_raw(process.id().try_into().expect("a process id"));
        let following = tokio::spawn(async move {
            let mut known = first;
            loop {
                tokio::time::sleep(LOOK).await;
                let now = ready(&slices).await;
                // While the API server is away the last list holds.
                if !now.is_empty() && now != known {
                    write(&file, entry, &now);
                    let _ = kill(pid, Signal::SIGHUP);
                    known = now;
                }
            }
        });
        Self { entry, process, following, _folder: folder }
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        let own = Usage::of(self.process.id()).resident;
        let workers = fault::processes().into_iter().filter(|process| process.command.contains("nginx: worker"));
        own + workers.map(|process| process.usage().resident).sum::<u64>()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.following.abort();
        let pid = Pid::from_raw(self.process.id().try_into().expect("a process id"));
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// The addresses of the pods that are ready, ascending.
async fn ready(slices: &Api<EndpointSlice>) -> Vec<String> {
    let these = ListParams::default().labels("kubernetes.io/service-name=chat");
    let Ok(list) = slices.list(&these).await else { return Vec::new() };
    let endpoints = list.items.into_iter().flat_map(|slice| slice.endpoints.unwrap_or_default());
    let ready = endpoints.filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true)));
    let mut addresses: Vec<String> = ready.flat_map(|endpoint| endpoint.addresses).collect();
    addresses.sort();
    addresses
}

fn write(file: &PathBuf, entry: SocketAddr, pods: &[String]) {
    let folder = file.parent().expect("a folder").display();
    let servers = pods.iter().map(|ip| format!("server {ip}:3000;")).collect::<Vec<_>>().join(" ");
    let text = format!(
        "daemon off; pid {folder}/pid; error_log {folder}/log; worker_processes 1; worker_shutdown_timeout 5s;
         events {{ worker_connections 8192; }}
         http {{
           access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
           uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
           upstream chat {{ hash $uri consistent; {servers} }}
           server {{
             listen {entry};
             location / {{
               proxy_pass http://chat; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;
               proxy_set_header Connection upgrade; proxy_connect_timeout 2s; proxy_read_timeout 1h;
             }}
           }}
         }}"
    );
    std::fs::write(file, text).expect("a folder that can be written");
}

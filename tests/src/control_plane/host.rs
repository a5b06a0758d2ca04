//! Runs what pods of pools say, as a kubelet would: the app and its sidecar, at the pod's address.
//!
//! A pod is started as it was injected: the sidecar's variables, the files of its volumes and the preStop hook are those
//! that stand in it. Only folders and `0.0.0.0` are put in their place, because all pods share one machine.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};

use super::kubelet::free_address;
use super::{Kubelet, Namespace};
use crate::http::Http;
use crate::process::{Process, program};
use crate::{App, Guestbook, until};

/// How often pods are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Where the apps listen.
const APP_PORT: u16 = 3000;
const CLIENTS: u16 = 7480;
const METRICS: u16 = 7483;
/// The label of pods that are run here.
const POOL_LABEL: &str = "wspool.dev/pool";
/// The label of those among them that have no app.
const ROLE_LABEL: &str = "wspool.dev/role";
const SIDECAR: &str = "wspool-sidecar";
/// The Secret by which the sidecars of a pool know each other: its name behind the pool's.
const PEERS_SUFFIX: &str = "-peers";

/// The host of one namespace's pods. Their processes end when it is dropped.
///
/// It has a thread of its own, on which all its apps run: so they write the guestbook in the order in which things happened.
pub struct Host {
    pods: Pods,
    free: Addresses,
    thread: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
}

type Pods = Arc<Mutex<BTreeMap<String, Running>>>;
/// Addresses that the next pods get, before any new one.
type Addresses = Arc<Mutex<Vec<Ipv4Addr>>>;

/// A pod with its processes.
pub struct Running {
    /// Its name, which its app greets with.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Whether its kubelet has reported that it is ready.
    pub ready: bool,
    app: Option<App>,
    sidecar: Option<Process>,
    /// What its sidecar was started with.
    arguments: Vec<String>,
    leaving: bool,
    folder: TempDir,
}

impl Host {
    /// Runs the pods of a namespace as they come.
    pub fn start(namespace: &Namespace, book: &Guestbook) -> Self {
        let pods = Pods::default();
        let (stop, stopped) = oneshot::channel();
        let free = Addresses::default();
        let (work, book, running, given) = (namespace.clone(), book.clone(), Arc::clone(&pods), Arc::clone(&free));
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            LocalSet::new().block_on(&runtime, async {
                let work = Work::new(&work, book, running, given).await;
                tokio::select! {
                    () = work.run() => {}
                    _ = stopped => {}
                }
            });
        });
        Self { pods, free, thread: Some(thread), stop: Some(stop) }
    }

    /// Where clients may enter: the pods that are ready.
    pub fn entries(&self) -> Vec<SocketAddr> {
        entries(&self.pods)
    }

    /// The same, for clients that look it up each time.
    pub fn directory(&self) -> impl Fn(&str) -> Vec<SocketAddr> + Clone + Send + use<> {
        let pods = Arc::clone(&self.pods);
        move |_| entries(&pods)
    }

    /// The names of the pods that run, with their UIDs.
    pub fn names(&self) -> BTreeMap<String, String> {
        self.lock().values().map(|pod| (pod.uid.clone(), pod.name.clone())).collect()
    }

    /// The address of a pod.
    pub fn address(&self, name: &str) -> Ipv4Addr {
        self.lock().values().find(|pod| pod.name == name).unwrap_or_else(|| panic!("no pod {name}")).ip
    }

    /// Everything that Prometheus would read of the pods that are ready.
    pub async fn metrics(&self) -> String {
        let places: Vec<_> = self.lock().values().filter(|pod| pod.ready).map(|pod| pod.ip).collect();
        let mut text = String::new();
        for ip in places {
            let answer = Http::default().send(Method::GET, (ip, METRICS).into(), "/metrics", "").await;
            text += &answer.map(|answer| String::from_utf8_lossy(&answer.body).into_owned()).unwrap_or_default();
        }
        text
    }

    /// Kills everything in a pod at once, as when its node dies. The API still says that it runs.
    pub fn kill(&self, name: &str) {
        let mut pods = self.lock();
        let pod = pods.values_mut().find(|pod| pod.name == name).unwrap_or_else(|| panic!("no pod {name}"));
        pod.app = None;
        if let Some(mut sidecar) = pod.sidecar.take() {
            sidecar.kill();
        }
        pod.ready = false;
    }

    /// Gives an address to the next pod that comes, as networks do once its pod has ended.
    pub fn give_again(&self, address: Ipv4Addr) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(address);
    }

    /// Kills a pod's sidecar and starts it again, as a kubelet does with a container that has ended; its volumes stay.
    pub async fn restart_sidecar(&self, name: &str) {
        {
            let mut pods = self.lock();
            let pod = pods.values_mut().find(|pod| pod.name == name).unwrap_or_else(|| panic!("no pod {name}"));
            pod.sidecar.take().expect("it runs").kill();
            pod.start_sidecar();
        }
        let address = self.address(name);
        until("the pod's sidecar is ready again", async || {
            Http::default().send(Method::GET, (address, METRICS).into(), "/readyz", "").await.map(drop)
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        lock(&self.pods)
    }
}

impl Running {
    fn start_sidecar(&mut self) {
        let log = self.folder.path().join("log");
        self.sidecar = Some(Process::start(&self.name, &program(SIDECAR), &self.arguments, &log));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().expect("it is taken once").join();
        self.lock().clear();
        assert!(ended.is_ok() || std::thread::panicking(), "the host of the pods panicked");
    }
}

fn lock(pods: &Pods) -> MutexGuard<'_, BTreeMap<String, Running>> {
    pods.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entries(pods: &Pods) -> Vec<SocketAddr> {
    let pods = lock(pods);
    let open = pods.values().filter(|pod| pod.ready && !pod.leaving);
    open.map(|pod| SocketAddr::from((pod.ip, CLIENTS))).collect()
}

#[derive(Clone)]
struct Work {
    api: Api<Pod>,
    maps: Api<ConfigMap>,
    secrets: Api<Secret>,
    kubelet: Kubelet,
    book: Guestbook,
    http: Http,
    pods: Pods,
    free: Addresses,
}

impl Work {
    async fn new(namespace: &Namespace, book: Guestbook, pods: Pods, free: Addresses) -> Self {
        // Its connections are driven on this thread.
        let client = namespace.access().client().await;
        let namespace = namespace.name();
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        Self {
            kubelet: Kubelet::new(api.clone()),
            api,
            maps: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client, namespace),
            book,
            http: Http::default(),
            pods,
            free,
        }
    }

    async fn run(self) {
        let mut tasks = JoinSet::new();
        loop {
            // A paused API server gives no answer.
            let listed = self.api.list(&ListParams::default().labels(POOL_LABEL)).await.map(|list| list.items);
            for pod in listed.iter().flatten().filter(|pod| sidecar_of(pod).is_some()) {
                let uid = pod.uid().expect("a stored pod has a UID");
                let known = lock(&self.pods).get(&uid).map(|pod| pod.leaving);
                match (known, pod.metadata.deletion_timestamp.is_some()) {
                    (None, false) => {
                        let given = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
                        let running = begin(pod, given.unwrap_or_else(free_address));
                        lock(&self.pods).insert(uid.clone(), running);
                        tasks.spawn_local(self.clone().start(pod.clone(), uid));
                    }
                    (Some(false), true) => {
                        if let Some(running) = lock(&self.pods).get_mut(&uid) {
                            running.leaving = true;
                        }
                        tasks.spawn_local(self.clone().stop(pod.clone(), uid));
                    }
                    (None, true) => drop(tasks.spawn_local(self.clone().end(pod.clone()))),
                    _ => {}
                }
            }
            if let Ok(listed) = listed {
                let there: Vec<String> = listed.iter().filter_map(kube::ResourceExt::uid).collect();
                lock(&self.pods).retain(|uid, _| there.contains(uid));
            }
            while let Some(ended) = tasks.try_join_next() {
                ended.expect("a pod's kubelet never panics");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn start(self, pod: Pod, uid: String) {
        let Some((ip, folder)) =
            lock(&self.pods).get(&uid).map(|running| (running.ip, running.folder.path().to_owned()))
        else {
            return;
        };
        let name = pod.name_any();
        let app = match is_router(&pod) {
            true => None,
            false => Some(App::start_at((ip, APP_PORT).into(), &name, &self.book).await),
        };
        let injected = self.injected(&pod, ip, &folder).await;
        if let Some(running) = lock(&self.pods).get_mut(&uid) {
            (running.app, running.arguments) = (app, injected);
            running.start_sidecar();
        }
        until("the pod's sidecar is ready", async || {
            let answer = self.http.send(Method::GET, (ip, METRICS).into(), "/readyz", "").await?;
            if answer.status.is_success() { Ok(()) } else { Err(answer.status.to_string()) }
        })
        .await;
        self.kubelet.ready(&pod, ip).await;
        if let Some(running) = lock(&self.pods).get_mut(&uid) {
            running.ready = true;
        }
    }

    /// The injected container's command line: its variables as flags, with the files of its volumes.
    async fn injected(&self, pod: &Pod, ip: Ipv4Addr, folder: &Path) -> Vec<String> {
        let sidecar = sidecar_of(pod).expect("only injected pods are run");
        self.mount(pod, sidecar, folder).await;
        // The pods of this host share its loopback: each gets an address there of its own.
        let [_, rest @ ..] = ip.octets();
        let own = Ipv4Addr::new(127, rest[0], rest[1], rest[2]).to_string();
        let ip = ip.to_string();
        let mut arguments = Vec::new();
        for variable in sidecar.env.iter().flatten() {
            let Some(flag) = variable.name.strip_prefix("WSPOOL_") else { continue };
            let value = match &variable.value {
                Some(value) => value.replace("$(POD_IP)", &ip).replace("0.0.0.0", &ip).replace("127.0.0.1", &own),
                None => pod.uid().expect("a stored pod has a UID"),
            };
            arguments.push(format!("--{}", flag.to_lowercase().replace('_', "-")));
            arguments.push(rooted(folder, &value));
        }
        arguments
    }

    /// Writes the files of the sidecar's volumes, once the objects that they come from are there.
    async fn mount(&self, pod: &Pod, sidecar: &Container, folder: &Path) {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        for volume in volumes {
            let Some(mount) = sidecar.volume_mounts.iter().flatten().find(|mount| mount.name == volume.name) else {
                continue;
            };
            let place = PathBuf::from(rooted(folder, &mount.mount_path));
            fs::create_dir_all(&place).expect("a folder of the pod");
            if let Some(source) = &volume.config_map {
                let map = until("the pool's ConfigMap", async || {
                    self.maps.get(&source.name).await.map_err(|error| error.to_string())
                })
                .await;
                for (name, text) in map.data.iter().flatten() {
                    fs::write(place.join(name), text).expect("a file of the pod");
                }
                for (name, bytes) in map.binary_data.iter().flatten() {
                    fs::write(place.join(name), &bytes.0).expect("a file of the pod");
                }
            }
            if let Some(source) = &volume.secret {
                let name = source.secret_name.clone().unwrap_or_default();
                let secret = if name.ends_with(PEERS_SUFFIX) {
                    let made = async || self.secrets.get(&name).await.map(Some).map_err(|error| error.to_string());
                    until("the Secret that the operator makes", made).await
                } else {
                    // A user makes it, or nobody does.
                    self.secrets.get_opt(&name).await.expect("an answer")
                };
                for (name, bytes) in secret.into_iter().flat_map(|secret| secret.data.unwrap_or_default()) {
                    fs::write(place.join(name), &bytes.0).expect("a file of the pod");
                }
            }
        }
    }

    /// What a kubelet does with a deleted pod: the preStop hook, then the app's end, then the sidecar's.
    async fn stop(self, pod: Pod, uid: String) {
        let Some((ip, folder)) =
            lock(&self.pods).get(&uid).map(|running| (running.ip, running.folder.path().to_owned()))
        else {
            return;
        };
        let has_processes = lock(&self.pods).get(&uid).is_some_and(|running| running.sidecar.is_some());
        if has_processes {
            self.run_hook(&pod, ip, &folder).await;
        }
        let sidecar = lock(&self.pods).get_mut(&uid).and_then(|running| {
            running.app = None;
            running.sidecar.take()
        });
        if let Some(mut sidecar) = sidecar {
            sidecar.signal(Signal::SIGTERM);
            sidecar.ended().await;
        }
        self.end(pod).await;
    }

    async fn run_hook(&self, pod: &Pod, ip: Ipv4Addr, folder: &Path) {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let hooks = containers.filter_map(|container| container.lifecycle.as_ref()?.pre_stop.as_ref()?.exec.as_ref());
        for hook in hooks {
            let command: Vec<String> = hook.command.iter().flatten().map(|word| rooted(folder, word)).collect();
            let (binary, words) = command.split_first().expect("a hook has a command");
            let (verb, rest) = words.split_first().expect("it is the sidecar's");
            // Its own loopback is that of its pod.
            let mut hook = Command::new(binary);
            hook.arg(verb).args(["--control", &format!("{ip}:7481")]).args(rest).kill_on_drop(true);
            let ended = hook.status().await.expect("a hook that runs");
            assert!(ended.success(), "the preStop hook of {} ended with {ended}", pod.name_any());
        }
    }

    async fn end(self, pod: Pod) {
        self.kubelet.gone(&pod).await;
    }
}

/// A pod whose processes have yet to be started.
fn begin(pod: &Pod, ip: Ipv4Addr) -> Running {
    Running {
        name: pod.name_any(),
        uid: pod.uid().expect("a stored pod has a UID"),
        ip,
        ready: false,
        app: None,
        sidecar: None,
        arguments: Vec::new(),
        leaving: false,
        folder: tempfile::tempdir().expect("a temporary folder"),
    }
}

/// The sidecar's container, which is a router's only one; a pod that got in without it is not run.
fn sidecar_of(pod: &Pod) -> Option<&Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|container| container.name == SIDECAR)
}

fn is_router(pod: &Pod) -> bool {
    pod.labels().get(ROLE_LABEL).is_some_and(|role| role == "router")
}

/// A path of the pod, in its folder.
fn rooted(folder: &Path, value: &str) -> String {
    if value.starts_with('/') { format!("{}{value}", folder.display()) } else { value.to_owned() }
}

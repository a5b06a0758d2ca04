//! A sidecar under test: the real process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use http::Method;
use nix::sys::signal::Signal;
use ring::Placement;
use ring::wire::{Grant, Placed, Report};
use serde::Serialize;
use tempfile::TempDir;

use crate::http::{Answer, Http};
use crate::process::{Process, program};
use crate::{ports, until};

/// A sidecar, its ports and its folder. The process ends when it is dropped.
#[derive(Debug)]
pub struct Sidecar {
    /// Its name, which is also its UID.
    pub name: String,
    /// Where clients and peers enter.
    pub listen: SocketAddr,
    /// The operator's port.
    pub control: SocketAddr,
    /// The local API, if it has one on loopback.
    pub api: Option<SocketAddr>,
    metrics: SocketAddr,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    process: Process,
    http: Http,
    folder: TempDir,
}

/// A sidecar that is about to be started.
#[derive(Debug)]
pub struct Start {
    name: String,
    api: Option<SocketAddr>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    folder: TempDir,
}

impl Sidecar {
    /// A sidecar beside an app, without anything special.
    pub async fn beside(app: SocketAddr) -> Self {
        Self::named("sidecar").upstream(app).start().await
    }

    /// A router.
    pub async fn router() -> Self {
        Self::named("router").with("--role", "router").start().await
    }

    /// A sidecar to be described further.
    pub fn named(name: &str) -> Start {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Start { name: name.to_owned(), api: None, arguments: Vec::new(), environment: Vec::new(), folder }
    }

    /// Its folder: its state, its configuration, its log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Asks it to drain and end (SIGTERM).
    pub fn terminate(&self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, at the same ports and with the same folder, after it has ended.
    pub async fn start_again(&mut self) {
        self.process = start_process(&self.name, &self.arguments, &self.environment, self.folder.path());
        self.ready().await;
    }

    /// What it says of itself.
    pub async fn status(&self) -> Report {
        self.try_status().await.unwrap_or_else(|error| panic!("{} gave no status: {error}", self.name))
    }

    /// The same, when it may be down.
    pub async fn try_status(&self) -> Result<Report, String> {
        self.http.get(self.control, "/v1/status").await
    }

    /// Puts something to its control port.
    pub async fn put(&self, path: &str, body: impl Into<bytes::Bytes>) -> Answer {
        let answer = self.http.send(Method::PUT, self.control, path, body).await;
        answer.unwrap_or_else(|error| panic!("{} gave no answer: {error}", self.name))
    }

    /// Sends anything to its control port, with a token or without.
    pub async fn ask(&self, token: Option<&str>, method: Method, path: &str, body: impl Into<bytes::Bytes>) -> Answer {
        let authorization = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = authorization.iter().map(|value| ("authorization", value.as_str())).collect();
        let answer = self.http.send_with(&headers, method, self.control, path, body).await;
        answer.unwrap_or_else(|error| panic!("{} gave no answer: {error}", self.name))
    }

    /// Replaces a file in its folder at once, as the kubelet replaces mounted ones.
    pub fn write_file(&self, name: &str, text: &str) {
        let (draft, file) = (self.folder.path().join(format!("{name}.draft")), self.folder.path().join(name));
        std::fs::write(&draft, text).expect("a file in a temporary folder");
        std::fs::rename(draft, file).expect("a file in its place");
    }

    /// Puts JSON to its control port.
    pub async fn put_json(&self, path: &str, body: &impl Serialize) -> Answer {
        self.put(path, serde_json::to_vec(body).expect("JSON")).await
    }

    /// Puts a placement in force.
    pub async fn place(&self, placement: &Placement) -> Report {
        let placed = Placed { target: self.name.clone(), placement: placement.clone() };
        let answer = self.put_json("/v1/placement", &placed).await;
        answer.json().unwrap_or_else(|error| panic!("{} refused a placement: {error}", self.name))
    }

    /// Permits evictions.
    pub async fn grant(&self, grant: &Grant) -> Report {
        self.try_grant(grant).await.unwrap_or_else(|error| panic!("{} refused a grant: {error}", self.name))
    }

    /// The same, when it may be down.
    pub async fn try_grant(&self, grant: &Grant) -> Result<Report, String> {
        let body = serde_json::to_vec(grant).expect("JSON");
        self.http.send(Method::PUT, self.control, "/v1/evictions", body).await?.json()
    }

    /// Deletes something at its control port.
    pub async fn delete(&self, path: &str) -> Answer {
        let answer = self.http.send(Method::DELETE, self.control, path, "").await;
        answer.unwrap_or_else(|error| panic!("{} gave no answer: {error}", self.name))
    }

    /// Asks its local API.
    pub async fn ask_api(&self, headers: &[(&str, &str)], method: Method, path: &str, body: &str) -> Answer {
        let api = self.api.expect("a local API");
        let answer = self.http.send_with(headers, method, api, path, body.to_owned()).await;
        answer.unwrap_or_else(|error| panic!("{} gave no answer: {error}", self.name))
    }

    /// Sends a text to a key; what is said of it.
    pub async fn send_to(&self, key: &str, text: &str) -> Answer {
        let path = format!("/v1/keys/{key}/messages");
        self.ask_api(&[("content-type", "text/plain")], Method::POST, &path, text).await
    }

    /// Everything that Prometheus would read.
    pub async fn metrics(&self) -> String {
        let answer = self.http.send(Method::GET, self.metrics, "/metrics", "").await;
        let body = answer.unwrap_or_else(|error| panic!("{} gave no metrics: {error}", self.name)).body;
        String::from_utf8_lossy(&body).into_owned()
    }

    /// One counter or gauge, as it is written in the text format; 0 while it is not there.
    pub async fn metric(&self, series: &str) -> u64 {
        let text = self.metrics().await;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().expect("a whole number"))
    }

    /// A page of the metrics port.
    pub async fn observe(&self, path: &str) -> Answer {
        self.http.send(Method::GET, self.metrics, path, "").await.expect("an answer of the metrics port")
    }

    async fn ready(&mut self) {
        let (process, http, metrics) = (&mut self.process, &self.http, self.metrics);
        until("the sidecar is ready", async || {
            process.check();
            http.send(Method::GET, metrics, "/readyz", "").await.map(drop)
        })
        .await;
    }
}

impl Start {
    /// Its app.
    #[must_use]
    pub fn upstream(self, app: SocketAddr) -> Self {
        self.with("--upstream", &app.to_string())
    }

    /// A flag and its value.
    #[must_use]
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// A variable in its environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A file in its folder, and the flag that names it.
    #[must_use]
    pub fn with_file(self, flag: &str, name: &str, text: &str) -> Self {
        let file = self.path(name);
        std::fs::write(&file, text).expect("a file in a temporary folder");
        self.with(flag, &file.to_string_lossy())
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The local API, at a free port.
    #[must_use]
    pub fn with_api(mut self) -> Self {
        let api = ports::free();
        self.api = Some(api);
        self.with("--api", &api.to_string())
    }

    /// Starts it, and waits until it is ready.
    pub async fn start(self) -> Sidecar {
        let [listen, control, metrics] = [(); 3].map(|()| ports::free());
        let state = self.path("state").to_string_lossy().into_owned();
        let uid = self.name.clone();
        let Self { name, api, arguments, environment, folder } = self
            .with("--listen", &listen.to_string())
            .with("--control", &control.to_string())
            .with("--metrics", &metrics.to_string())
            .with("--state-dir", &state)
            .with("--pod-uid", &uid);
        let process = start_process(&name, &arguments, &environment, folder.path());
        let http = Http::default();
        let mut sidecar =
            Sidecar { name, listen, control, api, metrics, arguments, environment, process, http, folder };
        sidecar.ready().await;
        sidecar
    }
}

fn start_process(name: &str, arguments: &[String], environment: &[(String, String)], folder: &Path) -> Process {
    let environment = environment.iter().map(|(name, value)| (name, value));
    Process::start_in(name, &program("wspool-sidecar"), arguments, environment, &folder.join("log"))
}

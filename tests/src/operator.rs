//! An operator under test: `wspool-operator standalone`, and its commands that end by themselves.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::http::Http;
use crate::process::{Process, program};
use crate::{Sidecar, ports, until};

/// An operator, its files and its port. The process ends when it is dropped.
#[derive(Debug)]
pub struct Operator {
    process: Process,
    admin: SocketAddr,
    http: Http,
    files: Files,
}

/// The files of a pool.
#[derive(Debug)]
pub struct Files {
    folder: TempDir,
}

impl Files {
    /// Writes the pool's file. `spec` is the part of the YAML below `spec:`, in flow style and without its braces; the
    /// key is the parameter `user`.
    pub fn new(spec: &str) -> Self {
        Self::with_key("query: user", spec)
    }

    /// The same with the key from elsewhere.
    pub fn with_key(source: &str, spec: &str) -> Self {
        let separator = if spec.is_empty() { "" } else { ", " };
        Self::keyless(&format!("key: {{from: [{{{source}}}]}}{separator}{spec}"))
    }

    /// The same without a key.
    pub fn keyless(spec: &str) -> Self {
        let files = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        let text = format!(
            "apiVersion: wspool.dev/v1alpha1\nkind: WebSocketPool\nmetadata: {{name: test}}\nspec: {{target: \
             {{apiVersion: apps/v1, kind: Deployment, name: test}}, port: 3000, {spec}}}\n"
        );
        std::fs::write(files.path("pool.yaml"), text).expect("a file in a temporary folder");
        files.write_members("[]\n");
        files
    }

    /// A path in their folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces the members file at once, as editors do.
    pub fn write_members(&self, text: &str) {
        let draft = self.path("members.draft");
        std::fs::write(&draft, text).expect("a file in a temporary folder");
        std::fs::rename(draft, self.path("members.yaml")).expect("a file in its place");
    }

    /// Lists these sidecars, and these routers.
    pub fn list(&self, members: &[&Sidecar], routers: &[&Sidecar]) {
        let mut text = String::new();
        let all =
            members.iter().map(|member| (member, "")).chain(routers.iter().map(|router| (router, ", role: router")));
        for (sidecar, role) in all {
            let Sidecar { name, listen, control, .. } = sidecar;
            writeln!(text, "- {{name: {name}, address: \"{listen}\", control: \"{control}\"{role}}}").expect("memory");
        }
        self.write_members(if text.is_empty() { "[]\n" } else { &text });
    }

    /// Runs a command of the operator that ends by itself, with lines for its input.
    pub fn run(&self, arguments: &[&str], input: String) -> Output {
        let mut child = Command::new(program("wspool-operator"))
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the operator's program");
        let mut stdin = child.stdin.take().expect("a pipe");
        // It answers while it reads: somebody else must write.
        let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().expect("its output");
        // A command that refuses its files does not read its input.
        let _ = writer.join().expect("a writer");
        output
    }
}

impl Operator {
    /// Starts `standalone` on files, and waits until it answers.
    pub async fn start(files: Files) -> Self {
        let admin = ports::free();
        let process = start_process(&files, admin);
        let mut operator = Self { process, admin, http: Http::default(), files };
        operator.ready().await;
        operator
    }

    /// Its files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, after it has ended.
    pub async fn start_again(&mut self) {
        self.process = start_process(&self.files, self.admin);
        self.ready().await;
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Everything it has written.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// What `GET /v1/pools` says of the pool.
    pub async fn pool(&self) -> Value {
        self.try_pool().await.unwrap_or_else(|error| panic!("the operator gave no answer: {error}"))
    }

    /// Waits until what it says of the pool satisfies.
    pub async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        until(what, async || {
            let pool = self.try_pool().await?;
            if holds(&pool) { Ok(pool) } else { Err(pool.to_string()) }
        })
        .await
    }

    /// Waits until so many slots have holders and nothing moves.
    pub async fn stable(&self, slots: usize) -> Value {
        self.until(&format!("the pool is stable with {slots} slots"), |pool| {
            let held =
                pool["slots"].as_array().map_or(0, |slots| slots.iter().filter(|s| s["member"].is_string()).count());
            let state = pool["state"].as_str().unwrap_or_default();
            held == slots && state.eq_ignore_ascii_case("stable") && pool["move"]["pending"] == 0
        })
        .await
    }

    async fn try_pool(&self) -> Result<Value, String> {
        let pools: Vec<Value> = self.http.get(self.admin, "/v1/pools").await?;
        pools.into_iter().next().ok_or_else(|| "it knows no pool".into())
    }

    async fn ready(&mut self) {
        let (process, http, admin) = (&mut self.process, &self.http, self.admin);
        until("the operator answers", async || {
            process.check();
            http.get::<Value>(admin, "/v1/pools").await.map(drop)
        })
        .await;
    }
}

fn start_process(files: &Files, admin: SocketAddr) -> Process {
    let path = |name| files.path(name).to_string_lossy().into_owned();
    let arguments =
        ["standalone", "--pool", &path("pool.yaml"), "--members", &path("members.yaml"), "--admin", &admin.to_string()];
    Process::start("operator", &program("wspool-operator"), arguments, &files.path("log"))
}

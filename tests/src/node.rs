//! The `ws` and Socket.IO libraries for Node: peers that share no code with ours. `ws` is the only one here that compresses.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::process::Process;
use crate::until;

/// A script of `tests/node`, running.
#[derive(Debug)]
pub struct Node {
    process: Process,
    _folder: TempDir,
}

impl Node {
    /// Starts a script. What it prints can be waited for.
    pub fn start(script: &str, arguments: &[&str]) -> Self {
        let scripts = installed();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let script = scripts.join(script).to_string_lossy().into_owned();
        let arguments = std::iter::once(script.as_str()).chain(arguments.iter().copied());
        let process = Process::start("node", Path::new("node"), arguments, &folder.path().join("log"));
        Self { process, _folder: folder }
    }

    /// An echo server; returns where it listens.
    pub async fn echo() -> (Self, SocketAddr) {
        let mut node = Self::start("echo.js", &[]);
        let port: u16 = node.says("port ").await.parse().expect("a port");
        (node, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// Waits for a line that begins so, and returns the rest of it.
    pub async fn says(&mut self, beginning: &str) -> String {
        let what = format!("the script says {beginning:?}");
        until(&what, async || {
            let lines = self.lines();
            let said = lines.iter().find_map(|line| line.strip_prefix(beginning)).map(str::to_owned);
            said.ok_or_else(|| lines.join("\n"))
        })
        .await
    }

    /// The lines that it has printed. One without its end may still grow.
    pub fn lines(&self) -> Vec<String> {
        self.process.log().split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
    }

    /// Sends SIGTERM, which the scripts take as a word to go on.
    pub fn go_on(&self) {
        self.process.signal(nix::sys::signal::Signal::SIGTERM);
    }
}

/// The folder of the scripts, with what they need installed once.
fn installed() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("node");
        let is_there = |library: &str| folder.join("node_modules").join(library).is_dir();
        if !["ws", "socket.io", "socket.io-client"].into_iter().all(is_there) {
            let install = Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&folder).output();
            let output = install.expect("npm, which comes with Node; these tests need both");
            assert!(output.status.success(), "npm ci failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        folder
    })
}

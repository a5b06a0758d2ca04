//! Peers that share no code with ours: scripts for Node and Python, around other people's libraries.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::process::Process;
use crate::until;

/// Where the scripts are: `node` has the `ws` library, the only WebSocket peer here that compresses; `node/clients` and
/// `python` have the libraries that applications use.
const TESTS: &str = env!("CARGO_MANIFEST_DIR");

/// A script, running.
#[derive(Debug)]
pub struct Script {
    process: Process,
    _folder: TempDir,
}

impl Script {
    /// Starts a script of `tests/node`. What it prints can be waited for.
    pub fn node(script: &str, arguments: &[&str]) -> Self {
        Self::start_node("node", script, arguments)
    }

    /// Starts a script of `tests/node/clients`.
    pub fn library(script: &str, arguments: &[&str]) -> Self {
        Self::start_node("node/clients", script, arguments)
    }

    /// Starts a script of `tests/python`.
    pub fn python(script: &str, arguments: &[&str]) -> Self {
        Self::start("python3", &Path::new(TESTS).join("python").join(script), arguments, vec![python_path()])
    }

    /// Starts a script of `examples`, with a variable in its environment.
    pub fn example(script: &str, arguments: &[&str], variable: (&str, &str)) -> Self {
        let path = Path::new(TESTS).join("../examples").join(script);
        let mut variables = vec![(variable.0, PathBuf::from(variable.1))];
        if path.extension().is_some_and(|extension| extension == "py") {
            variables.push(python_path());
            return Self::start("python3", &path, arguments, variables);
        }
        installed("../examples/node/node_modules/ws");
        Self::start("node", &path, arguments, variables)
    }

    fn start_node(folder: &str, script: &str, arguments: &[&str]) -> Self {
        installed(&format!("{folder}/node_modules/ws"));
        Self::start("node", &Path::new(TESTS).join(folder).join(script), arguments, Vec::new())
    }

    /// An echo server of `tests/node`; returns where it listens.
    pub async fn echo() -> (Self, SocketAddr) {
        let mut script = Self::node("echo.js", &[]);
        let port: u16 = script.says("port ").await.parse().expect("a port");
        (script, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    fn start(program: &str, script: &Path, arguments: &[&str], variables: Vec<(&str, PathBuf)>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let arguments = std::iter::once(script.as_os_str().to_owned()).chain(arguments.iter().map(OsString::from));
        let process = Process::start_in(program, Path::new(program), arguments, variables, &folder.path().join("log"));
        Self { process, _folder: folder }
    }

    /// The whole lines that it has printed; one without its end may still grow.
    pub fn lines(&self) -> Vec<String> {
        self.process.log().split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
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

    /// The clients that a server was the last to answer.
    pub fn clients_at(&self, server: &str) -> BTreeSet<String> {
        let mut last = BTreeMap::new();
        for line in self.lines() {
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["at", key, server] => _ = last.insert((*key).to_owned(), (*server).to_owned()),
                _ => panic!("a client library complains: {line}"),
            }
        }
        last.into_iter().filter(|(_, last)| last == server).map(|(key, _)| key).collect()
    }

    /// Sends SIGTERM, which the scripts of `tests/node` take as a word to go on.
    pub fn go_on(&self) {
        self.process.signal(nix::sys::signal::Signal::SIGTERM);
    }
}

/// The variable that tells Python where its packages are.
fn python_path() -> (&'static str, PathBuf) {
    let package = installed("../.cache/python/websockets");
    ("PYTHONPATH", package.parent().expect("a folder").to_owned())
}

/// A package beside the tests.
fn installed(package: &str) -> PathBuf {
    let folder = Path::new(TESTS).join(package);
    assert!(folder.is_dir(), "{} is not installed: `make test` installs it before the tests", folder.display());
    folder
}

//! What the README tells a user to do with a cluster.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::control_plane::Namespace;
use crate::control_plane::access::output;

/// The part of the README.
const HEADING: &str = "\n## In Kubernetes\n";
/// Where the README's reader has pushed the images, and where the nodes of the tests have them from.
const REGISTRIES: (&str, &str) = ("registry.example.com", "wspool.dev");

/// The pool and the commands, in the folder of somebody who follows them.
pub struct Readme {
    commands: Vec<String>,
    folder: TempDir,
}

impl Readme {
    /// Reads the first two blocks of the part, which are `pool.yaml` and the commands, and lays the folder out for them.
    pub fn read(namespace: &Namespace) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
        let text = fs::read_to_string(root.join("README.md")).expect("README.md");
        let (_, part) = text.split_once(HEADING).expect("a part about Kubernetes");
        let mut blocks = blocks(part);
        let (pool, commands) = (blocks.next().expect("a pool"), blocks.next().expect("commands"));
        let folder = TempDir::new().expect("a temporary folder");
        fs::write(folder.path().join("pool.yaml"), pool).expect("a file");
        symlink(root.join("charts"), folder.path().join("charts")).expect("the charts");
        fs::write(context(&folder), in_context(namespace)).expect("a context");
        let commands = commands.replace(REGISTRIES.0, REGISTRIES.1);
        Self { commands: commands.lines().map(str::to_owned).collect(), folder }
    }

    /// The commands, as they are to be run.
    pub fn commands(&self) -> &[String] {
        &self.commands
    }

    /// Runs a command in a shell, by a user whose kubectl is in the namespace.
    pub async fn run(&self, command: &str, namespace: &Namespace) {
        let admin = namespace.access().kubeconfig();
        let both = [context(&self.folder), admin];
        let mut shell = Command::new("bash");
        shell.args(["-c", command]).current_dir(self.folder.path()).env("HOME", self.folder.path());
        shell.env("KUBECONFIG", std::env::join_paths(both).expect("two paths"));
        output(&mut shell, "").await.unwrap_or_else(|error| panic!("{command}: {error}"));
    }
}

/// The blocks between fences, each without the line of its first one.
fn blocks(part: &str) -> impl Iterator<Item = &str> {
    part.split("\n```").skip(1).step_by(2).filter_map(|block| Some(block.split_once('\n')?.1))
}

fn context(folder: &TempDir) -> PathBuf {
    folder.path().join("context")
}

/// What kubectl reads before the admin's own file.
fn in_context(namespace: &Namespace) -> String {
    let context = json!({"cluster": "cluster", "user": "admin", "namespace": namespace.name()});
    let contexts = [json!({"name": "reader", "context": context})];
    json!({"apiVersion": "v1", "kind": "Config", "contexts": contexts, "current-context": "reader"}).to_string()
}

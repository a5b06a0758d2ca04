//! The repository's Helm chart, by the real Helm.

use serde::Deserialize as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::control_plane::access::output;
use crate::control_plane::{Access, binary};

/// A release of the chart in one namespace. Values are given as YAML, as in a user's file.
#[derive(Clone, Debug)]
pub struct Release {
    access: Access,
    namespace: String,
    name: String,
}

/// The folder of the chart.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/wspool");

/// What the chart makes of these values, without an API server.
pub async fn render(values: &str) -> Result<Vec<Value>, String> {
    let arguments = ["template", "wspool", CHART, "--namespace", "wspool-system", "--values", "-"];
    let manifest = helm(None, &arguments, values).await?;
    Ok(objects(&manifest))
}

/// What Helm finds wrong with the chart under these values.
pub async fn lint(values: &str) -> Result<(), String> {
    helm(None, &["lint", "--strict", CHART, "--values", "-"], values).await.map(drop)
}

/// The objects of a manifest.
fn objects(manifest: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(manifest);
    let objects = documents.map(|document| Value::deserialize(document).expect("YAML from Helm"));
    objects.filter(|object| !object.is_null()).collect()
}

impl Release {
    /// Names a release; nothing is installed yet.
    pub fn new(access: &Access, namespace: &str, name: &str) -> Self {
        Self { access: access.clone(), namespace: namespace.into(), name: name.into() }
    }

    /// Installs it.
    pub async fn install(&self, values: &str, flags: &[&str]) -> Result<String, String> {
        self.with_chart("install", values, flags).await
    }

    /// Upgrades it to these values alone.
    pub async fn upgrade(&self, values: &str, flags: &[&str]) -> Result<String, String> {
        self.with_chart("upgrade", values, flags).await
    }

    /// Brings an earlier revision back.
    pub async fn rollback(&self, revision: u32) -> Result<String, String> {
        self.helm(&["rollback", &self.name, &revision.to_string()], "").await
    }

    /// Uninstalls it.
    pub async fn uninstall(&self, flags: &[&str]) -> Result<String, String> {
        self.helm(&[&["uninstall", &self.name], flags].concat(), "").await
    }

    async fn with_chart(&self, command: &str, values: &str, flags: &[&str]) -> Result<String, String> {
        self.helm(&[&[command, &self.name, CHART, "--values", "-"], flags].concat(), values).await
    }

    async fn helm(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        helm(Some(&self.access), &[arguments, &["--namespace", &self.namespace]].concat(), input).await
    }
}

/// Runs Helm: what it prints, or what it complains about.
async fn helm(access: Option<&Access>, arguments: &[&str], input: &str) -> Result<String, String> {
    // Nothing of the user's: no plug-ins, no cache, no cluster.
    let home = TempDir::new().expect("a temporary folder");
    let kubeconfig = access.map_or_else(|| home.path().join("none"), Access::kubeconfig);
    let mut helm = Command::new(binary("helm"));
    helm.args(arguments).env("HOME", home.path()).env("KUBECONFIG", kubeconfig);
    for folder in ["XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"] {
        helm.env_remove(folder);
    }
    output(&mut helm, input).await
}

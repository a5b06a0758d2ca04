//! The way to an API server.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::certificates;

/// Where the shared control plane's files are. It is not `KUBECONFIG`, which may lead to somebody's real cluster.
pub const FOLDER: &str = "WSPOOL_CONTROL_PLANE";

/// No test asks for anything that takes so long, unless the API server is paused.
const LIMIT: Duration = Duration::from_secs(20);
/// How long the tokens of service accounts are good: the API server's own lower limit is ten minutes.
const TOKEN_SECONDS: i64 = 3600;

/// The folder of a control plane, with everybody's kubeconfig.
#[derive(Clone, Debug)]
pub struct Access {
    folder: PathBuf,
}

impl Access {
    /// The way to the control plane that the tests share.
    pub fn shared() -> Self {
        let folder = std::env::var_os(FOLDER);
        Self { folder: folder.expect("tests of this tier are run by `make test-api`").into() }
    }

    pub(super) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The kubeconfig of the admin, who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_of(certificates::ADMIN)
    }

    pub(super) fn kubeconfig_of(&self, user: &str) -> PathBuf {
        self.folder.join(format!("{user}.kubeconfig"))
    }

    /// A client of the admin. It asks once: what fails is not tried again behind a test's back.
    pub async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).expect("the admin's kubeconfig");
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.expect("a kubeconfig that can be used");
        config.default_retry = false;
        config.connect_timeout = Some(LIMIT);
        config.read_timeout = Some(LIMIT);
        config.write_timeout = Some(LIMIT);
        Client::try_from(config).expect("a client")
    }

    /// Writes a kubeconfig with which a program acts as a service account, with its rights and no others.
    pub async fn service_account(&self, namespace: &str, name: &str) -> PathBuf {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await, namespace);
        let spec = TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = accounts.create_token_request(name, &PostParams::default(), &request).await;
        let answer = answer.unwrap_or_else(|error| panic!("no token for {namespace}/{name}: {error}"));
        let token = answer.status.expect("a token in the answer").token;
        let admin = fs::read(self.kubeconfig()).expect("the admin's kubeconfig");
        let admin: Value = serde_json::from_slice(&admin).expect("a kubeconfig in JSON");
        let user = format!("{namespace}.{name}");
        self.write(&user, &admin["clusters"][0]["cluster"], &json!({"token": token}));
        self.kubeconfig_of(&user)
    }

    /// Writes the kubeconfig of somebody who has a certificate in the folder.
    pub(super) fn write_kubeconfig(&self, user: &str, apiserver: SocketAddr) {
        let cluster = json!({"server": format!("https://{apiserver}"), "certificate-authority": "ca.crt"});
        let identity = json!({"client-certificate": format!("{user}.crt"), "client-key": format!("{user}.key")});
        self.write(user, &cluster, &identity);
    }

    fn write(&self, user: &str, cluster: &Value, identity: &Value) {
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": user, "user": identity}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": user}}],
            "current-context": "tests",
        });
        fs::write(self.kubeconfig_of(user), kubeconfig.to_string()).expect("a folder that can be written");
    }

    /// Runs kubectl as the admin: what it prints, or what it complains about.
    pub async fn kubectl(&self, arguments: &[impl AsRef<OsStr>], input: &str) -> Result<String, String> {
        let mut kubectl = Command::new(super::binary("kubectl"));
        // Its cache of what the API server serves: not the user's.
        kubectl.args(arguments).env("KUBECONFIG", self.kubeconfig()).env("KUBECACHEDIR", self.folder.join("kubectl"));
        output(&mut kubectl, input).await
    }
}

/// Runs a command to its end: what it prints, or what it complains about.
pub(crate) async fn output(command: &mut Command, input: &str) -> Result<String, String> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = piped.spawn().unwrap_or_else(|error| panic!("cannot start {:?}: {error}", piped.as_std()));
    let mut stdin = child.stdin.take().expect("a piped input");
    // It may end before it has read everything; what it says then is what counts.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.expect("a command's output");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stdout) + &text(&output.stderr)) }
}

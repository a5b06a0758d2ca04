//! The preStop hook of the app's container, and what it finds in the folder that it shares with its sidecar.
//!
//! The hook asks the sidecar on loopback to drain and waits until it is empty, so that the app lives as long as its
//! connections. It needs no shell, and proves itself by a token that only the containers of this pod can read.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ring::duration::GoDuration;
use ring::wire::Report;

/// The binary's name in the shared folder.
const BINARY: &str = "wspool-sidecar";
/// The token's.
const TOKEN: &str = "drain-token";
/// How often the sidecar is asked.
const POLL: Duration = Duration::from_millis(200);
/// How often a sidecar that does not answer is asked before the hook goes on without it.
const TRIES: u32 = 10;
const LARGEST_ANSWER: usize = 1024 * 1024;

/// A preStop hook for the app's container.
#[derive(Clone, Debug, clap::Args)]
pub struct Prestop {
    /// The longest that the drain is waited for.
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    timeout: GoDuration,
    /// How long to wait before the drain begins: until those who send clients here have heard that this pod ends.
    #[arg(long, default_value = "0s", value_name = "DURATION")]
    delay: GoDuration,
    /// The sidecar's control port.
    #[arg(long, default_value = "127.0.0.1:7481", value_name = "HOST:PORT")]
    control: String,
    /// The hook before was an HTTP GET of this path.
    #[arg(long, value_name = "PATH", requires = "port", conflicts_with_all = ["sleep", "command"])]
    http_get: Option<String>,
    /// The port of that GET.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// The host of that GET.
    #[arg(long, env = "WSPOOL_POD_IP", default_value = "127.0.0.1", value_name = "HOST")]
    host: String,
    /// A header of that GET.
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// The hook before was a pause.
    #[arg(long, value_name = "DURATION", conflicts_with = "command")]
    sleep: Option<GoDuration>,
    /// The hook before was this command.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Puts this binary and a new token into the shared folder; returns the token.
pub fn install(folder: &Path) -> std::io::Result<String> {
    std::fs::create_dir_all(folder)?;
    let token = format!("{:032x}", rand::random::<u128>());
    put(folder, TOKEN, 0o644, |file| std::fs::write(file, &token))?;
    let own = std::env::current_exe()?;
    put(folder, BINARY, 0o755, |file| std::fs::copy(&own, file).map(drop))?;
    Ok(token)
}

/// Renamed into place, since the file there may be running.
pub(crate) fn put(
    folder: &Path,
    name: &str,
    mode: u32,
    write: impl FnOnce(&Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let partial = folder.join(format!(".{name}.partial"));
    write(&partial)?;
    std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(partial, folder.join(name))
}

type Http = Client<HttpConnector, Empty<Bytes>>;

impl Prestop {
    /// Drains, then does what the hook before did; ends with its status.
    pub fn run(self) -> std::io::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::time::sleep(self.delay.0).await;
            let http: Http = Client::builder(TokioExecutor::new()).build_http();
            if tokio::time::timeout(self.timeout.0, self.drain(&http)).await.is_err() {
                eprintln!("wspool: the sidecar is not empty after {}; going on", self.timeout);
            }
            self.hook(&http).await
        })
    }

    /// Returns when nothing is left, or nobody answers.
    async fn drain(&self, http: &Http) {
        let folder = std::env::current_exe().ok().and_then(|file| file.parent().map(Path::to_owned));
        let token = folder.and_then(|folder| std::fs::read_to_string(folder.join(TOKEN)).ok()).unwrap_or_default();
        let mut failures = 0;
        loop {
            match self.ask(http, token.trim()).await {
                Ok(report) if report.connections + report.transit == 0 => return,
                Ok(_) => failures = 0,
                Err(error) => {
                    failures += 1;
                    if failures == TRIES {
                        eprintln!("wspool: the sidecar at {} does not answer; going on: {error}", self.control);
                        return;
                    }
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn ask(&self, http: &Http, token: &str) -> Result<Report, Box<dyn std::error::Error + Send + Sync>> {
        let request = Request::put(format!("http://{}/v1/drain", self.control))
            .header(http::header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Empty::new())?;
        let response = tokio::time::timeout(Duration::from_secs(2), http.request(request)).await??;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await?.to_bytes();
        if !status.is_success() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
        }
        Ok(serde_json::from_slice(&body)?)
    }

    async fn hook(&self, http: &Http) -> std::io::Result<ExitCode> {
        if let Some(pause) = self.sleep {
            tokio::time::sleep(pause.0).await;
        }
        if let (Some(path), Some(port)) = (&self.http_get, self.port) {
            return self.get(http, path, port).await.map(|()| ExitCode::SUCCESS).map_err(std::io::Error::other);
        }
        let Some((program, arguments)) = self.command.split_first() else { return Ok(ExitCode::SUCCESS) };
        let status = tokio::process::Command::new(program).args(arguments).status().await?;
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
    }

    async fn get(&self, http: &Http, path: &str, port: u16) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let mut request = Request::get(format!("http://{host}:{port}{slash}{path}"));
        for header in &self.header {
            let (name, value) = header.split_once(':').ok_or("a --header is written NAME: VALUE")?;
            request = request.header(name.trim(), value.trim());
        }
        let response = http.request(request.body(Empty::new())?).await?;
        let _whole = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await?;
        Ok(())
    }
}

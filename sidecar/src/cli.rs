//! The command line, and the configuration that is checked before any port is bound.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand, ValueEnum};
use ring::settings::Settings;

use crate::api::{self, ApiAddress};
use crate::key;
use crate::prestop::Prestop;

/// The sidecar of wspool: a WebSocket and HTTP proxy beside one server, which places connections by key and moves them
/// when their owner changes.
#[derive(Clone, Debug, Parser)]
#[command(name = "wspool-sidecar", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub args: Args,
}

/// What the binary does besides serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// A preStop hook for the app's container: drains its sidecar, then does what the hook before it did.
    Prestop(Prestop),
    /// Prints the OpenAPI description of the local API.
    Openapi,
}

/// How to serve.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where clients and peers connect.
    #[arg(long, env = "WSPOOL_LISTEN", default_value = "0.0.0.0:7480", value_name = "HOST:PORT")]
    pub listen: String,
    /// The app. Required unless the role is router.
    #[arg(long, env = "WSPOOL_UPSTREAM", value_name = "HOST:PORT")]
    pub upstream: Option<String>,
    /// The control port, for the operator. Without it there is none. Loopback only, unless --control-keys is given.
    #[arg(long, env = "WSPOOL_CONTROL", value_name = "HOST:PORT")]
    pub control: Option<String>,
    /// The operator's public keys (Ed25519, PEM). With them every request to the control port needs a token, and the port
    /// may be reachable from other machines.
    #[arg(long, env = "WSPOOL_CONTROL_KEYS", value_name = "FILE")]
    pub control_keys: Option<PathBuf>,
    /// The pool's secrets, one a line, the first signs. With them requests between sidecars are signed and checked.
    /// Without them a peer is believed by its address.
    #[arg(long, env = "WSPOOL_PEER_KEYS", value_name = "FILE")]
    pub peer_keys: Option<PathBuf>,
    /// The folder of the Secret in which key.jwt of a pool names keys (jwksFrom, caFrom).
    #[arg(long, env = "WSPOOL_JWKS", value_name = "DIR")]
    pub jwks: Option<PathBuf>,
    /// The folder of the Secret in which redis of a pool names its URL (urlFrom, caFrom).
    #[arg(long, env = "WSPOOL_REDIS", value_name = "FOLDER")]
    pub redis: Option<PathBuf>,
    /// The local API, for the app: an address on loopback, or unix:/PATH. Without it there is none.
    #[arg(long, env = "WSPOOL_API", value_name = "HOST:PORT|unix:/PATH")]
    pub api: Option<String>,
    /// Tokens for the local API, one a line, at least 16 bytes each: every request needs one of them. Without it, --install
    /// makes one; without that, whoever can reach the API may use it.
    #[arg(long, env = "WSPOOL_API_TOKEN_FILE", value_name = "FILE")]
    pub api_token_file: Option<PathBuf>,
    /// Metrics and health. Without it there is no such port.
    #[arg(long, env = "WSPOOL_METRICS", value_name = "HOST:PORT")]
    pub metrics: Option<String>,
    /// A sidecar beside an app, or a router: one without an app, which hands every connection to its owner.
    #[arg(long, env = "WSPOOL_ROLE", value_enum, default_value_t = Role::Sidecar)]
    pub role: Role,
    /// Settings in force until a placement brings the pool's own (YAML: key, notice, drain, limits, unit,
    /// ownerUnreachable).
    #[arg(long, env = "WSPOOL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A file that holds the placement (JSON). It is watched; the newest placement wins, wherever it comes from.
    #[arg(long, env = "WSPOOL_PLACEMENT", value_name = "FILE")]
    pub placement: Option<PathBuf>,
    /// A folder for what must survive a restart: the last placement that was pushed, and the UID.
    #[arg(long, env = "WSPOOL_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// A folder that the app's container shares: this binary is copied there, with a token, for its preStop hook, and a
    /// token for the local API (api-token).
    #[arg(long, env = "WSPOOL_INSTALL", value_name = "DIR")]
    pub install: Option<PathBuf>,
    /// The pod's UID. Without it one is made, and kept in the state folder if there is one.
    #[arg(long, env = "WSPOOL_POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,
    /// The address at which peers reach this sidecar, if it is not the one it listens on.
    #[arg(long, env = "WSPOOL_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Threads for connections.
    #[arg(long, env = "WSPOOL_WORKERS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub workers: u8,
}

/// What stands behind a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// An app.
    Sidecar,
    /// Nothing.
    Router,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients and peers connect.
    pub listen: SocketAddr,
    /// The app; `None` for a router.
    pub upstream: Option<SocketAddr>,
    /// The control port.
    pub control: Option<SocketAddr>,
    /// The operator's public keys.
    pub control_keys: Option<PathBuf>,
    /// The pool's secrets.
    pub peer_keys: Option<PathBuf>,
    /// Where the Secret is with the keys of tokens.
    pub jwks: Option<PathBuf>,
    /// Where the Secret with the URL of the pool's Redis is mounted.
    pub redis: Option<PathBuf>,
    /// The local API.
    pub api: Option<ApiAddress>,
    /// Its tokens.
    pub api_token_file: Option<PathBuf>,
    /// The metrics port.
    pub metrics: Option<SocketAddr>,
    /// In force until a placement arrives.
    pub settings: Settings,
    /// The watched placement file.
    pub placement: Option<PathBuf>,
    /// The folder for what survives a restart.
    pub state_dir: Option<PathBuf>,
    /// Where to put the binary for preStop hooks.
    pub install: Option<PathBuf>,
    /// Who this sidecar is.
    pub uid: String,
    /// Where peers reach it.
    pub advertise: String,
    /// Threads for connections.
    pub workers: u8,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag's value is not an address.
    #[error("--{flag} is {value:?}; write an address and a port, for example 127.0.0.1:8000")]
    Address {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
    },
    /// No app.
    #[error(
        "--upstream is missing; name the app's address, for example --upstream 127.0.0.1:3000, or use --role router"
    )]
    NoUpstream,
    /// A router with an app.
    #[error("--upstream {0} with --role router; a router has no app: leave one of them out")]
    RouterUpstream(String),
    /// A control port that others could reach.
    #[error(
        "--control {0} can be reached from other machines, and no verification key is configured; bind it to 127.0.0.1"
    )]
    OpenControl(SocketAddr),
    /// An address of the local API that cannot be one.
    #[error(
        "--api is {0:?}; write an address on loopback, for example 127.0.0.1:7482, or a socket, unix:/run/wspool.sock"
    )]
    Api(String),
    /// A local API that others could reach.
    #[error("--api {0} can be reached from other machines; bind it to 127.0.0.1, or use a socket: unix:/PATH")]
    OpenApi(SocketAddr),
    /// A token file without a token.
    #[error(
        "--api-token-file {0} has no token in it; write one of at least 16 bytes a line, for example from openssl rand -hex 16"
    )]
    NoToken(PathBuf),
    /// A file that cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The state folder cannot be used.
    #[error("cannot write in --state-dir {path}: {error}")]
    State {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{path}: {error}")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        error: serde_yaml::Error,
    },
    /// A key source that can never match.
    #[error("{path}: {error}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: key::SpecError,
    },
}

impl Args {
    /// Checks the arguments and reads the files they name.
    pub fn check(self) -> Result<Config, ConfigError> {
        let listen = address("listen", &self.listen)?;
        let upstream = match (self.role, &self.upstream) {
            (Role::Sidecar, Some(upstream)) => Some(address("upstream", upstream)?),
            (Role::Sidecar, None) => return Err(ConfigError::NoUpstream),
            (Role::Router, None) => None,
            (Role::Router, Some(upstream)) => return Err(ConfigError::RouterUpstream(upstream.clone())),
        };
        let control = self.control.as_deref().map(|value| address("control", value)).transpose()?;
        if let Some(control) = control.filter(|control| !control.ip().is_loopback() && self.control_keys.is_none()) {
            return Err(ConfigError::OpenControl(control));
        }
        let api = self.api.as_deref().map(api_address).transpose()?;
        if let Some(file) = &self.api_token_file
            && api::tokens(file.clone()).keys().is_empty()
        {
            return Err(ConfigError::NoToken(file.clone()));
        }
        let metrics = self.metrics.as_deref().map(|value| address("metrics", value)).transpose()?;
        let settings = match &self.config {
            Some(path) => read_settings(path)?,
            None => Settings::default(),
        };
        let uid = match self.pod_uid {
            Some(uid) => uid,
            None => kept_uid(self.state_dir.as_deref())?,
        };
        let advertise = match self.advertise {
            Some(value) => address("advertise", &value)?.to_string(),
            None => listen.to_string(),
        };
        Ok(Config {
            listen,
            upstream,
            control,
            control_keys: self.control_keys,
            peer_keys: self.peer_keys,
            jwks: self.jwks,
            redis: self.redis,
            api,
            api_token_file: self.api_token_file,
            metrics,
            settings,
            placement: self.placement,
            state_dir: self.state_dir,
            install: self.install,
            uid,
            advertise,
            workers: self.workers,
        })
    }
}

impl Config {
    /// Whether this is a router.
    pub fn is_router(&self) -> bool {
        self.upstream.is_none()
    }
}

fn address(flag: &'static str, value: &str) -> Result<SocketAddr, ConfigError> {
    let parsed = value.parse().ok().or_else(|| {
        let port = value.strip_prefix("localhost:")?.parse().ok()?;
        Some(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port))
    });
    parsed.ok_or_else(|| ConfigError::Address { flag, value: value.to_owned() })
}

fn api_address(value: &str) -> Result<ApiAddress, ConfigError> {
    if let Some(path) = value.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
        return Ok(ApiAddress::Unix(path.into()));
    }
    match address("api", value) {
        Ok(address) if address.ip().is_loopback() => Ok(ApiAddress::Tcp(address)),
        Ok(address) => Err(ConfigError::OpenApi(address)),
        Err(_) => Err(ConfigError::Api(value.to_owned())),
    }
}

fn read_settings(path: &Path) -> Result<Settings, ConfigError> {
    let path = path.to_owned();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => return Err(ConfigError::Read { path, error }),
    };
    // By itself the parser takes an enum's variant from a YAML tag; people write a map with one key.
    let yaml = serde_yaml::Deserializer::from_str(&text);
    let settings: Settings = match serde_yaml::with::singleton_map_recursive::deserialize(yaml) {
        Ok(settings) => settings,
        Err(error) => return Err(ConfigError::Yaml { path, error }),
    };
    match key::check(&settings.key) {
        Ok(()) => Ok(settings),
        Err(error) => Err(ConfigError::Key { path, error }),
    }
}

/// The UID in the state folder, or a new one, which is kept there.
fn kept_uid(state_dir: Option<&Path>) -> Result<String, ConfigError> {
    let new = || format!("{:032x}", rand::random::<u128>());
    let Some(folder) = state_dir else { return Ok(new()) };
    let file = folder.join("uid");
    let kept = std::fs::read_to_string(&file).ok().map(|uid| uid.trim().to_owned()).filter(|uid| !uid.is_empty());
    if let Some(uid) = kept {
        return Ok(uid);
    }
    let uid = new();
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&file, &uid));
    written.map_err(|error| ConfigError::State { path: folder.to_owned(), error })?;
    Ok(uid)
}

#[cfg(test)]
mod tests {
    use ring::settings::{KeySource, Missing};

    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sidecar.yaml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn a_config_file_is_written_like_a_pool() {
        let (_folder, path) = file(
            "key: {from: [{query: user}, {path: '/rooms/{key}'}], missing: Reject}\nlimits: {connections: 7, idle: 90s}\n",
        );
        let settings = read_settings(&path).unwrap();
        let sources = [KeySource::Query("user".into()), KeySource::Path("/rooms/{key}".into())];
        assert_eq!((settings.key.from.as_slice(), settings.key.missing), (&sources[..], Missing::Reject));
        assert_eq!((settings.limits.connections, settings.limits.idle.0.as_secs()), (7, 90));
    }

    #[test]
    fn a_bad_config_file_is_refused_with_the_place_and_the_name() {
        for (text, expected) in [
            ("key: {form: []}", "form"),
            ("limits: {connections: many}", "connections"),
            ("key: {from: [{path: /rooms}]}", "/rooms"),
            ("notice: [", "line"),
        ] {
            let (_folder, path) = file(text);
            let error = read_settings(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("sidecar.yaml"), "{text}: {error}");
        }
    }

    #[test]
    fn a_control_port_that_others_can_reach_needs_keys() {
        let args = |extra: &[&str]| {
            let all = ["sidecar", "--upstream", "127.0.0.1:1", "--control", "0.0.0.0:2"].iter().chain(extra);
            Cli::parse_from(all).args.check()
        };
        assert!(matches!(args(&[]), Err(ConfigError::OpenControl(_))));
        assert!(args(&["--control-keys", "keys.pem"]).is_ok());
    }
}

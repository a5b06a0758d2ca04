//! A real Redis.

use std::net::SocketAddr;
use std::path::PathBuf;

use fred::clients::Client;
use fred::interfaces::ClientLike as _;
use fred::interfaces::PubsubInterface as _;
use fred::types::Builder;
use fred::types::config::{Config, TlsConfig};
use fred::types::{ClusterHash, CustomCommand};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::process::Process;
use crate::{ports, until};

/// A server of Debian's package, which ends when it is dropped.
#[derive(Debug)]
pub struct Redis {
    /// Where it listens.
    pub address: SocketAddr,
    process: Process,
    arguments: Vec<String>,
    folder: TempDir,
}

impl Redis {
    /// A server with all defaults.
    pub async fn start() -> Self {
        let address = ports::free();
        let redis = Self::start_with(address, &["--port", &address.port().to_string()]);
        redis.client().await;
        redis
    }

    /// A server with these arguments, whose port they say.
    pub fn start_with(address: SocketAddr, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let own = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"];
        let mut all: Vec<String> = own.iter().chain(arguments).map(|&argument| argument.to_owned()).collect();
        all.insert(own.len(), folder.path().to_string_lossy().into_owned());
        let process = run(&all, &folder);
        Self { address, process, arguments: all, folder }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again at its address, with nothing in it.
    pub async fn start_again(&mut self) {
        self.process = run(&self.arguments, &self.folder);
        self.client().await;
    }

    /// Lets it hang: connections stay, and nothing is answered.
    pub fn hang(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// A client of its own.
    pub async fn client(&self) -> Client {
        client(&self.url(), None).await
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // A process that is stopped does not end.
        self.process.signal(Signal::SIGCONT);
    }
}

fn run(arguments: &[String], folder: &TempDir) -> Process {
    Process::start("redis", &PathBuf::from("redis-server"), arguments, &folder.path().join("redis.log"))
}

/// A connected client of a server that is about to be there.
pub async fn client(url: &str, tls: Option<TlsConfig>) -> Client {
    let mut config = Config::from_url(url).expect("a URL");
    config.tls = tls;
    until("Redis answers", async || {
        let client = Builder::from_config(config.clone()).build().expect("a client");
        client.init().await.map(|_| client).map_err(|error| error.to_string())
    })
    .await
}

/// Publishes a message; how many sidecars have heard it.
pub async fn publish(client: &Client, channel: &str, message: &[u8]) -> u64 {
    try_publish(client, channel, message).await.unwrap_or_else(|error| panic!("cannot publish to {channel}: {error}"))
}

/// The same where the servers of a cluster may not agree yet on the channel's.
pub async fn try_publish(client: &Client, channel: &str, message: &[u8]) -> Result<u64, String> {
    let sent = if client.is_clustered() {
        client.spublish(channel, message).await
    } else {
        client.publish(channel, message).await
    };
    sent.map_err(|error| error.to_string())
}

/// Servers that share their keys and channels out among them.
pub async fn cluster(size: u16) -> Vec<Redis> {
    let mut servers = Vec::new();
    for _ in 0..size {
        let server = member(&servers).await;
        let client = server.client().await;
        let slots = 16_384 / usize::from(size);
        let from = slots * servers.len();
        let to = if servers.len() + 1 == usize::from(size) { 16_383 } else { from + slots - 1 };
        command(&client, &["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]).await;
        servers.push(server);
    }
    let client = servers[0].client().await;
    until("the cluster is whole", async || {
        let info = command(&client, &["CLUSTER", "INFO"]).await;
        let whole = info.contains("cluster_state:ok") && info.contains(&format!("cluster_size:{size}"));
        if whole { Ok(()) } else { Err(info) }
    })
    .await;
    servers
}

/// A server that knows the others of a cluster, and has nothing of it.
async fn member(servers: &[Redis]) -> Redis {
    let (address, bus) = (ports::free(), ports::free());
    let [port, bus] = [address, bus].map(|address| address.port().to_string());
    let arguments = ["--port", &port, "--cluster-enabled", "yes", "--cluster-port", &bus];
    let server = Redis::start_with(address, &arguments);
    let first = servers.first().unwrap_or(&server);
    let [meets, at] = [first.address.port().to_string(), first.arguments[first.arguments.len() - 1].clone()];
    command(&server.client().await, &["CLUSTER", "MEET", "127.0.0.1", &meets, &at]).await;
    server
}

/// Puts another server in the place of one of a cluster; both go on.
pub async fn fail_over(servers: &[Redis], from: &Redis) -> Redis {
    let server = member(servers).await;
    let client = server.client().await;
    let id = command(&from.client().await, &["CLUSTER", "MYID"]).await;
    let replicate = async || try_command(&client, &["CLUSTER", "REPLICATE", &id]).await;
    until("it knows whom it stands in for", replicate).await;
    // Without the votes of others: theirs are not what is tested.
    let take_over = async || try_command(&client, &["CLUSTER", "FAILOVER", "TAKEOVER"]).await;
    until("it stands in", take_over).await;
    server
}

/// Moves the slot of a channel, with all that is in it, to another server of a cluster.
pub async fn move_channel(servers: &[Redis], channel: &str, to: &Redis) {
    let target = to.client().await;
    let slot = command(&target, &["CLUSTER", "KEYSLOT", channel]).await;
    let id = command(&target, &["CLUSTER", "MYID"]).await;
    for server in servers.iter().filter(|server| server.address != to.address) {
        let source = server.client().await;
        // Only its owner gives it away.
        if try_command(&source, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id]).await.is_ok() {
            let from = command(&source, &["CLUSTER", "MYID"]).await;
            command(&target, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from]).await;
            // The target first: it says so to the others with a newer epoch.
            for owner in [&target, &source] {
                command(owner, &["CLUSTER", "SETSLOT", &slot, "NODE", &id]).await;
            }
        }
    }
}

/// Sends a command; panics when it is refused.
pub async fn command(client: &Client, words: &[&str]) -> String {
    try_command(client, words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

async fn try_command(client: &Client, words: &[&str]) -> Result<String, String> {
    let command = CustomCommand::new(words[0].to_owned(), ClusterHash::Random, false);
    let arguments: Vec<String> = words[1..].iter().map(|&word| word.to_owned()).collect();
    client.custom(command, arguments).await.map_err(|error| error.to_string())
}

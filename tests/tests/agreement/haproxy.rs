//! HAProxy itself.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use harness::ports;
use harness::process::Process;
use ring::agreement::{Agreement, HashKey};

use crate::keys::keys;
use crate::nginx::{installed, listening};
use crate::servers::{Server, Servers};
use crate::{Set, agrees, ask, golden, sets};

/// Writes a proxy with its servers, and answers where it listens.
fn proxy(config: &mut String, set: &[Server], hash: &str, scale: u16) -> SocketAddr {
    let entry = ports::free();
    let port = entry.port();
    write!(
        config,
        "frontend f{port}\n bind {entry}\n default_backend b{port}\nbackend b{port}\n balance hdr(x-key)\n \
         hash-type consistent\n http-reuse always\n"
    )
    .expect("memory");
    for (number, Server { address, weight }) in set.iter().enumerate() {
        let weight = u16::from(*weight) * scale;
        writeln!(config, " server s{number} {address} weight {weight}{hash}").expect("memory");
    }
    entry
}

/// A configuration, and the servers that are asked by it.
struct Case {
    set: Set,
    /// The setting of each server beside its weight.
    hash: &'static str,
    hash_key: HashKey,
    /// The weight of a server of weight 1.
    scale: u16,
}

impl Case {
    fn hashing(&self) -> String {
        let Self { hash_key, scale, .. } = self;
        match (hash_key, scale) {
            (HashKey::Id, 1) => "algorithm: HAProxy".to_owned(),
            (hash_key, 1) => format!("algorithm: HAProxy, haproxy: {{hashKey: {hash_key:?}}}"),
            (hash_key, scale) => format!("algorithm: HAProxy, haproxy: {{hashKey: {hash_key:?}, weight: {scale}}}"),
        }
    }
}

fn program() -> PathBuf {
    std::env::var_os("WSPOOL_HAPROXY").map_or_else(|| installed("haproxy"), Into::into)
}

async fn agrees_with(cases: Vec<Case>, servers: Servers) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let _servers = servers.start(&folder).await;
    let mut config =
        String::from("defaults\n mode http\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n");
    let entries = cases.iter().map(|case| proxy(&mut config, &case.set.servers, case.hash, case.scale));
    let entries: Vec<_> = entries.collect();
    let path = folder.path().join("haproxy.cfg");
    std::fs::write(&path, config).expect("a file in a temporary folder");
    let log = folder.path().join("haproxy.log");
    let mut process = Process::start("haproxy", &program(), ["-db", "-f", &path.to_string_lossy()], &log);
    listening(&mut process, entries[0]).await;
    let version = golden::version(&program(), "-v");
    let keys = keys();
    for (entry, case) in entries.into_iter().zip(cases) {
        let answers = ask::about(entry, &keys);
        agrees(&case.hashing(), &case.set.servers, &keys, &answers);
        let agreement = Agreement::HAProxy { hash_key: case.hash_key, weight: case.scale };
        golden::write(&format!("haproxy-{:?}", case.hash_key).to_lowercase(), &version, agreement, &case.set, &answers);
    }
}

#[tokio::test]
async fn haproxy_sends_every_key_to_its_owner() {
    let mut servers = Servers::default();
    let case = |set, scale| Case { set, hash: "", hash_key: HashKey::Id, scale };
    let weighted = Set { name: None, servers: servers.v4(&[1, 2, 3, 5, 10]) };
    let cases = sets(&mut servers).map(|set| case(set, 1)).into_iter().chain([case(weighted, 20)]).collect();
    agrees_with(cases, servers).await;
}

/// Debian 12 has HAProxy 2.6: there, only the golden files of `ring` say what later ones answer.
#[tokio::test]
#[ignore = "needs HAProxy 3.0 or later: name it in WSPOOL_HAPROXY"]
async fn haproxy_from_3_0_on_knows_servers_by_their_addresses_and_sends_every_key_to_its_owner() {
    let mut servers = Servers::default();
    let (port, address) = ((" hash-key addr-port", HashKey::AddrPort), (" hash-key addr", HashKey::Addr));
    let case = |(hash, hash_key), set, scale| Case { set, hash, hash_key, scale };
    let sets = sets(&mut servers);
    let mapped = Set { name: Some("v6"), servers: servers.mapped(&[1, 2, 3, 5, 10]) };
    // Of the same host all have the same points by their addresses alone.
    let by_address = [sets[0].clone(), sets[3].clone(), mapped].map(|set| case(address, set, 20));
    let scaled = sets[3].clone();
    let by_port = sets.map(|set| case(port, set, 1)).into_iter().chain([case(port, scaled, 20)]);
    agrees_with(by_port.chain(by_address).collect(), servers).await;
}

//! HAProxy itself.

use std::fmt::Write as _;
use std::net::SocketAddr;

use harness::ports;
use harness::process::Process;

use crate::nginx::{installed, listening};
use crate::servers::{Server, Servers};
use crate::{agrees, ask, keys, sets};

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

#[tokio::test]
async fn haproxy_sends_every_key_to_its_owner() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = std::env::var_os("WSPOOL_HAPROXY").map_or_else(|| installed("haproxy"), Into::into);
    let version = std::process::Command::new(&program).arg("-v").output().expect("its version").stdout;
    let version = String::from_utf8_lossy(&version).into_owned();
    let major = version.split_whitespace().nth(2).and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    let mut servers = Servers::default();
    let mut sets = sets(&mut servers);
    let (weighted, v6) = (sets[3].clone(), sets[4].clone());
    let _servers = servers.start(&folder).await;
    let mut config =
        String::from("defaults\n mode http\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n");
    let mut cases = Vec::new();
    for set in sets.drain(..) {
        cases.push((proxy(&mut config, &set, "", 1), set, "algorithm: HAProxy"));
    }
    let scaled = "algorithm: HAProxy, haproxy: {weight: 20}";
    cases.push((proxy(&mut config, &weighted, "", 20), weighted.clone(), scaled));
    // Known since HAProxy 3.0; Debian 12 has 2.6.
    if major >= Some(3) {
        for (hash, hashing) in [
            (" hash-key addr-port", "algorithm: HAProxy, haproxy: {hashKey: AddrPort, weight: 20}"),
            (" hash-key addr", "algorithm: HAProxy, haproxy: {hashKey: Addr, weight: 20}"),
        ] {
            cases.push((proxy(&mut config, &weighted, hash, 20), weighted.clone(), hashing));
        }
        let hashing = "algorithm: HAProxy, haproxy: {hashKey: AddrPort}";
        cases.push((proxy(&mut config, &v6, " hash-key addr-port", 1), v6, hashing));
    }
    let path = folder.path().join("haproxy.cfg");
    std::fs::write(&path, config).expect("a file in a temporary folder");
    let log = folder.path().join("haproxy.log");
    let mut process = Process::start("haproxy", &program, ["-db", "-f", &path.to_string_lossy()], &log);
    listening(&mut process, cases[0].0).await;
    let keys = keys();
    for (entry, set, hashing) in cases {
        agrees(hashing, &set, &keys, &ask::about(entry, &keys));
    }
}

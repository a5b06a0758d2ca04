//! Envoy itself.

use std::net::SocketAddr;
use std::path::PathBuf;

use harness::ports;
use harness::process::Process;
use ring::agreement::Agreement;
use serde_json::{Value, json};

use crate::keys::keys;
use crate::nginx::listening;
use crate::servers::{Server, Servers};
use crate::{agrees, ask, golden, sets};

/// The program out of the package that `requirements.txt` pins.
fn program() -> PathBuf {
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.cache/envoy/envoy/_bin/envoy");
    assert!(program.is_file(), "{} is not there: `make test` installs it before the tests", program.display());
    program
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn listener(entry: SocketAddr, cluster: &str) -> Value {
    let route = json!({
        "match": {"prefix": "/"},
        "route": {"cluster": cluster, "hash_policy": [{"header": {"header_name": "x-key"}}]},
    });
    json!({"name": cluster, "address": socket(entry), "filter_chains": [{"filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": cluster,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
        },
    }]}]})
}

fn cluster(name: &str, set: &[Server], policy: &Value) -> Value {
    let endpoint = |server: &Server| json!({"endpoint": {"address": socket(server.address)}, "load_balancing_weight": server.weight});
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "10s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": set.iter().map(endpoint).collect::<Vec<_>>()}],
        },
    });
    json_patch::merge(&mut cluster, policy);
    cluster
}

#[tokio::test]
async fn envoy_sends_every_key_to_its_owner() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut servers = Servers::default();
    let sets = sets(&mut servers);
    let _servers = servers.start(&folder).await;
    let ring = |size: u32| json!({"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": size}});
    let table = |size: u32| json!({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": size}});
    let by_ring = Agreement::EnvoyRing { minimum_ring_size: 1_024 };
    let by_maglev = Agreement::EnvoyMaglev { table_size: 65_537 };
    let policies = [
        ("algorithm: EnvoyRing", json!({"lb_policy": "RING_HASH"}), Some(("envoy-ring", by_ring))),
        ("algorithm: EnvoyRing, envoyRing: {minimumRingSize: 20000}", ring(20_000), None),
        ("algorithm: EnvoyMaglev", json!({"lb_policy": "MAGLEV"}), Some(("envoy-maglev", by_maglev))),
        ("algorithm: EnvoyMaglev, envoyMaglev: {tableSize: 1009}", table(1_009), None),
    ];
    let (mut listeners, mut clusters, mut cases) = (Vec::new(), Vec::new(), Vec::new());
    for (hashing, policy, kept) in &policies {
        for set in &sets {
            let name = format!("set{}", cases.len());
            let entry = ports::free();
            listeners.push(listener(entry, &name));
            clusters.push(cluster(&name, &set.servers, policy));
            cases.push((entry, set, hashing, kept));
        }
    }
    let config = json!({"static_resources": {"listeners": listeners, "clusters": clusters}});
    let path = folder.path().join("envoy.json");
    std::fs::write(&path, config.to_string()).expect("a file in a temporary folder");
    let arguments = ["--config-path", &path.to_string_lossy(), "--concurrency", "1", "--disable-hot-restart"];
    let mut process = Process::start("envoy", &program(), arguments, &folder.path().join("envoy.log"));
    let version = golden::version(&program(), "--version");
    let keys = keys();
    for (entry, set, hashing, kept) in cases {
        listening(&mut process, entry).await;
        let answers = ask::about(entry, &keys);
        agrees(hashing, &set.servers, &keys, &answers);
        if let Some((hash, agreement)) = *kept {
            golden::write(hash, &version, agreement, set, &answers);
        }
    }
}

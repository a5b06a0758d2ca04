//! `wspool-operator owner` gives each key to the server that nginx, HAProxy and Envoy send it to, and connections that
//! enter through such a proxy are not handed on.

mod ask;
mod envoy;
mod golden;
mod haproxy;
mod hops;
#[path = "../../../ring/tests/golden/keys.rs"]
mod keys;
mod nginx;
mod servers;

use std::collections::BTreeMap;

use harness::operator::Files;

use ask::Answers;
use keys::KEYS;
use servers::{Server, Servers};

/// Compares the answers of a proxy with those of the operator, which is told of the same servers.
fn agrees(hashing: &str, servers: &[Server], keys: &[String], answers: &Answers) {
    let files = Files::new(&format!("hashing: {{{hashing}}}"));
    let member = |(number, server): (usize, &Server)| {
        let Server { address, weight } = server;
        format!("- {{name: \"{address}\", address: \"{address}\", control: \"h:{}\", weight: {weight}}}\n", 1 + number)
    };
    files.write_members(&servers.iter().enumerate().map(member).collect::<String>());
    let output = files.run(&["owner", "--pool", "pool.yaml", "--members", "members.yaml"], keys.join("\n"));
    assert!(output.status.success(), "{output:?}");
    let owners = String::from_utf8(output.stdout).expect("text");
    let owners: Vec<&str> = owners.lines().map(|line| line.rsplit_once('\t').expect("a tab").1).collect();
    assert_eq!((owners.len(), answers.len()), (keys.len(), keys.len()));
    let differ = keys.iter().zip(&owners).zip(answers).filter(|((_, owner), answer)| *owner != answer);
    let differ: Vec<_> = differ.collect();
    let counts = owners.iter().fold(BTreeMap::<_, u32>::new(), |mut counts, owner| {
        *counts.entry(*owner).or_default() += 1;
        counts
    });
    assert!(differ.is_empty(), "{hashing}: {} of {KEYS} keys differ: {:?}", differ.len(), differ.first());
    assert_eq!(counts.len(), servers.len(), "{hashing}: every server owns keys: {counts:?}");
    println!("{hashing}, {} servers: {KEYS} keys, 0 mismatches", servers.len());
}

/// Servers side by side; the answers for those with a name are kept as golden files.
#[derive(Clone, Debug)]
struct Set {
    name: Option<&'static str>,
    servers: Vec<Server>,
}

/// So many servers of IPv4, some of other weights, and some of IPv6.
fn sets(servers: &mut Servers) -> [Set; 5] {
    [
        Set { name: Some("v4"), servers: servers.v4(&[1; 10]) },
        Set { name: None, servers: servers.v4(&[1; 2]) },
        Set { name: None, servers: servers.v4(&[1; 50]) },
        Set { name: None, servers: servers.v4(&[1, 2, 3, 5, 10]) },
        Set { name: Some("v6"), servers: servers.v6(&[1, 2, 3, 5, 10, 1, 4]) },
    ]
}

//! `wspool-operator owner` gives each key to the server that nginx, HAProxy and Envoy send it to, and connections that
//! enter through such a proxy are not handed on.

mod ask;
mod envoy;
mod haproxy;
mod hops;
mod nginx;
mod servers;

use std::collections::BTreeMap;

use harness::operator::Files;

use ask::Answers;
use servers::{Server, Servers};

/// How many keys each configuration is asked about.
const KEYS: usize = 20_000;

/// Keys of all lengths and bytes that stand in a header's value.
fn keys() -> Vec<String> {
    let key = |number: usize| match number % 5 {
        0 => format!("user-{number}"),
        1 => number.to_string(),
        2 => format!("ü/{number}?&=%41\u{1f600}"),
        3 => format!("{number}{}", "x".repeat(number % 97)),
        _ => format!("{:x}-{number}", number.wrapping_mul(0x9E37_79B9)),
    };
    (0..KEYS).map(key).collect()
}

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

/// So many servers of IPv4, one with other weights, and one of IPv6.
fn sets(servers: &mut Servers) -> Vec<Vec<Server>> {
    vec![servers.v4(&[1; 10]), servers.v4(&[1; 2]), servers.v4(&[1; 50]), servers.v4(&[1, 2, 3, 5, 10]), servers.v6(7)]
}

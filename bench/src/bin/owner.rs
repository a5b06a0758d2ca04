//! Asks `wspool-operator owner` for the owners of 1,000,000 keys, with every hash, and prints a table: `make bench-owner`.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use harness::operator::Files;

const KEYS: usize = 1_000_000;
const MEMBERS: [usize; 2] = [10, 200];
const ROUNDS: usize = 3;

/// What the table calls a hash, and the pool's `hashing`.
const HASHES: [(&str, &str); 7] = [
    ("Rendezvous (XXH64)", "{}"),
    ("Rendezvous, `seedFrom` (SipHash-2-4)", "{seedFrom: {file: seed.hex}}"),
    ("NginxKetama", "{algorithm: NginxKetama}"),
    ("IngressNginx", "{algorithm: IngressNginx}"),
    ("EnvoyRing", "{algorithm: EnvoyRing}"),
    ("EnvoyMaglev", "{algorithm: EnvoyMaglev}"),
    ("HAProxy", "{algorithm: HAProxy}"),
];

fn main() {
    let keys = (0..KEYS).fold(String::new(), |mut text, user| {
        writeln!(text, "user-{user}").expect("memory");
        text
    });
    println!("| 1,000,000 keys through `owner` | {} members | {} members |\n|---|---:|---:|", MEMBERS[0], MEMBERS[1]);
    for (name, hashing) in HASHES {
        let [few, many] = MEMBERS.map(|members| median(hashing, members, &keys).as_secs_f64());
        println!("| {name} | {few:.2} s | {many:.2} s |");
    }
}

/// The middle one of some rounds.
fn median(hashing: &str, members: usize, keys: &str) -> Duration {
    let files = Files::new(&format!("hashing: {hashing}"));
    std::fs::write(files.path("seed.hex"), "000102030405060708090a0b0c0d0e0f\n").expect("a file in a temporary folder");
    files.write_members(&listed(members));
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| round(&files, keys)).collect();
    times.sort();
    times[ROUNDS / 2]
}

/// The time of the whole command, from its start to its end.
fn round(files: &Files, keys: &str) -> Duration {
    let input = keys.to_owned();
    let began = Instant::now();
    let output = files.run(&["owner", "--pool", "pool.yaml", "--members", "members.yaml"], input);
    let took = began.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout.split(|byte| *byte == b'\n').count(), KEYS + 1, "lines of the answer");
    took
}

fn listed(members: usize) -> String {
    (0..members).fold(String::new(), |mut text, number| {
        writeln!(text, "- {{name: s{number}, address: 10.0.0.{number}:7480, control: 10.0.0.{number}:7481}}")
            .expect("memory");
        text
    })
}

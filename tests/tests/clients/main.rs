//! Client libraries by themselves: clients of each are moved by a real operator and real sidecars, and must come back
//! without a line of code for it, while the others are left alone. What the wire carries is listened to.
//!
//! `make clients` writes what was measured to docs/clients.md.

mod libraries;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use harness::operator::Files;
use harness::plan::taken_by_last;
use harness::tap::{Call, Tap};
use harness::wait::{equal, until_within};
use harness::{Operator, Sidecar, until};

use libraries::{LIBRARIES, Library};
use page::Row;

/// Clients of each library.
const CLIENTS: usize = 20;
/// How long a library may need to bring all of them back: a move begins with one client, then five, and waits for them.
const PATIENCE: Duration = Duration::from_secs(90);
/// Libraries at a time.
const AT_A_TIME: usize = 8;

#[tokio::test]
async fn clients_of_every_library_come_back_by_themselves_and_nobody_else_is_disturbed() {
    let measured = futures_util::stream::iter(&LIBRARIES).map(measure).buffer_unordered(AT_A_TIME);
    let mut rows: Vec<Row> = measured.collect().await;
    rows.sort_by_key(|row| row.library.name());
    page::check(&rows);
}

/// Moves the clients of a library whose keys a second server takes.
async fn measure(library: &'static Library) -> Row {
    let name = library.script;
    let (servers, [at_a, at_b]) = library.serve().await;
    let a = Sidecar::named("a").upstream(at_a).start().await;
    let b = Sidecar::named("b").upstream(at_b).start().await;
    let spec = format!("rebalance: {{settle: 200ms, rate: 100}}, notice: {{protocol: {:?}}}", library.protocol);
    let operator = Operator::start(Files::with_key(library.key, &spec)).await;
    operator.files().list(&[&a], &[]);
    operator.stable(1).await;
    let tap = Tap::start(a.listen).await;
    let clients = library.connect(tap.address, CLIENTS);
    let keys: BTreeSet<String> = (0..CLIENTS).map(|number| format!("user-{number}")).collect();
    until(&format!("{name}: all clients are at the first server"), async || equal(&clients.clients_at("a"), &keys))
        .await;

    operator.files().list(&[&a, &b], &[]);
    let moved: BTreeSet<String> = taken_by_last(2, CLIENTS).into_iter().collect();
    until_within(PATIENCE, &format!("{name}: those that moved are back"), async || {
        equal(&clients.clients_at("b"), &moved)
    })
    .await;
    operator.stable(2).await;

    let calls = calls_by_key(&tap);
    let stayed = keys.difference(&moved);
    stayed.for_each(|key| check_stayed(library, &calls[key]));
    let mut away: Vec<Duration> = moved.iter().map(|key| check_moved(library, &calls[key])).collect();
    away.sort();
    let host = format!("host {}", tap.address);
    let hosts: BTreeSet<String> = servers.lines().into_iter().filter(|line| line.starts_with("host ")).collect();
    assert_eq!(hosts, BTreeSet::from([host]), "{name}: its server must see the Host that its clients sent");
    Row { library, moved: moved.len(), away }
}

fn calls_by_key(tap: &Tap) -> BTreeMap<String, Vec<Call>> {
    let mut calls: BTreeMap<String, Vec<Call>> = BTreeMap::new();
    for call in tap.calls() {
        calls.entry(key_in(&call.target)).or_default().push(call);
    }
    calls
}

/// The key in a handshake's target, wherever it stands.
fn key_in(target: &str) -> String {
    let start = target.find("user-").expect("a key");
    target[start..].split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).next().unwrap_or_default().to_owned()
}

fn check_stayed(library: &Library, calls: &[Call]) {
    let [call] = calls else { panic!("{}: one that stays connected as {calls:?}", library.script) };
    library.check_undisturbed(call);
}

/// Returns how long it was away.
fn check_moved(library: &Library, calls: &[Call]) -> Duration {
    let [first, second] = calls else { panic!("{}: one that moved connected as {calls:?}", library.script) };
    library.check_told(first);
    library.check_undisturbed(second);
    let (_, told) = first.close().expect("checked");
    second.accepted.saturating_duration_since(told)
}

//! Streams of events: connections that are no WebSockets.

use std::collections::BTreeSet;

use harness::operator::Files;
use harness::plan::taken_by_last;
use harness::script::Script;
use harness::wait::equal;
use harness::{Backend, Operator, Plan, Sidecar, Wire, until};

const BEGUN: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

#[tokio::test]
async fn a_stream_of_events_is_a_connection_of_its_key_and_ends_after_an_event() {
    let backend = Backend::start().await;
    let from = Sidecar::named("from").upstream(backend.address).start().await;
    let to = Sidecar::named("to").upstream(backend.address).start().await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &from)]);
    plan.publish(&[&from, &to]).await;
    let mut client = Wire::dial(to.listen).await;
    client.send("GET /events?user=ann HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n").await;
    let mut app = backend.accept().await;
    app.head().await;
    app.send([BEGUN, &chunk("data: 1\n\ndata: 2\n")].concat()).await;
    client.up_to("data: 2\n\r\n").await;
    assert_eq!(from.status().await.connections, 1);

    plan.hold(&[(0, &to)]);
    plan.publish(&[&from, &to]).await;
    let grant = plan.grant(&from, 1);
    until("the eviction has begun", async || equal(&from.grant(&grant).await.in_flight, &1)).await;
    app.send(chunk("data: 3\n\ndata: 4\n")).await;
    assert_eq!(client.up_to("0\r\n\r\n").await, [chunk("data: 3\n\n"), "0\r\n\r\n".into()].concat().into_bytes());
    assert_eq!(app.rest().await.unwrap_or_default(), b"", "the app sees that it has ended");
    until("it is counted", async || {
        let report = from.status().await;
        equal(&(report.connections, report.evicted), &(0, 1))
    })
    .await;
    assert_eq!(from.metric("wspool_evictions_total{outcome=\"clean\"}").await, 1);
}

#[tokio::test]
async fn a_stream_of_events_whose_client_does_not_read_is_broken() {
    let backend = Backend::start().await;
    let from = Sidecar::named("from").upstream(backend.address).start().await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &from)]);
    plan.publish(&[&from]).await;
    let mut client = Wire::dial(from.listen).await;
    client.send("GET /events?user=ann HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut app = backend.accept().await;
    app.head().await;
    let event = chunk(&format!("data: {}\n\n", "a".repeat(1 << 20)));
    let sending = tokio::spawn(async move {
        app.send(BEGUN).await;
        while app.try_send(&event).await.is_ok() {}
    });
    until("it is held", async || equal(&from.status().await.connections, &1)).await;

    let to = Sidecar::named("to").upstream(backend.address).start().await;
    plan.hold(&[(0, &to)]);
    plan.publish(&[&from]).await;
    let grant = plan.grant(&from, 1);
    until("it is gone", async || {
        let report = from.grant(&grant).await;
        equal(&(report.connections, report.evicted), &(0, 1))
    })
    .await;
    sending.await.expect("the app sees that it has ended");
    drop(client);
}

#[tokio::test]
async fn streams_of_events_are_within_the_pools_limits() {
    let backend = Backend::start().await;
    let sidecar = Sidecar::named("only").upstream(backend.address).start().await;
    let mut plan = Plan::new();
    plan.placement.settings.limits.connections = 1;
    plan.hold(&[(0, &sidecar)]);
    plan.publish(&[&sidecar]).await;
    let ask = |user| {
        let accept = "Accept: application/json, text/event-stream;q=0.9\r\nAccept-Encoding: gzip";
        format!("GET /events?user={user} HTTP/1.1\r\nHost: a\r\n{accept}\r\n\r\n")
    };
    let mut first = Wire::dial(sidecar.listen).await;
    first.send(ask("ann")).await;
    let mut app = backend.accept().await;
    assert!(!app.head().await.to_ascii_lowercase().contains("accept-encoding"), "it must be readable on its way");
    app.send(BEGUN).await;
    first.head().await;
    let mut second = Wire::dial(sidecar.listen).await;
    second.send(ask("bob")).await;
    assert!(second.head().await.starts_with("HTTP/1.1 503 "));
}

#[tokio::test]
async fn a_stream_of_events_counts_where_it_enters_too_and_a_drain_there_ends_it_after_an_event() {
    let backend = Backend::start().await;
    let owner = Sidecar::named("owner").upstream(backend.address).start().await;
    let mut entry = Sidecar::router().await;
    let mut plan = Plan::new();
    plan.placement.settings.limits.connections = 1;
    plan.hold(&[(0, &owner)]);
    plan.others(&[&entry]);
    plan.publish(&[&owner, &entry]).await;
    let ask = "GET /events?user=ann HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n";
    let mut client = Wire::dial(entry.listen).await;
    client.send(ask).await;
    let mut app = backend.accept().await;
    app.head().await;
    app.send([BEGUN, &chunk("data: 1\n\ndata: 2\n")].concat()).await;
    client.up_to("data: 2\n\r\n").await;
    assert_eq!((entry.status().await.transit, owner.status().await.connections), (1, 1));
    let mut second = Wire::dial(entry.listen).await;
    second.send(ask).await;
    assert!(second.head().await.starts_with("HTTP/1.1 503 "), "the entry is full");

    entry.terminate();
    until("the eviction has begun", async || equal(&entry.status().await.in_flight, &1)).await;
    app.send(chunk("data: 3\n\ndata: 4\n")).await;
    assert_eq!(client.up_to("0\r\n\r\n").await, [chunk("data: 3\n\n"), "0\r\n\r\n".into()].concat().into_bytes());
    assert_eq!(app.rest().await.unwrap_or_default(), b"", "the app sees that it has ended");
    assert_eq!(entry.process().ended().await.code(), Some(0));
    until("nothing is held", async || equal(&owner.status().await.connections, &0)).await;
}

#[tokio::test]
async fn event_sources_come_back_by_themselves_at_their_keys_new_server() {
    let mut servers = Script::library("server.js", &["eventsource", "a", "b"]);
    let mut sidecars = Vec::new();
    for name in ["a", "b"] {
        let port: u16 = servers.says(&format!("port {name} ")).await.parse().expect("a port");
        sidecars.push(Sidecar::named(name).upstream(([127, 0, 0, 1], port).into()).start().await);
    }
    let operator = Operator::start(Files::new("rebalance: {settle: 200ms, rate: 100}")).await;
    operator.files().list(&[&sidecars[0]], &[]);
    operator.stable(1).await;
    let clients = Script::library("clients.js", &["eventsource", &sidecars[0].listen.to_string(), "20"]);
    let all: BTreeSet<String> = (0..20).map(|number| format!("user-{number}")).collect();
    until("all are at the first server", async || equal(&clients.clients_at("a"), &all)).await;
    operator.files().list(&[&sidecars[0], &sidecars[1]], &[]);
    let moved: BTreeSet<String> = taken_by_last(2, 20).into_iter().collect();
    until("those that moved are back", async || equal(&clients.clients_at("b"), &moved)).await;
    let pool = operator.stable(2).await;
    assert_eq!((&pool["connections"], &pool["breaks"]["move"]), (&20.into(), &moved.len().into()), "{pool}");
}

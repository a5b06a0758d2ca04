//! `strategy: LeastConnections`: where connections go when load decides, and which of them are moved.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use harness::http::Http;
use harness::operator::Files;
use harness::wait::equal;
use harness::{App, Backend, Client, Crowd, Guestbook, Operator, Plan, Scene, Sidecar, Wire, until};
use http::{Method, StatusCode};
use ring::settings::{Gateway, Settings, Strategy};
use ring::wire::{Load, Loads, Told};
use ring::{SlotId, Version};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

const FAST: &str = "strategy: LeastConnections, rebalance: {settle: 200ms, rate: 200, returnTimeout: 5s}";

/// A pool without keys, behind a router.
async fn scene(spec: &str, names: &[&str]) -> Scene {
    Scene::new(Files::keyless(spec), names).await
}

/// Waits until these servers have so many clients, and nothing moves.
async fn balanced(scene: &Scene, expected: &[(&str, usize)]) -> Value {
    let expected: BTreeMap<_, _> = expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    until("the pool is balanced", async || {
        let balanced = equal(&scene.crowd.present(), &expected);
        if balanced.is_ok() { Ok(()) } else { Err(format!("{balanced:?} {}", scene.operator.pool().await)) }
    })
    .await;
    scene.operator.until("nothing moves", |pool| pool["state"] == "Stable" && pool["move"]["inFlight"] == 0).await
}

/// How often each client was disconnected; each time it was told, and nobody was turned away.
fn breaks(scene: &Scene) -> Vec<usize> {
    let lives = scene.crowd.lives();
    for life in &lives {
        assert!(life.goodbyes().iter().all(|told| *told == Some((1012, "moved".to_owned()))), "{life:?}");
        assert_eq!(life.refusals, Vec::<String>::new(), "{life:?}");
    }
    lives.iter().map(harness::crowd::Life::breaks).collect()
}

#[tokio::test]
async fn half_of_the_connections_of_one_server_are_moved_to_a_second_one_that_joins() {
    let mut scene = scene(FAST, &["a"]).await;
    scene.crowd.join_users(200, &[scene.router.listen]).await;
    scene.start("b").await;
    scene.list(&["a", "b"]);
    let pool = balanced(&scene, &[("a", 100), ("b", 100)]).await;
    assert_eq!(breaks(&scene).into_iter().sum::<usize>(), 100, "as many as had to");
    assert_eq!((&pool["move"]["evicted"], &pool["move"]["returned"]), (&100.into(), &100.into()), "{pool}");
    assert_eq!((&pool["move"]["lost"], &pool["breaks"]["move"]), (&0.into(), &100.into()), "{pool}");
    // A third one: nobody is moved twice by it that did not have to be, and nothing goes to and fro.
    scene.start("c").await;
    scene.list(&["a", "b", "c"]);
    until("the third has its share", async || {
        let present = scene.crowd.present();
        let least = ["a", "b", "c"].iter().filter_map(|name| present.get(*name)).min();
        equal(&(present.len(), least.is_some_and(|least| *least >= 66)), &(3, true))
    })
    .await;
    assert_eq!(breaks(&scene).into_iter().sum::<usize>(), 166, "{:?}", scene.crowd.present());
}

#[tokio::test]
async fn a_burst_of_clients_without_keys_is_spread_over_the_servers() {
    let mut scene = scene(FAST, &["a", "b"]).await;
    let entries = [scene.router.listen, scene.servers["a"].listen];
    scene.crowd.join_users(100, &entries).await;
    let (a, b) = (scene.crowd.present()["a"], scene.crowd.present()["b"]);
    assert!(a.abs_diff(b) <= 10, "{a} and {b}");
    assert_eq!(breaks(&scene).into_iter().sum::<usize>(), 0);
}

#[tokio::test]
async fn the_idle_are_moved_first_and_pings_are_no_activity() {
    // These clients do not come back.
    let spec = "strategy: LeastConnections, rebalance: {settle: 200ms, minReturned: 0, returnTimeout: 1s}";
    let mut scene = scene(spec, &["a"]).await;
    let (mut talkers, mut idlers) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        idlers.push(Client::connect(scene.router.listen, "idler").await);
        talkers.push(Client::connect(scene.router.listen, "talker").await);
    }
    scene.start("b").await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(500) {
        for talker in &mut talkers {
            talker.check().await;
        }
    }
    // The last bytes of all are the idlers'.
    for idler in &mut idlers {
        idler.send(Message::Ping("still here".into())).await;
        assert!(matches!(idler.hear().await, Message::Pong(_)));
    }
    scene.list(&["a", "b"]);
    for mut idler in idlers {
        assert_eq!(idler.goodbye().await, Some((1012, "moved".to_owned())));
    }
    scene.operator.until("it is over", |pool| pool["state"] == "Stable" && pool["move"]["evicted"] == 10).await;
    for talker in &mut talkers {
        talker.check().await;
    }
}

#[tokio::test]
async fn a_server_that_ends_is_emptied_to_the_others() {
    let mut scene = scene(FAST, &["a", "b", "c"]).await;
    scene.crowd.join_users(90, &[scene.router.listen]).await;
    let held = scene.crowd.present()["a"];
    assert!(held > 20, "{:?}", scene.crowd.present());
    let a = scene.servers.get_mut("a").expect("a");
    a.terminate();
    assert_eq!(a.process().ended().await.code(), Some(0), "{}", a.process().log());
    scene.list(&["b", "c"]);
    scene.crowd.settled().await;
    assert_eq!(scene.crowd.present().keys().collect::<Vec<_>>(), ["b", "c"]);
    let breaks = breaks(&scene);
    assert_eq!((breaks.iter().sum::<usize>(), breaks.iter().max()), (held, Some(&1)));
}

#[tokio::test]
async fn a_server_that_was_killed_gets_its_share_when_it_is_back() {
    let mut scene = scene(FAST, &["a", "b"]).await;
    scene.crowd.join_users(60, &[scene.router.listen]).await;
    scene.servers.get_mut("b").expect("b").kill();
    let all_at_a = BTreeMap::from([("a".to_owned(), 60)]);
    until("all are at the other one", async || equal(&scene.crowd.present(), &all_at_a)).await;
    scene.servers.get_mut("b").expect("b").start_again().await;
    balanced(&scene, &[("a", 30), ("b", 30)]).await;
}

fn told(version: Version, loads: &[u64]) -> Told {
    let load = |(slot, &connections): (u32, &u64)| (SlotId(slot), Load { connections, age_ms: 0 });
    Told { target: "a".into(), loads: Loads { version, slots: (0..).zip(loads).map(load).collect() } }
}

#[tokio::test]
async fn the_gateway_names_the_less_loaded_slot_and_a_client_that_comes_to_its_address_stays_unless_it_takes_none() {
    let book = Guestbook::default();
    let (here, there) = (App::start("a", &book).await, App::start("b", &book).await);
    let a = Sidecar::named("a").upstream(here.address).start().await;
    let b = Sidecar::named("b").upstream(there.address).start().await;
    let gateway = Gateway {
        path: Gateway::default_path(),
        url: "wss://s{slot}.chat.example.com/".into(),
        origins: Vec::new(),
        per_client: 0,
        trusted_hops: 0,
    };
    let mut plan =
        Plan::with(Settings { strategy: Strategy::LeastConnections, gateway: Some(gateway), ..Settings::default() });
    plan.hold(&[(0, &a), (1, &b)]);
    plan.publish(&[&a, &b]).await;
    let version = plan.placement.version;
    let mut loads = told(version, &[1_000, 10]);
    assert_eq!(a.put_json("/v1/loads", &loads).await.status, StatusCode::OK);

    let answer = Http::default().send(Method::GET, a.listen, "/gateway", "").await.expect("an answer");
    let answer: Value = answer.json().expect("where to connect");
    assert_eq!((&answer["url"], &answer["slot"]), (&"wss://s1.chat.example.com/".into(), &1.into()));

    let mut clients = Vec::new();
    let shedding = ("s0.chat.example.com", 2);
    for (host, transit) in [("s0.chat.example.com", 0), ("chat.example.com", 1), shedding] {
        if (host, transit) == shedding {
            loads.loads.slots.remove(&SlotId(0));
            assert_eq!(a.put_json("/v1/loads", &loads).await.status, StatusCode::OK);
        }
        let mut client = Wire::dial(a.listen).await;
        client
            .send(format!(
                "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: \
                 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ))
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
        assert_eq!(a.status().await.transit, transit, "{host}");
        clients.push(client);
    }
}

#[tokio::test]
async fn clients_that_know_the_address_of_one_slot_only_are_moved_from_it_once() {
    let book = Guestbook::default();
    let (here, there) = (App::start("a", &book).await, App::start("b", &book).await);
    let a = Sidecar::named("a").upstream(here.address).start().await;
    let b = Sidecar::named("b").upstream(there.address).start().await;
    // Slot 0 is where they come to; nobody goes to the address of another one.
    let url = format!("ws://127.0.{{slot}}.1:{}/", a.listen.port());
    let operator = Operator::start(Files::keyless(&format!("{FAST}, gateway: {{url: '{url}'}}"))).await;
    operator.files().list(&[&a], &[]);
    operator.stable(1).await;
    let mut crowd = Crowd::default();
    crowd.join_users(60, &[a.listen]).await;
    operator.files().list(&[&a, &b], &[]);
    let halves = BTreeMap::from([("a".to_owned(), 30), ("b".to_owned(), 30)]);
    until("half of them are at the other one", async || equal(&crowd.present(), &halves)).await;
    let pool = operator.until("nothing moves", |pool| pool["state"] == "Stable" && pool["move"]["inFlight"] == 0).await;
    assert_eq!((crowd.breaks(), &pool["move"]["evicted"]), (30, &30.into()), "{pool}");
}

#[tokio::test]
async fn a_stream_of_events_goes_to_the_less_loaded_server_as_a_websocket_does() {
    let (here, there) = (Backend::start().await, Backend::start().await);
    let a = Sidecar::named("a").upstream(here.address).start().await;
    let b = Sidecar::named("b").upstream(there.address).start().await;
    let mut plan = Plan::with(Settings { strategy: Strategy::LeastConnections, ..Settings::default() });
    plan.hold(&[(0, &a), (1, &b)]);
    plan.publish(&[&a, &b]).await;
    let loads = told(plan.placement.version, &[1_000, 10]);
    assert_eq!(a.put_json("/v1/loads", &loads).await.status, StatusCode::OK);
    let mut client = Wire::dial(a.listen).await;
    client.send("GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n").await;
    let mut app = there.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await;
    client.up_to("data: 1\n\n").await;
    assert_eq!((a.status().await.transit, b.status().await.connections), (1, 1));
    // Any other request is answered where it enters.
    let mut other = Wire::dial(a.listen).await;
    other.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
    here.accept().await.head().await;
}

#[tokio::test]
async fn loads_of_other_slots_and_for_other_sidecars_are_refused() {
    let a = Sidecar::named("a").upstream(harness::ports::free()).start().await;
    let mut plan = Plan::with(Settings { strategy: Strategy::LeastConnections, ..Settings::default() });
    plan.hold(&[(0, &a)]);
    plan.publish(&[&a]).await;
    let version = plan.placement.version;
    let older = Version { epoch: version.epoch - 1, ..version };
    for (told, status, says) in [
        (told(older, &[1]), StatusCode::CONFLICT, "the loads are of term 1 epoch 0, this sidecar is at term 1 epoch 1"),
        (Told { target: "b".into(), ..told(version, &[1]) }, StatusCode::MISDIRECTED_REQUEST, "this one is \\\"a\\\""),
    ] {
        let answer = a.put_json("/v1/loads", &told).await;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!((answer.status, body.contains(says)), (status, true), "{body}");
    }
    let answer = a.put("/v1/loads", "{}").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

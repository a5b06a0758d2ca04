//! `GET /gateway`: what it answers is where the connection is then accepted, without a hop.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use harness::crowd::Habit;
use harness::http::{Answer, Http};
use harness::operator::Files;
use harness::wait::equal;
use harness::{App, Client, Crowd, Guestbook, Operator, Plan, Sidecar, until};
use http::{Method, StatusCode};
use ring::settings::{Gateway, KeySource, Missing, Settings};
use serde_json::{Value, json};

/// A server: an app with its sidecar, of one name.
struct Server {
    _app: App,
    sidecar: Sidecar,
}

async fn server(name: &str, book: &Guestbook) -> Server {
    let app = App::start(name, book).await;
    let sidecar = Sidecar::named(name).upstream(app.address).start().await;
    Server { _app: app, sidecar }
}

fn gateway() -> Gateway {
    Gateway {
        path: "/gateway".into(),
        url: "wss://s{slot}.chat.example.com/".into(),
        origins: Vec::new(),
        per_client: 0,
        trusted_hops: 0,
    }
}

fn settings(gateway: Gateway) -> Settings {
    Settings { gateway: Some(gateway), ..Settings::default() }
}

async fn ask(method: Method, entry: &Sidecar, target: &str, headers: &[(&str, &str)]) -> Answer {
    Http::default().send_with(headers, method, entry.listen, target, "").await.expect("an answer")
}

/// The slot that an entry names for a key.
async fn slot(entry: &Sidecar, key: &str) -> u32 {
    let answer = ask(Method::GET, entry, &format!("/gateway?user={key}"), &[]).await;
    let answer: Value = answer.json().unwrap_or_else(|error| panic!("{} on {key}: {error}", entry.name));
    let slot = answer["slot"].as_u64().expect("a slot");
    assert_eq!(answer["url"], format!("wss://s{slot}.chat.example.com/"));
    slot.try_into().expect("a slot")
}

/// Asks every entry about every key, and connects to where it is sent: it must be accepted right there.
async fn is_accepted_where_it_says(entries: &[&Sidecar], slots: &BTreeMap<u32, &Sidecar>, keys: &[String]) {
    for key in keys {
        for entry in entries {
            let named = slots[&slot(entry, key).await];
            let mut client = Client::connect(named.listen, key).await;
            assert_eq!(client.server, named.name, "{key}, asked at {}", entry.name);
            client.check().await;
        }
    }
    for sidecar in slots.values() {
        until("no connection is tunnelled", async || equal(&sidecar.status().await.transit, &0)).await;
    }
}

#[tokio::test]
async fn what_it_answers_is_where_the_connection_is_accepted_at_any_moment_of_a_move() {
    let book = Guestbook::default();
    let (a, b, c) = (server("a", &book).await, server("b", &book).await, server("c", &book).await);
    let router = Sidecar::router().await;
    let mut plan = Plan::with(settings(gateway()));
    plan.hold(&[(0, &a.sidecar), (7, &b.sidecar)]);
    plan.others(&[&router, &c.sidecar]);
    let all = [&a.sidecar, &b.sidecar, &c.sidecar, &router];
    plan.publish(&all).await;
    let keys: Vec<String> = (0..16).map(|number| format!("user-{number}")).collect();
    let mut slots = BTreeMap::from([(0, &a.sidecar), (7, &b.sidecar)]);
    is_accepted_where_it_says(&all, &slots, &keys).await;

    let mut held = BTreeMap::new();
    for key in &keys {
        let client = Client::connect(slots[&slot(&router, key).await].listen, key).await;
        held.insert(key.clone(), client);
    }
    plan.hold(&[(0, &a.sidecar), (7, &b.sidecar), (9, &c.sidecar)]);
    plan.publish(&all).await;
    slots.insert(9, &c.sidecar);
    let moving = plan.keys_of(&c.sidecar, 100).into_iter().filter(|key| keys.contains(key)).count();
    assert!(moving > 2, "too few keys move to prove anything");
    // Nobody has been told to go: held keys are answered with their holders, new ones with their owners.
    is_accepted_where_it_says(&all, &slots, &keys).await;
    let new: Vec<String> = (100..108).map(|number| format!("user-{number}")).collect();
    is_accepted_where_it_says(&all, &slots, &new).await;
    for (key, client) in &held {
        let slot = slot(&router, key).await;
        assert_eq!(slots[&slot].name, client.server, "{key} is held there");
    }

    // One after the other they go; what was said of each stays true in between.
    for source in [&a.sidecar, &b.sidecar] {
        while source.status().await.moved > 0 {
            let evicted = source.status().await.evicted;
            source.grant(&plan.grant(source, evicted + 1)).await;
            until("one more is gone", async || {
                let report = source.status().await;
                source.grant(&plan.grant(source, evicted + 1)).await;
                equal(&(report.evicted, report.in_flight), &(evicted + 1, 0))
            })
            .await;
            is_accepted_where_it_says(&[&a.sidecar, &router], &slots, &keys).await;
        }
    }
    plan.settle();
    plan.publish(&all).await;
    is_accepted_where_it_says(&all, &slots, &keys).await;
    assert_eq!(book.on_two_servers(), Vec::<String>::new());
}

#[tokio::test]
async fn clients_that_ask_first_are_moved_by_a_scale_up_without_a_hop() {
    let book = Guestbook::default();
    let (a, b) = (server("a", &book).await, server("b", &book).await);
    let spec = "rebalance: {settle: 200ms, rate: 100}, gateway: {url: 'ws://s{slot}/', perClient: 0}";
    let operator = Operator::start(Files::new(spec)).await;
    operator.files().list(&[&a.sidecar], &[]);
    operator.stable(1).await;

    let (entry, addresses) = (a.sidecar.listen, [a.sidecar.listen, b.sidecar.listen]);
    let mut crowd = Crowd::default();
    for number in 0..60 {
        let named = move |key: &str| told(entry, key).map(|slot| addresses[slot]).into_iter().collect();
        crowd.join_by(&format!("user-{number}"), Habit::Returns, named);
    }
    crowd.settled().await;
    operator.files().list(&[&a.sidecar, &b.sidecar], &[]);
    let pool = operator.stable(2).await;
    crowd.settled().await;
    let moved = crowd.present()["b"];
    assert!((15..=45).contains(&moved), "{:?}", crowd.present());
    assert_eq!(crowd.breaks(), moved, "each that moved broke once, the others never");
    assert_eq!(pool["move"]["returned"], moved, "{pool}");
    for sidecar in [&a.sidecar, &b.sidecar] {
        assert_eq!(sidecar.status().await.transit, 0, "through {}", sidecar.name);
    }
    assert_eq!(book.on_two_servers(), Vec::<String>::new());
}

/// Asks as a program without a runtime does: a crowd looks its entry up in passing.
fn told(entry: SocketAddr, key: &str) -> Option<usize> {
    let mut stream = TcpStream::connect(entry).ok()?;
    let request = format!("GET /gateway?user={key} HTTP/1.1\r\nHost: {entry}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let answer: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    answer["slot"].as_u64()?.try_into().ok()
}

#[tokio::test]
async fn it_names_the_next_best_of_a_server_that_is_gone() {
    let book = Guestbook::default();
    let (a, mut b, c) = (server("a", &book).await, server("b", &book).await, server("c", &book).await);
    let mut plan = Plan::with(settings(gateway()));
    plan.hold(&[(0, &a.sidecar), (1, &b.sidecar), (2, &c.sidecar)]);
    plan.publish(&[&a.sidecar, &b.sidecar, &c.sidecar]).await;
    let keys = plan.keys_of(&b.sidecar, 6);
    b.sidecar.kill();
    let slots = BTreeMap::from([(0, &a.sidecar), (2, &c.sidecar)]);
    for key in &keys {
        let named = until("another server is named", async || {
            let slot = slot(&a.sidecar, key).await;
            slots.get(&slot).copied().ok_or_else(|| format!("slot {slot}"))
        })
        .await;
        assert_eq!(Client::connect(named.listen, key).await.server, named.name, "{key}");
    }
}

#[tokio::test]
async fn it_is_read_and_not_kept_and_refuses_everything_else() {
    let book = Guestbook::default();
    let (a, router) = (server("a", &book).await, Sidecar::router().await);
    let page = "https://chat.example.com";
    let mut plan = Plan::with(settings(Gateway { origins: vec![page.into()], ..gateway() }));
    plan.hold(&[(3, &a.sidecar)]);
    plan.others(&[&router]);
    plan.publish(&[&a.sidecar, &router]).await;
    for entry in [&a.sidecar, &router] {
        let answer = ask(Method::GET, entry, "/gateway?user=ann", &[("origin", page)]).await;
        let expected = json!({"url": "wss://s3.chat.example.com/", "slot": 3, "epoch": 1});
        assert_eq!(answer.json::<Value>().expect("JSON"), expected);
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("access-control-allow-origin"), page);

        let head = ask(Method::HEAD, entry, "/gateway?user=ann", &[]).await;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
        assert_eq!(head.header("content-length"), answer.body.len().to_string());

        let headers = [("origin", page), ("access-control-request-method", "GET")];
        let preflight = ask(Method::OPTIONS, entry, "/gateway", &headers).await;
        assert_eq!(preflight.status, StatusCode::NO_CONTENT);
        assert_eq!(preflight.header("access-control-allow-methods"), "GET, HEAD");

        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let refused = ask(method, entry, "/gateway?user=ann", &[]).await;
            assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(refused.header("allow"), "GET, HEAD, OPTIONS");
        }
        // Without a key: wherever it enters, here or at any slot.
        assert_eq!(ask(Method::GET, entry, "/gateway", &[]).await.json::<Value>().expect("JSON"), expected);
        let bad = ask(Method::GET, entry, "/gateway?user=%00", &[]).await;
        assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn it_says_when_there_is_no_key_or_no_server_and_when_somebody_asks_too_often() {
    let book = Guestbook::default();
    let a = server("a", &book).await;
    let mut strict = settings(Gateway { per_client: 5, trusted_hops: 1, ..gateway() });
    strict.key.missing = Missing::Reject;
    let mut plan = Plan::with(strict);
    plan.hold(&[]);
    plan.publish(&[&a.sidecar]).await;
    let nobody = ask(Method::GET, &a.sidecar, "/gateway?user=ann", &[]).await;
    assert_eq!((nobody.status, nobody.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "1"));
    plan.hold(&[(0, &a.sidecar)]);
    plan.publish(&[&a.sidecar]).await;
    let keyless = ask(Method::GET, &a.sidecar, "/gateway", &[]).await;
    assert_eq!(keyless.status, StatusCode::BAD_REQUEST);
    assert!(String::from_utf8_lossy(&keyless.body).contains("key.from"), "{keyless:?}");

    let greedy = [("x-forwarded-for", "203.0.113.1, 198.51.100.7")];
    let refused = until("it is refused", async || {
        let answer = ask(Method::GET, &a.sidecar, "/gateway?user=ann", &greedy).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS { Ok(answer) } else { Err(answer.status.to_string()) }
    })
    .await;
    assert_eq!(refused.header("retry-after"), "1");
    // The first address is whatever the client has written there.
    let other = [("x-forwarded-for", "198.51.100.7, 203.0.113.1")];
    assert_eq!(ask(Method::GET, &a.sidecar, "/gateway?user=ann", &other).await.status, StatusCode::OK);
}

#[tokio::test]
async fn where_keys_stand_in_paths_the_path_to_come_goes_behind_it() {
    let book = Guestbook::default();
    let (a, b) = (server("a", &book).await, server("b", &book).await);
    let mut plan = Plan::with(settings(gateway()));
    plan.placement.settings.key.from = vec![KeySource::Path("/rooms/{key}".into())];
    plan.hold(&[(0, &a.sidecar), (1, &b.sidecar)]);
    plan.publish(&[&a.sidecar, &b.sidecar]).await;
    for (slot, sidecar) in [(0, &a.sidecar), (1, &b.sidecar)] {
        for key in plan.keys_of(sidecar, 5) {
            let answer = ask(Method::GET, &a.sidecar, &format!("/gateway/rooms/{key}"), &[]).await;
            assert_eq!(answer.json::<Value>().expect("JSON")["slot"], slot, "{key}");
        }
    }
}

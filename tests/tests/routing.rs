//! Where a handshake goes: to its key's owner, from any entry.

use harness::wait::equal;
use harness::{App, Client, Guestbook, Plan, Sidecar, until};
use ring::settings::{KeySource, OwnerUnreachable, Settings};

/// A server: an app with its sidecar, of one name.
struct Server {
    app: Option<App>,
    sidecar: Sidecar,
}

async fn server(name: &str, book: &Guestbook) -> Server {
    let app = App::start(name, book).await;
    let sidecar = Sidecar::named(name).upstream(app.address).start().await;
    Server { app: Some(app), sidecar }
}

#[tokio::test]
async fn a_key_reaches_its_owner_from_any_entry() {
    let book = Guestbook::default();
    let (a, b, c) = (server("a", &book).await, server("b", &book).await, server("c", &book).await);
    let router = Sidecar::router().await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &a.sidecar), (1, &b.sidecar), (7, &c.sidecar)]);
    plan.others(&[&router]);
    let all = [&a.sidecar, &b.sidecar, &c.sidecar, &router];
    plan.publish(&all).await;
    let mut clients = Vec::new();
    for entry in all {
        for number in 0..15 {
            let key = format!("user-{number}");
            let mut client = Client::connect(entry.listen, &key).await;
            assert_eq!(client.server, plan.owner(&key), "{key} entered at {}", entry.name);
            client.check().await;
            clients.push(client);
        }
    }
    for sidecar in all {
        let report = sidecar.status().await;
        assert_eq!(report.connections, book.count_at(&sidecar.name) as u64, "at {}", sidecar.name);
        let owned = (0..15).filter(|number| plan.owner(&format!("user-{number}")) == sidecar.name).count();
        assert_eq!(report.transit, 15 - owned as u64, "through {}", sidecar.name);
    }
    assert_eq!(book.visits().first().and_then(|visit| visit.epoch.clone()), Some("1.1".into()), "the fencing token");
    clients.clear();
    for sidecar in all {
        until("nothing is held any more", async || {
            let report = sidecar.status().await;
            equal(&(report.connections, report.transit), &(0, 0))
        })
        .await;
    }
}

#[tokio::test]
async fn an_entry_with_an_old_placement_is_sent_on_and_redials() {
    let book = Guestbook::default();
    let (a, b, c) = (server("a", &book).await, server("b", &book).await, server("c", &book).await);
    let mut plan = Plan::new();
    plan.hold(&[(0, &a.sidecar), (1, &b.sidecar)]);
    plan.publish(&[&a.sidecar, &b.sidecar, &c.sidecar]).await;
    let keys = plan.keys_of(&b.sidecar, 20);
    // The slot goes from b to c; a has not heard of it.
    plan.hold(&[(0, &a.sidecar), (1, &c.sidecar)]);
    plan.publish(&[&b.sidecar, &c.sidecar]).await;
    for key in keys {
        let mut client = Client::connect(a.sidecar.listen, &key).await;
        assert_eq!(client.server, "c", "{key}");
        client.check().await;
    }
    assert_eq!(a.sidecar.metric("wspool_redirects_total").await, 20);
    assert_eq!(b.sidecar.status().await.transit, 0, "b does not stand between a and c");
}

#[tokio::test]
async fn keys_of_a_killed_server_reach_their_next_best_and_nobody_else_moves() {
    let book = Guestbook::default();
    let (a, mut b, c) = (server("a", &book).await, server("b", &book).await, server("c", &book).await);
    let router = Sidecar::router().await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &a.sidecar), (1, &b.sidecar), (2, &c.sidecar)]);
    plan.others(&[&router]);
    plan.publish(&[&a.sidecar, &b.sidecar, &c.sidecar, &router]).await;
    let (others, lost) = (plan.keys_of(&a.sidecar, 10), plan.keys_of(&b.sidecar, 10));
    let mut bystanders = Vec::new();
    for key in &others {
        bystanders.push(Client::connect(router.listen, key).await);
    }
    let mut victim = Client::connect(router.listen, &lost[0]).await;
    b.sidecar.kill();
    let address = b.app.take().map(|app| app.address).expect("its app");
    assert_eq!(victim.goodbye().await, None, "there was nobody to say it");

    let compiled = plan.placement.clone().compile().expect("a right placement");
    for key in &lost {
        let next_best = compiled.ring().ranked(compiled.hash(key))[1];
        let expected = &compiled.holder(next_best).expect("a holder").name;
        let mut client = Client::connect(router.listen, key).await;
        assert_eq!(&client.server, expected, "{key}");
        client.check().await;
    }
    assert_eq!(router.metric("wspool_fallbacks_total").await, 10);
    for bystander in &mut bystanders {
        bystander.check().await;
    }

    // It comes back with the same name at the same place; the operator says so to everyone.
    b.app = Some(App::start_at(address, "b", &book).await);
    b.sidecar.start_again().await;
    plan.settle();
    plan.publish(&[&a.sidecar, &b.sidecar, &c.sidecar, &router]).await;
    for key in &lost {
        assert_eq!(Client::connect(router.listen, key).await.server, "b", "{key}");
    }
    for bystander in &mut bystanders {
        bystander.check().await;
    }
}

#[tokio::test]
async fn a_pool_that_rejects_instead_answers_503_while_the_owner_is_away() {
    let book = Guestbook::default();
    let (a, mut b) = (server("a", &book).await, server("b", &book).await);
    let mut plan = Plan::with(Settings { owner_unreachable: OwnerUnreachable::Reject, ..Settings::default() });
    plan.hold(&[(0, &a.sidecar), (1, &b.sidecar)]);
    plan.publish(&[&a.sidecar, &b.sidecar]).await;
    let key = plan.keys_of(&b.sidecar, 1).remove(0);
    b.sidecar.kill();
    let (status, sentence) = Client::refusal(a.sidecar.listen, &key).await;
    assert_eq!(status, 503);
    assert!(sentence.contains("cannot be reached"), "{sentence:?}");
    assert_eq!(a.sidecar.metric("wspool_handshakes_refused_total{reason=\"unreachable\"}").await, 1);
}

#[tokio::test]
async fn a_handshake_waits_for_an_app_that_restarts_beside_its_sidecar() {
    let book = Guestbook::default();
    let (a, mut b) = (server("a", &book).await, server("b", &book).await);
    let mut plan = Plan::new();
    plan.hold(&[(0, &a.sidecar), (1, &b.sidecar)]);
    plan.publish(&[&a.sidecar, &b.sidecar]).await;
    let key = plan.keys_of(&b.sidecar, 1).remove(0);
    let address = b.app.take().map(|app| app.address).expect("its app");
    let connecting = tokio::spawn({
        let (entry, key) = (a.sidecar.listen, key.clone());
        async move { Client::connect(entry, &key).await }
    });
    for _ in 0..20 {
        b.sidecar.status().await;
        assert!(!connecting.is_finished(), "it did not wait");
    }
    b.app = Some(App::start_at(address, "b", &book).await);
    assert_eq!(connecting.await.expect("a connection").server, "b");
}

#[tokio::test]
async fn plain_requests_with_a_key_are_routed_like_handshakes() {
    let book = Guestbook::default();
    let backend = harness::Backend::start().await;
    let a = server("a", &book).await;
    let b = Sidecar::named("b").upstream(backend.address).start().await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &a.sidecar), (1, &b)]);
    plan.publish(&[&a.sidecar, &b]).await;
    let key = plan.keys_of(&b, 1).remove(0);
    let mut client = harness::Wire::dial(a.sidecar.listen).await;
    client.send(format!("POST /poll?user={key} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nping")).await;
    let mut app = backend.accept().await;
    let head = app.head().await;
    assert!(head.starts_with(&format!("POST /poll?user={key} ")), "{head}");
    assert!(head.to_lowercase().contains("x-forwarded-for: 127.0.0.1\r\n"), "appended once: {head}");
    assert_eq!(app.exactly(4).await, b"ping");
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(client.exactly(4).await, b"pong");
}

#[tokio::test]
async fn a_plain_request_that_enters_with_an_old_placement_is_sent_on_while_nothing_of_it_has_gone() {
    let book = Guestbook::default();
    let (a, b) = (server("a", &book).await, server("b", &book).await);
    let backend = harness::Backend::start().await;
    let c = Sidecar::named("c").upstream(backend.address).start().await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &a.sidecar), (1, &b.sidecar)]);
    plan.publish(&[&a.sidecar, &b.sidecar, &c]).await;
    let key = plan.keys_of(&b.sidecar, 1).remove(0);
    // The slot goes from b to c; a has not heard of it.
    plan.hold(&[(0, &a.sidecar), (1, &c)]);
    plan.publish(&[&b.sidecar, &c]).await;
    let mut client = harness::Wire::dial(a.sidecar.listen).await;
    client.send(format!("GET /poll?user={key} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    let mut app = backend.accept().await;
    assert!(app.head().await.starts_with(&format!("GET /poll?user={key} ")));
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(client.exactly(4).await, b"pong");

    client.send(format!("POST /poll?user={key} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nping")).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.to_lowercase().contains("retry-after: 1\r\n"), "{head}");
}

#[tokio::test]
async fn a_key_is_read_from_the_first_source_that_has_one() {
    let backends = [harness::Backend::start().await, harness::Backend::start().await];
    let a = Sidecar::named("a").upstream(backends[0].address).start().await;
    let b = Sidecar::named("b").upstream(backends[1].address).start().await;
    let mut plan = Plan::new();
    plan.placement.settings.key.from = vec![
        KeySource::Header("X-User".into()),
        KeySource::Cookie("user".into()),
        KeySource::Path("/rooms/{key}".into()),
        KeySource::Query("user".into()),
    ];
    plan.hold(&[(0, &a), (1, &b)]);
    plan.publish(&[&a, &b]).await;
    let (here, there) = (plan.keys_of(&a, 1).remove(0), plan.keys_of(&b, 1).remove(0));
    let requests = [
        format!("GET /?user={here} HTTP/1.1\r\nHost: a\r\nx-user: {there}\r\n"),
        format!("GET /?user={here} HTTP/1.1\r\nHost: a\r\nCookie: a=b; user={there}\r\n"),
        format!("GET /rooms/{there}?user={here} HTTP/1.1\r\nHost: a\r\n"),
        format!("GET /?a=b&user={there} HTTP/1.1\r\nHost: a\r\n"),
    ];
    for request in requests {
        let mut client = harness::Wire::dial(a.listen).await;
        let handshake = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        client.send(format!("{request}{handshake}")).await;
        let head = backends[1].accept().await.head().await;
        assert!(head.starts_with(&request), "{head}");
    }
}

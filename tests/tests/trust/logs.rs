//! Tokens, query strings, cookies and subprotocols never reach a log.

use harness::{App, Backend, Client, Guestbook, Plan, Sidecar, Wire};
use http::Method;
use operator::control::Control;
use operator::token::{Covered, Signer, make_key};
use ring::wire::{Draining, Placed};
use std::time::SystemTime;

use crate::peers::{DRAINING, Letter, Member};

/// What is secret in requests of clients, each at the end of its field.
const MARKS: [&str; 4] = ["secret-in-query", "secret-in-cookie", "secret-in-protocol", "secret-in-authorization"];
/// The pool's secret.
const SECRET: &str = "secret-between-sidecars";

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A request of a client that has something secret in each place.
fn request(method: &str, key: &str, extra: &str) -> String {
    let [query, cookie, protocol, authorization] = MARKS;
    format!(
        "{method} /chat?user={key}&t={query} HTTP/1.1\r\nHost: a\r\nCookie: session={cookie}\r\nSec-WebSocket-Protocol: \
         {protocol}\r\nAuthorization: Bearer {authorization}\r\n{extra}\r\n"
    )
}

#[tokio::test]
async fn nothing_secret_is_logged_at_the_most_verbose_level() {
    let book = Guestbook::default();
    let app = App::start("a", &book).await;
    // It answers by hand, or not at all.
    let odd = Backend::start().await;
    let signer = Signer::new(&make_key().expect("a key")).expect("a signer");
    let install = tempfile::tempdir().expect("a folder");
    let start = |name| {
        let start = Sidecar::named(name).environment("WSPOOL_LOG", "trace");
        let start = start.with_file("--peer-keys", "peers", SECRET);
        start.with_file("--control-keys", "control.pem", signer.public())
    };
    let a = start("a").upstream(app.address).with("--install", &install.path().to_string_lossy()).start().await;
    let b = start("b").upstream(odd.address).start().await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &a), (1, &b)]);
    let operator = Control::signed(signer.clone());
    for sidecar in [&a, &b] {
        let placed = Placed { target: sidecar.name.clone(), placement: plan.placement.clone() };
        operator.place(&sidecar.control.to_string(), &placed).await.expect("a report");
    }
    let (mine, theirs) = (plan.keys_of(&a, 1).remove(0), plan.keys_of(&b, 1).remove(0));

    // Handshakes: accepted here, malformed, refused, and answered there with nonsense, with an error, and not at all.
    let mut kept = Wire::dial(a.listen).await;
    kept.send(request("GET", &mine, UPGRADE)).await;
    assert!(kept.head().await.starts_with("HTTP/1.1 101 "));
    let close = "Connection: close\r\n";
    for bad in [
        request("GET", &mine, &UPGRADE.replace("13", "8")),
        request("GET", &mine, "Host: again\r\n"),
        request("GET", &mine, " folded\r\n"),
        request("GET", &mine, "wspool-from: b\r\n"),
        request("G(T", &mine, close),
    ] {
        let mut wire = Wire::dial(a.listen).await;
        wire.send(bad).await;
        wire.finish().await;
        wire.last_words().await;
    }
    for (asked, answer) in [
        (request("GET", &theirs, UPGRADE), "what is this?\r\n\r\n"),
        (request("GET", &theirs, UPGRADE), "HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        (request("GET", &theirs, UPGRADE), ""),
        (request("GET", &theirs, close), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (request("GET", &theirs, close), "what is this?\r\n\r\n"),
        (request("GET", &theirs, close), ""),
    ] {
        let mut wire = Wire::dial(a.listen).await;
        wire.send(asked).await;
        let mut app = odd.accept().await;
        app.head().await;
        app.send(answer).await;
        drop(app);
        wire.last_words().await;
    }
    // A later request on a connection of hyper's.
    let mut wire = Wire::dial(a.listen).await;
    wire.send(request("POST", &mine, "Content-Length: 0\r\n")).await;
    wire.head().await;
    wire.send(request("GET", &mine, "Content-Length: x\r\n")).await;
    wire.last_words().await;

    // The operator's tokens, the hook's, and the proofs of peers: right ones, wrong ones, replays.
    let hook = std::fs::read_to_string(install.path().join("drain-token")).expect("the hook's token");
    let sign = |request| {
        let covered = Covered { uid: "a", term: 1, request, body: b"" };
        signer.sign(covered, SystemTime::now()).expect("a token")
    };
    let tokens = [sign("GET /v1/status"), sign("GET /v1/other"), hook.trim().to_owned()];
    for token in &tokens {
        a.ask(Some(token), Method::GET, "/v1/status", "").await;
        a.ask(Some(token), Method::GET, "/v1/status?t=secret-in-query", "").await;
    }
    a.ask(Some(&tokens[2]), Method::PUT, "/v1/drain", "").await;
    let notice = Draining { pool_uid: "pool-1".into(), uid: "b".into(), draining: false, gone: false };
    let letter = Letter::json("PUT", DRAINING, &notice).signed(&Member::with(SECRET));
    letter.ask(&a).await;
    letter.ask(&a).await;
    Client::try_connect(a.listen, &mine).await.expect("it still serves").check().await;

    let secrets = MARKS.iter().copied().chain([SECRET, letter.proof()]).chain(tokens.iter().map(String::as_str));
    let secrets: Vec<&str> = secrets.collect();
    for mut sidecar in [a, b] {
        let log = sidecar.process().log();
        assert!(log.contains("DEBUG") && log.contains("TRACE"), "it is not verbose: {log}");
        for secret in &secrets {
            // The parts of a token are no better.
            for part in secret.split('.').filter(|part| part.len() > 20 || part.starts_with("secret")) {
                let line = log.lines().find(|line| line.contains(part));
                assert_eq!(line, None, "{} has logged {part:?}", sidecar.name);
            }
        }
    }
}

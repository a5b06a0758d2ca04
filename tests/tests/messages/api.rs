//! What the local API takes and answers, and where a message stands in a connection's stream.

use std::time::Duration;

use harness::frames::{frame, opcode, plain};
use harness::{App, Backend, Client, Guestbook, Plan, Sidecar, until};
use http::Method;
use ring::settings::{Messages, Settings, Strategy};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

use crate::{Pool, happened, refused};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A sidecar whose app is played by hand, and which sends messages to whoever is there.
async fn by_hand() -> (Backend, Sidecar) {
    by_hand_with(Settings::default()).await
}

async fn by_hand_with(settings: Settings) -> (Backend, Sidecar) {
    let app = Backend::start().await;
    let sidecar = Sidecar::named("a").upstream(app.address).with_api().start().await;
    let messages = Messages { allow_unverified: true };
    let mut plan = Plan::with(Settings { messages, ..settings });
    plan.hold(&[(0, &sidecar)]);
    plan.publish(&[&sidecar]).await;
    (app, sidecar)
}

#[tokio::test]
async fn a_message_reaches_every_connection_of_its_key_and_no_other_from_any_server() {
    let pool = Pool::new(&["a", "b"], 2).await;
    let key = pool.plan.keys_of(&pool.sidecars[1], 1).remove(0);
    let mut devices =
        [Client::connect(pool.sidecars[0].listen, &key).await, Client::connect(pool.sidecars[1].listen, &key).await];
    let mut other = Client::connect(pool.sidecars[0].listen, "somebody-else").await;
    for (sender, text) in [(0, "from a"), (1, "from b")] {
        happened(&pool.sidecars[sender].send_to(&key, text).await, 2, 0);
        for device in &mut devices {
            assert_eq!(device.hear().await, Message::text(text));
        }
    }
    let octets = [("content-type", "application/octet-stream")];
    let answer = pool.sidecars[0].ask_api(&octets, Method::POST, &format!("/v1/keys/{key}/messages"), "\u{0}1").await;
    happened(&answer, 2, 0);
    assert_eq!(devices[0].hear().await, Message::binary(&b"\x001"[..]));
    happened(&pool.sidecars[0].send_to("nobody", "hello?").await, 0, 0);
    // It has got nothing: the next thing that it hears is its own echo.
    other.check().await;

    let answer = pool.sidecars[0].ask_api(&[("content-type", "text/plain")], Method::POST, "/v1/messages", "all").await;
    happened(&answer, 3, 0);
    assert_eq!(other.hear().await, Message::text("all"));
}

#[tokio::test]
async fn a_key_is_found_where_it_is_connected() {
    let pool = Pool::new(&["a", "b"], 2).await;
    let key = pool.plan.keys_of(&pool.sidecars[1], 1).remove(0);
    let _device = Client::connect(pool.sidecars[0].listen, &key).await;
    let found: Value = pool.sidecars[0].ask_api(&[], Method::GET, &format!("/v1/keys/{key}"), "").await.json().unwrap();
    assert_eq!(found["key"], key.as_str());
    let [connection] = found["connections"].as_array().expect("connections").as_slice() else { panic!("{found}") };
    assert_eq!(connection["server"]["uid"], "b");
    assert_eq!(found["count"], 1);
    assert_eq!(connection["trusted"], false);
    assert!(connection["since"].as_u64().is_some_and(|since| since > 1_700_000_000_000), "{found}");
    assert_eq!(found["unreachable"], Value::Array(Vec::new()));
    let nowhere: Value = pool.sidecars[0].ask_api(&[], Method::GET, "/v1/keys/nobody", "").await.json().unwrap();
    assert_eq!(nowhere["connections"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_message_waits_for_the_end_of_the_apps_own() {
    let (app, sidecar) = by_hand().await;
    let (mut client, mut server) = app.ends(sidecar.listen).await;
    // The first fragment of three.
    let first = frame(false, opcode::TEXT, b"one ", false);
    server.send(&first).await;
    assert_eq!(client.exactly(first.len()).await, first);
    let sending = sidecar.send_to("ann", "ours");
    let answering = async {
        let second = frame(false, opcode::CONTINUATION, b"two ", false);
        server.send(&second).await;
        assert_eq!(client.exactly(second.len()).await, second, "nothing comes between fragments");
        // Time for ours to come in. Without it the test shows less, and passes.
        tokio::time::sleep(Duration::from_millis(200)).await;
        // The last fragment and another message, of which only half is there yet.
        let (last, next) = (frame(true, opcode::CONTINUATION, b"three", false), plain(opcode::BINARY, b"whole"));
        server.send([&last[..], &next[..4]].concat()).await;
        let ours = plain(opcode::TEXT, b"ours");
        assert_eq!(client.exactly(last.len()).await, last);
        let begun = client.exactly(4).await;
        if begun == next[..4] {
            server.send(&next[4..]).await;
            assert_eq!(client.exactly(next.len() - 4 + ours.len()).await, [&next[4..], &ours].concat());
        } else {
            assert_eq!([begun, client.exactly(ours.len() - 4).await].concat(), ours);
            server.send(&next[4..]).await;
            assert_eq!(client.exactly(next.len()).await, next);
        }
    };
    let (answer, ()) = tokio::join!(sending, answering);
    happened(&answer, 1, 0);
}

#[tokio::test]
async fn a_connection_that_cannot_bear_a_message_gets_none() {
    let (app, sidecar) = by_hand().await;
    let mut client = harness::Wire::dial(sidecar.listen).await;
    client.send(harness::wire::HANDSHAKE).await;
    let mut server = app.accept().await;
    server.head().await;
    let extended =
        harness::wire::SWITCHING.replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: x-counts-messages\r\n\r\n");
    server.send(extended).await;
    client.head().await;
    let said: Value = sidecar.send_to("ann", "ours").await.json().unwrap();
    assert_eq!(said, serde_json::json!({"written": 0, "held": 0, "dropped": 1}));
    // Nor one that is closing: its app has said its last word.
    let (mut client, mut server) = app.ends(sidecar.listen).await;
    let close = plain(opcode::CLOSE, &[]);
    server.send(&close).await;
    assert_eq!(client.exactly(close.len()).await, close);
    let said: Value = sidecar.send_to("ann", "ours").await.json().unwrap();
    assert_eq!((&said["written"], &said["dropped"]), (&Value::from(0), &Value::from(1)));
    assert_eq!(sidecar.metric("wspool_messages_dropped_total{reason=\"unable\"}").await, 2);
    assert_eq!(sidecar.metric("wspool_messages_dropped_total{reason=\"gone\"}").await, 1);
}

#[tokio::test]
async fn without_keys_everybody_gets_messages_and_nobody_one_of_a_key() {
    let (app, sidecar) = by_hand_with(Settings { strategy: Strategy::LeastConnections, ..Settings::default() }).await;
    let (mut client, _server) = app.ends(sidecar.listen).await;
    let said = refused(&sidecar.send_to("ann", "hello").await, 409, "keyless");
    assert!(said.contains("ConsistentHash"), "{said}");
    happened(&sidecar.ask_api(&[("content-type", "text/plain")], Method::POST, "/v1/messages", "all").await, 1, 0);
    let all = plain(opcode::TEXT, b"all");
    assert_eq!(client.exactly(all.len()).await, all);
}

#[tokio::test]
async fn what_is_no_message_is_refused_with_what_would_be_one() {
    let (_app, sidecar) = by_hand().await;
    let post = async |kind: &str, key: &str, body: &str| {
        let path = format!("/v1/keys/{key}/messages");
        sidecar.ask_api(&[("content-type", kind)], Method::POST, &path, body).await
    };
    let said = refused(&post("image/png", "ann", "x").await, 415, "content-type");
    assert!(said.contains("image/png") && said.contains("application/octet-stream"), "{said}");
    assert!(refused(&post("text/plain", "ann", &"x".repeat(262_145)).await, 413, "too-long").contains("262144"));
    happened(&post("text/plain", "ann", &"x".repeat(262_144)).await, 0, 0);
    assert!(refused(&post("text/plain", &"k".repeat(1_025), "x").await, 400, "bad-key").contains("1024"));
    refused(&post("text/plain", "a%00b", "x").await, 400, "bad-key");
    refused(&post("text/plain", "%ff", "x").await, 400, "bad-key");
    refused(&sidecar.ask_api(&[], Method::GET, "/v1/nothing", "").await, 404, "not-found");
    refused(&sidecar.ask_api(&[], Method::DELETE, "/v1/messages", "").await, 405, "wrong-method");
    let page = [("content-type", "text/plain"), ("origin", "https://example.com")];
    refused(&sidecar.ask_api(&page, Method::POST, "/v1/messages", "x").await, 403, "web-page");
}

#[tokio::test]
async fn with_a_token_file_every_request_needs_one_of_its_tokens() {
    let app = App::start("a", &Guestbook::default()).await;
    let start = Sidecar::named("a").upstream(app.address).with_api();
    let sidecar = start.with_file("--api-token-file", "tokens", TOKEN).start().await;
    let ask = async |authorization: &str| {
        sidecar.ask_api(&[("authorization", authorization)], Method::GET, "/v1/keys/ann", "").await
    };
    let said = refused(&sidecar.ask_api(&[], Method::GET, "/v1/keys/ann", "").await, 401, "unauthorized");
    assert!(said.contains("WSPOOL_API_TOKEN_FILE"), "{said}");
    let wrong = ask("Bearer 0123456789abcdef0123456789abcdee").await;
    refused(&wrong, 401, "unauthorized");
    assert_eq!(wrong.header("www-authenticate"), "Bearer");
    assert!(ask(&format!("Bearer {TOKEN}")).await.status.is_success());
    sidecar.write_file("tokens", "fedcba9876543210fedcba9876543210\n");
    refused(&ask(&format!("Bearer {TOKEN}")).await, 401, "unauthorized");
    assert!(ask("Bearer fedcba9876543210fedcba9876543210").await.status.is_success());
    // Its description is no secret.
    let described: Value = sidecar.ask_api(&[], Method::GET, "/v1/openapi.json", "").await.json().unwrap();
    assert!(described["paths"]["/v1/keys/{key}/messages"]["post"].is_object());
}

#[tokio::test]
async fn the_app_finds_a_token_in_the_folder_that_it_shares_and_keeps_it_when_the_sidecar_starts_again() {
    let app = App::start("a", &Guestbook::default()).await;
    let start = Sidecar::named("a").upstream(app.address).with_api();
    let folder = start.path("shared").to_string_lossy().into_owned();
    let mut sidecar = start.with("--install", &folder).start().await;
    let token = std::fs::read_to_string(format!("{folder}/api-token")).expect("a token");
    refused(&sidecar.ask_api(&[], Method::GET, "/v1/keys/ann", "").await, 401, "unauthorized");
    sidecar.kill();
    sidecar.start_again().await;
    let authorization = format!("Bearer {}", token.trim());
    let answer = sidecar.ask_api(&[("authorization", &authorization)], Method::GET, "/v1/keys/ann", "").await;
    assert!(answer.status.is_success());
}

#[tokio::test]
async fn the_api_answers_at_a_unix_socket() {
    let app = App::start("a", &Guestbook::default()).await;
    let start = Sidecar::named("a").upstream(app.address);
    let socket = start.path("api.sock");
    let mut sidecar = start.with("--api", &format!("unix:{}", socket.display())).start().await;
    // What the process before has left is no obstacle.
    sidecar.kill();
    sidecar.start_again().await;
    let mut stream = until("the socket is there", async || {
        tokio::net::UnixStream::connect(&socket).await.map_err(|error| error.to_string())
    })
    .await;
    stream.write_all(b"GET /v1/keys/ann HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"connections\":[]"), "{answer}");
}

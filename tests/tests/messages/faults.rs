//! Servers that die, and clients that do not read.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use harness::frames::{frame, opcode};
use harness::http::{Answer, Http, refused};
use harness::{Backend, Client, Crowd, Plan, Sidecar, Wire, until};
use http::Method;
use ring::settings::{Messages, Settings};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use crate::{Pool, happened};

#[tokio::test]
async fn after_the_owner_was_killed_messages_find_its_clients_where_they_went() {
    let mut pool = Pool::new(&["a", "b"], 2).await;
    let keys = pool.plan.keys_of(&pool.sidecars[1], 10);
    let mut crowd = Crowd::default();
    for key in &keys {
        crowd.join(key, &[pool.sidecars[0].listen]);
    }
    crowd.settled().await;
    pool.sidecars[1].kill();
    for key in &keys {
        let mut lost = 0;
        until("a message is written again", async || {
            let answer = pool.sidecars[0].send_to(key, "found").await;
            let said: Value = serde_json::from_slice(&answer.body).expect("JSON");
            match answer.status.as_u16() {
                200 if said["written"] == 1 => Ok(()),
                // Nobody is connected right now; or the answer says what is known of the message.
                200 | 503 | 504 => {
                    lost += 1;
                    Err(said.to_string())
                }
                _ => panic!("{said}"),
            }
        })
        .await;
    }
    until("each has heard it once", async || {
        let heard: Vec<_> = crowd.lives().into_iter().map(|life| life.heard).collect();
        if heard.iter().all(|heard| heard == &["found"]) { Ok(()) } else { Err(format!("{heard:?}")) }
    })
    .await;
}

#[tokio::test]
async fn nobody_is_said_to_be_connected_where_a_server_that_may_have_the_key_was_not_asked() {
    let mut pool = Pool::new(&["a", "b", "c"], 2).await;
    let before = pool.plan.keys_of(&pool.sidecars[1], 200);
    pool.give(&[0, 1, 2]).await;
    let moves = before.iter().find(|key| pool.plan.owner(key) == "c").expect("a third moves");
    happened(&pool.sidecars[0].send_to(moves, "nobody is there").await, 0, 0);
    pool.sidecars[1].write_file("peers", "another-secret-of-sidecars");
    until("b does not believe the others any more", async || {
        let answer = pool.sidecars[0].send_to(moves, "lost").await;
        let said: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        if (answer.status.as_u16(), &said["title"]) == (503, &Value::from("refused")) {
            Ok(())
        } else {
            Err(said.to_string())
        }
    })
    .await;
    pool.sidecars[1].kill();
    refused(&pool.sidecars[0].send_to(moves, "lost").await, 503, "unreachable");
    // Its clients go to the new owner, and it is known where they are.
    let mut client = Client::connect(pool.sidecars[0].listen, moves).await;
    happened(&pool.sidecars[0].send_to(moves, "found").await, 1, 0);
    assert_eq!(client.hear().await, Message::text("found"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_costs_bounded_memory_and_holds_up_nobody_else() {
    const MESSAGES: usize = 10_000;
    let mut pool = Pool::new(&["a", "b"], 2).await;
    let keys = pool.plan.keys_of(&pool.sidecars[1], 2);
    let entry = pool.sidecars[1].listen;
    let mut slow = Wire::dial(entry).await;
    slow.send(harness::wire::HANDSHAKE.replace("ann", &keys[0])).await;
    slow.head().await;
    let mut other = Client::connect(entry, &keys[1]).await;
    let before: u64 = pool.sidecars.iter_mut().map(|sidecar| sidecar.process().memory()).sum();
    let http = Http::default();
    let (api, path, text) =
        (pool.sidecars[0].api.expect("an API"), format!("/v1/keys/{}/messages", keys[0]), Arc::new("x".repeat(8_192)));
    let flood = tokio::spawn(async move {
        let send = |_| async {
            let headers = [("content-type", "text/plain")];
            http.send_with(&headers, Method::POST, api, &path, text.to_string()).await.expect("an answer")
        };
        stream::iter(0..MESSAGES).map(send).buffer_unordered(200).collect::<Vec<Answer>>().await
    });
    // Meanwhile the others get theirs.
    let mut served = 0;
    while !flood.is_finished() {
        happened(&pool.sidecars[0].send_to(&keys[1], "hello").await, 1, 0);
        assert_eq!(other.hear().await, Message::text("hello"));
        served += 1;
    }
    let answers = flood.await.expect("all answers");
    let count = |wanted: &Value| {
        answers.iter().filter(|answer| answer.json::<Value>().is_ok_and(|said| said == *wanted)).count()
    };
    let written = count(&serde_json::json!({"written": 1, "held": 0}));
    let dropped = count(&serde_json::json!({"written": 0, "held": 0, "dropped": 1}));
    let too_fast = answers.iter().filter(|answer| answer.status.as_u16() == 429).count();
    assert_eq!(written + dropped + too_fast, MESSAGES, "every answer says what happened");
    assert!(dropped > 0, "{written} written, {too_fast} too fast");
    let after: u64 = pool.sidecars.iter_mut().map(|sidecar| sidecar.process().memory()).sum();
    // 80 MB were sent to it.
    assert!(after < before + 40 * 1024 * 1024, "{before} bytes before, {after} after");
    assert!(served > 10, "only {served} messages of another key got past those of the slow client");
}

/// Both ends of a new connection of a key at `b`, whose app is in the middle of a message: those of ours wait for its end.
async fn in_a_message(app: &Backend, b: &Sidecar, key: &str) -> (Wire, Wire) {
    let mut client = Wire::dial(b.listen).await;
    client.send(harness::wire::HANDSHAKE.replace("ann", key)).await;
    let mut server = app.accept().await;
    server.head().await;
    server.send(harness::wire::SWITCHING).await;
    client.head().await;
    let begun = frame(false, opcode::TEXT, b"begun", false);
    server.send(&begun).await;
    assert_eq!(client.exactly(begun.len()).await, begun);
    (client, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_wait_for_their_clients_hold_up_none_for_other_keys_of_that_server() {
    /// As many are given to one peer at a time.
    const AT_ONCE: usize = 256;
    const WAITING: usize = 300;
    let app = Backend::start().await;
    let messages = Messages { allow_unverified: true };
    let plan = Plan::with(Settings { messages, ..Settings::default() });
    let mut pool = Pool { plan, sidecars: Vec::new(), _apps: Vec::new() };
    for name in ["a", "b"] {
        let sidecar = Sidecar::named(name).with_file("--peer-keys", "peers", "secret-between-sidecars");
        pool.sidecars.push(sidecar.upstream(app.address).with_api().start().await);
    }
    pool.give(&[0, 1]).await;
    let [a, b] = [&pool.sidecars[0], &pool.sidecars[1]];
    let mut keys = pool.plan.keys_of(b, WAITING + 1);
    let other = keys.pop().expect("a key");
    let mut waiting = Vec::new();
    for key in &keys {
        waiting.push(in_a_message(&app, b, key).await);
    }
    let (mut client, mut server) = in_a_message(&app, b, &other).await;
    let end = frame(true, opcode::CONTINUATION, b"", false);
    server.send(&end).await;
    assert_eq!(client.exactly(end.len()).await, end);

    let (http, api) = (Http::default(), a.api.expect("an API"));
    let held = b.metric("wspool_tasks").await;
    let senders: Vec<_> = keys
        .iter()
        .cloned()
        .map(|key| {
            let http = http.clone();
            tokio::spawn(async move {
                let (text, path) = ([("content-type", "text/plain")], format!("/v1/keys/{key}/messages"));
                http.send_with(&text, Method::POST, api, &path, "waits").await.expect("an answer")
            })
        })
        .collect();
    until("more are at b than it is given at a time", async || match b.metric("wspool_tasks").await - held {
        asked if asked > AT_ONCE as u64 => Ok(()),
        asked => Err(format!("{asked} are")),
    })
    .await;
    happened(&a.send_to(&other, "hello").await, 1, 0);
    let unanswered = senders.iter().filter(|sender| !sender.is_finished()).count();
    assert!(unanswered > AT_ONCE, "the other key's message came only when {unanswered} waited still");
    let hello = harness::frames::plain(opcode::TEXT, b"hello");
    assert_eq!(client.exactly(hello.len()).await, hello);
    // Each sender learns what became of its message at last.
    for (_, server) in &mut waiting {
        server.send(&end).await;
    }
    for sender in senders {
        let said: Value = sender.await.expect("an answer").json().expect("what happened");
        let once =
            [serde_json::json!({"written": 1, "held": 0}), serde_json::json!({"written": 0, "held": 0, "dropped": 1})];
        assert!(once.contains(&said), "{said}");
    }
}

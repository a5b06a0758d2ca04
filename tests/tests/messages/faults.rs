//! Servers that die, and clients that do not read.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use harness::http::{Answer, Http, refused};
use harness::{Client, Crowd, Wire, until};
use http::Method;
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

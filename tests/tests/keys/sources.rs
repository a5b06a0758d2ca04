//! Each place that a key may stand in.

use ring::settings::{KeySource, KeySpec, Missing};

use crate::Pool;

fn from(sources: &[KeySource], missing: Missing) -> KeySpec {
    KeySpec { from: sources.to_vec(), missing, ..KeySpec::default() }
}

#[tokio::test]
async fn every_source_brings_a_client_to_the_owner_of_its_key() {
    let sources = [
        KeySource::Query("user".into()),
        KeySource::Header("X-User".into()),
        KeySource::Cookie("user".into()),
        KeySource::Path("/rooms/{key}".into()),
        KeySource::Subprotocol("user.".into()),
    ];
    let pool = Pool::new(from(&sources, Missing::Reject)).await;
    for key in pool.keys() {
        pool.owned(&key, &format!("/?user={key}"), "X-User: other\r\n").await;
        pool.owned(&key, "/", &format!("x-user: {key}\r\nCookie: user=other\r\n")).await;
        pool.owned(&key, "/rooms/other", &format!("Cookie: a=b; user={key}\r\n")).await;
        pool.owned(&key, &format!("/rooms/{key}"), "Sec-WebSocket-Protocol: user.other\r\n").await;
        pool.owned(&key, "/", &format!("Sec-WebSocket-Protocol: chat, user.{key}\r\n")).await;
        pool.owned(&key, "/", &format!("Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: user.{key}\r\n")).await;
        // What a subprotocol cannot hold is percent-encoded in it.
        let encoded = key.bytes().map(|byte| format!("%{byte:02x}")).collect::<Vec<_>>().concat();
        pool.owned(&key, "/", &format!("Sec-WebSocket-Protocol: user.{encoded}\r\n")).await;
    }
    assert_eq!(pool.trusted().await, 0, "what a client says by itself proves nothing");
}

#[tokio::test]
async fn a_handshake_without_a_key_is_refused_or_spread_as_the_pool_says() {
    let sources = [KeySource::Subprotocol("user.".into()), KeySource::Cookie("user".into())];
    let pool = Pool::new(from(&sources, Missing::Reject)).await;
    for headers in
        ["", "Sec-WebSocket-Protocol: chat, user.\r\n", "Cookie: user=\r\nSec-WebSocket-Protocol: xuser.7\r\n"]
    {
        let mut refused = pool.enter("/?user=7", headers).await;
        assert_eq!(refused.status(), 400, "{headers:?}");
        assert!(refused.wire.last_words().await.contains("this pool needs a key"), "{headers:?}");
    }
    assert_eq!(pool.router.metric("wspool_handshakes_refused_total{reason=\"key_missing\"}").await, 3);
    assert!(pool.book.visits().is_empty(), "something reached an app");

    let pool = Pool::new(from(&sources, Missing::Spread)).await;
    assert_eq!(pool.enter("/?user=7", "").await.status(), 101);
}

#[tokio::test]
async fn an_enormous_cookie_is_refused_and_harms_nobody() {
    let pool = Pool::new(from(&[KeySource::Cookie("user".into())], Missing::Spread)).await;
    let key = pool.keys().remove(0);
    let long = "x".repeat(1025);
    assert_eq!(pool.enter("/", &format!("Cookie: user={long}\r\n")).await.status(), 400);
    assert_eq!(pool.router.metric("wspool_bad_requests_total{reason=\"key_too_long\"}").await, 1);
    let enormous = "x".repeat(20_000);
    assert_eq!(pool.enter("/", &format!("Cookie: user={enormous}\r\n")).await.status(), 431);
    assert_eq!(pool.enter("/", &format!("Cookie: other={enormous}; user={key}\r\n")).await.status(), 431);
    // Long, but nothing is wrong with it.
    let long = "x".repeat(8_000);
    pool.owned(&key, "/", &format!("Cookie: other={long}; user={key}\r\n")).await;
}

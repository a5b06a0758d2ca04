//! The same through a real Redis: what anybody publishes for a key reaches its connections, and sessions are kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fred::clients::Client as Publisher;
use fred::interfaces::ClientLike as _;
use fred::types::{ClusterHash, CustomCommand};
use futures_util::{StreamExt as _, stream};
use harness::http::Http;
use harness::redis::{self, Redis, publish};
use harness::wait::equal;
use harness::{Client, Crowd, Sidecar, until};
use http::Method;
use ring::settings::{KeySpec, Messages, Mounted, Published, Redis as Spec, Settings};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::moves::heard_exactly;
use crate::{Pool, happened, refused};

const PREFIX: &str = "wspool:default/test:";
const PUBLISHERS: usize = 4;

/// Settings with a Redis, whose URL is in this file.
fn settings(url: &std::path::Path) -> Settings {
    let redis = Spec {
        url_from: Mounted::File(url.to_owned()),
        ca_from: None,
        prefix: Some(PREFIX.into()),
        messages: Published::Text,
    };
    Settings { messages: Messages { allow_unverified: true }, redis: Some(redis), ..Settings::default() }
}

/// A pool with a Redis.
pub(super) async fn pool(redis: &Redis, names: &[&str], holding: usize) -> Pool {
    let file = redis.path("url");
    std::fs::write(&file, redis.url()).expect("a file in a temporary folder");
    Pool::with(names, holding, settings(&file)).await
}

/// A pool with a cluster of so many shards, and the URL of that.
async fn sharded(shards: u16, names: &[&str], holding: usize) -> (Vec<Redis>, String, Pool) {
    let servers = redis::cluster(shards).await;
    let url = format!("redis-cluster://{}", servers[0].address);
    let file = servers[0].path("url");
    std::fs::write(&file, &url).expect("a file in a temporary folder");
    let pool = Pool::with(names, holding, settings(&file)).await;
    (servers, url, pool)
}

/// Waits until the sidecars listen to so many channels, and know that they do.
pub(super) async fn listens(pool: &Pool, channels: usize) {
    until("all channels are listened to", async || {
        equal(&pool.metric("wspool_redis_channels").await, &u64::try_from(channels).expect("few"))?;
        equal(&pool.metric("wspool_redis_up").await, &u64::try_from(pool.sidecars.len()).expect("few"))
    })
    .await;
}

pub(super) fn channel(key: &str) -> String {
    format!("{PREFIX}key:{key}")
}

/// What each publisher has sent to each key, in order.
async fn publish_all(url: &str, phase: &str, keys: usize, count: usize) -> BTreeMap<String, Vec<Vec<String>>> {
    publish_while(url, phase, keys, move |sent| sent < count / PUBLISHERS).await
}

/// The same, for as long as each publisher that has sent so many goes on.
async fn publish_while(
    url: &str,
    phase: &str,
    keys: usize,
    more: impl Fn(usize) -> bool + Clone + Send + Sync + 'static,
) -> BTreeMap<String, Vec<Vec<String>>> {
    let mut tasks = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let (client, phase, more) = (redis::client(url, None).await, phase.to_owned(), more.clone());
        tasks.spawn(async move {
            let mut sent: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for _ in (0..).take_while(|sent| more(*sent)) {
                let key = format!("user-{}", rand::random_range(0..keys));
                let texts = sent.entry(key.clone()).or_default();
                let text = format!("{phase}{publisher}:{}", texts.len());
                publish(&client, &channel(&key), text.as_bytes()).await;
                texts.push(text);
                // More than a sidecar can take is dropped.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            sent
        });
    }
    let mut all: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    while let Some(sent) = tasks.join_next().await {
        for (key, texts) in sent.expect("a publisher") {
            all.entry(key).or_default().push(texts);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_for_a_thousand_keys_arrives_once_and_in_order_before_during_and_after_a_scale_up() {
    const KEYS: usize = 1_000;
    let redis = Redis::start().await;
    let url = redis.url();
    let mut pool = pool(&redis, &["a", "b", "c"], 2).await;
    let crowd = pool.users(KEYS).await;
    listens(&pool, KEYS + 3).await;
    let mut sent = publish_all(&url, "before", KEYS, 2_000).await;
    heard_exactly(&crowd, &sent).await;
    pool.give(&[0, 1, 2]).await;
    let [a, b] = [&pool.sidecars[0], &pool.sidecars[1]];
    let moving = async { pool.plan.move_all(&[a, b], 20).await };
    let (during, ()) = tokio::join!(publish_all(&url, "during", KEYS, 4_000), moving);
    crowd.at_home(|key| pool.plan.owner(key)).await;
    assert!(crowd.breaks() > 200, "a third of the keys has moved");
    listens(&pool, KEYS + 3).await;
    for (key, texts) in during {
        sent.entry(key).or_default().extend(texts);
    }
    heard_exactly(&crowd, &sent).await;
    for (key, texts) in publish_all(&url, "after", KEYS, 2_000).await {
        sent.entry(key).or_default().extend(texts);
    }
    heard_exactly(&crowd, &sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_for_keys_that_move_on_as_they_arrive_arrives_once_and_in_order() {
    const KEYS: usize = 200;
    let redis = Redis::start().await;
    let url = redis.url();
    let mut pool = pool(&redis, &["a", "b", "c"], 1).await;
    let crowd = pool.users(KEYS).await;
    listens(&pool, KEYS + 3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let goes_on = {
        let stop = Arc::clone(&stop);
        move |_| !stop.load(Ordering::Relaxed)
    };
    let moving = async {
        for slots in [&[0, 1, 2][..], &[1, 2], &[0, 2], &[0]] {
            pool.give(slots).await;
            let [a, b, c] = [&pool.sidecars[0], &pool.sidecars[1], &pool.sidecars[2]];
            pool.plan.move_all(&[a, b, c], 40).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (sent, ()) = tokio::join!(publish_while(&url, "during", KEYS, goes_on), moving);
    crowd.at_home(|_| "a".into()).await;
    assert!(crowd.breaks() > 2 * KEYS, "each key has moved several times");
    heard_exactly(&crowd, &sent).await;
    listens(&pool, KEYS + 3).await;
}

#[tokio::test]
async fn a_client_that_comes_back_after_its_server_has_ended_gets_what_came_meanwhile() {
    let redis = Redis::start().await;
    let mut pool = pool(&redis, &["a", "b"], 2).await;
    let key = pool.plan.keys_of(&pool.sidecars[1], 1).remove(0);
    let mut client = Client::connect(pool.sidecars[1].listen, &key).await;
    listens(&pool, 3).await;
    pool.sidecars[1].terminate();
    client.goodbye().await;
    pool.sidecars[1].process().ended().await;
    until("its next server listens", async || equal(&pool.sidecars[0].metric("wspool_redis_channels").await, &2)).await;
    assert_eq!(publish(&redis.client().await, &channel(&key), b"published").await, 1);
    until("it is held", async || equal(&pool.sidecars[0].metric("wspool_held_messages").await, &1)).await;
    happened(&pool.sidecars[0].send_to(&key, "sent").await, 0, 1);
    let mut client = Client::connect(pool.sidecars[0].listen, &key).await;
    for text in ["published", "sent"] {
        assert_eq!(client.hear().await, Message::text(text));
    }
}

#[tokio::test]
async fn connections_stay_while_redis_restarts_or_hangs_and_it_is_heard_again_afterwards() {
    let mut redis = Redis::start().await;
    let pool = pool(&redis, &["a", "b"], 2).await;
    let key = pool.plan.keys_of(&pool.sidecars[1], 1).remove(0);
    let mut client = Client::connect(pool.sidecars[0].listen, &key).await;
    listens(&pool, 3).await;
    let heard = async |client: &mut Client, publisher: Publisher, text: &str| {
        assert_eq!(publish(&publisher, &channel(&key), text.as_bytes()).await, 1, "one sidecar has the key");
        assert_eq!(client.hear().await, Message::text(text));
        assert_eq!(publish(&publisher, &format!("{PREFIX}all"), text.as_bytes()).await, 2);
        assert_eq!(client.hear().await, Message::text(text));
    };
    heard(&mut client, redis.client().await, "before").await;

    redis.kill();
    away(&pool).await;
    client.check().await;
    let why = pool.sidecars[0].status().await.redis.expect("a Redis");
    assert!(matches!(&why, ring::wire::RedisHealth::Down(why) if !why.is_empty()), "{why:?}");
    redis.start_again().await;
    listens(&pool, 3).await;
    heard(&mut client, redis.client().await, "after a restart").await;

    redis.hang();
    away(&pool).await;
    client.check().await;
    let answer = pool.sidecars[1].ask_api(&[], Method::GET, &format!("/v1/keys/{key}/session"), "").await;
    refused(&answer, 503, "redis-away");
    redis.go_on();
    listens(&pool, 3).await;
    heard(&mut client, redis.client().await, "after it hung").await;

    // Nobody is left: nobody listens.
    drop(client);
    listens(&pool, 2).await;
    assert_eq!(publish(&redis.client().await, &channel(&key), b"anybody?").await, 0);
}

pub(super) async fn away(pool: &Pool) {
    until("Redis is known to be away", async || equal(&pool.metric("wspool_redis_up").await, &0)).await;
}

#[tokio::test]
async fn what_is_no_message_is_dropped_and_counted_unless_the_pool_publishes_octets() {
    let redis = Redis::start().await;
    let mut pool = pool(&redis, &["a"], 1).await;
    let mut client = Client::connect(pool.sidecars[0].listen, "ann").await;
    listens(&pool, 2).await;
    let publisher = redis.client().await;
    publish(&publisher, &channel("ann"), b"\xff\x00").await;
    publish(&publisher, &channel("ann"), &vec![b'a'; 262_145]).await;
    publish(&publisher, &channel("ann"), b"text").await;
    assert_eq!(client.hear().await, Message::text("text"));
    assert_eq!(pool.metric("wspool_messages_dropped_total{reason=\"no_message\"}").await, 2);
    let spec = pool.plan.placement.settings.redis.as_mut().expect("a Redis");
    (spec.messages, spec.prefix) = (Published::Binary, Some("other:".into()));
    pool.give(&[0]).await;
    until("the new names are listened to", async || {
        equal(&publish(&publisher, "other:key:ann", b"\xff\x00").await, &1)
    })
    .await;
    assert_eq!(client.hear().await, Message::binary(&b"\xff\x00"[..]));
    assert_eq!(publish(&publisher, &channel("ann"), b"to the old name").await, 0);
}

#[tokio::test]
async fn a_key_that_only_routes_is_not_listened_to() {
    let redis = Redis::start().await;
    let mut pool = pool(&redis, &["a"], 1).await;
    pool.plan.placement.settings.messages = Messages::default();
    pool.give(&[0]).await;
    let _client = Client::connect(pool.sidecars[0].listen, "ann").await;
    listens(&pool, 1).await;
    assert_eq!(publish(&redis.client().await, &channel("ann"), b"for the true Ann").await, 0);
    pool.plan.placement.settings.messages = Messages { allow_unverified: true };
    pool.give(&[0]).await;
    listens(&pool, 2).await;
}

#[tokio::test]
async fn a_user_that_may_not_publish_is_named_in_the_log_and_keys_are_heard_where_they_move_to() {
    let address = harness::ports::free();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let acl = folder.path().join("users.acl");
    let users = format!("user default on nopass ~* &* +@all\nuser wspool on >s3cret ~* &{PREFIX}* +@all -publish\n");
    std::fs::write(&acl, users).expect("a file in a temporary folder");
    let acl = acl.to_string_lossy().into_owned();
    let _redis = Redis::start_with(address, &["--port", &address.port().to_string(), "--aclfile", &acl]);
    let file = folder.path().join("url");
    std::fs::write(&file, format!("redis://wspool:s3cret@{address}")).expect("a file in a temporary folder");
    let mut pool = Pool::with(&["a", "b"], 1, settings(&file)).await;
    let entry = pool.sidecars[0].listen;
    let mut crowd = Crowd::default();
    crowd.join_users(20, &[entry]).await;
    listens(&pool, 22).await;
    pool.give(&[0, 1]).await;
    pool.plan.move_all(&[&pool.sidecars[0]], 40).await;
    crowd.at_home(|key| pool.plan.owner(key)).await;
    let log = pool.sidecars[1].process().log();
    assert!(log.contains("NOPERM") && log.contains("may be lost"), "{log}");
    let publisher = redis::client(&format!("redis://{address}"), None).await;
    let key = pool.plan.keys_of(&pool.sidecars[1], 1).remove(0);
    until("only its new server listens", async || equal(&publish(&publisher, &channel(&key), b"hello").await, &1))
        .await;
    let heard = async || {
        let lives = crowd.lives();
        let life = lives.iter().find(|life| life.key == key).expect("its client");
        equal(&life.heard.last().map(String::as_str), &Some("hello"))
    };
    until("it is heard there", heard).await;
}

#[tokio::test]
async fn a_cluster_of_shards_is_listened_to_where_each_key_is() {
    let (_servers, url, pool) = sharded(3, &["a", "b"], 2).await;
    let keys: Vec<_> = pool.sidecars.iter().flat_map(|sidecar| pool.plan.keys_of(sidecar, 20)).collect();
    let mut clients = Vec::new();
    for key in &keys {
        clients.push(Client::connect(pool.sidecars[0].listen, key).await);
    }
    listens(&pool, keys.len() + 2).await;
    let publisher = redis::client(&url, None).await;
    for (key, client) in keys.iter().zip(&mut clients) {
        assert_eq!(publish(&publisher, &channel(key), key.as_bytes()).await, 1, "{key}");
        assert_eq!(client.hear().await, Message::text(key.as_str()));
    }
    put(&pool.sidecars[0], &keys[0], "in a shard", &[]).await;
    assert_eq!(get(&pool.sidecars[1], &keys[0]).await, "in a shard");
}

#[tokio::test]
async fn a_channel_that_goes_to_another_shard_is_listened_to_there() {
    let (servers, url, pool) = sharded(3, &["a"], 1).await;
    let mut clients = Vec::new();
    for key in ["ann", "bob", "cid"] {
        clients.push((key, Client::connect(pool.sidecars[0].listen, key).await));
    }
    listens(&pool, clients.len() + 1).await;
    for server in &servers {
        redis::move_channel(&servers, &channel("ann"), server).await;
        heard_at_shards(&url, &mut clients, &server.address.to_string()).await;
    }
    let _standing_in = redis::fail_over(&servers, &servers[2]).await;
    heard_at_shards(&url, &mut clients, "failed over").await;
}

/// Waits until what is published for each key is heard where it is.
async fn heard_at_shards(url: &str, clients: &mut [(&str, Client)], text: &str) {
    for (key, client) in clients {
        until("it is heard at its shard", async || {
            let publisher = redis::client(url, None).await;
            equal(&redis::try_publish(&publisher, &channel(key), text.as_bytes()).await?, &1)
        })
        .await;
        assert_eq!(client.hear().await, Message::text(text));
    }
}

#[tokio::test]
async fn a_user_that_may_not_listen_in_a_cluster_is_said() {
    let servers = redis::cluster(2).await;
    let file = servers[0].path("url");
    let url = format!("redis-cluster://wspool:s3cret@{}", servers[0].address);
    std::fs::write(&file, &url).expect("a file in a temporary folder");
    let allow = async |channels: &str| {
        for server in &servers {
            let words = ["ACL", "SETUSER", "wspool", "on", ">s3cret", "~*", "resetchannels", channels, "+@all"];
            redis::command(&server.client().await, &words).await;
        }
    };
    allow("&other:*").await;
    let pool = Pool::with(&["a"], 1, settings(&file)).await;
    let mut client = Client::connect(pool.sidecars[0].listen, "ann").await;
    until("what is wrong is said", async || {
        let health = format!("{:?}", pool.sidecars[0].status().await.redis);
        if health.contains("NOPERM") { Ok(()) } else { Err(health) }
    })
    .await;
    assert_eq!(pool.metric("wspool_redis_up").await, 0);
    allow(&format!("&{PREFIX}*")).await;
    listens(&pool, 2).await;
    let publisher = redis::client(&url, None).await;
    assert_eq!(publish(&publisher, &channel("ann"), b"heard").await, 1);
    assert_eq!(client.hear().await, Message::text("heard"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_of_shards_are_cut_as_their_keys_move() {
    const KEYS: usize = 600;
    let (_servers, url, mut pool) = sharded(3, &["a", "b", "c"], 2).await;
    let crowd = pool.users(KEYS).await;
    listens(&pool, KEYS + 3).await;
    pool.give(&[0, 1, 2]).await;
    let [a, b] = [&pool.sidecars[0], &pool.sidecars[1]];
    let moving = async { pool.plan.move_all(&[a, b], 20).await };
    let (sent, ()) = tokio::join!(publish_all(&url, "during", KEYS, 4_000), moving);
    crowd.at_home(|key| pool.plan.owner(key)).await;
    assert!(crowd.breaks() > 100, "a third of the keys has moved");
    heard_exactly(&crowd, &sent).await;
    listens(&pool, KEYS + 3).await;
}

#[tokio::test]
async fn redis_may_want_tls_a_user_and_a_prefix() {
    let certified = harness::tls::certified();
    let address = harness::ports::free();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    for (name, text) in
        [("ca.pem", &certified.authority), ("cert.pem", &certified.certificate), ("key.pem", &certified.key)]
    {
        std::fs::write(path(name), text).expect("a file in a temporary folder");
    }
    // No more than this user needs.
    let may = "user wspool on >s3cret ~own:* &own:* -@all +hello +auth +client|setname +client|id +ping +info \
               +subscribe +unsubscribe +publish +hmget +hset +pexpire +eval +del";
    std::fs::write(path("users.acl"), format!("user default off\n{may}\n")).expect("a file in a temporary folder");
    let [port, ca, cert, key, acl] =
        [address.port().to_string(), path("ca.pem"), path("cert.pem"), path("key.pem"), path("users.acl")];
    let _redis = Redis::start_with(
        address,
        &[
            "--port",
            "0",
            "--tls-port",
            &port,
            "--tls-ca-cert-file",
            &ca,
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
            "--tls-auth-clients",
            "no",
            "--aclfile",
            &acl,
        ],
    );
    let file = folder.path().join("url");
    let url = |password: &str| format!("rediss://wspool:{password}@localhost:{}", address.port());
    std::fs::write(&file, url("wrong")).expect("a file in a temporary folder");
    let mut settings = settings(&file);
    let spec = settings.redis.as_mut().expect("a Redis");
    (spec.prefix, spec.ca_from) = (Some("own:".into()), Some(Mounted::File(ca.into())));
    let pool = Pool::with(&["a"], 1, settings).await;
    let mut client = Client::connect(pool.sidecars[0].listen, "ann").await;
    until("what is wrong is said, and no secret", async || {
        let health = format!("{:?}", pool.sidecars[0].status().await.redis);
        assert!(!health.contains("wrong@"), "{health}");
        if health.contains("WRONGPASS") { Ok(()) } else { Err(health) }
    })
    .await;
    // The Secret is corrected, and nothing else has to be done.
    std::fs::write(&file, url("s3cret")).expect("a file in a temporary folder");
    listens(&pool, 2).await;
    let publisher = redis::client(&url("s3cret"), Some(certified.client().into())).await;
    assert_eq!(publish(&publisher, "own:key:ann", b"secret").await, 1);
    assert_eq!(client.hear().await, Message::text("secret"));
    put(&pool.sidecars[0], "ann", "state", &[]).await;
    assert_eq!(get(&pool.sidecars[0], "ann").await, "state");
}

#[tokio::test]
async fn a_user_that_may_not_listen_is_said_and_its_sessions_are_kept_all_the_same() {
    let address = harness::ports::free();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let acl = folder.path().join("users.acl");
    let may = |channels: &str| format!("user default off\nuser wspool on >s3cret ~* resetchannels {channels} +@all\n");
    std::fs::write(&acl, may("")).expect("a file in a temporary folder");
    let acl = acl.to_string_lossy().into_owned();
    let _redis = Redis::start_with(address, &["--port", &address.port().to_string(), "--aclfile", &acl]);
    let file = folder.path().join("url");
    let url = format!("redis://wspool:s3cret@{address}");
    std::fs::write(&file, &url).expect("a file in a temporary folder");
    let pool = Pool::with(&["a"], 1, settings(&file)).await;
    let mut client = Client::connect(pool.sidecars[0].listen, "ann").await;
    until("what is wrong is said", async || {
        let health = format!("{:?}", pool.sidecars[0].status().await.redis);
        if health.contains("NOPERM") { Ok(()) } else { Err(health) }
    })
    .await;
    assert_eq!(pool.metric("wspool_redis_up").await, 0);
    for n in 0..20 {
        put(&pool.sidecars[0], "ann", &format!("{n}"), &[]).await;
        assert_eq!(get(&pool.sidecars[0], "ann").await, n.to_string());
    }
    std::fs::write(&acl, may(&format!("&{PREFIX}*"))).expect("a file in a temporary folder");
    let publisher = redis::client(&url, None).await;
    let load = CustomCommand::new_static("ACL", ClusterHash::FirstKey, false);
    let loaded: Result<String, _> = publisher.custom(load, vec!["LOAD"]).await;
    loaded.expect("Redis reads its users again");
    listens(&pool, 2).await;
    let publisher = redis::client(&url, None).await;
    assert_eq!(publish(&publisher, &channel("ann"), b"heard").await, 1);
    assert_eq!(client.hear().await, Message::text("heard"));
}

async fn put(sidecar: &Sidecar, key: &str, body: &str, headers: &[(&str, &str)]) {
    let answer = sidecar.ask_api(headers, Method::PUT, &format!("/v1/keys/{key}/session?ttl=1h"), body).await;
    assert_eq!(answer.status.as_u16(), 204, "{}", String::from_utf8_lossy(&answer.body));
}

async fn get(sidecar: &Sidecar, key: &str) -> String {
    let answer = sidecar.ask_api(&[], Method::GET, &format!("/v1/keys/{key}/session"), "").await;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status.as_u16(), 200, "{body}");
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_wait_for_a_redis_that_hangs_take_a_bounded_amount() {
    const SESSIONS: usize = 800;
    let redis = Redis::start().await;
    let mut pool = pool(&redis, &["a"], 1).await;
    listens(&pool, 1).await;
    put(&pool.sidecars[0], "ann", "before", &[]).await;
    let before = pool.sidecars[0].process().memory();
    redis.hang();
    let (api, http, body) = (pool.sidecars[0].api.expect("an API"), Http::default(), "x".repeat(262_144));
    let write = |n: usize| {
        let (http, body) = (&http, body.clone());
        async move {
            let path = format!("/v1/keys/user-{n}/session");
            // Who is refused before its body was read may see the end of its connection first.
            let answer = http.send_with(&[], Method::PUT, api, &path, body).await;
            answer.map_or(503, |answer| answer.status.as_u16())
        }
    };
    let writes = stream::iter(0..SESSIONS).map(write).buffer_unordered(SESSIONS).collect::<Vec<_>>();
    let mut most = 0;
    let watch = async {
        loop {
            most = most.max(pool.sidecars[0].process().memory());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answers = tokio::select! {
        answers = writes => answers,
        () = watch => unreachable!("it watches for ever"),
    };
    assert!(answers.iter().all(|status| *status == 503), "{answers:?}");
    // 200 MB wait to be written.
    assert!(most < before + 140 * 1024 * 1024, "{before} bytes before, {most} at most");
    redis.go_on();
    listens(&pool, 1).await;
    until("sessions are kept again", async || {
        let answer = pool.sidecars[0].ask_api(&[], Method::GET, "/v1/keys/ann/session", "").await;
        equal(&answer.status.as_u16(), &200)
    })
    .await;
}

#[tokio::test]
async fn a_session_goes_with_its_key_and_a_server_that_has_lost_it_cannot_overwrite_it() {
    let redis = Redis::start().await;
    let mut pool = pool(&redis, &["a", "b"], 2).await;
    listens(&pool, 2).await;
    let path = "/v1/keys/ann/session";
    refused(&pool.sidecars[0].ask_api(&[], Method::GET, path, "").await, 404, "no-session");
    let version = pool.plan.placement.version;
    let (older, newer) = (version.token(), format!("{}.{}", version.term, version.epoch + 1));
    put(&pool.sidecars[0], "ann", "{\"room\":7}", &[("content-type", "application/json"), ("wspool-epoch", &older)])
        .await;
    let answer = pool.sidecars[1].ask_api(&[], Method::GET, path, "").await;
    assert_eq!((&answer.body[..], answer.header("content-type")), (&b"{\"room\":7}"[..], "application/json"));
    assert_eq!(answer.header("wspool-epoch"), older);
    put(&pool.sidecars[1], "ann", "newer", &[("wspool-epoch", &newer)]).await;
    let stale = pool.sidecars[0].ask_api(&[("wspool-epoch", &older)], Method::PUT, path, "stale").await;
    assert!(refused(&stale, 409, "stale").contains(&newer), "it names the newer one");
    assert_eq!(get(&pool.sidecars[0], "ann").await, "newer");
    refused(&pool.sidecars[0].ask_api(&[("wspool-epoch", &older)], Method::DELETE, path, "").await, 409, "stale");
    let forgotten = pool.sidecars[1].ask_api(&[("wspool-epoch", &newer)], Method::DELETE, path, "").await;
    assert_eq!(forgotten.status.as_u16(), 204);
    refused(&pool.sidecars[1].ask_api(&[], Method::GET, path, "").await, 404, "no-session");
    let stale = pool.sidecars[0].ask_api(&[("wspool-epoch", &older)], Method::PUT, path, "stale").await;
    refused(&stale, 409, "stale");

    let short = pool.sidecars[0]
        .ask_api(&[("wspool-epoch", &newer)], Method::PUT, "/v1/keys/ann/session?ttl=1s", "gone soon")
        .await;
    assert_eq!(short.status.as_u16(), 204);
    until("its time is over", async || {
        equal(&pool.sidecars[0].ask_api(&[], Method::GET, path, "").await.status.as_u16(), &404)
    })
    .await;

    for (path, headers, body, status, title) in [
        ("/v1/keys/ann/session?ttl=0s", &[][..], "x", 400, "bad-ttl"),
        ("/v1/keys/ann/session?ttl=a-while", &[], "x", 400, "bad-ttl"),
        (path, &[("wspool-epoch", "7")], "x", 400, "bad-epoch"),
        (path, &[("wspool-epoch", &newer)], &"x".repeat(262_145), 413, "too-long"),
        ("/v1/keys/a%00b/session", &[], "x", 400, "bad-key"),
    ] {
        refused(&pool.sidecars[0].ask_api(headers, Method::PUT, path, body).await, status, title);
    }
    // A server that has the key writes whatever handshake the app speaks of, and another one only with a newer one.
    let key = pool.plan.keys_of(&pool.sidecars[1], 1).remove(0);
    let held = format!("/v1/keys/{key}/session");
    let _device = Client::connect(pool.sidecars[0].listen, &key).await;
    put(&pool.sidecars[1], &key, "first", &[]).await;
    put(&pool.sidecars[1], &key, "second", &[("wspool-epoch", "0.1")]).await;
    refused(&pool.sidecars[0].ask_api(&[], Method::PUT, &held, "not here").await, 409, "not-here");
    refused(&pool.sidecars[0].ask_api(&[("wspool-epoch", "0.1")], Method::PUT, &held, "old").await, 409, "stale");
    assert_eq!(get(&pool.sidecars[0], &key).await, "second");

    // The pool is deleted and made again: its placements begin anew.
    let session = format!("{PREFIX}session:bob");
    let before = [&session, "version", "9.9", "pool", "before", "type", "text/plain", "body", "of the pool before"];
    let command = CustomCommand::new_static("HSET", ClusterHash::FirstKey, false);
    let written: u64 = redis.client().await.custom(command, before.to_vec()).await.expect("Redis answers");
    assert_eq!((written, get(&pool.sidecars[0], "bob").await.as_str()), (4, "of the pool before"));
    put(&pool.sidecars[0], "bob", "of the new one", &[("wspool-epoch", &older)]).await;
    let stale =
        pool.sidecars[0].ask_api(&[("wspool-epoch", "0.9")], Method::PUT, "/v1/keys/bob/session", "stale").await;
    refused(&stale, 409, "stale");

    pool.plan.placement.settings.redis = None;
    pool.give(&[0, 1]).await;
    until("there is no Redis any more", async || {
        let answer = pool.sidecars[0].ask_api(&[], Method::GET, path, "").await;
        let said: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        equal(&said["title"], &Value::from("no-redis"))
    })
    .await;
    pool.plan.placement.settings.key = KeySpec::default();
    pool.plan.placement.settings.messages = Messages::default();
    pool.give(&[0, 1]).await;
    refused(&pool.sidecars[0].ask_api(&[], Method::GET, path, "").await, 403, "unverified");
}

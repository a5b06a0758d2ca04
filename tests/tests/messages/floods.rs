//! More than a client reads, and a Redis that hangs: what that costs, and whom.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::frames::{opcode, plain};
use harness::redis::{Redis, publish};
use harness::wait::equal;
use harness::{Client, Wire, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

use crate::Pool;
use crate::moves::{Senders, heard_exactly, texts};
use crate::redis::{away, channel, listens, pool};

/// Publishes so many messages of a kilobyte, so many a second if it can, without a wait for the answers; how long it took.
async fn flood(redis: SocketAddr, channel: String, messages: usize, per_second: usize) -> Duration {
    const TICK: Duration = Duration::from_millis(10);
    let (mut answers, mut commands) = TcpStream::connect(redis).await.expect("a connection").into_split();
    let (text, length) = ("x".repeat(1_024), channel.len());
    let command = format!("*3\r\n$7\r\nPUBLISH\r\n${length}\r\n{channel}\r\n$1024\r\n{text}\r\n");
    let at_once = per_second / 100;
    let began = Instant::now();
    let publishing = async {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for _ in 0..messages / at_once {
            ticks.tick().await;
            commands.write_all(command.repeat(at_once).as_bytes()).await.expect("a Redis that reads");
        }
    };
    let answering = async {
        // One sidecar has heard each.
        let mut all = vec![0; messages * b":1\r\n".len()];
        answers.read_exact(&mut all).await.expect("an answer to each");
        assert!(all.chunks(4).all(|answer| answer == b":1\r\n"), "{}", String::from_utf8_lossy(&all[..40]));
    };
    tokio::join!(publishing, answering);
    began.elapsed()
}

/// What is known of messages that were published, by connections.
async fn accounted_for(pool: &Pool) -> u64 {
    let mut sum = pool.metric("wspool_messages_total{outcome=\"written\"}").await;
    for reason in ["slow", "published", "missed", "no_room"] {
        sum += pool.metric(&format!("wspool_messages_dropped_total{{reason=\"{reason}\"}}")).await;
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_faster_than_its_client_reads_costs_bounded_memory_is_counted_and_harms_nobody_else() {
    const MESSAGES: usize = 40_000;
    const PER_SECOND: usize = 10_000;
    const OTHERS: usize = 20;
    const PAUSE: Duration = Duration::from_millis(5);
    let redis = Redis::start().await;
    let mut pool = pool(&redis, &["a", "b"], 2).await;
    let mut slow = Wire::dial(pool.sidecars[0].listen).await;
    slow.send(harness::wire::HANDSHAKE).await;
    slow.head().await;
    let others = pool.users(OTHERS).await;
    listens(&pool, OTHERS + 3).await;
    let before = pool.memory();
    let flooding = tokio::spawn(flood(redis.address, channel("ann"), MESSAGES, PER_SECOND));
    let client = redis.client().await;
    let mut sent: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    let (mut published, mut most) = (0, 0);
    while !flooding.is_finished() {
        let key = format!("user-{}", published % OTHERS);
        let texts = &mut sent.entry(key.clone()).or_insert_with(|| vec![Vec::new()])[0];
        let text = format!("other:{}", texts.len());
        assert_eq!(publish(&client, &channel(&key), text.as_bytes()).await, 1);
        texts.push(text);
        published += 1;
        most = most.max(pool.memory());
        tokio::time::sleep(PAUSE).await;
    }
    let took = flooding.await.expect("all of it");
    #[allow(clippy::cast_precision_loss, reason = "small numbers")]
    let rate = MESSAGES as f64 / took.as_secs_f64();
    println!(
        "{rate:.0} messages a second for the slow client, {published} for others; {} MB more",
        (most - before) >> 20
    );
    heard_exactly(&others, &sent).await;
    until("every message is accounted for", async || {
        equal(&accounted_for(&pool).await, &((MESSAGES + published) as u64))
    })
    .await;
    // 40 MB were published for it.
    assert!(most < before + 30 * 1024 * 1024, "{before} bytes before, {most} at most");
    assert_eq!(others.breaks(), 0);

    // It reads: what was written for it is there, and then what comes from now on.
    let written = pool.metric("wspool_messages_total{outcome=\"written\"}").await - published as u64;
    assert!(written < MESSAGES as u64, "it read all of it");
    let greeting = plain(opcode::TEXT, pool.plan.owner("ann").as_bytes());
    assert_eq!(slow.exactly(greeting.len()).await, greeting);
    let flooded = plain(opcode::TEXT, &[b'x'; 1_024]);
    for number in 0..written {
        assert_eq!(slow.exactly(flooded.len()).await, flooded, "{number} of {written}");
    }
    assert_eq!(publish(&client, &channel("ann"), b"again").await, 1);
    let again = plain(opcode::TEXT, b"again");
    assert_eq!(slow.exactly(again.len()).await, again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_hangs_clients_come_and_go_and_senders_get_right_answers_for_bounded_memory() {
    const KEYS: usize = 100;
    const ROUNDS: usize = 50;
    const PASSERS_BY: usize = 20;
    let redis = Redis::start().await;
    let mut pool = pool(&redis, &["a", "b"], 2).await;
    let entries = pool.entries();
    let crowd = pool.users(KEYS).await;
    listens(&pool, KEYS + 2).await;
    let before = pool.memory();
    redis.hang();
    let senders = Senders::start(&pool.all(), KEYS, 1);
    let mut most = 0;
    for round in 0..ROUNDS {
        let pass = async |number: usize| {
            Client::connect(entries[number % 2], &format!("passer-by-{round}-{number}")).await.check().await;
        };
        join_all((0..PASSERS_BY).map(pass)).await;
        most = most.max(pool.memory());
    }
    away(&pool).await;
    senders.more(1_000).await;
    most = most.max(pool.memory());
    let mut sent = texts(senders.stop().await);
    heard_exactly(&crowd, &sent).await;
    println!("{} MB more", (most - before) >> 20);
    assert!(most < before + 20 * 1024 * 1024, "{before} bytes before, {most} at most");
    redis.go_on();
    // Those that have gone are listened to no more.
    listens(&pool, KEYS + 2).await;
    let publisher = redis.client().await;
    for key in (0..KEYS).map(|number| format!("user-{number}")) {
        assert_eq!(publish(&publisher, &channel(&key), b"again:0").await, 1, "{key}");
        sent.entry(key).or_default().push(vec!["again:0".into()]);
    }
    heard_exactly(&crowd, &sent).await;
    assert_eq!(crowd.breaks(), 0);
}

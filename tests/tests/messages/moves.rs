//! Messages while keys move: each arrives once, in order, or is held.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use harness::client::Client;
use harness::crowd::Habit;
use harness::http::Http;
use harness::wait::equal;
use harness::{Crowd, Sidecar, until};
use http::Method;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::{Pool, happened};

/// Senders beside sidecars. What each sends to a key has an order.
pub(super) struct Senders {
    tasks: JoinSet<BTreeMap<String, Vec<Sent>>>,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
}

/// A message, and for how many connections each of this is said to have happened to it.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) text: String,
    pub(super) written: u64,
    pub(super) held: u64,
    pub(super) dropped: u64,
}

/// Tasks beside each sidecar.
const TASKS: usize = 4;

impl Senders {
    /// To random ones of so many keys, each of which has so many connections, there or on their way.
    pub(super) fn start(sidecars: &[&Sidecar], keys: usize, devices: u64) -> Self {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        for sidecar in sidecars {
            for task in 0..TASKS {
                let (name, api) = (format!("{}{task}", sidecar.name), sidecar.api.expect("a local API"));
                tasks.spawn(send(name, api, keys, devices, Arc::clone(&stop), Arc::clone(&sent)));
            }
        }
        Self { tasks, stop, sent }
    }

    /// Waits until so many messages more have been sent.
    pub(super) async fn more(&self, count: usize) {
        let before = self.sent.load(Ordering::Relaxed);
        until("more messages have been sent", async || match self.sent.load(Ordering::Relaxed) - before {
            sent if sent >= count => Ok(()),
            sent => Err(format!("{sent} of {count}")),
        })
        .await;
    }

    /// Stops them; what they have sent in order, by key and sender.
    pub(super) async fn stop(mut self) -> BTreeMap<String, Vec<Vec<Sent>>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all: BTreeMap<String, Vec<Vec<Sent>>> = BTreeMap::new();
        while let Some(sent) = self.tasks.join_next().await {
            for (key, texts) in sent.expect("a sender without doubts") {
                all.entry(key).or_default().push(texts);
            }
        }
        all
    }
}

async fn send(
    name: String,
    api: SocketAddr,
    keys: usize,
    devices: u64,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
) -> BTreeMap<String, Vec<Sent>> {
    let http = Http::default();
    let mut sent: BTreeMap<String, Vec<Sent>> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let key = format!("user-{}", rand::random_range(0..keys));
        let before = sent.entry(key.clone()).or_default();
        let text = format!("{name}:{}", before.len());
        let path = format!("/v1/keys/{key}/messages");
        let answer = http.send_with(&[("content-type", "text/plain")], Method::POST, api, &path, text.clone()).await;
        let said: Value = answer.and_then(|answer| answer.json()).unwrap_or_else(|error| panic!("{key}: {error}"));
        let of = |what: &str| said[what].as_u64().unwrap_or_default();
        let told = Sent { text, written: of("written"), held: of("held"), dropped: of("dropped") };
        // Every client is there, or on its way.
        assert_eq!(told.written + told.held + told.dropped, devices, "{told:?} to {key}");
        before.push(told);
        count.fetch_add(1, Ordering::Relaxed);
    }
    sent
}

/// The texts of messages of which none was dropped.
pub(super) fn texts(sent: BTreeMap<String, Vec<Vec<Sent>>>) -> BTreeMap<String, Vec<Vec<String>>> {
    let text = |sent: Sent| {
        assert_eq!(sent.dropped, 0, "{sent:?}");
        sent.text
    };
    let all = |senders: Vec<Vec<Sent>>| senders.into_iter().map(|sent| sent.into_iter().map(text).collect()).collect();
    sent.into_iter().map(|(key, senders)| (key, all(senders))).collect()
}

/// Waits until each client has heard all that was sent to it; panics unless it has heard nothing else, each once, and
/// each sender's in order.
pub(super) async fn heard_exactly(crowd: &Crowd, sent: &BTreeMap<String, Vec<Vec<String>>>) {
    until("everything has arrived", async || {
        let lives = crowd.lives();
        let expected: usize = lives.iter().filter_map(|life| sent.get(&life.key)).flatten().map(Vec::len).sum();
        let heard: usize = lives.iter().map(|life| life.heard.len()).sum();
        if heard >= expected { Ok(()) } else { Err(format!("{heard} of {expected}")) }
    })
    .await;
    for life in crowd.lives() {
        let sent = sent.get(&life.key).map(Vec::as_slice).unwrap_or_default();
        let mut heard: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for text in &life.heard {
            heard.entry(text.split(':').next().expect("a sender")).or_default().push(text.clone());
        }
        let mut senders: Vec<&Vec<String>> = sent.iter().filter(|texts| !texts.is_empty()).collect();
        senders.sort();
        let mut heard: Vec<&Vec<String>> = heard.values().collect();
        heard.sort();
        assert_eq!(heard, senders, "{}", life.key);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_to_a_thousand_keys_arrive_once_and_in_order_before_during_and_after_a_scale_up() {
    const KEYS: usize = 1_000;
    let mut pool = Pool::new(&["a", "b", "c"], 2).await;
    let crowd = pool.users(KEYS).await;
    let senders = Senders::start(&pool.all(), KEYS, 1);
    senders.more(1_000).await;
    pool.give(&[0, 1, 2]).await;
    pool.plan.move_all(&[&pool.sidecars[0], &pool.sidecars[1]], 40).await;
    crowd.at_home(|key| pool.plan.owner(key)).await;
    senders.more(1_000).await;
    let sent = texts(senders.stop().await);
    heard_exactly(&crowd, &sent).await;
    assert!(crowd.breaks() > 200, "a third of the keys has moved");
    let held = pool.metric("wspool_messages_total{outcome=\"held\"}").await;
    assert!(held > 0, "no message met a client on its way");
    assert_eq!(pool.metric("wspool_messages_total{outcome=\"returned\"}").await, held);
    assert_eq!(pool.metric("wspool_held_messages").await, 0);
}

#[tokio::test]
async fn a_message_for_a_client_that_is_away_is_held_until_it_returns() {
    let mut pool = Pool::new(&["a", "b"], 1).await;
    let [a, b] = [&pool.sidecars[0], &pool.sidecars[1]].map(|sidecar| sidecar.listen);
    let mut after = pool.plan.clone();
    after.hold(&[(0, &pool.sidecars[0]), (1, &pool.sidecars[1])]);
    let key = after.keys_of(&pool.sidecars[1], 1).remove(0);
    let mut client = Client::connect(a, &key).await;
    pool.give(&[0, 1]).await;
    happened(&pool.sidecars[1].send_to(&key, "before").await, 1, 0);
    assert_eq!(client.hear().await, Message::text("before"));
    pool.plan.move_all(&[&pool.sidecars[0]], 1).await;
    client.goodbye().await;
    happened(&pool.sidecars[0].send_to(&key, "one").await, 0, 1);
    happened(&pool.sidecars[1].send_to(&key, "two").await, 0, 1);
    assert_eq!(pool.metric("wspool_held_messages").await, 2);
    // The key moves on to where it came from: what is held goes with it.
    pool.give(&[0]).await;
    happened(&pool.sidecars[1].send_to(&key, "three").await, 0, 1);
    let mut client = Client::connect(b, &key).await;
    assert_eq!(client.server, "a");
    let heard = [client.hear().await, client.hear().await, client.hear().await];
    assert_eq!(heard, ["one", "two", "three"].map(Message::text));
    happened(&pool.sidecars[1].send_to(&key, "after").await, 1, 0);
    assert_eq!(client.hear().await, Message::text("after"));
    for (outcome, messages) in [("held", 3), ("returned", 3), ("written", 2)] {
        let counted = pool.metric(&format!("wspool_messages_total{{outcome=\"{outcome}\"}}")).await;
        assert_eq!(counted, messages, "{outcome}");
    }
}

#[tokio::test]
async fn a_held_message_whose_client_does_not_return_is_dropped_and_counted() {
    let mut pool = Pool::new(&["a", "b"], 1).await;
    let mut after = pool.plan.clone();
    after.hold(&[(0, &pool.sidecars[0]), (1, &pool.sidecars[1])]);
    let key = after.keys_of(&pool.sidecars[1], 1).remove(0);
    let mut crowd = Crowd::default();
    crowd.join_with(&key, &[pool.sidecars[0].listen], Habit::StaysAway);
    crowd.settled().await;
    pool.give(&[0, 1]).await;
    pool.plan.move_all(&[&pool.sidecars[0]], 1).await;
    happened(&pool.sidecars[0].send_to(&key, "lost").await, 0, 1);
    until("it is given up", async || {
        equal(&pool.metric("wspool_messages_dropped_total{reason=\"expired\"}").await, &1)
    })
    .await;
    assert_eq!(pool.metric("wspool_held_messages").await, 0);
    let mut late = Client::connect(pool.sidecars[0].listen, &key).await;
    late.check().await;
}

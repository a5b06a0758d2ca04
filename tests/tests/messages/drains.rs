//! A server that ends while it holds messages: whoever owns their keys then has them for their clients.

use std::collections::BTreeMap;
use std::iter::repeat_n;

use harness::wait::equal;
use harness::{Client, Crowd, until};

use crate::{Pool, happened};

/// Clients that were moved to the server `b`, and have not come.
struct Away {
    pool: Pool,
    keys: Vec<String>,
    /// Others, of which some are there.
    crowd: Crowd,
}

/// Connections of each key.
const DEVICES: usize = 2;
/// Messages for each key, before the server is asked to end.
const MESSAGES: usize = 20;

impl Away {
    /// The third server is a spare.
    async fn new() -> Self {
        let mut pool = Pool::new(&["a", "b", "c"], 1).await;
        let mut after = pool.plan.clone();
        after.hold(&[(0, &pool.sidecars[0]), (1, &pool.sidecars[1])]);
        let keys = after.keys_of(&pool.sidecars[1], 5);
        let mut clients = Vec::new();
        for key in keys.iter().flat_map(|key| repeat_n(key, DEVICES)) {
            clients.push(Client::connect(pool.sidecars[0].listen, key).await);
        }
        pool.give(&[0, 1]).await;
        let leaving = async {
            for client in &mut clients {
                client.goodbye().await;
            }
        };
        let from = [&pool.sidecars[0]];
        tokio::join!(pool.plan.move_all(&from, 20), leaving);
        let mut crowd = Crowd::default();
        for number in 0..20 {
            crowd.join(&format!("other-{number}"), &[pool.sidecars[0].listen]);
        }
        crowd.at_home(|key| pool.plan.owner(key)).await;
        let away = Self { pool, keys, crowd };
        for n in 0..MESSAGES {
            away.send(n % 2, n).await;
        }
        let held = (MESSAGES * away.keys.len()) as u64;
        assert_eq!(away.pool.sidecars[1].metric("wspool_held_messages").await, held);
        away
    }

    /// Sends a message to each key; panics unless it is held.
    async fn send(&self, sender: usize, number: usize) {
        for key in &self.keys {
            happened(&self.pool.sidecars[sender].send_to(key, &number.to_string()).await, 0, DEVICES as u64);
        }
    }

    /// Sends on while the server ends; what is held for each key, in order.
    async fn send_to_the_end(&self) -> BTreeMap<String, Vec<String>> {
        let before: Vec<_> = (0..MESSAGES).map(|number| number.to_string()).collect();
        let mut held: BTreeMap<_, _> = self.keys.iter().map(|key| (key.clone(), before.clone())).collect();
        let (mut number, mut over) = (MESSAGES, false);
        while !over {
            over = self.pool.sidecars[1].try_status().await.is_err();
            for (key, held) in &mut held {
                let text = number.to_string();
                happened(&self.pool.sidecars[0].send_to(key, &text).await, 0, DEVICES as u64);
                held.push(text);
            }
            number += 1;
        }
        assert!(held.values().all(|held| held.len() > MESSAGES), "messages came meanwhile");
        held
    }

    /// Waits until it has ended well.
    async fn ended(&mut self) {
        let process = self.pool.sidecars[1].process();
        let status = process.ended().await;
        assert_eq!(status.code(), Some(0), "{}", process.log());
        assert!(!process.log().contains("held messages are lost"), "{}", process.log());
    }

    /// The clients come; panics unless they come to this server, and have what was held once and in order.
    async fn come_to(&self, server: &str, held: &BTreeMap<String, Vec<String>>) {
        for (key, held) in held.iter().flat_map(|held| repeat_n(held, DEVICES)) {
            let mut client = Client::connect(self.pool.sidecars[0].listen, key).await;
            assert_eq!(client.server, server);
            let mut heard = Vec::new();
            while heard.last() != held.last() {
                heard.push(client.hear().await.into_text().expect("a text").to_string());
            }
            assert_eq!(heard, *held, "{key}");
            client.check().await;
        }
        let [a, _, c] = &self.pool.sidecars[..] else { panic!("three servers") };
        for sidecar in [a, c] {
            assert_eq!(sidecar.metric("wspool_held_messages").await, 0);
            assert_eq!(sidecar.metric("wspool_messages_dropped_total{reason=\"expired\"}").await, 0);
        }
    }
}

#[tokio::test]
async fn what_a_server_holds_that_ends_without_an_operator_arrives_once_and_in_order_at_the_next_best() {
    let mut away = Away::new().await;
    away.pool.sidecars[1].terminate();
    let held = away.send_to_the_end().await;
    away.ended().await;
    away.crowd.at_home(|_| "a".into()).await;
    away.come_to("a", &held).await;
}

#[tokio::test]
async fn what_a_server_holds_whose_slot_goes_to_a_spare_arrives_once_and_in_order_there() {
    let mut away = Away::new().await;
    away.pool.sidecars[1].terminate();
    until("it says that it drains", async || equal(&away.pool.sidecars[1].status().await.draining, &true)).await;
    away.pool.plan.hold(&[(0, &away.pool.sidecars[0]), (1, &away.pool.sidecars[2])]);
    away.pool.plan.others(&[]);
    away.pool.plan.publish(&away.pool.all()).await;
    let granting = until("it has ended", async || {
        let b = &away.pool.sidecars[1];
        let Ok(report) = b.try_status().await else { return Ok(()) };
        // It may end between the question and the grant.
        let _ = b.try_grant(&away.pool.plan.grant(b, report.evicted + 20)).await;
        Err(format!("{report:?}"))
    });
    let (held, ()) = tokio::join!(away.send_to_the_end(), granting);
    away.ended().await;
    away.crowd.at_home(|key| away.pool.plan.owner(key)).await;
    away.come_to("c", &held).await;
}

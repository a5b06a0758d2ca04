//! Messages for very many connections: those of one key, and those of all.

use harness::Crowd;
use harness::http::Http;
use http::Method;
use tokio::task::JoinSet;

use crate::devices::heard_as_told;
use crate::moves::{Senders, heard_exactly, texts};
use crate::{Pool, happened};

/// So many connections of one key, which come in at any server.
async fn room(pool: &Pool, members: u64) -> Crowd {
    let mut crowd = Crowd::default();
    for _ in 0..members {
        crowd.join("user-0", &pool.entries());
    }
    crowd.settled().await;
    crowd
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_in_a_room_of_three_hundred_gets_all_that_other_servers_send_there_in_order() {
    const MEMBERS: u64 = 300;
    let pool = Pool::new(&["a", "b", "c"], 3).await;
    let crowd = room(&pool, MEMBERS).await;
    let owner = pool.plan.owner("user-0");
    let others: Vec<_> = pool.sidecars.iter().filter(|sidecar| sidecar.name != owner).collect();
    let senders = Senders::start(&others, 1, MEMBERS);
    senders.more(200).await;
    heard_exactly(&crowd, &texts(senders.stop().await)).await;
    assert_eq!(crowd.breaks(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_moves_gets_what_is_sent_there_meanwhile() {
    const MEMBERS: u64 = 200;
    let mut pool = Pool::new(&["a", "b", "c"], 1).await;
    let crowd = room(&pool, MEMBERS).await;
    let senders = Senders::start(&pool.all(), 1, MEMBERS);
    senders.more(50).await;
    pool.give(&[1]).await;
    pool.plan.move_all(&[&pool.sidecars[0]], MEMBERS).await;
    crowd.at_home(|_| "b".into()).await;
    senders.more(50).await;
    let sent = senders.stop().await;
    heard_as_told(&crowd, &sent).await;
    let dropped: u64 = sent.values().flatten().flatten().map(|sent| sent.dropped).sum();
    let held: u64 = sent.values().flatten().flatten().map(|sent| sent.held).sum();
    println!(
        "of {} messages for {MEMBERS}, {held} were held and {dropped} dropped",
        sent["user-0"].iter().flatten().count()
    );
    assert!(held > 0, "no message met a client on its way");
    assert_eq!(pool.metric("wspool_held_messages").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_several_senders_send_to_everybody_at_once_reaches_each_of_a_thousand_once_and_in_order() {
    const CLIENTS: usize = 1_000;
    const SENDERS: usize = 12;
    const MESSAGES: usize = 5;
    let pool = Pool::new(&["a", "b", "c"], 3).await;
    let crowd = pool.users(CLIENTS).await;
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let api = pool.sidecars[sender % pool.sidecars.len()].api.expect("a local API");
        senders.spawn(async move {
            let mut sent = Vec::new();
            for number in 0..MESSAGES {
                let text = format!("{sender}:{number}");
                let headers = [("content-type", "text/plain")];
                let answer = Http::default().send_with(&headers, Method::POST, api, "/v1/messages", text.clone()).await;
                happened(&answer.expect("an answer"), CLIENTS as u64, 0);
                sent.push(text);
            }
            sent
        });
    }
    let sent = senders.join_all().await;
    let to_each = crowd.lives().into_iter().map(|life| (life.key, sent.clone())).collect();
    heard_exactly(&crowd, &to_each).await;
    let written = (CLIENTS * SENDERS * MESSAGES) as u64;
    assert_eq!(pool.metric("wspool_messages_total{outcome=\"written\"}").await, written);
}

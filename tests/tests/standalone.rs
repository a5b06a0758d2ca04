//! `wspool-operator standalone` with real sidecars: what it moves, how often it breaks a connection, and when it stops.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::crowd::Habit;
use harness::operator::Files;
use harness::plan::taken_by_last;
use harness::wait::equal;
use harness::{App, Scene, until};
use serde_json::Value;

/// A pool whose key is the user, behind a router.
async fn scene(spec: &str, names: &[&str]) -> Scene {
    Scene::new(Files::new(spec), names).await
}

async fn join(scene: &mut Scene, clients: usize, habit: Habit) {
    for number in 0..clients {
        scene.crowd.join_with(&format!("user-{number}"), &[scene.router.listen], habit);
    }
    scene.crowd.settled().await;
}

/// The clients' breaks, by key.
fn breaks(scene: &Scene) -> BTreeMap<String, usize> {
    scene.crowd.lives().into_iter().map(|life| (life.key.clone(), life.breaks())).collect()
}

fn never_on_two_servers(scene: &Scene) {
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

fn condition<'a>(pool: &'a Value, kind: &str) -> &'a Value {
    let all = pool["conditions"].as_array().into_iter().flatten();
    all.into_iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn one_more_server_takes_its_share_and_nobody_else_is_touched() {
    let mut scene = scene("rebalance: {settle: 200ms, rate: 100}", &["a", "b"]).await;
    join(&mut scene, 150, Habit::Returns).await;
    let taken = taken_by_last(3, 150);
    scene.start("c").await;
    scene.list(&["a", "b", "c"]);
    let pool = scene.operator.stable(3).await;
    for life in scene.crowd.lives() {
        let expected = if taken.contains(&life.key) { vec![Some((1012, "moved".to_owned()))] } else { vec![] };
        assert_eq!(life.goodbyes(), expected, "{life:?}");
        assert_eq!(life.refusals, Vec::<String>::new(), "{life:?}");
    }
    never_on_two_servers(&scene);
    let count = taken.len();
    assert_eq!(pool["move"]["evicted"], count, "{pool}");
    assert_eq!((&pool["move"]["returned"], &pool["move"]["lost"]), (&count.into(), &0.into()), "{pool}");
    assert_eq!(pool["breaks"]["move"], count, "{pool}");
    let pool = scene.operator.until("it counts all connections", |pool| pool["connections"] == 150).await;
    let at_c = pool["slots"].as_array().expect("slots").iter().find(|slot| slot["member"] == "c").expect("its slot");
    assert_eq!(at_c["connections"], count, "{pool}");
}

#[tokio::test]
async fn a_rollout_with_a_spare_breaks_each_connection_exactly_once() {
    let mut scene = scene("replicas: 2, rebalance: {settle: 200ms, rate: 200}", &["a", "b"]).await;
    join(&mut scene, 80, Habit::Returns).await;
    let by_a = scene.crowd.present()["a"];
    // The new version of a server is there first; then an old one goes: once out of the list, once by a signal.
    scene.start("c").await;
    scene.list(&["a", "b", "c"]);
    let spare = |pool: &Value| pool["spares"].as_array().is_some_and(|spares| !spares.is_empty());
    scene.operator.until("the new server is a spare", spare).await;
    scene.list(&["b", "c"]);
    until("the first is empty", async || equal(&scene.servers["a"].status().await.connections, &0)).await;
    scene.operator.stable(2).await;
    assert_eq!(breaks(&scene).values().sum::<usize>(), by_a);

    scene.start("d").await;
    scene.list(&["b", "c", "d"]);
    scene.operator.until("the new server is a spare", spare).await;
    let b = scene.servers.get_mut("b").expect("b");
    b.terminate();
    assert_eq!(b.process().ended().await.code(), Some(0), "{}", b.process().log());
    scene.list(&["c", "d"]);
    scene.operator.stable(2).await;
    scene.crowd.settled().await;
    for life in scene.crowd.lives() {
        assert_eq!(life.goodbyes(), [Some((1012, "moved".to_owned()))], "{life:?}");
        assert_eq!(life.refusals, Vec::<String>::new(), "{life:?}");
    }
    never_on_two_servers(&scene);
}

#[tokio::test]
async fn an_operator_killed_in_mid_move_stops_it_and_another_finishes_it() {
    let mut scene = scene("rebalance: {settle: 200ms, rate: 10}", &["a"]).await;
    join(&mut scene, 80, Habit::Returns).await;
    let taken = taken_by_last(2, 80);
    scene.start("b").await;
    scene.list(&["a", "b"]);
    let moving = |pool: &Value| pool["move"]["evicted"].as_u64() > Some(3);
    scene.operator.until("the move is under way", moving).await;
    scene.operator.kill();
    let killed = Instant::now();

    // Its last grant ends within a second; far more than that passes, and less than the whole move would take.
    tokio::time::sleep_until((killed + Duration::from_secs(3)).into()).await;
    let last = scene.crowd.last_break().expect("a break");
    let late = last.saturating_duration_since(killed);
    assert!(late < Duration::from_millis(1_500), "somebody was evicted {late:?} after the operator's death");
    let before = scene.servers["a"].status().await;
    assert_eq!(before.in_flight, 0);
    assert!(before.moved > 0, "the move was over too soon to prove anything: {before:?}");
    assert_eq!(before.evicted, scene.crowd.breaks() as u64);

    scene.operator.start_again().await;
    let pool = scene.operator.stable(2).await;
    for (key, breaks) in breaks(&scene) {
        assert_eq!(breaks, usize::from(taken.contains(&key)), "{key}");
    }
    assert_eq!(scene.servers["a"].status().await.evicted, taken.len() as u64);
    assert_eq!(pool["term"], 2, "a new leader has a term of its own: {pool}");
    never_on_two_servers(&scene);
}

#[tokio::test]
async fn clients_that_do_not_come_back_stop_the_move_and_the_pool_says_why() {
    let spec = "rebalance: {settle: 200ms, rate: 50, returnTimeout: 1s, minReturned: 80}";
    let mut scene = scene(spec, &["a"]).await;
    join(&mut scene, 100, Habit::StaysAway).await;
    let taken = taken_by_last(2, 100);
    scene.start("b").await;
    scene.list(&["a", "b"]);
    let stopped = |pool: &Value| condition(pool, "Degraded")["reason"] == "ClientsNotReturning";
    let pool = scene.operator.until("it says that clients do not return", stopped).await;
    assert_eq!(pool["move"]["reason"], "ClientsNotReturning", "{pool}");
    assert!(pool["move"]["lost"].as_u64() > Some(0), "{pool}");
    assert!(condition(&pool, "Degraded")["message"].as_str().is_some_and(|why| why.contains("80 %")), "{pool}");
    let pending = pool["move"]["pending"].as_u64().expect("a number");
    assert!(pending > taken.len() as u64 / 2, "it stopped too late: {pool}");

    // They come back after all, and so do those that are evicted from now on.
    let mut back = BTreeSet::new();
    until("the move is over", async || {
        for life in scene.crowd.lives().into_iter().filter(|life| life.breaks() > 0) {
            if back.insert(life.key.clone()) {
                scene.crowd.join(&life.key, &[scene.router.listen]);
            }
        }
        let pool = scene.operator.pool().await;
        if pool["state"] == "Stable" { Ok(()) } else { Err(pool.to_string()) }
    })
    .await;
    never_on_two_servers(&scene);
}

#[tokio::test]
async fn clients_that_stop_returning_in_mid_move_stop_it_until_they_are_back() {
    let spec = "rebalance: {settle: 200ms, rate: 20, returnTimeout: 1s, minReturned: 80}";
    let mut scene = scene(spec, &["a"]).await;
    let (away, router) = (Arc::new(AtomicBool::new(false)), scene.router.listen);
    for number in 0..200 {
        let away = Arc::clone(&away);
        let entries = move |_: &str| if away.load(Ordering::Relaxed) { vec![] } else { vec![router] };
        scene.crowd.join_by(&format!("user-{number}"), Habit::Returns, entries);
    }
    scene.crowd.settled().await;
    let taken = taken_by_last(2, 200);
    scene.start("b").await;
    scene.list(&["a", "b"]);
    scene.operator.until("the first have returned", |pool| pool["move"]["returned"].as_u64() > Some(10)).await;
    away.store(true, Ordering::Relaxed);
    let stopped = |pool: &Value| condition(pool, "Degraded")["reason"] == "ClientsNotReturning";
    let pool = scene.operator.until("it says that clients do not return", stopped).await;
    assert!(pool["move"]["pending"].as_u64() > Some(0), "it was over too soon to prove anything: {pool}");
    away.store(false, Ordering::Relaxed);
    scene.operator.stable(2).await;
    scene.crowd.settled().await;
    for (key, breaks) in breaks(&scene) {
        assert_eq!(breaks, usize::from(taken.contains(&key)), "{key}");
    }
    never_on_two_servers(&scene);
}

#[tokio::test]
async fn a_members_file_with_a_mistake_leaves_the_last_good_one_in_force() {
    let mut scene = scene("rebalance: {settle: 200ms, rate: 200}", &["a", "b"]).await;
    join(&mut scene, 20, Habit::Returns).await;
    let epoch = scene.operator.pool().await["epoch"].clone();
    let good = std::fs::read_to_string(scene.operator.files().path("members.yaml")).expect("the file");
    let mistakes = [
        ("- {name: a, address: 127.0.0.1:1, control: 127.0.0.1:2}\n", "line 4", "\"a\""),
        ("- {name: c, address: localhost, control: 127.0.0.1:2}\n", "line 4", "\"localhost\""),
        ("- {name: c, address\n", "line", "members.yaml"),
        ("- {name: c, address: 127.0.0.1:1, control: 127.0.0.1:2, role: king}\n", "line 4", "king"),
    ];
    for (line, place, value) in mistakes {
        scene.operator.files().write_members(&format!("{good}{line}"));
        let told = |pool: &Value| {
            let degraded = condition(pool, "Degraded");
            let message = degraded["message"].as_str().unwrap_or_default();
            degraded["status"] == true && ["members.yaml", place, value].iter().all(|part| message.contains(part))
        };
        let pool = scene.operator.until(&format!("it names {place} and {value}"), told).await;
        assert_eq!((&pool["epoch"], &pool["state"]), (&epoch, &"Stable".into()), "{line:?}: {pool}");
        let log = scene.operator.log();
        assert!(log.contains(place) && log.contains(value), "{line:?} is not in the log: {log}");
    }
    // An empty file is somebody still writing, and no empty pool.
    scene.operator.files().write_members("");
    scene.operator.until("it says that it is empty", |pool| pool.to_string().contains("empty")).await;

    scene.start("c").await;
    scene.list(&["a", "b", "c"]);
    let pool = scene.operator.stable(3).await;
    assert_eq!(condition(&pool, "Degraded")["status"], false, "{pool}");
    assert_eq!(breaks(&scene).values().sum::<usize>(), taken_by_last(3, 20).len());
}

#[tokio::test]
async fn a_killed_server_gets_its_keys_back_and_nobody_else_moves() {
    let mut scene = scene("rebalance: {settle: 200ms, rate: 200}", &["a", "b", "c"]).await;
    join(&mut scene, 90, Habit::Returns).await;
    let at_home = scene.crowd.lives();
    let address = scene.apps.remove("b").map(|app| app.address).expect("its app");
    scene.servers.get_mut("b").expect("b").kill();
    until("its clients are elsewhere", async || {
        let present = scene.crowd.present();
        equal(&(present.values().sum::<usize>(), present.get("b")), &(90, None))
    })
    .await;
    scene.apps.insert("b".into(), App::start_at(address, "b", &scene.book).await);
    scene.servers.get_mut("b").expect("b").start_again().await;
    scene.operator.stable(3).await;
    let homes: BTreeMap<String, String> =
        at_home.iter().map(|life| (life.key.clone(), life.server().expect("a server").to_owned())).collect();
    scene.crowd.at_home(|key| homes[key].clone()).await;
    for life in scene.crowd.lives() {
        // Lost once, and moved back once.
        let expected = if homes[&life.key] == "b" { 2 } else { 0 };
        assert_eq!(life.breaks(), expected, "{life:?}");
    }
}

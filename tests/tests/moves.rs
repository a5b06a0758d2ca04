//! What moves when a slot is added, how fast, and that nothing else does.

use std::collections::BTreeSet;
use std::time::Duration;

use harness::wait::equal;
use harness::{App, Client, Crowd, Guestbook, Plan, Sidecar, until};
use nix::sys::signal::Signal;
use ring::settings::{Settings, Unit};
use ring::wire::BreakCause;
use tokio::time::Instant;

/// Two servers, of which the second has just been given a slot: about half of the keys are moved.
struct Scene {
    book: Guestbook,
    a: Sidecar,
    b: Sidecar,
    plan: Plan,
    crowd: Crowd,
    _apps: [App; 2],
}

impl Scene {
    /// So many clients, each with a key of its own, enter at both servers while the first holds the only slot.
    async fn new(settings: Settings, clients: usize) -> Self {
        let book = Guestbook::default();
        let apps = [App::start("a", &book).await, App::start("b", &book).await];
        let a = Sidecar::named("a").upstream(apps[0].address).start().await;
        let b = Sidecar::named("b").upstream(apps[1].address).start().await;
        let mut plan = Plan::with(settings);
        plan.hold(&[(0, &a)]);
        plan.publish(&[&a, &b]).await;
        let mut crowd = Crowd::default();
        crowd.join_users(clients, &[a.listen]).await;
        plan.hold(&[(0, &a), (1, &b)]);
        plan.publish(&[&b, &a]).await;
        Self { book, a, b, plan, crowd, _apps: apps }
    }

    /// The keys that belong to the second server now.
    fn moved(&self) -> BTreeSet<String> {
        let keys = self.crowd.lives().into_iter().map(|life| life.key);
        keys.filter(|key| self.plan.owner(key) == "b").collect()
    }

    /// Waits until so many connections have been evicted and are back.
    async fn evicted(&self, count: u64) {
        until("so many are evicted and back", async || {
            let (a, b) = (self.a.status().await, self.b.status().await);
            equal(&(a.evicted, a.in_flight, b.returned), &(count, 0, count))
        })
        .await;
    }
}

#[tokio::test]
async fn exactly_the_moved_keys_move_and_each_of_them_once() {
    let scene = Scene::new(Settings::default(), 100).await;
    let moved = scene.moved();
    let report = scene.a.status().await;
    assert_eq!((report.moved_keys, report.moved), (moved.len() as u64, moved.len() as u64));
    assert_eq!(report.moved_to.get(&ring::SlotId(1)), Some(&report.moved));
    assert_eq!(report.evicted, 0, "nothing moves without a grant");

    scene.plan.move_all(&[&scene.a], 20).await;
    scene.crowd.at_home(|key| scene.plan.owner(key)).await;
    for life in scene.crowd.lives() {
        let expected = if moved.contains(&life.key) { vec![Some((1012, "moved".to_owned()))] } else { vec![] };
        assert_eq!(life.goodbyes(), expected, "{life:?}");
        assert_eq!(life.refusals, Vec::<String>::new(), "{life:?}");
    }
    for visit in scene.book.visits().iter().filter(|visit| visit.left.is_some()) {
        assert_eq!(visit.code, Some(1001), "what the app was told: {visit:?}");
    }
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
    let (a, b) = (scene.a.status().await, scene.b.status().await);
    assert_eq!((a.evicted, b.returned), (moved.len() as u64, moved.len() as u64));
    assert_eq!(a.breaks.get(&BreakCause::Move), Some(&(moved.len() as u64)), "{:?}", a.breaks);
    assert_eq!(scene.a.metric("wspool_evictions_total{outcome=\"clean\"}").await, moved.len() as u64);
}

#[tokio::test]
async fn a_grant_is_spent_once_however_often_it_is_repeated() {
    let scene = Scene::new(Settings::default(), 60).await;
    let grant = scene.plan.grant(&scene.a, 7);
    for _ in 0..20 {
        scene.a.grant(&grant).await;
    }
    scene.evicted(7).await;
    // An overtaken smaller one, and the same again: only one more is allowed after all of them.
    scene.a.grant(&scene.plan.grant(&scene.a, 3)).await;
    scene.a.grant(&grant).await;
    scene.a.grant(&scene.plan.grant(&scene.a, 8)).await;
    scene.evicted(8).await;
    assert_eq!(scene.crowd.breaks(), 8);
}

#[tokio::test]
async fn a_grant_is_spent_evenly_over_its_time() {
    let scene = Scene::new(Settings::default(), 60).await;
    let began = std::time::Instant::now();
    scene.a.grant(&scene.plan.grant(&scene.a, 20)).await;
    // On a busy machine the last of them may be too late for a grant that nobody renews.
    until("most of it is spent", async || match scene.crowd.breaks() {
        15.. => Ok(()),
        few => Err(format!("{few} have gone")),
    })
    .await;
    let lives = scene.crowd.lives();
    let ends = lives.iter().flat_map(|life| &life.stays).filter_map(|stay| stay.end.as_ref());
    let mut times: Vec<Duration> = ends.map(|(time, _)| *time - began).collect();
    times.sort();
    // By its half-time, half of it. A slow machine is later, never earlier.
    let early = times.iter().filter(|time| **time < Duration::from_millis(500)).count();
    assert!(early <= 11, "{early} of 20 went in the first half: {times:?}");
}

#[tokio::test]
async fn a_grant_dies_with_its_time() {
    let mut scene = Scene::new(Settings::default(), 60).await;
    let mut grant = scene.plan.grant(&scene.a, 20);
    grant.ttl_ms = 2_000;
    scene.a.grant(&grant).await;
    // The sidecar's own count began before its answer.
    let granted = Instant::now();
    until("the first has gone", async || if scene.crowd.breaks() > 0 { Ok(()) } else { Err("none has".into()) }).await;
    // The sidecar sleeps through the rest of the grant's time.
    scene.a.process().signal(Signal::SIGSTOP);
    tokio::time::sleep_until(granted + Duration::from_millis(2_000)).await;
    scene.a.process().signal(Signal::SIGCONT);
    let begun = {
        let report = scene.a.status().await;
        report.evicted + report.in_flight
    };
    assert!(begun < 20, "it was not stopped in time");
    // One more is allowed, and one more goes. Returns are not looked at: a sleeping owner answers no claim.
    until("those under way are done", async || equal(&scene.a.status().await.in_flight, &0)).await;
    let evicted = scene.a.status().await.evicted;
    assert!(evicted <= begun, "{evicted} were evicted, {begun} had begun");
    until("one more has gone", async || {
        let report = scene.a.grant(&scene.plan.grant(&scene.a, evicted + 1)).await;
        equal(&(report.evicted, report.in_flight), &(evicted + 1, 0))
    })
    .await;
}

#[tokio::test]
async fn a_grant_moves_keys_only_to_the_slots_that_it_names() {
    let book = Guestbook::default();
    let apps = [App::start("a", &book).await, App::start("b", &book).await, App::start("c", &book).await];
    let a = Sidecar::named("a").upstream(apps[0].address).start().await;
    let b = Sidecar::named("b").upstream(apps[1].address).start().await;
    let c = Sidecar::named("c").upstream(apps[2].address).start().await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &a)]);
    plan.publish(&[&a, &b, &c]).await;
    let mut crowd = Crowd::default();
    crowd.join_users(60, &[a.listen]).await;
    plan.hold(&[(0, &a), (1, &b), (2, &c)]);
    plan.publish(&[&a, &b]).await;
    let report = a.status().await;
    let to_b = report.moved_to.get(&ring::SlotId(1)).copied().unwrap_or_default();
    assert!(to_b > 0 && to_b < report.moved, "{:?}", report.moved_to);
    until("all that may go have gone", async || {
        let mut grant = plan.grant(&a, 60);
        grant.to = vec![ring::SlotId(1)];
        let report = a.grant(&grant).await;
        equal(&(report.evicted, report.in_flight), &(to_b, 0))
    })
    .await;
    plan.publish(&[&c]).await;
    plan.move_all(&[&a], 60).await;
    crowd.at_home(|key| plan.owner(key)).await;
    assert_eq!(book.on_two_servers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_new_connection_of_a_moved_key_joins_the_others_until_they_move() {
    let scene = Scene::new(Settings::default(), 30).await;
    let key = scene.moved().into_iter().next().expect("a moved key");
    for entry in [scene.a.listen, scene.b.listen] {
        let mut device = Client::connect(entry, &key).await;
        assert_eq!(device.server, "a");
        device.check().await;
    }
    // One of a key that nobody holds goes to its owner at once.
    let fresh = (100..1_000).map(|number| format!("user-{number}")).find(|key| scene.plan.owner(key) == "b");
    assert_eq!(Client::connect(scene.a.listen, &fresh.expect("a key")).await.server, "b");
}

#[tokio::test]
async fn keys_move_whole_even_past_what_a_grant_allows() {
    let mut scene = Scene::new(Settings::default(), 10).await;
    let key = scene.moved().into_iter().next().expect("a moved key");
    for _ in 0..4 {
        scene.crowd.join(&key, &[scene.a.listen, scene.b.listen]);
    }
    scene.crowd.settled().await;
    let others = scene.moved().len() as u64 - 1;
    scene.plan.move_all(&[&scene.a], 1).await;
    scene.crowd.at_home(|key| scene.plan.owner(key)).await;
    assert_eq!(scene.a.status().await.evicted, others + 5);
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

#[tokio::test]
async fn with_unit_connection_the_devices_of_a_key_move_one_by_one() {
    let mut scene = Scene::new(Settings { unit: Unit::Connection, ..Settings::default() }, 0).await;
    let key = scene.plan.keys_of(&scene.b, 1).remove(0);
    // Back to one slot for a moment, so that the key is the first server's again.
    scene.plan.hold(&[(0, &scene.a)]);
    scene.plan.publish(&[&scene.a, &scene.b]).await;
    for _ in 0..5 {
        scene.crowd.join(&key, &[scene.a.listen]);
    }
    scene.crowd.settled().await;
    scene.plan.hold(&[(0, &scene.a), (1, &scene.b)]);
    scene.plan.publish(&[&scene.b, &scene.a]).await;
    scene.a.grant(&scene.plan.grant(&scene.a, 1)).await;
    until("one device has moved, four have not", async || {
        let present = scene.book.present().remove(&key).unwrap_or_default();
        equal(&present, &[("a".to_owned(), 4), ("b".to_owned(), 1)].into())
    })
    .await;
    scene.plan.move_all(&[&scene.a], 10).await;
    scene.crowd.at_home(|key| scene.plan.owner(key)).await;
    assert_eq!((scene.a.status().await.evicted, scene.b.status().await.returned), (5, 5));
    assert_eq!(scene.crowd.breaks(), 5);
}

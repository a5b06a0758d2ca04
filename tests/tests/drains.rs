//! A sidecar that is asked to end (SIGTERM) moves everyone first, with an operator or without.

use std::time::Instant;

use harness::http::Answer;
use harness::wait::equal;
use harness::{App, Client, Crowd, Guestbook, Plan, Sidecar, until};
use ring::settings::Settings;
use ring::wire::BreakCause;
use sidecar::drain::HEARD;

/// Three servers and a router, and clients that enter there.
struct Scene {
    book: Guestbook,
    a: Sidecar,
    b: Sidecar,
    c: Sidecar,
    router: Sidecar,
    plan: Plan,
    crowd: Crowd,
    _apps: [App; 3],
}

impl Scene {
    /// The first two servers hold a slot each; the third is a spare.
    async fn new(clients: usize) -> Self {
        let book = Guestbook::default();
        let apps = [App::start("a", &book).await, App::start("b", &book).await, App::start("c", &book).await];
        let a = Sidecar::named("a").upstream(apps[0].address).start().await;
        let b = Sidecar::named("b").upstream(apps[1].address).start().await;
        let c = Sidecar::named("c").upstream(apps[2].address).start().await;
        let router = Sidecar::router().await;
        let mut plan = Plan::with(Settings::default());
        plan.others(&[&router, &c]);
        plan.hold(&[(0, &a), (1, &b)]);
        plan.publish(&[&a, &b, &c, &router]).await;
        let mut crowd = Crowd::default();
        crowd.join_users(clients, &[router.listen]).await;
        Self { book, a, b, c, router, plan, crowd, _apps: apps }
    }

    /// Those of `gone` have moved, each once and with a notice; nobody else has.
    fn moved_once(&self, owned_before: &Plan, gone: &str) {
        for life in self.crowd.lives() {
            let expected =
                if owned_before.owner(&life.key) == gone { vec![Some((1012, "moved".to_owned()))] } else { vec![] };
            assert_eq!(life.goodbyes(), expected, "{life:?}");
        }
        assert_eq!(self.book.on_two_servers(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn without_an_operator_its_keys_go_to_their_next_best_and_it_ends() {
    let mut scene = Scene::new(40).await;
    scene.b.terminate();
    until("it says that it drains", async || {
        let Answer { status, .. } = scene.b.observe("/readyz").await;
        equal(&status.as_u16(), &503)
    })
    .await;
    let status = scene.b.process().ended().await;
    assert_eq!(status.code(), Some(0), "{}", scene.b.process().log());
    scene.crowd.at_home(|_| "a".into()).await;
    scene.moved_once(&scene.plan, "b");
}

#[tokio::test]
async fn with_an_operator_its_slot_goes_to_a_spare_and_it_ends() {
    let mut scene = Scene::new(40).await;
    let before = scene.plan.clone();
    scene.b.terminate();
    until("it says that it drains", async || equal(&scene.b.status().await.draining, &true)).await;
    scene.plan.hold(&[(0, &scene.a), (1, &scene.c)]);
    scene.plan.publish(&[&scene.c, &scene.a, &scene.router, &scene.b]).await;
    let mut breaks = 0;
    let ended = until("it has ended", async || {
        let Ok(report) = scene.b.try_status().await else { return Ok(()) };
        breaks = breaks.max(report.breaks.get(&BreakCause::Drain).copied().unwrap_or_default());
        let grant = scene.plan.grant(&scene.b, report.evicted + 20);
        // It may end between the question and the grant.
        let _ = scene.b.try_grant(&grant).await;
        Err(format!("{report:?}"))
    });
    ended.await;
    let status = scene.b.process().ended().await;
    assert_eq!(status.code(), Some(0), "{}", scene.b.process().log());
    assert!(breaks > 0, "what it ends is counted as drained");
    scene.crowd.at_home(|key| scene.plan.owner(key)).await;
    scene.moved_once(&before, "b");
    assert_eq!(scene.a.status().await.connections, scene.crowd.present()["a"] as u64);
}

#[tokio::test]
async fn a_sidecar_whose_slot_is_gone_is_not_ready_and_keeps_its_clients_until_that_is_heard() {
    let mut scene = Scene::new(20).await;
    let before = scene.plan.clone();
    let all = [&scene.a, &scene.b, &scene.c, &scene.router];
    let readiness = async || scene.b.observe("/readyz").await.status.as_u16();
    assert_eq!(readiness().await, 200);
    scene.plan.hold(&[(0, &scene.a)]);
    let begin = Instant::now();
    scene.plan.publish(&all).await;
    assert_eq!(readiness().await, 503);
    until("somebody leaves", async || {
        let report = scene.b.grant(&scene.plan.grant(&scene.b, 1)).await;
        if report.evicted > 0 { Ok(()) } else { Err(format!("{report:?}")) }
    })
    .await;
    assert!(begin.elapsed() >= HEARD, "an entry that is still open would have let them in again");
    scene.plan.move_all(&[&scene.b], 20).await;
    scene.crowd.at_home(|_| "a".into()).await;
    scene.moved_once(&before, "b");
    assert!(scene.b.status().await.retired);

    scene.plan.settle();
    scene.plan.hold(&[(0, &scene.a), (1, &scene.b)]);
    scene.plan.publish(&all).await;
    assert_eq!(readiness().await, 200, "it has a slot again");
}

#[tokio::test]
async fn a_drain_that_is_called_off_leaves_everyone_where_they_are() {
    let mut scene = Scene::new(20).await;
    scene.b.put("/v1/drain", "").await;
    assert!(scene.b.status().await.draining);
    scene.b.delete("/v1/drain").await;
    assert!(!scene.b.status().await.draining);
    assert_eq!(scene.b.observe("/readyz").await.status.as_u16(), 200);
    let fresh = scene.plan.keys_of(&scene.b, 1).remove(0);
    scene.crowd.join(&fresh, &[scene.router.listen]);
    scene.crowd.at_home(|key| scene.plan.owner(key)).await;
    assert_eq!(scene.crowd.breaks(), 0);
}

#[tokio::test]
async fn a_router_that_ends_tells_its_clients_and_they_come_back_by_another_entry() {
    let mut scene = Scene::new(0).await;
    let second = Sidecar::named("second").with("--role", "router").start().await;
    scene.plan.others(&[&scene.router, &second, &scene.c]);
    scene.plan.settle();
    scene.plan.publish(&[&scene.a, &scene.b, &scene.c, &scene.router, &second]).await;
    let mut clients = Vec::new();
    for number in 0..20 {
        clients.push(Client::connect(scene.router.listen, &format!("user-{number}")).await);
    }
    scene.router.terminate();
    let mut back = Vec::new();
    for (number, client) in clients.iter_mut().enumerate() {
        let key = format!("user-{number}");
        let (code, _) = client.goodbye().await.unwrap_or_else(|| panic!("{key} was not told"));
        assert_eq!(code, 1012);
        back.push(Client::connect(second.listen, &key).await);
        assert_eq!(back[number].server, client.server, "{key} has not moved");
    }
    assert_eq!(scene.router.process().ended().await.code(), Some(0));
    let visits = scene.book.visits();
    let left: Vec<_> = visits.iter().filter(|visit| visit.left.is_some()).collect();
    assert_eq!(left.len(), 20);
    assert!(left.iter().all(|visit| visit.code == Some(1001)), "{left:?}");
}

#[tokio::test]
async fn a_sidecar_without_a_pool_tells_everyone_at_once_and_ends() {
    let book = Guestbook::default();
    let app = App::start("server", &book).await;
    let mut sidecar = Sidecar::beside(app.address).await;
    let mut clients = Vec::new();
    for number in 0..10 {
        clients.push(Client::connect(sidecar.listen, &format!("user-{number}")).await);
    }
    sidecar.terminate();
    for client in &mut clients {
        assert_eq!(client.goodbye().await.map(|(code, _)| code), Some(1012));
    }
    assert_eq!(sidecar.process().ended().await.code(), Some(0));
    until("the app has seen all of them go", async || equal(&book.count_at("server"), &0)).await;
    assert!(book.visits().iter().all(|visit| visit.code == Some(1001)), "{:?}", book.visits());
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    let mut scene = Scene::new(10).await;
    scene.b.terminate();
    until("it says that it drains", async || equal(&scene.b.status().await.draining, &true)).await;
    scene.b.terminate();
    assert_eq!(scene.b.process().ended().await.code(), Some(0));
}

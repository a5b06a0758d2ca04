//! Keys and pods that are pinned: they stay while others move, and follow when their pins end.

use harness::http::{Answer, refused};
use harness::operator::Files;
use harness::plan::taken_by_last;
use harness::wait::equal;
use harness::{App, Client, Guestbook, Plan, Scene, Sidecar, until};
use http::Method;
use ring::duration::GoDuration;
use ring::settings::{MaxPinned, Settings, Strategy};
use ring::wire::PodPin;
use serde_json::Value;

async fn pin(sidecar: &Sidecar, key: &str, ttl: &str) -> Answer {
    sidecar.ask_api(&[], Method::PUT, &format!("/v1/keys/{key}/pin?ttl={ttl}"), "").await
}

async fn pinned(sidecar: &Sidecar, key: &str, ttl: &str) {
    let answer = pin(sidecar, key, ttl).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
}

/// Two servers behind a router. The second has no slot yet, and would get these keys.
async fn scene(spec: &str) -> (Scene, Vec<String>) {
    let mut scene = Scene::new(Files::new(spec), &["a"]).await;
    scene.crowd.join_users(30, &[scene.router.listen]).await;
    scene.start("b").await;
    (scene, taken_by_last(2, 30))
}

async fn breaks_are(scene: &Scene, count: usize) {
    until("so many connections have been broken", async || equal(&scene.crowd.breaks(), &count)).await;
}

#[tokio::test]
async fn a_pinned_key_stays_while_others_move_and_follows_when_its_pin_is_deleted_or_has_ended() {
    let (scene, taken) = scene("rebalance: {settle: 200ms, rate: 100}").await;
    let a = &scene.servers["a"];
    let (kept, short) = (&taken[0], &taken[1]);
    pinned(a, kept, "1h").await;
    pinned(a, short, "3s").await;
    scene.list(&["a", "b"]);
    let waits = |pool: &Value| pool["move"]["pinned"] == 1 && pool["move"]["pending"] == 0;
    let pool = scene.operator.until("one key waits for its pin", waits).await;
    assert_eq!(pool["state"], "Evicting", "its move goes on: {pool}");
    breaks_are(&scene, taken.len() - 1).await;
    assert_eq!(a.metric("wspool_pinned_keys").await, 1);
    assert_eq!(a.metric("wspool_pinned_connections").await, 1);

    let second = Client::connect(scene.router.listen, kept).await;
    assert_eq!(second.server, "a", "another device joins the key where it is");
    drop(second);
    let gone = a.ask_api(&[], Method::DELETE, &format!("/v1/keys/{kept}/pin"), "").await;
    assert_eq!(gone.status, 204);
    scene.operator.stable(2).await;
    scene.crowd.at_home(|key| if taken.iter().any(|it| it == key) { "b" } else { "a" }.to_owned()).await;
    assert_eq!(scene.crowd.breaks(), taken.len(), "each once");
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_client_comes_back_to_its_pinned_server_also_when_it_was_the_only_one() {
    let (mut scene, taken) = scene("rebalance: {settle: 200ms, rate: 100}").await;
    let key = taken[0].clone();
    pinned(&scene.servers["a"], &key, "1h").await;
    scene.list(&["a", "b"]);
    scene.operator.until("the key waits for its pin", |pool| pool["move"]["pinned"] == 1).await;
    scene.crowd = harness::Crowd::default();
    until("all clients are gone", async || equal(&scene.servers["a"].status().await.connections, &0)).await;
    assert_eq!(Client::connect(scene.router.listen, &key).await.server, "a");
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pin_that_is_renewed_for_ever_ends_when_it_has_lasted_as_long_as_the_pool_allows() {
    let (scene, taken) = scene("rebalance: {settle: 200ms, rate: 100, maxPinned: 3s}").await;
    let (a, key) = (&scene.servers["a"], &taken[0]);
    pinned(a, key, "3s").await;
    scene.list(&["a", "b"]);
    until("the key has gone all the same", async || {
        let answer = pin(a, key, "2s").await;
        match answer.status.as_u16() {
            409 => Ok(refused(&answer, 409, "spent")),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    scene.operator.stable(2).await;
    assert_eq!(scene.crowd.breaks(), taken.len());
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_drain_waits_for_a_pin_as_long_as_it_can_and_then_moves_what_it_held() {
    for (timeout, unpins) in [("60s", true), ("8s", false)] {
        let spec = format!("replicas: 2, rebalance: {{settle: 200ms, rate: 100}}, drain: {{timeout: {timeout}}}");
        let mut scene = Scene::new(Files::new(&spec), &["a", "b"]).await;
        scene.start("c").await;
        scene.list(&["a", "b", "c"]);
        scene.operator.until("the third is a spare", |pool| pool["spares"][0] == "c").await;
        scene.crowd.join_users(20, &[scene.router.listen]).await;
        let taken = taken_by_last(2, 20);
        pinned(&scene.servers["b"], &taken[0], "1h").await;
        scene.servers["b"].terminate();
        breaks_are(&scene, taken.len() - 1).await;
        if unpins {
            assert_eq!(scene.servers["b"].status().await.pinned, 1, "it waits for the pin");
            scene.servers["b"].ask_api(&[], Method::DELETE, &format!("/v1/keys/{}/pin", taken[0]), "").await;
        }
        let status = scene.servers.get_mut("b").expect("started").process().ended().await;
        assert_eq!(status.code(), Some(0));
        let home = |key: &str| if taken.iter().any(|it| it == key) { "c" } else { "a" }.to_owned();
        scene.crowd.at_home(home).await;
        for life in scene.crowd.lives().iter().filter(|life| taken.contains(&life.key)) {
            assert_eq!(life.goodbyes(), [Some((1012, "moved".to_owned()))], "{life:?}");
        }
        assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
    }
}

/// A sidecar with the only slot, and with clients.
struct Alone {
    sidecar: Sidecar,
    plan: Plan,
    _app: App,
}

impl Alone {
    async fn new(settings: Settings) -> Self {
        let app = App::start("a", &Guestbook::default()).await;
        let sidecar = Sidecar::named("a").upstream(app.address).with_api().start().await;
        let mut plan = Plan::with(settings);
        plan.hold(&[(0, &sidecar)]);
        plan.publish(&[&sidecar]).await;
        Self { sidecar, plan, _app: app }
    }
}

#[tokio::test]
async fn what_cannot_be_pinned_is_refused_with_what_would_be_right() {
    let max_pinned = MaxPinned(GoDuration::from_secs(600));
    let Alone { sidecar, _app, .. } = Alone::new(Settings { max_pinned, ..Settings::default() }).await;
    let ann = Client::connect(sidecar.listen, "ann").await;
    for wrong in ["", "5", "0s", "500ms", "601s", "11m", "soon", "-1s"] {
        let says = refused(&pin(&sidecar, "ann", wrong).await, 400, "bad-ttl");
        assert!(says.ends_with("write 1s to 10m"), "{says}");
    }
    let without = sidecar.ask_api(&[], Method::PUT, "/v1/keys/ann/pin", "").await;
    assert!(refused(&without, 400, "bad-ttl").starts_with("there is no ttl"));
    refused(&pin(&sidecar, &"k".repeat(1_025), "1s").await, 400, "bad-key");
    refused(&sidecar.ask_api(&[], Method::POST, "/v1/keys/ann/pin", "").await, 405, "wrong-method");
    assert!(refused(&pin(&sidecar, "eve", "1s").await, 409, "not-here").contains("GET /v1/keys/{key}"));
    refused(&sidecar.ask_api(&[], Method::GET, "/v1/keys/ann/pin", "").await, 404, "no-pin");

    pinned(&sidecar, "ann", "10m").await;
    let pin: Value = sidecar.ask_api(&[], Method::GET, "/v1/keys/ann/pin", "").await.json().expect("a pin");
    assert_eq!(pin["key"], "ann");
    assert!(pin["until"].as_u64().is_some(), "{pin}");
    drop(ann);
}

#[tokio::test]
async fn a_pool_without_keys_or_without_pins_says_so() {
    let keyless = Settings { strategy: Strategy::LeastConnections, ..Settings::default() };
    let Alone { sidecar, .. } = Alone::new(keyless).await;
    assert!(refused(&pin(&sidecar, "ann", "1s").await, 409, "keyless").contains("wspool.dev/pinned-until"));
    let without = Settings { max_pinned: MaxPinned(GoDuration::from_secs(0)), ..Settings::default() };
    let Alone { sidecar, .. } = Alone::new(without).await;
    assert!(refused(&pin(&sidecar, "ann", "1s").await, 409, "no-pins").contains("maxPinned"));
}

#[tokio::test]
async fn everything_in_a_pinned_pod_stays_until_the_operator_says_otherwise() {
    let Alone { sidecar: a, mut plan, _app } = Alone::new(Settings::default()).await;
    let app = App::start("b", &Guestbook::default()).await;
    let b = Sidecar::named("b").upstream(app.address).start().await;
    let mut clients = Vec::new();
    for user in 0..10 {
        clients.push(Client::connect(a.listen, &format!("user-{user}")).await);
    }
    let until = u64::MAX;
    let other = a.put_json("/v1/pin", &PodPin { target: "b".into(), until }).await;
    refused(&other, 421, "other-target");
    a.put_json("/v1/pin", &PodPin { target: "a".into(), until }).await;
    plan.hold(&[(0, &b)]);
    plan.publish(&[&b, &a]).await;
    let report = a.grant(&plan.grant(&a, 10)).await;
    assert_eq!((report.moved_keys, report.moved, report.moved_pinned, report.pinned), (10, 0, 10, 10));
    assert_eq!((report.pod_pinned_until, report.in_flight, report.evicted), (until, 0, 0));
    a.put_json("/v1/pin", &PodPin { target: "a".into(), until: 0 }).await;
    plan.move_all(&[&a], 10).await;
    assert_eq!(a.status().await.connections, 0);
}

//! Who leads, and what happens to a move when that changes: on a real API server, with the chart's operator.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use harness::control_plane::gate::Gate;
use harness::control_plane::scene::{FAST, manifests};
use harness::control_plane::{Audit, ControlPlane, Scene};
use harness::crowd::Life;
use harness::wait::equal;
use harness::{Client, until};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A pace at which a move lasts some seconds.
const SLOW: &str = "rebalance: {settle: 500ms, rate: 10, maxInFlight: 1000, returnTimeout: 5s}";
/// A pace at which a move outlasts a leader that has lost its API server.
const SLOWER: &str = "rebalance: {settle: 500ms, rate: 3, maxInFlight: 1000, returnTimeout: 5s}";
/// Longer than a grant lasts, and shorter than anybody is missed.
const GRANT: Duration = Duration::from_secs(2);

/// Scales from two pods to three, and waits until the move is under way.
async fn begin_move(scene: &Scene) {
    scene.kubectl(&["scale", "deployment/chat", "--replicas=3"]).await;
    until("connections move", async || {
        let breaks = scene.crowd.breaks();
        if breaks >= 3 { Ok(()) } else { Err(format!("{breaks} have moved")) }
    })
    .await;
}

/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(60);

/// Comes before the writes of others, again and again.
async fn write_for_ever<K>(objects: Api<K>, name: &str)
where
    K: Clone + DeserializeOwned + Debug,
{
    for number in 0_u64.. {
        let note = json!({"metadata": {"annotations": {"somebody": number.to_string()}}});
        // It may be away for a moment.
        let _ = objects.patch(name, &PatchParams::default(), &Patch::Merge(note)).await;
    }
}

fn term(view: &Value) -> u64 {
    view["term"].as_u64().expect("a term")
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn without_its_operator_a_move_stands_still_and_it_goes_on_where_it_was() {
    let mut scene = Scene::new("killed", 2, 1, SLOW).await;
    scene.fill(120).await;
    let before = scene.owners(2).await;
    let first = scene.operators.stable("chat", 2).await;
    begin_move(&scene).await;
    scene.operators.kill(0);
    tokio::time::sleep(GRANT).await;
    let stood = scene.crowd.breaks();
    tokio::time::sleep(GRANT).await;
    assert_eq!(scene.crowd.breaks(), stood, "evictions after the last grant");

    scene.operators.start_again(0, None).await;
    let after = scene.owners(3).await;
    assert!(stood < scene.crowd.breaks(), "the move was over before the operator was killed");
    scene.moved_exactly(&before, &after).await;
    assert!(term(&scene.operators.stable("chat", 3).await) > term(&first));
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_placement_that_is_deleted_is_made_again_and_nothing_moves() {
    let mut scene = Scene::new("deleted", 3, 1, FAST).await;
    scene.fill(30).await;
    let owners = scene.owners(3).await;
    let maps = scene.namespace.api::<ConfigMap>();
    let first = maps.get("chat-placement").await.expect("the placement");
    maps.delete("chat-placement", &DeleteParams::default()).await.expect("it is deleted");
    let again = until("it is made again", async || maps.get("chat-placement").await.map_err(|e| e.to_string())).await;
    assert_eq!(again.binary_data, first.binary_data);
    assert_ne!(again.uid(), first.uid());

    // And while nobody remembers what stood in it.
    scene.operators.kill(0);
    maps.delete("chat-placement", &DeleteParams::default()).await.expect("it is deleted");
    scene.operators.start_again(0, None).await;
    let after = scene.owners(3).await;
    scene.crowd.at_home(|key| after.owner(key)).await;
    let same = (0..30).all(|number| after.owner(&format!("user-{number}")) == owners.owner(&format!("user-{number}")));
    assert_eq!((same, scene.crowd.breaks()), (true, 0));
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_lease_that_is_deleted_in_mid_move_is_made_again_and_one_replica_leads() {
    let mut scene = Scene::new("lease", 2, 2, SLOW).await;
    scene.fill(120).await;
    let before = scene.owners(2).await;
    begin_move(&scene).await;
    let leases = scene.namespace.api::<Lease>();
    leases.delete(scene.operators.name(), &DeleteParams::default()).await.expect("it is deleted");
    scene.operators.leader().await;
    let after = scene.owners(3).await;
    scene.moved_exactly(&before, &after).await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_leader_that_ends_gives_its_lease_back_and_the_other_goes_on() {
    let mut scene = Scene::new("handover", 2, 2, SLOW).await;
    scene.fill(120).await;
    let before = scene.owners(2).await;
    begin_move(&scene).await;
    let leader = scene.operators.leader().await;
    scene.operators.end(leader).await;
    let other = 1 - leader;
    until("the other leads", async || equal(&scene.operators.leader().await, &other)).await;
    let after = scene.owners(3).await;
    scene.moved_exactly(&before, &after).await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_leader_that_is_cut_off_and_believes_that_it_leads_is_refused_and_nobody_is_moved_twice() {
    let mut scene = Scene::new("cut-off", 2, 2, SLOW).await;
    let (gate, kubeconfig) = Gate::before(scene.operators.kubeconfig()).await;
    let leader = scene.operators.leader().await;
    let other = 1 - leader;
    // The replica that will lead comes through the gate.
    scene.operators.end(other).await;
    scene.operators.start_again(other, Some(&kubeconfig)).await;
    scene.operators.end(leader).await;
    until("it leads", async || equal(&scene.operators.leader().await, &other)).await;
    scene.operators.start_again(leader, None).await;
    scene.fill(120).await;
    let before = scene.owners(2).await;
    begin_move(&scene).await;
    let old = term(&scene.operators.until("it says its term", "chat", |view| term(view) > 0).await);

    // Its Lease goes while it cannot know: from now on both believe that they lead, for some seconds.
    gate.shut();
    let leases = scene.namespace.api::<Lease>();
    leases.delete(scene.operators.name(), &DeleteParams::default()).await.expect("it is deleted");
    until("the older leader is refused", async || {
        let metrics = scene.host.metrics().await;
        let refused = metrics.lines().find(|line| line.contains("older-term") && !line.ends_with(" 0"));
        refused.map(drop).ok_or_else(|| "no request of an older term was denied".to_owned())
    })
    .await;
    let after = scene.owners(3).await;
    scene.moved_exactly(&before, &after).await;
    let view = scene.operators.until("the newer leader says its term", "chat", |view| term(view) > old).await;

    // When it can see again, it follows.
    gate.open();
    assert_eq!(scene.operators.leader().await, leader);
    until("the older leader has stopped", async || {
        let log = scene.operators.log(other);
        if log.contains("leads no longer") { Ok(()) } else { Err("it says nothing of it".to_owned()) }
    })
    .await;
    assert_eq!(term(&scene.operators.stable("chat", 3).await), term(&view));
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn while_the_api_server_is_away_nothing_moves_and_all_are_served_also_by_a_new_sidecar_and_then_the_move_ends() {
    let mut control_plane = ControlPlane::start().await;
    let mut scene = Scene::of(&control_plane.access(), "outage", 2, 2, &manifests(2, SLOWER)).await;
    scene.fill(150).await;
    let before = scene.owners(2).await;
    begin_move(&scene).await;
    control_plane.stop_apiserver();
    let stopped = Instant::now();
    // The leader goes on until its Lease could be another's.
    until("connections move no more", async || {
        let moved = scene.crowd.breaks();
        tokio::time::sleep(GRANT).await;
        equal(&scene.crowd.breaks(), &moved)
    })
    .await;
    let stood = scene.crowd.breaks();
    for entry in scene.host.entries() {
        Client::connect(entry, "user-0").await.check().await;
    }
    tokio::time::sleep(OUTAGE.saturating_sub(stopped.elapsed())).await;
    assert_eq!(scene.crowd.breaks(), stood, "connections moved without an operator");

    // A sidecar that begins again knows where keys belong, from its volumes. Its connections have ended with it.
    let until_then: Vec<_> = scene.crowd.lives().iter().map(Life::breaks).collect();
    scene.host.restart_sidecar(&before.owner("user-0")).await;
    scene.crowd.settled().await;
    let restarted: Vec<_> = scene.crowd.lives().iter().map(Life::breaks).collect();
    assert!(restarted > until_then, "nobody was at the sidecar that began again");

    control_plane.start_apiserver().await;
    let after = scene.owners(3).await;
    for life in scene.crowd.lives() {
        let server = life.server().unwrap_or_default();
        assert!([before.owner(&life.key), after.owner(&life.key)].contains(&server.to_owned()), "{life:?}");
    }
    scene.crowd.at_home(|key| after.owner(key)).await;
    assert!(restarted.iter().sum::<usize>() < scene.crowd.breaks(), "the move was over during the outage");
    for (number, life) in scene.crowd.lives().iter().enumerate() {
        let by_restart = restarted[number] - until_then[number];
        let must_move = before.owner(&life.key) != after.owner(&life.key);
        // Whoever was there may have fallen back meanwhile, and comes home.
        assert!(life.breaks() <= 2 * by_restart + usize::from(must_move), "{life:?}");
    }
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn writes_that_somebody_else_comes_before_are_planned_anew_and_every_kind_of_them_was() {
    let mut scene = Scene::new("conflict", 2, 1, &format!("replicas: 2\n  {FAST}")).await;
    let _directory = scene.fill_at_owners(40).await;
    let namespace = &scene.namespace;
    let mut audit = Audit::of(namespace.access(), namespace.name(), scene.operators.name());
    let lost_races = async {
        let mut lost = BTreeSet::new();
        for replicas in [3, 2].into_iter().cycle() {
            scene.kubectl(&["scale", "websocketpool/chat", &format!("--replicas={replicas}")]).await;
            scene.operators.stable("chat", replicas).await;
            lost.extend(audit.take_conflicts());
            if ["configmaps", "leases", "deployments/scale"].iter().all(|resource| lost.contains(*resource)) {
                return replicas;
            }
            println!("so far others came before writes of {lost:?}");
        }
        unreachable!("a cycle does not end")
    };
    let others = async {
        tokio::join!(
            write_for_ever(namespace.api::<ConfigMap>(), "chat-placement"),
            write_for_ever(namespace.api::<Lease>(), scene.operators.name()),
            write_for_ever(namespace.api::<Deployment>(), "chat"),
        )
    };
    let slots = tokio::select! {
        slots = lost_races => slots,
        _ = others => unreachable!("they go on for ever"),
    };
    let after = scene.owners(slots).await;
    scene.crowd.at_home(|key| after.owner(key)).await;
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

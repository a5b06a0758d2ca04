//! A pool in a whole cluster that Kubernetes scales by its connections.

use harness::cluster::{PLAN, Plan, Scene};
use harness::wait::equal;
use harness::{Crowd, until};

const CLIENTS: usize = 60;
/// Those who make a third pod necessary.
const GUESTS: usize = 25;
const POOL: &str = "rebalance: {settle: 1s, rate: 200}
  autoscaling: {minReplicas: 2, maxReplicas: 4, connectionsPerPod: 30}";

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn more_connections_get_a_pod_and_fewer_give_it_back_and_only_those_move_that_must() {
    let mut scene = Scene::new("hpa", Plan { pool: POOL, ..PLAN }).await;
    let before = scene.fill(CLIENTS).await;
    until("the autoscaler sees the connections", async || {
        let seen = scene.field("hpa/chat", ".status.currentMetrics[0].object.current.averageValue").await;
        equal(&seen.as_str(), &"30")
    })
    .await;
    assert_eq!(scene.crowd.breaks(), 0);

    let mut guests = Crowd::default();
    let entry = scene.service().await;
    for number in 0..GUESTS {
        guests.join(&format!("guest-{number}"), &[entry]);
    }
    scene.stable(3).await;
    assert_eq!(scene.field("wsp/chat", ".spec.replicas").await, "3", "by way of the pool");
    scene.rolled_out().await;
    let grown = scene.at_home().await;
    let moved = scene.only_the_moved_were_broken(&before, &grown);
    assert!(moved > 0 && moved < CLIENTS / 2, "{moved} moved");

    drop(guests);
    for gone in scene.have_gone(1).await {
        gone.check();
    }
    scene.stable(2).await;
    assert_eq!(scene.field("deployment/chat", ".spec.replicas").await, "2");
    let shrunk = scene.at_home().await;
    for life in scene.crowd.lives() {
        let owner = before.of(&life.key);
        assert_eq!(shrunk.of(&life.key), owner, "the pod that had come is the one that went");
        let out_and_home = if grown.of(&life.key) == owner { 0 } else { 2 };
        // The pod that goes left the Service first: nobody came home by way of it, to break once more.
        assert_eq!(life.breaks(), out_and_home, "{life:?}");
    }
    scene.all_were_told();
}

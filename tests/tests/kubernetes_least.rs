//! `strategy: LeastConnections` in a cluster: a pool without keys that grows, rolls out and shrinks.

use harness::control_plane::Scene;
use harness::until;
use harness::wait::equal;

const SPEC: &str = "strategy: LeastConnections
  rebalance: {settle: 500ms, rate: 500, maxInFlight: 1000, returnTimeout: 5s}";

/// Waits until these numbers of clients are on the pods, the fewest first.
async fn spread(scene: &Scene, expected: &[usize]) {
    until("the clients are spread", async || {
        let mut counts: Vec<usize> = scene.crowd.present().into_values().collect();
        counts.sort_unstable();
        equal(&counts.as_slice(), &expected)
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_new_pod_gets_half_of_the_connections_and_gives_them_back_when_it_goes() {
    let mut scene = Scene::new("least", 1, 1, SPEC).await;
    scene.fill(60).await;
    scene.kubectl(&["scale", "deployment/chat", "--replicas=2"]).await;
    spread(&scene, &[30, 30]).await;
    let pool = scene.operators.stable("chat", 2).await;
    assert_eq!((scene.crowd.breaks(), &pool["move"]["evicted"]), (30, &30.into()), "{pool}");

    scene.kubectl(&["scale", "deployment/chat", "--replicas=1"]).await;
    spread(&scene, &[60]).await;
    for life in scene.crowd.lives() {
        assert!(life.goodbyes().iter().all(|told| *told == Some((1012, "moved".to_owned()))), "{life:?}");
    }
}

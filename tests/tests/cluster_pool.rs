//! How pods go in a whole cluster, and what becomes of their clients: real pods on three nodes, of a Node server that knows
//! nothing of wspool, and clients that come through the pool's Service.

use std::net::SocketAddr;
use std::time::Duration;

use harness::cluster::{PLAN, Plan, Scene, TIMEOUT, server};
use harness::crowd::Life;
use harness::http::Http;
use harness::until;
use harness::wait::equal;
use http::Method;
use serde_json::{Value, json};

const CLIENTS: usize = 60;

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn a_rollout_lets_every_pod_go_when_its_connections_have_moved() {
    let mut scene = Scene::new("roll", PLAN).await;
    scene.fill(CLIENTS).await;
    scene.kubectl(&["rollout", "restart", "deployment/chat"]).await;
    scene.rolled_out().await;
    for gone in scene.have_gone(2).await {
        gone.check();
    }
    scene.at_home().await;
    // Every pod was replaced. Behind a plain Service half of the connections come in by another pod than their owner.
    assert!(scene.crowd.lives().iter().all(|life| life.breaks() > 0));
    assert!(scene.crowd.breaks() <= 2 * CLIENTS, "{} breaks", scene.crowd.breaks());
    scene.all_were_told();
}

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn clients_inside_the_cluster_reach_their_owners_by_the_services_name_and_apps_the_clients_at_other_pods() {
    let pool = "rebalance: {settle: 1s, rate: 200}\n  messages: {allowUnverified: true}";
    let mut scene = Scene::new("inside", Plan { pool, ..PLAN }).await;
    let owners = scene.fill(8).await;
    for user in ["inside-a", "inside-b", "inside-c", "inside-d"] {
        let url = format!("ws://chat.{}.svc:3000/?user={user}", scene.namespace.name());
        let run = ["run", user, "--image=wspool.test/node:1", "--restart=OnFailure", "--", "/pod/pod-client.js", &url];
        scene.kubectl(&run).await;
        let pod = format!("pod/{user}");
        scene.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", &pod, TIMEOUT]).await;
        let greeting = scene.field(&pod, ".status.containerStatuses[0].state.terminated.message").await;
        let owner = owners.of(user).expect("an owner");
        assert_eq!(greeting, format!("{{\"server\":\"{owner}\"}}"), "{user}");
    }

    let pods = scene.kubectl(&["get", "pods", "--selector=wspool.dev/pool", "--output", ADDRESSES]).await;
    let pods: Vec<(&str, &str)> = pods.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(pods.len(), 2);
    for (pod, address) in &pods {
        let app = SocketAddr::new(address.parse().expect("an address"), 3000);
        let users: Vec<_> = scene.crowd.lives().into_iter().map(|life| life.key).collect();
        assert!(users.iter().any(|user| owners.of(user).as_deref() != Some(pod)), "all clients are at {pod}");
        for user in users {
            let path = format!("/send?user={user}");
            let answer = Http::default().send(Method::POST, app, &path, format!("from {pod}")).await;
            let said: Value = answer.and_then(|answer| answer.json()).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(said, json!({"written": 1, "held": 0}), "from {pod} to {user}");
        }
    }
    let sent: Vec<_> = pods.iter().map(|(pod, _)| format!("from {pod}")).collect();
    until("each client has heard of both", async || {
        let missed = scene.crowd.lives().into_iter().find(|life| life.heard != sent);
        missed.map_or(Ok(()), |life| Err(format!("{life:?}")))
    })
    .await;
}

/// Each pod, and its address.
const ADDRESSES: &str = "jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{\"\\n\"}{end}";

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn a_drained_node_lets_its_pods_go_when_their_connections_have_moved() {
    let mut scene = Scene::new("drain", PLAN).await;
    let before = scene.fill(CLIENTS).await;
    let pod = scene.some_pod().await;
    let node = scene.kubectl(&["get", "pod", &pod, "--output=jsonpath={.spec.nodeName}"]).await;
    scene.kubectl(&["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", TIMEOUT]).await;
    scene.kubectl(&["uncordon", &node]).await;
    scene.rolled_out().await;
    let gone = scene.have_gone(1).await;
    for pod in &gone {
        pod.check();
    }
    scene.at_home().await;
    let went = |pod: &str| gone.iter().any(|gone| gone.name() == pod);
    scene.were_broken(|key| usize::from(before.of(key).is_some_and(|pod| went(&pod))));
    scene.all_were_told();
}

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn a_deleted_pod_ends_empty_and_then_its_own_hook_is_run() {
    let hook = "lifecycle: {preStop: {httpGet: {path: /hook, port: 3000}}}";
    let mut scene = Scene::new("delete", Plan { container: hook, ..PLAN }).await;
    let before = scene.fill(CLIENTS).await;
    let pod = scene.some_pod().await;
    scene.kubectl(&["delete", "pod", &pod, TIMEOUT]).await;
    let gone = &scene.have_gone(1).await[0];
    gone.check();
    assert_eq!(gone.last_words()["hook"], 0, "the hook found nobody left");
    scene.at_home().await;
    scene.were_broken(|key| usize::from(before.of(key).as_ref() == Some(&pod)));
    scene.all_were_told();
}

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn an_app_that_ignores_its_end_is_killed_in_time_with_nobody_there() {
    let plan = Plan {
        app: "/pod/pod-server.js, $(POD_NAME), --deaf",
        pod: "terminationGracePeriodSeconds: 5",
        pool: "rebalance: {settle: 1s, rate: 200}\n  drain: {timeout: 15s}",
        ..PLAN
    };
    let mut scene = Scene::new("deaf", plan).await;
    let before = scene.fill(CLIENTS).await;
    let pod = scene.some_pod().await;
    scene.kubectl(&["delete", "pod", &pod, TIMEOUT]).await;
    let gone = &scene.have_gone(1).await[0];
    assert_eq!(gone.end_of("chat").exit_code, 137, "it was killed");
    assert_eq!(gone.last_words()["connections"], 0, "after everybody had moved");
    scene.at_home().await;
    scene.were_broken(|key| usize::from(before.of(key).as_ref() == Some(&pod)));
    scene.all_were_told();
}

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn a_container_that_its_liveness_probe_ends_gets_its_keys_back() {
    let probe = "startupProbe: {tcpSocket: {port: 3000}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /healthz, port: 3000}, periodSeconds: 1, failureThreshold: 1}";
    let mut scene = Scene::new("liveness", Plan { container: probe, ..PLAN }).await;
    let before = scene.fill(CLIENTS).await;
    let sick = before.of("user-0").expect("an owner");
    let (pod, chat) = (format!("pod/{sick}"), r#".status.containerStatuses[?(@.name=="chat")]"#);
    let app = SocketAddr::new(scene.field(&pod, ".status.podIP").await.parse().expect("an address"), 3000);
    Http::default().send(Method::GET, app, "/sick", "").await.expect("the app listens");
    until("the container is started again", async || {
        equal(&scene.field(&pod, &format!("{chat}.restartCount")).await.as_str(), &"1")
    })
    .await;
    let last_words = scene.field(&pod, &format!("{chat}.lastState.terminated.message")).await;
    assert!(last_words.contains(r#""connections":0"#), "{last_words}");
    until("its clients are back", async || {
        let away = scene.crowd.lives().into_iter().find(|life| server(life) != before.of(&life.key));
        away.map_or(Ok(()), |life| Err(format!("{life:?}")))
    })
    .await;
    scene.stable(2).await;
    let after = scene.at_home().await;
    for life in scene.crowd.lives() {
        assert_eq!(after.of(&life.key), before.of(&life.key), "{life:?}");
    }
    // Out of the pod and home again.
    scene.were_broken(|key| if before.of(key).as_ref() == Some(&sick) { 2 } else { 0 });
    scene.all_were_told();
}

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn a_grace_period_that_is_too_short_for_what_a_pod_holds_is_said_beforehand_and_kept() {
    let slow = "rebalance: {settle: 1s, rate: 200}\n  drain: {timeout: 5s}";
    let mut scene = Scene::new("grace", Plan { pool: slow, ..PLAN }).await;
    scene.fill(CLIENTS).await;
    let limit = r#"{"spec": {"limits": {"handshakesPerSecond": 2}}}"#;
    scene.kubectl(&["patch", "websocketpool", "chat", "--type=merge", "--patch", limit]).await;
    scene
        .degraded("connections, and in 5s a pod that takes its place accepts at most 4: raise spec.drain.timeout")
        .await;
    let pod = scene.some_pod().await;
    scene.kubectl(&["delete", "pod", &pod, TIMEOUT]).await;
    let gone = &scene.have_gone(1).await[0];
    for container in ["chat", "wspool-sidecar"] {
        gone.check_time(container);
    }
    scene.at_home().await;
    let longest = scene.crowd.lives().iter().flat_map(Life::absences).max();
    assert!(longest > Some(Duration::from_secs(5)), "the condition was right: the others took longer, {longest:?}");
}

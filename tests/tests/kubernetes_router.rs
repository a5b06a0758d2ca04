//! Routers in front of a pool, as `spec.router.replicas` makes them: clients enter by the pool's plain Service.

use std::collections::BTreeSet;
use std::net::IpAddr;

use harness::control_plane::Scene;
use harness::control_plane::scene::{FAST, ServiceDirectory};
use harness::crowd::Habit;
use harness::until;
use harness::wait::equal;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::Value;

/// The UIDs of the pods that run: routers, and the others.
fn pods(scene: &Scene) -> (BTreeSet<String>, BTreeSet<String>) {
    let names = scene.host.names().into_iter();
    let (routers, apps): (Vec<_>, Vec<_>) = names.partition(|(_, name)| name.starts_with("chat-router-"));
    let uids = |pods: Vec<(String, String)>| pods.into_iter().map(|(uid, _)| uid).collect();
    (uids(routers), uids(apps))
}

/// Waits until clients of the Service enter at so many pods, which are routers or are not.
async fn entered_at(scene: &Scene, directory: &ServiceDirectory, routers: bool, count: usize) {
    until("the Service leads there", async || {
        let names = scene.host.names().into_values();
        let is_router = |name: &String| name.starts_with("chat-router-");
        let wanted: BTreeSet<IpAddr> =
            names.filter(|name| is_router(name) == routers).map(|name| scene.host.address(&name).into()).collect();
        let entered: BTreeSet<IpAddr> = directory.places().into_iter().map(|place| place.ip()).collect();
        equal(&(entered.is_subset(&wanted), entered.len()), &(true, count))
    })
    .await;
}

async fn routers(scene: &Scene, replicas: u32) {
    let patch = format!("{{\"spec\": {{\"router\": {{\"replicas\": {replicas}}}}}}}");
    scene.kubectl(&["patch", "websocketpool/chat", "--type=merge", "-p", &patch]).await;
}

/// So many clients, named so, which enter by the Service, also when they come back.
async fn join(scene: &mut Scene, directory: &ServiceDirectory, name: &str, clients: usize) {
    for number in 0..clients {
        scene.crowd.join_by(&format!("{name}-{number}"), Habit::Returns, directory.entries());
    }
    scene.crowd.settled().await;
}

/// Panics unless each client of this name has been disconnected so often, with a notice, and was never turned away.
fn broken(scene: &Scene, name: &str, times: usize) {
    for life in scene.crowd.lives().iter().filter(|life| life.key.starts_with(name)) {
        let notices = vec![Some((1012, "moved".to_owned())); times];
        assert_eq!((life.goodbyes(), life.refusals.len()), (notices, 0), "{life:?}");
    }
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn with_routers_a_rollout_of_the_app_breaks_each_connection_once_behind_the_plain_service() {
    let mut scene = Scene::new("router", 3, 1, &format!("router: {{replicas: 2}}\n  {FAST}")).await;
    let directory = ServiceDirectory::follow(&scene.namespace, "chat");
    entered_at(&scene, &directory, true, 2).await;
    join(&mut scene, &directory, "user", 60).await;
    let (routers, apps) = pods(&scene);

    scene.kubectl(&["rollout", "restart", "deployment/chat"]).await;
    until("all pods of the app are new", async || {
        let (_, now) = pods(&scene);
        equal(&(now.intersection(&apps).count(), now.len()), &(0, 3))
    })
    .await;
    let after = scene.owners(3).await;
    scene.crowd.at_home(|key| after.owner(key)).await;
    broken(&scene, "user", 1);
    assert_eq!(pods(&scene).0, routers, "the routers are left alone");
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn routers_come_roll_out_and_go_without_a_lost_handshake_and_one_break_for_each_connection_of_theirs() {
    let mut scene = Scene::new("routers", 2, 1, FAST).await;
    let directory = ServiceDirectory::follow(&scene.namespace, "chat");
    entered_at(&scene, &directory, false, 2).await;
    join(&mut scene, &directory, "early", 20).await;
    let home = scene.owners(2).await;

    routers(&scene, 2).await;
    entered_at(&scene, &directory, true, 2).await;
    join(&mut scene, &directory, "late", 40).await;
    let (old, _) = pods(&scene);

    scene.kubectl(&["rollout", "restart", "deployment/chat-router"]).await;
    until("all routers are new", async || {
        let (now, _) = pods(&scene);
        equal(&(now.intersection(&old).count(), now.len()), &(0, 2))
    })
    .await;
    scene.crowd.at_home(|key| home.owner(key)).await;
    // A client that came back to a router that had yet to end, by an old answer, is moved on once more.
    let twice = scene.crowd.lives().iter().filter(|life| life.breaks() > 2).count();
    assert_eq!(twice, 0);
    broken(&scene, "early", 0);
    let before = scene.crowd.breaks();

    routers(&scene, 0).await;
    entered_at(&scene, &directory, false, 2).await;
    until("the routers are gone", async || equal(&pods(&scene).0.len(), &0)).await;
    scene.crowd.at_home(|key| home.owner(key)).await;
    assert_eq!(scene.crowd.breaks() - before, 40, "each connection through a router, once");
    broken(&scene, "early", 0);
    for life in scene.crowd.lives() {
        assert_eq!(life.refusals, Vec::<String>::new(), "{life:?}");
    }
    let (deployments, budgets) = (scene.namespace.api::<Deployment>(), scene.namespace.api::<PodDisruptionBudget>());
    until("nothing is left of them", async || {
        let deployment = deployments.get_opt("chat-router").await.map_err(|error| error.to_string())?;
        let budget = budgets.get_opt("chat-router").await.map_err(|error| error.to_string())?;
        equal(&(deployment.is_none(), budget.is_none()), &(true, true))
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_deployment_of_somebody_else_with_the_routers_name_is_left_alone_and_named() {
    let scene = Scene::new("taken", 1, 1, FAST).await;
    scene
        .namespace
        .apply(
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: chat-router}, spec: {replicas: 0, selector: \
             {matchLabels: {app: other}}, template: {metadata: {labels: {app: other}}, spec: {containers: [{name: app, \
             image: x}]}}}}",
        )
        .await
        .expect("a Deployment");
    routers(&scene, 1).await;
    let says = |view: &Value| view["conditions"].to_string().contains("the Deployment chat-router is somebody else's");
    scene.operators.until("the pool says so", "chat", says).await;
    routers(&scene, 0).await;
    scene.operators.until("it is over", "chat", |view| !says(view)).await;
    let image = ["get", "deployment/chat-router", "-o", "jsonpath={.spec.template.spec.containers[0].image}"];
    assert_eq!(scene.kubectl(&image).await, "x");
}

//! Pools of a real API server: the chart's operator with its own rights, its webhook, real sidecars at the pods' addresses,
//! and real clients.

use std::time::Duration;

use harness::control_plane::scene::{FAST, manifests, stateful};
use harness::control_plane::{Access, Scene};
use harness::wait::equal;
use harness::{Client, until};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::Value;

/// The slots, each with the pod that holds it.
fn holders(view: &Value) -> Vec<(i64, String)> {
    let slots = view["slots"].as_array().expect("slots").iter();
    let held =
        slots.map(|slot| (slot["id"].as_i64().expect("an id"), slot["member"].as_str().expect("a holder").to_owned()));
    held.collect()
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_third_pod_gets_its_share_and_nobody_else_is_disturbed() {
    let mut scene = Scene::new("grow", 2, 1, FAST).await;
    scene.fill(60).await;
    let before = scene.owners(2).await;
    scene.crowd.at_home(|key| before.owner(key)).await;
    scene.kubectl(&["scale", "deployment/chat", "--replicas=3"]).await;
    let after = scene.owners(3).await;
    scene.moved_exactly(&before, &after).await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_surge_rollout_breaks_each_connection_once_when_clients_enter_at_their_owner() {
    let mut scene = Scene::new("rollout", 3, 1, FAST).await;
    let _directory = scene.fill_at_owners(60).await;
    let before = scene.host.names();

    scene.kubectl(&["rollout", "restart", "deployment/chat"]).await;
    until("all pods are new", async || {
        let left = scene.host.names().into_keys().filter(|uid| before.contains_key(uid)).count();
        equal(&(left, scene.host.names().len()), &(0, 3))
    })
    .await;
    let after = scene.owners(3).await;
    scene.crowd.at_home(|key| after.owner(key)).await;
    for life in scene.crowd.lives() {
        assert_eq!(life.breaks(), 1, "{life:?}");
    }
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_pool_that_is_scaled_down_is_drained_before_its_target_shrinks_and_the_drained_pod_goes() {
    let mut scene = Scene::new("shrink", 3, 1, &format!("replicas: 3\n  {FAST}")).await;
    let _directory = scene.fill_at_owners(60).await;
    let before = scene.owners(3).await;
    let view = scene.operators.stable("chat", 3).await;
    let (_, highest) = holders(&view).pop().expect("three slots");

    scene.kubectl(&["scale", "websocketpool/chat", "--replicas=2"]).await;
    let deployments = scene.namespace.api::<Deployment>();
    let left = until("the target shrinks", async || {
        let deployment = deployments.get("chat").await.map_err(|error| error.to_string())?;
        let held = scene.book.count_at(&highest);
        match deployment.spec.and_then(|spec| spec.replicas) {
            Some(2) => Ok(held),
            replicas => Err(format!("{replicas:?} replicas, {held} at {highest}")),
        }
    })
    .await;
    assert_eq!(left, 0, "connections were left at the pod that goes");
    until("the drained pod goes", async || {
        let names = scene.host.names().into_values().collect::<Vec<_>>();
        if names.contains(&highest) { Err(format!("{names:?}")) } else { equal(&names.len(), &2) }
    })
    .await;
    let after = scene.owners(2).await;
    scene.moved_exactly(&before, &after).await;

    scene.kubectl(&["scale", "websocketpool/chat", "--replicas=3"]).await;
    until("the target grows", async || {
        let deployment = deployments.get("chat").await.map_err(|error| error.to_string())?;
        equal(&deployment.spec.and_then(|spec| spec.replicas), &Some(3))
    })
    .await;
    scene.owners(3).await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn when_a_pod_is_gone_without_warning_its_clients_fall_back_and_come_home_and_nobody_else_moves() {
    let mut scene = Scene::new("crash", 3, 1, FAST).await;
    scene.fill(60).await;
    let before = scene.owners(3).await;
    let victim = before.owner("user-0");
    scene.host.kill(&victim);
    scene.kubectl(&["delete", "pod", &victim, "--grace-period=0", "--force"]).await;
    scene.crowd.settled().await;
    let is_gone = |view: &Value| !view["slots"].to_string().contains(&victim);
    scene.operators.until("another pod takes the slot", "chat", is_gone).await;
    let after = scene.owners(3).await;
    scene.crowd.at_home(|key| after.owner(key)).await;
    for life in scene.crowd.lives() {
        let was_there = before.owner(&life.key) == victim;
        // Those that had entered at the pod that is gone lose their way once, wherever they belong.
        let entered_there = life.stays[0].end.as_ref().is_some_and(|(_, goodbye)| goodbye.is_none());
        let most = if was_there { 2 } else { usize::from(entered_there) };
        assert!(life.breaks() <= most, "{life:?}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn an_address_that_another_pools_pod_has_got_leads_nobody_there() {
    let mut scene = Scene::new("reused", 2, 1, FAST).await;
    let held = holders(&scene.operators.stable("chat", 2).await);
    let (dead, alive) = (&held[0].1, &held[1].1);
    scene.crowd.join_users(40, &[(scene.host.address(alive), 7480).into()]).await;
    let before = scene.owners(2).await;
    scene.crowd.at_home(|key| before.owner(key)).await;

    // Its node has died. The API says that it is ready, while its address is given to a pod of another pool.
    let address = scene.host.address(dead);
    scene.host.kill(dead);
    scene.host.give_again(address);
    scene.namespace.apply(&manifests(1, FAST).replace("chat", "game")).await.expect("another pool");
    let (_, stranger) = holders(&scene.operators.stable("game", 1).await).remove(0);
    assert_eq!(scene.host.address(&stranger), address);
    scene.crowd.at_home(|_| alive.clone()).await;
    let mut game = Client::connect((address, 7480).into(), "user-0").await;
    assert_eq!(game.server, stranger);

    scene.kubectl(&["delete", "pod", dead, "--grace-period=0", "--force"]).await;
    let is_gone = |view: &Value| !view["slots"].to_string().contains(dead.as_str());
    scene.operators.until("another pod takes the slot", "chat", is_gone).await;
    let after = scene.owners(2).await;
    scene.crowd.at_home(|key| after.owner(key)).await;
    for life in scene.crowd.lives() {
        assert!(life.stays.iter().all(|stay| stay.server != stranger), "{life:?}");
        let most = if before.owner(&life.key) == *dead { 2 } else { 0 };
        assert!(life.breaks() <= most, "{life:?}");
    }
    game.check().await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_pool_is_reached_by_its_service_and_each_slot_by_its_own_and_a_retired_slot_by_none() {
    let scene = Scene::new("services", 3, 1, FAST).await;
    let services = scene.namespace.api::<Service>();
    let pool = services.get("chat").await.expect("the pool's Service");
    let port = &pool.spec.as_ref().expect("a spec").ports.as_ref().expect("ports")[0];
    assert_eq!((port.port, port.target_port.as_ref()), (3000, Some(&IntOrString::String("wspool".to_owned()))));
    let slot = services.get("chat-0").await.expect("a slot's Service");
    assert_eq!(slot.spec.expect("a spec").ports.expect("ports")[0].port, 7480, "nothing translates it");

    let endpoints = async || {
        let jsonpath = "jsonpath={range .items[*]}{.metadata.name}={.endpoints[*].targetRef.name} {end}";
        let slices = ["get", "endpointslices", "-l", "wspool.dev/slot", "--sort-by=.metadata.name", "-o", jsonpath];
        scene.namespace.kubectl(&slices, "").await.map(|listed| listed.trim_end().to_owned())
    };
    let wanted = async |slots: usize| {
        let held = holders(&scene.operators.stable("chat", slots).await);
        let each = held.iter().map(|(slot, pod)| format!("chat-{slot}={pod}"));
        each.collect::<Vec<_>>().join(" ")
    };
    let three = wanted(3).await;
    until("an endpoint for each slot", async || equal(&endpoints().await?, &three)).await;
    scene.kubectl(&["scale", "deployment/chat", "--replicas=2"]).await;
    let two = wanted(2).await;
    until("no endpoint for the retired slot", async || equal(&endpoints().await?, &two)).await;
    assert!(services.get_opt("chat-2").await.expect("an answer").is_none());
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn deletion_costs_make_a_plain_scale_down_take_the_highest_slot() {
    let scene = Scene::new("costs", 3, 1, FAST).await;
    let view = scene.operators.stable("chat", 3).await;
    let pods = scene.namespace.api::<Pod>();
    for (slot, name) in holders(&view) {
        until("the deletion cost of each holder", async || {
            let pod = pods.get(&name).await.map_err(|error| error.to_string())?;
            let cost = pod.annotations().get("controller.kubernetes.io/pod-deletion-cost").cloned();
            equal(&cost, &Some((-slot).to_string()))
        })
        .await;
    }
    scene.kubectl(&["scale", "deployment/chat", "--replicas=2"]).await;
    let after = scene.operators.stable("chat", 2).await;
    assert_eq!(holders(&after), holders(&view)[..2]);
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_pod_that_is_pinned_keeps_its_connections_and_a_plain_scale_down_takes_another() {
    let mut scene = Scene::new("pins", 2, 1, FAST).await;
    scene.fill(60).await;
    let before = scene.owners(2).await;
    scene.crowd.at_home(|key| before.owner(key)).await;
    let (slot, busy) = holders(&scene.operators.stable("chat", 2).await).pop().expect("two");
    scene.kubectl(&["annotate", "pod", &busy, "wspool.dev/pinned-until=2999-01-01T00:00:00Z"]).await;
    let pods = scene.namespace.api::<Pod>();
    until("it costs more than all that are not pinned", async || {
        let pod = pods.get(&busy).await.map_err(|error| error.to_string())?;
        let cost = pod.annotations().get("controller.kubernetes.io/pod-deletion-cost").cloned();
        equal(&cost, &Some((1_000_000 - slot).to_string()))
    })
    .await;
    scene.kubectl(&["scale", "deployment/chat", "--replicas=1"]).await;
    assert_eq!(holders(&scene.operators.stable("chat", 1).await), [(slot, busy.clone())]);
    scene.crowd.at_home(|_| busy.clone()).await;

    scene.kubectl(&["scale", "deployment/chat", "--replicas=2"]).await;
    let pinned = ["get", "wsp", "chat", "-o", "jsonpath={.status.move.pinned} {.status.move.pending}"];
    until("what belongs to the new pod waits", async || {
        let said = scene.namespace.kubectl(&pinned, "").await?;
        if said.ends_with(" 0") && !said.starts_with("0 ") { Ok(()) } else { Err(said) }
    })
    .await;
    for life in scene.crowd.lives().iter().filter(|life| before.owner(&life.key) == busy) {
        // Who had come in by the pod that went came back, but to where it was.
        assert!(life.stays.iter().all(|stay| stay.server == busy), "{life:?}");
    }
    scene.kubectl(&["annotate", "pod", &busy, "wspool.dev/pinned-until-"]).await;
    let after = scene.owners(2).await;
    scene.crowd.at_home(|key| after.owner(key)).await;
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_statefulsets_slots_are_its_ordinals_and_a_pod_that_comes_back_gets_its_own() {
    let mut scene = Scene::of(&Access::shared(), "stateful", 3, 1, &stateful(3, FAST)).await;
    let _directory = scene.fill_at_owners(60).await;
    let view = scene.operators.stable("chat", 3).await;
    assert_eq!(holders(&view), [0, 1, 2].map(|slot| (slot, format!("chat-{slot}"))));

    scene.kubectl(&["delete", "pod", "chat-1", "--wait=false"]).await;
    let old = scene.host.names();
    until("the pod is another one", async || {
        let new = scene.host.names().into_iter().find(|(uid, name)| name == "chat-1" && !old.contains_key(uid));
        new.map(drop).ok_or_else(|| "it is still the old one".into())
    })
    .await;
    let after = scene.owners(3).await;
    scene.crowd.at_home(|key| after.owner(key)).await;
    for life in scene.crowd.lives() {
        let most = if after.owner(&life.key) == "chat-1" { 2 } else { 0 };
        assert!(life.breaks() <= most, "{life:?}");
    }

    scene.kubectl(&["scale", "statefulset/chat", "--replicas=2"]).await;
    assert_eq!(holders(&scene.operators.stable("chat", 2).await), holders(&view)[..2]);
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn the_status_and_the_events_tell_what_kubectl_shows() {
    let mut scene = Scene::new("status", 2, 1, FAST).await;
    scene.fill(40).await;
    scene.kubectl(&["scale", "deployment/chat", "--replicas=3"]).await;
    scene.owners(3).await;
    until("the status shows three ready slots and all connections", async || {
        let jsonpath = "jsonpath={.status.slots} {.status.connections} {.status.replicas} {.status.selector} \
                        {.status.conditions[?(@.type=='Ready')].status} {.status.move.pending}";
        let said = scene.namespace.kubectl(&["get", "wsp", "chat", "-o", jsonpath], "").await?;
        equal(&said.as_str(), &"3 40 3 wspool.dev/pool=chat True 0")
    })
    .await;
    for reason in ["Placed", "MoveStarted", "MoveEnded"] {
        until(&format!("an event {reason}"), async || {
            let events = ["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"];
            let reasons = scene.namespace.kubectl(&events, "").await?;
            if reasons.split(' ').any(|said| said == reason) { Ok(()) } else { Err(reasons) }
        })
        .await;
    }
    // Two generations of one spec would tell a reconcile that triggers itself.
    let generation = scene.kubectl(&["get", "wsp", "chat", "-o", "jsonpath={.metadata.generation}"]).await;
    assert_eq!(generation, "1");
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn what_is_wrong_around_a_pool_is_said_with_what_to_do() {
    let scene = Scene::new("trouble", 1, 1, FAST).await;
    let degraded = async |name: &str, reason: &str, words: &str| {
        until(&format!("{name} is degraded: {reason}"), async || {
            let jsonpath = "jsonpath={.status.conditions[?(@.type=='Degraded')]}";
            let said = scene.namespace.kubectl(&["get", "wsp", name, "-o", jsonpath], "").await?;
            if said.contains(reason) && said.contains(words) { Ok(()) } else { Err(said) }
        })
        .await;
    };
    let pool = |name: &str, target: &str| {
        format!(
            "{{apiVersion: wspool.dev/v1alpha1, kind: WebSocketPool, metadata: {{name: {name}}}, spec: {{target: \
             {target}, port: 3000, key: {{from: [{{query: user}}]}}}}}}\n---\n"
        )
    };
    let taken = "{apiVersion: v1, kind: Service, metadata: {name: taken}, spec: {selector: {app: chat}, ports: [{port: 80, \
                 targetPort: 3000}]}}\n---\n";
    let manifest = [
        pool("lonely", "{apiVersion: apps/v1, kind: Deployment, name: nowhere}"),
        pool("unknown", "{apiVersion: apps/v1, kind: Sandwich, name: chat}"),
        pool("second", "{apiVersion: apps/v1, kind: Deployment, name: chat}"),
        pool("unlabelled", "{apiVersion: apps/v1, kind: Deployment, name: plain}"),
        taken.to_owned(),
        pool("taken", "{apiVersion: apps/v1, kind: Deployment, name: other}"),
    ];
    scene.kubectl(&["create", "deployment", "plain", "--image=plain"]).await;
    scene.namespace.apply(&manifest.concat()).await.expect("the API server accepts them");
    degraded("lonely", "TargetNotFound", "create it, or correct spec.target.name").await;
    degraded("unknown", "UnknownTarget", "correct spec.target").await;
    degraded("second", "TargetTaken", "of the older pool chat too").await;
    degraded("unlabelled", "NoMembers", "add it to the pod template").await;
    scene.kubectl(&["create", "deployment", "other", "--image=other", "--replicas=0"]).await;
    degraded("taken", "ServiceTaken", "let it lead to port 7480").await;
    let service = scene.kubectl(&["get", "service", "taken", "-o", "jsonpath={.spec.ports[0].targetPort}"]).await;
    assert_eq!(service, "3000", "somebody else's Service is left alone");
    // It leads to the pods of the first pool, too.
    degraded("chat", "SidecarBypassed", "Service taken leads to port 3000 of the pods, past their sidecars").await;
    let pod = scene.kubectl(&["get", "pods", "-l", "wspool.dev/pool=chat", "-o", "name"]).await;
    scene.kubectl(&["annotate", pod.trim(), "wspool.dev/pinned-until=soon"]).await;
    degraded("chat", "BadPin", "write one like").await;
    scene.kubectl(&["set", "image", pod.trim(), "wspool-sidecar=wspool-sidecar:0"]).await;
    degraded("chat", "OutdatedSidecar", "roll the workload out again").await;

    // Pods that got in without the webhook.
    for (name, host) in [("bare", "false"), ("hosted", "true")] {
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{hostNetwork: {host}, containers: [{{name: \
             app, image: x}}]}}}}"
        );
        scene.namespace.apply(&pod).await.expect("a pod");
    }
    scene.kubectl(&["label", "pod", "bare", "wspool.dev/pool=second"]).await;
    degraded("second", "PodsWithoutSidecar", "delete it, so that its successor is injected").await;
    scene.kubectl(&["label", "pod", "hosted", "wspool.dev/pool=second"]).await;
    degraded("second", "HostNetwork", "remove hostNetwork").await;

    let events = scene.namespace.api::<k8s_openapi::api::events::v1::Event>();
    until("each has its event", async || {
        let list = events.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let said: Vec<_> = list.items.into_iter().filter_map(|event| event.reason).collect();
        let reasons = "TargetNotFound UnknownTarget TargetTaken NoMembers ServiceTaken SidecarBypassed OutdatedSidecar \
                       PodsWithoutSidecar HostNetwork";
        let missing = reasons.split(' ').find(|reason| !said.iter().any(|said| said == reason));
        missing.map_or(Ok(()), |missing| Err(format!("no {missing} in {said:?}")))
    })
    .await;
    tokio::time::timeout(Duration::from_secs(30), scene.operators.stable("chat", 1))
        .await
        .expect("it is not disturbed");
}

//! Pools that are scaled by their connections: the real autoscaler of Kubernetes, the real aggregation of its API server, and
//! the operator that serves the metric.

use harness::control_plane::certificates::{ADMIN, FRONT_PROXY, STRANGER};
use harness::control_plane::scene::{FAST, manifests};
use harness::control_plane::{Access, ControlPlane, Host, Namespace, Operators, Scene};
use harness::http::Http;
use harness::wait::equal;
use harness::{Crowd, Guestbook, until};
use http::{Method, Request};
use k8s_openapi::api::apps::v1::Deployment;
use kube::config::{AuthInfo, Config};
use kube::{Client, Error};
use serde_json::{Value, json};

/// The API, as a path.
const API: &str = "/apis/custom.metrics.k8s.io";
/// The ports of an operator's pod.
const METRICS_API: u16 = 8443;
const METRICS: u16 = 8080;

/// A control plane of its own, because a cluster has custom metrics once.
async fn scene(control_plane: &ControlPlane, pool: &str) -> Scene {
    let namespace = Namespace::create(&control_plane.access(), "scaled").await;
    let operators = Operators::install_with(&namespace, 2, "metricsApi: {enabled: true}").await;
    let book = Guestbook::default();
    let host = Host::start(&namespace, &book);
    namespace.apply(&manifests(2, pool)).await.expect("the pool and its workload are accepted");
    operators.stable("chat", 2).await;
    Scene { namespace, operators, host, book, crowd: Crowd::default() }
}

/// The path of a pool's metric.
fn metric(scene: &Scene, version: &str, pool: &str) -> String {
    let namespace = scene.namespace.name();
    format!("{API}/{version}/namespaces/{namespace}/websocketpools.wspool.dev/{pool}/connections")
}

/// What `kubectl get --raw` prints.
async fn raw(scene: &Scene, path: &str) -> Result<Value, String> {
    let text = scene.namespace.access().kubectl(&["get", "--raw", path], "").await?;
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}

/// Waits until so many connections are the pool's figure.
async fn figure(scene: &Scene, connections: usize) -> Value {
    until(&format!("the metric is {connections}"), async || {
        let values = raw(scene, &metric(scene, "v1beta2", "chat")).await?;
        if values["items"][0]["value"].as_str() == Some(&connections.to_string()) {
            Ok(values)
        } else {
            Err(values.to_string())
        }
    })
    .await
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn more_connections_get_more_pods_and_fewer_connections_fewer_which_are_drained_first() {
    let control_plane = ControlPlane::start().await;
    let autoscaling = "autoscaling: {minReplicas: 2, maxReplicas: 4, connectionsPerPod: 20}";
    let mut scene = scene(&control_plane, &format!("{autoscaling}\n  {FAST}")).await;
    until("the pool has got its target's replicas", async || {
        let replicas = ["get", "wsp", "chat", "-o", "jsonpath={.spec.replicas}"];
        equal(&scene.namespace.kubectl(&replicas, "").await?.as_str(), &"2")
    })
    .await;

    let jsonpath = "jsonpath={.status.conditions[?(@.type=='ScalingActive')]}";
    until("the autoscaler has found the metric", async || {
        let said = scene.namespace.kubectl(&["get", "hpa", "chat", "-o", jsonpath], "").await?;
        if said.contains("ValidMetricFound") { Ok(()) } else { Err(said) }
    })
    .await;

    let before = scene.owners(2).await;
    let _directory = scene.fill_at_owners(15).await;
    let mut more = Crowd::default();
    for number in 0..40 {
        more.join(&format!("guest-{number}"), &scene.host.entries());
    }
    figure(&scene, 55).await;
    let deployments = scene.namespace.api::<Deployment>();
    let replicas = async || {
        let deployment = deployments.get("chat").await.map_err(|error| error.to_string())?;
        Ok::<_, String>(deployment.spec.and_then(|spec| spec.replicas))
    };
    until("the autoscaler has scaled the pool, and the pool its target", async || equal(&replicas().await?, &Some(3)))
        .await;
    let after = scene.owners(3).await;
    scene.crowd.at_home(|key| after.owner(key)).await;
    for life in scene.crowd.lives() {
        assert_eq!(life.breaks(), usize::from(before.owner(&life.key) != after.owner(&life.key)), "{life:?}");
    }

    let view = scene.operators.stable("chat", 3).await;
    let highest = view["slots"][2]["member"].as_str().expect("a holder").to_owned();
    drop(more);
    let left = until("the target shrinks", async || {
        let held = scene.book.count_at(&highest);
        if replicas().await? == Some(2) { Ok(held) } else { Err(format!("{held} at {highest}")) }
    })
    .await;
    assert_eq!(left, 0, "connections were left at the pod that goes");
    let last = scene.owners(2).await;
    scene.crowd.at_home(|key| last.owner(key)).await;
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
}

/// A client that comes to a replica as a front proxy would, with a certificate of the control plane's folder.
fn proxy(scene: &Scene, replica: usize, certificate: Option<&str>, headers: &[(&str, &str)]) -> Client {
    let address = scene.operators.address(replica);
    let mut config = Config::new(format!("https://{address}:{METRICS_API}").parse().expect("an address"));
    config.accept_invalid_certs = true;
    config.default_retry = false;
    if let Some(name) = certificate {
        let file = |end: &str| {
            let path = scene.namespace.access().folder().join(format!("{name}.{end}"));
            Some(path.to_str().expect("a path in UTF-8").to_owned())
        };
        config.auth_info = AuthInfo { client_certificate: file("crt"), client_key: file("key"), ..AuthInfo::default() };
    }
    for (name, value) in headers {
        config.headers.push((name.parse().expect("a name"), value.parse().expect("a value")));
    }
    Client::try_from(config).expect("a client")
}

async fn ask(client: &Client, path: &str) -> Result<Value, Error> {
    client.request(Request::get(path).body(Vec::new()).expect("a request")).await
}

/// The code of a refusal, and its sentence.
fn refusal(answer: Result<Value, Error>) -> (u16, String) {
    match answer {
        Err(Error::Api(status)) => (status.code, status.message),
        other => panic!("not an answer of the API: {other:?}"),
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn the_metric_is_served_by_every_replica_to_those_who_may_and_a_missing_figure_is_an_error() {
    let control_plane = ControlPlane::start().await;
    let mut scene = scene(&control_plane, FAST).await;
    scene.fill(12).await;
    let values = figure(&scene, 12).await;
    let namespace = scene.namespace.name().to_owned();
    let pool =
        json!({"kind": "WebSocketPool", "namespace": namespace, "name": "chat", "apiVersion": "wspool.dev/v1alpha1"});
    assert_eq!(values["kind"], "MetricValueList");
    assert_eq!(values["items"][0]["describedObject"], pool);
    assert_eq!(values["items"][0]["metric"]["name"], "connections");
    let old = raw(&scene, &metric(&scene, "v1beta1", "chat")).await.expect("the older version");
    assert_eq!((&old["items"][0]["metricName"], &old["items"][0]["value"]), (&json!("connections"), &json!("12")));
    for version in ["v1beta1", "v1beta2"] {
        let resources = raw(&scene, &format!("{API}/{version}")).await.expect("its resources");
        assert_eq!(resources["resources"][0]["name"], "websocketpools.wspool.dev/connections");
    }
    scene.kubectl(&["label", "wsp", "chat", "tier=a"]).await;
    until("pools are selected by label", async || {
        let all = metric(&scene, "v1beta2", "*");
        let some = raw(&scene, &format!("{all}?labelSelector=tier%3Da")).await?;
        let none = raw(&scene, &format!("{all}?labelSelector=tier%3Db")).await;
        equal(&(some["items"].as_array().map(Vec::len), none.is_err()), &(Some(1), true))
    })
    .await;

    let path = metric(&scene, "v1beta2", "chat");
    let admin = [("X-Remote-User", "admin"), ("X-Remote-Group", "system:masters")];
    let jane = [("X-Remote-User", "jane"), ("X-Remote-Group", "system:authenticated")];
    for replica in [0, 1] {
        let values = ask(&proxy(&scene, replica, Some(FRONT_PROXY), &admin), &path).await.expect("an answer");
        assert_eq!(values["items"][0]["value"], "12");
        let address = (scene.operators.address(replica), METRICS).into();
        let by_http = format!("/v1/pools/{namespace}/chat/connections");
        let said: Value = Http::default().get(address, &by_http).await.expect("a figure");
        assert_eq!(said["connections"], 12);

        let (code, message) = refusal(ask(&proxy(&scene, replica, None, &admin), &path).await);
        assert!(code == 401 && message.contains("it has no client certificate"), "{code} {message}");
        let (code, message) = refusal(ask(&proxy(&scene, replica, Some(STRANGER), &admin), &path).await);
        assert!(code == 401 && message.contains("its client certificate is for \"stranger\""), "{code} {message}");
        let (code, message) = refusal(ask(&proxy(&scene, replica, Some(FRONT_PROXY), &[]), &path).await);
        assert!(code == 401 && message.contains("does not say who"), "{code} {message}");
        let (code, message) = refusal(ask(&proxy(&scene, replica, Some(FRONT_PROXY), &jane), &path).await);
        assert!(code == 403 && message.contains("\"jane\" may not GET"), "{code} {message}");
        // Another authority's: TLS ends it.
        let foreign = ask(&proxy(&scene, replica, Some(ADMIN), &admin), &path).await;
        assert!(matches!(foreign, Err(Error::HyperError(_) | Error::Service(_))), "{foreign:?}");
    }
    let view = ["create", "rolebinding", "jane", "--clusterrole=view", "--user=jane"];
    scene.kubectl(&view).await;
    until("whoever may view the namespace may see its metrics", async || {
        let answer = ask(&proxy(&scene, 0, Some(FRONT_PROXY), &jane), &path).await;
        answer.map(drop).map_err(|error| error.to_string())
    })
    .await;

    let missing = raw(&scene, &metric(&scene, "v1beta2", "nobody")).await.expect_err("no such pool");
    assert!(missing.contains("wspool knows no WebSocketPool nobody"), "{missing}");
    let lonely = "{apiVersion: wspool.dev/v1alpha1, kind: WebSocketPool, metadata: {name: lonely}, spec: {target: {apiVersion: \
                  apps/v1, kind: Deployment, name: nowhere}, port: 3000, key: {from: [{query: user}]}}}";
    scene.namespace.apply(lonely).await.expect("a pool without servers");
    until("a pool without servers has no figure", async || {
        match raw(&scene, &metric(&scene, "v1beta2", "lonely")).await {
            Ok(values) => panic!("a figure of nothing: {values}"),
            Err(error) if error.contains("its connections have not been counted") => Ok(()),
            Err(error) => Err(error),
        }
    })
    .await;
    let address = (scene.operators.address(0), METRICS).into();
    let by_http = format!("/v1/pools/{namespace}/lonely/connections");
    let answer = Http::default().send(Method::GET, address, &by_http, "").await;
    assert_eq!(answer.expect("an answer").status, 503);
}

/// An autoscaler that a user has made.
fn scaler(name: &str, version: &str, kind: &str) -> String {
    format!(
        "{{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {{name: {name}}}, spec: {{maxReplicas: 3, \
         scaleTargetRef: {{apiVersion: {version}, kind: {kind}, name: chat}}, metrics: [{{type: Resource, resource: {{name: \
         cpu, target: {{type: Utilization, averageUtilization: 50}}}}}}]}}}}"
    )
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_second_autoscaler_of_the_same_pods_is_told_of_and_the_pools_own_makes_way() {
    let autoscaling = "autoscaling: {minReplicas: 1, maxReplicas: 3, connectionsPerPod: 20}";
    let scene = Scene::new("two-scalers", 1, 1, &format!("{autoscaling}\n  {FAST}")).await;
    let scalers = async |wanted: &str| {
        until(&format!("the autoscalers are {wanted:?}"), async || {
            let names =
                scene.namespace.kubectl(&["get", "hpa", "-o", "jsonpath={.items[*].metadata.name}"], "").await?;
            equal(&names.as_str(), &wanted)
        })
        .await;
    };
    let degraded = async |words: &str| {
        until(&format!("the pool says: {words}"), async || {
            let jsonpath = "jsonpath={.status.conditions[?(@.type=='Degraded')]}";
            let said = scene.namespace.kubectl(&["get", "wsp", "chat", "-o", jsonpath], "").await?;
            if said.contains(words) { Ok(()) } else { Err(said) }
        })
        .await;
    };
    scalers("chat").await;
    for (version, kind) in [("apps/v1", "Deployment"), ("wspool.dev/v1alpha1", "WebSocketPool")] {
        scene.namespace.apply(&scaler("mine", version, kind)).await.expect("another autoscaler");
        scalers("mine").await;
        degraded("HorizontalPodAutoscaler mine and spec.autoscaling would scale the same pods").await;
        scene.kubectl(&["delete", "hpa", "mine"]).await;
        scalers("chat").await;
        degraded("AsExpected").await;
    }
    let events = scene.kubectl(&["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"]).await;
    assert!(events.contains("AutoscalerConflict"), "{events}");

    let without = r#"[{"op": "remove", "path": "/spec/autoscaling"}]"#;
    scene.kubectl(&["patch", "wsp", "chat", "--type=json", "-p", without]).await;
    scalers("").await;

    // Somebody else's of that name is left as it is.
    scene.kubectl(&["create", "deployment", "other", "--image=other", "--replicas=0"]).await;
    let foreign = scaler("chat", "apps/v1", "Deployment").replace("name: chat}, metrics", "name: other}, metrics");
    scene.namespace.apply(&foreign).await.expect("an autoscaler of something else");
    let again = r#"{"spec": {"autoscaling": {"minReplicas": 1, "maxReplicas": 3, "connectionsPerPod": 20}}}"#;
    scene.kubectl(&["patch", "wsp", "chat", "--type=merge", "-p", again]).await;
    degraded("the HorizontalPodAutoscaler chat is somebody else's").await;
    let of = scene.kubectl(&["get", "hpa", "chat", "-o", "jsonpath={.spec.scaleTargetRef.name}"]).await;
    assert_eq!(of, "other");
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_pool_that_a_users_autoscaler_scales_gets_its_targets_replicas_once() {
    let access = Access::shared();
    let scene = Scene::of(&access, "seeded", 2, 1, &manifests(2, FAST)).await;
    let replicas =
        async || scene.namespace.kubectl(&["get", "wsp", "chat", "-o", "jsonpath={.spec.replicas}"], "").await;
    assert_eq!(replicas().await.expect("a pool").as_str(), "");
    let mine = scaler("mine", "wspool.dev/v1alpha1", "WebSocketPool");
    scene.namespace.apply(&mine).await.expect("an autoscaler");
    until("the pool has got its target's replicas", async || equal(&replicas().await?.as_str(), &"2")).await;
}

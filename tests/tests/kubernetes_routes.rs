//! The slots' addresses from outside, as `spec.routes` has them routed.

use std::path::Path;

use harness::control_plane::Scene;
use harness::control_plane::scene::FAST;
use harness::until;
use harness::wait::equal;
use serde_json::Value;

const HOSTS: &str = "{gateway: {url: 'wss://s{slot}.chat.example.com/'}, routes: ";
const PATHS: &str = "{gateway: {url: 'wss://chat.example.com/slots/{slot}'}, routes: ";

async fn patch(scene: &Scene, spec: &str) {
    let change: Value = serde_yaml::from_str(&format!("spec: {spec}")).expect("YAML");
    scene.kubectl(&["patch", "websocketpool/chat", "--type=merge", "-p", &change.to_string()]).await;
}

/// What `kubectl get` says of all objects of a kind that belong to the pool, read by a JSONPath of theirs.
async fn there(scene: &Scene, kind: &str, path: &str) -> Vec<String> {
    let path = format!("jsonpath={{range .items[*]}}{path}{{\"\\n\"}}{{end}}");
    let said = scene.kubectl(&["get", kind, "-l", "wspool.dev/pool=chat", "-o", &path]).await;
    said.lines().map(|line| line.trim_end().to_owned()).collect()
}

async fn lead(scene: &Scene, kind: &str, path: &str, wanted: &[&str]) {
    let wanted: Vec<String> = wanted.iter().map(|line| (*line).to_owned()).collect();
    until(&format!("{kind} leads to {wanted:?}"), async || equal(&there(scene, kind, path).await, &wanted)).await;
}

fn says(view: &Value, words: &str) -> bool {
    view["conditions"].to_string().contains(words)
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn one_ingress_leads_to_the_slots_and_follows_them_and_goes_with_the_field() {
    const RULES: &str =
        "{range .spec.rules[*]}{.host} {.http.paths[*].path} {.http.paths[*].backend.service.name},{end}";
    let scene = Scene::new("ingress", 2, 1, FAST).await;
    patch(&scene, &format!("{HOSTS}{{ingress: {{className: nginx}}}}}}")).await;
    let two = "s0.chat.example.com / chat-0,s1.chat.example.com / chat-1,";
    lead(&scene, "ingress", RULES, &[two]).await;

    scene.kubectl(&["scale", "deployment/chat", "--replicas=3"]).await;
    lead(&scene, "ingress", RULES, &[&format!("{two}s2.chat.example.com / chat-2,")]).await;
    // The address of a slot outlives the pods.
    scene.kubectl(&["delete", "pods", "--all", "--wait=false"]).await;
    scene.owners(3).await;
    lead(&scene, "ingress", RULES, &[&format!("{two}s2.chat.example.com / chat-2,")]).await;
    scene.kubectl(&["scale", "deployment/chat", "--replicas=2"]).await;
    lead(&scene, "ingress", RULES, &[two]).await;

    patch(&scene, &format!("{PATHS}{{ingress: {{className: nginx}}}}}}")).await;
    lead(&scene, "ingress", RULES, &["chat.example.com /slots/0 /slots/1 chat-0 chat-1,"]).await;
    patch(&scene, "{routes: null}").await;
    lead(&scene, "ingress", RULES, &[]).await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn each_slot_has_its_http_route_once_the_cluster_knows_what_that_is() {
    const ROUTE: &str = "{.metadata.name} {.spec.hostnames[0]} {.spec.rules[0].matches[0].path.value} \
                         {.spec.rules[0].backendRefs[0].name}:{.spec.rules[0].backendRefs[0].port} \
                         {.spec.rules[0].filters[0].urlRewrite.path.replacePrefixMatch}";
    let scene = Scene::new("http-route", 2, 1, FAST).await;
    patch(&scene, &format!("{HOSTS}{{httpRoute: {{parentRefs: [{{name: front}}]}}}}}}")).await;
    let install = "spec.routes.httpRoute needs HTTPRoute of gateway.networking.k8s.io/v1";
    scene.operators.until("the pool says what is missing", "chat", |view| says(view, install)).await;

    let definition = std::env::var_os("KUBEBUILDER_ASSETS").expect("tests/control-plane/run sets it");
    let definition = Path::new(&definition).join("httproutes.yaml");
    scene.kubectl(&["apply", "--server-side", "-f", definition.to_str().expect("UTF-8")]).await;
    scene.operators.until("it is over", "chat", |view| !says(view, install)).await;
    let two = ["chat-0 s0.chat.example.com / chat-0:7480", "chat-1 s1.chat.example.com / chat-1:7480"];
    lead(&scene, "httproute", ROUTE, &two).await;

    scene.kubectl(&["scale", "deployment/chat", "--replicas=1"]).await;
    lead(&scene, "httproute", ROUTE, &two[..1]).await;
    patch(&scene, &format!("{PATHS}{{httpRoute: {{parentRefs: [{{name: front}}]}}}}}}")).await;
    lead(&scene, "httproute", ROUTE, &["chat-0 chat.example.com /slots/0 chat-0:7480 /"]).await;
    // From one kind to the other.
    patch(&scene, "{routes: {httpRoute: null, ingress: {}}}").await;
    lead(&scene, "httproute", ROUTE, &[]).await;
    lead(&scene, "ingress", "{.metadata.name}", &["chat"]).await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn an_ingress_of_somebody_else_with_the_pools_name_is_left_alone_and_named() {
    let scene = Scene::new("route-taken", 1, 1, FAST).await;
    let rule = "--rule=other.example.com/*=other:80";
    scene.kubectl(&["create", "ingress", "chat", rule]).await;
    patch(&scene, &format!("{HOSTS}{{ingress: {{}}}}}}")).await;
    let taken = "the Ingress chat is somebody else's";
    scene.operators.until("the pool says so", "chat", |view| says(view, taken)).await;
    let host = ["get", "ingress/chat", "-o", "jsonpath={.spec.rules[*].host}"];
    assert_eq!(scene.kubectl(&host).await, "other.example.com");
    patch(&scene, "{routes: null}").await;
    scene.operators.until("it is over", "chat", |view| !says(view, taken)).await;
    assert_eq!(scene.kubectl(&host).await, "other.example.com");
}

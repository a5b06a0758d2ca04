//! The control plane that the other tests of its tier stand on.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;

use harness::control_plane::kubelet::{Readiness, free_address};
use harness::control_plane::{Access, ControlPlane, Namespace};
use harness::until;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use kube::api::ListParams;

/// A Deployment as a user writes it, which names no node, with a container that runs beside the app.
const CHAT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: chat}
spec:
  replicas: 3
  selector: {matchLabels: {app: chat}}
  template:
    metadata: {labels: {app: chat}}
    spec:
      initContainers:
      - {name: sidecar, image: sidecar, restartPolicy: Always, ports: [{name: clients, containerPort: 7480}]}
      containers:
      - {name: chat, image: chat}
---
apiVersion: v1
kind: Service
metadata: {name: chat}
spec: {selector: {app: chat}, ports: [{port: 80, targetPort: clients}]}
";

async fn namespace(purpose: &str) -> Namespace {
    Namespace::create(&Access::shared(), purpose).await
}

/// The addresses behind a Service, with whether they are ready.
async fn endpoints(namespace: &Namespace, service: &str) -> BTreeSet<(String, bool)> {
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let slices = namespace.api::<EndpointSlice>().list(&of_service).await.expect("EndpointSlices");
    let endpoints = slices.items.into_iter().flat_map(|slice| slice.endpoints.unwrap_or_default());
    let ready = endpoints.map(|endpoint| {
        let ready = endpoint.conditions.and_then(|conditions| conditions.ready).unwrap_or_default();
        (endpoint.addresses.concat(), ready)
    });
    ready.collect()
}

async fn until_endpoints(namespace: &Namespace, service: &str, wanted: &[(Ipv4Addr, bool)]) {
    let wanted: BTreeSet<_> = wanted.iter().map(|(address, ready)| (address.to_string(), *ready)).collect();
    until("the Service's endpoints", async || harness::wait::equal(&endpoints(namespace, service).await, &wanted))
        .await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_deployment_becomes_pods_that_its_service_lists_at_the_addresses_where_they_listen() {
    let namespace = namespace("deployment").await;
    let kubelet = namespace.kubelet();
    namespace.apply(CHAT).await.expect("the Deployment is accepted");

    let pods = namespace.pods("app=chat", 3).await;
    let addresses = [free_address(), free_address(), free_address()];
    for (pod, address) in pods.iter().zip(addresses) {
        tokio::net::TcpListener::bind((address, 7480)).await.expect("a pod's address is local");
        kubelet.ready(pod, address).await;
    }
    until_endpoints(&namespace, "chat", &addresses.map(|address| (address, true))).await;
    until("the Deployment is available", async || {
        let deployment = namespace.api::<Deployment>().get("chat").await.map_err(|error| error.to_string())?;
        let status = deployment.status.unwrap_or_default();
        harness::wait::equal(&status.available_replicas, &Some(3))
    })
    .await;

    kubelet.report(&pods[0], addresses[0], Readiness::NotReady).await;
    let [first, second, third] = addresses;
    until_endpoints(&namespace, "chat", &[(first, false), (second, true), (third, true)]).await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_deleted_pod_stays_until_its_kubelet_says_that_it_has_ended() {
    let namespace = namespace("deletion").await;
    let kubelet = namespace.kubelet();
    namespace.apply(CHAT).await.expect("the Deployment is accepted");
    let pods = namespace.pods("app=chat", 3).await;
    let addresses = [free_address(), free_address(), free_address()];
    for (pod, address) in pods.iter().zip(addresses) {
        kubelet.ready(pod, address).await;
    }

    namespace.kubectl(&["scale", "deployment/chat", "--replicas=2"], "").await.expect("it is scaled");
    let staying = namespace.pods("app=chat", 2).await;
    let is_staying = |pod: &Pod| staying.iter().any(|other| other.metadata.uid == pod.metadata.uid);
    let (leaving, address) = pods.iter().zip(addresses).find(|(pod, _)| !is_staying(pod)).expect("one of them leaves");
    let leaves = namespace.api::<Pod>().get(&leaving.name_any()).await.expect("the pod is still there");
    assert!(leaves.metadata.deletion_timestamp.is_some());
    let listed = addresses.map(|other| (other, other != address));
    until_endpoints(&namespace, "chat", &listed).await;

    kubelet.gone(leaving).await;
    let left: Vec<_> = listed.into_iter().filter(|(_, staying)| *staying).collect();
    until_endpoints(&namespace, "chat", &left).await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_service_account_may_do_nothing_that_it_was_not_given() {
    let namespace = namespace("rights").await;
    let kubeconfig = namespace.access().service_account(namespace.name(), "default").await;
    let kubeconfig = kubeconfig.to_str().expect("a path in UTF-8");
    let error = namespace.kubectl(&["--kubeconfig", kubeconfig, "get", "pods"], "").await.expect_err("no rights");
    let who = format!("system:serviceaccount:{}:default", namespace.name());
    assert!(error.contains("Forbidden") && error.contains(&who), "{error}");
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn the_pool_resource_is_accepted_and_explained() {
    let namespace = namespace("resource").await;
    let crd = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/websocketpools.wspool.dev.yaml");
    let crd = std::fs::read_to_string(&crd).unwrap_or_else(|error| panic!("{}: {error}", crd.display()));
    namespace.apply(&crd).await.expect("the CRD is accepted");
    let explained = until("kubectl explains the resource", async || {
        namespace.kubectl(&["explain", "websocketpool.spec"], "").await
    })
    .await;
    for field in ["target", "key", "rebalance", "notice", "drain"] {
        assert!(explained.contains(&format!("  {field}\t")), "no {field} in\n{explained}");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn what_was_stored_outlives_the_api_server_which_is_silent_while_it_is_paused_or_stopped() {
    let mut control_plane = ControlPlane::start().await;
    let namespace = Namespace::create(&control_plane.access(), "outage").await;
    let ask = ["get", "--raw", "/readyz", "--request-timeout=1s"];

    control_plane.pause_apiserver();
    namespace.kubectl(&ask, "").await.expect_err("it is paused");
    control_plane.resume_apiserver();
    until("it answers again", async || namespace.kubectl(&ask, "").await).await;

    control_plane.stop_apiserver();
    namespace.kubectl(&ask, "").await.expect_err("it is stopped");
    control_plane.start_apiserver().await;
    namespace.apply(CHAT).await.expect("the namespace is still there");
    namespace.pods("app=chat", 3).await;
}

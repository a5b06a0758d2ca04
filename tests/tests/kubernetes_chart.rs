//! The Helm chart, by the real Helm and against a real API server.

use std::path::Path;

use harness::control_plane::kubelet::free_address;
use harness::control_plane::{Access, ControlPlane, Namespace};
use harness::helm::{self, Release};
use harness::until;
use harness::wait::equal;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

/// What every optional part of the chart is switched on by.
const EVERYTHING: &str = "
watchNamespaces: [chats, '1234']
targets: [{apiGroup: argoproj.io, resource: rollouts}]
networkPolicy: {enabled: true, poolNamespaces: [chats]}
metricsApi: {enabled: true}
monitors: {enabled: true, labels: {release: prometheus}}
images: {pullSecrets: [registry]}
podLabels: {team: chat, app.kubernetes.io/name: other}
podAnnotations: {linkerd.io/inject: disabled}
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{operator: Exists}]
affinity: {nodeAffinity: {}}
priorityClassName: system-cluster-critical
";

/// The labels of a pod in a pool.
const MEMBER: &str = "{wspool.dev/pool: chat}";

const POOL: &str = "
apiVersion: wspool.dev/v1alpha1
kind: WebSocketPool
metadata: {name: chat}
spec: {target: {apiVersion: apps/v1, kind: Deployment, name: chat}, port: 3000, key: {from: [{query: user}]}}
";

fn pod(labels: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: chat, labels: {labels}}}, \
         spec: {{containers: [{{name: app, image: app}}]}}}}"
    )
}

/// Whether a pod would be let in.
async fn try_pod(namespace: &Namespace, labels: &str) -> Result<String, String> {
    namespace.kubectl(&["create", "--dry-run=server", "--filename=-"], &pod(labels)).await
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[tokio::test]
#[ignore = "needs helm: make test-api"]
async fn helm_finds_nothing_wrong_with_the_chart() {
    for values in ["", EVERYTHING] {
        helm::lint(values).await.expect("no warning");
    }
}

#[tokio::test]
#[ignore = "needs helm: make test-api"]
async fn a_value_that_is_wrong_is_refused_by_its_name_with_what_would_be_right() {
    let refusals = [
        ("replica: 3", "additional properties 'replica' not allowed"),
        ("replicas: 0", "'/replicas': minimum: got 0, want 1"),
        ("replicas: two", "'/replicas': got string, want integer"),
        (
            "images: {pullPolicy: Sometimes}",
            "'/images/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
        ),
        (
            "images: {registry: 'https://registry.example.com'}",
            "'/images/registry': 'https://registry.example.com' does not match",
        ),
        ("images: {tag: 'v1/2'}", "'/images/tag': 'v1/2' does not match pattern '^[A-Za-z0-9._-]*$'"),
        ("watchNamespaces: chats", "'/watchNamespaces': got string, want array"),
        ("watchNamespaces: [Chats]", "'/watchNamespaces/0': 'Chats' does not match pattern '^[a-z0-9-]+$'"),
        ("watchNamespaces: [1234]", "'/watchNamespaces/0': got number, want string"),
        ("sidecar: {cpu: half}", "'/sidecar/cpu': 'half' does not match pattern '^[0-9.]+(m|k|Ki|M|Mi|G|Gi)?$'"),
        ("targets: [{resource: rollouts}]", "'/targets/0': missing property 'apiGroup'"),
        (
            "targets: [{apiGroup: argoproj.io, resource: Rollout}]",
            "'/targets/0/resource': 'Rollout' does not match pattern '^[a-z0-9]+$'",
        ),
        ("resources: {request: {cpu: 1}}", "'/resources': additional properties 'request' not allowed"),
        ("monitors: {interval: 30}", "'/monitors/interval': got number, want string"),
        ("podLabels: {wspool.dev/pool: chat}", "podLabels: wspool.dev/pool makes a pod part of a pool"),
    ];
    for (values, refusal) in refusals {
        let error = helm::render(values).await.expect_err(values);
        assert!(error.contains(refusal), "{values} is refused with other words:\n{error}");
    }
    helm::render("global: {anything: true}").await.expect("what a parent chart sets is not a mistake");
}

#[tokio::test]
#[ignore = "needs helm: make test-api"]
async fn the_images_are_those_of_the_charts_version_unless_the_values_name_others() {
    let digest = format!("registry.example.com/sidecar@sha256:{}", "0".repeat(64));
    let version = env!("CARGO_PKG_VERSION");
    let cases = [
        ("", format!("wspool.dev/wspool-operator:{version}"), format!("wspool.dev/wspool-sidecar:{version}")),
        (
            "images: {registry: 'localhost:5000/team', tag: edge}",
            "localhost:5000/team/wspool-operator:edge".into(),
            "localhost:5000/team/wspool-sidecar:edge".into(),
        ),
        (&format!("images: {{sidecar: '{digest}'}}"), format!("wspool.dev/wspool-operator:{version}"), digest.clone()),
    ];
    for (values, operator, sidecar) in cases {
        let objects = helm::render(values).await.expect("right values");
        let container = &find(&objects, "Deployment", "wspool")["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], operator);
        let flag = json!(format!("--sidecar-image={sidecar}"));
        assert!(container["args"].as_array().expect("arguments").contains(&flag), "no {flag} in {container}");
    }
}

#[tokio::test]
#[ignore = "needs helm: make test-api"]
async fn the_chart_has_the_crd_as_it_is_and_keeps_it() {
    let crd = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/websocketpools.wspool.dev.yaml");
    let crd: Value = serde_yaml::from_str(&std::fs::read_to_string(crd).expect("the CRD")).expect("YAML");
    let objects = helm::render("").await.expect("right values");
    let rendered = find(&objects, "CustomResourceDefinition", "websocketpools.wspool.dev");
    assert_eq!(rendered["spec"], crd["spec"]);
    assert_eq!(rendered["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    let without = helm::render("crd: {install: false}").await.expect("right values");
    assert!(without.iter().all(|object| object["kind"] != "CustomResourceDefinition"));
}

#[tokio::test]
#[ignore = "needs helm: make test-api"]
async fn the_webhook_sees_pods_of_pools_only_and_only_where_pools_are_watched() {
    for (values, namespaces) in [("", Value::Null), (EVERYTHING, json!(["chats", "1234"]))] {
        let objects = helm::render(values).await.expect("right values");
        let webhook = &find(&objects, "MutatingWebhookConfiguration", "wspool")["webhooks"][0];
        assert_eq!(
            webhook["objectSelector"]["matchExpressions"],
            json!([
                {"key": "wspool.dev/pool", "operator": "Exists"},
                {"key": "wspool.dev/role", "operator": "NotIn", "values": ["router"]},
            ])
        );
        assert_eq!(webhook["namespaceSelector"]["matchExpressions"][0]["values"], namespaces);
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn the_api_server_knows_every_field_that_the_chart_writes() {
    let access = Access::shared();
    for namespace in ["wspool-system", "chats", "1234"] {
        access.kubectl(&["create", "namespace", namespace], "").await.expect("a namespace of this test alone");
    }
    for values in ["", EVERYTHING] {
        let mut objects = helm::render(values).await.expect("right values");
        // The control plane does not have the CRDs of the Prometheus operator.
        objects.retain(|object| object["apiVersion"] != "monitoring.coreos.com/v1");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let apply = ["apply", "--dry-run=server", "--validate=strict", "--filename=-"];
        access.kubectl(&apply, &list).await.expect("everything is accepted");
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_release_comes_changes_goes_back_and_goes_and_leaves_nothing_that_blocks_pods() {
    let control_plane = ControlPlane::start().await;
    let access = control_plane.access();
    let home = Namespace::create(&access, "wspool-system").await;
    let chats = Namespace::create(&access, "chats").await;
    let restricted = ["label", "namespace", home.name(), "pod-security.kubernetes.io/enforce=restricted"];
    access.kubectl(&restricted, "").await.expect("a label");

    // Helm 4 applies on the server; `false` is what Helm 3 does, a merge of three manifests.
    for server_side in ["--server-side=true", "--server-side=false"] {
        let release = Release::new(&access, home.name(), "wspool");
        release.install("", &[server_side]).await.expect("it is installed");

        for pod in home.pods("app.kubernetes.io/name=wspool", 2).await {
            home.kubelet().ready(&pod, free_address()).await;
        }
        until("the operator is available", async || {
            home.kubectl(&["wait", "deployment/wspool", "--for=condition=Available", "--timeout=1s"], "").await
        })
        .await;

        // Nobody listens in the operator's pods.
        let refused = until("the webhook is in force", async || match try_pod(&chats, MEMBER).await {
            Ok(_) => Err("a pod of a pool was let in".into()),
            Err(refused) => Ok::<_, String>(refused),
        })
        .await;
        assert!(refused.contains("pods.wspool.dev"), "{refused}");
        try_pod(&chats, "{app: chat}").await.expect("a pod of no pool");

        write_authority(&home, &access.folder().join("ca.crt")).await;
        release.upgrade("log: debug", &[]).await.expect("it is upgraded");
        let renewed = write_authority(&home, &access.folder().join("front-proxy-ca.crt")).await;
        release.upgrade("log: warn", &[]).await.expect("it is upgraded again");
        assert_eq!(container(&home).await["env"][2]["value"], "warn");
        assert_eq!(webhook(&home).await["clientConfig"]["caBundle"], renewed);
        release.rollback(2).await.expect("it is rolled back");
        assert_eq!(container(&home).await["env"][2]["value"], "debug");
        assert_eq!(webhook(&home).await["clientConfig"]["caBundle"], renewed);

        chats.apply(POOL).await.expect("a pool");
        release.uninstall(&[]).await.expect("it is uninstalled");
        until("pods of pools can start", async || try_pod(&chats, MEMBER).await).await;
        chats.kubectl(&["get", "websocketpool", "chat"], "").await.expect("pools are kept");
        let kinds = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,roles,rolebindings,serviceaccounts,\
                     deployments,services,poddisruptionbudgets";
        let left =
            home.kubectl(&["get", kinds, "-A", "-l", "app.kubernetes.io/instance=wspool", "-o", "name"], "").await;
        assert_eq!(left.expect("a list"), "");
    }
}

/// Writes a certificate authority into the webhook as the operator does, and with its rights.
async fn write_authority(home: &Namespace, certificate: &Path) -> Value {
    let certificate = std::fs::read(certificate).expect("a certificate");
    let authority = serde_json::to_value(ByteString(certificate)).expect("base64");
    let mut webhook = webhook(home).await;
    webhook["clientConfig"]["caBundle"] = authority.clone();
    let patch = json!({"webhooks": [webhook]}).to_string();
    let operator = home.access().service_account(home.name(), "wspool").await;
    let operator = operator.to_str().expect("a path in UTF-8");
    let patch =
        ["--kubeconfig", operator, "patch", "mutatingwebhookconfiguration", "wspool", "--type=merge", "-p", &patch];
    home.kubectl(&patch, "").await.expect("the operator may patch its webhook");
    authority
}

async fn webhook(home: &Namespace) -> Value {
    let mut webhook = get(home, &["mutatingwebhookconfiguration", "wspool"]).await;
    webhook["webhooks"][0].take()
}

async fn container(home: &Namespace) -> Value {
    let mut deployment = get(home, &["deployment", "wspool"]).await;
    deployment["spec"]["template"]["spec"]["containers"][0].take()
}

async fn get(home: &Namespace, what: &[&str]) -> Value {
    let object = home.kubectl(&[&["get", "-o", "json"], what].concat(), "").await;
    serde_json::from_str(&object.expect("the object")).expect("JSON")
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn the_operator_may_do_its_work_in_the_watched_namespaces_and_nothing_else() {
    let control_plane = ControlPlane::start().await;
    let access = control_plane.access();
    let home = Namespace::create(&access, "wspool-system").await;
    let chats = Namespace::create(&access, "chats").await;
    let foreign = Namespace::create(&access, "foreign").await;
    let release = Release::new(&access, home.name(), "wspool");
    let targets = "targets: [{apiGroup: argoproj.io, resource: rollouts}]";
    release.install(targets, &[]).await.expect("it is installed");
    let operator = format!("system:serviceaccount:{}:wspool", home.name());

    let of_pools = [
        "list websocketpools.wspool.dev",
        "watch websocketpools.wspool.dev",
        "patch websocketpools.wspool.dev/status",
        "patch websocketpools.wspool.dev/scale",
        "watch pods",
        "patch pods",
        "delete horizontalpodautoscalers.autoscaling",
        "get deployments.apps/scale",
        "update statefulsets.apps/scale",
        "patch rollouts.argoproj.io/scale",
        "create configmaps",
        "create secrets",
        "update configmaps",
        "create secrets",
        "create services",
        "delete services",
        "update endpointslices.discovery.k8s.io",
        "create events.events.k8s.io",
        "patch events.events.k8s.io",
    ];
    let at_home = [
        "create leases.coordination.k8s.io",
        "update leases.coordination.k8s.io wspool",
        "create secrets",
        "get secrets wspool-webhook",
        "update secrets wspool-keys",
        "patch mutatingwebhookconfigurations.admissionregistration.k8s.io wspool",
    ];
    let never = [
        "get secrets",
        "list secrets",
        "get secrets database",
        "delete pods",
        "create pods",
        "create pods/exec",
        "delete websocketpools.wspool.dev",
        "update leases.coordination.k8s.io other",
        "patch mutatingwebhookconfigurations.admissionregistration.k8s.io other",
        "delete mutatingwebhookconfigurations.admissionregistration.k8s.io wspool",
        "get nodes",
    ];
    for what in of_pools {
        until_allowed(&foreign, &operator, what, true).await;
    }
    let narrowed = format!("watchNamespaces: [{}]\n{targets}", chats.name());
    release.upgrade(&narrowed, &[]).await.expect("it is upgraded");
    for what in of_pools {
        until_allowed(&chats, &operator, what, true).await;
        until_allowed(&foreign, &operator, what, false).await;
    }
    let of_routers = ["create deployments.apps", "patch deployments.apps", "delete poddisruptionbudgets.policy"];
    for what in of_routers {
        until_allowed(&chats, &operator, what, true).await;
    }
    release.upgrade(&format!("{narrowed}\nrouters: {{enabled: false}}"), &[]).await.expect("it is upgraded");
    for what in of_routers {
        until_allowed(&chats, &operator, what, false).await;
    }
    for what in at_home {
        until_allowed(&home, &operator, what, true).await;
    }
    for namespace in [&home, &chats, &foreign] {
        for what in never {
            assert!(!allowed(namespace, &operator, what).await, "the operator may {what} in {}", namespace.name());
        }
    }

    let jane = ["create", "rolebinding", "jane", "--clusterrole=edit", "--user=jane"];
    chats.kubectl(&jane, "").await.expect("a role binding");
    until_allowed(&chats, "jane", "create websocketpools.wspool.dev", true).await;
}

/// Waits for an answer: the API server hears of roles a moment after they have been written.
async fn until_allowed(namespace: &Namespace, user: &str, what: &str, wanted: bool) {
    let condition = format!("{user} may {what} in {}: {wanted}", namespace.name());
    until(&condition, async || equal(&allowed(namespace, user, what).await, &wanted)).await;
}

/// Whether the API server lets a user do something: `patch deployments.apps/scale`, or `get secrets NAME`.
async fn allowed(namespace: &Namespace, user: &str, what: &str) -> bool {
    let mut words = what.split(' ').map(String::from);
    let (verb, resource, name) = (words.next(), words.next().expect("a resource"), words.next());
    let (resource, subresource) = resource.split_once('/').unwrap_or((&resource, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let attributes = ResourceAttributes {
        namespace: Some(namespace.name().into()),
        verb,
        group: Some(group.into()),
        resource: Some(resource.into()),
        subresource: Some(subresource.into()),
        name,
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: Some(user.into()),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    let question = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let reviews = Api::all(namespace.client().clone());
    let review: SubjectAccessReview = reviews.create(&PostParams::default(), &question).await.expect("a review");
    review.status.expect("an answer").allowed
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn custom_metrics_that_another_adapter_serves_are_not_taken_over() {
    let control_plane = ControlPlane::start().await;
    let access = control_plane.access();
    let home = Namespace::create(&access, "wspool-system").await;
    let adapter = "
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta2.custom.metrics.k8s.io}
spec:
  group: custom.metrics.k8s.io
  version: v1beta2
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {namespace: monitoring, name: prometheus-adapter}
";
    access.kubectl(&["create", "-f", "-"], adapter).await.expect("another adapter");
    let release = Release::new(&access, home.name(), "wspool");
    let refused = release.install("metricsApi: {enabled: true}", &[]).await.expect_err("it is refused");
    let words = "v1beta2.custom.metrics.k8s.io is served by monitoring/prometheus-adapter already, and wspool does not \
                 take it over. Leave metricsApi.enabled false";
    assert!(refused.contains(words), "{refused}");
    release.install("", &[]).await.expect("without it there is nothing to take over");
}

//! The webhook and its certificate, at a real API server that asks it; and what `inject` writes, accepted by one.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum_server::tls_rustls::RustlsConfig;
use harness::control_plane::kubelet::free_address;
use harness::control_plane::{Access, Namespace};
use harness::until;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use operator::certificate::keeper::{Keeper, Place};
use operator::certificate::{LIFETIME, RENEWAL};
use operator::inject::command::{InjectArgs, run};
use operator::inject::{PoolFacts, Sidecar};
use operator::webhook::{self, Webhook};
use serde_json::json;
use tokio::sync::watch;

fn sidecar() -> Sidecar {
    Sidecar { image: "wspool-sidecar:test".into(), cpu: "100m".into(), memory: "128Mi".into() }
}

/// A namespace with the operator's Service in it, and a webhook configuration for pods in that namespace only.
struct Corner {
    namespace: Namespace,
    place: Place,
    configurations: Api<MutatingWebhookConfiguration>,
}

impl Corner {
    async fn make(purpose: &str) -> Self {
        let namespace = Namespace::create(&Access::shared(), purpose).await;
        let name = namespace.name().to_owned();
        let configuration = format!(
            "
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {{name: {name}}}
webhooks:
- name: pods.wspool.dev
  clientConfig: {{service: {{name: wspool, namespace: {name}, path: /mutate, port: 443}}}}
  rules: [{{apiGroups: [''], apiVersions: [v1], resources: [pods], operations: [CREATE], scope: Namespaced}}]
  namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}
  objectSelector: {{matchExpressions: [{{key: wspool.dev/pool, operator: Exists}}]}}
  failurePolicy: Fail
  reinvocationPolicy: IfNeeded
  timeoutSeconds: 5
  sideEffects: None
  admissionReviewVersions: [v1]
"
        );
        namespace.apply(&configuration).await.expect("the configuration is accepted");
        let configurations = Api::all(namespace.client().clone());
        let place = Place {
            namespace: name.clone(),
            secret: "wspool-webhook".into(),
            configuration: name,
            service: "wspool".into(),
        };
        Self { namespace, place, configurations }
    }

    /// A keeper with a connection of its own, as another replica has.
    async fn keeper(&self) -> Keeper {
        Keeper::new(Access::shared().client().await, self.place.clone())
    }

    /// The certificates that the API server trusts.
    async fn bundle(&self) -> String {
        let configuration = self.configurations.get(&self.place.configuration).await.expect("the configuration");
        let webhook = configuration.webhooks.and_then(|webhooks| webhooks.into_iter().next()).expect("a webhook");
        String::from_utf8(webhook.client_config.ca_bundle.unwrap_or_default().0).expect("PEM")
    }

    /// Serves a webhook that knows the pool `chat`, behind the Service; returns what ends it.
    async fn serve(&self) -> watch::Sender<bool> {
        let certificate = self.keeper().await.settle(SystemTime::now()).await.expect("it settles");
        let tls = RustlsConfig::from_config(Arc::new(certificate.server_config().expect("it can be served")));
        let address = free_address();
        let listener = TcpListener::bind((address, 0)).expect("the address is local");
        let port = listener.local_addr().expect("it is bound").port();
        let service = format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: wspool}}
spec: {{ports: [{{name: https, port: 443, targetPort: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: wspool, labels: {{kubernetes.io/service-name: wspool}}}}
addressType: IPv4
ports: [{{name: https, port: {port}, protocol: TCP}}]
endpoints: [{{addresses: ['{address}'], conditions: {{ready: true}}}}]
"
        );
        self.namespace.apply(&service).await.expect("the Service is accepted");
        let own = self.namespace.name().to_owned();
        let pools = Arc::new(move |namespace: &str, name: &str| {
            let facts = PoolFacts { redis: None, port: Some(3000), drain: Duration::from_secs(45) };
            (namespace == own && name == "chat").then_some(facts)
        });
        let (stop, stopped) = watch::channel(false);
        let routes = webhook::routes(Webhook { sidecar: sidecar(), pools });
        tokio::spawn(webhook::serve(listener, routes, tls, stopped));
        stop
    }
}

fn deployment(name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}, wspool.dev/pool: chat}}}}
    spec: {spec}
"
    )
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn pods_that_ask_for_it_come_out_of_the_api_server_with_the_sidecar() {
    let corner = Corner::make("webhook").await;
    let _serving = corner.serve().await;
    let plain = "{containers: [{name: app, image: chat, lifecycle: {preStop: {sleep: {seconds: 5}}}}]}";
    let fixed = "{containers: [{name: app, image: chat, resources: {limits: {cpu: '1', memory: 1Gi}}}]}";
    for (name, spec) in [("chat", plain), ("fixed", fixed)] {
        corner.namespace.apply(&deployment(name, spec)).await.expect("the Deployment is accepted");
    }

    for pod in corner.namespace.pods("app=chat", 2).await {
        let spec = pod.spec.expect("a spec");
        let sidecar = spec.init_containers.iter().flatten().next().expect("the sidecar");
        assert_eq!((sidecar.name.as_str(), sidecar.restart_policy.as_deref()), ("wspool-sidecar", Some("Always")));
        assert_eq!(spec.termination_grace_period_seconds, Some(75));
        let hook = spec.containers[0].lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        let command = hook.and_then(|hook| hook.exec.as_ref()).and_then(|exec| exec.command.clone());
        let expected = ["/wspool/bin/wspool-sidecar", "prestop", "--timeout=45s", "--sleep=5s"];
        assert_eq!(command.as_deref(), Some(&expected.map(str::to_owned)[..]));
    }
    for pod in corner.namespace.pods("app=fixed", 2).await {
        assert_eq!(pod.status.and_then(|status| status.qos_class).as_deref(), Some("Guaranteed"));
    }
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn the_sidecar_is_let_into_a_namespace_that_enforces_the_restricted_standard() {
    let corner = Corner::make("restricted").await;
    let _serving = corner.serve().await;
    let enforce = ["label", "namespace", corner.namespace.name(), "pod-security.kubernetes.io/enforce=restricted"];
    corner.namespace.kubectl(&enforce, "").await.expect("it is labelled");
    let restricted = "runAsNonRoot: true, allowPrivilegeEscalation: false, seccompProfile: {type: RuntimeDefault}";
    let security = format!("{{{restricted}, capabilities: {{drop: [ALL]}}}}");
    let spec = format!("{{containers: [{{name: app, image: chat, securityContext: {security}}}]}}");
    corner.namespace.apply(&deployment("chat", &spec)).await.expect("the Deployment is accepted");
    corner.namespace.pods("app=chat", 2).await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_refused_pod_says_why_in_its_deployment() {
    let corner = Corner::make("refused").await;
    let _serving = corner.serve().await;
    let spec = "{hostNetwork: true, containers: [{name: app, image: chat}]}";
    corner.namespace.apply(&deployment("chat", spec)).await.expect("the Deployment is accepted");
    until("the Deployment says why it has no pods", async || {
        let deployment = corner.namespace.api::<Deployment>().get("chat").await.map_err(|error| error.to_string())?;
        let conditions = deployment.status.and_then(|status| status.conditions).unwrap_or_default();
        let failure = conditions.iter().find(|condition| condition.type_ == "ReplicaFailure");
        let message = failure.and_then(|failure| failure.message.as_deref()).unwrap_or_default();
        if message.contains("remove hostNetwork, or the label wspool.dev/pool") { Ok(()) } else { Err(message.into()) }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn replicas_that_start_together_agree_on_one_certificate() {
    let corner = Corner::make("agree").await;
    let keepers = [corner.keeper().await, corner.keeper().await, corner.keeper().await];
    let now = SystemTime::now();
    let [one, two, three] = &keepers;
    let (one, two, three) = tokio::join!(one.settle(now), two.settle(now), three.settle(now));
    let certificate = one.expect("it settles");
    assert!(certificate == two.expect("it settles") && certificate == three.expect("it settles"));
    assert_eq!(corner.bundle().await, certificate.authorities());
    let secret = corner.namespace.api::<Secret>().get("wspool-webhook").await.expect("the Secret");
    assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/tls"));
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn a_certificate_near_its_end_is_renewed_once_for_all_replicas() {
    let corner = Corner::make("renew").await;
    let keepers = [corner.keeper().await, corner.keeper().await];
    let [one, two] = &keepers;
    let now = SystemTime::now();
    let first = one.settle(now).await.expect("it settles");
    assert!(first == two.settle(now).await.expect("it settles"));
    let late = now + LIFETIME - RENEWAL + Duration::from_secs(3_600);
    let (renewed, same) = tokio::join!(one.settle(late), two.settle(late));
    let renewed = renewed.expect("it settles");
    assert!(renewed != first);
    assert!(renewed == same.expect("it settles"));
}

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn what_others_overwrite_or_delete_is_put_right() {
    let corner = Corner::make("repair").await;
    let keeper = corner.keeper().await;
    let now = SystemTime::now();
    let first = keeper.settle(now).await.expect("it settles");

    let name = &corner.place.configuration;
    let emptied = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
    let emptied: Patch<()> = Patch::Json(serde_json::from_value(emptied).expect("a patch"));
    corner.configurations.patch(name, &PatchParams::default(), &emptied).await.expect("it is patched");
    assert_eq!(corner.bundle().await, "");
    assert!(keeper.settle(now).await.expect("it settles") == first);
    assert_eq!(corner.bundle().await, first.authorities());

    let secrets = corner.namespace.api::<Secret>();
    secrets.delete("wspool-webhook", &DeleteParams::default()).await.expect("it is deleted");
    let second = keeper.settle(now).await.expect("it settles");
    assert!(second != first);
    assert_eq!(corner.bundle().await, second.authorities());

    corner.configurations.delete(name, &DeleteParams::default()).await.expect("it is deleted");
    let missing = keeper.settle(now).await.expect_err("there is nothing that trusts it");
    assert!(missing.to_string().contains(&format!("cannot get the MutatingWebhookConfiguration {name}")), "{missing}");
}

const WORKLOADS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: hooks}
spec:
  selector: {matchLabels: {app: hooks}}
  template:
    metadata:
      labels: {app: hooks, wspool.dev/pool: chat}
      annotations: {wspool.dev/port: '3000', wspool.dev/container: 'app, second'}
    spec:
      containers:
      - name: app
        image: chat
        ports: [{name: ws, containerPort: 3000}, {name: admin, containerPort: 9000}]
        readinessProbe: {httpGet: {port: ws}}
        lifecycle: {preStop: {httpGet: {path: /stop, port: admin}}}
      - {name: second, image: second, lifecycle: {preStop: {exec: {command: [sh, -c, 'yes', '0755']}}}}
      initContainers:
      - {name: migrate, image: migrate}
      - {name: mesh, image: mesh, restartPolicy: Always}
      volumes:
      - {name: config, configMap: {name: chat, defaultMode: 0644}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: rooted}
spec:
  serviceName: rooted
  selector: {matchLabels: {app: rooted}}
  template:
    metadata: {labels: {app: rooted, wspool.dev/pool: chat}}
    spec:
      securityContext: {runAsUser: 0}
      resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 2, memory: 2Gi}}
      containers: [{name: app, image: chat, ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: alone, labels: {wspool.dev/pool: chat}}
spec:
  containers:
    - name: app
      image: chat
      ports:
        - containerPort: 80
";

#[tokio::test]
#[ignore = "needs a control plane: make test-api"]
async fn what_inject_writes_is_accepted_and_says_to_the_api_server_what_was_meant() {
    let namespace = Namespace::create(&Access::shared(), "inject").await;
    let args = InjectArgs { filename: vec!["-".into()], sidecar: sidecar() };
    let (mut manifest, mut log) = (Vec::new(), Vec::new());
    run(&args, WORKLOADS.as_bytes(), &mut manifest, &mut log).expect("it can be injected");
    let manifest = String::from_utf8(manifest).expect("it writes text");
    namespace.apply(&manifest).await.expect("it is accepted");

    let template =
        namespace.api::<Deployment>().get("hooks").await.expect("the Deployment").spec.expect("a spec").template;
    let spec = template.spec.expect("a spec");
    let command = |container: usize| {
        let hook = spec.containers[container].lifecycle.clone().and_then(|lifecycle| lifecycle.pre_stop);
        hook.and_then(|hook| hook.exec).and_then(|exec| exec.command).unwrap_or_default()
    };
    let prestop = ["/wspool/bin/wspool-sidecar", "prestop", "--timeout=1m"];
    assert_eq!(command(0), [&prestop[..], &["--http-get=/stop", "--port=9000"]].concat());
    assert_eq!(command(1), [&prestop[..], &["--", "sh", "-c", "yes", "0755"]].concat());
    let pod = namespace.api::<Pod>().get("alone").await.expect("the Pod").spec.expect("a spec");
    assert_eq!(pod.init_containers.map(|containers| containers.len()), Some(1));
}

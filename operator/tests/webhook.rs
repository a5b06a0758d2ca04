//! The webhook over TLS on loopback, asked as the API server asks.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum_server::tls_rustls::RustlsConfig;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use operator::certificate::Certificate;
use operator::inject::{PoolFacts, Sidecar};
use operator::webhook::{self, PATH, Pools, Webhook};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

const NAME: &str = "wspool-webhook.wspool.svc";

/// A webhook that serves, and how to end it.
struct Served {
    address: SocketAddr,
    certificate: Certificate,
    tls: RustlsConfig,
    stop: watch::Sender<bool>,
    task: JoinHandle<std::io::Result<()>>,
}

fn certificate(previous: Option<&Certificate>) -> Certificate {
    Certificate::renew(previous, &[NAME.to_owned()], SystemTime::now()).expect("it can be made")
}

/// A webhook that knows the pool `chat` in the namespace `prod`: port 3000, a drain of 45 s.
fn serve() -> Served {
    let pools: Pools = Arc::new(|namespace: &str, name: &str| {
        let facts = PoolFacts { redis: None, port: Some(3000), drain: Duration::from_secs(45) };
        (namespace == "prod" && name == "chat").then_some(facts)
    });
    let sidecar = Sidecar { image: "wspool-sidecar:test".into(), cpu: "100m".into(), memory: "128Mi".into() };
    let certificate = certificate(None);
    let tls = RustlsConfig::from_config(Arc::new(certificate.server_config().expect("it can be served")));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    let (stop, stopped) = watch::channel(false);
    let routes = webhook::routes(Webhook { sidecar, pools });
    let task = tokio::spawn(webhook::serve(listener, routes, tls.clone(), stopped));
    Served { address, certificate, tls, stop, task }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Served {
    /// Sends a body as a client that trusts `authorities`; returns what is answered.
    async fn post(&self, authorities: &str, body: impl Into<Bytes>) -> Result<(StatusCode, Bytes), Failure> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
            roots.add(authority?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
        let tcp = TcpStream::connect(self.address).await?;
        let stream = connector.connect(ServerName::try_from(NAME)?, tcp).await?;
        let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::post(PATH).header(header::HOST, NAME).header(header::CONTENT_TYPE, "application/json");
        let response = client.send_request(request.body(Full::new(body.into()))?).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        drop(client);
        connection.await??;
        Ok((status, answer))
    }

    /// Asks about a review, and checks that the answer is one to this question.
    async fn ask(&self, review: &Value) -> Value {
        let (status, answer) = self.post(self.certificate.authorities(), review.to_string()).await.expect("it answers");
        assert_eq!(status, StatusCode::OK);
        let answer: Value = serde_json::from_slice(&answer).expect("it answers in JSON");
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], review["request"]["uid"], "{answer}");
        answer["response"].clone()
    }

    async fn end(self) {
        self.stop.send(true).expect("it serves");
        self.task.await.expect("it does not panic").expect("it ends well");
    }
}

/// A review as the API server sends one.
fn review(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "prod",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}
        }
    })
}

/// A pod as the API server has it after its defaults.
fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "chat-7d4b9-", "labels": {"app": "chat", "wspool.dev/pool": "chat"}},
        "spec": {
            "containers": [{
                "name": "app",
                "image": "chat:1",
                "ports": [{"name": "ws", "containerPort": 3000, "protocol": "TCP"}],
                "resources": {},
                "volumeMounts": [{"name": "kube-api-access", "mountPath": "/var/run/secrets", "readOnly": true}]
            }],
            "volumes": [{"name": "kube-api-access", "projected": {"sources": []}}],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30
        }
    })
}

/// The pod after the patch in a response.
fn patched(mut pod: Value, response: &Value) -> Value {
    assert_eq!(response["allowed"], true, "{response}");
    assert_eq!(response["patchType"], "JSONPatch");
    let bytes: Vec<u8> = serde_json::from_value(response["patch"].clone()).expect("the patch is bytes");
    let patch: json_patch::Patch = serde_json::from_slice(&bytes).expect("it is a patch");
    json_patch::patch(&mut pod, &patch).expect("it fits the pod");
    pod
}

#[tokio::test]
async fn a_labelled_pod_is_patched_once() {
    let served = serve();
    let response = served.ask(&review(&pod())).await;
    let injected = patched(pod(), &response);
    let sidecar = &injected["spec"]["initContainers"][0];
    assert_eq!(sidecar["name"], "wspool-sidecar");
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(injected["spec"]["terminationGracePeriodSeconds"], 75);
    assert_eq!(injected["spec"]["volumes"].as_array().map(Vec::len), Some(7));

    let again = served.ask(&review(&injected)).await;
    assert_eq!((&again["allowed"], &again["patch"]), (&json!(true), &Value::Null));
    served.end().await;
}

#[tokio::test]
async fn what_does_not_ask_passes_untouched() {
    let served = serve();
    let mut unlabelled = pod();
    unlabelled["metadata"]["labels"] = json!({"app": "chat"});
    let mut update = review(&pod());
    update["request"]["operation"] = json!("UPDATE");
    let mut eviction = review(&pod());
    eviction["request"]["subResource"] = json!("eviction");
    for review in [review(&unlabelled), update, eviction] {
        let response = served.ask(&review).await;
        assert_eq!((&response["allowed"], &response["patch"]), (&json!(true), &Value::Null), "{review}");
    }
    served.end().await;
}

#[tokio::test]
async fn a_pod_that_cannot_be_injected_is_refused_with_the_reason() {
    let served = serve();
    let mut host_network = pod();
    host_network["spec"]["hostNetwork"] = json!(true);
    let mut odd = pod();
    odd["spec"]["containers"] = json!("none");
    let mut nothing = review(&pod());
    nothing["request"]["object"] = Value::Null;
    for (review, reason) in [
        (review(&host_network), "remove hostNetwork"),
        (review(&odd), "cannot read the pod: invalid type"),
        (nothing, "the request has no object"),
    ] {
        let response = served.ask(&review).await;
        assert_eq!(response["allowed"], false, "{response}");
        let message = response["status"]["message"].as_str().unwrap_or_default();
        assert!(message.starts_with("wspool") && message.contains(reason), "{message}");
    }
    served.end().await;
}

#[tokio::test]
async fn the_pools_namespace_is_the_pods() {
    let served = serve();
    let mut elsewhere = review(&pod());
    elsewhere["request"]["namespace"] = json!("test");
    let injected = patched(pod(), &served.ask(&elsewhere).await);
    assert_eq!(
        injected["spec"]["terminationGracePeriodSeconds"], 90,
        "no pool is known there: 30 s and a drain of 60 s"
    );
    served.end().await;
}

#[tokio::test]
async fn odd_input_is_an_error_and_the_next_pod_is_served() {
    let served = serve();
    let authorities = served.certificate.authorities().to_owned();
    for body in ["", "{", "\0", "\"a\"x"] {
        let (status, _) = served.post(&authorities, body).await.expect("it answers");
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body:?}");
    }
    for review in [json!({"request": {"uid": "u"}}), json!({"request": {"uid": "u", "object": {}}})] {
        let (status, answer) = served.post(&authorities, review.to_string()).await.expect("it answers");
        let answer: Value = serde_json::from_slice(&answer).expect("it answers in JSON");
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(false)), "{answer}");
        assert_eq!(answer["response"]["uid"], "u");
    }
    for body in ["1", "[]", "null", "{}"] {
        let (status, answer) = served.post(&authorities, body).await.expect("it answers");
        let answer: Value = serde_json::from_slice(&answer).expect("it answers in JSON");
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(false)), "{body}");
    }
    // It may stop reading before its answer can be read.
    let endless = served.post(&authorities, vec![b' '; 9 * 1024 * 1024]).await;
    assert!(endless.map_or(true, |(status, _)| status == StatusCode::PAYLOAD_TOO_LARGE));
    assert_eq!(served.ask(&review(&pod())).await["allowed"], true);
    served.end().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart() {
    let served = serve();
    let stranger = certificate(None);
    let before = served.post(stranger.authorities(), review(&pod()).to_string()).await;
    assert!(before.is_err(), "a client that trusts another authority refuses it");
    served.tls.reload_from_config(Arc::new(stranger.server_config().expect("it can be served")));
    let after = served.post(stranger.authorities(), review(&pod()).to_string()).await;
    assert_eq!(after.expect("it is trusted now").0, StatusCode::OK);
    served.end().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_does_not_keep_the_webhook_from_ending() {
    let served = serve();
    let silent = TcpStream::connect(served.address).await.expect("it listens");
    served.ask(&review(&pod())).await;
    served.end().await;
    drop(silent);
}

//! The control port listens to the operator alone.

use std::time::{Duration, SystemTime};

use harness::process::{Process, program};
use harness::wait::equal;
use harness::{App, Client, Guestbook, Plan, Sidecar, ports, until};
use http::Method;
use operator::control::Control;
use operator::token::{Covered, Signer, make_key};
use ring::Version;
use ring::wire::{Loads, Placed, Report, Told};

use crate::refused;

/// Where a sidecar finds its operator's keys.
const KEYS: &str = "control.pem";

fn signer() -> Signer {
    Signer::new(&make_key().expect("a key")).expect("a signer")
}

/// A request that only the operator may send.
#[derive(Clone, Debug)]
struct Request {
    method: Method,
    path: &'static str,
    body: Vec<u8>,
}

impl Request {
    fn new(method: Method, path: &'static str, body: &impl serde::Serialize) -> Self {
        Self { method, path, body: serde_json::to_vec(body).expect("JSON") }
    }

    fn empty(method: Method, path: &'static str) -> Self {
        Self { method, path, body: Vec::new() }
    }

    fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    async fn send(&self, to: &Sidecar, token: Option<&str>) -> harness::http::Answer {
        to.ask(token, self.method.clone(), self.path, self.body.clone()).await
    }
}

/// A token that is right for a request to the sidecar `a` now, but for what a case changes.
fn token(signer: &Signer, request: &Request, term: u64) -> String {
    let covered = Covered { uid: "a", term, request: &request.line(), body: &request.body };
    signer.sign(covered, SystemTime::now()).expect("a token")
}

/// A sidecar that checks tokens, half of whose keys have moved to another slot, and its operator, in its second term.
struct Scene {
    a: Sidecar,
    b: Sidecar,
    plan: Plan,
    signer: Signer,
    operator: Control,
    clients: Vec<Client>,
    _apps: [App; 2],
}

impl Scene {
    async fn new() -> Self {
        let book = Guestbook::default();
        let apps = [App::start("a", &book).await, App::start("b", &book).await];
        let signer = signer();
        let start = |name| Sidecar::named(name).with_file("--control-keys", KEYS, signer.public());
        let a = start("a").upstream(apps[0].address).start().await;
        let b = start("b").upstream(apps[1].address).start().await;
        let operator = Control::signed(signer.clone());
        let mut scene = Self { a, b, plan: Plan::new(), signer, operator, clients: Vec::new(), _apps: apps };
        scene.plan.placement.version.term = 2;
        scene.plan.hold(&[(0, &scene.a)]);
        scene.publish().await;
        for number in 0..20 {
            scene.clients.push(Client::connect(scene.a.listen, &format!("user-{number}")).await);
        }
        scene.plan.hold(&[(0, &scene.a), (1, &scene.b)]);
        scene.publish().await;
        assert!(scene.report().await.moved > 0);
        scene
    }

    async fn publish(&self) {
        for sidecar in [&self.b, &self.a] {
            let placed = Placed { target: sidecar.name.clone(), placement: self.plan.placement.clone() };
            self.operator.place(&sidecar.control.to_string(), &placed).await.expect("a report");
        }
    }

    async fn report(&self) -> Report {
        self.operator.status(&self.a.control.to_string(), Some("a")).await.expect("a report")
    }

    /// Everything that only the operator may do, each time with an effect that would be seen.
    fn requests(&self) -> [Request; 6] {
        let mut plan = self.plan.clone();
        plan.hold(&[(0, &self.b)]);
        let placed = Placed { target: "a".into(), placement: plan.placement };
        let loads = Loads { version: self.plan.placement.version, ..Loads::default() };
        [
            Request::new(Method::PUT, "/v1/placement", &placed),
            Request::new(Method::PUT, "/v1/evictions", &self.plan.grant(&self.a, 1_000)),
            Request::new(Method::PUT, "/v1/loads", &Told { target: "a".to_owned(), loads }),
            Request::empty(Method::PUT, "/v1/drain"),
            Request::empty(Method::DELETE, "/v1/drain"),
            Request::empty(Method::GET, "/v1/status"),
        ]
    }

    async fn denials(&self, reason: &str) -> u64 {
        self.a.metric(&format!("wspool_control_denied_total{{reason=\"{reason}\"}}")).await
    }

    async fn denied(&self, request: &Request, token: Option<&str>, (status, title): (u16, &str)) {
        let before = self.denials(title).await;
        let answer = request.send(&self.a, token).await;
        refused(&answer, status, title, &format!("{} with {token:?}", request.line()));
        assert_eq!(self.denials(title).await, before + 1, "{title} is not counted");
    }
}

#[tokio::test]
async fn whatever_the_operator_did_not_sign_for_this_request_changes_nothing() {
    let mut scene = Scene::new().await;
    let before = scene.report().await;
    let stranger = signer();
    for request in scene.requests() {
        let line = request.line();
        let right = Covered { uid: "a", term: 2, request: &line, body: &request.body };
        let sign = |covered| scene.signer.sign(covered, SystemTime::now()).expect("a token");
        let at = |time| scene.signer.sign(right, time).expect("a token");
        let other_request = if request.method == Method::GET { "PUT /v1/status" } else { "GET /v1/status" };
        let (claims_and_signature, genuine) = (stranger.sign(right, SystemTime::now()).expect("a token"), sign(right));
        let payload = claims_and_signature.split('.').nth(1).expect("claims");
        let (beginning, signature) = genuine.rsplit_once('.').expect("a signature");
        let unsigned = "eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0"; // {"typ":"JWT","alg":"none"}
        let mut cases = vec![
            (None, (401, "missing")),
            (Some(String::new()), (401, "missing")),
            (Some("a.b.c".into()), (401, "forged")),
            (Some(claims_and_signature.clone()), (401, "forged")),
            (Some(format!("{unsigned}.{payload}.")), (401, "forged")),
            (Some(format!("{beginning}.{}", "A".repeat(signature.len()))), (401, "forged")),
            (Some(at(SystemTime::now() - Duration::from_secs(60))), (401, "expired")),
            (Some(at(SystemTime::now() + Duration::from_secs(60))), (401, "expired")),
            (Some(sign(Covered { uid: "b", ..right })), (403, "other-target")),
            (Some(sign(Covered { request: other_request, ..right })), (403, "other-request")),
            (Some(sign(Covered { body: b"something else", ..right })), (403, "other-request")),
        ];
        if request.method != Method::GET {
            // A new leader may ask before it knows its term.
            cases.push((Some(sign(Covered { term: 1, ..right })), (403, "older-term")));
        }
        for (token, expected) in cases {
            scene.denied(&request, token.as_deref(), expected).await;
        }
    }
    assert_eq!(scene.report().await, before);
    for client in &mut scene.clients {
        client.check().await;
    }
}

#[tokio::test]
async fn the_operators_own_requests_do_what_they_say() {
    let scene = Scene::new().await;
    let [place, grant, _, drain, call_off, status] = scene.requests();
    let right = async |request: &Request| -> Report {
        request.send(&scene.a, Some(&token(&scene.signer, request, 2))).await.json().expect("a report")
    };
    let moved = right(&status).await.moved;
    right(&grant).await;
    until("all that moved is evicted", async || equal(&scene.report().await.evicted, &moved)).await;
    assert!(right(&drain).await.draining);
    assert!(!right(&call_off).await.draining);
    assert_eq!(right(&place).await.slot, None);
}

#[tokio::test]
async fn a_token_is_good_once() {
    let mut scene = Scene::new().await;
    let [_, mut grant, loads, drain, call_off, status] = scene.requests();
    // As it is in force already.
    let placed = Placed { target: "a".into(), placement: scene.plan.placement.clone() };
    let place = Request::new(Method::PUT, "/v1/placement", &placed);
    grant.body = serde_json::to_vec(&scene.plan.grant(&scene.a, 0)).expect("JSON");
    for request in [place, grant, loads, drain, call_off, status] {
        let token = token(&scene.signer, &request, 2);
        let first = request.send(&scene.a, Some(&token)).await;
        assert!(first.status.is_success(), "{}: {first:?}", request.line());
        scene.denied(&request, Some(&token), (403, "replayed")).await;
    }
    let report = scene.report().await;
    assert!(!report.draining && report.evicted == 0, "{report:?}");
    for client in &mut scene.clients {
        client.check().await;
    }
}

#[tokio::test]
async fn a_leader_that_was_replaced_is_denied_from_then_on() {
    let mut scene = Scene::new().await;
    let old = scene.requests();
    scene.plan.placement.version = Version { term: 3, epoch: 3 };
    scene.publish().await;
    for request in old {
        let token = token(&scene.signer, &request, 2);
        if request.method == Method::GET {
            // It learns so who leads.
            let report: Report = request.send(&scene.a, Some(&token)).await.json().expect("a report");
            assert_eq!(report.version.term, 3);
        } else {
            scene.denied(&request, Some(&token), (403, "older-term")).await;
        }
    }
    let report = scene.report().await;
    assert!(!report.draining && report.evicted == 0 && report.version.term == 3, "{report:?}");
}

#[tokio::test]
async fn keys_that_come_later_or_are_renewed_are_taken_up_without_a_restart() {
    let (old, new) = (signer(), signer());
    let start = Sidecar::named("a").with("--upstream", "127.0.0.1:1");
    let file = start.path(KEYS).to_string_lossy().into_owned();
    let a = start.with("--control-keys", &file).start().await;
    let status = Request::empty(Method::GET, "/v1/status");
    let ask = async |signer: &Signer| status.send(&a, Some(&token(signer, &status, 1))).await;

    refused(&ask(&old).await, 401, "no-keys", "before the keys are there");
    a.write_file(KEYS, old.public());
    assert!(ask(&old).await.status.is_success());
    refused(&ask(&new).await, 401, "forged", "a key that is not there yet");
    a.write_file(KEYS, &format!("{}\n{}", new.public(), old.public()));
    assert!(ask(&old).await.status.is_success() && ask(&new).await.status.is_success());
    for nonsense in ["", "no key\n", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
        a.write_file(KEYS, nonsense);
        assert!(ask(&new).await.status.is_success(), "{nonsense:?} changed the keys");
    }
    a.write_file(KEYS, new.public());
    refused(&ask(&old).await, 401, "forged", "a key that is gone");
    assert!(ask(&new).await.status.is_success());
    std::fs::remove_file(a.folder().join(KEYS)).expect("the file");
    assert!(ask(&new).await.status.is_success(), "a file that vanishes changes nothing");
}

#[tokio::test]
async fn a_control_port_that_others_can_reach_does_not_open_without_keys() {
    let port = ports::free().port();
    for open in [format!("0.0.0.0:{port}"), format!("[::]:{port}"), format!("192.0.2.1:{port}")] {
        let folder = tempfile::tempdir().expect("a folder");
        let listen = ports::free().to_string();
        let arguments = ["--listen", &listen, "--upstream", "127.0.0.1:1", "--control", &open];
        let mut process = Process::start("sidecar", &program("wspool-sidecar"), arguments, &folder.path().join("log"));
        assert_ne!(process.ended().await.code(), Some(0), "it opened {open}");
        let log = process.log();
        assert!(log.contains(&open) && log.contains("no verification key"), "{log}");
    }
}

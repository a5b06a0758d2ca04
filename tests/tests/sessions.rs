//! Sessions that span requests, with the servers and the clients of the libraries that have them.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use harness::http::{Answer, Http};
use harness::operator::Files;
use harness::plan::taken_by_last;
use harness::script::Script;
use harness::wait::equal;
use harness::{Operator, Plan, Sidecar, Wire, until};
use http::{Method, StatusCode};
use ring::settings::{Notice, NoticeProtocol, Settings};
use serde_json::Value;

/// A server of a library whose keys all go to another when the test says so.
struct Scene {
    from: Sidecar,
    to: Sidecar,
    plan: Plan,
    http: Http,
    _servers: Script,
}

impl Scene {
    async fn new(library: &str, protocol: NoticeProtocol) -> Self {
        let (servers, [at_from, at_to]) = serve(library).await;
        let from = Sidecar::named("from").upstream(at_from).start().await;
        let to = Sidecar::named("to").upstream(at_to).start().await;
        let notice = Notice { protocol, ..Notice::default() };
        let mut plan = Plan::with(Settings { notice, ..Settings::default() });
        plan.hold(&[(0, &from)]);
        plan.publish(&[&from, &to]).await;
        Self { from, to, plan, http: Http::default(), _servers: servers }
    }

    async fn hand_over(&mut self) {
        self.plan.hold(&[(0, &self.to)]);
        self.plan.publish(&[&self.from, &self.to]).await;
    }

    /// A request through each sidecar in turn.
    async fn send(&self, at: SocketAddr, method: Method, target: &str, body: &str) -> Answer {
        self.http.send(method, at, target, body.to_owned()).await.expect("an answer")
    }

    async fn poll(&self, at: SocketAddr, sid: &str) -> String {
        text(&self.send(at, Method::GET, &engine(Some(sid)), "").await)
    }

    /// Begins a session of Socket.IO; returns its name.
    async fn open(&self, at: SocketAddr) -> String {
        let opened = text(&self.send(at, Method::GET, &engine(None), "").await);
        let open: Value = serde_json::from_str(opened.strip_prefix('0').expect("an open packet")).expect("JSON");
        let sid = open["sid"].as_str().expect("a session").to_owned();
        assert_eq!(text(&self.send(at, Method::POST, &engine(Some(&sid)), "40").await), "ok");
        assert!(self.poll(at, &sid).await.starts_with("40"), "a namespace");
        sid
    }

    /// Which server has a session.
    async fn server_of(&self, at: SocketAddr, sid: &str) -> String {
        assert_eq!(text(&self.send(at, Method::POST, &engine(Some(sid)), "420[\"where\"]").await), "ok");
        self.poll(at, sid).await
    }
}

/// A library's server as two pods have it, and where the two listen.
async fn serve(library: &str) -> (Script, [SocketAddr; 2]) {
    let mut servers = Script::library("server.js", &[library, "a", "b"]);
    let mut port = async |name| servers.says(&format!("port {name} ")).await.parse::<u16>().expect("a port");
    let addresses = [port("a").await, port("b").await].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    (servers, addresses)
}

fn engine(sid: Option<&str>) -> String {
    let sid = sid.map(|sid| format!("&sid={sid}")).unwrap_or_default();
    format!("/socket.io/?user=ann&EIO=4&transport=polling{sid}")
}

fn text(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    String::from_utf8_lossy(&answer.body).into_owned()
}

#[tokio::test]
async fn a_session_that_polls_goes_on_where_it_is_held_and_is_ended_there_before_its_key_goes() {
    let mut scene = Scene::new("socketio-upgrade", NoticeProtocol::SocketIO).await;
    let entries = [scene.from.listen, scene.to.listen];
    let sid = scene.open(scene.to.listen).await;
    assert_eq!(scene.from.status().await.connections, 1);
    scene.hand_over().await;
    for entry in entries {
        assert_eq!(scene.server_of(entry, &sid).await, "430[\"a\"]");
    }
    assert_eq!((scene.from.status().await.moved, scene.to.status().await.connections), (1, 0));

    let sources = [&scene.from];
    let (polled, ()) = tokio::join!(scene.poll(scene.to.listen, &sid), scene.plan.move_all(&sources, 1));
    assert_eq!(polled, "6", "the app answers a poll that waits with nothing when its session ends");
    let from = scene.from.status().await;
    assert_eq!((from.connections, from.evicted), (0, 1));
    let clean = "wspool_evictions_total{outcome=\"clean\"}";
    assert_eq!(scene.from.metric(clean).await, 1);
    for entry in entries {
        let answer = scene.send(entry, Method::GET, &engine(Some(&sid)), "").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
    }

    let sid = scene.open(scene.from.listen).await;
    for entry in entries {
        assert_eq!(scene.server_of(entry, &sid).await, "430[\"b\"]");
    }
    let to = scene.to.status().await;
    assert_eq!((to.connections, to.returned), (1, 1));
}

#[tokio::test]
async fn a_session_goes_on_as_the_websocket_that_it_gets() {
    let mut scene = Scene::new("socketio-upgrade", NoticeProtocol::SocketIO).await;
    let sid = scene.open(scene.from.listen).await;
    scene.hand_over().await;
    let target = engine(Some(&sid)).replace("polling", "websocket");
    let mut client = Wire::dial(scene.to.listen).await;
    client.send(handshake(&target)).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "), "it belongs to the server that knows it");
    let status = scene.from.status().await;
    assert_eq!((status.connections, status.moved), (1, 1));
    scene.plan.move_all(&[&scene.from], 1).await;
    assert_eq!(client.exactly(4).await[2..], 1012_u16.to_be_bytes());
}

#[tokio::test]
async fn a_negotiated_connection_is_taken_up_where_it_was_negotiated_though_its_key_leaves() {
    let mut scene = Scene::new("signalr-negotiate", NoticeProtocol::SignalR).await;
    let negotiated = scene.send(scene.to.listen, Method::POST, "/hub/negotiate?user=ann&negotiateVersion=1", "").await;
    let negotiated: Value = negotiated.json().expect("a negotiation");
    let token = negotiated["connectionToken"].as_str().expect("a token");
    scene.hand_over().await;
    let grant = scene.plan.grant(&scene.from, 1);
    until("its eviction has begun", async || equal(&scene.from.grant(&grant).await.in_flight, &1)).await;

    let mut client = Wire::dial(scene.to.listen).await;
    client.send(handshake(&format!("/hub?user=ann&id={token}"))).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "), "no other server knows it");
    scene.plan.move_all(&[&scene.from], 0).await;
    assert_eq!(client.exactly(4).await[2..], 1001_u16.to_be_bytes());
    assert_eq!(scene.from.status().await.evicted, 1);
}

fn handshake(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

#[tokio::test]
async fn clients_that_poll_are_moved_like_others_and_those_that_connect_meanwhile_lose_no_session() {
    let (_servers, [at_a, at_b]) = serve("socketio-upgrade").await;
    let a = Sidecar::named("a").upstream(at_a).start().await;
    let b = Sidecar::named("b").upstream(at_b).start().await;
    let spec = "rebalance: {settle: 200ms, rate: 100}, notice: {protocol: SocketIO}";
    let operator = Operator::start(Files::new(spec)).await;
    operator.files().list(&[&a], &[]);
    operator.stable(1).await;
    let entry = a.listen.to_string();
    let polling = Script::library("clients.js", &["socketio-polling", &entry, "20"]);
    let all: BTreeSet<String> = (0..20).map(|number| format!("user-{number}")).collect();
    until("all that poll are at the first server", async || equal(&polling.clients_at("a"), &all)).await;
    assert_eq!(a.status().await.connections, 20);

    operator.files().list(&[&a, &b], &[]);
    let upgrading = Script::library("clients.js", &["socketio-upgrade", &entry, "60"]);
    let moved = |count| taken_by_last(2, count).into_iter().collect::<BTreeSet<_>>();
    until("those that moved are back", async || equal(&polling.clients_at("b"), &moved(20))).await;
    until("those that came meanwhile are where they belong", async || equal(&upgrading.clients_at("b"), &moved(60)))
        .await;
    let pool = operator.stable(2).await;
    assert_eq!(pool["connections"], 80, "{pool}");
}

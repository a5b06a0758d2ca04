//! Sidecars of a pool believe one another by the pool's secret, or, without one, by their addresses.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use harness::http::Answer;
use harness::wait::equal;
use harness::{App, Backend, Client, Crowd, Guestbook, Plan, Sidecar, Wire, until};
use http::{HeaderMap, HeaderName, StatusCode};
use ring::claim::ClaimAnswer;
use ring::wire::{Claim, Draining, Peer, header};
use sidecar::auth::peer::{Covered, HEADERS, PeerAuth};
use sidecar::auth::sha256;
use tempfile::TempDir;

use crate::refused;

/// Where a sidecar finds its pool's secrets.
const SECRETS: &str = "peers";
const SECRET: &str = "a secret that only this pool has\n";
const OTHER: &str = "a secret of quite another pool\n";
const CLAIMS: &str = "/.wspool/v1/claims";
pub(crate) const DRAINING: &str = "/.wspool/v1/draining";
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Somebody who knows a secret.
pub(crate) struct Member {
    auth: PeerAuth,
    _folder: TempDir,
}

impl Member {
    pub(crate) fn with(secret: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        std::fs::write(&file, secret).expect("a file in a temporary folder");
        Self { auth: PeerAuth::new(file), _folder: folder }
    }
}

/// A request as sidecar `b` would send it to sidecar `a`, but for what a case changes.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    method: &'static str,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Letter {
    fn new(method: &'static str, target: &str, headers: &[(&'static str, &str)], body: &str) -> Self {
        let mut letter = Self { method, target: target.to_owned(), headers: Vec::new(), body: body.to_owned() };
        letter = letter.set(header::FROM, "b").set(header::TARGET, "a");
        headers.iter().fold(letter, |letter, (name, value)| letter.set(name, value))
    }

    /// With a body and its digest.
    pub(crate) fn json(method: &'static str, target: &str, body: &impl serde::Serialize) -> Self {
        let body = serde_json::to_string(body).expect("JSON");
        Self::new(method, target, &[(header::DIGEST, &sha256(body.as_bytes()))], &body)
    }

    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self
    }

    pub(crate) fn signed(self, by: &Member) -> Self {
        self.signed_at(by, SystemTime::now())
    }

    fn signed_at(self, by: &Member, time: SystemTime) -> Self {
        let headers = HEADERS.map(|name| self.value(name).as_bytes());
        let covered = Covered { method: self.method, target: &self.target, headers };
        let time = time.duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
        let proof = by.auth.sign(&covered, time.try_into().expect("a time of this age")).expect("a secret");
        self.set(header::AUTH, &proof)
    }

    pub(crate) fn proof(&self) -> &str {
        self.value(header::AUTH)
    }

    fn value(&self, name: &str) -> &str {
        self.headers.iter().find(|(other, _)| *other == name).map_or("", |(_, value)| value)
    }

    fn bytes(&self, extra: &str) -> String {
        let Self { method, target, headers, body } = self;
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{extra}");
        for (name, value) in headers {
            write!(text, "{name}: {value}\r\n").expect("memory");
        }
        if !body.is_empty() {
            write!(text, "Content-Length: {}\r\n", body.len()).expect("memory");
        }
        text + "\r\n" + body
    }

    /// Sends it as a plain request.
    pub(crate) async fn ask(&self, to: &Sidecar) -> Answer {
        self.ask_over(Wire::dial(to.listen).await).await
    }

    async fn ask_over(&self, mut wire: Wire) -> Answer {
        wire.send(self.bytes("Connection: close\r\n")).await;
        let text = String::from_utf8(wire.rest().await.expect("an answer")).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            headers.append(HeaderName::try_from(name).expect("a name"), value.parse().expect("a value"));
        }
        let status: StatusCode = status.parse().expect("a status");
        Answer { status, headers, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    /// Sends it as a handshake; returns the name of the app that greets it.
    async fn knock(&self, at: &Sidecar) -> String {
        let mut wire = Wire::dial(at.listen).await;
        wire.send(self.bytes(UPGRADE)).await;
        let head = wire.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{self:?} was answered {head}");
        let frame = wire.exactly(2).await;
        String::from_utf8(wire.exactly(frame[1].into()).await).expect("a greeting")
    }

    /// The same request as those may send it who do not know the secret, or who have seen another request.
    fn impostors(&self) -> Vec<(&'static str, Self)> {
        let (member, stranger) = (Member::with(SECRET), Member::with(OTHER));
        let signed = self.clone().signed(&member);
        let cut = signed.proof().rsplit_once('.').expect("a MAC").0.to_owned();
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        let elsewhere = Self { target: format!("{}?", self.target), ..self.clone() };
        let by_patch = Self { method: "PATCH", ..self.clone() };
        vec![
            ("no proof", self.clone()),
            ("an empty proof", self.clone().set(header::AUTH, "")),
            ("a proof without its MAC", self.clone().set(header::AUTH, &cut)),
            ("an empty MAC", self.clone().set(header::AUTH, &format!("{cut}."))),
            ("another secret", self.clone().signed(&stranger)),
            ("an old proof", self.clone().signed_at(&member, long_ago)),
            ("a proof of the future", self.clone().signed_at(&member, SystemTime::now() + Duration::from_secs(60))),
            ("the proof of another target", self.clone().set(header::AUTH, elsewhere.signed(&member).proof())),
            ("the proof of another method", self.clone().set(header::AUTH, by_patch.signed(&member).proof())),
            ("another sender", signed.clone().set(header::FROM, "c")),
            ("another key", signed.clone().set(header::KEY, "mallory")),
            ("another epoch", signed.clone().set(header::EPOCH, "99")),
            ("another digest", signed.clone().set(header::DIGEST, &sha256(b"another body"))),
            (
                "the proof of a request to another sidecar",
                self.clone().set(header::TARGET, "c").signed(&member).set(header::TARGET, "a"),
            ),
            (
                "fallback added or taken away",
                match signed.headers.iter().any(|(name, _)| *name == header::FALLBACK) {
                    true => signed.without(header::FALLBACK),
                    false => signed.set(header::FALLBACK, "1"),
                },
            ),
        ]
    }
}

/// Two servers that share a secret.
struct Scene {
    a: Sidecar,
    b: Sidecar,
    plan: Plan,
    book: Guestbook,
    _apps: [App; 2],
}

impl Scene {
    async fn new() -> Self {
        let book = Guestbook::default();
        let apps = [App::start("a", &book).await, App::start("b", &book).await];
        let start = |name| Sidecar::named(name).with_file("--peer-keys", SECRETS, SECRET);
        let a = start("a").upstream(apps[0].address).start().await;
        let b = start("b").upstream(apps[1].address).start().await;
        let mut plan = Plan::new();
        plan.hold(&[(0, &a), (1, &b)]);
        plan.publish(&[&a, &b]).await;
        Self { a, b, plan, book, _apps: apps }
    }

    /// `b` claims a key under the next epoch.
    fn claim(&self, key: &str) -> Letter {
        let mut version = self.plan.placement.version;
        version.epoch += 1;
        let claimant = Peer { uid: "b".into(), address: self.b.listen.to_string() };
        let claim = Claim { key: key.into(), version, pool_uid: "pool-1".into(), claimant, wait_ms: 0, hears: false };
        Letter::json("POST", CLAIMS, &claim)
    }

    /// `b` says that it drains, or no longer does.
    fn draining(draining: bool) -> Letter {
        Letter::json("PUT", DRAINING, &Draining { pool_uid: "pool-1".into(), uid: "b".into(), draining, gone: false })
    }
}

async fn false_peers(sidecar: &Sidecar) -> u64 {
    sidecar.metric("wspool_false_peers_total").await
}

#[tokio::test]
async fn an_impostor_neither_claims_a_key_nor_tells_of_a_drain() {
    let scene = Scene::new().await;
    let mine = scene.plan.keys_of(&scene.a, 1).remove(0);
    let theirs = scene.plan.keys_of(&scene.b, 1).remove(0);
    let mut bystander = Client::connect(scene.a.listen, &mine).await;
    let free = scene.plan.keys_of(&scene.a, 2).remove(1);
    for letter in [scene.claim(&free), Scene::draining(true)] {
        for (what, forged) in letter.impostors() {
            let before = false_peers(&scene.a).await;
            refused(&forged.ask(&scene.a).await, 403, "not-a-peer", what);
            assert_eq!(false_peers(&scene.a).await, before + 1, "{what} is not counted");
        }
        refused(&letter.without(header::FROM).ask(&scene.a).await, 403, "not-a-peer", "a client");
        assert_eq!(Client::connect(scene.a.listen, &free).await.server, "a", "the key is still here");
        assert_eq!(Client::connect(scene.a.listen, &theirs).await.server, "b", "it does not drain");
    }
    bystander.check().await;
    let visitors = scene.book.visits();
    assert!(visitors.iter().all(|visit| [&mine, &free, &theirs].contains(&&visit.key)), "{visitors:?}");
}

#[tokio::test]
async fn a_peer_claims_a_key_and_tells_of_a_drain_and_each_proof_holds_once() {
    let scene = Scene::new().await;
    let member = Member::with(SECRET);
    let theirs = scene.plan.keys_of(&scene.b, 1).remove(0);
    let told = Scene::draining(true).signed(&member);
    assert_eq!(told.ask(&scene.a).await.status, StatusCode::NO_CONTENT);
    assert_eq!(Client::connect(scene.a.listen, &theirs).await.server, "a", "it drains");
    assert_eq!(Scene::draining(false).signed(&member).ask(&scene.a).await.status, StatusCode::NO_CONTENT);
    refused(&told.ask(&scene.a).await, 403, "not-a-peer", "a replay");
    until("it drains no more", async || {
        let server = Client::connect(scene.a.listen, &theirs).await.server;
        equal(&server.as_str(), &"b")
    })
    .await;

    let key = scene.plan.keys_of(&scene.a, 1).remove(0);
    let claim = scene.claim(&key).signed(&member);
    let changed = Letter { body: claim.body.replace(&key, "another"), ..claim.clone() };
    let answer: ClaimAnswer<Peer> = claim.ask(&scene.a).await.json().expect("an answer");
    assert_eq!(answer, ClaimAnswer::Released { away: 0, receivers: Some(0) });
    refused(&claim.ask(&scene.a).await, 403, "not-a-peer", "a replay");
    let (status, _) = Client::refusal(scene.a.listen, &key).await;
    assert_eq!(status, 503, "the key is promised to a placement that nobody has yet");
    let resigned = changed.without(header::AUTH).signed(&member);
    assert_eq!(resigned.ask(&scene.a).await.status, StatusCode::BAD_REQUEST, "a body that its digest is not of");
    let misdirected = scene.claim(&key).set(header::TARGET, "c").signed(&member);
    assert_eq!(misdirected.ask(&scene.a).await.status, StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn a_client_that_poses_as_a_peer_is_routed_as_the_client_it_is() {
    let scene = Scene::new().await;
    let mine = scene.plan.keys_of(&scene.a, 1).remove(0);
    let theirs = scene.plan.keys_of(&scene.b, 1).remove(0);
    let mut bystander = Client::connect(scene.a.listen, &mine).await;
    // Who is believed enters where it says, under the key that it says.
    let target = format!("/?user={theirs}");
    let letter = Letter::new("GET", &target, &[(header::KEY, &theirs), (header::FALLBACK, "1")], "");
    for (what, forged) in letter.impostors() {
        let before = false_peers(&scene.a).await;
        assert_eq!(forged.knock(&scene.a).await, "b", "{what}");
        assert_eq!(false_peers(&scene.a).await, before + 1, "{what} is not counted");
    }
    let signed = letter.signed(&Member::with(SECRET));
    assert_eq!(signed.knock(&scene.a).await, "a", "a peer is believed");
    until("it has gone", async || equal(&scene.a.status().await.connections, &1)).await;
    assert_eq!(signed.knock(&scene.a).await, "b", "a replay is not");
    assert_eq!(false_peers(&scene.b).await, 0, "what a client says is not passed on");
    bystander.check().await;
}

#[tokio::test]
async fn a_plain_request_that_poses_as_a_peers_is_routed_as_the_clients_it_is() {
    let apps = [Backend::start().await, Backend::start().await];
    let start = |name| Sidecar::named(name).with_file("--peer-keys", SECRETS, SECRET);
    let a = start("a").upstream(apps[0].address).start().await;
    let b = start("b").upstream(apps[1].address).start().await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &a), (1, &b)]);
    plan.publish(&[&a, &b]).await;
    let theirs = plan.keys_of(&b, 1).remove(0);
    let target = format!("/poll?user={theirs}");
    let letter = Letter::new("POST", &target, &[(header::KEY, &theirs), (header::FALLBACK, "1")], "ping");
    let reaches = async |letter: &Letter, app: &Backend| {
        let asking = letter.ask(&a);
        let answering = async {
            let mut wire = app.accept().await;
            let head = wire.head().await;
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            head.to_lowercase()
        };
        let (answer, head) = tokio::join!(asking, answering);
        assert_eq!(answer.status, StatusCode::OK, "{letter:?}");
        for name in [header::FROM, header::KEY, header::AUTH, header::TARGET, header::FALLBACK, header::DIGEST] {
            assert!(!head.contains(name), "the app was told {name}: {head}");
        }
    };
    for (_, forged) in letter.impostors() {
        reaches(&forged, &apps[1]).await;
    }
    assert_eq!((false_peers(&a).await, false_peers(&b).await), (15, 0));
    reaches(&letter.signed(&Member::with(SECRET)), &apps[0]).await;
}

#[tokio::test]
async fn no_client_gets_a_sidecar_to_sign_for_it() {
    let scene = Scene::new().await;
    // Its key would take it to `b`, with the proof of `a`.
    let theirs = scene.plan.keys_of(&scene.b, 1).remove(0);
    let drain = Draining { pool_uid: "pool-1".into(), uid: "b".into(), draining: true, gone: false };
    for path in [DRAINING, CLAIMS, "/.wspool/v2/anything"] {
        let letter = Letter::json("PUT", &format!("{path}?user={theirs}"), &drain).without(header::FROM);
        refused(&letter.ask(&scene.a).await, 403, "not-a-peer", path);
    }
    assert_eq!(Client::connect(scene.b.listen, &theirs).await.server, "b", "it does not drain");
    assert_eq!(scene.book.visits().len(), 1, "nothing reached an app");
}

#[tokio::test]
async fn sidecars_that_share_a_secret_hand_connections_over_and_claim_keys() {
    let mut scene = Scene::new().await;
    let router = Sidecar::named("router").with("--role", "router").with_file("--peer-keys", SECRETS, SECRET);
    let router = router.start().await;
    scene.plan = Plan::new();
    scene.plan.placement.version.term = 2;
    scene.plan.others(&[&router, &scene.b]);
    scene.plan.hold(&[(0, &scene.a)]);
    scene.plan.publish(&[&scene.a, &scene.b, &router]).await;
    let mut crowd = Crowd::default();
    for number in 0..60 {
        crowd.join(&format!("user-{}", number / 3), &[router.listen, scene.b.listen]);
    }
    crowd.settled().await;
    scene.plan.hold(&[(0, &scene.a), (1, &scene.b)]);
    scene.plan.publish(&[&scene.a, &scene.b, &router]).await;
    scene.plan.move_all(&[&scene.a, &scene.b], 20).await;
    crowd.at_home(|key| scene.plan.owner(key)).await;
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
    let moved = crowd.lives().iter().filter(|life| scene.plan.owner(&life.key) == "b").count();
    assert_eq!(scene.b.status().await.returned, moved as u64, "whoever returns was claimed");
    for sidecar in [&scene.a, &scene.b, &router] {
        assert_eq!(false_peers(sidecar).await, 0, "at {}", sidecar.name);
        assert_eq!(sidecar.metric("wspool_claims_unanswered_total").await, 0, "at {}", sidecar.name);
    }
}

#[tokio::test]
async fn a_secret_is_renewed_in_two_steps_and_nobody_is_doubted() {
    let scene = Scene::new().await;
    let theirs = scene.plan.keys_of(&scene.b, 1).remove(0);
    let mine = scene.plan.keys_of(&scene.a, 1).remove(0);
    let both_ways = async || {
        assert_eq!(Client::connect(scene.a.listen, &theirs).await.server, "b");
        assert_eq!(Client::connect(scene.b.listen, &mine).await.server, "a");
    };
    // The kubelets are not equally fast: after each of these the others still have what was before.
    let (with_new, new_first) = (format!("{SECRET}{OTHER}"), format!("{OTHER}{SECRET}"));
    for secrets in [&with_new, &new_first, OTHER] {
        for sidecar in [&scene.a, &scene.b] {
            sidecar.write_file(SECRETS, secrets);
            both_ways().await;
        }
    }
    for nonsense in ["", "too short\n"] {
        scene.a.write_file(SECRETS, nonsense);
        both_ways().await;
    }
    assert_eq!((false_peers(&scene.a).await, false_peers(&scene.b).await), (0, 0));
    let signed = scene.claim(&mine).signed(&Member::with(SECRET));
    refused(&signed.ask(&scene.a).await, 403, "not-a-peer", "the old secret");
}

#[tokio::test]
async fn a_secret_that_is_not_there_yet_makes_nobody_a_peer() {
    let scene = Scene::new().await;
    let start = Sidecar::named("a").with("--upstream", "127.0.0.1:1");
    let file = start.path(SECRETS).to_string_lossy().into_owned();
    let a = start.with("--peer-keys", &file).start().await;
    scene.plan.publish(&[&a]).await;
    for letter in [Scene::draining(true), Scene::draining(true).signed(&Member::with(SECRET))] {
        refused(&letter.ask(&a).await, 403, "not-a-peer", "before the secret is there");
    }
    a.write_file(SECRETS, SECRET);
    let signed = Scene::draining(true).signed(&Member::with(SECRET));
    assert_eq!(signed.ask(&a).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn without_a_secret_a_peer_is_believed_by_its_address_alone() {
    let (a, b) = (Sidecar::named("a"), Sidecar::named("b"));
    let (a, b) = (a.with("--upstream", "127.0.0.1:1").start().await, b.with("--upstream", "127.0.0.1:1").start().await);
    let letter = Scene::draining(true);
    refused(&letter.ask(&a).await, 403, "not-a-peer", "before the pool is known");
    let mut plan = Plan::new();
    plan.hold(&[(0, &a), (1, &b)]);
    plan.publish(&[&a]).await;
    let stranger: IpAddr = [127, 0, 0, 2].into();
    let answer = letter.ask_over(Wire::dial_from(stranger, a.listen).await).await;
    refused(&answer, 403, "not-a-peer", "an address where no sidecar of the pool is");
    assert_eq!(letter.ask(&a).await.status, StatusCode::NO_CONTENT, "the address of a peer");
}

#[tokio::test]
async fn without_a_secret_a_key_waits_for_its_previous_owner_to_hear_of_the_new_one() {
    let book = Guestbook::default();
    let apps = [App::start("a", &book).await, App::start("b", &book).await];
    let a = Sidecar::named("a").upstream(apps[0].address).start().await;
    let b = Sidecar::named("b").upstream(apps[1].address).start().await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &a)]);
    plan.publish(&[&a]).await;
    let mut after = plan.clone();
    after.hold(&[(0, &a), (1, &b)]);
    let key = after.keys_of(&b, 1).remove(0);
    let mut first = Client::connect(a.listen, &key).await;
    // To the previous owner the new one is a stranger still.
    after.publish(&[&b]).await;
    let second = tokio::spawn({
        let (entry, key) = (b.listen, key.clone());
        async move { Client::connect(entry, &key).await }
    });
    until("it has claimed the key", async || match false_peers(&a).await {
        0 => Err("no claim".into()),
        _ => Ok(()),
    })
    .await;
    after.publish(&[&a]).await;
    assert_eq!(second.await.expect("a connection").server, "a", "the devices of a key are together");
    first.check().await;
    assert_eq!(book.on_two_servers(), Vec::<String>::new());
}

//! The preStop hook that the sidecar puts into the app's container: it holds the app until everyone has moved, then
//! does what the hook before it did.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::process::Process;
use harness::wait::equal;
use harness::{App, Backend, Client, Crowd, Guestbook, Plan, Sidecar, ports, until};
use http::Method;
use operator::token::{Covered, Signer, make_key};
use ring::wire::{BreakCause, Problem};
use tempfile::TempDir;

/// A hook before that leaves a trace, and fails in its own way.
const BEFORE: [&str; 4] = ["--", "sh", "-c", "echo the hook before ran; exit 7"];

/// The folder that a sidecar shares with its app's container.
struct Shared(TempDir);

impl Shared {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn folder(&self) -> String {
        self.0.path().to_string_lossy().into_owned()
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.path("drain-token")).expect("a token")
    }

    /// Runs the hook as the kubelet would.
    fn hook(&self, control: std::net::SocketAddr, arguments: &[&str]) -> Process {
        let control = format!("--control={control}");
        let all = ["prestop", &control].into_iter().chain(arguments.iter().copied());
        let log = self.path(&format!("log-{:x}", rand::random::<u64>()));
        Process::start("the hook", &self.path("wspool-sidecar"), all, &log)
    }
}

/// Waits for the end of a hook, and returns its exit code.
async fn ended(hook: &mut Process) -> i32 {
    hook.ended().await.code().expect("an exit code")
}

/// Two servers with a slot each, a spare, and a router by which clients enter. The app of `b` has a hook.
struct Scene {
    shared: Shared,
    book: Guestbook,
    a: Sidecar,
    b: Sidecar,
    c: Sidecar,
    router: Sidecar,
    plan: Plan,
    crowd: Crowd,
    app_b: Option<App>,
    _apps: [App; 2],
}

impl Scene {
    async fn new(clients: usize) -> Self {
        let (shared, book) = (Shared::new(), Guestbook::default());
        let apps = [App::start("a", &book).await, App::start("c", &book).await];
        let app_b = App::start("b", &book).await;
        let a = Sidecar::named("a").upstream(apps[0].address).start().await;
        let b = Sidecar::named("b").upstream(app_b.address).with("--install", &shared.folder()).start().await;
        let c = Sidecar::named("c").upstream(apps[1].address).start().await;
        let router = Sidecar::router().await;
        let mut plan = Plan::new();
        plan.others(&[&router, &c]);
        plan.hold(&[(0, &a), (1, &b)]);
        plan.publish(&[&a, &b, &c, &router]).await;
        let mut crowd = Crowd::default();
        crowd.join_users(clients, &[router.listen]).await;
        Self { shared, book, a, b, c, router, plan, crowd, app_b: Some(app_b), _apps: apps }
    }

    fn hook(&self, arguments: &[&str]) -> Process {
        self.shared.hook(self.b.control, arguments)
    }

    /// Waits until the log of `b` has these words.
    async fn b_says(&mut self, words: &str) {
        until(words, async || {
            let log = self.b.process().log();
            if log.contains(words) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// Everyone who was at `b` has moved once and was told; nobody else has.
    fn moved_once(&self, before: &Plan) {
        for life in self.crowd.lives() {
            let moved = before.owner(&life.key) == "b";
            let expected = if moved { vec![Some((1012, "moved".to_owned()))] } else { vec![] };
            assert_eq!(life.goodbyes(), expected, "{life:?}");
        }
        assert_eq!(self.book.on_two_servers(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn the_binary_and_a_new_token_are_put_into_the_shared_folder_at_each_start() {
    let shared = Shared::new();
    let start = Sidecar::named("b").with("--upstream", "127.0.0.1:1").with("--install", &shared.folder());
    let mut sidecar = start.start().await;
    let mode = |name: &str| shared.path(name).metadata().expect("a file").permissions().mode() & 0o777;
    assert_eq!((mode("wspool-sidecar"), mode("drain-token")), (0o755, 0o644), "the app may run as any user");
    let first = shared.token();
    assert_eq!(first.len(), 32, "128 bits: {first}");
    // While a hook runs, whose file cannot be written to.
    let mut running = shared.hook(sidecar.control, &["--sleep=1h"]);
    sidecar.kill();
    sidecar.start_again().await;
    assert_ne!(shared.token(), first);
    running.check();
    let mut hook = shared.hook(sidecar.control, &[]);
    assert_eq!((ended(&mut hook).await, hook.log().as_str()), (0, ""));
}

#[tokio::test]
async fn with_an_operator_the_app_is_held_until_everyone_has_moved_to_the_spare() {
    let mut scene = Scene::new(40).await;
    let before = scene.plan.clone();
    let mut hook = scene.hook(&BEFORE);
    until("it says that it drains", async || equal(&scene.b.status().await.draining, &true)).await;
    scene.plan.hold(&[(0, &scene.a), (1, &scene.c)]);
    scene.plan.publish(&[&scene.c, &scene.a, &scene.router, &scene.b]).await;
    until("the hook has ended", async || {
        let report = scene.b.status().await;
        let running = !hook.has_ended();
        assert!(running || report.connections == 0, "the app was let go with {report:?}");
        if !running {
            return Ok(());
        }
        scene.b.grant(&scene.plan.grant(&scene.b, report.evicted + 10)).await;
        Err(format!("{report:?}"))
    })
    .await;
    assert_eq!(ended(&mut hook).await, 7, "the status of the hook before");
    assert_eq!(hook.log(), "the hook before ran\n");
    scene.crowd.at_home(|key| scene.plan.owner(key)).await;
    scene.moved_once(&before);
    let breaks = scene.b.status().await.breaks;
    assert_eq!(breaks.keys().collect::<Vec<_>>(), [&BreakCause::Drain], "{breaks:?}");
}

#[tokio::test]
async fn without_an_operator_the_app_is_held_until_everyone_is_at_their_next_best() {
    let scene = Scene::new(40).await;
    let goodbye = Backend::start().await;
    let port = format!("--port={}", goodbye.address.port());
    let mut hook = scene.hook(&["--http-get=/bye", &port]);
    let mut last = goodbye.accept().await;
    last.head().await;
    assert_eq!(scene.b.status().await.connections, 0, "the hook before runs when nobody is left");
    last.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(ended(&mut hook).await, 0, "{}", hook.log());
    scene.crowd.at_home(|_| "a".into()).await;
    scene.moved_once(&scene.plan);
}

#[tokio::test]
async fn an_empty_server_lets_its_app_go_at_once_and_gets_no_new_clients() {
    let mut scene = Scene::new(0).await;
    let mut hook = scene.hook(&[]);
    assert_eq!(ended(&mut hook).await, 0, "{}", hook.log());
    scene.b_says("peers take the next-best").await;
    for key in scene.plan.keys_of(&scene.b, 10) {
        until("a key of b goes to its next-best", async || {
            equal(&Client::connect(scene.router.listen, &key).await.server.as_str(), &"a")
        })
        .await;
    }
}

#[tokio::test]
async fn when_the_time_is_up_the_hook_goes_on_without_the_rest() {
    let scene = Scene::new(20).await;
    let held = scene.b.status().await.connections;
    let mut hook = scene.hook(&[&["--timeout=1s"], &BEFORE[..]].concat());
    // An operator that is there, and permits nothing.
    until("the hook has ended", async || {
        scene.b.grant(&scene.plan.grant(&scene.b, 0)).await;
        if hook.has_ended() { Ok(()) } else { Err("it waits".into()) }
    })
    .await;
    assert_eq!(ended(&mut hook).await, 7);
    let log = hook.log();
    assert!(log.contains("not empty after 1s") && log.contains("the hook before ran"), "{log}");
    assert_eq!(scene.b.status().await.connections, held);
    assert_eq!(scene.crowd.breaks(), 0);
}

#[tokio::test]
async fn a_sidecar_that_is_gone_or_silent_does_not_keep_the_hook_before_from_running() {
    let shared = Shared::new();
    let start = Sidecar::named("b").with("--upstream", "127.0.0.1:1").with("--install", &shared.folder());
    let mut sidecar = start.start().await;
    sidecar.kill();
    let mut hook = shared.hook(sidecar.control, &BEFORE);
    assert_eq!(ended(&mut hook).await, 7);
    let log = hook.log();
    assert!(log.contains("does not answer") && log.contains("the hook before ran"), "{log}");

    let silent = Backend::start().await;
    let mut hook = shared.hook(silent.address, &[&["--timeout=1s"], &BEFORE[..]].concat());
    let _asked = silent.accept().await;
    assert_eq!(ended(&mut hook).await, 7);
    let log = hook.log();
    assert!(log.contains("not empty after 1s") && log.contains("the hook before ran"), "{log}");
}

#[tokio::test]
async fn the_hook_before_is_repeated_as_it_was() {
    let shared = Shared::new();
    let start = Sidecar::named("b").with("--upstream", "127.0.0.1:1").with("--install", &shared.folder());
    let sidecar = start.start().await;
    let hook = |arguments: &[&str]| shared.hook(sidecar.control, arguments);

    let backend = Backend::start().await;
    let port = format!("--port={}", backend.address.port());
    for (status, code) in [("200 OK", 0), ("500 No", 0)] {
        let headers = ["--http-get=bye?fast=1", &port, "--header=X-Why: a: b", "--header=X-Who:kubelet"];
        let mut get = hook(&headers);
        let mut asked = backend.accept().await;
        let head = asked.head().await;
        assert!(head.starts_with("GET /bye?fast=1 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("x-why: a: b\r\n") && head.contains("x-who: kubelet\r\n"), "{head}");
        asked.send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(ended(&mut get).await, code, "{}", get.log());
    }
    let nobody = format!("--port={}", ports::free().port());
    let mut get = hook(&["--http-get=/bye", &nobody]);
    assert_eq!(ended(&mut get).await, 1);
    assert!(get.log().contains("the hook before failed"), "{}", get.log());

    let began = Instant::now();
    let mut sleep = hook(&["--sleep=500ms"]);
    assert_eq!(ended(&mut sleep).await, 0, "{}", sleep.log());
    assert!(began.elapsed() >= Duration::from_millis(500));

    for (command, code) in [(&["true"][..], 0), (&["sh", "-c", "exit 42"], 42), (&["no-such-program"], 1)] {
        let mut exec = hook(&[&["--"], command].concat());
        assert_eq!(ended(&mut exec).await, code, "{command:?}: {}", exec.log());
    }
}

#[tokio::test]
async fn the_hooks_token_is_good_for_draining_only_and_no_other_token_is() {
    let signer = Signer::new(&make_key().expect("a key")).expect("a signer");
    let shared = Shared::new();
    let book = Guestbook::default();
    let app = App::start("b", &book).await;
    let start = Sidecar::named("b").upstream(app.address).with("--install", &shared.folder());
    let b = start.with_file("--control-keys", "control.pem", signer.public()).start().await;
    let mut client = Client::connect(b.listen, "ann").await;
    let token = shared.token();
    let draining = async || b.observe("/readyz").await.status.as_u16() == 503;
    for (method, path) in [
        (Method::PUT, "/v1/placement"),
        (Method::PUT, "/v1/evictions"),
        (Method::GET, "/v1/status"),
        (Method::DELETE, "/v1/drain"),
    ] {
        let answer = b.ask(Some(&token), method.clone(), path, "").await;
        let problem: Problem = serde_json::from_slice(&answer.body).expect("a problem");
        assert_eq!((problem.status, problem.title.as_str()), (401, "forged"), "{method} {path}");
    }

    let cases = [
        (String::new(), "missing"),
        ("0".repeat(32), "forged"),
        (token[..31].to_owned(), "forged"),
        (format!("{token}0"), "forged"),
    ];
    for (wrong, reason) in cases {
        std::fs::write(shared.path("drain-token"), &wrong).expect("the file");
        let series = format!("wspool_control_denied_total{{reason=\"{reason}\"}}");
        let before = b.metric(&series).await;
        let mut hook = shared.hook(b.control, &["--timeout=1s"]);
        assert_eq!(ended(&mut hook).await, 0, "{}", hook.log());
        assert!(b.metric(&series).await > before, "{wrong:?}");
        assert!(!draining().await, "{wrong:?}");
    }
    client.check().await;

    std::fs::write(shared.path("drain-token"), &token).expect("the file");
    let mut hook = shared.hook(b.control, &BEFORE);
    assert_eq!(client.goodbye().await.map(|(code, _)| code), Some(1012));
    assert_eq!((ended(&mut hook).await, hook.log().as_str()), (7, "the hook before ran\n"));
    assert!(draining().await);
    let covered = Covered { uid: "b", term: 1, request: "DELETE /v1/drain", body: b"" };
    let right = signer.sign(covered, std::time::SystemTime::now()).expect("a token");
    assert!(b.ask(Some(&right), Method::DELETE, "/v1/drain", "").await.status.is_success());
    assert!(!draining().await, "the operator may call it off");
}

#[tokio::test]
async fn an_app_that_comes_back_after_its_hook_calls_the_drain_off_and_its_keys_come_home() {
    let mut scene = Scene::new(40).await;
    // A failed liveness probe: the hook, then the end of the app, then its next start.
    let mut hook = scene.hook(&[]);
    assert_eq!(ended(&mut hook).await, 0, "{}", hook.log());
    scene.crowd.at_home(|_| "a".into()).await;
    let address = scene.app_b.take().map(|app| app.address).expect("its app");
    assert!(scene.b.status().await.draining, "nobody is sent to an app that is not there");
    // At once: nobody may have seen that it was gone.
    scene.app_b = Some(App::start_at(address, "b", &scene.book).await);
    until("the drain is called off", async || equal(&scene.b.status().await.draining, &false)).await;
    assert_eq!(scene.b.observe("/readyz").await.status.as_u16(), 200);

    // Peers have been told: what is new goes home at once, and what is old when an operator permits it.
    let fresh = scene.plan.keys_of(&scene.b, 200).pop().expect("a key");
    until("a new key of b goes to b", async || {
        let client = Client::connect(scene.router.listen, &fresh).await;
        equal(&client.server.as_str(), &"b")
    })
    .await;
    scene.plan.move_all(&[&scene.a, &scene.b], 10).await;
    scene.crowd.at_home(|key| scene.plan.owner(key)).await;
    assert_eq!(scene.book.on_two_servers(), Vec::<String>::new());
    for life in scene.crowd.lives() {
        let expected = if scene.plan.owner(&life.key) == "b" { 2 } else { 0 };
        assert_eq!(life.breaks(), expected, "out and home, or not at all: {life:?}");
    }
}

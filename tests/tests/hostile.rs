//! What clients and apps may do to a sidecar, on purpose or not: it keeps its memory and its files, and serves the rest.

use std::time::Duration;

use futures_util::future::join_all;
use harness::frames::{self, opcode};
use harness::wait::{equal, within};
use harness::wire::{HANDSHAKE, SWITCHING};
use harness::{App, Backend, Client, Guestbook, Plan, Sidecar, Wire, until};
use tokio::task::JoinSet;

/// The memory that no number of connections that have gone may have left behind: what the allocator keeps.
const SLACK: u64 = 2 << 20;
/// The same beside that of a sidecar which has served nobody yet: also what it allocates once, and what its allocator keeps of
/// the most that were there at a time.
const FIRST_SLACK: u64 = 12 << 20;

/// A sidecar beside an app, with what it has in use while nobody is connected.
struct Scene {
    sidecar: Sidecar,
    files: usize,
    memory: u64,
}

impl Scene {
    async fn beside(app: std::net::SocketAddr) -> Self {
        Self::of(Sidecar::beside(app).await).await
    }

    async fn of(mut sidecar: Sidecar) -> Self {
        // The first look at the metrics port is over when its connection is closed on the other side, too.
        let files = until("its files stand still", async || {
            let files = sidecar.process().open_files();
            tokio::task::yield_now().await;
            if sidecar.process().open_files() == files { Ok(files) } else { Err(files.to_string()) }
        })
        .await;
        let memory = sidecar.process().memory();
        Self { sidecar, files, memory }
    }

    fn memory(&mut self) -> u64 {
        self.sidecar.process().memory()
    }

    /// Waits until nothing is left of any connection: no file, no task, and no memory to speak of.
    async fn is_empty(&mut self) {
        let Self { sidecar, files, memory } = self;
        let (files, memory) = (*files, *memory);
        until("every file is closed", async || {
            let open = sidecar.process().open_files();
            if open <= files { Ok(()) } else { Err(format!("{open} are open, {files} were before")) }
        })
        .await;
        until("every task has ended", async || equal(&sidecar.metric("wspool_tasks").await, &0)).await;
        for kind in ["held", "transit"] {
            assert_eq!(sidecar.metric(&format!("wspool_connections{{kind=\"{kind}\"}}")).await, 0, "{kind}");
        }
        assert_eq!(sidecar.metric("wspool_leaving_connections").await, 0);
        // It is given back some time after the last connection has come.
        until("memory is back", async || {
            let now = sidecar.process().memory();
            if now < memory + FIRST_SLACK { Ok(()) } else { Err(format!("{memory} bytes before, {now} now")) }
        })
        .await;
    }
}

fn raise_open_files() {
    rlimit::increase_nofile_limit(u64::MAX).expect("a limit that can be raised to its hard one");
}

#[tokio::test]
async fn thousands_of_half_open_clients_cost_little_are_told_and_leave_nothing() {
    const CLIENTS: usize = 9_900;
    raise_open_files();
    let book = Guestbook::default();
    let app = App::start("server", &book).await;
    let mut scene = Scene::beside(app.address).await;
    let before = scene.memory();
    let mut first = Client::connect(scene.sidecar.listen, "ann").await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = Wire::dial(scene.sidecar.listen).await;
        // Some never say a word.
        if number % 4 > 0 {
            client.send("GET / HTTP/1.1\r\nX-Slow: ").await;
        }
        clients.push(client);
    }
    let files = scene.files + CLIENTS;
    let process = scene.sidecar.process();
    until("the sidecar has accepted them", async || {
        let open = process.open_files();
        if open >= files { Ok(()) } else { Err(format!("{open} of {files}")) }
    })
    .await;
    let each = scene.memory().saturating_sub(before) / CLIENTS as u64;
    assert!(each < 16 << 10, "each costs {each} bytes");
    first.check().await;
    Client::connect(scene.sidecar.listen, "bob").await.check().await;
    let answers = join_all(clients.iter_mut().map(Wire::last_words)).await;
    for (number, answer) in answers.iter().enumerate() {
        assert!(answer.starts_with("HTTP/1.1 408 "), "client {number} was told {answer:?}");
    }
    assert_eq!(scene.sidecar.metric("wspool_bad_requests_total{reason=\"slow\"}").await, CLIENTS as u64);
    first.check().await;
    drop((first, clients));
    scene.is_empty().await;
}

#[tokio::test]
async fn a_head_that_drips_has_no_more_time_than_one_that_stands_still() {
    let app = Backend::start().await;
    let mut scene = Scene::beside(app.address).await;
    let mut drips = JoinSet::new();
    for _ in 0..100 {
        let mut client = Wire::dial(scene.sidecar.listen).await;
        drips.spawn(async move {
            client.send("GET / HTTP/1.1\r\nX-Drip: ").await;
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            // For longer than any client has; then it has not been stopped.
            for _ in 0..300 {
                ticks.tick().await;
                if client.try_send("a").await.is_err() {
                    return true;
                }
            }
            false
        });
    }
    let (client, server) = app.ends(scene.sidecar.listen).await;
    assert!(drips.join_all().await.into_iter().all(|stopped| stopped));
    assert_eq!(scene.sidecar.metric("wspool_bad_requests_total{reason=\"slow\"}").await, 100);
    drop((client, server));
    scene.is_empty().await;
}

#[tokio::test]
async fn who_never_reads_holds_its_own_memory_only_and_ends_with_the_other_side() {
    const PAIRS: usize = 32;
    let app = Backend::start().await;
    let mut scene = Scene::beside(app.address).await;
    for client_floods in [false, true] {
        let before = scene.memory();
        let mut pairs = Vec::new();
        for _ in 0..PAIRS {
            pairs.push(app.ends(scene.sidecar.listen).await);
        }
        let frame = match client_floods {
            false => frames::plain(opcode::BINARY, &vec![7; 1 << 20]),
            true => frames::masked(opcode::BINARY, &vec![7; 1 << 20]),
        };
        let taken = join_all(pairs.iter_mut().map(|(client, app)| {
            let writer = if client_floods { client } else { app };
            within("the end of a flood", writer.flood(&frame))
        }))
        .await;
        let taken: usize = taken.into_iter().sum();
        assert!(taken > PAIRS << 16, "only {taken} bytes were taken");
        let grown = scene.memory().saturating_sub(before);
        assert!(grown < (PAIRS as u64) * (256 << 10), "{PAIRS} connections that do not read cost {grown} bytes");
        let (mut client, mut other) = app.ends(scene.sidecar.listen).await;
        client.send(frames::masked(opcode::TEXT, b"hello")).await;
        assert_eq!(other.exactly(11).await, frames::masked(opcode::TEXT, b"hello"));
        other.send(frames::plain(opcode::TEXT, b"hello")).await;
        assert_eq!(client.exactly(7).await, frames::plain(opcode::TEXT, b"hello"));
        // The reader goes: the writer hears of it.
        for (client, app) in pairs {
            let (mut writer, reader) = if client_floods { (client, app) } else { (app, client) };
            drop(reader);
            // Whether by FIN or RST.
            let _ = within("the end of the writer", writer.rest()).await;
        }
        drop((client, other));
        scene.is_empty().await;
    }
}

/// Where a connection is reset.
const STEPS: [Step; 10] = [
    Step::Connected,
    Step::HalfAHead,
    Step::Asked,
    Step::AppHasTheHead(Side::Client),
    Step::AppHasTheHead(Side::App),
    Step::HalfAnAnswer(Side::Client),
    Step::HalfAnAnswer(Side::App),
    Step::Open(Side::Client),
    Step::Open(Side::App),
    Step::WithinAFrame,
];

#[derive(Clone, Copy, Debug)]
enum Step {
    Connected,
    HalfAHead,
    Asked,
    AppHasTheHead(Side),
    HalfAnAnswer(Side),
    Open(Side),
    WithinAFrame,
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Client,
    App,
}

/// One side resets; the other hears of it.
async fn reset(by: Side, client: Wire, app: Wire) {
    let (gone, mut other) = match by {
        Side::Client => (client, app),
        Side::App => (app, client),
    };
    gone.reset();
    // FIN, RST, or 502 and FIN.
    let _ = within("the end on the other side", other.rest()).await;
}

async fn broken_off(sidecar: &Sidecar, backend: &Backend, step: Step) {
    let mut client = Wire::dial(sidecar.listen).await;
    match step {
        Step::Connected => return client.reset(),
        Step::HalfAHead => {
            client.send(&HANDSHAKE[..40]).await;
            return client.reset();
        }
        _ => client.send(HANDSHAKE).await,
    }
    let mut app = backend.accept().await;
    if let Step::Asked = step {
        return reset(Side::Client, client, app).await;
    }
    app.head().await;
    match step {
        Step::AppHasTheHead(side) => return reset(side, client, app).await,
        Step::HalfAnAnswer(side) => {
            app.send(&SWITCHING[..40]).await;
            return reset(side, client, app).await;
        }
        _ => app.send(SWITCHING).await,
    }
    client.head().await;
    if let Step::Open(side) = step {
        return reset(side, client, app).await;
    }
    client.send(&frames::masked(opcode::BINARY, &[7; 1_000])[..500]).await;
    app.exactly(500).await;
    reset(Side::Client, client, app).await;
}

#[tokio::test]
async fn a_reset_at_any_step_of_a_handshake_leaves_nothing_and_reaches_the_other_side() {
    let backend = Backend::start().await;
    let mut scene = Scene::beside(backend.address).await;
    for step in STEPS {
        for _ in 0..20 {
            within(&format!("the end of {step:?}"), broken_off(&scene.sidecar, &backend, step)).await;
        }
        scene.is_empty().await;
    }
    let abandoned = scene.sidecar.metric("wspool_handshakes_abandoned_total").await;
    assert_eq!(abandoned, 60, "three of the steps are before the app's answer, and the client's");
    let (mut client, mut app) = backend.ends(scene.sidecar.listen).await;
    client.send("x").await;
    assert_eq!(app.exactly(1).await, b"x");
}

/// Where an eviction is broken off.
#[derive(Clone, Copy, Debug)]
enum At {
    /// The client must wait for its Close: the app is in the middle of a message.
    Untold(Side),
    /// The client has the Close.
    Told(Side),
    /// The client has begun its own.
    HalfAReply(Side),
    /// Both sides know; the app goes without an answer.
    Replied,
    /// The app has closed too, and the client has the end of the stream but does not close.
    Finished,
}

/// Goes on from where an eviction has begun to where it is broken off.
async fn broken_off_at(at: At, mut client: Wire, mut app: Wire) {
    if let At::Untold(side) = at {
        return reset(side, client, app).await;
    }
    let close = frames::plain(opcode::CLOSE, &frames::close_payload(1_012, "moved"));
    assert_eq!(client.exactly(close.len()).await, close);
    let reply = frames::masked(opcode::CLOSE, &frames::close_payload(1_012, ""));
    match at {
        At::Untold(_) => {}
        At::Told(side) => return reset(side, client, app).await,
        At::HalfAReply(side) => {
            client.send(&reply[..4]).await;
            return reset(side, client, app).await;
        }
        At::Replied | At::Finished => client.send(&reply).await,
    }
    app.exactly(8).await;
    if let At::Replied = at {
        return reset(Side::App, client, app).await;
    }
    client.rest().await.expect("FIN");
    client.reset();
    app.send(frames::plain(opcode::CLOSE, &frames::close_payload(1_012, ""))).await;
    app.rest().await.expect("FIN");
}

#[tokio::test]
async fn a_reset_of_a_connection_on_its_way_through_a_peer_reaches_the_other_side_and_leaves_nothing() {
    let backend = Backend::start().await;
    let entry = Sidecar::named("entry").upstream(backend.address).start().await;
    let owner = Sidecar::named("owner").upstream(backend.address).start().await;
    let mut plan = Plan::new();
    plan.hold(&[(0, &owner)]);
    plan.publish(&[&entry, &owner]).await;
    for side in [Side::Client, Side::App] {
        for _ in 0..20 {
            let (client, app) = backend.ends(entry.listen).await;
            assert_eq!(entry.status().await.transit, 1);
            within(&format!("the end after a reset by the {side:?}"), reset(side, client, app)).await;
            for sidecar in [&entry, &owner] {
                until("nobody is there", async || equal(&sidecar.metric("wspool_tasks").await, &0)).await;
            }
        }
    }
    for sidecar in [&entry, &owner] {
        let report = sidecar.status().await;
        assert_eq!((report.connections, report.transit), (0, 0), "{report:?}");
    }
}

#[tokio::test]
async fn a_reset_at_any_step_of_an_eviction_ends_it_and_frees_its_key() {
    let book = Guestbook::default();
    for at in [
        At::Untold(Side::Client),
        At::Untold(Side::App),
        At::Told(Side::Client),
        At::Told(Side::App),
        At::HalfAReply(Side::Client),
        At::HalfAReply(Side::App),
        At::Replied,
        At::Finished,
    ] {
        let (backend, next) = (Backend::start().await, App::start("to", &book).await);
        let from = Sidecar::named("from").upstream(backend.address).start().await;
        let to = Sidecar::named("to").upstream(next.address).start().await;
        let scene = Scene::of(from).await;
        let mut plan = Plan::new();
        plan.hold(&[(0, &scene.sidecar)]);
        plan.publish(&[&scene.sidecar, &to]).await;
        let (mut client, mut app) = backend.ends(scene.sidecar.listen).await;
        let message = frames::plain(opcode::TEXT, b"half");
        if let At::Untold(_) = at {
            app.send(&message[..3]).await;
            client.exactly(3).await;
        }
        plan.hold(&[(0, &to)]);
        plan.publish(&[&to, &scene.sidecar]).await;
        let grant = plan.grant(&scene.sidecar, 1);
        until("the eviction has begun", async || {
            let report = scene.sidecar.grant(&grant).await;
            if report.in_flight + report.evicted > 0 { Ok(()) } else { Err(format!("{report:?}")) }
        })
        .await;
        within(&format!("the end of {at:?}"), broken_off_at(at, client, app)).await;
        until("the eviction is over", async || {
            let report = scene.sidecar.status().await;
            equal(&(report.connections, report.in_flight), &(0, 0)).map_err(|error| format!("{at:?}: {error}"))?;
            let tasks = scene.sidecar.metric("wspool_tasks").await;
            equal(&tasks, &0).map_err(|error| format!("tasks of {at:?}: {error}"))?;
            let text = scene.sidecar.metrics().await;
            let ended = text.lines().filter(|line| line.starts_with("wspool_evictions_total{") && line.ends_with(" 1"));
            // One that ends before it was told was not evicted.
            let counted = usize::from(!matches!(at, At::Untold(_)));
            equal(&ended.count(), &counted).map_err(|error| format!("{at:?}: {error}"))
        })
        .await;
        let report = scene.sidecar.status().await;
        assert_eq!((report.connections, report.in_flight, report.moved_keys), (0, 0, 0), "{at:?}: {report:?}");
        let mut returned = Client::connect(scene.sidecar.listen, "ann").await;
        assert_eq!(returned.server, "to", "{at:?}");
        returned.check().await;
        drop(returned);
    }
}

#[tokio::test]
async fn without_file_descriptors_those_who_are_there_are_served_and_it_recovers() {
    let book = Guestbook::default();
    let app = App::start("server", &book).await;
    let mut scene = Scene::beside(app.address).await;
    let mut there = Client::connect(scene.sidecar.listen, "ann").await;
    let most = scene.files + 40;
    scene.sidecar.process().limit_open_files(most as u64);
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(Wire::dial(scene.sidecar.listen).await);
    }
    let process = scene.sidecar.process();
    until("none are left", async || {
        there.check().await;
        if process.log().contains("cannot accept a connection") { Ok(()) } else { Err("there are some".into()) }
    })
    .await;
    there.check().await;
    drop(crowd);
    until("it accepts again", async || {
        let client = Client::try_connect(scene.sidecar.listen, "bob").await;
        client.map(drop).map_err(|error| error.to_string())
    })
    .await;
    assert!(scene.sidecar.metric("wspool_accept_errors_total").await > 0);
    there.check().await;
    drop(there);
    scene.is_empty().await;
}

#[tokio::test]
async fn connections_that_have_come_and_gone_leave_no_file_and_no_byte_and_the_metrics_add_up() {
    const ABREAST: usize = 50;
    let asked = std::env::var("WSPOOL_CONNECTIONS").ok();
    let all: usize = asked.map_or(10_000, |count| count.parse().expect("WSPOOL_CONNECTIONS is a number"));
    let backend = Backend::start().await;
    let mut scene = Scene::beside(backend.address).await;
    let mut after_some = None;
    let (mut accepted, mut refused) = (0, 0);
    while accepted + refused < all {
        let pairs = join_all((0..ABREAST).map(async |number| {
            let mut client = Wire::dial(scene.sidecar.listen).await;
            if number == 0 {
                client.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
                assert!(client.last_words().await.starts_with("HTTP/1.1 400 "));
                return None;
            }
            client.send(HANDSHAKE).await;
            let mut app = backend.accept().await;
            app.head().await;
            app.send(SWITCHING).await;
            // The app's end and the client's may be of two connections: they were accepted in any order.
            client.head().await;
            Some((client, app))
        }))
        .await;
        refused += pairs.iter().filter(|pair| pair.is_none()).count();
        accepted += pairs.iter().flatten().count();
        let (clients, apps): (Vec<_>, Vec<_>) = pairs.into_iter().flatten().unzip();
        for (number, client) in clients.into_iter().enumerate() {
            if number % 2 == 0 { client.reset() } else { drop(client) }
        }
        for mut app in apps {
            let _ = within("the end at the app", app.rest()).await;
        }
        if after_some.is_none() && accepted > all / 10 {
            scene.is_empty().await;
            after_some = Some(scene.memory());
        }
    }
    scene.is_empty().await;
    let (before, after) = (after_some.expect("a tenth"), scene.memory());
    println!("{accepted} connections: {before} bytes after a tenth of them, {after} after all");
    assert!(after < before + SLACK, "{before} bytes after a tenth, {after} after {accepted} connections");
    assert_eq!(scene.sidecar.metric("wspool_handshakes_accepted_total").await, accepted as u64);
    assert_eq!(scene.sidecar.metric("wspool_bad_requests_total{reason=\"host_repeated\"}").await, refused as u64);
    assert_eq!(scene.sidecar.metric("wspool_handshakes_failed_total").await, 0);
    assert_eq!(scene.sidecar.metric("wspool_accept_errors_total").await, 0);
}

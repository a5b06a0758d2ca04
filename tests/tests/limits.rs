//! What one sidecar accepts, whether the limit comes from its configuration or from a placement.

use std::time::Duration;

use harness::wait::{equal, within};
use harness::{App, Client, Crowd, Guestbook, Plan, Sidecar, until};
use ring::settings::{Limits, Missing, Settings};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

const KEYED: &str = "key: {from: [{query: user}]}\n";

/// A sidecar with a configuration, beside an app.
async fn configured(yaml: &str) -> (Sidecar, App, Guestbook) {
    let book = Guestbook::default();
    let app = App::start("server", &book).await;
    let sidecar = Sidecar::named("sidecar")
        .upstream(app.address)
        .with_file("--config", "sidecar.yaml", &format!("{KEYED}{yaml}"))
        .start()
        .await;
    (sidecar, app, book)
}

/// A sidecar that holds the only slot of a pool with these settings.
async fn placed(settings: Settings) -> (Sidecar, App, Guestbook) {
    let book = Guestbook::default();
    let app = App::start("server", &book).await;
    let sidecar = Sidecar::named("sidecar").upstream(app.address).start().await;
    let mut plan = Plan::with(settings);
    plan.hold(&[(0, &sidecar)]);
    plan.publish(&[&sidecar]).await;
    (sidecar, app, book)
}

fn limits(limits: Limits) -> Settings {
    Settings { limits, ..Settings::default() }
}

async fn refusals(sidecar: &Sidecar, reason: &str) -> u64 {
    sidecar.metric(&format!("wspool_handshakes_refused_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn connections_past_the_limit_are_refused_until_one_leaves() {
    let by_file = configured("limits: {connections: 2}").await;
    let by_placement = placed(limits(Limits { connections: 2, ..Limits::default() })).await;
    for (sidecar, _app, _book) in [by_file, by_placement] {
        let mut first = Client::connect(sidecar.listen, "ann").await;
        let second = Client::connect(sidecar.listen, "bob").await;
        let (status, sentence) = Client::refusal(sidecar.listen, "eve").await;
        assert_eq!(status, 503);
        assert!(sentence.contains("limits.connections"), "{sentence:?}");
        assert_eq!(refusals(&sidecar, "full").await, 1);
        first.check().await;
        drop(second);
        until("there is room again", async || {
            Client::try_connect(sidecar.listen, "eve").await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
}

#[tokio::test]
async fn a_key_has_no_more_connections_than_its_limit() {
    let by_file = configured("limits: {perKey: 2}").await;
    let by_placement = placed(limits(Limits { per_key: 2, ..Limits::default() })).await;
    for (sidecar, _app, _book) in [by_file, by_placement] {
        let _devices = [Client::connect(sidecar.listen, "ann").await, Client::connect(sidecar.listen, "ann").await];
        let (status, sentence) = Client::refusal(sidecar.listen, "ann").await;
        assert_eq!(status, 429);
        assert!(sentence.contains("limits.perKey"), "{sentence:?}");
        assert_eq!(refusals(&sidecar, "key_full").await, 1);
        Client::connect(sidecar.listen, "bob").await.check().await;
    }
}

#[tokio::test]
async fn handshakes_past_their_rate_wait_in_a_bounded_queue() {
    // Two a second: those that would have to wait for more than eight seconds are refused at once.
    let by_file = configured("limits: {handshakesPerSecond: 2}").await;
    let by_placement = placed(limits(Limits { handshakes_per_second: 2, ..Limits::default() })).await;
    tokio::join!(storm(by_file), storm(by_placement));
}

async fn storm((sidecar, _app, book): (Sidecar, App, Guestbook)) {
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..30 {
        let entry = sidecar.listen;
        clients.spawn(async move { Client::try_connect(entry, &format!("user-{number}")).await });
    }
    until("the rest are refused", async || {
        let refused = refusals(&sidecar, "queue_full").await;
        if refused >= 12 { Ok(()) } else { Err(format!("{refused} are")) }
    })
    .await;
    assert!(sidecar.status().await.app.queued > 0, "the status tells of those that wait");
    let accepted = clients.join_all().await.into_iter().flatten().count();
    // A slow machine asks for its turns over a longer time, and gets more.
    assert!((16..=18).contains(&accepted), "{accepted} were accepted");
    let visits = book.visits();
    assert_eq!(visits.len(), accepted);
    assert!(began.elapsed() >= Duration::from_secs(7), "{accepted} came within {:?}", began.elapsed());
    let crowded = visits.windows(4).any(|four| four[3].entered - four[0].entered < Duration::from_secs(1));
    assert!(!crowded, "four handshakes reached the app within a second");
}

#[tokio::test]
async fn after_a_kill_the_server_that_is_left_sees_the_storm_at_its_own_rate() {
    const RATE: u32 = 50;
    let book = Guestbook::default();
    let (app_a, app_b) = (App::start("a", &book).await, App::start("b", &book).await);
    let mut a = Sidecar::named("a").upstream(app_a.address).start().await;
    let b = Sidecar::named("b").upstream(app_b.address).start().await;
    let router = Sidecar::router().await;
    let mut plan = Plan::with(Settings::default());
    plan.others(&[&router]);
    plan.hold(&[(0, &a), (1, &b)]);
    plan.publish(&[&a, &b, &router]).await;
    let mut crowd = Crowd::default();
    crowd.join_users(300, &[router.listen]).await;
    plan.placement.settings.limits.handshakes_per_second = RATE;
    plan.settle();
    plan.publish(&[&a, &b, &router]).await;
    let before = book.count_at("b");

    let killed = Instant::now();
    a.kill();
    crowd.at_home(|_| "b".into()).await;
    let visits = book.visits();
    let storm: Vec<_> = visits.iter().filter(|visit| visit.entered > killed.into_std()).collect();
    assert_eq!(storm.len(), 300 - before, "each of them once, and nobody else");
    // A slow machine lengthens the time, and may bring late ones together: a second's worth more is let pass.
    let span = RATE as usize * 2;
    let crowded = storm.windows(span + 1).any(|few| few[span].entered - few[0].entered < Duration::from_secs(1));
    assert!(!crowded, "more than {span} handshakes reached the app within a second");
}

#[tokio::test]
async fn a_connection_that_is_silent_for_too_long_is_closed_and_a_busy_one_is_not() {
    let by_file = configured("limits: {idle: 1s}").await;
    let idle = "1s".parse().expect("a duration");
    let by_placement = placed(limits(Limits { idle, ..Limits::default() })).await;
    for (sidecar, _app, book) in [by_file, by_placement] {
        let mut busy = Client::connect(sidecar.listen, "busy").await;
        let silent = Client::connect(sidecar.listen, "silent").await;
        let mut end = Box::pin(silent.stay());
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        let talk_meanwhile = async {
            loop {
                tokio::select! {
                    _ = &mut end => break,
                    _ = ticks.tick() => busy.check().await,
                }
            }
        };
        within("the end of the silent connection", talk_meanwhile).await;
        busy.check().await;
        until("the app has seen it go", async || {
            equal(&(book.count_at("server"), book.visits_of("silent")[0].left.is_some()), &(1, true))
        })
        .await;
        let breaks = sidecar.status().await.breaks;
        assert_eq!(breaks.get(&ring::wire::BreakCause::Limit), Some(&1), "{breaks:?}");
        assert_eq!(sidecar.metric("wspool_breaks_total{cause=\"limit\"}").await, 1);
    }
}

#[tokio::test]
async fn a_handshake_without_a_key_is_refused_where_keys_are_required() {
    let by_file = {
        let book = Guestbook::default();
        let app = App::start("server", &book).await;
        let config = "key: {from: [{query: user}], missing: Reject}\n";
        let sidecar =
            Sidecar::named("sidecar").upstream(app.address).with_file("--config", "c.yaml", config).start().await;
        (sidecar, app, book)
    };
    let mut settings = Settings::default();
    settings.key.missing = Missing::Reject;
    let by_placement = placed(settings).await;
    for (sidecar, _app, book) in [by_file, by_placement] {
        let (status, sentence) = Client::refusal(sidecar.listen, "").await;
        assert_eq!(status, 400);
        assert!(sentence.contains("key"), "{sentence:?}");
        assert_eq!(refusals(&sidecar, "key_missing").await, 1);
        assert_eq!(book.visits().len(), 0);
        Client::connect(sidecar.listen, "ann").await.check().await;
    }
}

#[tokio::test]
async fn those_who_have_waited_for_an_app_reach_it_at_the_rate_when_it_is_back() {
    const RATE: u32 = 50;
    let limits = limits(Limits { handshakes_per_second: RATE, ..Limits::default() });
    let (sidecar, app, book) = placed(limits).await;
    let address = app.address;
    drop(app);
    let mut crowd = Crowd::default();
    for number in 0..200 {
        crowd.join(&format!("user-{number}"), &[sidecar.listen]);
    }
    // So long that most of them have had a turn while nobody listened.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let _app = App::start_at(address, "server", &book).await;
    until("all are there", async || equal(&book.count_at("server"), &200)).await;
    let visits = book.visits();
    // As above: a second's worth more is let pass.
    let span = RATE as usize * 2;
    let crowded = visits.windows(span + 1).any(|few| few[span].entered - few[0].entered < Duration::from_secs(1));
    assert!(!crowded, "more than {span} handshakes reached the app within a second");
}

#[tokio::test]
async fn an_app_that_stands_still_for_a_moment_does_not_meet_at_once_who_came_meanwhile() {
    const RATE: u32 = 100;
    const STILL: Duration = Duration::from_millis(300);
    let book = Guestbook::default();
    let (tell, address) = oneshot::channel();
    let (stand_still, told) = oneshot::channel::<()>();
    let (end, ended) = oneshot::channel::<()>();
    let visitors = book.clone();
    // A thread of its own, as the event loop of an app is.
    let app = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let app = App::start("server", &visitors).await;
            tell.send(app.address).expect("the test waits");
            told.await.expect("it is told");
            #[expect(clippy::disallowed_methods, reason = "an app whose thread stands still")]
            std::thread::sleep(STILL);
            ended.await.expect_err("the sender is dropped");
        });
    });
    let sidecar = Sidecar::named("sidecar").upstream(address.await.expect("its address")).start().await;
    let mut plan = Plan::with(limits(Limits { handshakes_per_second: RATE, ..Limits::default() }));
    plan.hold(&[(0, &sidecar)]);
    plan.publish(&[&sidecar]).await;
    let mut crowd = Crowd::default();
    for number in 0..200 {
        crowd.join(&format!("user-{number}"), &[sidecar.listen]);
    }
    until("some are there", async || {
        let there = book.count_at("server");
        if there >= 40 { Ok(()) } else { Err(format!("{there} are")) }
    })
    .await;
    stand_still.send(()).expect("the app is there");
    until("all are there", async || equal(&book.count_at("server"), &200)).await;
    let visits = book.visits();
    let stood = visits.windows(2).any(|two| two[1].entered - two[0].entered >= STILL);
    assert!(stood, "it stood still among them");
    let within = |first: &std::time::Instant| {
        visits.iter().filter(|visit| (*first..*first + Duration::from_millis(100)).contains(&visit.entered)).count()
    };
    let peak = visits.iter().map(|visit| within(&visit.entered)).max().unwrap_or_default();
    assert!(peak <= 12, "{peak} within 100 ms at {RATE} a second");
    drop((crowd, end));
    app.join().expect("the app never panics");
}

#[tokio::test]
async fn a_placement_replaces_the_limits_of_the_configuration() {
    let (sidecar, _app, _book) = configured("limits: {connections: 1}").await;
    let _first = Client::connect(sidecar.listen, "ann").await;
    assert_eq!(Client::refusal(sidecar.listen, "bob").await.0, 503);
    let mut plan = Plan::with(limits(Limits { connections: 2, ..Limits::default() }));
    plan.hold(&[(0, &sidecar)]);
    plan.publish(&[&sidecar]).await;
    let _second = Client::connect(sidecar.listen, "bob").await;
    assert_eq!(Client::refusal(sidecar.listen, "eve").await.0, 503);
}

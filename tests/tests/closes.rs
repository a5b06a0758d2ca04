//! What a moved connection's two ends see of its end.

use harness::frames::{self, opcode};
use harness::script::Script;
use harness::wait::equal;
use harness::{App, Backend, Client, Guestbook, Plan, Sidecar, until};
use ring::settings::{Notice, Settings};
use tokio_tungstenite::tungstenite::Message;

/// A server whose keys all go to another when the test says so.
struct Scene {
    from: Sidecar,
    to: Sidecar,
    plan: Plan,
    book: Guestbook,
    _app: App,
}

impl Scene {
    async fn new(app: std::net::SocketAddr, notice: Notice) -> Self {
        let book = Guestbook::default();
        let next = App::start("to", &book).await;
        let from = Sidecar::named("from").upstream(app).start().await;
        let to = Sidecar::named("to").upstream(next.address).start().await;
        let mut plan = Plan::with(Settings { notice, ..Settings::default() });
        plan.hold(&[(0, &from)]);
        plan.publish(&[&from, &to]).await;
        Self { from, to, plan, book, _app: next }
    }

    /// The slot changes hands, and its one connection may go.
    async fn let_go(&mut self) {
        self.plan.hold(&[(0, &self.to)]);
        self.plan.publish(&[&self.to, &self.from]).await;
        let grant = self.plan.grant(&self.from, 1);
        until("the eviction has begun", async || {
            let report = self.from.grant(&grant).await;
            if report.in_flight + report.evicted > 0 { Ok(()) } else { Err(format!("{report:?}")) }
        })
        .await;
    }

    async fn gone(&self, outcome: &str) {
        let series = format!("wspool_evictions_total{{outcome=\"{outcome}\"}}");
        until("the eviction is counted", async || equal(&self.from.metric(&series).await, &1)).await;
        assert_eq!(self.from.status().await.connections, 0);
    }
}

#[tokio::test]
async fn the_client_is_told_the_app_sees_a_close_and_what_it_wrote_later_is_counted() {
    let backend = Backend::start().await;
    let notice = Notice {
        close_code: Some(4_200),
        app_close_code: 4_001,
        message: Some("{\"go\":\"elsewhere\"}".into()),
        reason: "the server moves".into(),
        ..Notice::default()
    };
    let mut scene = Scene::new(backend.address, notice).await;
    let (mut client, mut app) = backend.ends(scene.from.listen).await;
    scene.let_go().await;
    let message = frames::plain(opcode::TEXT, b"{\"go\":\"elsewhere\"}");
    assert_eq!(client.exactly(message.len()).await, message);
    let close = frames::plain(opcode::CLOSE, &frames::close_payload(4_200, "the server moves"));
    assert_eq!(client.exactly(close.len()).await, close);

    // The app does not know yet, and goes on; the client answers behind its own last message.
    let late = frames::plain(opcode::TEXT, b"too late");
    app.send(&late).await;
    let last = frames::masked(opcode::TEXT, b"my last words");
    client.send([last.clone(), frames::masked(opcode::CLOSE, &frames::close_payload(4_200, ""))].concat()).await;
    assert_eq!(app.exactly(last.len()).await, last);
    let told = app.exactly(8).await;
    assert_eq!(frames::masked_close_code(&told), Some(4_001), "{told:?}");
    assert_eq!(client.rest().await.expect("a FIN, and no reset"), b"");
    app.send(frames::plain(opcode::CLOSE, &frames::close_payload(4_001, ""))).await;
    assert_eq!(app.rest().await.expect("a FIN, and no reset"), b"");
    scene.gone("clean").await;
    assert_eq!(scene.from.metric("wspool_discarded_bytes_total").await, late.len() as u64);
}

#[tokio::test]
async fn a_message_of_16_mib_on_its_way_arrives_whole_before_the_close() {
    let book = Guestbook::default();
    let app = App::start("from", &book).await;
    let mut scene = Scene::new(app.address, Notice::default()).await;
    let mut client = Client::connect(scene.from.listen, "ann").await;
    let large = Message::binary(vec![7; 16 << 20]);
    client.send(large.clone()).await;
    scene.let_go().await;
    assert!(client.hear().await == large, "the echo came back changed");
    assert_eq!(client.goodbye().await, Some((1012, "moved".into())));
    scene.gone("clean").await;
    assert_eq!(book.visits()[0].code, Some(1001));
}

#[tokio::test]
async fn a_client_that_has_stopped_reading_cannot_hold_its_key() {
    let backend = Backend::start().await;
    let mut scene = Scene::new(backend.address, Notice::default()).await;
    let (_client, mut app) = backend.ends(scene.from.listen).await;
    let frame = frames::plain(opcode::BINARY, &vec![7; 1 << 20]);
    let writing = async {
        // Until nobody takes any more, and then until the connection is gone.
        while app.try_send(&frame).await.is_ok() {}
    };
    tokio::join!(writing, async {
        scene.let_go().await;
        scene.gone("reset").await;
    });
    let mut next = Client::connect(scene.from.listen, "ann").await;
    assert_eq!(next.server, "to");
    next.check().await;
    assert_eq!(scene.book.count_at("to"), 1);
}

#[tokio::test]
async fn compression_survives_to_the_end_and_both_peers_see_their_close() {
    let (mut server, address) = Script::echo().await;
    let notice = Notice { message: Some("please reconnect".into()), ..Notice::default() };
    let mut scene = Scene::new(address, notice).await;
    let mut client = Script::node("client.js", &[&format!("ws://{}/?user=ann", scene.from.listen)]);
    assert!(client.says("echoed ").await.starts_with("permessage-deflate"));
    scene.let_go().await;
    assert_eq!(client.says("message ").await, "please reconnect");
    assert_eq!(client.says("closed ").await, "1012 moved");
    assert_eq!(server.says("closed ").await, "1001");
    scene.gone("clean").await;
}

#[tokio::test]
async fn a_connection_through_another_entry_ends_as_cleanly() {
    let book = Guestbook::default();
    let app = App::start("from", &book).await;
    let mut scene = Scene::new(app.address, Notice::default()).await;
    let router = Sidecar::router().await;
    scene.plan.others(&[&router]);
    scene.plan.settle();
    scene.plan.publish(&[&scene.from, &scene.to, &router]).await;
    let mut client = Client::connect(router.listen, "ann").await;
    client.check().await;
    scene.let_go().await;
    assert_eq!(client.goodbye().await, Some((1012, "moved".into())));
    drop(client);
    scene.gone("clean").await;
    assert_eq!(book.visits()[0].code, Some(1001));
    until("the entry has let go, too", async || equal(&router.status().await.transit, &0)).await;
    let breaks = router.status().await.breaks;
    assert_eq!(breaks.values().sum::<u64>(), 0, "the break is the source's, not the entry's: {breaks:?}");
}

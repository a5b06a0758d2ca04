//! What passes, and how connections end by themselves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use ring::settings::Notice;
use sidecar::frame;
use sidecar::relay::{Early, Ended, Relay};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::rig::{
    Rig, Shared, app_end, client_end, close_frame, ended, in_time, next, read_exactly, read_to_end, rig, rig_with,
    send, text, until,
};

#[test]
fn a_relay_is_small() {
    assert!(size_of::<Relay<Shared>>() <= 200, "{} bytes", size_of::<Relay<Shared>>());
}

#[tokio::test]
async fn messages_of_every_size_pass_whole_both_ways() {
    let Rig { client, app, relay, .. } = rig().await;
    let (mut client, mut app) = (client_end(client).await, app_end(app).await);
    for size in [0, 1, 125, 126, 65_535, 65_536, 16 << 20] {
        let payload: Bytes = (0..size).map(|index: u32| index.to_le_bytes()[0]).collect();
        let message = Message::Binary(payload);
        let echo = async {
            let message = next(&mut app).await;
            send(&mut app, message).await;
        };
        let ask = async {
            send(&mut client, message.clone()).await;
            next(&mut client).await
        };
        let ((), answer) = tokio::join!(echo, ask);
        assert!(answer == message, "{size} bytes came back otherwise");
    }
    drop((client, app));
    ended(relay).await;
}

#[tokio::test]
async fn what_was_read_with_the_heads_goes_first() {
    let early = Early { to_app: text("from the client"), to_client: text("from the app"), ..Early::default() };
    let Rig { mut client, mut app, .. } = rig_with(Notice::default(), early).await;
    client.write_all(b"then this").await.expect("an open connection");
    app.write_all(b"then that").await.expect("an open connection");
    let at_app = [text("from the client"), b"then this".to_vec()].concat();
    let at_client = [text("from the app"), b"then that".to_vec()].concat();
    assert_eq!(read_exactly(&mut app, at_app.len()).await, at_app);
    assert_eq!(read_exactly(&mut client, at_client.len()).await, at_client);
}

#[tokio::test]
async fn compressed_and_fragmented_frames_pass_untouched() {
    let Rig { mut client, mut app, .. } = rig().await;
    // RSV1 as permessage-deflate sets it, fragments with a ping between them, an empty last one.
    let frames = [&[0x41, 3, 0xaa, 0x56, 0][..], &[0x89, 2, b'h', b'i'], &[0x00, 1, 7], &[0x80, 0]].concat();
    app.write_all(&frames).await.expect("an open connection");
    assert_eq!(read_exactly(&mut client, frames.len()).await, frames);
}

#[tokio::test]
async fn a_clients_close_passes_with_its_code_and_reason() {
    let Rig { client, app, owner, relay, .. } = rig().await;
    let (mut client, mut app) = (client_end(client).await, app_end(app).await);
    send(&mut client, close_frame(4001, "bye")).await;
    assert_eq!(next(&mut app).await, close_frame(4001, "bye"));
    assert!(in_time(app.next()).await.is_none_or(|end| end.is_err()), "the app's Close is out");
    drop(app);
    assert_eq!(next(&mut client).await, close_frame(4001, "bye"));
    drop(client);
    assert_eq!(ended(relay).await, Ended::Client);
    assert_eq!((owner.asked(), owner.app_closed()), (0, 0));
}

#[tokio::test]
async fn an_apps_close_passes_with_its_code_and_reason() {
    let Rig { client, app, relay, .. } = rig().await;
    let (mut client, mut app) = (client_end(client).await, app_end(app).await);
    send(&mut app, close_frame(4401, "who are you?")).await;
    assert_eq!(next(&mut client).await, close_frame(4401, "who are you?"));
    // Reading on sends the client's reply; the end comes when the app has closed.
    let closing = async {
        assert_eq!(next(&mut app).await, close_frame(4401, "who are you?"));
        drop(app);
    };
    in_time(async { tokio::join!(client.next(), closing) }).await;
    drop(client);
    assert_eq!(ended(relay).await, Ended::App);
}

#[tokio::test]
async fn a_half_close_is_passed_on_and_the_other_way_goes_on() {
    let Rig { mut client, mut app, link, relay, .. } = rig().await;
    client.write_all(b"last words").await.expect("an open connection");
    client.shutdown().await.expect("an open connection");
    assert_eq!(read_to_end(&mut app).await, (b"last words".to_vec(), false));
    until("the link says half closed", || link.half_closed()).await;
    app.write_all(b"an answer").await.expect("an open way to the client");
    drop(app);
    assert_eq!(read_to_end(&mut client).await, (b"an answer".to_vec(), false));
    assert_eq!(ended(relay).await, Ended::Client);
}

#[tokio::test]
async fn what_an_app_said_before_it_closed_reaches_a_client_that_is_still_sending() {
    let Rig { mut client, mut app, .. } = rig().await;
    app.write_all(&frame::close(4401, "no")).await.expect("an open connection");
    drop(app);
    // The app's kernel answers the first of this with a reset.
    goes_on_sending(&client).await;
    assert_eq!(read_to_end(&mut client).await, (frame::close(4401, "no"), false));
}

/// A client that does not notice that nobody listens any more is not reset for it.
async fn goes_on_sending(client: &TcpStream) {
    let blocks = AtomicUsize::new(0);
    until("the client could send on", || {
        client.try_write(&[0; 4096]).expect("a connection that still takes it");
        blocks.fetch_add(1, Ordering::Relaxed) > 20
    })
    .await;
}

#[tokio::test]
async fn an_app_that_breaks_is_no_reset_for_a_client_that_is_still_sending() {
    let Rig { mut client, app, relay, .. } = rig().await;
    socket2::SockRef::from(&app).set_linger(Some(Duration::ZERO)).expect("a live socket");
    drop(app);
    assert_eq!(read_to_end(&mut client).await, (Vec::new(), false));
    goes_on_sending(&client).await;
    drop(client);
    assert_eq!(ended(relay).await, Ended::App);
}

#[tokio::test]
async fn a_reset_breaks_both_sides_at_once() {
    let Rig { mut client, mut app, link, owner, relay } = rig().await;
    // From another thread, as the registry does.
    std::thread::spawn(move || link.reset()).join().expect("no panic");
    assert_eq!(ended(relay).await, Ended::Reset);
    assert_eq!(read_to_end(&mut client).await, (Vec::new(), true));
    read_to_end(&mut app).await;
    assert_eq!((owner.asked(), owner.app_closed()), (0, 0));
}

#[tokio::test]
async fn a_client_that_breaks_ends_the_connection() {
    let Rig { client, mut app, relay, .. } = rig().await;
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("a live socket");
    drop(client);
    assert_eq!(ended(relay).await, Ended::Client);
    read_to_end(&mut app).await;
}

//! How one connection is evicted.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use ring::settings::{Notice, NoticeProtocol};
use sidecar::relay::{Connect, Early, Ended, Manner, Opening};
use sidecar::{eviction, frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use crate::rig::{
    RESET, Rig, app_end, clean, client_end, close_frame, ended, in_time, next, read_exactly, read_to_end, rig,
    rig_with, send, text, until,
};

#[tokio::test]
async fn an_evicted_client_sees_the_notice_and_the_app_its_own_close() {
    let Rig { client, app, link, owner, relay } = rig().await;
    let (mut client, mut app) = (client_end(client).await, app_end(app).await);
    send(&mut client, "hello".into()).await;
    assert_eq!(next(&mut app).await, "hello".into());
    std::thread::spawn(move || link.evict()).join().expect("no panic");
    assert_eq!(next(&mut client).await, close_frame(1012, "moved"));
    // Reading on sends the client's reply, and sees our FIN without closing first.
    let end = async {
        let end = client.next().await;
        assert!(end.is_none_or(|end| matches!(end, Err(Error::ConnectionClosed))), "a clean end");
    };
    let closing = async {
        assert_eq!(next(&mut app).await, close_frame(1001, ""));
        assert!(app.next().await.is_none(), "nothing behind it");
    };
    in_time(async { tokio::join!(end, closing) }).await;
    until("the app has closed", || owner.app_closed() == 1).await;
    drop((client, app));
    assert_eq!(ended(relay).await, clean(0));
    assert_eq!((owner.asked(), owner.app_closed()), (1, 1));
}

#[tokio::test]
async fn a_binary_notice_goes_to_a_client_whose_server_speaks_binary() {
    let notice = Notice { protocol: NoticeProtocol::SignalR, ..Notice::default() };
    let Rig { client, app, link, relay, .. } = rig_with(notice, Early::default()).await;
    let (mut client, mut app) = (client_end(client).await, app_end(app).await);
    send(&mut app, Message::binary(vec![1, 2])).await;
    assert_eq!(next(&mut client).await, Message::binary(vec![1, 2]));
    link.evict();
    assert_eq!(next(&mut client).await, Message::binary(vec![0x04, 0x93, 0x07, 0xc0, 0xc3]));
    assert_eq!(next(&mut client).await, close_frame(1001, "moved"));
    drop((client, app));
    ended(relay).await;
}

#[tokio::test]
async fn a_client_of_mqtt_5_is_sent_a_disconnect_and_an_older_one_only_closed() {
    for level in [4, 5] {
        let notice = Notice { protocol: NoticeProtocol::MQTT, ..Notice::default() };
        let early = Early { opening: Some(Box::new(Opening::Mqtt(Connect::default()))), ..Early::default() };
        let Rig { client, app, link, relay, .. } = rig_with(notice, early).await;
        let (mut client, mut app) = (client_end(client).await, app_end(app).await);
        let connect = Message::binary([&[0x10, 13, 0, 4][..], b"MQTT", &[level, 2, 0, 60, 0, 1, b'a']].concat());
        send(&mut client, connect.clone()).await;
        assert_eq!(next(&mut app).await, connect);
        let connack = Message::binary(vec![0x20, 2, 0, 0]);
        send(&mut app, connack.clone()).await;
        assert_eq!(next(&mut client).await, connack);
        link.evict();
        if level == 5 {
            assert_eq!(next(&mut client).await, Message::binary(vec![0xe0, 0x02, 0x9c, 0x00]));
        }
        assert_eq!(next(&mut client).await, close_frame(1012, "moved"));
        drop((client, app));
        ended(relay).await;
    }
}

#[tokio::test]
async fn where_an_unknown_extension_was_agreed_on_only_the_close_goes_out() {
    let notice = Notice { message: Some("bye".into()), ..Notice::default() };
    let early = Early { opening: Some(Box::new(Opening::Opaque)), ..Early::default() };
    let Rig { client, app, link, relay, .. } = rig_with(notice, early).await;
    let mut client = client_end(client).await;
    link.evict();
    assert_eq!(next(&mut client).await, close_frame(1012, "moved"));
    drop((client, app));
    ended(relay).await;
}

#[tokio::test]
async fn a_notice_with_a_message_sends_it_before_the_close() {
    let notice = Notice {
        message: Some("{\"op\":7}".into()),
        close_code: Some(4000),
        app_close_code: 4002,
        ..Notice::default()
    };
    let Rig { client, app, link, relay, .. } = rig_with(notice, Early::default()).await;
    let (mut client, mut app) = (client_end(client).await, app_end(app).await);
    link.evict();
    assert_eq!(next(&mut client).await, "{\"op\":7}".into());
    assert_eq!(next(&mut client).await, close_frame(4000, "moved"));
    let closing = async {
        assert_eq!(next(&mut app).await, close_frame(4002, ""));
        app.next().await
    };
    in_time(async { tokio::join!(client.next(), closing) }).await;
    drop((client, app));
    assert_eq!(ended(relay).await, clean(0));
}

#[tokio::test]
async fn an_eviction_that_is_called_off_leaves_no_trace_and_another_may_follow() {
    let Rig { client, app, link, owner, relay } = rig().await;
    let (mut client, mut app) = (client_end(client).await, app_end(app).await);
    owner.set(None);
    link.evict();
    until("the owner was asked", || owner.asked() == 1).await;
    send(&mut app, "still here".into()).await;
    assert_eq!(next(&mut client).await, "still here".into());
    send(&mut client, "me too".into()).await;
    assert_eq!(next(&mut app).await, "me too".into());
    assert_eq!(owner.app_closed(), 0);
    owner.set(Some(Notice::default()));
    link.evict();
    assert_eq!(next(&mut client).await, close_frame(1012, "moved"));
    in_time(async { tokio::join!(client.next(), async { (app.next().await, app.next().await) }) }).await;
    drop((client, app));
    assert_eq!(ended(relay).await, clean(0));
    assert_eq!((owner.asked(), owner.app_closed()), (2, 1));
}

/// An app that writes messages without a pause, in pieces that each end in the middle of a message.
struct Chatter {
    message: Vec<u8>,
    written: usize,
}

impl Chatter {
    fn new() -> Self {
        Self { message: text(&"x".repeat(10_007)), written: 0 }
    }

    /// Writes up to the middle of the next message, as far as there is room; false once the other side has closed.
    fn write(&mut self, app: &TcpStream) -> bool {
        let (one, half) = (self.message.len(), self.message.len() / 2);
        let at = self.written % one;
        let end = if at < half { half } else { one + half };
        match app.try_write(&self.message.repeat(2)[at..end]) {
            Ok(sent) => self.written += sent,
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
        true
    }
}

#[tokio::test]
async fn a_busy_app_is_cut_between_messages_and_what_it_wrote_later_is_counted() {
    let Rig { mut client, app, link, relay, .. } = rig().await;
    let mut chatter = Chatter::new();
    let one = chatter.message.len();
    let writing = tokio::spawn(async move {
        while chatter.write(&app) {
            let mut close = [0; 16];
            if let Ok(length) = app.try_read(&mut close) {
                assert_eq!(length, 8, "one masked Close");
                break;
            }
            tokio::task::yield_now().await;
        }
        chatter.written
    });
    link.evict();
    let mut received: usize = 0;
    let mut tail = Vec::new();
    let close = frame::close(1012, "moved");
    while !tail.ends_with(&close) {
        let mut bytes = vec![0; 1 << 16];
        let length = in_time(client.read(&mut bytes)).await.expect("an open connection");
        assert!(length > 0, "the end came before our Close");
        received += length;
        tail.extend_from_slice(&bytes[..length]);
        tail.drain(..tail.len().saturating_sub(close.len()));
    }
    received -= close.len();
    assert_eq!(received % one, 0, "cut within a message");
    client.write_all(&frame::masked_close(1012, [1, 2, 3, 4])).await.expect("an open connection");
    assert_eq!(read_to_end(&mut client).await, (Vec::new(), false));
    drop(client);
    let written = in_time(writing).await.expect("no panic");
    let Ended::Evicted { manner: Manner::Clean, discarded } = ended(relay).await else { panic!("not clean") };
    assert_eq!(received as u64 + discarded, written as u64);
    assert!(discarded > 0, "an app that never stops writes behind the cut");
}

#[tokio::test]
async fn a_busy_app_whose_eviction_is_called_off_at_the_cut_loses_nothing() {
    let Rig { mut client, app, link, owner, relay } = rig().await;
    owner.set(None);
    let writing = tokio::spawn({
        let owner = Arc::clone(&owner);
        async move {
            let mut chatter = Chatter::new();
            while owner.asked() == 0 {
                assert!(chatter.write(&app), "an open connection");
                tokio::task::yield_now().await;
            }
            chatter
        }
    });
    link.evict();
    let reading = async {
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.expect("a clean end");
        received
    };
    let (received, chatter) = in_time(async { tokio::join!(reading, writing) }).await;
    let Chatter { message, written } = chatter.expect("no panic");
    assert_eq!(received.len(), written);
    assert!(received.chunks(message.len()).all(|chunk| message.starts_with(chunk)), "bytes were lost or moved");
    drop(client);
    assert_eq!(ended(relay).await, Ended::App);
    assert_eq!((owner.asked(), owner.app_closed()), (1, 0));
}

#[tokio::test]
async fn a_client_in_the_middle_of_a_message_may_finish_it() {
    let Rig { mut client, app, link, owner, relay } = rig().await;
    let mut app = app_end(app).await;
    // Two masked fragments, of which the second comes after our Close.
    client.write_all(&[0x01, 0x81, 0, 0, 0, 0, b'a']).await.expect("an open connection");
    link.evict();
    let close = frame::close(1012, "moved");
    assert_eq!(read_exactly(&mut client, close.len()).await, close);
    client.write_all(&[0x80, 0x81, 0, 0, 0, 0, b'b']).await.expect("an open connection");
    assert_eq!(next(&mut app).await, "ab".into());
    assert_eq!(owner.app_closed(), 0);
    // Its reply, cut in two, with bytes behind it that nobody wants.
    let reply = [frame::masked_close(1012, [9; 4]), b"noise".to_vec()].concat();
    client.write_all(&reply[..1]).await.expect("an open connection");
    client.write_all(&reply[1..]).await.expect("an open connection");
    assert_eq!(next(&mut app).await, close_frame(1001, ""));
    assert!(in_time(app.next()).await.is_none(), "nothing behind it");
    assert_eq!(read_to_end(&mut client).await, (Vec::new(), false));
    drop((client, app));
    assert_eq!(ended(relay).await, clean(0));
}

#[tokio::test]
async fn between_fragments_the_close_comes_without_the_message() {
    let notice = Notice { message: Some("not now".into()), ..Notice::default() };
    let Rig { client, mut app, link, relay, .. } = rig_with(notice, Early::default()).await;
    let mut client = client_end(client).await;
    app.write_all(&[0x01, 1, b'a', 0x89, 0]).await.expect("an open connection");
    assert_eq!(next(&mut client).await, Message::Ping(Bytes::new()));
    link.evict();
    assert_eq!(next(&mut client).await, close_frame(1012, "moved"));
    let mut app = app_end(app).await;
    let closing = async {
        assert_eq!(next(&mut app).await, Message::Pong(Bytes::new()));
        assert_eq!(next(&mut app).await, close_frame(1001, ""));
        app.next().await
    };
    in_time(async { tokio::join!(client.next(), closing) }).await;
    drop((client, app));
    assert_eq!(ended(relay).await, clean(0));
}

#[tokio::test]
async fn in_the_middle_of_a_frame_the_deadline_resets() {
    let Rig { mut client, mut app, link, owner, relay } = rig().await;
    app.write_all(&text("half of this")[..6]).await.expect("an open connection");
    assert_eq!(read_exactly(&mut client, 6).await.len(), 6);
    link.evict();
    assert_eq!(read_to_end(&mut client).await, (Vec::new(), true));
    read_to_end(&mut app).await;
    assert_eq!(ended(relay).await, RESET);
    assert_eq!((owner.asked(), owner.app_closed()), (1, 1));
}

#[tokio::test]
async fn malformed_frames_are_passed_on_and_evicted_by_a_reset() {
    let Rig { mut client, mut app, link, owner, relay } = rig().await;
    let malformed = [0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3];
    app.write_all(&malformed).await.expect("an open connection");
    assert_eq!(read_exactly(&mut client, malformed.len()).await, malformed);
    link.evict();
    assert_eq!(read_to_end(&mut client).await, (Vec::new(), true));
    assert_eq!(ended(relay).await, RESET);
    assert_eq!((owner.asked(), owner.app_closed()), (1, 1));
}

#[tokio::test]
async fn a_client_that_has_stopped_reading_holds_a_bounded_backlog_and_is_reset() {
    let Rig { client, app, link, owner, relay } = rig().await;
    let block = text(&"x".repeat(100_000));
    let written = AtomicUsize::new(0);
    // Full when nothing has moved for a while.
    until("everything on the way is full", || {
        while let Ok(sent) = app.try_write(&block) {
            written.fetch_add(sent, Ordering::Relaxed);
        }
        link.quiet() >= Duration::from_millis(300)
    })
    .await;
    // The kernel's buffers take a few megabytes; a relay without a bound would have taken everything.
    assert!(written.into_inner() < 64 << 20);
    link.evict();
    until("the app is closed", || owner.app_closed() == 1).await;
    assert!(matches!(ended(relay).await, Ended::Evicted { manner: Manner::Reset, .. }));
    assert_eq!(owner.asked(), 1);
    drop(client);
}

#[tokio::test]
async fn a_client_that_does_not_reply_keeps_the_app_waiting_for_two_seconds_only() {
    let Rig { mut client, app, link, owner, relay } = rig().await;
    let mut app = app_end(app).await;
    link.evict();
    let close = frame::close(1012, "moved");
    // It gets our Close, then our FIN, and never says a word.
    assert_eq!(read_to_end(&mut client).await, (close, false));
    assert_eq!(next(&mut app).await, close_frame(1001, ""));
    assert!(in_time(app.next()).await.is_none(), "nothing behind it");
    until("the app has closed", || owner.app_closed() == 1).await;
    assert_eq!(ended(relay).await, Ended::Evicted { manner: Manner::Unanswered, discarded: 0 });
    drop(client);
}

#[tokio::test]
async fn an_app_that_does_not_answer_its_close_is_given_up_after_five_seconds() {
    let Rig { client, mut app, link, owner, relay } = rig().await;
    let mut client = client_end(client).await;
    link.evict();
    assert_eq!(next(&mut client).await, close_frame(1012, "moved"));
    // The client's side is over long before the app's.
    assert!(in_time(client.next()).await.is_none_or(|end| end.is_err()));
    drop(client);
    assert_eq!(read_exactly(&mut app, 8).await[..2], [0x88, 0x82]);
    assert_eq!(owner.app_closed(), 0);
    assert_eq!(ended(relay).await, RESET);
    assert_eq!(owner.app_closed(), 1);
    drop(app);
}

#[tokio::test]
async fn a_client_that_goes_without_a_reply_still_gives_the_app_its_close() {
    let Rig { mut client, app, link, relay, .. } = rig().await;
    let mut app = app_end(app).await;
    link.evict();
    let close = frame::close(1012, "moved");
    assert_eq!(read_exactly(&mut client, close.len()).await, close);
    drop(client);
    assert_eq!(next(&mut app).await, close_frame(1001, ""));
    assert!(in_time(app.next()).await.is_none(), "nothing behind it");
    drop(app);
    assert_eq!(ended(relay).await, Ended::Evicted { manner: Manner::Unanswered, discarded: 0 });
}

#[tokio::test]
async fn a_client_that_goes_in_the_middle_of_a_frame_gives_the_app_no_close_inside_it() {
    let Rig { mut client, mut app, link, owner, relay } = rig().await;
    let half = [0x81, 0x85, 0, 0, 0, 0, b'a'];
    client.write_all(&half).await.expect("an open connection");
    link.evict();
    let close = frame::close(1012, "moved");
    assert_eq!(read_exactly(&mut client, close.len()).await, close);
    drop(client);
    assert_eq!(read_to_end(&mut app).await, (half.to_vec(), false));
    until("the app is let go", || owner.app_closed() == 1).await;
    drop(app);
    assert_eq!(ended(relay).await, Ended::Evicted { manner: Manner::Unanswered, discarded: 0 });
}

#[tokio::test]
async fn a_connection_that_is_closing_by_itself_is_not_told() {
    let Rig { client, app, link, owner, relay } = rig().await;
    let (mut client, mut app) = (client_end(client).await, app_end(app).await);
    send(&mut client, close_frame(4001, "bye")).await;
    assert_eq!(next(&mut app).await, close_frame(4001, "bye"));
    link.evict();
    // Long enough for any other connection to be told.
    until("the app has taken its time", || link.quiet() > 2 * eviction::QUIET).await;
    in_time(async { tokio::join!(app.next(), client.next()) }).await;
    drop((client, app));
    assert_eq!(ended(relay).await, Ended::Client);
    assert_eq!((owner.asked(), owner.app_closed()), (0, 0));
}

#[tokio::test]
async fn an_app_that_closes_by_itself_where_it_would_be_cut_keeps_its_own_code() {
    let Rig { mut client, mut app, link, owner, relay } = rig().await;
    let stream = [text("the last message"), frame::close(4401, "who are you?")].concat();
    app.write_all(&stream[..6]).await.expect("an open connection");
    link.evict();
    until("the connection counts as busy", || link.quiet() > eviction::BUSY).await;
    app.write_all(&stream[6..]).await.expect("an open connection");
    assert_eq!(read_exactly(&mut client, stream.len()).await, stream);
    drop((client, app));
    assert_eq!(ended(relay).await, Ended::App);
    assert_eq!((owner.asked(), owner.app_closed()), (0, 0));
}

//! A sidecar alone passes WebSocket handshakes byte by byte, and what follows them untouched.

use futures_util::{SinkExt as _, StreamExt as _};
use harness::frames::{self, opcode};
use harness::script::Script;
use harness::{App, Backend, Client, Guestbook, Sidecar, Wire};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

async fn pair() -> (Sidecar, Backend) {
    let app = Backend::start().await;
    (Sidecar::beside(app.address).await, app)
}

const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[tokio::test]
async fn a_handshake_and_its_101_pass_byte_for_byte() {
    let (sidecar, app) = pair().await;
    let mut client = Wire::dial(sidecar.listen).await;
    let before = "GET /a%2Fb/../c?user=%20+ HTTP/1.1\r\nhOSt:  example.com:80 \r\nX-B: 2\r\nX-A: 1\r\nX-B:3\r\n\
                  UPGRADE: WebSocket\r\nConnection: keep-alive, Upgrade\r\nsec-websocket-version: 13\r\n";
    let after = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat, superchat\r\n\
                 Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nCookie: b=2; a=1\r\n\
                 X-Empty:\r\n";
    let ours = "wspool-key: forged\r\nWSPool_From: forged\r\n";
    client.send(format!("{before}{ours}{after}\r\n")).await;
    let mut app = app.accept().await;
    assert_eq!(app.head().await, format!("{before}{after}X-Forwarded-For: 127.0.0.1\r\n\r\n"));

    let before = "HTTP/1.1 101 Web Socket Protocol Handshake\r\nset-cookie: b=2\r\nUpgrade:  WebSocket \r\n";
    let after = "CONNECTION: upgrade\r\nSet-Cookie: a=1\r\nSec-WebSocket-Accept: whatever it says\r\nX-Empty:\r\n\
                 Sec-WebSocket-Extensions: permessage-deflate\r\n";
    app.send(format!("{before}wspool-owner: leaked\r\n{after}\r\n")).await;
    assert_eq!(client.head().await, format!("{before}{after}\r\n"));
}

#[tokio::test]
async fn the_clients_address_is_appended_to_the_last_x_forwarded_for() {
    let (sidecar, app) = pair().await;
    let mut client = Wire::dial(sidecar.listen).await;
    let forwarded = "X-Forwarded-For: 203.0.113.9\r\nx-forwarded-for: 198.51.100.7\r\n";
    client.send(HANDSHAKE.replace("Upgrade: websocket\r\n", &format!("{forwarded}Upgrade: websocket\r\n"))).await;
    let head = app.accept().await.head().await;
    let appended = "X-Forwarded-For: 203.0.113.9\r\nx-forwarded-for: 198.51.100.7, 127.0.0.1\r\n";
    assert_eq!(head, HANDSHAKE.replace("Upgrade: websocket\r\n", &format!("{appended}Upgrade: websocket\r\n")));
}

#[tokio::test]
async fn bytes_behind_the_handshake_are_not_lost_on_either_side() {
    let (sidecar, app) = pair().await;
    let mut client = Wire::dial(sidecar.listen).await;
    let early = frames::masked(opcode::TEXT, b"sent before the answer");
    client.send([HANDSHAKE.as_bytes(), &early].concat()).await;
    let mut app = app.accept().await;
    app.head().await;
    let greeting = frames::plain(opcode::TEXT, b"sent with the answer");
    app.send([SWITCHING.as_bytes(), &greeting].concat()).await;
    assert_eq!(app.exactly(early.len()).await, early);
    assert_eq!(client.head().await, SWITCHING);
    assert_eq!(client.exactly(greeting.len()).await, greeting);
}

#[tokio::test]
async fn an_answer_that_is_not_101_reaches_the_client_with_its_body() {
    let (sidecar, app) = pair().await;
    let answers = [
        ("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 5\r\n", "sorry"),
        ("HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n", "2\r\nno\r\n0\r\n\r\n"),
        ("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n", ""),
        ("HTTP/1.1 200 OK\r\n", "until the end"),
    ];
    for (head, body) in answers {
        let mut client = Wire::dial(sidecar.listen).await;
        client.send(HANDSHAKE).await;
        let mut app = app.accept().await;
        app.head().await;
        app.send(format!("{head}\r\n{body}")).await;
        app.finish().await;
        let answer = String::from_utf8(client.rest().await.expect("a clean end")).expect("text");
        assert!(answer.starts_with(head), "{head:?} became {answer:?}");
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{body:?} became {answer:?}");
    }
    assert_eq!(sidecar.status().await.connections, 0);
}

#[tokio::test]
async fn a_handshake_on_a_connection_that_was_kept_alive_is_passed_on() {
    let (sidecar, app) = pair().await;
    let mut client = Wire::dial(sidecar.listen).await;
    client.send("GET /page HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut page = app.accept().await;
    page.head().await;
    page.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage").await;
    client.up_to("page").await;

    let early = frames::masked(opcode::TEXT, b"early");
    client.send([HANDSHAKE.as_bytes(), &early].concat()).await;
    let mut app = app.accept().await;
    let head = app.head().await.to_lowercase();
    assert!(head.contains("sec-websocket-key: dghlihnhbxbszsbub25jzq=="), "{head}");
    let greeting = frames::plain(opcode::TEXT, b"hello");
    app.send([SWITCHING.as_bytes(), &greeting].concat()).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    assert_eq!(client.exactly(greeting.len()).await, greeting);
    assert_eq!(app.exactly(early.len()).await, early);
    assert_eq!(sidecar.status().await.connections, 1);
}

#[tokio::test]
async fn messages_of_16_mib_and_fragments_with_control_frames_between_pass() {
    let book = Guestbook::default();
    let app = App::start("server", &book).await;
    let sidecar = Sidecar::beside(app.address).await;

    let mut client = Client::connect(sidecar.listen, "ann").await;
    let large = Message::binary(vec![7; 16 << 20]);
    client.send(large.clone()).await;
    assert!(client.hear().await == large, "the message came back changed");

    let stream = tokio::net::TcpStream::connect(sidecar.listen).await.expect("a connection");
    let url = format!("ws://{}/?user=bob", sidecar.listen);
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a handshake");
    let fragment = |text: &'static str, kind, last| Message::Frame(Frame::message(text, OpCode::Data(kind), last));
    let parts = [
        fragment("one ", Data::Text, false),
        Message::Ping("between".into()),
        fragment("two ", Data::Continue, false),
        fragment("three", Data::Continue, true),
    ];
    for part in parts {
        socket.send(part).await.expect("a frame sent");
    }
    let mut heard = Vec::new();
    while heard.len() < 3 {
        heard.push(socket.next().await.expect("an open connection").expect("a message"));
    }
    assert_eq!(heard, [Message::text("server"), Message::Pong("between".into()), Message::text("one two three")]);
}

#[tokio::test]
async fn frames_pass_bit_by_bit_whatever_extensions_make_of_them() {
    let (sidecar, app) = pair().await;
    let (mut client, mut app) = app.ends(sidecar.listen).await;
    let mut compressed = frames::masked(opcode::BINARY, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
    compressed[0] |= 0x40; // RSV1
    let mut reserved = frames::masked(0xb, b"an opcode of the future");
    reserved[0] |= 0x30; // RSV2 and RSV3
    // Malformed on purpose: the length is not the shortest, and then not allowed at all.
    let long_winded = [&[0x81, 0xfe, 0, 1, 1, 2, 3, 4], &b"x"[..]].concat();
    let broken = [&[0x82, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 1], &b"more"[..]].concat();
    for bytes in [compressed, reserved, long_winded, broken] {
        client.send(&bytes).await;
        assert_eq!(app.exactly(bytes.len()).await, bytes);
        app.send(&bytes).await;
        assert_eq!(client.exactly(bytes.len()).await, bytes);
    }
    client.finish().await;
    assert_eq!(app.rest().await.expect("a clean end"), b"");
    app.send("still open this way").await;
    app.finish().await;
    assert_eq!(client.rest().await.expect("a clean end"), b"still open this way");
}

#[tokio::test]
async fn compression_is_negotiated_by_the_peers_and_their_messages_pass() {
    let (mut server, address) = Script::echo().await;
    let sidecar = Sidecar::beside(address).await;
    let mut client = Script::node("client.js", &[&format!("ws://{}/?user=ann", sidecar.listen)]);
    assert!(client.says("echoed ").await.starts_with("permessage-deflate"));
    client.go_on();
    assert_eq!(server.says("closed ").await, "1005");
}

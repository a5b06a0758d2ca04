use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use super::*;
use crate::key::KEY_MAX;

const HANDSHAKE: &str = "GET /chat?user=7 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n\
                         uPGRADE: WebSocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn limits() -> HeadLimits {
    HeadLimits::default()
}

/// Sends the parts one after the other, then closes if asked to, and reads the head on the other side.
async fn read_parts(parts: &[&[u8]], close: bool, limits: HeadLimits) -> Result<RequestHead, HeadError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let parts: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
    let writer = tokio::spawn(async move {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("a live socket");
        for part in parts {
            // The reader may have refused it already.
            let _ = stream.write_all(&part).await;
            tokio::task::yield_now().await;
        }
        if close {
            let _ = stream.shutdown().await;
        }
        stream
    });
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let head = read_request(&mut stream, limits).await;
    drop(writer.await);
    head
}

async fn parse(head: &str) -> Result<RequestHead, HeadError> {
    read_parts(&[head.as_bytes()], true, limits()).await
}

async fn refusal(head: &str) -> HeadError {
    parse(head).await.expect_err(head)
}

#[tokio::test]
async fn a_handshake_is_read_with_what_follows_it() {
    let mut head = read_parts(&[HANDSHAKE.as_bytes(), b"frames"], true, limits()).await.expect("a good head");
    assert_eq!((head.method(), head.target()), ("GET", "/chat?user=7"));
    assert_eq!((head.path(), head.query()), ("/chat", Some("user=7")));
    assert_eq!(head.header("UPGRADE"), Some(&b"WebSocket"[..]));
    assert_eq!(head.headers().nth(2), Some(("uPGRADE", &b"WebSocket"[..])));
    assert!(head.upgrade().expect("a handshake").is_ok());
    assert!(b"frames".starts_with(&head.take_rest()));
    assert_eq!(head.into_bytes(), HANDSHAKE.as_bytes());
}

#[tokio::test]
async fn a_head_may_come_byte_by_byte() {
    let bytes: Vec<&[u8]> = HANDSHAKE.as_bytes().chunks(1).collect();
    assert!(read_parts(&bytes, true, limits()).await.is_ok());
}

#[tokio::test]
async fn each_smuggling_shape_is_refused_by_its_own_name() {
    let cases: &[(&str, HeadError)] = &[
        ("GET / HTTP/1.1\nHost: a\n\n", Fault::BareLineFeed.into()),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", Fault::BareLineFeed.into()),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", Fault::BareLineFeed.into()),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Fault::BareLineFeed.into()),
        ("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", Fault::BareCarriageReturn.into()),
        ("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", Fault::BareCarriageReturn.into()),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", Fault::Nul.into()),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", Fault::ObsoleteFold.into()),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Fault::ObsoleteFold.into()),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Fault::SpaceBeforeColon.into()),
        ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n", Fault::SpaceBeforeColon.into()),
        ("GET / HTTP/1.1\r\nHost: a\r\nX(y): b\r\n\r\n", Fault::FieldName.into()),
        ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", Fault::FieldName.into()),
        ("GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", Fault::FieldName.into()),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n", Fault::FieldValue.into()),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\x7f\r\n\r\n", Fault::FieldValue.into()),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
        ("GET chat HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::RequestLine),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", HeadError::RequestLine),
        ("GET / HTTP/11\r\nHost: a\r\n\r\n", HeadError::Version),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", HeadError::Version),
        ("GET /\r\nHost: a\r\n\r\n", HeadError::RequestLine),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", HeadError::UnknownVersion),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", HeadError::UnknownVersion),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Connect),
        ("GET / HTTP/1.1\r\n\r\n", HeadError::HostMissing),
        ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", HeadError::HostRepeated),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", HeadError::HostMalformed),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", HeadError::HostMalformed),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", HeadError::HostMalformed),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", HeadError::LengthRepeated),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\ncontent-length: 4\r\n\r\n", HeadError::LengthRepeated),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n", HeadError::LengthMalformed),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n", HeadError::LengthMalformed),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\n", HeadError::LengthMalformed),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", HeadError::LengthMalformed),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n", HeadError::LengthMalformed),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            HeadError::LengthAndEncoding,
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", HeadError::Encoding),
        ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n", HeadError::Encoding),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            HeadError::Encoding,
        ),
        ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", HeadError::Encoding),
    ];
    for (head, expected) in cases {
        assert_eq!(refusal(head).await, *expected, "{head:?}");
    }
}

#[tokio::test]
async fn what_is_unusual_but_clear_is_accepted() {
    let cases = [
        "GET / HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]:80\r\nX:\r\nY: ä\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
    ];
    for head in cases {
        assert!(parse(head).await.is_ok(), "{head:?}");
    }
}

#[tokio::test]
async fn the_path_of_an_absolute_target_is_without_its_authority() {
    for (target, path, query) in [
        ("http://a:80/b/c?d=e", "/b/c", Some("d=e")),
        ("ws://a", "/", None),
        ("ws://a?q", "/", Some("q")),
        ("/go?to=http://a/b", "/go", Some("to=http://a/b")),
    ] {
        let head = parse(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await.expect(target);
        assert_eq!((head.path(), head.query()), (path, query), "{target}");
    }
}

#[tokio::test]
async fn a_wrong_handshake_is_refused_and_another_upgrade_is_plain_http() {
    let with = |from: &str, to: &str| HANDSHAKE.replace(from, to);
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let cases = [
        (with("Version: 13", "Version: 8"), Some(HeadError::WebSocketVersion)),
        (with("Sec-WebSocket-Version: 13\r\n", ""), Some(HeadError::WebSocketVersion)),
        (with(key, ""), Some(HeadError::WebSocketKeyMissing)),
        (with(key, &key.repeat(2)), Some(HeadError::WebSocketKeyRepeated)),
        (with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ=="), Some(HeadError::WebSocketKeyMalformed)),
        (with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j?Q=="), Some(HeadError::WebSocketKeyMalformed)),
        (with("Host: a\r\n", "Host: a\r\nContent-Length: 3\r\n"), Some(HeadError::UpgradeBody)),
        (with("Host: a\r\n", "Host: a\r\nTransfer-Encoding: chunked\r\n"), Some(HeadError::UpgradeBody)),
        (with("WebSocket\r\n", "h2c\r\n"), None),
        (with("keep-alive, Upgrade", "keep-alive"), None),
        (with("GET", "POST"), None),
        (with("HTTP/1.1", "HTTP/1.0"), None),
    ];
    for (head, expected) in cases {
        let upgrade = parse(&head).await.expect(&head).upgrade();
        assert_eq!(upgrade.map(|upgrade| upgrade.expect_err(&head)), expected, "{head}");
    }
}

#[tokio::test]
async fn a_head_is_rewritten_byte_for_byte_but_for_what_is_ours() {
    let head = "GET /a%20b HTTP/1.1\r\nHoSt:  a\r\nWSPOOL-Key: forged\r\nwspool_epoch: 1\r\nX-Odd:\t b  \r\n\
                Wspool-From: x\r\nX-Odd: c\r\n\r\n";
    let kept = "GET /a%20b HTTP/1.1\r\nHoSt:  a\r\nX-Odd:\t b  \r\nX-Odd: c\r\n";
    let head = parse(head).await.expect("a good head");
    assert_eq!(String::from_utf8_lossy(&head.rewrite(&Edit::default())), format!("{kept}\r\n"));
    let edit = Edit { forwarded_for: "10.0.0.1".parse().ok(), add: &[("wspool-epoch", "1.7".into())] };
    let expected = format!("{kept}X-Forwarded-For: 10.0.0.1\r\nwspool-epoch: 1.7\r\n\r\n");
    assert_eq!(String::from_utf8_lossy(&head.rewrite(&edit)), expected);
}

#[tokio::test]
async fn the_clients_address_goes_behind_the_last_one_that_is_there() {
    let head = "GET / HTTP/1.1\r\nx-forwarded-for: 1.1.1.1\r\nHost: a\r\nX-Forwarded-For: 2.2.2.2, 3.3.3.3\r\n\r\n";
    let head = parse(head).await.expect("a good head");
    let edit = Edit { forwarded_for: "::1".parse().ok(), add: &[] };
    let expected = "GET / HTTP/1.1\r\nx-forwarded-for: 1.1.1.1\r\nHost: a\r\n\
                    X-Forwarded-For: 2.2.2.2, 3.3.3.3, ::1\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&head.rewrite(&edit)), expected);
}

#[tokio::test]
async fn a_head_without_headers_can_be_rewritten() {
    let head = parse("GET / HTTP/1.0\r\n\r\n").await.expect("a good head");
    assert_eq!(head.rewrite(&Edit::default()), b"GET / HTTP/1.0\r\n\r\n");
}

#[tokio::test]
async fn a_connection_that_ends_without_a_word_is_no_error_and_one_that_breaks_off_is() {
    assert_eq!(read_parts(&[], true, limits()).await.expect_err("nothing"), HeadError::Closed);
    assert_eq!(HeadError::Closed.response(), None);
    assert_eq!(refusal("GET / HT").await, HeadError::Truncated);
}

#[tokio::test]
async fn a_slow_head_and_an_endless_one_are_refused() {
    let limits = HeadLimits { max_bytes: 1_000, timeout: Duration::from_millis(50) };
    let slow = read_parts(&[b"GET / HTTP/1.1\r\n"], false, limits).await.expect_err("an unfinished head");
    assert_eq!((slow, slow.status().as_u16()), (HeadError::Slow, 408));
    let endless = "X: ".to_owned() + &"y".repeat(6_000);
    let parts = [&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], endless.as_bytes()];
    let large = read_parts(&parts, false, limits).await.expect_err("too large a head");
    assert_eq!((large, large.status().as_u16()), (HeadError::TooLarge, 431));
    // A complete head that is larger than allowed, read at once.
    let whole = format!("GET / HTTP/1.1\r\nHost: a\r\n{endless}\r\n\r\n");
    assert_eq!(read_parts(&[whole.as_bytes()], false, limits).await.expect_err("too large"), HeadError::TooLarge);
}

#[tokio::test]
async fn too_many_headers_are_refused() {
    let fields = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert!(parse(&fields(MAX_FIELDS - 1)).await.is_ok());
    let error = refusal(&fields(MAX_FIELDS)).await;
    assert_eq!((error, error.status().as_u16()), (Fault::TooManyFields.into(), 431));
}

#[tokio::test]
async fn the_largest_heads_of_clients_can_be_passed_to_a_peer() {
    let added = [("wspool-key", "k".repeat(3 * KEY_MAX)), ("wspool-auth", "a".repeat(100))];
    let edit = Edit { forwarded_for: "::1".parse().ok(), add: &added };
    let start = "GET / HTTP/1.1\r\nHost: a\r\n";
    let many = format!("{start}{}\r\n", "A: b\r\n".repeat(MAX_FIELDS - 1));
    let long =
        format!("{start}Cookie: {}\r\n\r\n", "c".repeat(limits().max_bytes - start.len() - "Cookie: ".len() - 4));
    for head in [many, long] {
        let passed_on = parse(&head).await.expect("as large as allowed").rewrite(&edit);
        read_parts(&[&passed_on], true, limits()).await.expect("a peer reads it");
        let not_ours = String::from_utf8(passed_on).expect("text").replace("wspool-", "x-");
        assert_eq!(refusal(&not_ours).await.status().as_u16(), 431);
    }
}

#[tokio::test]
async fn a_header_in_our_name_gives_a_client_no_more_room() {
    let start = "GET / HTTP/1.1\r\nHost: a\r\nWspool_x: y\r\n";
    let many = |count| format!("{start}{}\r\n", "A: b\r\n".repeat(count));
    let long = |bytes| format!("{start}Cookie: {}\r\n\r\n", "c".repeat(bytes));
    let max = limits().max_bytes;
    for (head, outcome) in [
        (many(MAX_FIELDS - 1), Ok(())),
        (many(MAX_FIELDS), Err(Fault::TooManyFields.into())),
        (long(max / 2), Ok(())),
        (long(max), Err(HeadError::TooLarge)),
    ] {
        let head = parse(&head).await.expect("a peer may send it");
        assert_eq!(head.check_client(limits()), outcome);
    }
}

#[tokio::test]
async fn other_protocols_are_answered_in_their_own() {
    let hello = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01];
    let tls = read_parts(&[&hello], false, limits()).await.expect_err("a TLS hello");
    assert_eq!(tls, HeadError::Tls);
    // A record of type alert: fatal, handshake_failure.
    assert_eq!(tls.response().expect("an alert"), [21, 3, 1, 0, 2, 2, 40]);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let http2 = read_parts(&[preface], false, limits()).await.expect_err("a preface");
    assert_eq!(http2, HeadError::Http2);
    let answer = http2.response().expect("frames");
    assert_eq!(answer[..9], [0, 0, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(answer[9..18], [0, 0, 8, 7, 0, 0, 0, 0, 0]);
    assert_eq!(answer[22..], [0, 0, 0, 0xd]);
}

#[test]
fn a_refusal_is_a_short_answer_that_says_what_would_be_right() {
    let answer = String::from_utf8(HeadError::HostRepeated.response().expect("an answer")).expect("text");
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert_eq!(body, "a request has one Host header, this has several\n");
    assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{answer}");
    let upgrade = String::from_utf8(HeadError::WebSocketVersion.response().expect("an answer")).expect("text");
    assert!(upgrade.starts_with("HTTP/1.1 426 ") && upgrade.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{upgrade}");
}

#[test]
fn a_handshake_that_hyper_has_read_becomes_a_head_again() {
    let request = |upgrade: &str| {
        http::Request::get("http://a/chat?user=7")
            .header("host", "a")
            .header("connection", "Upgrade")
            .header("upgrade", upgrade)
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .expect("a good request")
    };
    let head = RequestHead::of_request(&request("websocket")).expect("a handshake");
    assert_eq!(head.target(), "/chat?user=7");
    assert!(head.upgrade().expect("a handshake").is_ok());
    assert!(RequestHead::of_request(&request("h2c")).is_none());
}

proptest::proptest! {
    #[test]
    fn random_bytes_never_make_a_head_of_another_length(
        bytes in proptest::collection::vec(proptest::sample::select(b"GET / HTTP/1.1\r\n:a\0\t".to_vec()), 0..200),
    ) {
        let head = [b"GET / HTTP/1.0\r\n", &bytes[..], b"\r\n\r\n"].concat();
        let mut scanned = 0;
        if let Ok(Some(len)) = raw::scan(&head, &mut scanned)
            && let Ok(parsed) = RequestHead::parse(RawHead::whole(head[..len].to_vec()))
        {
            proptest::prop_assert!(head[..len].ends_with(b"\r\n\r\n"));
            for (name, value) in parsed.headers() {
                proptest::prop_assert!(!name.contains(['\r', '\n', ' ', ':']));
                proptest::prop_assert!(!value.iter().any(|byte| b"\r\n\0".contains(byte)));
            }
            proptest::prop_assert_eq!(parsed.rewrite(&Edit::default()), &head[..len]);
        }
    }
}

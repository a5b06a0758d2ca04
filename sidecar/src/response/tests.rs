use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use super::*;

const SWITCHING: &str = "HTTP/1.1 101 Web Socket Protocol Handshake\r\nUpgrade:websocket\r\nconnection: Upgrade\r\n\
                         Set-Cookie: a=1\r\nset-cookie: b=2\r\n";

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.expect("a connection"), far.expect("a connection").0)
}

/// An app that has written this, and then closed if asked to.
async fn app(answer: &str, close: bool) -> (TcpStream, TcpStream) {
    let (sidecar, mut app) = pair().await;
    app.write_all(answer.as_bytes()).await.expect("room for a short answer");
    if close {
        app.shutdown().await.expect("a live socket");
    }
    (sidecar, app)
}

async fn read_from(answer: &str) -> Result<ResponseHead, ResponseError> {
    let (mut sidecar, _app) = app(answer, true).await;
    read_response(&mut sidecar, Duration::from_secs(10)).await
}

/// What a client gets of an app's answer, and how passing it on ended.
async fn relayed(answer: &str, close: bool) -> (String, Result<(), ResponseError>) {
    let (mut upstream, _app) = app(answer, close).await;
    let (mut near, mut client) = pair().await;
    let head = read_response(&mut upstream, Duration::from_secs(10)).await.expect("a good head");
    let reading = async {
        let mut got = String::new();
        client.read_to_string(&mut got).await.expect("an answer up to its end");
        drop(client);
        got
    };
    let relaying = async {
        let ended = relay_response(head, &mut upstream, &mut near).await;
        drop(near);
        ended
    };
    tokio::join!(reading, relaying)
}

#[tokio::test]
async fn a_101_passes_unchanged_but_for_our_headers_with_what_follows() {
    let answer = format!("{SWITCHING}wspool-key: x\r\nWSPOOL_epoch: 1\r\n\r\nframes");
    let head = read_from(&answer).await.expect("a good head");
    assert_eq!(head.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(head.header("Wspool-Key"), Some(&b"x"[..]));
    let (head, rest) = head.into_switching();
    assert_eq!(String::from_utf8_lossy(&head), format!("{SWITCHING}\r\n"));
    assert_eq!(rest, b"frames");
}

#[tokio::test]
async fn interim_answers_go_first() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let head = read_from(&format!("{hints}{hints}{SWITCHING}\r\nframes")).await.expect("a good head");
    assert_eq!(head.status(), StatusCode::SWITCHING_PROTOCOLS);
    let (head, rest) = head.into_switching();
    assert_eq!(String::from_utf8_lossy(&head), format!("{hints}{hints}{SWITCHING}\r\n"));
    assert_eq!(rest, b"frames");
}

#[tokio::test]
async fn an_answer_ends_where_its_framing_says_and_the_connection_with_it() {
    let cases = [
        // The answer's head, its body, and what is not part of it.
        ("HTTP/1.1 403 No\r\nX: y\r\nContent-Length: 4\r\n", "nope", "HTTP/1.1 200 OK"),
        ("HTTP/1.1 403 No\r\nContent-Length: 0\r\n", "", "more"),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n", "", "more"),
        ("HTTP/1.1 204 No Content\r\n", "", "more"),
        (
            "HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n",
            "3;a=\"b\"\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\n",
            "more",
        ),
        ("HTTP/1.1 403 No\r\nTransfer-Encoding: Chunked\r\n", "1\r\na\r\n000\r\nA: b\r\nC: d\r\n\r\n", "more"),
    ];
    for (head, body, more) in cases {
        let answer = format!("{head}Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n{body}{more}");
        let (got, ended) = relayed(&answer, false).await;
        assert_eq!(got, format!("{head}Connection: close\r\n\r\n{body}"));
        assert!(ended.is_ok(), "{ended:?}");
    }
}

#[tokio::test]
async fn an_answer_without_a_length_ends_when_the_app_closes() {
    let (got, ended) = relayed("HTTP/1.0 403 No\r\n\r\nall of this", true).await;
    assert_eq!(got, "HTTP/1.0 403 No\r\nConnection: close\r\n\r\nall of this");
    assert!(ended.is_ok(), "{ended:?}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_and_not_padded() {
    let (got, ended) = relayed("HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\nshort", true).await;
    assert!(got.ends_with("\r\n\r\nshort"), "{got}");
    assert!(matches!(ended, Err(ResponseError::Io(_))), "{ended:?}");
}

#[tokio::test]
async fn an_answer_whose_end_is_in_doubt_becomes_a_502() {
    for lengths in [
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: -1\r\n",
    ] {
        let (got, ended) = relayed(&format!("HTTP/1.1 403 No\r\n{lengths}\r\nx"), false).await;
        assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
        assert!(matches!(ended, Err(ResponseError::Length)), "{ended:?}");
    }
}

#[tokio::test]
async fn a_large_body_passes_whole() {
    let body = "0123456789abcdef".repeat(64 * 1024);
    let (mut upstream, mut app) = pair().await;
    let (mut near, mut client) = pair().await;
    let answer = format!("HTTP/1.1 403 No\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let writing = async { app.write_all(answer.as_bytes()).await };
    let relaying = async {
        let head = read_response(&mut upstream, Duration::from_secs(10)).await?;
        relay_response(head, &mut upstream, &mut near).await
    };
    let reading = async {
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.expect("an answer up to its end");
        drop(client);
        got
    };
    let (written, ended, got) = tokio::join!(writing, relaying, reading);
    assert!(written.is_ok() && ended.is_ok(), "{written:?} {ended:?}");
    assert!(got.ends_with(body.as_bytes()));
}

#[tokio::test]
async fn malformed_answers_are_errors() {
    for answer in [
        "HTTP/1.1 101 S\nUpgrade: websocket\n\n",
        "HTTP/1.1 101 S\r\nUpgrade : websocket\r\n\r\n",
        "HTTP/1.1 101 S\r\nA: b\r\n c\r\n\r\n",
        "HTTP/2 101 S\r\n\r\n",
        "\r\nHTTP/1.1 101 S\r\n\r\n",
        "SSH-2.0-x\r\n\r\n",
        "",
        "HTTP/1.1 101 S\r\n",
    ] {
        assert!(read_from(answer).await.is_err(), "{answer:?}");
    }
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(MAX_BYTES));
    assert!(matches!(read_from(&large).await, Err(ResponseError::TooLarge)));
}

#[tokio::test]
async fn an_app_that_does_not_answer_is_given_up() {
    let (mut sidecar, _app) = app("HTTP/1.1 101 S\r\n", false).await;
    let answer = read_response(&mut sidecar, Duration::from_millis(30)).await;
    assert!(matches!(answer, Err(ResponseError::Slow(_))), "{answer:?}");
}

#[test]
fn malformed_chunks_are_refused() {
    let ends = |body: &[u8]| Framing::chunked().take(body);
    for body in
        [&b"\r\n"[..], b"g\r\n", b"1\nx", b"1\r\nxy", b"1\r\nx\n", b"1;a\nb", b"0\r\na\n", b"1234567890abcdef\r\n"]
    {
        assert!(matches!(ends(body), Err(ResponseError::Chunks)), "{body:?}");
    }
}

#[test]
fn chunks_end_at_the_same_byte_however_they_are_cut() {
    let body = b"4\r\n\r\n\r\n\r\nb;x=y\r\nhello world\r\n0\r\nA: b\r\n\r\nbehind";
    for size in 1..body.len() {
        let mut framing = Framing::chunked();
        let mut taken = 0;
        for part in body.chunks(size) {
            taken += framing.take(part).expect("a good body");
            if framing.ended() {
                break;
            }
        }
        assert_eq!(&body[taken..], b"behind", "in parts of {size}");
    }
}

#[tokio::test]
async fn an_extension_other_than_compression_is_noticed_in_every_line() {
    for (lines, unknown) in [
        ("", false),
        ("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=12\r\n", false),
        ("sec-websocket-extensions: Permessage-Deflate,,\r\n", false),
        ("Sec-WebSocket-Extensions: permessage-deflate, x-counted\r\n", true),
        ("Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Extensions: x-counted\r\n", true),
    ] {
        let head = read_from(&format!("{SWITCHING}{lines}\r\n")).await.expect("a good head");
        assert_eq!(head.has_unknown_extension(), unknown, "{lines:?}");
    }
}

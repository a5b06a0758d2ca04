//! Bad input gets a clear answer and a counter, and the other connections go on.

use std::time::Duration;

use harness::wait::{equal, within};
use harness::{App, Backend, Client, Guestbook, Sidecar, Wire, until};
use tokio::time::Instant;

/// A sidecar beside an app, and a client whose connection must not notice anything.
struct Scene {
    sidecar: Sidecar,
    bystander: Client,
    book: Guestbook,
    _app: App,
}

impl Scene {
    async fn new() -> Self {
        let book = Guestbook::default();
        let app = App::start("server", &book).await;
        let sidecar = Sidecar::beside(app.address).await;
        let bystander = Client::connect(sidecar.listen, "bystander").await;
        Self { sidecar, bystander, book, _app: app }
    }

    /// Sends bytes, and returns what comes back until the connection ends.
    async fn answer_to(&self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let mut client = Wire::dial(self.sidecar.listen).await;
        client.send(bytes).await;
        client.rest().await.expect("an answer that no reset destroys")
    }

    async fn refusals(&self, label: &str) -> u64 {
        self.sidecar.metric(&format!("wspool_bad_requests_total{{reason=\"{label}\"}}")).await
    }

    /// Nobody else has noticed, and nothing has reached the app.
    async fn unharmed(&mut self) {
        self.bystander.check().await;
        assert_eq!(self.book.visits().len(), 1, "something reached the app");
    }
}

/// A request whose head has these lines.
fn request(lines: &str) -> String {
    format!("{}\r\n\r\n", lines.replace('\n', "\r\n"))
}

/// A handshake with a header replaced.
fn handshake(from: &str, to: &str) -> String {
    let right = "GET / HTTP/1.1\nHost: a\nUpgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    assert!(right.contains(from), "{from:?} is no part of a handshake");
    request(&right.replace(from, to))
}

#[tokio::test]
async fn each_smuggling_shape_is_refused_by_name_and_harms_nobody() {
    let shapes = [
        ("bare_lf", 400, "GET / HTTP/1.1\nHost: a\n\n".to_owned()),
        ("bare_lf", 400, "GET / HTTP/1.1\r\nHost: a\r\nX: 1\nY: 2\r\n\r\n".to_owned()),
        ("bare_cr", 400, "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n".to_owned()),
        ("nul", 400, request("GET / HTTP/1.1\nHost: a\nX: 1\u{0}2")),
        ("obs_fold", 400, request("GET / HTTP/1.1\nHost: a\nX: 1\n 2")),
        ("space_before_colon", 400, request("POST / HTTP/1.1\nHost: a\nContent-Length : 5")),
        ("header_name", 400, request("GET / HTTP/1.1\nHost: a\nX(y): 1")),
        ("header_value", 400, request("GET / HTTP/1.1\nHost: a\nX: \u{1}")),
        (
            "length_and_encoding",
            400,
            request("POST / HTTP/1.1\nHost: a\nContent-Length: 5\nTransfer-Encoding: chunked"),
        ),
        ("length_repeated", 400, request("POST / HTTP/1.1\nHost: a\nContent-Length: 5\nContent-Length: 6")),
        ("length_repeated", 400, request("POST / HTTP/1.1\nHost: a\nContent-Length: 5\ncontent-length: 5")),
        ("length_malformed", 400, request("POST / HTTP/1.1\nHost: a\nContent-Length: 5, 5")),
        ("length_malformed", 400, request("POST / HTTP/1.1\nHost: a\nContent-Length: +5")),
        ("length_malformed", 400, request("POST / HTTP/1.1\nHost: a\nContent-Length: 0x5")),
        ("length_malformed", 400, request("POST / HTTP/1.1\nHost: a\nContent-Length: 99999999999999999999")),
        ("encoding", 501, request("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: xchunked")),
        ("encoding", 501, request("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: gzip, chunked")),
        ("encoding", 501, request("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked")),
        ("encoding", 501, request("POST / HTTP/1.0\nTransfer-Encoding: chunked")),
        ("host_missing", 400, request("GET / HTTP/1.1\nX: 1")),
        ("host_repeated", 400, request("GET / HTTP/1.1\nHost: a\nHost: b")),
        ("host_malformed", 400, request("GET / HTTP/1.1\nHost: a/b")),
        ("request_line", 400, request("GET a HTTP/1.1\nHost: a")),
        ("request_line", 400, request("GET  / HTTP/1.1\nHost: a")),
        ("version", 400, request("GET / HTTP/11\nHost: a")),
        ("unknown_version", 505, request("GET / HTTP/1.2\nHost: a")),
        ("connect", 405, request("CONNECT a:1 HTTP/1.1\nHost: a")),
        ("upgrade_body", 400, handshake("Host: a", "Host: a\nContent-Length: 5")),
        ("upgrade_body", 400, handshake("Host: a", "Host: a\nTransfer-Encoding: chunked")),
        ("websocket_version", 426, handshake("Version: 13", "Version: 8")),
        ("websocket_version", 426, handshake("\nSec-WebSocket-Version: 13", "")),
        ("websocket_key_missing", 400, handshake("\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "")),
        ("websocket_key_repeated", 400, handshake("Host: a", "Host: a\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")),
        ("websocket_key_malformed", 400, handshake("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ==")),
        // A peer may send a few more headers than a client; this is none.
        ("too_many_headers", 431, handshake("Host: a", &format!("Host: a\nwspool-x: y{}", "\nA: b".repeat(126)))),
    ];
    let mut scene = Scene::new().await;
    for (label, status, bytes) in shapes {
        let before = scene.refusals(label).await;
        // What follows would be the smuggled request, or the frames of a connection that is none.
        let smuggled = request("GET /smuggled HTTP/1.1\nHost: a");
        let answer = scene.answer_to([bytes.as_bytes(), smuggled.as_bytes()].concat()).await;
        let answer = String::from_utf8(answer).expect("text");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{label}: {bytes:?} was answered {answer:?}");
        assert_eq!(answer.matches("\r\n\r\n").count(), 1, "{label}: more than one answer: {answer:?}");
        assert_eq!(scene.refusals(label).await, before + 1, "{label} is not counted for {bytes:?}");
    }
    let refused = scene.answer_to(handshake("Version: 13", "Version: 12")).await;
    assert!(String::from_utf8_lossy(&refused).contains("\r\nSec-WebSocket-Version: 13\r\n"), "426 says what is served");
    scene.unharmed().await;
}

#[tokio::test]
async fn other_protocols_are_answered_in_their_own_words() {
    let mut scene = Scene::new().await;
    let hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03 and so on";
    assert_eq!(scene.answer_to(hello).await, b"\x15\x03\x01\x00\x02\x02\x28", "a fatal alert");
    assert_eq!(scene.refusals("tls").await, 1);

    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let answer = scene.answer_to(preface).await;
    assert_eq!(answer[3], 4, "SETTINGS");
    assert_eq!((answer[9 + 3], answer.last()), (7, Some(&0xd)), "GOAWAY with HTTP_1_1_REQUIRED");
    assert_eq!(scene.refusals("http2").await, 1);
    scene.unharmed().await;
}

#[tokio::test]
async fn random_bytes_are_refused_and_harm_nobody() {
    let mut scene = Scene::new().await;
    for _ in 0..50 {
        let length = rand::random_range(1..2_000);
        let mut bytes: Vec<u8> = (0..length).map(|_| rand::random()).collect();
        // Never the beginning of a TLS hello, and always an end.
        bytes[0] |= 0x80;
        bytes.extend(b"\r\n\r\n");
        let answer = scene.answer_to(&bytes).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{bytes:?} was answered {answer:?}");
    }
    let all: u64 = scene
        .sidecar
        .metrics()
        .await
        .lines()
        .filter_map(|line| line.strip_prefix("wspool_bad_requests_total{")?.split_once("} ")?.1.parse::<u64>().ok())
        .sum();
    assert_eq!(all, 50);
    scene.unharmed().await;
}

#[tokio::test]
async fn an_endless_head_is_cut_off() {
    let mut scene = Scene::new().await;
    let mut client = Wire::dial(scene.sidecar.listen).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX: ").await;
    // As long as it is taken, for ever.
    within("the end of the endless head", async {
        while client.try_send([b'x'; 1024]).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(scene.refusals("too_large").await, 1);

    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(16 * 1024));
    let answer = scene.answer_to(large).await;
    assert!(answer.starts_with(b"HTTP/1.1 431 "), "{:?}", String::from_utf8_lossy(&answer));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(200));
    let answer = scene.answer_to(many).await;
    assert!(answer.starts_with(b"HTTP/1.1 431 "), "{:?}", String::from_utf8_lossy(&answer));
    scene.unharmed().await;
}

#[tokio::test]
async fn a_head_that_breaks_off_or_takes_too_long_is_refused() {
    let mut scene = Scene::new().await;
    let mut broken = Wire::dial(scene.sidecar.listen).await;
    broken.send("GET / HTTP/1.1\r\nHos").await;
    broken.finish().await;
    let answer = broken.last_words().await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    assert_eq!(scene.refusals("truncated").await, 1);

    let mut slow = Wire::dial(scene.sidecar.listen).await;
    let began = Instant::now();
    slow.send("GET / HTTP/1.1\r\n").await;
    // One header a second never is a silence, and never an end.
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let answer = within("an answer to the slow head", async {
        loop {
            tokio::select! {
                answer = slow.up_to("\r\n\r\n") => break answer,
                _ = ticks.tick() => {}
            }
            // It may have been closed in between.
            let _ = slow.try_send("X: 1\r\n").await;
        }
    })
    .await;
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{:?}", String::from_utf8_lossy(&answer));
    assert!(began.elapsed() > Duration::from_secs(5), "a client on a bad line has some time");
    assert_eq!(scene.refusals("slow").await, 1);
    scene.unharmed().await;
}

#[tokio::test]
async fn a_later_request_on_a_kept_connection_is_refused_for_the_same_reasons() {
    let mut scene = Scene::new().await;
    let app = Backend::start().await;
    let sidecar = Sidecar::beside(app.address).await;
    let shapes = [
        ("ambiguous", 400, "GET / HTTP/1.1\nHost: a\nHost: b"),
        ("ambiguous", 400, "GET / HTTP/1.1\nX: 1"),
        ("ambiguous", 501, "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: gzip, chunked"),
        ("ambiguous", 405, "CONNECT a:1 HTTP/1.1\nHost: a"),
        ("malformed", 400, "POST / HTTP/1.1\nHost: a\nContent-Length: 5\nContent-Length: 6"),
        ("malformed", 400, "POST / HTTP/1.1\nHost: a\nContent-Length : 5"),
        ("malformed", 400, "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: xchunked"),
        ("malformed", 400, "GET / HTTP/1.1\nHost: a\nX: 1\n 2"),
        ("malformed", 400, "GET / HTTP/1.1\nHost: a\nX(y): 1"),
    ];
    for (label, status, shape) in shapes {
        let series = format!("wspool_bad_requests_total{{reason=\"{label}\"}}");
        let before = sidecar.metric(&series).await;
        let mut client = after_a_request(&sidecar, &app).await;
        client.send([request(shape), request("GET /smuggled HTTP/1.1\nHost: a")].concat()).await;
        let answer = client.last_words().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shape:?} was answered {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{shape:?} was answered {answer:?}");
        until("it is counted", async || equal(&sidecar.metric(&series).await, &(before + 1))).await;
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn of_two_lengths_in_a_later_request_the_app_sees_one() {
    let app = Backend::start().await;
    let sidecar = Sidecar::beside(app.address).await;
    let mut client = after_a_request(&sidecar, &app).await;
    let both = request("POST /two HTTP/1.1\nHost: a\nContent-Length: 100\nTransfer-Encoding: chunked");
    client.send(both + "2\r\nok\r\n0\r\n\r\n").await;
    let mut app = app.accept().await;
    let head = app.head().await.to_lowercase();
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
    assert_eq!(app.up_to("0\r\n\r\n").await, b"2\r\nok\r\n0\r\n\r\n");
}

/// A connection on which one request has been answered; the app's own has ended.
async fn after_a_request(sidecar: &Sidecar, app: &Backend) -> Wire {
    let mut client = Wire::dial(sidecar.listen).await;
    client.send(request("GET /first HTTP/1.1\nHost: a")).await;
    let mut app = app.accept().await;
    assert!(app.head().await.starts_with("GET /first "), "an earlier shape has reached the app");
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
    client.up_to("ok").await;
    client
}

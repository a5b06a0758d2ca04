//! A sidecar alone is a transparent proxy: what plain HTTP may do, byte by byte on both sides of it.

use harness::{Backend, Sidecar, Wire};

/// A sidecar and the app behind it, played by the test.
async fn pair() -> (Sidecar, Backend) {
    let app = Backend::start().await;
    (Sidecar::beside(app.address).await, app)
}

/// The lines of a head, without the empty one.
fn lines(head: &str) -> Vec<&str> {
    head.lines().filter(|line| !line.is_empty()).collect()
}

/// The values of a header, in order.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(field, _)| *field == name).map(|(_, value)| value).collect()
}

/// Reads a chunked body with its trailers; returns the data and the trailers' lines.
async fn chunked(wire: &mut Wire) -> (Vec<u8>, Vec<String>) {
    let mut data = Vec::new();
    loop {
        let size = String::from_utf8(wire.up_to("\r\n").await).expect("a chunk's size");
        let size = usize::from_str_radix(size.trim(), 16).expect("a number in hexadecimal");
        if size == 0 {
            break;
        }
        data.extend(wire.exactly(size).await);
        assert_eq!(wire.exactly(2).await, b"\r\n", "the end of a chunk");
    }
    let mut trailers = Vec::new();
    loop {
        let line = String::from_utf8(wire.up_to("\r\n").await).expect("a trailer");
        if line == "\r\n" {
            return (data, trailers);
        }
        // The case of a trailer's name is not kept by hyper, and means nothing.
        trailers.push(line.trim_end().to_lowercase());
    }
}

/// Bytes in which every place differs from its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).expect("below 251")).collect()
}

#[tokio::test]
async fn headers_keep_their_case_their_repetitions_and_their_values() {
    let (sidecar, app) = pair().await;
    let mut client = Wire::dial(sidecar.listen).await;
    client
        .send(
            "GET /a%2Fb/../c?q=%20+&q=2 HTTP/1.1\r\nHost: example.com:8080\r\nX-tRaCe: one\r\nX-tRaCe: two\r\n\
             Cookie: a=1\r\nAccept-Encoding: gzip\r\nX-Forwarded-For: 203.0.113.9\r\nwspool-key: forged\r\n\
             WSPOOL_FROM: forged\r\n\r\n",
        )
        .await;
    let mut app = app.accept().await;
    let head = app.head().await;
    assert_eq!(lines(&head)[0], "GET /a%2Fb/../c?q=%20+&q=2 HTTP/1.1");
    assert_eq!(values(&head, "Host"), ["example.com:8080"]);
    assert_eq!(values(&head, "X-tRaCe"), ["one", "two"]);
    assert_eq!(values(&head, "Cookie"), ["a=1"]);
    assert_eq!(values(&head, "X-Forwarded-For"), ["203.0.113.9, 127.0.0.1"]);
    assert!(!head.to_lowercase().contains("wspool"), "a client's own wspool headers came through: {head}");
    assert_eq!(lines(&head).len(), 7, "something was added: {head}");

    app.send("HTTP/1.1 200 Fine\r\nSet-Cookie: a=1\r\nseT-cOOkie: b=2\r\nX-Ray: 1\r\nContent-Length: 2\r\n\r\nok")
        .await;
    let head = client.head().await;
    assert_eq!(values(&head, "Set-Cookie"), ["a=1"], "in {head}");
    assert_eq!(values(&head, "seT-cOOkie"), ["b=2"], "in {head}");
    assert_eq!(values(&head, "X-Ray"), ["1"]);
    assert_eq!(client.exactly(2).await, b"ok");
}

#[tokio::test]
async fn a_body_of_32_mib_streams_both_ways() {
    const LENGTH: usize = 32 << 20;
    let (sidecar, app) = pair().await;
    let body = pattern(LENGTH);
    let (first, rest) = body.split_at(1_000);
    let mut client = Wire::dial(sidecar.listen).await;
    client.send(format!("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
    client.send(first).await;
    let mut app = app.accept().await;
    let head = app.head().await;
    assert_eq!(values(&head, "Content-Length"), [LENGTH.to_string()]);
    assert_eq!(app.exactly(first.len()).await, first, "the beginning is passed on before the end is there");
    let ((), received) = tokio::join!(client.send(rest), app.exactly(rest.len()));
    assert!(received == rest, "the body came through changed");

    app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
    app.send(first).await;
    client.head().await;
    assert_eq!(client.exactly(first.len()).await, first);
    let ((), received) = tokio::join!(app.send(rest), client.exactly(rest.len()));
    assert!(received == rest, "the body came back changed");
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways_as_they_come() {
    let (sidecar, app) = pair().await;
    let mut client = Wire::dial(sidecar.listen).await;
    client
        .send(
            "POST /c HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
             5\r\nhello\r\n",
        )
        .await;
    let mut app = app.accept().await;
    let head = app.head().await;
    assert_eq!(values(&head, "Transfer-Encoding"), ["chunked"]);
    assert_eq!(app.exactly(10).await, b"5\r\nhello\r\n", "a chunk is passed on before the next is there");
    client.send("6;ext=1\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n").await;
    let (data, trailers) = chunked(&mut app).await;
    assert_eq!(data, b" world");
    assert_eq!(trailers, ["x-sum: 11"]);

    app.send(
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbye\r\n0\r\nX-Sum: 3\r\n\r\n",
    )
    .await;
    client.head().await;
    let (data, trailers) = chunked(&mut client).await;
    assert_eq!(data, b"bye");
    assert_eq!(trailers, ["x-sum: 3"]);
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_in_step() {
    let (sidecar, app) = pair().await;
    let mut client = Wire::dial(sidecar.listen).await;
    // Each head is followed by another request: bytes of a body that is none would be read as an answer.
    client.send("HEAD /h HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut app = app.accept().await;
    assert!(app.head().await.starts_with("HEAD /h "));
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(values(&head, "Content-Length"), ["1234"], "HEAD tells what GET would send: {head}");

    client.send("DELETE /n HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(app.head().await.starts_with("DELETE /n "), "the app's connection is kept, too");
    app.send("HTTP/1.1 204 No Content\r\nX-Kept: yes\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
    assert_eq!(values(&head, "X-Kept"), ["yes"]);

    client.send("GET /m HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"v1\"\r\n\r\n").await;
    assert_eq!(values(&app.head().await, "If-None-Match"), ["\"v1\""]);
    app.send("HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\nContent-Length: 99\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 304 "), "{head}");

    client.send("GET /last HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(app.head().await.starts_with("GET /last "));
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nend").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(client.exactly(3).await, b"end");
}

#[tokio::test]
async fn a_client_that_expects_100_continue_is_told_when_to_send() {
    let (sidecar, app) = pair().await;
    let mut client = Wire::dial(sidecar.listen).await;
    client.send("PUT /big HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert_eq!(lines(&client.head().await), ["HTTP/1.1 100 Continue"]);
    client.send("data").await;
    let mut app = app.accept().await;
    app.head().await;
    assert_eq!(app.exactly(4).await, b"data");
    app.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 201 "));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (sidecar, app) = pair().await;
    let mut client = Wire::dial(sidecar.listen).await;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let post = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    client.send([request("/1"), post.into(), request("/3")].concat()).await;
    let mut app = app.accept().await;
    for path in ["/1", "/2", "/3"] {
        let head = app.head().await;
        assert_eq!(head.split(' ').nth(1), Some(path));
        if path == "/2" {
            assert_eq!(app.exactly(3).await, b"abc");
        }
        app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{path}")).await;
    }
    for path in ["/1", "/2", "/3"] {
        client.head().await;
        assert_eq!(client.exactly(2).await, path.as_bytes());
    }
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    let (sidecar, app) = pair().await;
    let mut client = Wire::dial(sidecar.listen).await;
    client.send("GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n").await;
    let mut app = app.accept().await;
    app.head().await;
    app.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
    client.head().await;
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        app.send(event).await;
        // The next event is not sent before this one is here.
        client.up_to(event).await;
    }
    app.finish().await;
    client.up_to("0\r\n\r\n").await;
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_its_connection() {
    let (sidecar, app) = pair().await;
    let mut client = Wire::dial(sidecar.listen).await;
    client.send("GET /old HTTP/1.0\r\n\r\n").await;
    let mut app = app.accept().await;
    app.head().await;
    app.send("HTTP/1.0 200 OK\r\n\r\nall of it").await;
    app.finish().await;
    let answer = String::from_utf8(client.rest().await.expect("a clean end")).expect("text");
    assert!(answer.starts_with("HTTP/1.") && answer.ends_with("\r\n\r\nall of it"), "{answer}");
}

#[tokio::test]
async fn an_app_that_is_not_there_is_a_502_and_the_next_request_reaches_it() {
    let address = harness::ports::free();
    let sidecar = Sidecar::beside(address).await;
    let mut client = Wire::dial(sidecar.listen).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    let length = values(&head.to_lowercase(), "content-length")[0].parse().expect("a length");
    client.exactly(length).await;

    let app = tokio::net::TcpListener::bind(address).await.expect("the app's port");
    client.send("GET /again HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (_socket, _) = harness::wait::within("the app's connection", app.accept()).await.expect("a socket");
}

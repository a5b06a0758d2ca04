//! The groups of cases that the Autobahn test suite has for servers, byte for byte: a server gives the same answer
//! through a sidecar as without one. The suite itself needs Python 2.
//!
//! The server is the `ws` library. It refuses what RFC 6455 forbids, so that the cases are of both kinds.

use std::net::SocketAddr;

use harness::frames::{close_payload, frame, masked, opcode::*};
use harness::script::Script;
use harness::{Sidecar, Wire};
use sidecar::frame::Follower;

/// What a client sends, piece by piece, after its handshake.
struct Case {
    name: String,
    deflate: bool,
    pieces: Vec<Vec<u8>>,
}

fn case(name: impl Into<String>, pieces: impl IntoIterator<Item = Vec<u8>>) -> Case {
    Case { name: name.into(), deflate: false, pieces: pieces.into_iter().collect() }
}

/// Group 1: echoes of every form of length.
fn framing() -> Vec<Case> {
    let lengths = [0, 1, 125, 126, 127, 128, 65_535, 65_536, 1 << 20];
    let kinds = [(TEXT, "text"), (BINARY, "binary")];
    let mut cases = Vec::new();
    for (opcode, kind) in kinds {
        for length in lengths {
            let message = masked(opcode, &vec![b'*'; length]);
            cases.push(case(format!("1 {kind} of {length}"), [message]));
        }
    }
    let torn = masked(BINARY, &[0xfe; 997]).chunks(97).map(<[u8]>::to_vec).collect::<Vec<_>>();
    cases.push(case("1 torn into pieces of 97", torn));
    cases
}

/// Group 2: pings and pongs.
fn pings() -> Vec<Case> {
    let mut cases: Vec<Case> =
        [0, 1, 125, 126].map(|length| case(format!("2 ping of {length}"), [masked(PING, &vec![0xff; length])])).into();
    let byte_by_byte = masked(PING, &[0xfe; 125]).iter().map(|byte| vec![*byte]).collect::<Vec<_>>();
    cases.push(case("2 ping byte by byte", byte_by_byte));
    cases.push(case("2 unasked pong", [masked(PONG, b"?"), masked(PING, b"!")]));
    cases.push(case("2 ten pings at once", [(0..10).flat_map(|n| masked(PING, &[n])).collect()]));
    cases
}

/// Groups 3 and 4: reserved bits and opcodes, behind a good message.
fn reserved() -> Vec<Case> {
    let bits = (1..8_u8).map(|bits| {
        let mut message = masked(TEXT, b"reserved bits");
        message[0] |= bits << 4;
        case(format!("3 bits {bits:03b}"), [masked(TEXT, b"good"), message])
    });
    let opcodes = [3, 4, 5, 6, 7, 11, 12, 13, 14, 15].into_iter().flat_map(|opcode| {
        [0, 20].map(|length| {
            case(format!("4 opcode {opcode} of {length}"), [masked(TEXT, b"good"), masked(opcode, &vec![0; length])])
        })
    });
    let unmasked = case("4 without a mask", [frame(true, TEXT, b"bare", false)]);
    bits.chain(opcodes).chain([unmasked]).collect()
}

/// Group 5: fragments.
fn fragments() -> Vec<Case> {
    let first = |last| frame(last, TEXT, b"frag", true);
    let next = |last| frame(last, CONTINUATION, b"ment", true);
    let cases: [(&str, Vec<Vec<u8>>); 10] = [
        ("5 two", vec![first(false), next(true)]),
        ("5 two in one piece", vec![[first(false), next(true)].concat()]),
        ("5 ping between", vec![first(false), masked(PING, b"now"), next(true)]),
        ("5 pings between three", vec![first(false), masked(PING, b"1"), next(false), masked(PING, b"2"), next(true)]),
        ("5 continuation of nothing", vec![next(true)]),
        ("5 unfinished continuation of nothing", vec![next(false)]),
        ("5 message within a message", vec![first(false), first(true)]),
        ("5 fragmented ping", vec![frame(false, PING, b"frag", true), next(true)]),
        ("5 empty fragments", vec![frame(false, TEXT, b"", true), frame(false, CONTINUATION, b"", true), next(true)]),
        ("5 close between", vec![first(false), masked(CLOSE, &close_payload(1_000, ""))]),
    ];
    let mut cases: Vec<Case> = cases.map(|(name, pieces)| case(name, pieces)).into();
    let many = (0..1_000).map(|n| frame(n == 999, if n == 0 { BINARY } else { CONTINUATION }, &[7; 64], true));
    cases.push(case("5 a thousand", many));
    cases
}

/// Group 6: UTF-8, good, bad, and cut in the middle of a character.
fn utf8() -> Vec<Case> {
    let texts: [&[u8]; 16] = [
        "κόσμε".as_bytes(),
        "\u{0}".as_bytes(),
        "\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}".as_bytes(),
        b"\xf4\x90\x80\x80",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xfe",
        b"\xff",
        b"\x80",
        b"\xce",
        b"\xf8\x88\x80\x80\x80",
        b"good\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        b"\xef\xbf\xbe",
    ];
    let mut cases = Vec::new();
    for (number, text) in texts.into_iter().enumerate() {
        cases.push(case(format!("6 text {number}"), [masked(TEXT, text)]));
        let (first, rest) = text.split_at(1);
        let cut = [frame(false, TEXT, first, true), frame(true, CONTINUATION, rest, true)];
        cases.push(case(format!("6 text {number} cut"), cut));
    }
    cases
}

/// Group 7: Close with every kind of code and payload.
fn closes() -> Vec<Case> {
    let codes =
        [0, 999, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 1015]
            .into_iter()
            .chain([1016, 1100, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 65_535]);
    let mut cases: Vec<Case> =
        codes.map(|code| case(format!("7 code {code}"), [masked(CLOSE, &close_payload(code, "bye"))])).collect();
    let close = masked(CLOSE, &close_payload(1_000, ""));
    cases.push(case("7 no payload", [masked(CLOSE, b"")]));
    cases.push(case("7 half a code", [masked(CLOSE, b"\x03")]));
    cases.push(case("7 reason of 123", [masked(CLOSE, &close_payload(1_000, &"*".repeat(123)))]));
    cases.push(case("7 reason of 124", [masked(CLOSE, &close_payload(1_000, &"*".repeat(124)))]));
    cases.push(case("7 reason that is not UTF-8", [masked(CLOSE, b"\x03\xe8\xce\xba\xed\xa0\x80")]));
    cases.push(case("7 message behind it", [[close.clone(), masked(TEXT, b"late")].concat()]));
    cases.push(case("7 twice", [[close.clone(), close].concat()]));
    cases
}

/// Group 9: large messages, whole and in fragments.
fn large() -> Vec<Case> {
    let whole = [16 << 10, 256 << 10, 4 << 20].map(|size| {
        let message =
            masked(BINARY, &(0..size).map(|at: usize| u8::try_from(at % 251).expect("below 251")).collect::<Vec<_>>());
        case(format!("9 binary of {size}"), [message])
    });
    let pieces = [64_usize, 4 << 10].map(|size| {
        let count = (256 << 10) / size;
        let parts = (0..count)
            .map(|n| frame(n + 1 == count, if n == 0 { TEXT } else { CONTINUATION }, &vec![b'*'; size], true))
            .collect::<Vec<_>>();
        case(format!("9 text in fragments of {size}"), [parts.concat()])
    });
    whole.into_iter().chain(pieces).collect()
}

/// Groups 12 and 13: permessage-deflate, where the server keeps its window from message to message.
fn compressed() -> Vec<Case> {
    let deflated = |text: &[u8]| {
        let mut compress = flate2::Compress::new(flate2::Compression::default(), false);
        let mut bytes = Vec::with_capacity(text.len() + 64);
        compress.compress_vec(text, &mut bytes, flate2::FlushCompress::Sync).expect("room for it");
        bytes.truncate(bytes.len() - 4);
        let mut message = masked(TEXT, &bytes);
        message[0] |= 0x40;
        message
    };
    let sizes = [1_usize, 16, 128, 1_024, 65_536];
    let cases = sizes.into_iter().map(|size| {
        let text: Vec<u8> = (0..size).map(|at| b'a' + u8::try_from(at * at % 26).expect("below 26")).collect();
        Case { deflate: true, ..case(format!("12 text of {size} ten times"), vec![deflated(&text); 10]) }
    });
    let mut broken = masked(TEXT, &[0xff; 40]);
    broken[0] |= 0x40;
    let broken = Case { deflate: true, ..case("12 what is no deflate", [broken]) };
    let plain = Case { deflate: true, ..case("12 uncompressed all the same", [masked(TEXT, b"plain")]) };
    let mut ping = masked(PING, b"ping");
    ping[0] |= 0x40;
    let ping = Case { deflate: true, ..case("12 compressed ping", [ping]) };
    cases.chain([broken, plain, ping]).collect()
}

/// Everything that the server sends after its 101, which is checked on its own, and whether it ended with FIN.
async fn outcome(entry: SocketAddr, case: &Case) -> (String, Vec<u8>) {
    let extension = if case.deflate { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
    let mut client = Wire::dial(entry).await;
    client
        .send(format!(
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extension}\r\n"
        ))
        .await;
    let head = client.head().await;
    for piece in &case.pieces {
        // A server that has had enough may be gone.
        let _ = client.try_send(piece).await;
    }
    // Whoever is still there answers this, and ends.
    let _ = client.try_send(masked(CLOSE, &close_payload(1_000, "done"))).await;
    let mut answer = Vec::new();
    let mut follower = Follower::default();
    let mut finished = false;
    while let Ok(bytes) = client.next().await
        && !bytes.is_empty()
    {
        follower.feed(&bytes);
        answer.extend(bytes);
        // The server waits for this when it has refused something.
        if follower.closed() && follower.between_frames() && !finished {
            client.try_finish().await;
            finished = true;
        }
    }
    (head, answer)
}

/// A long answer would hide where it differs.
fn shown(bytes: &[u8]) -> String {
    format!("{} bytes, of which the last: {:02x?}", bytes.len(), &bytes[bytes.len().saturating_sub(40)..])
}

#[tokio::test]
async fn a_server_answers_every_case_through_a_sidecar_as_without_one() {
    let (_node, server) = Script::echo().await;
    let sidecar = Sidecar::beside(server).await;
    let groups = [framing(), pings(), reserved(), fragments(), utf8(), closes(), large(), compressed()];
    let mut refused = 0;
    for case in groups.into_iter().flatten() {
        let (direct_head, direct) = outcome(server, &case).await;
        let (head, answer) = outcome(sidecar.listen, &case).await;
        assert_eq!(head, direct_head, "{}", case.name);
        assert!(answer == direct, "{}: {}; without: {}", case.name, shown(&answer), shown(&direct));
        assert_eq!(head.to_lowercase().contains("permessage-deflate"), case.deflate, "{}", case.name);
        // 1002, 1007 or 1009.
        refused += usize::from(direct.windows(4).any(|frame| matches!(frame, [0x88, _, 0x03, 0xea | 0xef | 0xf1])));
    }
    assert!(refused > 40, "only {refused} cases are of the kind that a server refuses");
}

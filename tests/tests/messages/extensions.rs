//! Connections with extensions, by other people's libraries: one that we know lets messages of ours through, and where
//! there is another they are dropped, and said to be.

use std::net::SocketAddr;

use harness::frames::opcode;
use harness::script::Script;
use harness::tap::Tap;
use harness::{Plan, Sidecar, until};
use http::Method;
use ring::settings::{Messages, Settings};
use serde_json::{Value, json};

use crate::happened;

/// What an extension sets in the first frame of a message that it has compressed.
const COMPRESSED: u8 = 0x40;

/// A sidecar beside a server, in a pool that trusts everybody.
async fn beside(app: SocketAddr) -> Sidecar {
    let sidecar = Sidecar::named("a").upstream(app).with_api().start().await;
    let mut plan = Plan::with(Settings { messages: Messages { allow_unverified: true }, ..Settings::default() });
    plan.hold(&[(0, &sidecar)]);
    plan.publish(&[&sidecar]).await;
    sidecar
}

#[tokio::test]
async fn messages_arrive_whole_between_those_that_the_app_compresses_and_disturb_none_of_them() {
    const SENDERS: usize = 3;
    const MESSAGES: usize = 40;
    let (_server, address) = Script::echo().await;
    let sidecar = beside(address).await;
    let tap = Tap::start(sidecar.listen).await;
    let mut client = Script::node("between.js", &[&format!("ws://{}/?user=ann", tap.address)]);
    until("it speaks", async || match tap.calls().first().map_or(0, |call| call.frames.len()) {
        0..100 => Err("it has not said much".into()),
        _ => Ok(()),
    })
    .await;
    let text = |sender: usize, number: usize| {
        let long = if number % 10 == 9 { 70_000 } else { number };
        format!("{sender}:{number} {}", "schön ".repeat(long / 6))
    };
    let sidecar = &sidecar;
    let send = async |sender: usize| {
        for number in 0..MESSAGES {
            happened(&sidecar.send_to("ann", &text(sender, number)).await, 1, 0);
        }
    };
    tokio::join!(send(0), send(1), send(2));
    let octets = [("content-type", "application/octet-stream")];
    happened(&sidecar.ask_api(&octets, Method::POST, "/v1/keys/ann/messages", "\u{0}1").await, 1, 0);
    assert_eq!(client.says("binary ").await, "0031");
    client.go_on();
    let echoed = client.says("echoed ").await;
    assert!(echoed.ends_with(" permessage-deflate"), "{echoed}");
    assert_eq!(client.says("closed ").await, "1005");

    let lines = client.lines();
    assert!(!lines.iter().any(|line| line.starts_with("error")), "{lines:?}");
    let heard: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("text ")).collect();
    assert_eq!(heard.len(), SENDERS * MESSAGES);
    for sender in 0..SENDERS {
        let of: Vec<_> = heard.iter().filter(|text| text.starts_with(&format!("{sender}:"))).copied().collect();
        assert!(of == (0..MESSAGES).map(|number| text(sender, number)).collect::<Vec<_>>(), "sender {sender}: {of:?}");
    }
    // Each of ours stands alone among those of the app, and not behind them all.
    let calls = tap.calls();
    let firsts: Vec<u8> = calls[0].frames.iter().map(|(first, ..)| *first).collect();
    let ours = |first: u8| first == 0x80 | opcode::TEXT;
    let turns = firsts.windows(2).filter(|pair| ours(pair[0]) && pair[1] & COMPRESSED != 0).count();
    assert!(turns > 10, "the app spoke {turns} times behind one of ours");
}

#[tokio::test]
async fn a_client_whose_extension_is_not_known_is_told_as_dropped_and_goes_on_undisturbed() {
    let mut server = Script::python("counted.py", &[]);
    let port: u16 = server.says("port ").await.parse().expect("a port");
    let sidecar = beside(SocketAddr::from(([127, 0, 0, 1], port))).await;
    let mut client = Script::python("counted.py", &[&format!("ws://{}/?user=ann", sidecar.listen)]);
    client.says("echoed 0").await;
    for n in 0..20 {
        let said: Value = sidecar.send_to("ann", "ours").await.json().expect("an answer");
        assert_eq!(said, json!({"written": 0, "held": 0, "dropped": 1}), "message {n}");
    }
    let text = [("content-type", "text/plain")];
    let said: Value = sidecar.ask_api(&text, Method::POST, "/v1/messages", "ours").await.json().expect("an answer");
    assert_eq!(said, json!({"written": 0, "held": 0, "dropped": 1}));
    assert_eq!(sidecar.metric("wspool_messages_dropped_total{reason=\"unable\"}").await, 21);
    let before = client.lines().len();
    client.says(&format!("echoed {}", before + 10)).await;
    let lines = client.lines();
    assert!(lines.iter().all(|line| line.starts_with("echoed ")), "{lines:?}");
}

//! What clients are told, by protocol.

use ring::notice::{Message, MessageKind, Spoken, spell};
use ring::settings::{Notice, NoticeProtocol};
use serde_json::json;

fn notice(protocol: NoticeProtocol) -> Notice {
    Notice { protocol, ..Notice::default() }
}

fn told(notice: &Notice, app: Option<MessageKind>, mqtt_level: Option<u8>) -> Option<(MessageKind, Vec<u8>)> {
    let message = notice.message_for(Spoken { app, mqtt_level });
    message.map(|Message { kind, payload }| (kind, payload.to_vec()))
}

const TEXT: Option<MessageKind> = Some(MessageKind::Text);
const BINARY: Option<MessageKind> = Some(MessageKind::Binary);

#[test]
fn a_protocol_is_written_as_it_is_named() {
    for protocol in NoticeProtocol::ALL {
        assert_eq!(serde_json::to_value(protocol).expect("a string"), json!(format!("{protocol:?}")));
    }
}

#[test]
fn a_notice_that_says_nothing_of_its_code_travels_without_one() {
    let written = serde_json::to_value(Notice::default()).expect("an object");
    assert_eq!(written, json!({"protocol": "WebSocket", "appCloseCode": 1001, "reason": "moved"}));
}

#[test]
fn no_protocol_closes_with_a_code_that_keeps_its_clients_away() {
    for protocol in NoticeProtocol::ALL {
        let code = notice(protocol).code();
        assert!(!protocol.fatal_codes().iter().any(|codes| codes.contains(&code)), "{protocol:?}: {code}");
    }
}

#[test]
fn only_codes_that_can_stand_in_a_close_frame_are_listed_and_each_once() {
    for protocol in NoticeProtocol::ALL {
        let codes: Vec<u16> = protocol.fatal_codes().iter().cloned().flatten().collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{protocol:?}");
        assert!(codes.iter().all(|code| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)), "{protocol:?}");
    }
}

#[test]
fn signalr_is_told_in_the_encoding_that_its_server_uses() {
    let notice = notice(NoticeProtocol::SignalR);
    let json = b"{\"type\":7,\"allowReconnect\":true}\x1e".to_vec();
    assert_eq!(told(&notice, TEXT, None), Some((MessageKind::Text, json)));
    assert_eq!(told(&notice, BINARY, None), Some((MessageKind::Binary, vec![4, 0x93, 7, 0xc0, 0xc3])));
    assert_eq!(told(&notice, None, None), None, "before the server has said anything nobody knows");
    assert_eq!(notice.code(), 1001);
}

#[test]
fn mqtt_5_clients_alone_are_sent_a_disconnect() {
    let notice = notice(NoticeProtocol::MQTT);
    assert_eq!(told(&notice, BINARY, Some(5)), Some((MessageKind::Binary, vec![0xe0, 2, 0x9c, 0])));
    for level in [None, Some(3), Some(4)] {
        assert_eq!(told(&notice, BINARY, level), None, "{level:?}");
    }
    assert_eq!(told(&notice, None, Some(5)), None, "its CONNECT has no answer yet");
}

#[test]
fn a_text_never_goes_to_a_client_whose_server_speaks_binary() {
    let own = Notice { message: Some("{\"op\":7}".into()), ..notice(NoticeProtocol::Discord) };
    for notice in [own, notice(NoticeProtocol::Discord), notice(NoticeProtocol::ActionCable)] {
        assert!(told(&notice, TEXT, None).is_some_and(|(kind, _)| kind == MessageKind::Text), "{notice:?}");
        assert_eq!(told(&notice, BINARY, None), None, "{notice:?}");
    }
}

#[test]
fn a_plain_websocket_gets_the_words_of_its_pool_whatever_it_speaks() {
    let own = Notice { message: Some("bye".into()), ..Notice::default() };
    for app in [None, TEXT, BINARY] {
        assert_eq!(told(&own, app, None), Some((MessageKind::Text, b"bye".to_vec())));
        assert_eq!(told(&Notice::default(), app, None), None);
    }
}

#[test]
fn protocols_without_a_message_of_their_own_are_only_closed() {
    use NoticeProtocol::{Centrifugo, GraphQLWS, Htmx, Phoenix, Pusher, SocketIO};
    for protocol in [SocketIO, GraphQLWS, Phoenix, Centrifugo, Pusher, Htmx] {
        assert_eq!(told(&notice(protocol), TEXT, None), None, "{protocol:?}");
    }
}

#[test]
fn ranges_are_spelled_for_people() {
    assert_eq!(spell(&[1000..=1000, 1002..=1003, 1007..=1011]), "1000, 1002, 1003, 1007 to 1011");
    assert_eq!(spell(&[]), "");
}

//! What the clients of each protocol are told before their connection is closed, and what would keep them away.
//!
//! Each entry was read in the client library's source; `tests/tests/clients` has the libraries themselves come back.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use crate::settings::{Notice, NoticeProtocol};

/// What a connection's own traffic has shown of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spoken {
    /// The kind of the last message that the app has begun; none yet, and nothing is known.
    pub app: Option<MessageKind>,
    /// The protocol level in the client's MQTT CONNECT: 5 for MQTT 5, 4 for 3.1.1. `None` when it was not seen.
    pub mqtt_level: Option<u8>,
}

/// The kind of a WebSocket message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// Text.
    Text,
    /// Binary.
    Binary,
}

/// A message of ours for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// How it is sent.
    pub kind: MessageKind,
    /// Its payload.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// A text message.
    pub const fn text(text: &'a str) -> Self {
        Self { kind: MessageKind::Text, payload: text.as_bytes() }
    }

    /// A binary message.
    pub const fn binary(payload: &'a [u8]) -> Self {
        Self { kind: MessageKind::Binary, payload }
    }
}

impl Notice {
    /// The code of the close frame that the client gets: the pool's own, or its protocol's.
    pub fn code(&self) -> u16 {
        self.close_code.unwrap_or(self.protocol.close_code())
    }

    /// The message that goes before the close frame, if this connection can bear one.
    pub fn message_for(&self, spoken: Spoken) -> Option<Message<'_>> {
        match &self.message {
            None => self.protocol.message(spoken),
            Some(text) if self.protocol == NoticeProtocol::WebSocket => Some(Message::text(text)),
            // Its encoding is another one: Erlang terms, MessagePack, Protobuf.
            Some(_) if spoken.app == Some(MessageKind::Binary) => None,
            Some(text) => Some(Message::text(text)),
        }
    }
}

impl NoticeProtocol {
    /// Every protocol.
    pub const ALL: [Self; 11] = [
        Self::WebSocket,
        Self::SocketIO,
        Self::GraphQLWS,
        Self::SignalR,
        Self::Phoenix,
        Self::ActionCable,
        Self::Discord,
        Self::MQTT,
        Self::Centrifugo,
        Self::Pusher,
        Self::Htmx,
    ];

    /// The close code that its clients come back from soonest.
    pub const fn close_code(self) -> u16 {
        match self {
            // Its own message says to reconnect; the close is that of a server that goes away.
            Self::SignalR => 1001,
            // "Unknown error": the client resumes its session. 1000 and 1001 would end it.
            Self::Discord => 4000,
            // The protocol's "reconnect at once"; after 1012 it waits a second.
            Self::Pusher => 4200,
            _ => 1012,
        }
    }

    /// The close codes after which its clients stay away, as far as they can stand in a close frame.
    pub const fn fatal_codes(self) -> &'static [RangeInclusive<u16>] {
        match self {
            Self::GraphQLWS => &[
                1002..=1003,
                1007..=1011,
                4004..=4005,
                4400..=4401,
                4406..=4406,
                4409..=4409,
                4429..=4429,
                4500..=4500,
            ],
            Self::Phoenix => &[1000..=1000],
            Self::Discord => &[1000..=1001, 4004..=4004, 4010..=4014],
            Self::Centrifugo => &[1009..=1009, 3500..=3999, 4500..=4999],
            Self::Pusher => &[4000..=4099, 4300..=4999],
            Self::Htmx => &[1000..=1003, 1007..=1011, 1014..=1014, 3000..=4999],
            Self::WebSocket | Self::SocketIO | Self::SignalR | Self::ActionCable | Self::MQTT => &[],
        }
    }

    /// The longest payload of its heartbeats, in bytes, where nothing that it says later on is as short; 0 where heartbeats are
    /// control frames, or cannot be told from messages by their length.
    pub const fn heartbeat(self) -> u8 {
        match self {
            // "2" and "3", of Engine.IO.
            Self::SocketIO => 1,
            // PINGREQ and PINGRESP; {} as JSON.
            Self::MQTT | Self::Centrifugo => 2,
            // {"type":6} with its record separator.
            Self::SignalR => 11,
            // {"type":"ping"}, and pong likewise.
            Self::GraphQLWS => 15,
            // {"op":1,"d":41}, with a number that may grow, and {"op":11}.
            Self::Discord => 24,
            // {"event":"pusher:ping","data":{}}, and pong likewise.
            Self::Pusher => 33,
            // {"type":"ping","message":1700000000}. A message has an identifier that names its channel.
            Self::ActionCable => 36,
            _ => 0,
        }
    }

    /// Why its clients can be told nothing in a pool's own words; `None` when they can.
    pub const fn no_message(self) -> Option<&'static str> {
        match self {
            Self::SocketIO => Some("is read as a packet by clients of SocketIO, which breaks them; leave it out"),
            Self::GraphQLWS => Some("makes clients of GraphQLWS close with 4400 and stay away; leave it out"),
            Self::SignalR => Some("is not needed: clients of SignalR get its own, in their encoding; leave it out"),
            Self::MQTT => Some("is text, which clients of MQTT refuse; leave it out: those of MQTT 5 get its own"),
            _ => None,
        }
    }

    /// The message of the protocol itself, in the encoding that the connection uses.
    fn message(self, spoken: Spoken) -> Option<Message<'static>> {
        match (self, spoken.app?) {
            // A Close message that allows to reconnect; without the flag it ends the client. As JSON with its record
            // separator, or as MessagePack with its length: [7, nil, true].
            (Self::SignalR, MessageKind::Text) => Some(Message::text("{\"type\":7,\"allowReconnect\":true}\u{1e}")),
            (Self::SignalR, MessageKind::Binary) => Some(Message::binary(&[0x04, 0x93, 0x07, 0xc0, 0xc3])),
            (Self::ActionCable, MessageKind::Text) => {
                Some(Message::text("{\"type\":\"disconnect\",\"reason\":\"server_restart\",\"reconnect\":true}"))
            }
            // Opcode 7: reconnect, and resume.
            (Self::Discord, MessageKind::Text) => Some(Message::text("{\"op\":7,\"d\":null}")),
            // DISCONNECT with "use another server". Before MQTT 5 a server has no such packet.
            (Self::MQTT, MessageKind::Binary) if spoken.mqtt_level == Some(5) => {
                Some(Message::binary(&[0xe0, 0x02, 0x9c, 0x00]))
            }
            _ => None,
        }
    }
}

/// Ranges for people: `1000, 1007 to 1011`.
pub fn spell(ranges: &[RangeInclusive<u16>]) -> String {
    let mut text = String::new();
    for range in ranges {
        let (first, last) = (range.start(), range.end());
        let comma = if text.is_empty() { "" } else { ", " };
        match last - first {
            0 => write!(text, "{comma}{first}"),
            1 => write!(text, "{comma}{first}, {last}"),
            _ => write!(text, "{comma}{first} to {last}"),
        }
        .expect("memory");
    }
    text
}

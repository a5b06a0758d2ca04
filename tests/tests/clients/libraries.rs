//! The client libraries: how each is run, what its clients must be told, and what they must not.

use std::net::SocketAddr;
use std::path::PathBuf;

use harness::frames::opcode::{BINARY, CLOSE, TEXT};
use harness::script::Script;
use harness::tap::Call;
use ring::notice::{Message, MessageKind};
use ring::settings::NoticeProtocol;
use serde_json::Value;

/// A client library.
pub(crate) struct Library {
    /// Its script in tests/node/clients/libraries, or [`PYTHON`].
    pub(crate) script: &'static str,
    /// Its package.
    package: &'static str,
    /// How it is used, where there are several ways.
    way: &'static str,
    pub(crate) protocol: NoticeProtocol,
    /// Where its clients have their key.
    pub(crate) key: &'static str,
    /// The message before the Close.
    pub(crate) message: Option<Message<'static>>,
    pub(crate) close: u16,
    /// Messages that would keep its clients away, by their beginnings.
    never: &'static [&'static [u8]],
    /// Its server.
    pub(crate) server: &'static str,
}

/// Stands for the scripts in tests/python.
const PYTHON: &str = "python";

const PLAIN: Library = Library {
    script: "",
    package: "",
    way: "",
    protocol: NoticeProtocol::WebSocket,
    key: "query: user",
    message: None,
    close: 1012,
    never: &[],
    server: "`ws`",
};
const SOCKET_IO: Library = Library {
    package: "socket.io-client",
    protocol: NoticeProtocol::SocketIO,
    // Socket.IO's disconnect, and Engine.IO's close.
    never: &[b"41", b"1"],
    server: "`socket.io`",
    ..PLAIN
};
const SIGNALR: Library = Library {
    package: "@microsoft/signalr",
    protocol: NoticeProtocol::SignalR,
    message: Some(Message::text("{\"type\":7,\"allowReconnect\":true}\x1e")),
    close: 1001,
    never: &[b"{\"type\":7}", b"{\"type\":7,\"error\"", b"{\"type\":7,\"allowReconnect\":false"],
    server: "our own, with the library's encoders",
    ..PLAIN
};
const MQTT: Library = Library { package: "mqtt", protocol: NoticeProtocol::MQTT, ..PLAIN };

pub(crate) const LIBRARIES: [Library; 21] = [
    // The slowest first.
    Library {
        script: "actioncable",
        package: "@rails/actioncable",
        protocol: NoticeProtocol::ActionCable,
        message: Some(Message::text("{\"type\":\"disconnect\",\"reason\":\"server_restart\",\"reconnect\":true}")),
        never: &[b"{\"type\":\"disconnect\",\"reason\":\"server_restart\",\"reconnect\":false"],
        server: "our own",
        ..PLAIN
    },
    Library { script: "stomp", package: "@stomp/stompjs", server: "`stomp-broker-js`", ..PLAIN },
    Library { script: "reconnecting-websocket", package: "reconnecting-websocket", way: "pladaria", ..PLAIN },
    Library { script: "reconnectingwebsocket", package: "reconnectingwebsocket", way: "joewalnes", ..PLAIN },
    Library { script: "partysocket", package: "partysocket", ..PLAIN },
    Library {
        script: "graphql-ws",
        package: "graphql-ws",
        protocol: NoticeProtocol::GraphQLWS,
        server: "`graphql-ws`",
        ..PLAIN
    },
    Library {
        script: "subscriptions-transport-ws",
        package: "subscriptions-transport-ws",
        way: "with `reconnect: true`",
        server: "its own",
        ..PLAIN
    },
    Library { script: "socketio-websocket", way: "WebSocket only", ..SOCKET_IO },
    Library { script: "socketio-upgrade", way: "polling, then WebSocket", ..SOCKET_IO },
    Library { script: "signalr-direct", way: "JSON, without negotiation", ..SIGNALR },
    Library { script: "signalr-negotiate", way: "JSON, negotiated", ..SIGNALR },
    Library {
        script: "signalr-messagepack",
        way: "MessagePack",
        message: Some(Message::binary(&[0x04, 0x93, 0x07, 0xc0, 0xc3])),
        never: &[&[0x03, 0x92, 0x07], &[0x04, 0x93, 0x07, 0xc0, 0xc2]],
        ..SIGNALR
    },
    Library { script: "phoenix", package: "phoenix", protocol: NoticeProtocol::Phoenix, server: "our own", ..PLAIN },
    Library {
        script: "discordjs",
        package: "@discordjs/ws",
        protocol: NoticeProtocol::Discord,
        key: "path: \"/users/{key}\"",
        message: Some(Message::text("{\"op\":7,\"d\":null}")),
        close: 4000,
        server: "our own",
        ..PLAIN
    },
    // Its broker sends packets in pieces, some of which begin as a DISCONNECT does.
    Library { script: "mqtt-3", way: "MQTT 3.1.1", never: &[&[0xe0, 0x02, 0x9c]], server: "`aedes`", ..MQTT },
    Library {
        script: "mqtt-5",
        way: "MQTT 5",
        message: Some(Message::binary(&[0xe0, 0x02, 0x9c, 0x00])),
        server: "our own, with `mqtt-packet`",
        ..MQTT
    },
    Library {
        script: "centrifuge",
        package: "centrifuge",
        protocol: NoticeProtocol::Centrifugo,
        server: "our own",
        ..PLAIN
    },
    Library {
        script: "pusher",
        package: "pusher-js",
        protocol: NoticeProtocol::Pusher,
        key: "path: \"/app/{key}\"",
        close: 4200,
        server: "our own",
        ..PLAIN
    },
    Library { script: "htmx", package: "htmx-ext-ws", way: "in jsdom", protocol: NoticeProtocol::Htmx, ..PLAIN },
    Library { script: "y-websocket", package: "y-websocket", server: "`@y/websocket-server`", ..PLAIN },
    Library {
        script: PYTHON,
        package: "websockets",
        way: "Python, `async for` over `connect`",
        server: "its own",
        ..PLAIN
    },
];

impl Library {
    /// Its server as two pods have it, and where the two listen.
    pub(crate) async fn serve(&self) -> (Script, [SocketAddr; 2]) {
        let mut script = match self.script {
            PYTHON => Script::python("server.py", &["a", "b"]),
            library => Script::library("server.js", &[library, "a", "b"]),
        };
        let mut addresses = Vec::new();
        for name in ["a", "b"] {
            let port: u16 = script.says(&format!("port {name} ")).await.parse().expect("a port");
            addresses.push(SocketAddr::from(([127, 0, 0, 1], port)));
        }
        (script, [addresses[0], addresses[1]])
    }

    /// So many clients, in one process.
    pub(crate) fn connect(&self, entry: SocketAddr, clients: usize) -> Script {
        let (entry, count) = (entry.to_string(), clients.to_string());
        match self.script {
            PYTHON => Script::python("clients.py", &[&entry, &count]),
            library => Script::library("clients.js", &[library, &entry, &count]),
        }
    }

    /// Its name and version, as its list of packages has them.
    pub(crate) fn name(&self) -> String {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).expect("a list of packages");
        let version = if self.script == PYTHON {
            let pinned = format!("{}==", self.package);
            let requirements = read("python/requirements.txt");
            let line = requirements.lines().find_map(|line| line.strip_prefix(&pinned));
            line.expect("its version").to_owned()
        } else {
            let packages: Value = serde_json::from_str(&read("node/clients/package.json")).expect("JSON");
            packages["dependencies"][self.package].as_str().expect("its version").to_owned()
        };
        let way = if self.way.is_empty() { String::new() } else { format!(" ({})", self.way) };
        format!("{} {version}{way}", self.package)
    }

    /// Checks what a client that stays has been told: nothing.
    pub(crate) fn check_undisturbed(&self, call: &Call) {
        self.check_harmless(call);
        assert_eq!((call.closes(), call.ended), (0, false), "{}: {} was disturbed", self.script, call.target);
    }

    /// Checks what a client that goes has been told: the message, if its library has one, then one Close, and no more.
    pub(crate) fn check_told(&self, call: &Call) {
        self.check_harmless(call);
        let name = self.script;
        let ([.., (first, payload, _), _], Some((code, _))) = (call.frames.as_slice(), call.close()) else {
            panic!("{name}: {} was not told: {:?}", call.target, call.frames)
        };
        assert_eq!((code, call.closes()), (self.close, 1), "{name}: {}", call.target);
        if let Some(Message { kind, payload: message }) = self.message {
            let opcode = if kind == MessageKind::Text { TEXT } else { BINARY };
            let said = (*first, payload.as_slice());
            assert_eq!(said, (0x80 | opcode, message), "{name}: {} was told {payload:?}", call.target);
        }
    }

    /// Checks that nothing was said that would keep the library's clients away.
    fn check_harmless(&self, call: &Call) {
        let fatal = self.protocol.fatal_codes();
        for (first, payload, _) in &call.frames {
            let never = self.never.iter().any(|never| payload.starts_with(never));
            assert!(first & 0x0f == CLOSE || !never, "{}: {} was told {payload:?}", self.script, call.target);
        }
        let code = call.close().map(|(code, _)| code);
        let stays = code.is_some_and(|code| fatal.iter().any(|fatal| fatal.contains(&code)));
        assert!(!stays, "{}: {} was closed with {code:?}", self.script, call.target);
    }
}

//! How protocols name the sessions that span their requests.

use std::time::Duration;

use http::Method;
use ring::settings::NoticeProtocol;
use serde::Deserialize;

/// The longest answer that is searched for a session's name.
const LONGEST_ANSWER: usize = 4 * 1024;
/// How long a negotiated connection of SignalR may wait for its WebSocket (`HttpConnectionManager` in ASP.NET Core).
const NEGOTIATED: Duration = Duration::from_secs(15);
/// No session is remembered for longer without a request, whatever its app says.
const LONGEST_SILENCE: Duration = Duration::from_secs(3600);

/// A protocol with such sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Engine.IO, below Socket.IO: a session polls, until it has a WebSocket.
    EngineIo,
    /// A request negotiates a connection, which a WebSocket then takes up.
    SignalR,
}

/// What the beginning of an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Nothing yet.
    More,
    /// No session.
    Nothing,
    /// A session has begun.
    Begun {
        /// Its name.
        id: String,
        /// How long it lives without a request.
        silence: Duration,
    },
}

/// The request that ends a session at its app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// Its target.
    pub target: String,
    /// Its body.
    pub body: &'static str,
}

impl Dialect {
    /// The sessions of a pool's clients.
    pub fn of(protocol: NoticeProtocol) -> Option<Self> {
        match protocol {
            NoticeProtocol::SocketIO => Some(Self::EngineIo),
            NoticeProtocol::SignalR => Some(Self::SignalR),
            _ => None,
        }
    }

    /// The session that a request belongs to, by its target.
    pub fn session_in(self, target: &str) -> Option<&str> {
        match self {
            Self::EngineIo => parameter(target, "EIO").and_then(|_| parameter(target, "sid")),
            Self::SignalR => parameter(target, "id"),
        }
    }

    /// Whether the answer to a request may begin a session.
    pub fn may_begin(self, method: &Method, target: &str) -> bool {
        match self {
            Self::EngineIo => {
                let polls = parameter(target, "transport") == Some("polling") && parameter(target, "EIO").is_some();
                method == Method::GET && polls && parameter(target, "sid").is_none()
            }
            Self::SignalR => method == Method::POST && path(target).ends_with("/negotiate"),
        }
    }

    /// Looks for a session in the answer's body, as far as it has come.
    pub fn read(self, body: &[u8]) -> Reading {
        // Engine.IO has a packet's type before the object, and in version 3 its length.
        let Some(start) = body.iter().position(|byte| *byte == b'{') else { return more(body) };
        let mut objects = serde_json::Deserializer::from_slice(&body[start..]).into_iter::<Answer>();
        match objects.next() {
            Some(Ok(answer)) => self.begun(answer),
            Some(Err(error)) if error.is_eof() => more(body),
            _ => Reading::Nothing,
        }
    }

    fn begun(self, answer: Answer) -> Reading {
        let (id, silence) = match self {
            Self::EngineIo => {
                let silence = answer.ping_interval.saturating_add(answer.ping_timeout);
                (answer.sid, Duration::from_millis(silence).min(LONGEST_SILENCE))
            }
            Self::SignalR => (answer.connection_token.or(answer.connection_id), NEGOTIATED),
        };
        id.map_or(Reading::Nothing, |id| Reading::Begun { id, silence })
    }

    /// How a session is ended that began with this target. `None` where it can only be waited for.
    pub fn farewell(self, target: &str, id: &str) -> Option<Farewell> {
        let body = if parameter(target, "EIO") == Some("3") { "1:1" } else { "1" };
        (self == Self::EngineIo).then(|| Farewell { target: format!("{target}&sid={id}"), body })
    }
}

/// What begins a session, in either protocol.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    sid: Option<String>,
    #[serde(default = "ping_interval")]
    ping_interval: u64,
    #[serde(default = "ping_timeout")]
    ping_timeout: u64,
    connection_token: Option<String>,
    connection_id: Option<String>,
}

// Engine.IO's own defaults, in milliseconds.
fn ping_interval() -> u64 {
    25_000
}

fn ping_timeout() -> u64 {
    20_000
}

fn more(body: &[u8]) -> Reading {
    if body.len() < LONGEST_ANSWER { Reading::More } else { Reading::Nothing }
}

fn path(target: &str) -> &str {
    target.split('?').next().unwrap_or_default()
}

/// A parameter of a target's query, as it stands there: both protocols' servers choose names that need no encoding.
fn parameter<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = target.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: &str = "/socket.io/?user=ann&EIO=4&transport=polling&t=abc";
    const OPEN: &str = "0{\"sid\":\"lv_VI97HAXpY6yYWAAAC\",\"upgrades\":[\"websocket\"],\"pingInterval\":25000,\
                        \"pingTimeout\":20000,\"maxPayload\":1000000}";
    const NEGOTIATED_BY: &str = "{\"negotiateVersion\":1,\"connectionId\":\"public\",\"connectionToken\":\"secret\",\
                                 \"availableTransports\":[]}";

    #[test]
    fn a_poll_without_a_session_may_begin_one_and_one_with_it_belongs_to_it() {
        let engine = Dialect::EngineIo;
        assert!(engine.may_begin(&Method::GET, POLL));
        assert_eq!(engine.session_in(POLL), None);
        let later = format!("{POLL}&sid=abc");
        assert!(!engine.may_begin(&Method::GET, &later));
        assert_eq!(engine.session_in(&later), Some("abc"));
        for other in ["/?transport=polling", "/socket.io/?EIO=4&transport=websocket", "/socket.io/", "/rooms?sid=abc"] {
            assert!(!engine.may_begin(&Method::GET, other), "{other}");
            assert_eq!(engine.session_in(other), None, "{other}");
        }
        assert!(!engine.may_begin(&Method::POST, POLL));
    }

    #[test]
    fn a_negotiation_may_begin_a_connection_which_its_id_names() {
        let signalr = Dialect::SignalR;
        assert!(signalr.may_begin(&Method::POST, "/hub/negotiate?user=ann&negotiateVersion=1"));
        assert!(!signalr.may_begin(&Method::GET, "/hub/negotiate?user=ann"));
        assert!(!signalr.may_begin(&Method::POST, "/hub?user=ann"));
        assert_eq!(signalr.session_in("/hub?user=ann&id=secret"), Some("secret"));
    }

    #[test]
    fn a_session_is_read_as_soon_as_it_is_whole() {
        for (dialect, whole, id, seconds) in [
            (Dialect::EngineIo, OPEN.to_owned(), "lv_VI97HAXpY6yYWAAAC", 45),
            (Dialect::EngineIo, format!("{}:{OPEN}2:40", OPEN.len()), "lv_VI97HAXpY6yYWAAAC", 45),
            (Dialect::SignalR, NEGOTIATED_BY.to_owned(), "secret", 15),
            (Dialect::SignalR, "{\"connectionId\":\"old\"}".to_owned(), "old", 15),
        ] {
            let end = whole.rfind('}').unwrap_or_default();
            for length in 0..=end {
                assert_eq!(dialect.read(&whole.as_bytes()[..length]), Reading::More, "{whole} {length}");
            }
            let begun = Reading::Begun { id: id.into(), silence: Duration::from_secs(seconds) };
            assert_eq!(dialect.read(whole.as_bytes()), begun, "{whole}");
        }
    }

    #[test]
    fn what_names_no_session_is_let_go() {
        let redirected = "{\"url\":\"https://elsewhere.example\",\"accessToken\":\"x\"}";
        assert_eq!(Dialect::SignalR.read(redirected.as_bytes()), Reading::Nothing);
        for body in ["0{\"sid\":5}", "{]"] {
            assert_eq!(Dialect::EngineIo.read(body.as_bytes()), Reading::Nothing, "{body}");
        }
        assert_eq!(Dialect::EngineIo.read(&[b' '; LONGEST_ANSWER]), Reading::Nothing);
        let endless = format!("0{{\"sid\":\"{}", "x".repeat(LONGEST_ANSWER));
        assert_eq!(Dialect::EngineIo.read(endless.as_bytes()), Reading::Nothing);
    }

    #[test]
    fn a_session_is_ended_in_the_encoding_of_its_version() {
        let farewell = Dialect::EngineIo.farewell(POLL, "abc").expect("one");
        assert_eq!((farewell.target.as_str(), farewell.body), (&*format!("{POLL}&sid=abc"), "1"));
        let third = Dialect::EngineIo.farewell("/socket.io/?EIO=3&transport=polling", "abc").expect("one");
        assert_eq!(third.body, "1:1");
        assert_eq!(Dialect::SignalR.farewell("/hub/negotiate?user=ann", "secret"), None);
    }
}

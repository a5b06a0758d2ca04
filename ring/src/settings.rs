//! What a pool's spec tells its sidecars. It travels in the placement, so that all of them change together.

pub mod jwt;

use serde::{Deserialize, Serialize};

use crate::duration::GoDuration;

pub use jwt::{Jwt, Mounted, SecretKey, SigningAlgorithm, TokenSource};

/// The settings of a pool, as its sidecars use them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Where a connection's key is read from.
    pub key: KeySpec,
    /// What decides where a connection goes.
    pub strategy: Strategy,
    /// What moves at once.
    pub unit: Unit,
    /// What happens to a handshake whose owner cannot be reached.
    pub owner_unreachable: OwnerUnreachable,
    /// What a client is told before its connection is closed.
    pub notice: Notice,
    /// How a pod that goes away is emptied.
    pub drain: Drain,
    /// What one sidecar accepts.
    pub limits: Limits,
    /// Connections per second that a draining sidecar may evict by itself while the operator is silent.
    pub rate: Rate,
    /// How long a key or a pod may be pinned in one piece.
    #[serde(skip_serializing_if = "MaxPinned::is_default")]
    pub max_pinned: MaxPinned,
    /// The address book for clients that ask before they connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// Who gets messages through the local API.
    #[serde(skip_serializing_if = "Messages::is_default")]
    pub messages: Messages,
    /// The Redis that carries messages and sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
}

/// The Redis that carries messages and sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Redis {
    /// Where its URL is: redis://, with user, password and database, rediss:// with TLS, redis-cluster:// and
    /// redis-sentinel:// likewise. In a cluster of shards, messages are published with SPUBLISH.
    pub url_from: Mounted,
    /// The certificates, in PEM, of the authorities that its server's certificate is checked with. Left out, they are
    /// the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_from: Option<Mounted>,
    /// What the names of its channels and keys begin with, 1 to 256 bytes. Left out, it is
    /// wspool:<namespace>/<pool>: with the pool's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub prefix: Option<String>,
    /// Whether what is published arrives as a text message or as a binary one.
    #[serde(default)]
    pub messages: Published,
}

/// What published bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Published {
    /// UTF-8. Anything else is dropped.
    #[default]
    Text,
    /// Octets.
    Binary,
}

/// Messages that apps send to clients through their sidecars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Messages {
    /// Whether connections get messages whose key proves nothing: with key.trust Routing, or without a key. Then whoever
    /// writes somebody else's key into a handshake reads that one's messages.
    pub allow_unverified: bool,
}

impl Messages {
    /// Whether nothing is said: sidecars of an older release know no messages.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How connections are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Strategy {
    /// By the hash of their key.
    #[default]
    ConsistentHash,
    /// To the less loaded pods.
    LeastConnections,
}

/// The address book for clients that ask before they connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    /// The path that answers. Where keys stand in paths, the path of the connection to come goes behind it:
    /// /gateway/rooms/7.
    #[serde(default = "Gateway::default_path")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub path: String,
    /// The address of a slot, with {slot} where its number goes: wss://s{slot}.chat.example.com/.
    #[cfg_attr(feature = "schema", schemars(length(max = 1_024)))]
    pub url: String,
    /// The origins whose pages may read the answer (CORS), at most 32: https://chat.example.com. * is any, without
    /// cookies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 32), inner(length(max = 256))))]
    pub origins: Vec<String>,
    /// How often one client address is answered per second by one pod, 0 to 1000000. 0 means no limit.
    #[serde(default = "Gateway::default_per_client")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 1_000_000)))]
    pub per_client: u32,
    /// How many proxies in front append to X-Forwarded-For, 0 to 8. The client is so many from the right of it; with 0
    /// it is who connects.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 8)))]
    pub trusted_hops: u8,
}

impl Gateway {
    /// Stands for a slot's number in [`Gateway::url`].
    pub const SLOT: &str = "{slot}";

    /// [`Gateway::path`] where nothing else is said.
    pub fn default_path() -> String {
        "/gateway".into()
    }

    /// [`Gateway::per_client`] where nothing else is said.
    pub const fn default_per_client() -> u32 {
        100
    }

    /// The address of a slot.
    pub fn url_of(&self, slot: crate::SlotId) -> String {
        self.url.replace(Self::SLOT, &slot.to_string())
    }

    /// Whether a request with this Host and this target was sent to the address of a slot. Clients leave the port of their
    /// scheme out of Host, and may add to the path.
    pub fn is_address_of(&self, slot: crate::SlotId, host: &str, target: &str) -> bool {
        let url = self.url_of(slot);
        let (scheme, address) = url.split_once("://").unwrap_or(("", &url));
        let (authority, path) = address.find('/').map_or((address, "/"), |at| address.split_at(at));
        let port = if scheme == "wss" { ":443" } else { ":80" };
        let bare = |host: &str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
        let rest = target.strip_prefix(path);
        let whole = |rest: &str| rest.is_empty() || path.ends_with('/') || rest.starts_with(['/', '?', '&']);
        bare(authority) == bare(host) && rest.is_some_and(whole)
    }
}

/// See [`Settings::rate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(pub u32);

impl Default for Rate {
    fn default() -> Self {
        Self(50)
    }
}

/// See [`Settings::max_pinned`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MaxPinned(pub GoDuration);

impl MaxPinned {
    /// Whether nothing is said: sidecars of an older release know no pins.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for MaxPinned {
    fn default() -> Self {
        Self(GoDuration::from_secs(3_600))
    }
}

/// Where a connection's key is read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KeySpec {
    /// The sources in order, 1 to 8: the first that yields a value wins.
    #[cfg_attr(feature = "schema", schemars(length(max = 8)))]
    pub from: Vec<KeySource>,
    /// What happens to a handshake that yields no key. Spread: it stays where it entered. Reject: it is refused with 400,
    /// or with 401 where all sources are jwt.
    pub missing: Missing,
    /// What a key proves. Routing: nothing, it places connections only. Verified: who the client is, its token was
    /// checked. AppAsserted: who the client is, the app has confirmed it in the header wspool-key of its 101.
    pub trust: Trust,
    /// How the client's JSON web token is found and checked, for the sources jwt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
}

/// One place in a handshake that a key may stand in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum KeySource {
    /// The name of a parameter of the query string.
    Query(#[cfg_attr(feature = "schema", schemars(length(max = 256)))] String),
    /// The name of a header.
    Header(#[cfg_attr(feature = "schema", schemars(length(max = 256)))] String),
    /// The name of a cookie.
    Cookie(#[cfg_attr(feature = "schema", schemars(length(max = 256)))] String),
    /// A template of the path: /rooms/{key}. One segment is the key; * stands for any one segment.
    Path(#[cfg_attr(feature = "schema", schemars(length(max = 256)))] String),
    /// The prefix of a subprotocol, the rest of which is the key.
    Subprotocol(#[cfg_attr(feature = "schema", schemars(length(max = 256)))] String),
    /// The name of a claim in the client's JSON web token, which is checked as key.jwt says.
    Jwt(#[cfg_attr(feature = "schema", schemars(length(max = 256)))] String),
}

/// What happens to a handshake that yields no key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Missing {
    /// It stays where it entered.
    #[default]
    Spread,
    /// It is refused with 400, or with 401 where only a token could have had it.
    Reject,
}

/// What a key proves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Trust {
    /// Nothing: it places connections only.
    #[default]
    Routing,
    /// Who the client is: its token was checked.
    Verified,
    /// Who the client is: the app has confirmed it.
    AppAsserted,
}

/// What moves at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Unit {
    /// All connections of a key: it is never on two servers.
    #[default]
    Key,
    /// One connection: a key may be on two servers while it moves.
    Connection,
}

/// What happens to a handshake whose owner cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum OwnerUnreachable {
    /// The key's next-best slot takes it until its owner is back.
    #[default]
    Fallback,
    /// It is refused with 503.
    Reject,
}

/// What a client is told before its connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Notice {
    /// What the client speaks: it decides which message and which close code bring it back by itself. WebSocket is for
    /// whatever comes back after any close.
    pub protocol: NoticeProtocol,
    /// The code of the close frame that the client gets: 1000 to 1003, 1007 to 1014, or 3000 to 4999. Left out, it is
    /// the protocol's: 4000 for Discord, 4200 for Pusher, 1001 for SignalR, and 1012, the service restarts, for all
    /// others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close_code: Option<u16>,
    /// The code of the close frame that the app gets: 1000 to 1003, 1007 to 1014, or 3000 to 4999. 1001 says that the
    /// client goes away.
    pub app_close_code: u16,
    /// A text message that the client gets before the close frame, at most 4096 bytes. Left out, it gets its protocol's
    /// own, if there is one. Clients of SocketIO, GraphQLWS, SignalR and MQTT understand no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16_384)))]
    pub message: Option<String>,
    /// The reason in the client's close frame, at most 123 bytes.
    #[cfg_attr(feature = "schema", schemars(length(max = 1_024)))]
    pub reason: String,
}

impl Default for Notice {
    fn default() -> Self {
        Self {
            protocol: NoticeProtocol::WebSocket,
            close_code: None,
            app_close_code: 1001,
            message: None,
            reason: "moved".into(),
        }
    }
}

/// The client's protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum NoticeProtocol {
    /// Plain WebSocket, and any library that comes back after any close.
    #[default]
    WebSocket,
    /// Socket.IO, also where it begins by long polling.
    SocketIO,
    /// graphql-ws, the protocol graphql-transport-ws.
    GraphQLWS,
    /// ASP.NET SignalR, with its negotiate request or without.
    SignalR,
    /// Phoenix channels.
    Phoenix,
    /// Rails' Action Cable.
    ActionCable,
    /// A gateway that speaks as Discord's does.
    Discord,
    /// MQTT over WebSocket.
    MQTT,
    /// Centrifugo, and whatever else centrifuge-js talks to.
    Centrifugo,
    /// The Pusher protocol: Soketi, Laravel Reverb, Sockudo.
    Pusher,
    /// The ws extension of htmx.
    Htmx,
}

/// How a pod that goes away is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Drain {
    /// How long it may take, 1s to 1h. What is left after that breaks with the pod.
    pub timeout: GoDuration,
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout: GoDuration::from_secs(60) }
    }
}

/// What one pod accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Connections held at once. 0 means no limit.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 10_000_000)))]
    pub connections: u32,
    /// Handshakes passed to the app per second; those past it wait in a bounded queue. 0 means no limit.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 1_000_000)))]
    pub handshakes_per_second: u32,
    /// Connections of one key. 0 means no limit.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 10_000_000)))]
    pub per_key: u32,
    /// How long a connection may be silent both ways before it is closed, 1s to 24h. 0s means for ever.
    pub idle: GoDuration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 50_000, handshakes_per_second: 500, per_key: 0, idle: GoDuration::from_secs(0) }
    }
}

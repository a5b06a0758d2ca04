//! The JSON that operator and sidecars exchange.
//!
//! | request | to | body | answer |
//! |---|---|---|---|
//! | `PUT /v1/placement` | control port | [`Placed`] | [`Report`] |
//! | `PUT /v1/evictions` | control port | [`Grant`] | [`Report`] |
//! | `PUT /v1/loads` | control port | [`Told`] | [`Report`] |
//! | `PUT /v1/pin` | control port | [`PodPin`] | [`Report`] |
//! | `GET /v1/status` | control port | - | [`Report`] |
//! | `PUT /v1/drain` | control port | - | [`Report`] |
//! | `POST /.wspool/v1/claims` | a peer's client port | [`Claim`] | [`ClaimReply`] |
//! | `POST /.wspool/v1/cut-overs` | a peer's client port | [`CutOver`] | 204 |
//! | `PUT /.wspool/v1/draining` | a peer's client port | [`Draining`] | 204 |
//! | `POST /.wspool/v1/returns` | a peer's client port | [`Returns`] | 204 |
//! | `POST /.wspool/v1/whereabouts` | a peer's client port | [`Whereabouts`] | the [`Peer`] that would take the key |
//! | `POST /.wspool/v1/messages` | a peer's client port | a message for the key in [`header::KEY`] | [`Delivered`] |
//! | `POST /.wspool/v1/broadcasts` | a peer's client port | a message for all connections | [`Delivered`] |
//! | `GET /.wspool/v1/connections` | a peer's client port | - | [`Presences`] of the key in [`header::KEY`] |
//! | `GET /.wspool/v1/sessions?id=` | a peer's client port | - | 204 where that session is held, else 404 |
//!
//! Errors are [`Problem`]s (RFC 9457, `application/problem+json`). Requests between peers name the sidecar they mean in
//! the header [`header::TARGET`]: addresses are reused, UIDs are not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::claim::ClaimAnswer;
use crate::{Placement, SlotId, Version};

/// Headers between sidecars, and from a sidecar to its app. Clients' own are stripped.
pub mod header {
    /// Every header of ours starts so, or with `wspool_`.
    pub const PREFIX: &str = "wspool-";
    /// The UID of the sidecar that a peer means.
    pub const TARGET: &str = "wspool-target";
    /// The UID of the sidecar that asks.
    pub const FROM: &str = "wspool-from";
    /// The key, percent-encoded. In an app's 101 it is the key that the app confirms.
    pub const KEY: &str = "wspool-key";
    /// Between sidecars the sender's epoch; to the app the fencing token, `term.epoch`.
    pub const EPOCH: &str = "wspool-epoch";
    /// Present when the sender could not reach the owner.
    pub const FALLBACK: &str = "wspool-fallback";
    /// Present when the sender has checked the token that the key is from; covered by [`AUTH`].
    pub const VERIFIED: &str = "wspool-verified";
    /// Proof that a peer sent the request: `time.nonce.mac`, see the sidecar's `auth::peer`.
    pub const AUTH: &str = "wspool-auth";
    /// SHA-256 of a request's body between sidecars, in hexadecimal; covered by [`AUTH`].
    pub const DIGEST: &str = "wspool-digest";
    /// In a 421: the address of the sidecar to dial instead.
    pub const ADDRESS: &str = "wspool-address";
    /// In a 421: the UID of the sidecar to dial instead.
    pub const OWNER: &str = "wspool-owner";
}

/// A sidecar, as its peers address it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// Its pod's UID.
    pub uid: String,
    /// Its client port, `host:port`.
    pub address: String,
}

/// What the operator signs for each request to a control port: an `EdDSA` JWT in `Authorization: Bearer`, for one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlClaims {
    /// The UID of the sidecar that is meant.
    pub aud: String,
    /// The leader's term: one that is older than the sidecar has seen is refused.
    pub term: u64,
    /// When it was signed, in seconds since 1970.
    pub iat: u64,
    /// When it ends, in seconds since 1970: seconds after `iat`.
    pub exp: u64,
    /// Used once.
    pub jti: String,
    /// The request: `PUT /v1/placement`.
    pub req: String,
    /// SHA-256 of its body, in hexadecimal.
    pub body: String,
}

/// `PUT /v1/placement`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Placed<P = Placement> {
    /// The UID of the sidecar that is meant.
    pub target: String,
    /// The placement, or a reference to one that many sidecars get.
    pub placement: P,
}

/// `PUT /v1/evictions`: permission to evict, up to a running total. Idempotent: the greatest total wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// The UID of the sidecar that is meant.
    pub target: String,
    /// The version under which keys are moved.
    #[serde(flatten)]
    pub version: Version,
    /// Evictions allowed since the sidecar's process began, in connections: compare [`Report::evicted`].
    pub allow_total: u64,
    /// How long the permission lasts, in milliseconds. It is spent evenly over this time.
    pub ttl_ms: u64,
    /// The slots that connections may be moved to: those whose holders have acknowledged the version.
    pub to: Vec<SlotId>,
}

/// `PUT /v1/loads`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Told<L = Loads> {
    /// The UID of the sidecar that is meant.
    pub target: String,
    /// The loads, or a reference to those that many sidecars get.
    pub loads: L,
}

/// `PUT /v1/pin`: all connections of this pod stay where they are for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodPin {
    /// The UID of the sidecar that is meant.
    pub target: String,
    /// Until when, in milliseconds since 1970; 0 ends it. The same time again is no news.
    pub until: u64,
}

/// How loaded a pool is whose strategy is `LeastConnections`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Loads {
    /// The version whose slots these are.
    #[serde(flatten)]
    pub version: Version,
    /// The slots that take new connections, each with what it holds.
    pub slots: BTreeMap<SlotId, Load>,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Connections, without those that are leaving.
    pub connections: u64,
    /// How long ago they were counted, in milliseconds.
    pub age_ms: u64,
}

/// `POST /.wspool/v1/claims`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The key.
    pub key: String,
    /// The version under which the claimant owns it.
    #[serde(flatten)]
    pub version: Version,
    /// The pool's UID.
    pub pool_uid: String,
    /// The claimant.
    pub claimant: Peer,
    /// How long the answer may wait for connections that are leaving, in milliseconds.
    #[serde(default)]
    pub wait_ms: u64,
    /// Whether the claimant will hear what is published for the key in the pool's Redis, and publishes a marker then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hears: bool,
}

/// What a previous owner says to a [`Claim`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimReply {
    /// Whether the key is released.
    #[serde(flatten)]
    pub answer: ClaimAnswer<Peer>,
    /// The marker that the claimant is to publish: until it comes, what is published for the key is passed on to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marker: Option<String>,
}

/// `POST /.wspool/v1/cut-overs`: whoever had a key has passed on all that was published for it before a marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CutOver {
    /// The pool's UID.
    pub pool_uid: String,
    /// The key.
    pub key: String,
    /// The marker.
    pub marker: String,
}

/// `PUT /.wspool/v1/draining`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Draining {
    /// The pool's UID.
    pub pool_uid: String,
    /// Who drains, or no longer does.
    pub uid: String,
    /// Whether its keys go to their next-best slots from now on.
    pub draining: bool,
    /// Whether it has no connections any more, takes none, and is about to end: nobody need ask it for keys.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

/// `POST /.wspool/v1/returns`: whom a sidecar has told to go to the keys' owner, which has not claimed them before that
/// sidecar ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Returns {
    /// The pool's UID.
    pub pool_uid: String,
    /// The keys, [`Returns::KEYS`] at most.
    pub keys: Vec<Returning>,
}

impl Returns {
    /// How many keys one request names.
    pub const KEYS: usize = 64;
}

/// What is known of connections on their way to a key's owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Returning {
    /// The key.
    pub key: String,
    /// How many there are.
    pub away: u32,
    /// Of these, the ones that may get messages.
    pub receivers: u32,
    /// What the owner is to publish for the key as soon as it hears the key itself: until then it is passed on to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marker: Option<String>,
}

/// `POST /.wspool/v1/whereabouts`: where a handshake of a key would be accepted now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Whereabouts {
    /// The pool's UID.
    pub pool_uid: String,
    /// The key.
    pub key: String,
}

/// What came of a message at one sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delivered {
    /// Connections that it was written to.
    pub written: u32,
    /// Connections that it is held for, until they arrive.
    pub held: u32,
    /// Connections that it could not be written to, or held for.
    pub dropped: u32,
    /// Connections that have been told to go, and may be on their way to the owner.
    pub away: u32,
    /// Who owns the key, when it is not the sidecar that was asked as the owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Peer>,
    /// Who may have the key still, as far as the owner knows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<Peer>,
    /// The epoch of the placement that this was decided under.
    pub epoch: u64,
}

/// The connections of a key at one sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Presences {
    /// How many there are.
    pub count: u64,
    /// Those that have been there for longest, [`Presences::LISTED`] at most.
    pub connections: Vec<Connected>,
}

impl Presences {
    /// How many connections an answer lists.
    pub const LISTED: usize = 1_000;
}

/// A connection of a key at one sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connected {
    /// How long it has been there, in milliseconds.
    pub age_ms: u64,
    /// Whether its key proves who the client is.
    pub trusted: bool,
}

/// What a sidecar says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Its pod's UID.
    pub uid: String,
    /// When its process began, in milliseconds since 1970: totals count from here.
    pub started: u64,
    /// The pool whose placement it has; empty without one.
    pub pool_uid: String,
    /// The version of that placement.
    #[serde(flatten)]
    pub version: Version,
    /// The slot it holds under it.
    pub slot: Option<SlotId>,
    /// Whether it is being emptied.
    pub draining: bool,
    /// Whether it has said that it is not ready because its slot is gone.
    pub retired: bool,
    /// Seconds left until a draining sidecar gives up.
    pub drain_seconds_left: Option<u64>,
    /// Connections whose app is here.
    pub connections: u64,
    /// Of these, the ones whose key proves who the client is.
    pub trusted: u64,
    /// Connections tunnelled to another sidecar.
    pub transit: u64,
    /// Held keys whose owner is elsewhere.
    pub moved_keys: u64,
    /// Their connections, without those already leaving and those that are pinned.
    pub moved: u64,
    /// The same by the slot they belong to now.
    pub moved_to: BTreeMap<SlotId, u64>,
    /// Connections of moved keys that stay here, because they are pinned.
    pub moved_pinned: u64,
    /// Keys that the app has pinned here.
    pub pinned_keys: u64,
    /// Connections that are pinned here, for their keys or for the whole pod.
    pub pinned: u64,
    /// Until when the pod is pinned, as the operator said last: [`PodPin::until`].
    pub pod_pinned_until: u64,
    /// Connections evicted since `started`.
    pub evicted: u64,
    /// Connections being evicted now: begun, not yet closed.
    pub in_flight: u64,
    /// Connections of moved keys that arrived here since `started`.
    pub returned: u64,
    /// Connections ended by us since `started`, by cause.
    pub breaks: BTreeMap<BreakCause, u64>,
    /// Messages held here for connections on their way here.
    pub held_messages: u64,
    /// The same in bytes.
    pub held_bytes: u64,
    /// How the pool's Redis fares, seen from here. `None` without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisHealth>,
    /// How the app fares here.
    pub app: AppHealth,
}

/// Whether a sidecar hears what is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RedisHealth {
    /// It does.
    Up,
    /// It does not, for this reason.
    Down(String),
}

/// Evidence about a destination, since the sidecar's process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AppHealth {
    /// Handshakes that the app accepted.
    pub accepted: u64,
    /// Dials that failed, and handshakes answered 5xx.
    pub failed: u64,
    /// The time of all accepted handshakes, from the dial to the 101, in milliseconds.
    pub handshake_ms: u64,
    /// Handshakes waiting for their turn under `limits.handshakesPerSecond`.
    pub queued: u64,
}

/// Why we ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BreakCause {
    /// Its key moved.
    Move,
    /// Its pod was drained.
    Drain,
    /// The sidecar it had entered at went away.
    EntryLost,
    /// A limit: idle time, buffers.
    Limit,
}

impl BreakCause {
    /// All causes.
    pub const ALL: [Self; 4] = [Self::Move, Self::Drain, Self::EntryLost, Self::Limit];

    /// Its name in JSON and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Move => "move",
            Self::Drain => "drain",
            Self::EntryLost => "entryLost",
            Self::Limit => "limit",
        }
    }
}

/// An error, as RFC 9457 writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The kind of error, one word, stable.
    pub title: String,
    /// What was wrong, and what would be right.
    pub detail: String,
}

impl Problem {
    /// The content type of a problem.
    pub const CONTENT_TYPE: &'static str = "application/problem+json";
}

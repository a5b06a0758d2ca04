//! The protocol by which a key leaves one server before it enters another.
//!
//! Every sidecar keeps a [`KeyState`] for each key it holds or has promised away, and asks it three questions: may a
//! handshake [`enter`](KeyState::enter)? may a peer [`claim`](KeyState::claim) the key? and what is left after a
//! connection [`closed`](KeyState::close)? The answers are data; sockets are somewhere else.
//!
//! ```text
//!   entry ──handshake──► new owner N ──claim(key, version)──► previous owner O
//!                          │   held:     O has live connections, the handshake joins them at O
//!                          │   leaving:  O is closing its last ones, N asks again
//!                          │   released: O has none and has promised not to take the key
//!                          ▼             under an older placement; N takes it
//! ```
//!
//! Why a key is never on two servers, as long as messages arrive at all: N admits only after every previous owner has
//! answered `released`, each of which has promised N's version before it answered; and a server that has promised a
//! version redirects every handshake until it knows that version itself, under which it is not the owner. The listed
//! predecessors reach back to every table under which a key may still be held. A peer that cannot be reached counts as
//! released: a crash or a partition allows no guarantee.

use serde::{Deserialize, Serialize};

use crate::Version;

/// Where a key stands under the newest placement that a sidecar knows. `P` identifies a sidecar (in production, its
/// pod's UID and address).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Standing<P> {
    /// The placement's version.
    pub version: Version,
    /// Whose key it is: `None` when no slot has a holder.
    pub owner: Option<P>,
    /// Whether that is the sidecar that asks.
    pub mine: bool,
    /// Whom the owner must ask before it takes the key.
    pub previous: Vec<P>,
}

/// What one sidecar knows of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyState<P> {
    /// Connections held or being set up, with those that are leaving.
    connections: u32,
    /// Connections whose eviction has begun.
    leaving: u32,
    /// Connections evicted since the key was last claimed from here.
    away: u32,
    /// The app has asked that it stays, whatever connections come and go.
    pinned: bool,
    /// Few keys have one.
    promise: Option<Box<Promise<P>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Promise<P> {
    version: Version,
    to: P,
}

/// Proof that every previous owner has released a key under a version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Released(pub Version);

/// How a handshake reached a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// Sent to the owner.
    Owner,
    /// Sent to the next-best slot, because the owner could not be reached.
    Fallback,
}

/// What to do with a handshake.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry<P> {
    /// It may go to the app here. The connection is counted from now on: [`KeyState::close`] must follow.
    Admit,
    /// Ask these peers first, then enter again with the proof.
    Claim(Vec<P>),
    /// It belongs to this peer: answer 421.
    Redirect(P),
    /// Nobody owns the key: no slot has a holder.
    Nobody,
}

/// What a previous owner answers to a claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum ClaimAnswer<P> {
    /// It holds live connections of the key: join them there.
    Held,
    /// It is closing its last ones: ask again.
    Leaving,
    /// It has none, and will take none under an older placement.
    Released {
        /// Connections that it evicted and that have not been claimed yet: what returns are counted against.
        away: u32,
        /// Connections on their way that may get messages, where the sidecar knows them apart: what the new owner holds is
        /// for them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        receivers: Option<u32>,
    },
    /// It knows a newer owner.
    Superseded {
        /// That owner.
        owner: P,
    },
}

impl<P> Default for KeyState<P> {
    fn default() -> Self {
        Self { connections: 0, leaving: 0, away: 0, pinned: false, promise: None }
    }
}

impl<P: Clone + Eq> KeyState<P> {
    /// Decides about a handshake, and counts its connection when it admits it.
    ///
    /// `proof` is what the claims of an earlier [`Entry::Claim`] gave. It is worth nothing under a newer placement.
    pub fn enter(&mut self, standing: &Standing<P>, arrival: Arrival, proof: Option<&Released>) -> Entry<P> {
        if let Some(promise) = &self.promise
            && promise.version > standing.version
        {
            return Entry::Redirect(promise.to.clone());
        }
        let admitted = if self.is_held() {
            true // The key is here: every device of it joins.
        } else if !standing.mine {
            arrival == Arrival::Fallback
        } else {
            // With connections still leaving the key has not been released yet, and nobody else can have it.
            self.leaving > 0 || standing.previous.is_empty() || proof.is_some_and(|p| p.0 == standing.version)
        };
        if admitted {
            self.connections += 1;
            return Entry::Admit;
        }
        match (&standing.owner, standing.mine) {
            (_, true) => Entry::Claim(standing.previous.clone()),
            (Some(owner), false) => Entry::Redirect(owner.clone()),
            (None, false) => Entry::Nobody,
        }
    }

    /// Answers a peer that claims the key under `version`, and promises it away when there is nothing to wait for.
    pub fn claim(&mut self, standing: &Standing<P>, version: Version, claimant: &P) -> ClaimAnswer<P> {
        let promised = self.promise.as_ref().filter(|p| p.version > version && p.to != *claimant);
        if let Some(promise) = promised {
            return ClaimAnswer::Superseded { owner: promise.to.clone() };
        }
        if self.is_held() {
            return ClaimAnswer::Held;
        }
        if standing.version > version
            && let Some(owner) = standing.owner.as_ref().filter(|owner| *owner != claimant)
        {
            return ClaimAnswer::Superseded { owner: owner.clone() };
        }
        if self.leaving > 0 {
            return ClaimAnswer::Leaving;
        }
        if self.promise.as_ref().is_none_or(|p| p.version < version) {
            self.promise = Some(Box::new(Promise { version, to: claimant.clone() }));
        }
        ClaimAnswer::Released { away: std::mem::take(&mut self.away), receivers: None }
    }

    /// Whether the key is here, and nobody else may have it.
    fn is_held(&self) -> bool {
        self.pinned || self.connections > self.leaving
    }

    /// The key stays here, as if one more connection did, until it is [unpinned](Self::unpin). Says whether it does: one
    /// without connections may be somebody else's already.
    pub fn pin(&mut self) -> bool {
        self.pinned |= self.connections > 0;
        self.pinned
    }

    /// The key stays for its connections only.
    pub fn unpin(&mut self) {
        self.pinned = false;
    }

    /// Whether it is pinned.
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// The eviction of one connection has begun.
    pub fn leave(&mut self) {
        debug_assert!(self.leaving < self.connections, "a connection leaves once");
        self.leaving += 1;
    }

    /// The eviction of one connection was called off before its client was told: the key is owned here again.
    pub fn stay(&mut self) {
        debug_assert!(self.leaving > 0, "only a leaving connection can stay");
        self.leaving -= 1;
    }

    /// One connection is gone: the app's side has closed, or never opened.
    pub fn close(&mut self, end: End) {
        debug_assert!(self.connections > 0, "a connection closes once");
        self.connections -= 1;
        if end == End::Evicted {
            self.leaving -= 1;
            self.away += 1;
        }
        debug_assert!(self.leaving <= self.connections, "a connection that leaves ends as evicted");
    }

    /// Forgets what a newer placement has made true, and says whether anything is left to remember. `moving` tells
    /// whether the placement lists predecessors: without them nobody counts returns any more.
    pub fn settle(&mut self, version: Version, moving: bool) -> bool {
        if self.promise.as_ref().is_some_and(|promise| promise.version <= version) {
            self.promise = None;
        }
        if !moving {
            self.away = 0;
        }
        self.connections > 0 || self.away > 0 || self.pinned || self.promise.is_some()
    }

    /// What a claimant would be told of connections on their way to it, for somebody who tells it without being asked.
    pub fn tell_away(&mut self) -> u32 {
        std::mem::take(&mut self.away)
    }

    /// Connections held or being set up here.
    pub fn connections(&self) -> u32 {
        self.connections
    }

    /// Connections evicted since the key was last claimed from here.
    pub fn away(&self) -> u32 {
        self.away
    }

    /// Of the connections held, those whose eviction has not begun.
    pub fn staying(&self) -> u32 {
        self.connections - self.leaving
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// After [`KeyState::leave`].
    Evicted,
    /// By itself.
    Other,
}

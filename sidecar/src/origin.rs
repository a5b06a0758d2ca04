//! Where a request comes from: a client, or a peer that has read its key already.

use std::net::{IpAddr, SocketAddr};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use ring::claim::Arrival;
use ring::wire::{Peer, header};

use crate::auth::peer::{Covered, HEADERS};
use crate::auth::since_1970_ms;
use crate::sidecar::Sidecar;
use crate::view::View;

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client. Its `wspool-` headers mean nothing and are stripped.
    Client,
    /// Another sidecar of the pool.
    Peer {
        /// The key it read; none if the pool reads none from this request.
        key: Option<String>,
        /// Whether it has checked the token that the key is from.
        verified: bool,
        /// Whether it could not reach the owner.
        arrival: Arrival,
    },
    /// Another sidecar, which means a third one: addresses are reused.
    Misdirected,
}

/// A request, as far as its origin goes.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The address it came from.
    pub remote: IpAddr,
    /// Its method.
    pub method: &'a str,
    /// Its target, with its query.
    pub target: &'a str,
}

/// Reads the origin off a request's headers. One that poses as a peer's is a client's, and is counted.
pub fn origin<'a>(
    sidecar: &Sidecar,
    view: &View,
    request: Request<'_>,
    get: impl Fn(&str) -> Option<&'a [u8]>,
) -> Origin {
    if get(header::FROM).is_none() {
        return Origin::Client;
    }
    let believed = match &sidecar.peer_auth {
        Some(auth) => {
            let headers = HEADERS.map(|name| get(name).unwrap_or_default());
            let covered = Covered { method: request.method, target: request.target, headers };
            get(header::AUTH).is_some_and(|proof| auth.verify(proof, &covered, since_1970_ms()))
        }
        None => comes_from_pool(view, request.remote),
    };
    if !believed {
        sidecar.metrics.false_peers.inc();
        return Origin::Client;
    }
    if get(header::TARGET) != Some(view.me.uid.as_bytes()) {
        return Origin::Misdirected;
    }
    let key = get(header::KEY).and_then(|key| percent_decode(key).decode_utf8().ok()).map(Into::into);
    let arrival = if get(header::FALLBACK).is_some() { Arrival::Fallback } else { Arrival::Owner };
    Origin::Peer { key, verified: get(header::VERIFIED).is_some(), arrival }
}

/// Without a secret a peer is believed when it comes from an address at which the placement puts a sidecar of this pool.
/// That keeps other hosts out, not other processes of the same host.
fn comes_from_pool(view: &View, remote: IpAddr) -> bool {
    let host = |peer: Peer| peer.address.parse::<SocketAddr>().ok().map(|address| address.ip());
    view.peers().into_iter().filter_map(host).any(|ip| ip == remote)
}

/// What a peer is told of a request.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The key that was read.
    pub key: Option<&'a str>,
    /// Whether the token that it is from was checked.
    pub verified: bool,
    /// Whether the owner could not be reached.
    pub arrival: Arrival,
}

/// The headers that tell a peer what this sidecar has read, with the proof that it was this sidecar.
pub fn headers_for(
    sidecar: &Sidecar,
    view: &View,
    peer: &Peer,
    known: Known<'_>,
    (method, target): (&str, &str),
) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        (header::FROM, view.me.uid.clone()),
        (header::TARGET, peer.uid.clone()),
        (header::EPOCH, view.version().epoch.to_string()),
    ];
    if let Some(key) = known.key {
        headers.push((header::KEY, utf8_percent_encode(key, NON_ALPHANUMERIC).to_string()));
    }
    if known.verified {
        headers.push((header::VERIFIED, "1".into()));
    }
    if known.arrival == Arrival::Fallback {
        headers.push((header::FALLBACK, "1".into()));
    }
    if let Some(auth) = &sidecar.peer_auth {
        auth.prove(method, target, &mut headers);
    }
    headers
}

/// The headers of a 421: whom to ask instead, and under which epoch.
pub fn headers_of_redirect(view: &View, owner: &Peer) -> [(&'static str, String); 3] {
    [
        (header::OWNER, owner.uid.clone()),
        (header::ADDRESS, owner.address.clone()),
        (header::EPOCH, view.version().epoch.to_string()),
    ]
}

/// What those headers say: whom to ask, and under which epoch. `None` when they name nobody.
pub fn redirect<'a>(get: impl Fn(&str) -> Option<&'a [u8]>) -> Option<(Peer, u64)> {
    let text = |name| get(name).and_then(|value| std::str::from_utf8(value).ok());
    let epoch = text(header::EPOCH).and_then(|epoch| epoch.parse().ok()).unwrap_or_default();
    Some((Peer { uid: text(header::OWNER)?.to_owned(), address: text(header::ADDRESS)?.to_owned() }, epoch))
}

/// The headers that the app gets: the fencing token of the placement under which it was chosen.
pub fn headers_for_app(view: &View) -> Vec<(&'static str, String)> {
    match &view.placement {
        None => Vec::new(),
        Some(placement) => vec![(header::EPOCH, placement.version().token())],
    }
}

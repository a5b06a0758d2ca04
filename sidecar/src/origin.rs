//! Where a request comes from: a client, or a peer that has read its key already.

use std::net::IpAddr;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use ring::claim::Arrival;
use ring::wire::{Peer, header};

use crate::peers;
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
        /// Whether it could not reach the owner.
        arrival: Arrival,
    },
    /// Another sidecar, which means a third one: addresses are reused.
    Misdirected,
    /// It says it is a peer, and is not.
    False,
}

/// Reads the origin off a request's headers.
pub fn origin<'a>(view: &View, remote: IpAddr, get: impl Fn(&str) -> Option<&'a [u8]>) -> Origin {
    if get(header::FROM).is_none() {
        return Origin::Client;
    }
    if !peers::is_peer(remote, view.peers()) {
        return Origin::False;
    }
    if get(header::TARGET) != Some(view.me.uid.as_bytes()) {
        return Origin::Misdirected;
    }
    let key = get(header::KEY).and_then(|key| percent_decode(key).decode_utf8().ok()).map(Into::into);
    let arrival = if get(header::FALLBACK).is_some() { Arrival::Fallback } else { Arrival::Owner };
    Origin::Peer { key, arrival }
}

/// The headers that tell a peer what this sidecar has read.
pub fn headers_for(view: &View, peer: &Peer, key: Option<&str>, arrival: Arrival) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        (header::FROM, view.me.uid.clone()),
        (header::TARGET, peer.uid.clone()),
        (header::EPOCH, view.version().epoch.to_string()),
    ];
    if let Some(key) = key {
        headers.push((header::KEY, utf8_percent_encode(key, NON_ALPHANUMERIC).to_string()));
    }
    if arrival == Arrival::Fallback {
        headers.push((header::FALLBACK, "1".into()));
    }
    headers
}

/// The headers that the app gets: the fencing token of the placement under which it was chosen.
pub fn headers_for_app(view: &View) -> Vec<(&'static str, String)> {
    match &view.placement {
        None => Vec::new(),
        Some(placement) => {
            let version = placement.version();
            vec![(header::EPOCH, format!("{}.{}", version.term, version.epoch))]
        }
    }
}

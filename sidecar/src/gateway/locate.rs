//! Where a connection would be accepted now.

use std::sync::Arc;

use http::StatusCode;
use ring::SlotId;
use ring::claim::Arrival;
use ring::settings::{Missing, OwnerUnreachable};
use ring::wire::{Peer, Whereabouts};

use crate::admission::{self, Decision, PLACEMENT_WAIT, Refusal};
use crate::peers::PeerError;
use crate::sidecar::Sidecar;
use crate::view::View;

/// How many sidecars are asked: as many as a handshake is sent to.
const QUESTIONS: usize = 3;

/// The slot at whose address a connection is accepted now, and the placement's epoch.
///
/// It is decided as for a handshake, whose place is given back at once. What this sidecar remembers is enough, but for a
/// key that moves: whether its previous owner still holds it only those two know, and they are asked. The owner is also
/// dialled, once a second at most, since nobody else would notice here that it is gone.
pub(super) async fn locate(sidecar: &Arc<Sidecar>, key: Option<&str>) -> Result<(SlotId, u64), Refusal> {
    let view = sidecar.view();
    if view.placement.is_none() {
        return Err(Refusal::NoHolder);
    }
    let accepts = match key {
        None if view.settings().key.missing == Missing::Reject => return Err(Refusal::KeyMissing),
        // The client that asks comes next: it counts as chosen.
        _ if view.by_load() => match admission::balance(sidecar, &view, &[]) {
            Decision::Here(_) => view.me.clone(),
            Decision::There(peer) => peer,
            Decision::Refused(refusal) => return Err(refusal),
        },
        Some(key) => holder_of(sidecar, key).await?,
        None => match admission::spread(sidecar, &view) {
            Decision::Here(_) if view.slot.is_none() => anybody(sidecar, &view)?,
            Decision::Here(_) => view.me.clone(),
            Decision::There(peer) => peer,
            Decision::Refused(refusal) => return Err(refusal),
        },
    };
    // While it was looked for a newer placement may have come.
    let view = sidecar.view();
    let Some(placement) = &view.placement else { return Err(Refusal::NoHolder) };
    let slot = placement.slot_of(&accepts.uid).or_else(|| {
        // Whoever has lost its slot has no address any more. Its successor at that slot tunnels to it until the key moves.
        placement.slot_of(&view.standing(key?)?.owner?.uid)
    });
    slot.map(|slot| (slot, placement.version().epoch)).ok_or(Refusal::NoHolder)
}

async fn holder_of(sidecar: &Arc<Sidecar>, key: &str) -> Result<Peer, Refusal> {
    let mut asked = None;
    for _ in 0..QUESTIONS {
        let view = sidecar.view();
        let peer = match asked.take().filter(|peer: &Peer| peer.uid != view.me.uid) {
            Some(peer) => peer,
            None => match admission::admit(sidecar, key, Arrival::Owner).await {
                Decision::Here(_) => return Ok(view.me.clone()),
                Decision::There(peer) => peer,
                Decision::Refused(refusal) => return Err(refusal),
            },
        };
        let settled = view.standing(key).is_none_or(|standing| standing.previous.is_empty());
        if !sidecar.peers.is_reachable(&peer).await {
            return next_best(sidecar, &view, key, &peer);
        }
        if settled {
            return Ok(peer);
        }
        let question = Whereabouts { pool_uid: view.pool_uid().to_owned(), key: key.to_owned() };
        match sidecar.peers.whereabouts(&peer, &question).await {
            Ok(accepts) if accepts.uid == peer.uid => return Ok(peer),
            Ok(elsewhere) => asked = Some(elsewhere),
            Err(PeerError::Refused(StatusCode::TOO_MANY_REQUESTS)) => return Err(Refusal::KeyFull),
            Err(PeerError::Refused(StatusCode::SERVICE_UNAVAILABLE)) => return Err(Refusal::StillLeaving),
            // It is of another placement; or, older than this one, it does not know the question.
            Err(PeerError::Refused(_)) => tokio::time::sleep(PLACEMENT_WAIT).await,
            Err(
                PeerError::Unreachable(_)
                | PeerError::Unanswered(_)
                | PeerError::TooLong
                | PeerError::Busy
                | PeerError::Unsettled,
            ) => {
                return next_best(sidecar, &view, key, &peer);
            }
        }
    }
    Err(Refusal::StillLeaving)
}

/// The slot that takes a key whose owner cannot be reached.
fn next_best(sidecar: &Sidecar, view: &View, key: &str, owner: &Peer) -> Result<Peer, Refusal> {
    if view.settings().owner_unreachable == OwnerUnreachable::Reject {
        return Err(Refusal::Unreachable);
    }
    let mut fallbacks = view.fallbacks(key).into_iter().filter(|peer| peer.uid != owner.uid);
    fallbacks.find(|peer| peer.uid == view.me.uid || !sidecar.peers.is_suspect(&peer.uid)).ok_or(Refusal::Unreachable)
}

/// Any slot that can be reached, where the sidecar that was asked has none.
fn anybody(sidecar: &Arc<Sidecar>, view: &View) -> Result<Peer, Refusal> {
    match admission::any_holder(sidecar, view) {
        Decision::There(peer) => Ok(peer),
        _ => Err(Refusal::NoHolder),
    }
}

//! What is published for a key in the pool's Redis, on its way to the key's connections: here, and while the key moves at
//! its next owner.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::wire::{CutOver, Delivered};
use tokio::sync::OwnedSemaphorePermit;

use super::{HOLD, TURN, UNSETTLED, Unsent, Unsettled, deliver};
use crate::admission::PLACEMENT_WAIT;
use crate::message::Message;
use crate::peers::PeerError;
use crate::registry::Role;
use crate::sidecar::Sidecar;

/// How long what was published after a marker waits for what came before it.
const LAST: Duration = Duration::from_secs(2);

/// What was published.
#[derive(Debug)]
pub enum Published {
    /// A message, and the room that it takes up.
    Message(Message, OwnedSemaphorePermit),
    /// The marker behind all that is passed on to a key's next owner.
    Last(String),
    /// The marker before all that is heard here.
    First(String),
}

/// Takes what was published for a key, behind what came for it before.
pub fn hear(sidecar: &Arc<Sidecar>, key: String, published: Published) {
    let size = match &published {
        Published::Message(message, _) => message.size(),
        Published::Last(_) | Published::First(_) => 0,
    };
    let Some(turn) = sidecar.messages.lanes.enter(&key, size) else {
        return sidecar.metrics.messages_dropped("published", 1);
    };
    let sidecar = Arc::clone(sidecar);
    tokio::spawn(async move {
        let Ok(_turn) = tokio::time::timeout(TURN, turn).await else {
            return sidecar.metrics.messages_dropped("published", 1);
        };
        match published {
            Published::Message(message, _room) => {
                if let Err(error) = pass(&sidecar, &key, &message).await {
                    tracing::debug!(%error, "what was published for a key did not reach it");
                    sidecar.metrics.messages_dropped("published", 1);
                }
            }
            Published::Last(marker) => tell_last(&sidecar, key, marker).await,
            Published::First(marker) => await_last(&sidecar, &key, &marker).await,
        }
    });
}

/// Writes a message to the connections of a key here. What those miss that have been told to go is held by the key's next
/// owner, which also gets what comes after it has claimed the key and before it hears that itself.
async fn pass(sidecar: &Sidecar, key: &str, message: &Message) -> Result<(), Unsent> {
    let began = Instant::now();
    let left = || HOLD.saturating_sub(began.elapsed());
    let here = deliver(sidecar, key, message, Role::Hearer).await.map_err(|Unsettled| Unsent::Unsettled)?;
    let next = if here.away > 0 {
        here.owner
    } else if here.written + here.held + here.dropped == 0 {
        sidecar.registry().giving_to(key)
    } else {
        None
    };
    let Some(mut next) = next else { return Ok(()) };
    while began.elapsed() < UNSETTLED {
        let role = Role::Heir { away: here.away, left: left() };
        match sidecar.peers.deliver(&next, key, message, role).await {
            Ok(Delivered { owner: Some(owner), written: 0, held: 0, .. }) => {
                let view = sidecar.view();
                if owner.uid != view.me.uid {
                    next = owner;
                } else if view.standing(key).is_some_and(|standing| standing.mine) {
                    let role = Role::Owner { away: here.away, left: left() };
                    return deliver(sidecar, key, message, role).await.map(drop).map_err(|Unsettled| Unsent::Unsettled);
                }
            }
            Ok(_) => return Ok(()),
            Err(PeerError::Unsettled | PeerError::Busy) => {}
            Err(error) => return Err(Unsent::by(&error)),
        }
        // Sidecars hear of a placement one after the other.
        tokio::time::sleep(PLACEMENT_WAIT).await;
    }
    Err(Unsent::Unsettled)
}

/// Tells a key's next owner that it has got all that came before its marker.
async fn tell_last(sidecar: &Sidecar, key: String, marker: String) {
    let Some(next) = sidecar.registry().give_last(&key, &marker) else { return };
    let cut_over = CutOver { pool_uid: sidecar.view().pool_uid().to_owned(), key, marker };
    if let Err(error) = sidecar.peers.cut_over(&next, &cut_over).await {
        tracing::debug!(peer = %next.address, %error, "the next owner of a key waits in vain for its last message");
    }
}

/// Waits until all that came before the marker is here, or its last owner has had time enough for it.
async fn await_last(sidecar: &Sidecar, key: &str, marker: &str) {
    let until = Instant::now() + LAST;
    loop {
        let released = sidecar.released.notified();
        tokio::pin!(released);
        released.as_mut().enable();
        if !sidecar.registry().is_cut_over(key, marker) {
            break;
        }
        if tokio::time::timeout_at(until.into(), released).await.is_err() {
            sidecar.registry().end_cut_over(key, marker);
            break;
        }
    }
    sidecar.released.notify_waiters();
}

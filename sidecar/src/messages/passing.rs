//! Held messages whose time is over, or whose key belongs elsewhere since; and cut-overs that take too long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::peers::PeerError;
use crate::registry::{HeldMessage, Misplaced, Role};
use crate::sidecar::Sidecar;

/// How often held messages are looked at.
const SWEEP: Duration = Duration::from_millis(250);

/// Runs until `stop` turns true.
pub async fn run(sidecar: Arc<Sidecar>, mut stop: watch::Receiver<bool>) {
    let mut passing = JoinSet::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = sidecar.messages.misplaced.notified() => {}
            Some(_) = passing.join_next() => continue,
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let (expired, unkept, misplaced) = {
            let mut registry = sidecar.registry();
            let now = Instant::now();
            registry.expire_cut_overs(now);
            (registry.expire_held(now), registry.take_unkept(), registry.misplaced())
        };
        sidecar.metrics.messages_dropped("no_room", unkept);
        if expired > 0 {
            sidecar.metrics.messages_dropped("expired", expired);
            tracing::warn!(
                connections = expired,
                "held messages were dropped: their clients did not come back in time"
            );
        }
        for misplaced in misplaced {
            passing.spawn(pass_on(Arc::clone(&sidecar), misplaced));
        }
    }
}

/// Gives messages to whoever owns their key now, in order. The first that it does not take waits here, with all behind it.
async fn pass_on(sidecar: Arc<Sidecar>, misplaced: Misplaced) {
    let Misplaced { key, owner, messages } = misplaced;
    let taken = messages.len();
    let mut messages = messages.into_iter();
    let mut left: Vec<HeldMessage> = Vec::new();
    for held in messages.by_ref() {
        let role = Role::Successor { away: held.awaited, left: held.until.saturating_duration_since(Instant::now()) };
        match sidecar.peers.deliver(&owner, &key, &held.message, role).await {
            Ok(answer) if answer.owner.is_none() || answer.written > 0 => {}
            // It may have it: rather lost than doubled.
            Err(PeerError::Unanswered(_)) => sidecar.metrics.messages_dropped("unanswered", held.awaited.into()),
            // It knows less, or more, than this sidecar; or it cannot be reached.
            _ => {
                left.push(held);
                break;
            }
        }
    }
    left.extend(messages);
    sidecar.registry().settle_held(&key, taken, left);
    sidecar.released.notify_waiters();
}

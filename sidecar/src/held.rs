//! A connection in the registry, for as long as the app's side of it lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ring::settings::Notice;

use crate::admission::Place;
use crate::registry::ConnectionId;
use crate::relay::{Ended, Hooks, Link};
use crate::sidecar::Sidecar;

/// Removes its connection from the registry when the app has closed it, or when it is dropped.
pub struct Held {
    sidecar: Arc<Sidecar>,
    id: ConnectionId,
    removed: AtomicBool,
}

impl Held {
    /// Holds a connection that the app here has accepted.
    pub fn here(place: Place, link: &Arc<Link>) -> Self {
        let sidecar = Arc::clone(place.sidecar());
        let id = place.register(Arc::clone(link));
        Self::of(sidecar, id)
    }

    /// Holds a connection that is tunnelled to a peer.
    pub fn transit(sidecar: &Arc<Sidecar>, link: &Arc<Link>) -> Self {
        let id = sidecar.registry().register_transit(Arc::clone(link));
        Self::of(Arc::clone(sidecar), id)
    }

    fn of(sidecar: Arc<Sidecar>, id: ConnectionId) -> Self {
        Self { sidecar, id, removed: AtomicBool::new(false) }
    }

    /// Gives the connection up to somebody who goes on holding it.
    pub fn hand_over(self) -> ConnectionId {
        self.removed.store(true, Ordering::Release);
        self.id
    }

    /// Counts how it ended.
    pub fn record(&self, ended: Ended) {
        if let Ended::Evicted { manner, discarded } = ended {
            self.sidecar.metrics.evicted(manner.label(), discarded);
        }
    }
}

impl Hooks for Held {
    fn confirm(&self) -> Option<Arc<Notice>> {
        self.sidecar.registry().confirm(self.id).map(Arc::new)
    }

    fn app_closed(&self) {
        if !self.removed.swap(true, Ordering::AcqRel) {
            self.sidecar.registry().remove(self.id);
            self.sidecar.released.notify_waiters();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.app_closed();
    }
}

//! What a change of slots does to keys that are already held.

use std::hint::select_unpredictable;

use crate::rendezvous::Rendezvous;
use crate::{KeyHash, SlotId};

/// The difference between two sets of slots.
///
/// A slot that was added, or whose weight grew, can only win keys; one that was removed, or whose weight fell, can only
/// lose its own. So a held key needs one score per added slot and a look at its owner, not a whole look-up.
///
/// Both sets must hash keys alike; after a change of the hasher every owner is looked up anew.
#[derive(Clone, Debug)]
pub struct Delta<'a> {
    new: &'a Rendezvous,
    /// Added, or grown.
    gained: Rendezvous,
    /// Neither removed nor shrunk: its keys stay unless a gained slot wins them.
    kept: Rendezvous,
}

impl<'a> Delta<'a> {
    /// Compares two sets of slots.
    pub fn between(old: &Rendezvous, new: &'a Rendezvous) -> Self {
        let gained = Rendezvous::new(new.slots().filter(|&(slot, weight)| weight > old.weight(slot)));
        let kept = Rendezvous::new(new.slots().filter(|&(slot, weight)| weight >= old.weight(slot)));
        Self { new, gained, kept }
    }

    /// The owner of a held key under the new set, given its owner under the old one. `None` when no slot is left.
    #[inline]
    pub fn owner(&self, key: KeyHash, old_owner: SlotId) -> Option<SlotId> {
        let Some((gained, score)) = self.gained.best(key) else {
            return if self.kept.weight(old_owner) > 0 { Some(old_owner) } else { self.new.owner(key) };
        };
        let Some(kept) = self.kept.score_of(key, old_owner) else { return self.new.owner(key) };
        let wins = score > kept || (score == kept && gained < old_owner);
        Some(select_unpredictable(wins, gained, old_owner))
    }
}

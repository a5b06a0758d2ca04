//! What a change of slots does to keys that are already held.

use std::hint::select_unpredictable;

use crate::rendezvous::Rendezvous;
use crate::{KeyHash, Owners, SlotId};

/// The difference between two sets of slots.
///
/// Both sets must hash keys alike; after a change of the hasher every owner is looked up anew. So it is with the hashes of
/// ingresses, whose points may all change at once.
#[derive(Clone, Debug)]
pub struct Delta<'a> {
    new: &'a Owners,
    scores: Option<Scores>,
}

/// The same for scores.
///
/// A slot that was added, or whose weight grew, can only win keys; one that was removed, or whose weight fell, can only
/// lose its own. So a held key needs one score per added slot and a look at its owner, not a whole look-up.
#[derive(Clone, Debug)]
struct Scores {
    /// Added, or grown.
    gained: Rendezvous,
    /// Neither removed nor shrunk: its keys stay unless a gained slot wins them.
    kept: Rendezvous,
}

impl<'a> Delta<'a> {
    /// Compares two sets of slots.
    pub fn between(old: &Owners, new: &'a Owners) -> Self {
        let scores = match (old, new) {
            (Owners::Rendezvous(old), Owners::Rendezvous(new)) => Some(Scores {
                gained: Rendezvous::new(new.slots().filter(|&(slot, weight)| weight > old.weight(slot))),
                kept: Rendezvous::new(new.slots().filter(|&(slot, weight)| weight >= old.weight(slot))),
            }),
            _ => None,
        };
        Self { new, scores }
    }

    /// The owner of a held key under the new set, given its owner under the old one. `None` when no slot is left.
    #[inline]
    pub fn owner(&self, key: KeyHash, old_owner: SlotId) -> Option<SlotId> {
        let Some(Scores { gained, kept }) = &self.scores else { return self.new.owner(key) };
        let Some((gained, score)) = gained.best(key) else {
            return if kept.weight(old_owner) > 0 { Some(old_owner) } else { self.new.owner(key) };
        };
        let Some(kept) = kept.score_of(key, old_owner) else { return self.new.owner(key) };
        let wins = score > kept || (score == kept && gained < old_owner);
        Some(select_unpredictable(wins, gained, old_owner))
    }
}

//! What a change of slots does to keys that are already held.

use crate::rendezvous::Rendezvous;
use crate::{KeyHash, SlotId};

/// The difference between two sets of slots.
///
/// A slot that was added, or whose weight grew, can only win keys; one that was removed, or whose weight fell, can only
/// lose its own. So a held key needs one score per added slot and a look at its owner, not a whole look-up.
#[derive(Clone, Debug)]
pub struct Delta<'a> {
    new: &'a Rendezvous,
    gained: Rendezvous,
    /// Ascending.
    lost: Vec<SlotId>,
}

impl<'a> Delta<'a> {
    /// Compares two sets of slots.
    pub fn between(old: &Rendezvous, new: &'a Rendezvous) -> Self {
        let weight_in = |set: &Rendezvous, slot| set.slots().find(|(s, _)| *s == slot).map_or(0, |(_, w)| w);
        let gained = Rendezvous::new(new.slots().filter(|&(slot, weight)| weight > weight_in(old, slot)));
        let lost = old.slots().filter(|&(slot, weight)| weight > weight_in(new, slot)).map(|(s, _)| s).collect();
        Self { new, gained, lost }
    }

    /// Whether any key can change its owner.
    pub fn is_empty(&self) -> bool {
        self.lost.is_empty() && self.gained == Rendezvous::default()
    }

    /// The owner of a held key under the new set, given its owner under the old one. `None` when no slot is left.
    #[inline]
    pub fn owner(&self, key: KeyHash, old_owner: SlotId) -> Option<SlotId> {
        if self.lost.binary_search(&old_owner).is_ok() {
            return self.new.owner(key);
        }
        let Some((gained, score)) = self.gained.best(key) else { return Some(old_owner) };
        let kept = self.new.score_of(key, old_owner)?;
        let wins = score > kept || (score == kept && gained < old_owner);
        Some(if wins { gained } else { old_owner })
    }
}

//! The slots of a table that own keys, ready to be asked, whatever the algorithm.

use crate::agreement::Maglev;
use crate::continuum::Continuum;
use crate::rendezvous::Rendezvous;
use crate::{KeyHash, KeyHasher, Slot, SlotId};

/// The slots that own keys: only those that have a holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owners {
    /// By the highest score.
    Rendezvous(Rendezvous),
    /// By points on a circle.
    Continuum(Continuum),
    /// By places in a table.
    Maglev(Maglev),
}

impl Owners {
    /// Prepares look-ups. The hasher is the one that makes the keys' hashes.
    pub fn new(hasher: &KeyHasher, slots: &[Slot]) -> Self {
        match hasher {
            KeyHasher::Xxh64 | KeyHasher::SipHash24(_) => {
                let held = slots.iter().filter(|slot| slot.holder.is_some());
                Rendezvous::new(held.map(|slot| (slot.id, slot.weight))).into()
            }
            KeyHasher::Agreed(agreement) => agreement.owners(slots),
        }
    }

    /// The slot that owns the key: `None` only when no slot is held.
    #[inline]
    pub fn owner(&self, key: KeyHash) -> Option<SlotId> {
        match self {
            Self::Rendezvous(rendezvous) => rendezvous.owner(key),
            Self::Continuum(continuum) => continuum.owner(key),
            Self::Maglev(maglev) => maglev.owner(key),
        }
    }

    /// All slots, best first: where a key goes when its owner cannot be reached.
    pub fn ranked(&self, key: KeyHash) -> Vec<SlotId> {
        match self {
            Self::Rendezvous(rendezvous) => rendezvous.ranked(key),
            Self::Continuum(continuum) => continuum.ranked(key),
            Self::Maglev(maglev) => maglev.ranked(key),
        }
    }
}

impl From<Rendezvous> for Owners {
    fn from(rendezvous: Rendezvous) -> Self {
        Self::Rendezvous(rendezvous)
    }
}

impl From<Continuum> for Owners {
    fn from(continuum: Continuum) -> Self {
        Self::Continuum(continuum)
    }
}

impl From<Maglev> for Owners {
    fn from(maglev: Maglev) -> Self {
        Self::Maglev(maglev)
    }
}

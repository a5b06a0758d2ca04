//! What this sidecar knows of its pool: the newest placement, and its own place in it.

use std::collections::BTreeSet;
use std::sync::Arc;

use ring::claim::Standing;
use ring::settings::{Settings, Strategy};
use ring::wire::Peer;
use ring::{Compiled, Holder, KeyHash, SlotId, Version};

/// An immutable snapshot; a new one replaces it whenever anything in it changes.
#[derive(Clone, Debug)]
pub struct View {
    /// This sidecar.
    pub me: Peer,
    /// The newest placement. Without one the sidecar is a plain reverse proxy.
    pub placement: Option<Arc<Compiled>>,
    /// The slot that this sidecar holds under it.
    pub slot: Option<SlotId>,
    /// Sidecars that said they are draining, this one included: their keys belong to their next-best slots.
    pub draining: BTreeSet<String>,
    /// Of these, the ones that have said they are empty and about to end, this one included: they are asked for no keys.
    pub gone: BTreeSet<String>,
    /// Whether this sidecar was away under the placement in force, or an earlier one of the same move: its next-best slots
    /// may hold its keys, and are asked as previous owners are.
    pub was_away: bool,
    /// In force until a placement brings its own.
    pub defaults: Arc<Settings>,
}

impl View {
    /// A sidecar that knows of no pool.
    pub fn new(me: Peer, defaults: Settings) -> Self {
        Self {
            me,
            placement: None,
            slot: None,
            draining: BTreeSet::new(),
            gone: BTreeSet::new(),
            was_away: false,
            defaults: Arc::new(defaults),
        }
    }

    /// The same sidecar under a newer placement.
    #[must_use]
    pub fn placed(&self, placement: Arc<Compiled>) -> Self {
        let slot = placement.slot_of(&self.me.uid);
        let mut draining = self.draining.clone();
        draining.retain(|uid| placement.slot_of(uid).is_some());
        let mut gone = self.gone.clone();
        gone.retain(|uid| placement.mentions(uid));
        // A placement without predecessors says that every key is where it belongs.
        let was_away = self.was_away && (self.placement.is_none() || placement.moving());
        Self { placement: Some(placement), slot, draining, gone, was_away, ..self.clone() }
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        self.placement.as_ref().map_or(&self.defaults, |placement| &placement.placement().settings)
    }

    /// The version of the placement; the lowest without one.
    pub fn version(&self) -> Version {
        self.placement.as_ref().map(|placement| placement.version()).unwrap_or_default()
    }

    /// The UID of the pool; empty without a placement.
    pub fn pool_uid(&self) -> &str {
        self.placement.as_ref().map_or("", |placement| &placement.placement().pool_uid)
    }

    /// Whether previous owners may still hold keys.
    pub fn moving(&self) -> bool {
        self.placement.as_ref().is_some_and(|placement| placement.moving() || !self.draining.is_empty())
    }

    /// Where a key stands. `None` without a placement.
    pub fn standing(&self, key: &str) -> Option<Standing<Peer>> {
        let placement = self.placement.as_deref()?;
        let hash = placement.hash(key);
        let mut previous: Vec<Peer> = placement.previous_holders(key).into_iter().map(peer).collect();
        let owner = self.owner(placement, hash);
        if !self.draining.is_empty() {
            // A draining owner may still hold the key: it is asked as a previous owner is.
            let passed_over = ranked(placement, hash).take_while(|holder| self.draining.contains(&holder.uid));
            previous.extend(passed_over.map(peer));
        }
        if self.was_away {
            previous.extend(ranked(placement, hash).find(|holder| holder.uid != self.me.uid).map(peer));
        }
        previous.retain(|p| p.uid != self.me.uid && owner.is_none_or(|owner| owner.uid != p.uid));
        let mut asked = BTreeSet::new();
        previous.retain(|p| !self.gone.contains(&p.uid) && asked.insert(p.uid.clone()));
        let mine = owner.is_some_and(|owner| owner.uid == self.me.uid);
        Some(Standing { version: placement.version(), owner: owner.map(peer), mine, previous })
    }

    /// Who a key belongs to: the holder of its slot, or of its next-best while that one drains.
    fn owner<'a>(&self, placement: &'a Compiled, hash: KeyHash) -> Option<&'a Holder> {
        let owner = placement.holder(placement.ring().owner(hash)?)?;
        if self.draining.is_empty() {
            return Some(owner);
        }
        ranked(placement, hash).find(|holder| !self.draining.contains(&holder.uid)).or(Some(owner))
    }

    /// The holders that a key goes to when its owner cannot be reached, best first.
    pub fn fallbacks(&self, key: &str) -> Vec<Peer> {
        let Some(placement) = self.placement.as_deref() else { return Vec::new() };
        let holders = ranked(placement, placement.hash(key));
        holders.filter(|holder| !self.draining.contains(&holder.uid)).map(peer).collect()
    }

    /// Everyone else in the pool: holders of slots, spares and routers.
    pub fn peers(&self) -> Vec<Peer> {
        let Some(placement) = self.placement.as_deref() else { return Vec::new() };
        let placement = placement.placement();
        let holders = placement.table.slots.iter().filter_map(|slot| slot.holder.as_deref());
        let all = holders.chain(&placement.others);
        all.filter(|holder| holder.uid != self.me.uid && !self.gone.contains(&holder.uid)).map(peer).collect()
    }

    /// Whether load decides where connections go, and not their keys.
    pub fn by_load(&self) -> bool {
        self.placement.is_some() && self.settings().strategy == Strategy::LeastConnections
    }

    /// Whether the whole pod is being emptied: it drains, or has no slot of its own.
    pub fn is_emptied(&self) -> bool {
        self.slot.is_none() || self.draining.contains(&self.me.uid)
    }

    /// Whether a held key, which its slot owns, belongs elsewhere now.
    pub fn is_moved(&self, owner: Option<SlotId>) -> bool {
        if self.by_load() {
            return false;
        }
        let leaving = self.draining.contains(&self.me.uid);
        leaving || owner.is_some_and(|owner| self.slot != Some(owner))
    }
}

/// All holders, in the order in which a key prefers their slots.
fn ranked(placement: &Compiled, hash: KeyHash) -> impl Iterator<Item = &Holder> {
    placement.ring().ranked(hash).into_iter().filter_map(|slot| placement.holder(slot))
}

/// A holder as its peers address it.
pub fn peer(holder: &Holder) -> Peer {
    Peer { uid: holder.uid.clone(), address: holder.address.clone() }
}

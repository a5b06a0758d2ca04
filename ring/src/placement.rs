//! Which pod holds which slot: the versioned value that every sidecar of a pool agrees on.

pub mod differences;

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv6Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use self::differences::{Below, Unknown};
use crate::agreement::AgreementError;
use crate::rendezvous::MAX_WEIGHT;
use crate::settings::Settings;
use crate::{KeyHash, KeyHasher, Owners};

/// The most predecessors a placement lists. A planner that would need more waits for a move to end.
pub const MAX_PREDECESSORS: usize = 8;

/// A stable numbered place in a pool. Ids are a set, not a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotId(pub u32);

impl std::fmt::Display for SlotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Orders the placements of one pool: a newer leader first, then its newer placement. Never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The leader's generation.
    pub term: u64,
    /// Counts placements; goes up by one with each, across terms.
    pub epoch: u64,
}

impl Version {
    /// A version as apps get it, `term.epoch`.
    pub fn token(self) -> String {
        format!("{}.{}", self.term, self.epoch)
    }

    /// A version that an app gives back.
    pub fn from_token(token: &str) -> Option<Self> {
        let (term, epoch) = token.split_once('.')?;
        Some(Self { term: term.parse().ok()?, epoch: epoch.parse().ok()? })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "term {} epoch {}", self.term, self.epoch)
    }
}

/// The pod that holds a slot now.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// The pod's (or the member's) name.
    pub name: String,
    /// The pod's UID: addresses are reused, UIDs are not.
    pub uid: String,
    /// Where its sidecar accepts clients and peers, `host:port`.
    pub address: String,
}

/// A slot and its holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// Its number.
    pub id: SlotId,
    /// Its share of the keys, 1 to 64.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u8,
    /// The pod that holds it. A slot without one owns nothing: its keys belong to their next-best slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ///
    /// Shared: a placement lists the same pods in each of its tables.
    pub holder: Option<Arc<Holder>>,
}

fn one() -> u8 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(weight: &u8) -> bool {
    *weight == 1
}

/// Slots and how keys are given to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// How keys are hashed, and so given to slots.
    #[serde(default)]
    pub hasher: KeyHasher,
    /// The slots, each id once.
    pub slots: Vec<Slot>,
}

/// A table that was in force before, and under which keys may still be held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Predecessor {
    /// The version under which it was in force.
    #[serde(flatten)]
    pub version: Version,
    /// What it said.
    #[serde(flatten)]
    pub table: Table,
}

/// A pool's placement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Read")]
pub struct Placement {
    /// The pool's name, for people.
    pub pool: String,
    /// The pool's UID: a placement of another pool is refused, whatever its version.
    pub pool_uid: String,
    /// Its version.
    pub version: Version,
    /// Who owns what now.
    pub table: Table,
    /// Tables under which moved keys may still be held, newest first. Empty when nothing moves.
    pub predecessors: Vec<Predecessor>,
    /// Sidecars of the pool that hold no slot (spares, routers): they hear of drains too.
    pub others: Vec<Holder>,
    /// What the pool's spec tells its sidecars.
    pub settings: Settings,
}

/// A placement as it is written: each predecessor as what differs from the table above it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    pool: &'a str,
    pool_uid: &'a str,
    term: u64,
    epoch: u64,
    hasher: &'a KeyHasher,
    slots: &'a [Slot],
    #[serde(skip_serializing_if = "Option::is_none")]
    predecessors: Option<Below<'a>>,
    #[serde(skip_serializing_if = "<[Holder]>::is_empty")]
    others: &'a [Holder],
    settings: &'a Settings,
}

impl Serialize for Placement {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { pool, pool_uid, version: Version { term, epoch }, table, predecessors, others, settings } = self;
        let below = Below { above: Some(table), tables: predecessors };
        let Table { hasher, slots } = table;
        let predecessors = (!predecessors.is_empty()).then_some(below);
        let (term, epoch) = (*term, *epoch);
        Written { pool, pool_uid, term, epoch, hasher, slots, predecessors, others, settings }.serialize(to)
    }
}

/// A placement as it is read. What is flattened would be kept twice on its way in: that takes twice the time.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    pool: String,
    pool_uid: String,
    term: u64,
    epoch: u64,
    #[serde(default)]
    hasher: KeyHasher,
    slots: Vec<Slot>,
    #[serde(default)]
    predecessors: Unknown,
    #[serde(default)]
    others: Vec<Holder>,
    #[serde(default)]
    settings: Settings,
}

impl From<Read> for Placement {
    fn from(read: Read) -> Self {
        let Read { pool, pool_uid, term, epoch, hasher, slots, predecessors, others, settings } = read;
        let (version, table) = (Version { term, epoch }, Table { hasher, slots });
        let predecessors = predecessors.below(Some(&table));
        Self { pool, pool_uid, version, table, predecessors, others, settings }
    }
}

/// Why a placement was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Two slots share an id.
    #[error("slot {0} is listed twice; each slot id may appear once")]
    DuplicateSlot(SlotId),
    /// One pod holds two slots.
    #[error("pod {0} holds more than one slot; a pod holds at most one")]
    DuplicateHolder(String),
    /// A weight out of range.
    #[error("slot {0} has weight {1}; a weight is 1 to {MAX_WEIGHT}")]
    Weight(SlotId, u8),
    /// The hash of an ingress that cannot be.
    #[error(transparent)]
    Agreement(#[from] AgreementError),
    /// Too many predecessors.
    #[error("{0} predecessors; at most {MAX_PREDECESSORS} are allowed")]
    Predecessors(usize),
    /// A predecessor that is not older than the placement.
    #[error("a predecessor has {0}, which is not older than the placement's {1}")]
    PredecessorVersion(Version, Version),
    /// An address that is not `host:port`.
    #[error("pod {0} has the address {1:?}; write host:port, or [host]:port for IPv6")]
    Address(String, String),
    /// The pool's UID is empty.
    #[error("poolUid is empty; it says which pool the placement is for")]
    NoPool,
}

/// A checked placement, ready to be asked.
#[derive(Clone, Debug)]
pub struct Compiled {
    placement: Placement,
    current: CompiledTable,
    predecessors: Vec<CompiledTable>,
}

/// A table, ready to be asked.
#[derive(Clone, Debug)]
struct CompiledTable {
    hasher: KeyHasher,
    owners: Owners,
    holders: BTreeMap<SlotId, Arc<Holder>>,
}

impl Placement {
    /// Checks the placement and prepares it for look-ups.
    pub fn compile(self) -> Result<Compiled, PlacementError> {
        if self.pool_uid.is_empty() {
            return Err(PlacementError::NoPool);
        }
        if self.predecessors.len() > MAX_PREDECESSORS {
            return Err(PlacementError::Predecessors(self.predecessors.len()));
        }
        for predecessor in &self.predecessors {
            if predecessor.version >= self.version {
                return Err(PlacementError::PredecessorVersion(predecessor.version, self.version));
            }
        }
        self.others.iter().try_for_each(Holder::check)?;
        let current = CompiledTable::new(&self.table)?;
        let predecessors = self.predecessors.iter().map(|p| CompiledTable::new(&p.table)).collect::<Result<_, _>>()?;
        Ok(Compiled { placement: self, current, predecessors })
    }
}

impl Holder {
    fn check(&self) -> Result<(), PlacementError> {
        let is_name = |host: &str| {
            !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        let right = self.address.rsplit_once(':').is_some_and(|(host, port)| {
            let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let host_is_right = v6.map_or_else(|| is_name(host), |v6| v6.parse::<Ipv6Addr>().is_ok());
            host_is_right && port.bytes().all(|b| b.is_ascii_digit()) && port.parse().is_ok_and(|port: u16| port > 0)
        });
        if right { Ok(()) } else { Err(PlacementError::Address(self.name.clone(), self.address.clone())) }
    }
}

impl CompiledTable {
    fn new(table: &Table) -> Result<Self, PlacementError> {
        let ascending = table.slots.is_sorted_by(|one, next| one.id < next.id);
        let mut ids = HashSet::new();
        let mut uids = HashSet::with_capacity(table.slots.len());
        let mut holders = Vec::with_capacity(table.slots.len());
        for slot in &table.slots {
            if !ascending && !ids.insert(slot.id) {
                return Err(PlacementError::DuplicateSlot(slot.id));
            }
            if !(1..=MAX_WEIGHT).contains(&slot.weight) {
                return Err(PlacementError::Weight(slot.id, slot.weight));
            }
            let Some(holder) = &slot.holder else { continue };
            if !uids.insert(&holder.uid) {
                return Err(PlacementError::DuplicateHolder(holder.name.clone()));
            }
            holder.check()?;
            holders.push((slot.id, Arc::clone(holder)));
        }
        if let KeyHasher::Agreed(agreement) = &table.hasher {
            agreement.check(table.slots.iter().map(|slot| slot.weight))?;
        }
        let owners = Owners::new(&table.hasher, &table.slots);
        Ok(Self { hasher: table.hasher.clone(), owners, holders: holders.into_iter().collect() })
    }

    fn owner(&self, key: KeyHash) -> Option<&Holder> {
        self.holder(self.owners.owner(key)?)
    }

    fn holder(&self, slot: SlotId) -> Option<&Holder> {
        self.holders.get(&slot).map(Arc::as_ref)
    }
}

impl Compiled {
    /// The placement as it was written.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.placement.version
    }

    /// The hash of a key under the current table.
    pub fn hash(&self, key: &str) -> KeyHash {
        self.current.hasher.hash(key.as_bytes())
    }

    /// The slots that own keys now: only those that have a holder.
    pub fn ring(&self) -> &Owners {
        &self.current.owners
    }

    /// Who holds a slot now.
    pub fn holder(&self, slot: SlotId) -> Option<&Holder> {
        self.current.holder(slot)
    }

    /// All holders now.
    pub fn holders(&self) -> impl Iterator<Item = &Holder> {
        self.current.holders.values().map(Arc::as_ref)
    }

    /// The slot that a pod holds now.
    pub fn slot_of(&self, uid: &str) -> Option<SlotId> {
        self.current.holders.iter().find(|(_, holder)| holder.uid == uid).map(|(slot, _)| *slot)
    }

    /// Whether keys may still be held by previous owners.
    pub fn moving(&self) -> bool {
        !self.predecessors.is_empty()
    }

    /// Whether a sidecar has a part in it: holds or held a slot, or is of the pool without one.
    pub fn mentions(&self, uid: &str) -> bool {
        let placement = self.placement();
        let tables = placement.predecessors.iter().map(|before| &before.table).chain([&placement.table]);
        let holders = tables.flat_map(|table| &table.slots).filter_map(|slot| slot.holder.as_deref());
        holders.chain(&placement.others).any(|holder| holder.uid == uid)
    }

    /// The pods, other than its owner now, that the listed predecessors gave the key to: whom the owner must ask before
    /// it takes the key.
    pub fn previous_holders(&self, key: &str) -> Vec<&Holder> {
        let hash = self.hash(key);
        let owner = self.current.owner(hash);
        let mut previous: Vec<&Holder> = Vec::new();
        for table in &self.predecessors {
            let hash = if table.hasher == self.current.hasher { hash } else { table.hasher.hash(key.as_bytes()) };
            let Some(holder) = table.owner(hash) else { continue };
            let known = owner.into_iter().chain(previous.iter().copied()).any(|h| h.uid == holder.uid);
            if !known {
                previous.push(holder);
            }
        }
        previous
    }
}

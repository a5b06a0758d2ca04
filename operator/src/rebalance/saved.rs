//! What a restarted operator goes on from.

use std::collections::BTreeMap;

use ring::placement::{MAX_PREDECESSORS, Predecessor, differences};
use ring::{Holder, KeyHasher, Version};
use serde::{Deserialize, Serialize};

use super::fleet::Totals;
use crate::planner::Roster;

/// What a restarted operator must know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// The pool's UID.
    pub pool_uid: String,
    /// The version in force.
    #[serde(flatten)]
    pub version: Version,
    /// How keys are hashed under it.
    pub hasher: KeyHasher,
    /// Its slots. Not flattened: serde would then no longer read the ids, which are keys of a map, as numbers.
    pub roster: Roster,
    /// Tables under which keys may still be held, newest first.
    #[serde(default, with = "differences")]
    pub predecessors: Vec<Predecessor>,
    /// What such tables came to while holders were out of reach: their slots are vacant. Listed as predecessors too, as far
    /// as there is room: they stand for what a crash or a partition left behind.
    #[serde(default, with = "differences")]
    pub absences: Vec<Predecessor>,
    /// What sidecars had counted when the move began.
    #[serde(default)]
    pub baselines: BTreeMap<String, Totals>,
}

impl Saved {
    /// Whether keys may be held by others than their owners.
    pub(super) fn is_moving(&self) -> bool {
        !self.predecessors.is_empty() || !self.absences.is_empty()
    }

    /// The predecessors that the placement lists, newest first.
    pub(super) fn listed(&self) -> Vec<Predecessor> {
        let all = self.predecessors.iter().chain(&self.absences);
        let mut listed: Vec<_> = all.take(MAX_PREDECESSORS).cloned().collect();
        listed.sort_by_key(|predecessor| std::cmp::Reverse(predecessor.version));
        listed
    }

    pub(super) fn former_holders(&self) -> impl Iterator<Item = &Holder> {
        let tables = self.predecessors.iter().chain(&self.absences);
        tables.flat_map(|predecessor| &predecessor.table.slots).filter_map(|slot| slot.holder.as_deref())
    }
}

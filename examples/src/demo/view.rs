//! What the operator says of the pool.

use ring::SlotId;
use serde::Deserialize;

use super::ledger::Server;
use super::verdict::Owners;

/// One entry of `GET /v1/pools`.
#[derive(Clone, Debug, Deserialize)]
pub struct View {
    /// The placement's epoch.
    pub epoch: u64,
    /// Where the rebalance stands.
    pub state: String,
    /// The slots.
    pub slots: Vec<SlotView>,
    /// The move under way.
    #[serde(rename = "move")]
    pub moving: MoveView,
}

/// A slot in a [`View`].
#[derive(Clone, Debug, Deserialize)]
pub struct SlotView {
    /// Its number.
    pub id: SlotId,
    /// The member that holds it.
    pub member: Option<String>,
}

/// A move in a [`View`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveView {
    /// Connections that have yet to move.
    pub pending: u64,
    /// Connections evicted and not yet back.
    pub in_flight: u64,
}

impl View {
    /// Who owns what.
    pub fn owners(&self) -> Owners {
        let holder = |slot: &SlotView| Some((slot.id, Server::from(slot.member.as_deref()?)));
        Owners::new(self.slots.iter().filter_map(holder).collect())
    }

    /// Whether nothing is moving, and exactly these servers hold slots.
    pub fn is_settled_on(&self, servers: &[&str]) -> bool {
        let mut holders: Vec<&str> = self.slots.iter().filter_map(|slot| slot.member.as_deref()).collect();
        holders.sort_unstable();
        self.state.eq_ignore_ascii_case("stable") && self.moving.pending == 0 && holders == servers
    }
}

//! Placements and grants that a test gives by itself, as an operator would.

use ring::placement::{Predecessor, Slot, Table};
use ring::rendezvous::Rendezvous;
use ring::settings::{KeySource, Settings};
use ring::wire::{Grant, Report};
use ring::{Holder, KeyHasher, Placement, SlotId};

use crate::{Sidecar, until};

/// How long a renewed grant lasts.
const TTL_MS: u64 = 1_000;

/// The placement of a pool, whose key is the parameter `user`.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The placement in force.
    pub placement: Placement,
}

impl Plan {
    /// A pool without slots.
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    /// A pool with settings; they get the key.
    pub fn with(mut settings: Settings) -> Self {
        settings.key.from = vec![KeySource::Query("user".into())];
        let mut placement =
            Placement { pool: "test".into(), pool_uid: "pool-1".into(), settings, ..Placement::default() };
        placement.version.term = 1;
        Self { placement }
    }

    /// The next epoch: these sidecars hold these slots. What was in force becomes a predecessor.
    pub fn hold(&mut self, slots: &[(u32, &Sidecar)]) {
        let slot =
            |(id, sidecar): &(u32, &Sidecar)| Slot { id: SlotId(*id), weight: 1, holder: Some(holder(sidecar).into()) };
        let table = Table { slots: slots.iter().map(slot).collect(), ..Table::default() };
        let version = self.placement.version;
        let before = std::mem::replace(&mut self.placement.table, table);
        if !before.slots.is_empty() {
            self.placement.predecessors.insert(0, Predecessor { version, table: before });
        }
        self.placement.version.epoch += 1;
    }

    /// The next epoch: nothing is left of the tables before.
    pub fn settle(&mut self) {
        self.placement.predecessors.clear();
        self.placement.version.epoch += 1;
    }

    /// Sidecars of the pool that hold no slot.
    pub fn others(&mut self, sidecars: &[&Sidecar]) {
        self.placement.others = sidecars.iter().map(|sidecar| holder(sidecar)).collect();
    }

    /// Gives the placement to sidecars.
    pub async fn publish(&self, sidecars: &[&Sidecar]) {
        for sidecar in sidecars {
            sidecar.place(&self.placement).await;
        }
    }

    /// The name of the sidecar that owns a key.
    pub fn owner(&self, key: &str) -> String {
        let compiled = self.placement.clone().compile().expect("a right placement");
        let slot = compiled.ring().owner(compiled.hash(key)).expect("an owner");
        compiled.holder(slot).expect("a holder").uid.clone()
    }

    /// The first so many keys that a sidecar owns.
    pub fn keys_of(&self, sidecar: &Sidecar, count: usize) -> Vec<String> {
        let keys = (0..).map(|number| format!("user-{number}"));
        keys.filter(|key| self.owner(key) == sidecar.name).take(count).collect()
    }

    /// Permission for a sidecar to evict to every slot, up to a total.
    pub fn grant(&self, sidecar: &Sidecar, allow_total: u64) -> Grant {
        Grant {
            target: sidecar.name.clone(),
            version: self.placement.version,
            allow_total,
            ttl_ms: TTL_MS,
            to: self.placement.table.slots.iter().map(|slot| slot.id).collect(),
        }
    }

    /// Grants, each time so many connections more, until no sidecar holds a moved key any more.
    pub async fn move_all(&self, sources: &[&Sidecar], step: u64) {
        until("nothing is left to move", async || {
            let mut reports = Vec::new();
            for sidecar in sources {
                let Report { evicted, .. } = sidecar.status().await;
                reports.push(sidecar.grant(&self.grant(sidecar, evicted + step)).await);
            }
            let done = reports.iter().all(|report| report.moved_keys == 0 && report.in_flight == 0);
            if done { Ok(()) } else { Err(format!("{reports:?}")) }
        })
        .await;
    }
}

/// The keys of clients, `user-0` and on, that the last of so many slots takes from the others.
pub fn taken_by_last(slots: u32, clients: usize) -> Vec<String> {
    let ring = Rendezvous::new((0..slots).map(|slot| (SlotId(slot), 1)));
    let keys = (0..clients).map(|number| format!("user-{number}"));
    let last = SlotId(slots - 1);
    keys.filter(|key| ring.owner(KeyHasher::default().hash(key.as_bytes())) == Some(last)).collect()
}

impl Default for Plan {
    fn default() -> Self {
        Self::new()
    }
}

fn holder(sidecar: &Sidecar) -> Holder {
    Holder { name: sidecar.name.clone(), uid: sidecar.name.clone(), address: sidecar.listen.to_string() }
}

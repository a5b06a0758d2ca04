//! Where a pool's placement and state are kept: one ConfigMap, written by compare-and-swap.
//!
//! | key | what |
//! |---|---|
//! | `placement.json.gz` | the placement in force, mounted in every pod |
//! | `state.json.gz` | what a restarted operator goes on from |
//! | `control.pem` | the public key by which sidecars know their operator |

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use ring::{Placement, Version};
use serde::Serialize;
use tokio::sync::watch;

use super::ask::{AskError, Kube, if_there};
use super::index::PoolState;
use crate::driver::{self, SaveError};
use crate::rebalance::Saved;

const SUFFIX: &str = "-placement";
const PLACEMENT: &str = "placement.json.gz";
const STATE: &str = "state.json.gz";
const CONTROL: &str = "control.pem";
/// Lost races after which a write is given up for now.
const ATTEMPTS: usize = 4;
/// The largest state, unpacked, in bytes: a ConfigMap holds 1 MiB, compressed.
const LARGEST: u64 = 64 * 1024 * 1024;

/// What a pool's ConfigMap is called.
pub fn name_of(pool: &str) -> String {
    format!("{pool}{SUFFIX}")
}

/// The pool of a ConfigMap.
pub fn pool_of(name: &str) -> Option<&str> {
    name.strip_suffix(SUFFIX)
}

/// The ConfigMap of one pool.
pub struct PlacementMap {
    kube: Kube,
    maps: Api<ConfigMap>,
    /// Its name, labels and owner.
    metadata: ObjectMeta,
    public_key: String,
    state: watch::Receiver<PoolState>,
    /// The one that was read or written last.
    resource_version: Option<String>,
    version: Version,
    /// How often it had gone when it was written last.
    losses: u64,
}

/// Why the state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The API server gave none.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It belongs to somebody else.
    #[error("the ConfigMap {0} is not the operator's; delete it, or give the pool another name")]
    Taken(String),
    /// It is none.
    #[error(
        "the state in the ConfigMap {name} cannot be read: {why}; delete it to go on from what the sidecars report"
    )]
    Malformed {
        /// The ConfigMap.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl PlacementMap {
    /// The one with this name, labels and owner. Nothing has been read yet.
    pub fn new(kube: Kube, metadata: ObjectMeta, public_key: &str, state: watch::Receiver<PoolState>) -> Self {
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let losses = state.borrow().placements_lost;
        Self {
            maps: Api::namespaced(kube.client(), &namespace),
            kube,
            metadata,
            public_key: public_key.to_owned(),
            state,
            resource_version: None,
            version: Version::default(),
            losses,
        }
    }

    /// Reads the state, and sees to it that sidecars find the key they need.
    pub async fn load(&mut self) -> Result<Option<Saved>, LoadError> {
        let Some(found) = self.read().await? else {
            let made = self.map(None);
            self.resource_version = self.write(made).await?.metadata.resource_version;
            return Ok(None);
        };
        if !self.is_ours(&found) {
            return Err(LoadError::Taken(self.name()));
        }
        let malformed = |why: String| LoadError::Malformed { name: self.name(), why };
        let saved = found.binary_data.as_ref().and_then(|data| data.get(STATE)).map(|packed| unpack(&packed.0));
        let saved: Option<Saved> = saved.transpose().map_err(malformed)?;
        self.resource_version.clone_from(&found.metadata.resource_version);
        self.version = saved.as_ref().map(|saved| saved.version).unwrap_or_default();
        let known = found.data.as_ref().and_then(|data| data.get(CONTROL));
        if known != Some(&self.public_key) || !self.is_owned(&found) {
            let mut renewed = self.map(None);
            renewed.binary_data = found.binary_data;
            self.resource_version = self.write(renewed).await?.metadata.resource_version;
        }
        Ok(saved)
    }

    async fn read(&self) -> Result<Option<ConfigMap>, AskError> {
        if_there(self.kube.ask("get", self.object(), self.maps.get(&self.name())).await)
    }

    /// Writes it if it is as it was read last.
    async fn write(&self, mut map: ConfigMap) -> Result<ConfigMap, AskError> {
        let params = PostParams::default();
        map.metadata.resource_version.clone_from(&self.resource_version);
        if self.resource_version.is_none() {
            return self.kube.ask("create", self.object(), self.maps.create(&params, &map)).await;
        }
        self.kube.ask("update", self.object(), self.maps.replace(&self.name(), &params, &map)).await
    }

    /// After a lost race: goes on from what is there now, unless that is newer than what was written here.
    async fn reread(&mut self) -> Result<(), SaveError> {
        let found = self.read().await.map_err(failed)?;
        self.resource_version = found.as_ref().and_then(|found| found.metadata.resource_version.clone());
        let packed = found.and_then(|found| found.binary_data?.remove(STATE));
        let there: Option<Saved> = packed.and_then(|packed| unpack(&packed.0).ok());
        match there.map(|saved| saved.version) {
            Some(newer) if newer > self.version => Err(SaveError::Superseded(newer)),
            _ => Ok(()),
        }
    }

    fn map(&self, content: Option<[Vec<u8>; 2]>) -> ConfigMap {
        let binary = |[placement, state]: [Vec<u8>; 2]| {
            BTreeMap::from([(PLACEMENT.to_owned(), ByteString(placement)), (STATE.to_owned(), ByteString(state))])
        };
        ConfigMap {
            metadata: self.metadata.clone(),
            binary_data: content.map(binary),
            data: Some(BTreeMap::from([(CONTROL.to_owned(), self.public_key.clone())])),
            immutable: None,
        }
    }

    /// Whether an operator has made it for a pool of this name, perhaps for one that is gone.
    fn is_ours(&self, found: &ConfigMap) -> bool {
        let owners = found.metadata.owner_references.as_deref().unwrap_or_default();
        let own = self.metadata.owner_references.as_deref().unwrap_or_default();
        owners.iter().any(|owner| own.iter().any(|own| (&own.kind, &own.name) == (&owner.kind, &owner.name)))
    }

    fn is_owned(&self, found: &ConfigMap) -> bool {
        found.metadata.owner_references == self.metadata.owner_references
    }

    fn name(&self) -> String {
        self.metadata.name.clone().unwrap_or_default()
    }

    fn object(&self) -> String {
        format!("the ConfigMap {}", self.name())
    }
}

impl driver::Store for PlacementMap {
    fn place(&self) -> String {
        self.object()
    }

    async fn save(&mut self, saved: &Saved, placement: &Placement) -> Result<(), SaveError> {
        let losses = self.state.borrow().placements_lost;
        let content = [pack(placement).map_err(unpackable)?, pack(saved).map_err(unpackable)?];
        for _ in 0..ATTEMPTS {
            match self.write(self.map(Some(content.clone()))).await {
                Ok(written) => {
                    self.resource_version = written.metadata.resource_version;
                    self.version = saved.version;
                    self.losses = losses;
                    return Ok(());
                }
                Err(error) if error.is_conflict() || error.is_missing() => self.reread().await?,
                Err(error) => return Err(failed(error)),
            }
        }
        Err(SaveError::Failed(format!("{} changed {ATTEMPTS} times while it was being written", self.object())))
    }

    fn is_lost(&self) -> bool {
        self.state.borrow().placements_lost > self.losses
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is mapped over errors")]
fn failed(error: AskError) -> SaveError {
    SaveError::Failed(error.to_string())
}

#[allow(clippy::needless_pass_by_value, reason = "it is mapped over errors")]
fn unpackable(error: std::io::Error) -> SaveError {
    SaveError::Failed(format!("the placement cannot be packed: {error}"))
}

fn pack(value: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    serde_json::to_writer(&mut packer, value)?;
    packer.flush()?;
    packer.finish()
}

fn unpack<T: serde::de::DeserializeOwned>(packed: &[u8]) -> Result<T, String> {
    serde_json::from_reader(GzDecoder::new(packed).take(LARGEST)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use ring::placement::{MAX_PREDECESSORS, Predecessor, Slot, Table};
    use ring::{Holder, SlotId};

    use super::*;
    use crate::planner::Roster;

    /// What a ConfigMap holds, in bytes.
    const CONFIGMAP: usize = 1 << 20;

    #[test]
    fn a_state_is_read_as_it_was_written_and_anything_else_is_refused() {
        let saved = Saved { version: Version { term: 3, epoch: 7 }, ..Saved::default() };
        assert_eq!(unpack::<Saved>(&pack(&saved).unwrap()).unwrap(), saved);
        assert!(unpack::<Saved>(b"{}").is_err());
        let cut = &pack(&saved).unwrap()[..30];
        assert!(unpack::<Saved>(cut).is_err());
    }

    /// A pod whose name, UID and address cannot be packed.
    fn pod(number: u32) -> Holder {
        let chance: u128 = rand::random();
        let [_, high, middle, low] = number.to_be_bytes();
        Holder {
            name: format!("chat-6d4b75cb6d-{:05x}", chance & 0xf_ffff),
            uid: format!("{chance:032x}"),
            address: format!("10.{high}.{middle}.{low}:7480"),
        }
    }

    #[test]
    fn five_thousand_slots_in_a_rollout_fit_into_a_configmap() {
        let mut pods: Vec<Holder> = (0..5_000).map(pod).collect();
        let mut tables = VecDeque::new();
        for epoch in 0..=MAX_PREDECESSORS {
            // A new pod takes the place of an old one.
            pods[epoch] = pod(10_000);
            let slot = |(id, pod): (u32, &Holder)| Slot { id: SlotId(id), weight: 1, holder: Some(pod.clone().into()) };
            let table = Table { slots: (0..).zip(&pods).map(slot).collect(), ..Table::default() };
            tables.push_front(Predecessor { version: Version { term: 1, epoch: epoch as u64 }, table });
        }
        let Predecessor { version, table } = tables.pop_front().unwrap();
        let predecessors = Vec::from(tables);
        let roster = Roster { slots: table.slots.clone(), ..Roster::default() };
        let saved = Saved { version, roster, predecessors: predecessors.clone(), ..Saved::default() };
        let placement = Placement { version, table, predecessors, ..Placement::default() };
        let packed = [pack(&placement).unwrap(), pack(&saved).unwrap()];
        let bytes: usize = packed.iter().map(Vec::len).sum();
        println!("{bytes} bytes");
        assert!(bytes < CONFIGMAP - 4096, "{bytes} bytes, and a key");
        assert_eq!(unpack::<Placement>(&packed[0]).unwrap(), placement);
        assert_eq!(unpack::<Saved>(&packed[1]).unwrap(), saved);
    }

    #[test]
    fn a_configmap_is_named_after_its_pool() {
        assert_eq!(pool_of(&name_of("chat")), Some("chat"));
        assert_eq!(pool_of("kube-root-ca.crt"), None);
    }
}

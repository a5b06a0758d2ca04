//! The hashes of ingresses, bit for bit, so that one in front of a pool sends a connection to the server that owns its key.
//!
//! | algorithm | as | what it hashes of a server |
//! |---|---|---|
//! | [`Agreement::NginxKetama`] | nginx 1.22, `hash $key consistent` | the text of its address |
//! | [`Agreement::IngressNginx`] | ingress-nginx, `upstream-hash-by` | the text of its address |
//! | [`Agreement::EnvoyRing`] | Envoy 1.40, `RING_HASH` | its address |
//! | [`Agreement::EnvoyMaglev`] | Envoy 1.40, `MAGLEV` | its address |
//! | [`Agreement::HAProxy`] | HAProxy 2.6 and later, `hash-type consistent` | its number, or its address |
//!
//! The address is the one of the holder of a slot, so these algorithms move keys when a slot changes hands, and none of them
//! takes a secret: a client that chooses its key can aim at a server. `tests/tests/agreement` compares them with the
//! programs themselves, and `tests/golden` with what those have answered.

mod envoy;
mod haproxy;
mod nginx;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh64::xxh64;

use crate::continuum::{Continuum, Rule};
use crate::{KeyHash, Owners, Slot, SlotId};

pub use envoy::Maglev;

/// The least and the most points of an Envoy ring that may be asked for. Envoy itself allows 8 Mi, which is 96 MiB a table.
pub const RING_SIZES: std::ops::RangeInclusive<u32> = 1..=131_072;
/// The least and the most places of a Maglev table. Envoy itself allows 5,000,011.
pub const TABLE_SIZES: std::ops::RangeInclusive<u32> = 2..=1_048_573;
/// The weights that HAProxy gives to servers.
pub const HAPROXY_WEIGHTS: std::ops::RangeInclusive<u32> = 1..=256;

/// The hash of an ingress, with what is configured there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Agreement {
    /// nginx.
    NginxKetama,
    /// ingress-nginx.
    IngressNginx,
    /// Envoy's ring.
    EnvoyRing {
        /// Its `minimum_ring_size`.
        minimum_ring_size: u32,
    },
    /// Envoy's Maglev.
    EnvoyMaglev {
        /// Its `table_size`, a prime number.
        table_size: u32,
    },
    /// HAProxy.
    #[serde(rename = "haproxy")]
    HAProxy {
        /// Its `hash-key`.
        hash_key: HashKey,
        /// The `weight` of a server there whose slot has weight 1.
        weight: u16,
    },
}

/// What HAProxy knows a server by: its setting `hash-key`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum HashKey {
    /// `id`: its number, which is 1 for slot 0, 2 for slot 1 and so on.
    #[default]
    Id,
    /// `addr`: its address without the port.
    Addr,
    /// `addr-port`: its address and port.
    AddrPort,
}

/// What is wrong with an [`Agreement`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgreementError {
    /// A ring of another size.
    #[error("minimumRingSize is {0}; write 1 to 131072")]
    RingSize(u32),
    /// A table of another size.
    #[error("tableSize is {0}; write a prime number from 2 to 1048573")]
    TableSize(u32),
    /// A weight that HAProxy does not know.
    #[error(
        "weight {0} times haproxy.weight {1} is no weight of HAProxy's; lower one of them, the product is 1 to 256"
    )]
    Weight(u8, u16),
}

/// A server, as an ingress knows it.
struct Server<'a> {
    slot: SlotId,
    weight: u8,
    /// As it is written: `host:port`.
    text: &'a str,
    /// The same, when its host is an IP address.
    address: Option<SocketAddr>,
}

impl Server<'_> {
    /// Its address in its one canonical form, as programs write it that have parsed it.
    fn canonical(&self) -> String {
        self.address.map_or_else(|| self.text.to_owned(), |address| address.to_string())
    }
}

impl Agreement {
    /// Whether it can be worked with for slots of these weights.
    pub fn check(&self, weights: impl IntoIterator<Item = u8>) -> Result<(), AgreementError> {
        match *self {
            Self::EnvoyRing { minimum_ring_size } if !RING_SIZES.contains(&minimum_ring_size) => {
                Err(AgreementError::RingSize(minimum_ring_size))
            }
            Self::EnvoyMaglev { table_size } if !is_table_size(table_size) => {
                Err(AgreementError::TableSize(table_size))
            }
            Self::HAProxy { weight, .. } => {
                let is_wrong = |of: &u8| !HAPROXY_WEIGHTS.contains(&(u32::from(*of) * u32::from(weight)));
                weights.into_iter().find(is_wrong).map_or(Ok(()), |of| Err(AgreementError::Weight(of, weight)))
            }
            Self::NginxKetama | Self::IngressNginx | Self::EnvoyRing { .. } | Self::EnvoyMaglev { .. } => Ok(()),
        }
    }

    /// Hashes a key. All but Envoy's have 32 bits.
    pub fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(match self {
            Self::NginxKetama | Self::IngressNginx => u64::from(crc32fast::hash(key)),
            Self::EnvoyRing { .. } | Self::EnvoyMaglev { .. } => xxh64(key, 0),
            Self::HAProxy { .. } => u64::from(haproxy::hash(key)),
        })
    }

    /// Prepares look-ups among the slots that have a holder.
    pub fn owners(&self, slots: &[Slot]) -> Owners {
        let mut servers: Vec<Server> = slots
            .iter()
            .filter_map(|slot| {
                let text = slot.holder.as_ref()?.address.as_str();
                Some(Server { slot: slot.id, weight: slot.weight, text, address: text.parse().ok() })
            })
            .collect();
        servers.sort_by_key(|server| server.slot);
        match *self {
            Self::NginxKetama => Continuum::new(Rule::Next, nginx::points(&servers, nginx::ketama)).into(),
            Self::IngressNginx => Continuum::new(Rule::Next, nginx::points(&servers, nginx::whole)).into(),
            Self::EnvoyRing { minimum_ring_size } => {
                Continuum::new(Rule::Next, envoy::points(&servers, minimum_ring_size)).into()
            }
            Self::EnvoyMaglev { table_size } => Maglev::new(&servers, table_size).into(),
            Self::HAProxy { hash_key, weight } => {
                Continuum::new(Rule::Nearest, haproxy::points(&servers, hash_key, weight)).into()
            }
        }
    }
}

/// Whether a Maglev table may have so many places.
pub fn is_table_size(size: u32) -> bool {
    let divides = |divisor: &u32| size.is_multiple_of(*divisor);
    TABLE_SIZES.contains(&size) && !(2..=size.isqrt()).any(|divisor| divides(&divisor))
}

//! From a key to 64 bits.

use std::hash::Hasher as _;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;
use xxhash_rust::xxh64::xxh64;

use crate::agreement::Agreement;

/// The hash of a key. Kept with every held connection, so that a new placement never needs the key again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(pub u64);

/// How keys are hashed, and so who owns them: the same in every sidecar of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyHasher {
    /// XXH64 with seed 0: fast, but a client that chooses its key can aim at a slot.
    #[default]
    Xxh64,
    /// SipHash-2-4 under a secret key, for keys that untrusted clients choose.
    SipHash24(SipKey),
    /// As an ingress does.
    Agreed(Agreement),
}

/// The 128-bit secret of [`KeyHasher::SipHash24`], written as 32 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SipKey([u8; 16]);

/// Why a [`SipKey`] was refused.
#[derive(Debug, thiserror::Error)]
#[error("a SipHash key is 32 hexadecimal digits (16 bytes), not {0} characters of something else")]
pub struct SipKeyError(usize);

impl KeyHasher {
    /// Hashes a key.
    pub fn hash(&self, key: &[u8]) -> KeyHash {
        match self {
            Self::Xxh64 => KeyHash(xxh64(key, 0)),
            Self::SipHash24(SipKey(secret)) => {
                let mut hasher = SipHasher24::new_with_key(secret);
                hasher.write(key);
                KeyHash(hasher.finish())
            }
            Self::Agreed(agreement) => agreement.hash(key),
        }
    }
}

impl TryFrom<String> for SipKey {
    type Error = SipKeyError;

    fn try_from(text: String) -> Result<Self, SipKeyError> {
        let refused = SipKeyError(text.len());
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(refused);
        }
        let value = u128::from_str_radix(&text, 16).map_err(|_| refused)?;
        Ok(Self(value.to_be_bytes()))
    }
}

impl From<SipKey> for String {
    fn from(SipKey(secret): SipKey) -> Self {
        format!("{:032x}", u128::from_be_bytes(secret))
    }
}

impl std::fmt::Debug for SipKey {
    /// Never prints the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SipKey(..)")
    }
}

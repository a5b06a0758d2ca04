//! One key that checks signatures, out of a JSON web key set.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

/// The most keys of a set that are used.
const MOST: usize = 128;

/// A key, with what it may check.
#[derive(Clone)]
pub struct VerifyingKey {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    pub(crate) key: DecodingKey,
}

/// Without the key itself, which may be a secret.
impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyingKey")
            .field("kid", &self.kid)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

impl VerifyingKey {
    /// Whether it may have signed a token with this header. The key's type and its own `alg` decide which algorithms it
    /// checks, never the token: a public key is no secret of HS256.
    pub fn fits(&self, kid: Option<&str>, algorithm: Algorithm) -> bool {
        let named = match (kid, &self.kid) {
            (Some(wanted), Some(kid)) => wanted == kid,
            _ => true,
        };
        named && self.algorithms.contains(&algorithm)
    }

    /// Whether it also signs.
    pub(super) fn is_secret(&self) -> bool {
        self.key.family() == AlgorithmFamily::Hmac
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// The keys of a set (RFC 7517) that can be used. Others, of kinds that are not known here, are passed over; `None` when
/// there is no set.
pub fn parse(bytes: &[u8]) -> Option<Vec<VerifyingKey>> {
    let set: Set = serde_json::from_slice(bytes).ok()?;
    Some(set.keys.into_iter().filter_map(one).take(MOST).collect())
}

fn one(key: Value) -> Option<VerifyingKey> {
    let jwk: Jwk = serde_json::from_value(key).ok()?;
    let signs = jwk.common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
    let verifies = jwk.common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
    let algorithms: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa.algorithms(),
        AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => &[],
        },
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
        AlgorithmParameters::OctetKey(_) => AlgorithmFamily::Hmac.algorithms(),
        _ => &[],
    };
    let own = jwk.common.key_algorithm;
    let of_own = |algorithm: &&Algorithm| own.is_none_or(|own| own.to_string() == format!("{algorithm:?}"));
    let algorithms: Vec<Algorithm> = algorithms.iter().filter(of_own).copied().collect();
    let usable = signs && verifies && !algorithms.is_empty();
    let key = usable.then(|| DecodingKey::from_jwk(&jwk).ok()).flatten()?;
    Some(VerifyingKey { kid: jwk.common.key_id, algorithms, key })
}

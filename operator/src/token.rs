//! What proves to a sidecar that a control request comes from its operator: a token for each request.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ED25519};
use ring::wire::ControlClaims;

/// How long a token is good, in seconds: a request takes no longer, and clocks may differ.
const LIFETIME: u64 = 10;

/// Signs control requests with an Ed25519 key.
#[derive(Clone)]
pub struct Signer {
    key: EncodingKey,
    public: String,
}

/// A request, as far as a token covers it.
#[derive(Clone, Copy, Debug)]
pub struct Covered<'a> {
    /// The UID of the sidecar that is meant.
    pub uid: &'a str,
    /// The leader's term.
    pub term: u64,
    /// `PUT /v1/placement`.
    pub request: &'a str,
    /// Its body.
    pub body: &'a [u8],
}

/// Why a key cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be made, or is no key.
    #[error("this is no Ed25519 key in PEM: {0}")]
    Pair(#[from] rcgen::Error),
    /// It cannot sign.
    #[error("the key cannot sign: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// Makes a private key: PEM, PKCS #8.
pub fn make_key() -> Result<String, KeyError> {
    Ok(KeyPair::generate_for(&PKCS_ED25519)?.serialize_pem())
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// Signs with a private key as [`make_key`] writes it.
    pub fn new(private: &str) -> Result<Self, KeyError> {
        let public = KeyPair::from_pkcs8_pem_and_sign_algo(private, &PKCS_ED25519)?.public_key_pem();
        Ok(Self { key: EncodingKey::from_ed_pem(private.as_bytes())?, public })
    }

    /// What sidecars check with: PEM.
    pub fn public(&self) -> &str {
        &self.public
    }

    /// A token for one request, good for some seconds.
    pub fn sign(&self, covered: Covered<'_>, now: SystemTime) -> Result<String, KeyError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = ControlClaims {
            aud: covered.uid.to_owned(),
            term: covered.term,
            iat: now,
            exp: now + LIFETIME,
            jti: format!("{:032x}", rand::random::<u128>()),
            req: covered.request.to_owned(),
            body: sha256(covered.body),
        };
        Ok(encode(&Header::new(Algorithm::EdDSA), &claims, &self.key)?)
    }
}

/// SHA-256 in hexadecimal.
fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    digest(&SHA256, bytes).as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, decode};

    use super::*;

    const COVERED: Covered<'_> = Covered { uid: "pod-1", term: 3, request: "PUT /v1/placement", body: b"{}" };

    fn claims(token: &str, public: &str, uid: &str) -> Result<ControlClaims, jsonwebtoken::errors::Error> {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[uid]);
        decode(token, &DecodingKey::from_ed_pem(public.as_bytes())?, &validation).map(|token| token.claims)
    }

    #[test]
    fn a_token_names_the_pod_the_term_and_the_request_and_no_two_are_alike() {
        let signer = Signer::new(&make_key().unwrap()).unwrap();
        let now = SystemTime::now();
        let first = claims(&signer.sign(COVERED, now).unwrap(), signer.public(), "pod-1").unwrap();
        assert_eq!((first.term, first.req.as_str(), first.exp - first.iat), (3, "PUT /v1/placement", 10));
        assert_eq!(first.body, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", "sha256sum of {{}}");
        let second = claims(&signer.sign(COVERED, now).unwrap(), signer.public(), "pod-1").unwrap();
        assert_ne!(first.jti, second.jti);
    }

    #[test]
    fn another_key_and_another_audience_do_not_pass() {
        let signer = Signer::new(&make_key().unwrap()).unwrap();
        let other = Signer::new(&make_key().unwrap()).unwrap();
        let token = signer.sign(COVERED, SystemTime::now()).unwrap();
        assert!(claims(&token, other.public(), "pod-1").is_err());
        assert!(claims(&token, signer.public(), "pod-2").is_err());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(Signer::new("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_err());
    }
}

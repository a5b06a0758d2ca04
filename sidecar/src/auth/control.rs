//! The operator's tokens.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use ring::wire::ControlClaims;

use super::{KeyFile, Seen, sha256};

/// The longest life that a token may have, in seconds.
const LONGEST_LIFE: u64 = 30;
/// How far clocks may be apart, in seconds.
const LEEWAY: u64 = 5;

/// Checks tokens against the operator's public keys.
#[derive(Debug)]
pub struct ControlAuth {
    keys: KeyFile<DecodingKey>,
    used: Seen<String>,
    newest_term: AtomicU64,
}

/// A request to the control port, as far as its head says.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The sidecar that was asked.
    pub uid: &'a str,
    /// `PUT /v1/placement`.
    pub request: &'a str,
}

/// What the operator has signed for this sidecar and this request. Whether for this body, too, is to be seen: nobody
/// else gets to send one.
#[derive(Debug)]
pub struct Signed(ControlClaims);

/// Why a request was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token.
    #[error("a request to this port needs the operator's token in Authorization: Bearer")]
    Missing,
    /// No key yet.
    #[error("this sidecar has no key yet to check the token with (--control-keys)")]
    NoKeys,
    /// Not signed by the operator.
    #[error("the token is not signed by the operator")]
    Forged,
    /// Too old, too young, or meant to live too long.
    #[error("the token has expired, or would live longer than {LONGEST_LIFE} s")]
    Expired,
    /// For another sidecar.
    #[error("the token is for another sidecar")]
    OtherTarget,
    /// For another request.
    #[error("the token is for another request")]
    OtherRequest,
    /// Used before.
    #[error("the token has been used before")]
    Replayed,
    /// Signed by a leader that has been replaced.
    #[error("the token is of an older term than this sidecar has seen")]
    OlderTerm,
}

impl Denied {
    /// The status to answer with.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Missing | Self::NoKeys | Self::Forged | Self::Expired => StatusCode::UNAUTHORIZED,
            Self::OtherTarget | Self::OtherRequest | Self::Replayed | Self::OlderTerm => StatusCode::FORBIDDEN,
        }
    }

    /// Its name in metrics and problems.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::NoKeys => "no-keys",
            Self::Forged => "forged",
            Self::Expired => "expired",
            Self::OtherTarget => "other-target",
            Self::OtherRequest => "other-request",
            Self::Replayed => "replayed",
            Self::OlderTerm => "older-term",
        }
    }
}

impl ControlAuth {
    /// Checks against the Ed25519 public keys (PEM, one or more) in a file.
    pub fn new(file: PathBuf) -> Self {
        Self { keys: KeyFile::new(file, public_keys), used: Seen::default(), newest_term: AtomicU64::new(0) }
    }

    /// Checks the token of a request, before its body is read. `now` is in seconds since 1970.
    pub fn signed(&self, authorization: Option<&str>, asked: Asked<'_>, now: u64) -> Result<Signed, Denied> {
        let token = authorization.and_then(|value| value.strip_prefix("Bearer ")).ok_or(Denied::Missing)?;
        let keys = self.keys.keys();
        if keys.is_empty() {
            return Err(Denied::NoKeys);
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[asked.uid]);
        // Checked below, against the time that was given.
        validation.validate_exp = false;
        validation.set_required_spec_claims(&["exp", "aud"]);
        let mut denied = Denied::Forged;
        let claims = keys.iter().find_map(|key| match decode::<ControlClaims>(token, key, &validation) {
            Ok(token) => Some(token.claims),
            Err(error) => {
                if *error.kind() == ErrorKind::InvalidAudience {
                    denied = Denied::OtherTarget;
                }
                None
            }
        });
        let claims = claims.ok_or(denied)?;
        let too_young = claims.iat > now + LEEWAY;
        if now > claims.exp || too_young || claims.exp.saturating_sub(claims.iat) > LONGEST_LIFE {
            return Err(Denied::Expired);
        }
        if claims.req == asked.request { Ok(Signed(claims)) } else { Err(Denied::OtherRequest) }
    }

    /// Uses a token for the body that came with it, once.
    pub fn admit(&self, Signed(claims): Signed, body: &[u8], now: u64) -> Result<(), Denied> {
        if claims.body != sha256(body) {
            return Err(Denied::OtherRequest);
        }
        if !self.used.first_use(claims.jti, claims.exp, now) {
            return Err(Denied::Replayed);
        }
        // A question changes nothing: a leader that has lost the placement learns by it which terms there were.
        let asks = claims.req.starts_with("GET ");
        if !asks && self.newest_term.fetch_max(claims.term, Ordering::AcqRel) > claims.term {
            return Err(Denied::OlderTerm);
        }
        Ok(())
    }
}

fn public_keys(pem: &[u8]) -> Option<Vec<DecodingKey>> {
    const END: &str = "-----END PUBLIC KEY-----";
    let text = std::str::from_utf8(pem).ok()?;
    let blocks = text.split_inclusive(END).filter(|block| block.contains(END));
    blocks.map(|block| DecodingKey::from_ed_pem(block.trim_start().as_bytes()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use jsonwebtoken::{EncodingKey, Header, encode};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    struct Operator {
        key: EncodingKey,
        folder: tempfile::TempDir,
    }

    impl Operator {
        fn new() -> Self {
            let pair = Ed25519KeyPair::generate().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let public = pair.public_key().as_der().unwrap();
            let text = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", base64(public.as_ref()));
            std::fs::write(folder.path().join("keys.pem"), text).unwrap();
            let key = EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref());
            Self { key, folder }
        }

        fn auth(&self) -> ControlAuth {
            ControlAuth::new(self.folder.path().join("keys.pem"))
        }

        fn sign(&self, claims: &ControlClaims) -> String {
            format!("Bearer {}", encode(&Header::new(Algorithm::EdDSA), claims, &self.key).unwrap())
        }
    }

    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for three in bytes.chunks(3) {
            let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
            for digit in 0..4 {
                let value = (bits >> (18 - 6 * digit)) as usize & 63;
                text.push(if digit <= three.len() { char::from(DIGITS[value]) } else { '=' });
            }
        }
        text
    }

    fn claims() -> ControlClaims {
        ControlClaims {
            aud: "pod-1".into(),
            term: 3,
            iat: NOW,
            exp: NOW + 10,
            jti: format!("{:x}", rand::random::<u64>()),
            req: "PUT /v1/placement".into(),
            body: sha256(b"{}"),
        }
    }

    const ASKED: Asked<'_> = Asked { uid: "pod-1", request: "PUT /v1/placement" };

    impl ControlAuth {
        fn check(&self, token: Option<&str>, asked: Asked<'_>, now: u64) -> Result<(), Denied> {
            self.admit(self.signed(token, asked, now)?, b"{}", now)
        }
    }

    #[test]
    fn a_token_is_good_for_its_one_request() {
        let operator = Operator::new();
        let auth = operator.auth();
        let token = operator.sign(&claims());
        assert_eq!(auth.check(Some(&token), ASKED, NOW + 1), Ok(()));
        assert_eq!(auth.check(Some(&token), ASKED, NOW + 1), Err(Denied::Replayed));
    }

    #[test]
    fn whatever_the_operator_did_not_sign_for_this_request_is_denied() {
        let operator = Operator::new();
        let auth = operator.auth();
        let cases = [
            (ControlClaims { aud: "pod-2".into(), ..claims() }, Denied::OtherTarget),
            (ControlClaims { exp: NOW - 1, iat: NOW - 10, ..claims() }, Denied::Expired),
            (ControlClaims { exp: NOW + 4000, ..claims() }, Denied::Expired),
            (ControlClaims { iat: NOW + 60, exp: NOW + 70, ..claims() }, Denied::Expired),
            (ControlClaims { req: "PUT /v1/evictions".into(), ..claims() }, Denied::OtherRequest),
            (ControlClaims { body: sha256(b"other"), ..claims() }, Denied::OtherRequest),
        ];
        for (claims, denied) in cases {
            assert_eq!(auth.check(Some(&operator.sign(&claims)), ASKED, NOW), Err(denied));
        }
        assert_eq!(auth.check(None, ASKED, NOW), Err(Denied::Missing));
        assert_eq!(auth.check(Some("Bearer x.y.z"), ASKED, NOW), Err(Denied::Forged));
        let forged = Operator::new().sign(&claims());
        assert_eq!(auth.check(Some(&forged), ASKED, NOW), Err(Denied::Forged));
        assert_eq!(auth.check(Some(&operator.sign(&claims())), ASKED, NOW), Ok(()));
    }

    #[test]
    fn an_older_leader_is_denied_once_a_newer_one_was_heard() {
        let operator = Operator::new();
        let auth = operator.auth();
        let of_term = |term| operator.sign(&ControlClaims { term, ..claims() });
        assert_eq!(auth.check(Some(&of_term(3)), ASKED, NOW), Ok(()));
        assert_eq!(auth.check(Some(&of_term(4)), ASKED, NOW), Ok(()));
        assert_eq!(auth.check(Some(&of_term(3)), ASKED, NOW), Err(Denied::OlderTerm));
    }

    #[test]
    fn whoever_leads_may_ask_in_any_term_and_claims_none_by_it() {
        let operator = Operator::new();
        let auth = operator.auth();
        let question = Asked { request: "GET /v1/status", ..ASKED };
        let of_term = |term, req: &str| operator.sign(&ControlClaims { term, req: req.into(), ..claims() });
        assert_eq!(auth.check(Some(&of_term(3, ASKED.request)), ASKED, NOW), Ok(()));
        assert_eq!(auth.check(Some(&of_term(0, question.request)), question, NOW), Ok(()));
        assert_eq!(auth.check(Some(&of_term(9, question.request)), question, NOW), Ok(()));
        assert_eq!(auth.check(Some(&of_term(3, ASKED.request)), ASKED, NOW), Ok(()));
    }

    #[test]
    fn a_key_that_comes_later_is_found_and_one_that_vanishes_still_counts() {
        let operator = Operator::new();
        let auth = operator.auth();
        let (file, away) = (operator.folder.path().join("keys.pem"), operator.folder.path().join("away"));
        std::fs::rename(&file, &away).unwrap();
        assert_eq!(auth.check(Some(&operator.sign(&claims())), ASKED, NOW), Err(Denied::NoKeys));
        std::fs::rename(&away, &file).unwrap();
        assert_eq!(auth.check(Some(&operator.sign(&claims())), ASKED, NOW), Ok(()));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(auth.check(Some(&operator.sign(&claims())), ASKED, NOW), Ok(()));
    }
}

//! A client's JSON web token: where it stands, whether it holds, and what it claims.

use std::borrow::Cow;

use http::StatusCode;
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use ring::settings::{Jwt, SigningAlgorithm, TokenSource};
use serde_json::{Map, Value};

use crate::jwks::VerifyingKey;
use crate::key::{self, KeyInput};

const BEARER: &[u8] = b"Bearer ";
/// How many keys are tried for one token, which usually names its key: each try takes the time of other clients.
const TRIES: usize = 8;

/// Why a token proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none, and only a token could have the key.
    #[error("this pool needs a token in the handshake, and there is none")]
    Missing,
    /// It is no JSON web token.
    #[error("the token is not a JSON web token")]
    Malformed,
    /// `none`, or one that the pool does not list.
    #[error("the token is signed with an algorithm that is not accepted here")]
    Algorithm,
    /// No key of its issuer fits it.
    #[error("the token is signed with a key that its issuer does not publish")]
    UnknownKey,
    /// The key that it names has not signed it.
    #[error("the token's signature is wrong")]
    Signature,
    /// `exp` is past.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is to come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `iss` is another.
    #[error("the token is from another issuer")]
    Issuer,
    /// `aud` is another.
    #[error("the token is for another audience")]
    Audience,
    /// It lacks `exp`, or a claim is not of its type.
    #[error("the token has no expiry, or a claim that cannot be used")]
    Claim,
    /// The issuer's keys could not be had, so nobody can tell.
    #[error("the token cannot be checked now: the keys of its issuer are not available; try again in a moment")]
    NoKeys,
}

impl TokenError {
    /// The status to answer with. 401 tells a client that its token is no good; it is not told so when nobody knows.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::NoKeys => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// Its name in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Claim => "claim",
            Self::NoKeys => "no_keys",
        }
    }

    /// The header that goes with the status (RFC 6750, section 3).
    pub fn header(self) -> (&'static str, String) {
        match self {
            Self::NoKeys => ("retry-after", "1".into()),
            Self::Missing => ("www-authenticate", "Bearer".into()),
            _ => ("www-authenticate", format!("Bearer error=\"invalid_token\", error_description=\"{self}\"")),
        }
    }
}

/// The token of a request: that of the first place that has one.
pub fn find<'a>(request: &'a impl KeyInput, places: &'a [TokenSource]) -> Option<Cow<'a, [u8]>> {
    let mut found = places.iter().filter_map(|place| match place {
        TokenSource::Header(name) => request.values(name).next().map(|value| Cow::Borrowed(bare(value))),
        TokenSource::Query(name) => key::query(request, name),
        TokenSource::Cookie(name) => key::cookie(request, name),
        TokenSource::Subprotocol(prefix) => key::subprotocol(request, prefix).map(Cow::Borrowed),
    });
    found.find(|token| !token.is_empty())
}

/// A header's value without the scheme before it. Another scheme (Basic) is no token, and fails as one.
fn bare(value: &[u8]) -> &[u8] {
    match value.split_at_checked(BEARER.len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(BEARER) => token.trim_ascii(),
        _ => value,
    }
}

/// Checks a token, and returns its claims. `now` is in seconds since 1970.
pub fn check(token: &[u8], jwt: &Jwt, keys: &[VerifyingKey], now: u64) -> Result<Map<String, Value>, TokenError> {
    let header = decode_header(token).map_err(|error| match error.kind() {
        // JSON, but not with an algorithm that exists: "none" is of these.
        ErrorKind::Json(error) if error.is_data() => TokenError::Algorithm,
        _ => TokenError::Malformed,
    })?;
    if !jwt.algorithms.iter().any(|listed| algorithm(*listed) == header.alg) {
        return Err(TokenError::Algorithm);
    }
    // What must be understood is not (RFC 7515, 4.1.11).
    if header.crit.is_some() {
        return Err(TokenError::Malformed);
    }
    let mut validation = Validation::new(header.alg);
    let mut required = vec!["exp", "iss"];
    validation.set_issuer(&[&jwt.issuer]);
    // Checked below, against the time that was given.
    validation.validate_exp = false;
    if jwt.audiences.is_empty() {
        validation.validate_aud = false;
    } else {
        validation.set_audience(&jwt.audiences);
        required.push("aud");
    }
    validation.set_required_spec_claims(&required);

    let kid = header.kid.as_deref();
    let mut error = TokenError::UnknownKey;
    for key in keys.iter().filter(|key| key.fits(kid, header.alg)).take(TRIES) {
        match decode::<Map<String, Value>>(token, &key.key, &validation) {
            Ok(token) => return in_time(token.claims, jwt, now),
            Err(refused) => match refusal(&refused) {
                // Without a name it may be of a key that is not known yet.
                TokenError::Signature if kid.is_none() => {}
                TokenError::Signature => error = TokenError::Signature,
                other => return Err(other),
            },
        }
    }
    Err(error)
}

fn in_time(claims: Map<String, Value>, jwt: &Jwt, now: u64) -> Result<Map<String, Value>, TokenError> {
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are exact in a float")]
    let (now, leeway) = (now as f64, jwt.leeway.0.as_secs_f64());
    let time = |claim: &str| match claims.get(claim) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or(TokenError::Claim),
    };
    if time("exp")?.ok_or(TokenError::Claim)? + leeway <= now {
        return Err(TokenError::Expired);
    }
    if time("nbf")?.is_some_and(|begins| begins > now + leeway) {
        return Err(TokenError::NotYetValid);
    }
    Ok(claims)
}

fn refusal(error: &Error) -> TokenError {
    match error.kind() {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidIssuer => TokenError::Issuer,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => TokenError::Issuer,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => TokenError::Audience,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => TokenError::Claim,
        ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
        _ => TokenError::Malformed,
    }
}

/// A claim as a key: text, or a whole number. A claim that is not there is no key.
pub fn key_in(claims: &Map<String, Value>, name: &str) -> Result<Option<String>, TokenError> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) if !number.is_f64() => Ok(Some(number.to_string())),
        Some(_) => Err(TokenError::Claim),
    }
}

const fn algorithm(listed: SigningAlgorithm) -> Algorithm {
    match listed {
        SigningAlgorithm::RS256 => Algorithm::RS256,
        SigningAlgorithm::RS384 => Algorithm::RS384,
        SigningAlgorithm::RS512 => Algorithm::RS512,
        SigningAlgorithm::PS256 => Algorithm::PS256,
        SigningAlgorithm::PS384 => Algorithm::PS384,
        SigningAlgorithm::PS512 => Algorithm::PS512,
        SigningAlgorithm::ES256 => Algorithm::ES256,
        SigningAlgorithm::ES384 => Algorithm::ES384,
        SigningAlgorithm::EdDSA => Algorithm::EdDSA,
        SigningAlgorithm::HS256 => Algorithm::HS256,
        SigningAlgorithm::HS384 => Algorithm::HS384,
        SigningAlgorithm::HS512 => Algorithm::HS512,
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm::HS256;
    use jsonwebtoken::jwk::Jwk;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;

    #[test]
    fn an_algorithm_is_listed_by_its_own_name() {
        let names = "RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 EdDSA HS256 HS384 HS512";
        for name in names.split(' ') {
            let listed = serde_json::from_value(Value::from(name)).expect("a name that can be listed");
            assert_eq!(format!("{:?}", algorithm(listed)), name);
        }
    }

    #[test]
    fn a_token_that_names_no_key_is_tried_with_a_few_only() {
        let secret = |number: usize| format!("a secret of thirty-two characters {number}");
        let keys: Vec<_> = (0..=TRIES).map(|number| Jwk::from_encoding_key(&signing(&secret(number)), HS256)).collect();
        let keys: Vec<_> = keys.into_iter().map(Result::unwrap).collect();
        let keys = crate::jwks::parse(json!({"keys": keys}).to_string().as_bytes()).expect("a set");
        let jwt = serde_json::from_value(json!({"issuer": "a", "algorithms": ["HS256"]})).unwrap();
        let checked = |number| {
            let claims = json!({"iss": "a", "exp": 100, "sub": "ann"});
            let token = encode(&Header::new(HS256), &claims, &signing(&secret(number))).unwrap();
            check(token.as_bytes(), &jwt, &keys, 1).map(drop)
        };
        assert_eq!((checked(TRIES - 1), checked(TRIES)), (Ok(()), Err(TokenError::UnknownKey)));
    }

    fn signing(secret: &str) -> EncodingKey {
        EncodingKey::from_secret(secret.as_bytes())
    }
}

//! Who a client is, as far as its handshake says.

use std::cell::LazyCell;

use ring::settings::{KeySource, KeySpec, Missing};

use crate::auth::since_1970_ms;
use crate::key::{self, KeyError, KeyInput};
use crate::sidecar::Sidecar;
use crate::token::{self, TokenError};

/// Reads the key of a client's request. A token is checked here; when its key is not known the issuer is asked for newer
/// ones first, which may take a moment.
pub async fn read(sidecar: &Sidecar, spec: &KeySpec, request: &impl KeyInput) -> Result<Option<String>, KeyError> {
    let mut read = at_once(sidecar, spec, request);
    if let (Err(KeyError::Token(TokenError::UnknownKey | TokenError::NoKeys)), Some(jwt)) = (&read, &spec.jwt) {
        sidecar.jwks.renew(jwt).await;
        read = at_once(sidecar, spec, request);
        if read == Err(KeyError::Token(TokenError::UnknownKey)) && !sidecar.jwks.are_current(jwt) {
            read = Err(KeyError::Token(TokenError::NoKeys));
        }
    }
    let only_tokens = !spec.from.is_empty() && spec.from.iter().all(|source| matches!(source, KeySource::Jwt(_)));
    match read {
        Ok(None) if only_tokens && spec.missing == Missing::Reject => Err(KeyError::Token(TokenError::Missing)),
        other => other,
    }
}

fn at_once(sidecar: &Sidecar, spec: &KeySpec, request: &impl KeyInput) -> Result<Option<String>, KeyError> {
    // Once, however many claims are asked for, and only if one is.
    let claims = LazyCell::new(|| {
        let Some(jwt) = &spec.jwt else { return Ok(None) };
        let Some(token) = token::find(request, &jwt.token) else { return Ok(None) };
        let keys = sidecar.jwks.keys(jwt);
        if keys.is_empty() {
            return Err(TokenError::NoKeys);
        }
        token::check(&token, jwt, &keys, since_1970_ms() / 1000).map(Some)
    });
    key::key_of(request, spec, |claim| match &*claims {
        Ok(Some(claims)) => token::key_in(claims, claim),
        Ok(None) => Ok(None),
        Err(error) => Err(*error),
    })
}

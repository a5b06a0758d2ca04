//! How a client's JSON web token is found and checked.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::duration::GoDuration;

/// How a client's JSON web token (RFC 7519) is found and checked, for the sources `jwt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Jwt {
    /// Who must have issued the token: the claim iss is exactly this.
    #[cfg_attr(feature = "schema", schemars(length(max = 2_048)))]
    pub issuer: String,
    /// Whom the token must be for, at most 16: the claim aud names one of these. Left out, a token for anybody is taken,
    /// also one that its issuer made for another app.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16), inner(length(max = 2_048))))]
    pub audiences: Vec<String>,
    /// The signatures that are taken, 1 to 12. HS256, HS384 and HS512 need jwksFrom: whoever can check one can sign.
    #[serde(default = "default_algorithms")]
    #[cfg_attr(feature = "schema", schemars(length(max = 12)))]
    pub algorithms: Vec<SigningAlgorithm>,
    /// How far clocks may be apart, 0s to 5m: an expired token is taken for so long, and one that is not valid yet is
    /// taken so early.
    #[serde(default = "default_leeway")]
    pub leeway: GoDuration,
    /// Where the issuer publishes its keys, a JSON web key set (RFC 7517): https://idp.example.com/jwks.json. http is for
    /// loopback addresses only. Either this or jwksFrom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 2_048)))]
    pub jwks_uri: Option<String>,
    /// Where a copy of the key set is. Either this or jwksUri.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_from: Option<Mounted>,
    /// Certificates (PEM) of the authorities that the server at jwksUri is believed by, in place of the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_from: Option<Mounted>,
    /// Where the token stands, 1 to 8 places in order: the first that has one counts.
    #[serde(default = "default_token")]
    #[cfg_attr(feature = "schema", schemars(length(max = 8)))]
    pub token: Vec<TokenSource>,
}

/// A signature's algorithm (RFC 7518, 3.1; RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "the names are the standard's")]
pub enum SigningAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
    HS256,
    HS384,
    HS512,
}

impl SigningAlgorithm {
    /// Whether one secret both signs and checks.
    pub const fn is_symmetric(self) -> bool {
        matches!(self, Self::HS256 | Self::HS384 | Self::HS512)
    }
}

/// One place in a handshake that a token may stand in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum TokenSource {
    /// The name of a header, whose value is the token, with or without the word Bearer before it.
    Header(#[cfg_attr(feature = "schema", schemars(length(max = 256)))] String),
    /// The name of a parameter of the query string.
    Query(#[cfg_attr(feature = "schema", schemars(length(max = 256)))] String),
    /// The name of a cookie.
    Cookie(#[cfg_attr(feature = "schema", schemars(length(max = 256)))] String),
    /// The prefix of a subprotocol, the rest of which is the token.
    Subprotocol(#[cfg_attr(feature = "schema", schemars(length(max = 256)))] String),
}

/// Where a file is that sidecars read, and read again when it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Mounted {
    /// A file beside each sidecar, without Kubernetes.
    File(#[cfg_attr(feature = "schema", schemars(with = "String", length(max = 4_096)))] PathBuf),
    /// A key of a Secret that pods have mounted for this.
    SecretKeyRef(SecretKey),
}

impl Mounted {
    /// Where it is, when the Secret is mounted at `folder`.
    pub fn path(&self, folder: Option<&Path>) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::SecretKeyRef(secret) => folder.unwrap_or(Path::new("")).join(&secret.key),
        }
    }
}

/// A key of a Secret in the pool's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKey {
    /// The Secret's name.
    #[cfg_attr(feature = "schema", schemars(length(max = 253)))]
    pub name: String,
    /// The key in the Secret.
    #[cfg_attr(feature = "schema", schemars(length(max = 253)))]
    pub key: String,
}

fn default_algorithms() -> Vec<SigningAlgorithm> {
    vec![SigningAlgorithm::RS256, SigningAlgorithm::ES256, SigningAlgorithm::EdDSA]
}

const fn default_leeway() -> GoDuration {
    GoDuration::from_secs(30)
}

/// As RFC 6750 has it: what browsers cannot set, and what they can.
fn default_token() -> Vec<TokenSource> {
    vec![TokenSource::Header("Authorization".into()), TokenSource::Query("access_token".into())]
}

/// What is wrong with a [`Jwt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtFault {
    /// Where, below `key.jwt`: `.token[0].header`, or nothing for the whole.
    pub field: String,
    /// What stands there.
    pub value: String,
    /// What would be right.
    pub want: &'static str,
}

/// What is said of a wrong [`Jwt`], each after a field and its value.
pub mod words {
    #![allow(missing_docs, reason = "they explain themselves")]
    pub const ISSUER: &str = "names nobody; write the iss of your tokens";
    pub const AUDIENCE: &str = "names nobody; write an aud of your tokens";
    pub const ALGORITHMS: &str = "names no algorithm; write for example [RS256]";
    pub const SYMMETRIC: &str = "checks with a secret, which nobody publishes; write jwksFrom, or leave it out";
    pub const ONE_KEY_SET: &str = "does not have one key set; write either jwksUri or jwksFrom";
    pub const URI: &str = "cannot be used; write an https address, for example https://idp.example.com/jwks.json";
    pub const CA: &str = "has no part without jwksUri; leave it out";
    pub const NO_PLACE: &str = "names no place; write for example - header: Authorization";
    pub const HEADER: &str = "cannot be used; write a header's name";
    pub const QUERY: &str = "cannot be used; write a parameter's name";
    pub const COOKIE: &str = "cannot be used; write a cookie's name";
    pub const SUBPROTOCOL: &str = "cannot be used; write the prefix of a subprotocol";
    pub const LEEWAY: &str = "is out of range; write 0s to 5m";
    pub const SECRET_KEY: &str = "cannot be used; write a key of the Secret";
}

/// The longest [`Jwt::leeway`].
pub const MAX_LEEWAY: GoDuration = GoDuration::from_secs(300);

impl Jwt {
    /// Everything that is wrong with it.
    pub fn faults(&self) -> Vec<JwtFault> {
        let mut faults = Vec::new();
        let mut require = |good: bool, field: &str, value: &dyn std::fmt::Display, want| {
            if !good {
                faults.push(JwtFault { field: field.to_owned(), value: value.to_string(), want });
            }
        };
        let quoted = |text: &str| format!("{text:?}");
        require(!self.issuer.is_empty(), ".issuer", &quoted(&self.issuer), words::ISSUER);
        for (index, audience) in self.audiences.iter().enumerate() {
            require(!audience.is_empty(), &format!(".audiences[{index}]"), &quoted(audience), words::AUDIENCE);
        }
        require(!self.algorithms.is_empty(), ".algorithms", &"[]", words::ALGORITHMS);
        if let Some(symmetric) = self.algorithms.iter().find(|it| it.is_symmetric()) {
            require(self.jwks_uri.is_none(), ".algorithms", &format!("{symmetric:?}"), words::SYMMETRIC);
        }
        require(self.leeway <= MAX_LEEWAY, ".leeway", &self.leeway, words::LEEWAY);
        require(self.jwks_uri.is_some() != self.jwks_from.is_some(), "", &"it", words::ONE_KEY_SET);
        if let Some(uri) = &self.jwks_uri {
            require(is_trustworthy(uri), ".jwksUri", &quoted(uri), words::URI);
        }
        require(self.ca_from.is_none() || self.jwks_uri.is_some(), ".caFrom", &"it", words::CA);
        for (field, mounted) in [(".jwksFrom", &self.jwks_from), (".caFrom", &self.ca_from)] {
            if let Some(Mounted::SecretKeyRef(SecretKey { key, .. })) = mounted {
                require(is_data_key(key), &format!("{field}.secretKeyRef.key"), &quoted(key), words::SECRET_KEY);
            }
        }
        require(!self.token.is_empty(), ".token", &"[]", words::NO_PLACE);
        for (index, source) in self.token.iter().enumerate() {
            let (kind, name, good, want) = match source {
                TokenSource::Header(name) => ("header", name, is_token(name), words::HEADER),
                TokenSource::Query(name) => ("query", name, !name.is_empty(), words::QUERY),
                TokenSource::Cookie(name) => ("cookie", name, is_token(name), words::COOKIE),
                TokenSource::Subprotocol(prefix) => ("subprotocol", prefix, is_token(prefix), words::SUBPROTOCOL),
            };
            require(good, &format!(".token[{index}].{kind}"), &quoted(name), want);
        }
        faults
    }
}

/// Whether what comes from an address can be trusted: nobody on the way can change it.
fn is_trustworthy(uri: &str) -> bool {
    let host = |rest: &str| rest.split(['/', '?', '#']).next().unwrap_or_default().to_owned();
    if let Some(rest) = uri.strip_prefix("https://") {
        let host = host(rest);
        return !host.is_empty() && !host.contains('@') && !uri.contains(char::is_whitespace);
    }
    let Some(rest) = uri.strip_prefix("http://") else { return false };
    let host = host(rest);
    let name =
        host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(&*host, |h| h.0);
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    name == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// A token of RFC 9110, as the names of headers and cookies are.
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A key in a Secret, which is a file's name and no path.
fn is_data_key(key: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !key.is_empty() && !key.starts_with("..") && key != "." && key.bytes().all(plain)
}

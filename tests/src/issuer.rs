//! An issuer of tokens: its keys, and the server at which it publishes them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::Ed25519KeyPair;
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::until;

/// The issuer's name, which is the claim `iss`.
pub const ISSUER: &str = "https://idp.example.com/";
/// Whom its tokens are for: the claim `aud`.
pub const AUDIENCE: &str = "chat";

/// A key that signs tokens.
#[derive(Clone, Debug)]
pub struct SigningKey {
    kid: String,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl SigningKey {
    /// A new key for RS256, ES256, ES384 or `EdDSA`.
    pub fn new(kid: &str, algorithm: Algorithm) -> Self {
        let pem = |kind| KeyPair::generate_for(kind).expect("a key").serialize_pem();
        let key = match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem(&PKCS_RSA_SHA256).as_bytes()).expect("an RSA key"),
            Algorithm::ES256 => EncodingKey::from_ec_pem(pem(&PKCS_ECDSA_P256_SHA256).as_bytes()).expect("an EC key"),
            Algorithm::ES384 => EncodingKey::from_ec_pem(pem(&PKCS_ECDSA_P384_SHA384).as_bytes()).expect("an EC key"),
            Algorithm::EdDSA => {
                let pair = Ed25519KeyPair::generate().expect("a key");
                EncodingKey::from_ed_der(pair.to_pkcs8v1().expect("a key in DER").as_ref())
            }
            other => panic!("no keys are made for {other:?}"),
        };
        Self { kid: kid.to_owned(), algorithm, key }
    }

    /// A secret for HS256.
    pub fn secret(kid: &str, secret: &[u8]) -> Self {
        Self { kid: kid.to_owned(), algorithm: Algorithm::HS256, key: EncodingKey::from_secret(secret) }
    }

    /// The same key for another algorithm of its kind.
    #[must_use]
    pub fn signing(self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self }
    }

    /// What checks its signatures, as a JSON web key: of a secret, the secret.
    pub fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).expect("a JSON web key");
        jwk.common.key_id = Some(self.kid.clone());
        serde_json::to_value(jwk).expect("JSON")
    }

    /// A token of these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with(&Header { kid: Some(self.kid.clone()), ..Header::new(self.algorithm) }, claims)
    }

    /// A token with another header.
    pub fn sign_with(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &self.key).expect("a token")
    }

    /// A token for a user, as it should be.
    pub fn token(&self, user: &str) -> String {
        self.sign(&claims(user))
    }
}

/// The claims of a token for a user, good for ten minutes.
pub fn claims(user: &str) -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": user, "exp": now() + 600})
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_secs()).expect("a time of this age")
}

/// A key set of these keys.
pub fn key_set(keys: &[&SigningKey]) -> String {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()}).to_string()
}

/// The server at which keys are published. It ends when it is dropped.
#[derive(Debug)]
pub struct Publisher {
    /// Where it listens.
    pub address: SocketAddr,
    shown: Arc<Mutex<Shown>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shown {
    answer: (StatusCode, String),
    asked: u64,
}

impl Publisher {
    /// Publishes these keys on a free port.
    pub async fn start(keys: &[&SigningKey]) -> Self {
        Self::start_at(crate::ports::free(), keys).await
    }

    /// Publishes them where somebody else did before.
    pub async fn start_at(address: SocketAddr, keys: &[&SigningKey]) -> Self {
        let bind = async || TcpListener::bind(address).await.map_err(|error| error.to_string());
        let listener = until("the publisher's port is free", bind).await;
        let shown = Arc::new(Mutex::new(Shown { answer: (StatusCode::OK, key_set(keys)), asked: 0 }));
        let routes = Self::routes(&shown);
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.expect("a server") });
        Self { address, shown, task }
    }

    /// What answers, for another way to serve it.
    pub fn routes_of(keys: &[&SigningKey]) -> Router {
        Self::routes(&Arc::new(Mutex::new(Shown { answer: (StatusCode::OK, key_set(keys)), asked: 0 })))
    }

    fn routes(shown: &Arc<Mutex<Shown>>) -> Router {
        let shown = Arc::clone(shown);
        let answer = move || {
            let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            shown.asked += 1;
            let (status, body) = shown.answer.clone();
            std::future::ready((status, [(CONTENT_TYPE, "application/json")], body))
        };
        Router::new().route("/jwks.json", get(answer))
    }

    /// Its address.
    pub fn uri(&self) -> String {
        format!("http://{}/jwks.json", self.address)
    }

    /// Publishes other keys from now on.
    pub fn publish(&self, keys: &[&SigningKey]) {
        self.answer(StatusCode::OK, &key_set(keys));
    }

    /// Answers so from now on.
    pub fn answer(&self, status: StatusCode, body: &str) {
        self.shown().answer = (status, body.to_owned());
    }

    /// How often it was asked.
    pub fn asked(&self) -> u64 {
        self.shown().asked
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A token whose header and claims nobody has signed.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}.", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()))
}

fn base64url(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    bytes
        .chunks(3)
        .flat_map(|three| {
            let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
            (0..=three.len()).map(move |digit| char::from(digits[(bits >> (18 - 6 * digit)) as usize & 63]))
        })
        .collect()
}

//! Tokens of clients and of the operator, and sets of keys: nothing that was not signed is believed.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ring::settings::Jwt;
use sidecar::auth::control::{Asked, ControlAuth};
use sidecar::{jwks, token};

const NOW: u64 = 1_800_000_000;

static CONTROL: LazyLock<ControlAuth> = LazyLock::new(|| {
    let key = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/control.pem"));
    assert!(key.is_file(), "the public key of nobody");
    ControlAuth::new(key)
});
static JWT: LazyLock<Jwt> = LazyLock::new(|| {
    let settings = r#"{"issuer": "https://idp.example.com", "algorithms": ["RS256", "PS256", "ES256", "EdDSA"],
        "jwksUri": "https://idp.example.com/jwks.json"}"#;
    serde_json::from_str(settings).expect("settings of a pool")
});

// The first line is a token, the rest a set of keys.
fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (token, set) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let keys = jwks::parse(set).unwrap_or_default();
    // Without a key nothing is proved. With the fuzzer's own keys it may yet sign something.
    assert!(token::check(token, &JWT, &[], NOW).is_err());
    let _ = token::check(token, &JWT, &keys, NOW);
    if let Ok(token) = std::str::from_utf8(token) {
        let asked = Asked { uid: "pod-1", request: "PUT /v1/placement" };
        assert!(CONTROL.signed(Some(&format!("Bearer {token}")), asked, NOW).is_err());
    }
});

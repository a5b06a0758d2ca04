//! Keys are hashed as published vectors say.

use proptest::prelude::*;
use ring::hash::SipKey;
use ring::{KeyHash, KeyHasher};

fn sip_key(text: &str) -> SipKey {
    text.to_owned().try_into().expect("32 hexadecimal digits")
}

#[test]
fn xxh64_agrees_with_its_vectors() {
    assert_eq!(KeyHasher::Xxh64.hash(b""), KeyHash(0xef46_db37_51d8_e999));
    assert_eq!(KeyHasher::Xxh64.hash(b"user-1"), KeyHash(0xa173_746b_114c_6be8));
}

/// Appendix A of "`SipHash`: a fast short-input PRF" by Aumasson and Bernstein.
#[test]
fn siphash_agrees_with_the_vector_of_its_authors() {
    let hasher = KeyHasher::SipHash24(sip_key("000102030405060708090a0b0c0d0e0f"));
    let message: Vec<u8> = (0..15).collect();
    assert_eq!(hasher.hash(&message), KeyHash(0xa129_ca61_49be_45e5));
}

#[test]
fn a_hasher_reads_and_writes_as_json() {
    let sip = KeyHasher::SipHash24(sip_key("000102030405060708090a0b0c0d0e0f"));
    for (hasher, json) in
        [(KeyHasher::Xxh64, r#""xxh64""#), (sip, r#"{"sipHash24":"000102030405060708090a0b0c0d0e0f"}"#)]
    {
        assert_eq!(serde_json::to_string(&hasher).expect("it writes"), json);
        assert_eq!(serde_json::from_str::<KeyHasher>(json).expect("it reads"), hasher);
    }
}

#[test]
fn a_secret_of_another_length_or_alphabet_is_refused_with_its_length() {
    for (text, length) in [("", "0"), ("00", "2"), ("+00102030405060708090a0b0c0d0e0f", "32")] {
        let error = SipKey::try_from(text.to_owned()).expect_err(text).to_string();
        assert!(
            error.contains("32 hexadecimal digits") && error.contains(&format!("not {length} characters")),
            "{error}"
        );
    }
}

#[test]
fn a_secret_is_never_printed() {
    let printed = format!("{:?}", KeyHasher::SipHash24(sip_key("000102030405060708090a0b0c0d0e0f")));
    assert_eq!(printed, "SipHash24(SipKey(..))");
}

proptest! {
    #[test]
    fn every_secret_survives_being_written(secret in any::<u128>()) {
        let text = format!("{secret:032x}");
        prop_assert_eq!(String::from(sip_key(&text)), text);
    }
}

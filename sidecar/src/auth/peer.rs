//! Proof between sidecars: an HMAC by the pool's secret over everything in a request that a peer relies on.

use std::path::PathBuf;

use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};

use ring::wire::header;

use super::{KeyFile, Seen, hex, since_1970_ms};

/// How old a proof may be, and how far clocks may be apart, in milliseconds.
const WINDOW: u64 = 10_000;
/// The shortest secret that is taken, in bytes.
const SHORTEST: usize = 16;

/// Signs requests to peers and checks theirs.
#[derive(Debug)]
pub struct PeerAuth {
    keys: KeyFile<Key>,
    used: Seen<(u64, u64)>,
}

/// The parts of a request that its proof covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered<'a> {
    /// The method.
    pub method: &'a str,
    /// The target, with its query.
    pub target: &'a str,
    /// The values of [`HEADERS`], empty where absent.
    pub headers: [&'a [u8]; HEADERS.len()],
}

/// The headers that a proof covers.
pub const HEADERS: [&str; 7] = {
    use header::{DIGEST, EPOCH, FALLBACK, FROM, KEY, TARGET, VERIFIED};
    [FROM, TARGET, KEY, EPOCH, FALLBACK, DIGEST, VERIFIED]
};
/// So many of them always count. Those behind them count where they are there: a sidecar that is older than such a header
/// still understands the proofs of requests without it.
const ALWAYS: usize = 6;

impl PeerAuth {
    /// Uses the secrets in a file, one a line: the first signs, each of them is believed, so that they can be renewed.
    pub fn new(file: PathBuf) -> Self {
        Self { keys: KeyFile::new(file, secrets), used: Seen::default() }
    }

    /// Adds the proof to a request's headers, if there is a secret.
    pub fn prove(&self, method: &str, target: &str, headers: &mut Vec<(&'static str, String)>) {
        let value = |name| headers.iter().find(|(n, _)| *n == name).map_or(b"".as_slice(), |(_, v)| v.as_bytes());
        let covered = Covered { method, target, headers: HEADERS.map(value) };
        let proof = self.sign(&covered, since_1970_ms());
        headers.extend(proof.map(|proof| (header::AUTH, proof)));
    }

    /// The proof for a request. `None` without a secret. `now` is in milliseconds since 1970.
    pub fn sign(&self, covered: &Covered<'_>, now: u64) -> Option<String> {
        let keys = self.keys.keys();
        let nonce = rand::random::<u64>();
        let mac = hmac::sign(keys.first()?, &message(covered, now, nonce));
        Some(format!("{now}.{nonce:016x}.{}", hex(mac.as_ref())))
    }

    /// Whether a proof holds. Each holds once.
    pub fn verify(&self, proof: &[u8], covered: &Covered<'_>, now: u64) -> bool {
        let Some((time, nonce, mac)) = parse(proof) else { return false };
        if time.abs_diff(now) > WINDOW {
            return false;
        }
        let message = message(covered, time, nonce);
        let holds = self.keys.keys().iter().any(|key| hmac::verify(key, &message, &mac).is_ok());
        holds && self.used.first_use((time, nonce), time + WINDOW, now)
    }
}

fn parse(proof: &[u8]) -> Option<(u64, u64, Vec<u8>)> {
    let mut parts = std::str::from_utf8(proof).ok()?.split('.');
    let (time, nonce, mac) = (parts.next()?, parts.next()?, parts.next()?);
    let digits = mac.as_bytes().chunks_exact(2);
    if parts.next().is_some() || !digits.remainder().is_empty() {
        return None;
    }
    let mac = digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect::<Option<_>>()?;
    Some((time.parse().ok()?, u64::from_str_radix(nonce, 16).ok()?, mac))
}

/// Each part with its length before it, so that no two requests have the same message.
fn message(covered: &Covered<'_>, time: u64, nonce: u64) -> Vec<u8> {
    let mut message = Vec::with_capacity(256);
    message.extend_from_slice(&time.to_le_bytes());
    message.extend_from_slice(&nonce.to_le_bytes());
    let (always, later) = covered.headers.split_at(ALWAYS);
    let later = later.iter().filter(|value| !value.is_empty());
    for part in [covered.method.as_bytes(), covered.target.as_bytes()].iter().chain(always).chain(later) {
        message.extend_from_slice(&(part.len() as u64).to_le_bytes());
        message.extend_from_slice(part);
    }
    message
}

fn secrets(file: &[u8]) -> Option<Vec<Key>> {
    let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    lines.map(|line| (line.len() >= SHORTEST).then(|| Key::new(HMAC_SHA256, line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;
    const COVERED: Covered<'_> =
        Covered { method: "GET", target: "/chat?x=1", headers: [b"pod-1", b"pod-2", b"ann", b"7", b"", b"", b""] };

    fn auth(secrets: &str) -> (PeerAuth, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), secrets).unwrap();
        (PeerAuth::new(folder.path().join("secret")), folder)
    }

    #[test]
    fn a_proof_holds_once_for_the_request_that_was_signed() {
        let (auth, _folder) = auth("0123456789abcdef\n");
        let proof = auth.sign(&COVERED, NOW).unwrap();
        assert!(auth.verify(proof.as_bytes(), &COVERED, NOW + 100));
        assert!(!auth.verify(proof.as_bytes(), &COVERED, NOW + 100), "replayed");
    }

    #[test]
    fn a_change_to_anything_that_is_covered_breaks_the_proof() {
        let (auth, _folder) = auth("0123456789abcdef");
        let proof = auth.sign(&COVERED, NOW).unwrap();
        let mut others = vec![Covered { method: "PUT", ..COVERED }, Covered { target: "/chat?x=2", ..COVERED }];
        for index in 0..HEADERS.len() {
            let mut headers = COVERED.headers;
            headers[index] = b"other";
            others.push(Covered { headers, ..COVERED });
        }
        for other in others {
            assert!(!auth.verify(proof.as_bytes(), &other, NOW), "{other:?}");
        }
        assert!(!auth.verify(proof.as_bytes(), &COVERED, NOW + WINDOW + 1), "too old");
        assert!(!auth.verify(b"1.2.3", &COVERED, NOW) && !auth.verify(b"", &COVERED, NOW));
        assert!(auth.verify(proof.as_bytes(), &COVERED, NOW));
    }

    #[test]
    fn another_pools_secret_proves_nothing_and_an_older_one_still_does() {
        let (signer, _a) = auth("0123456789abcdef");
        let (stranger, _b) = auth("fedcba9876543210");
        let (renewed, _c) = auth("fedcba9876543210\n0123456789abcdef\n");
        let proof = signer.sign(&COVERED, NOW).unwrap();
        assert!(!stranger.verify(proof.as_bytes(), &COVERED, NOW));
        assert!(renewed.verify(proof.as_bytes(), &COVERED, NOW));
    }

    #[test]
    fn a_short_secret_is_no_secret() {
        let (auth, _folder) = auth("short");
        assert_eq!(auth.sign(&COVERED, NOW), None);
    }
}

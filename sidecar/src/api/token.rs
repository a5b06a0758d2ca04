//! The tokens of the local API.

use std::path::{Path, PathBuf};

use crate::auth::KeyFile;
use crate::prestop;

/// The token's name in the folder that the app's container shares.
const FILE: &str = "api-token";
/// The shortest token that is taken, in bytes.
const SHORTEST: usize = 16;

/// A file of tokens, one a line: each of them is believed, so that they can be renewed.
pub fn tokens(file: PathBuf) -> KeyFile<Vec<u8>> {
    KeyFile::new(file, parse)
}

fn parse(file: &[u8]) -> Option<Vec<Vec<u8>>> {
    let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    lines.map(|line| (line.len() >= SHORTEST).then(|| line.to_vec())).collect()
}

/// Puts a token into the folder that the app's container shares, if there is none: apps remember it, and a sidecar may
/// start again under them.
pub fn install(folder: &Path) -> std::io::Result<PathBuf> {
    let file = folder.join(FILE);
    let kept = std::fs::read(&file).ok().and_then(|bytes| parse(&bytes)).is_some_and(|tokens| !tokens.is_empty());
    if !kept {
        std::fs::create_dir_all(folder)?;
        let token = format!("{:032x}\n", rand::random::<u128>());
        prestop::put(folder, FILE, 0o644, |file| std::fs::write(file, &token))?;
    }
    Ok(file)
}

/// Whether a token is one of these; how long that takes says nothing of them.
pub(super) fn is_one_of(given: &[u8], tokens: &[Vec<u8>]) -> bool {
    tokens.iter().any(|token| aws_lc_rs::constant_time::verify_slices_are_equal(given, token).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = install(folder.path()).unwrap();
        let token = std::fs::read(&file).unwrap();
        install(folder.path()).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), token);
        assert!(is_one_of(token.trim_ascii(), &tokens(file).keys()));
    }

    #[test]
    fn a_short_token_is_no_token() {
        assert_eq!(parse(b"short\n"), None);
        let given = b"0123456789abcdef";
        assert!(is_one_of(given, &parse(b"0123456789abcdef\n\nfedcba9876543210\n").unwrap()));
        assert!(!is_one_of(b"", &parse(b"").unwrap()));
    }
}

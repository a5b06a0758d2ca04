//! What a restarted operator goes on from, in a file beside the members file.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use ring::Placement;

use crate::driver::{SaveError, Store};
use crate::rebalance::Saved;

/// The state file of a members file.
#[derive(Clone, Debug)]
pub struct StateFile(PathBuf);

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a state.
    #[error("{}: is not a state: {source}; remove it to go on from what the sidecars report", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It cannot be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StateFile {
    /// The one that belongs to a members file.
    pub fn beside(members: &Path) -> Self {
        let mut name = members.as_os_str().to_owned();
        name.push(".state.json");
        Self(name.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Reads it; `None` when there is none.
    pub fn load(&self) -> Result<Option<Saved>, StateError> {
        let text = match fs::read(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Read { path: self.0.clone(), source }),
        };
        let saved = serde_json::from_slice(&text);
        saved.map(Some).map_err(|source| StateError::Malformed { path: self.0.clone(), source })
    }

    /// Replaces it at once: whoever reads it, also after a crash, sees the old or the new one.
    pub fn replace(&self, saved: &Saved) -> Result<(), StateError> {
        let failed = |source| StateError::Write { path: self.0.clone(), source };
        let mut draft = self.0.clone().into_os_string();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        let text = serde_json::to_vec_pretty(saved).map_err(|error| failed(error.into()))?;
        let mut file = private(&draft).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&draft, &self.0).map_err(failed)?;
        let folder = self.0.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

impl Store for StateFile {
    fn place(&self) -> String {
        self.0.display().to_string()
    }

    async fn save(&mut self, saved: &Saved, _: &Placement) -> Result<(), SaveError> {
        self.replace(saved).map_err(|error| SaveError::Failed(error.to_string()))
    }
}

/// A new file for its owner's eyes: the state holds the secret of the hash.
fn private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use ring::Version;

    use super::*;

    #[test]
    fn what_was_saved_is_read_back_and_nobody_else_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFile::beside(&folder.path().join("members.yaml"));
        assert!(state.load().unwrap().is_none());
        for epoch in [7, 8] {
            let saved = Saved { pool_uid: "pool".into(), version: Version { term: 3, epoch }, ..Saved::default() };
            state.replace(&saved).unwrap();
            assert_eq!(state.load().unwrap(), Some(saved));
        }
        assert_eq!(fs::metadata(state.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left behind");
    }

    #[test]
    fn a_file_that_is_no_state_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFile::beside(&folder.path().join("members.yaml"));
        fs::write(state.path(), "{\"poolUid\": ").unwrap();
        let refused = state.load().unwrap_err().to_string();
        assert!(refused.contains("members.yaml.state.json: is not a state"), "{refused}");
    }
}

//! Following the pool file and the members file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// A file system may give no notice of a change (network mounts): so the files are read this often anyway.
const POLL: Duration = Duration::from_secs(1);
/// A file that is still being written changes again within this time.
const QUIET: Duration = Duration::from_millis(100);

/// A file that has changed, or that can no longer be read.
#[derive(Debug)]
pub struct Change {
    /// Its place in the list that was given.
    pub index: usize,
    /// Its text.
    pub text: std::io::Result<String>,
}

/// Follows files until `changes` is closed. `known` are the texts already read.
///
/// Folders are watched, not files: editors replace a file by renaming another over it.
pub async fn follow(files: Vec<PathBuf>, known: Vec<String>, changes: mpsc::Sender<Change>) {
    let (notice, mut noticed) = mpsc::channel(1);
    let watcher = watcher(&files, notice);
    let mut known: Vec<Result<String, String>> = known.into_iter().map(Ok).collect();
    loop {
        tokio::select! {
            () = changes.closed() => break,
            Some(()) = noticed.recv() => {}
            () = tokio::time::sleep(POLL) => {}
        }
        for (index, file) in files.iter().enumerate() {
            let Some(text) = read_quiet(file).await else { continue };
            let seen = text.as_ref().map(Clone::clone).map_err(ToString::to_string);
            if known[index] == seen {
                continue;
            }
            known[index] = seen;
            if changes.send(Change { index, text }).await.is_err() {
                break;
            }
        }
    }
    drop(watcher);
}

/// Reads a file that stands still; `None` while it changes.
async fn read_quiet(file: &Path) -> Option<std::io::Result<String>> {
    let first = tokio::fs::read_to_string(file).await;
    tokio::time::sleep(QUIET).await;
    let second = tokio::fs::read_to_string(file).await;
    match (first, second) {
        (Ok(first), Ok(second)) if first != second => None,
        // A file that is being replaced may be missing for a moment.
        (Err(_), Ok(_)) | (Ok(_), Err(_)) => None,
        (_, second) => Some(second),
    }
}

fn watcher(files: &[PathBuf], notice: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let wake = move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            // A notice that waits already says the same.
            let _ = notice.try_send(());
        }
    };
    let watched = notify::recommended_watcher(wake).and_then(|mut watcher| {
        let mut folders: Vec<&Path> = files.iter().filter_map(|file| file.parent()).collect();
        folders.dedup();
        for folder in folders {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    });
    watched.inspect_err(|error| tracing::warn!(%error, "files are only read once a second")).ok()
}

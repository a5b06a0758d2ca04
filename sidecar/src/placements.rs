//! Taking placements in: pushed by the operator, read from the mounted file, and remembered over a restart.
//!
//! The newest wins, wherever it comes from. A file that vanishes or cannot be read changes nothing.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use ring::placement::PlacementError;
use ring::{Placement, Version};
use tokio::sync::watch;

use crate::metrics::PlacementResult;
use crate::sidecar::Sidecar;

/// How often the placement file is looked at. The kubelet itself takes up to a minute to update a mounted ConfigMap, so
/// this only matters when the operator cannot push.
const POLL: Duration = Duration::from_secs(1);
/// The largest placement, unpacked, in bytes.
const LARGEST: u64 = 64 * 1024 * 1024;
const KEPT: &str = "placement.json";

/// Why a placement was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Not a placement.
    #[error("this is not a placement: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A placement that contradicts itself.
    #[error("this placement cannot be used: {0}")]
    Invalid(#[from] PlacementError),
    /// Settings that contradict themselves.
    #[error("the settings in this placement cannot be used: {0}")]
    Settings(#[from] crate::key::SpecError),
    /// Another pool's.
    #[error("the placement is for the pool {got:?}, this sidecar belongs to {mine:?}")]
    OtherPool {
        /// The placement's pool UID.
        got: String,
        /// This sidecar's.
        mine: String,
    },
    /// Older than what is in force.
    #[error("the placement has {got}, this sidecar already has {have}")]
    Older {
        /// The placement's.
        got: Version,
        /// The one in force.
        have: Version,
    },
    /// The same version with other contents: two leaders wrote it.
    #[error("the placement has {0} like the one in force, but says something else; publish it under a new epoch")]
    Conflicting(Version),
}

impl Refused {
    /// The status to answer with, its kind, and its name in metrics.
    pub fn classify(&self) -> (StatusCode, PlacementResult) {
        match self {
            Self::Malformed(_) | Self::Invalid(_) | Self::Settings(_) => {
                (StatusCode::BAD_REQUEST, PlacementResult::Malformed)
            }
            Self::OtherPool { .. } => (StatusCode::CONFLICT, PlacementResult::OtherPool),
            Self::Older { .. } => (StatusCode::CONFLICT, PlacementResult::Older),
            Self::Conflicting(_) => (StatusCode::CONFLICT, PlacementResult::Conflicting),
        }
    }
}

/// Checks a placement and puts it in force if it is newer. The same one again is fine.
pub fn accept(sidecar: &Sidecar, placement: Placement) -> Result<(), Refused> {
    let outcome = install(sidecar, placement);
    let result = match &outcome {
        Ok(true) => PlacementResult::Accepted,
        Ok(false) => PlacementResult::Known,
        Err(refused) => refused.classify().1,
    };
    sidecar.metrics.placement(result);
    if outcome? {
        sidecar.peers.forgive_all();
        sidecar.evictions.notify_one();
        sidecar.jwks.wake();
        sidecar.redis.wake();
        keep(sidecar);
    }
    Ok(())
}

fn install(sidecar: &Sidecar, placement: Placement) -> Result<bool, Refused> {
    crate::key::check(&placement.settings.key)?;
    let compiled = Arc::new(placement.compile()?);
    let mut registry = sidecar.registry();
    let view = Arc::clone(registry.view());
    if let Some(current) = &view.placement {
        let (mine, got) = (view.pool_uid(), &compiled.placement().pool_uid);
        if mine != got {
            return Err(Refused::OtherPool { got: got.clone(), mine: mine.to_owned() });
        }
        let (have, got) = (current.version(), compiled.version());
        if got < have {
            return Err(Refused::Older { got, have });
        }
        if got == have {
            let same = current.placement() == compiled.placement();
            return if same { Ok(false) } else { Err(Refused::Conflicting(got)) };
        }
    }
    registry.place(&compiled);
    let (slot, moving) = (registry.view().slot, compiled.moving());
    drop(registry);
    sidecar.retirement().follow(view.slot, slot, moving, Instant::now());
    sidecar.messages.misplaced.notify_one();
    // A holder of a slot that is being emptied has handed it over; a grant under the old version is void.
    tracing::info!(version = %compiled.version(), slot = ?slot.map(|slot| slot.0), "a new placement is in force");
    Ok(true)
}

/// Reads what was kept before a restart, and the mounted file, before anything listens.
pub fn load(sidecar: &Sidecar) {
    let kept = sidecar.config.state_dir.as_ref().map(|folder| folder.join(KEPT)).filter(|file| file.exists());
    if kept.is_some() {
        sidecar.registry().note_restart();
    }
    for file in kept.iter().chain(&sidecar.config.placement) {
        read(sidecar, file);
    }
}

/// Follows the mounted file until `stop` turns true.
pub async fn follow(sidecar: Arc<Sidecar>, file: PathBuf, mut stop: watch::Receiver<bool>) {
    let mut seen = stamp(&file);
    loop {
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let now = stamp(&file);
        if now.is_some() && now != seen {
            read(&sidecar, &file);
        }
        seen = now.or(seen);
    }
}

fn stamp(file: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(sidecar: &Sidecar, file: &Path) {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => {
            sidecar.metrics.placement(PlacementResult::Malformed);
            tracing::error!(file = %file.display(), %error, "the placement file cannot be read; nothing changes");
            return;
        }
    };
    match parse(&bytes) {
        Ok(placement) => match accept(sidecar, placement) {
            // An older file is no mistake: the operator's push is faster than the kubelet.
            Ok(()) | Err(Refused::Older { .. }) => {}
            Err(error) => tracing::error!(file = %file.display(), %error, "the placement file was refused"),
        },
        Err(error) => {
            sidecar.metrics.placement(PlacementResult::Malformed);
            tracing::error!(file = %file.display(), %error, "the placement file was refused");
        }
    }
}

/// A placement as a file holds it: JSON, compressed with gzip where a ConfigMap's size counts.
fn parse(bytes: &[u8]) -> Result<Placement, Refused> {
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let unpacked = flate2::read::GzDecoder::new(bytes).take(LARGEST);
        return Ok(serde_json::from_reader(unpacked)?);
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// Keeps the placement in force for the next start.
fn keep(sidecar: &Sidecar) {
    let Some(folder) = &sidecar.config.state_dir else { return };
    let Some(placement) = sidecar.view().placement.clone() else { return };
    if let Err(error) = write_whole(folder, &folder.join(KEPT), placement.placement()) {
        tracing::error!(folder = %folder.display(), %error, "the placement cannot be kept for the next start");
    }
}

/// Writes beside the file and renames, so that a reader never sees a part.
fn write_whole(folder: &Path, file: &PathBuf, placement: &Placement) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let partial = file.with_extension("json.partial");
    std::fs::write(&partial, serde_json::to_vec(placement)?)?;
    std::fs::rename(partial, file)
}

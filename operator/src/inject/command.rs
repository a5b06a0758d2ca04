//! `wspool-operator inject`: manifests in, manifests with the sidecar out.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use super::manifest::{Fault, Manifest, Pools};
use super::{POOL_LABEL, Sidecar};

/// Puts the sidecar into the manifests of workloads whose pods carry the label wspool.dev/pool. A WebSocketPool in the
/// same manifests says the app's port and the drain timeout.
#[derive(Clone, Debug, clap::Args)]
pub struct InjectArgs {
    /// A manifest: YAML or JSON, with any number of documents; - is the standard input. Can be repeated.
    #[arg(short = 'f', long, env = "WSPOOL_FILENAME", value_name = "FILE", required = true)]
    pub filename: Vec<PathBuf>,
    /// What the pods get.
    #[command(flatten)]
    pub sidecar: Sidecar,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// A manifest cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Manifests are wrong, or have pods that cannot be injected.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
    /// The result cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

/// Reads the manifests and writes them to `out`; says on `log` what was injected. Writes nothing if any pod is refused.
pub fn run(
    args: &InjectArgs,
    mut input: impl Read,
    mut out: impl Write,
    mut log: impl Write,
) -> Result<(), InjectError> {
    let mut manifests = Vec::new();
    let mut pools = Pools::default();
    let mut faults = Vec::new();
    for path in &args.filename {
        let text = if path.as_os_str() == "-" { io::read_to_string(&mut input) } else { std::fs::read_to_string(path) };
        let text = text.map_err(|error| InjectError::Read { path: path.clone(), error })?;
        let manifest = Manifest::read(&path.display().to_string(), &text);
        match manifest.and_then(|manifest| manifest.collect_pools(&mut pools).map(|()| manifest)) {
            Ok(manifest) => manifests.push(manifest),
            Err(fault) => faults.push(fault),
        }
    }

    let mut injected = Vec::new();
    let mut text = String::new();
    for manifest in &mut manifests {
        manifest.inject(&pools, &args.sidecar, &mut injected, &mut faults);
        manifest.write(&mut text);
    }
    if !faults.is_empty() {
        return Err(InjectError::Faults(faults));
    }
    for injected in &injected {
        match &injected.injection {
            Some(injection) => writeln!(
                log,
                "{}: injected for the pool {}; the app is container {}, port {}",
                injected.object, injection.pool, injection.container, injection.port
            )?,
            None => writeln!(log, "{}: has the sidecar already", injected.object)?,
        }
    }
    if injected.is_empty() {
        writeln!(log, "nothing to inject: no pod template has the label {POOL_LABEL}")?;
    }
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

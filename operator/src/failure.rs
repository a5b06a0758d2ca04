//! Why a command ended in failure.

use std::io;

use crate::inject::command::InjectError;
use crate::{cluster, ownership, standalone};

/// Why a command ended in failure.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// `run`.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// `standalone`.
    #[error(transparent)]
    Standalone(#[from] standalone::Error),
    /// `owner` and `plan`.
    #[error(transparent)]
    Ownership(#[from] ownership::Error),
    /// `inject`.
    #[error(transparent)]
    Inject(#[from] InjectError),
    /// `--log` is not a filter.
    #[error("--log: {0}; write a level like info, or a filter like operator=debug")]
    Log(#[from] tracing_subscriber::filter::ParseError),
    /// Input, output or the operating system failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Failure {
    /// Whether the output was closed by its reader.
    pub fn is_broken_pipe(&self) -> bool {
        match self {
            Self::Io(error)
            | Self::Ownership(ownership::Error::Io(error))
            | Self::Inject(InjectError::Write(error)) => error.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }
}

//! Wires the sidecar together.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use sidecar::api;
use sidecar::cli::{Cli, Command};
use sidecar::process;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Gives back what the allocator keeps for this thread. By itself it gives nothing back while nothing is asked for, and
/// what a storm of handshakes has left stays: bench/README.md has the figures.
fn release_memory() {
    #[expect(unsafe_code, reason = "the one call of the allocator that has no safe form")]
    // SAFETY: it takes no pointer, and works on the calling thread's own heap.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("WSPOOL_LOG").unwrap_or_else(|_| "info".into()))
        .init();
    let Cli { command, args } = Cli::parse();
    match command {
        Some(Command::Prestop(hook)) => {
            return hook.run().unwrap_or_else(|error| {
                tracing::error!("the hook before failed: {error}");
                ExitCode::FAILURE
            });
        }
        Some(Command::Openapi) => {
            println!("{:#}", serde_json::json!(api::document()));
            return ExitCode::SUCCESS;
        }
        None => {}
    }
    match args.check().map_err(process::Error::from).and_then(|config| process::run(config, release_memory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

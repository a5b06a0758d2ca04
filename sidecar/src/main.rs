//! Wires the sidecar together.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use sidecar::api;
use sidecar::cli::{Cli, Command};
use sidecar::process;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    match args.check().map_err(process::Error::from).and_then(process::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

//! Runs a command beside a control plane, and ends both: `tests/control-plane/run` starts it inside its namespaces.

use std::process::ExitCode;
use std::time::Instant;

use harness::control_plane::{ControlPlane, access};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("control-plane COMMAND...: see tests/control-plane/run");
        return ExitCode::from(2);
    };
    let mut command = Command::new(program);
    command.args(arguments);
    // The first process of a namespace gets only the signals that it asks for.
    let mut interrupted = signal(SignalKind::interrupt()).expect("SIGINT can be caught");
    let mut terminated = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
    let ended = async {
        tokio::select! {
            _ = interrupted.recv() => (),
            _ = terminated.recv() => (),
        }
        ExitCode::from(130)
    };
    tokio::select! {
        code = ended => code,
        code = run(&mut command) => code,
    }
}

async fn run(command: &mut Command) -> ExitCode {
    let began = Instant::now();
    let control_plane = ControlPlane::start().await;
    eprintln!("control plane: up after {:.1} s", began.elapsed().as_secs_f32());
    let access = control_plane.access();
    command.env(access::FOLDER, access.folder()).env("KUBECONFIG", access.kubeconfig());
    let status = match command.status().await {
        Ok(status) => status,
        Err(error) => {
            eprintln!("control plane: cannot run the command: {error}");
            return ExitCode::from(127);
        }
    };
    if !status.success() {
        control_plane.show_complaints();
    }
    // Without a code it was ended by a signal.
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

//! `make demo`: a pool that scales, rolls, drains and loses a server under a thousand live connections.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use wspool_examples::demo::acts::{Plan, play};
use wspool_examples::demo::process::Launcher;
use wspool_examples::demo::screen::Screen;
use wspool_examples::demo::{Error, process};

/// However things go, the demo ends by then.
const LIMIT: Duration = Duration::from_mins(3);

/// Shows what wspool does, on real processes and real connections.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many clients
    #[arg(long, default_value_t = 1_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(2..=4_000))]
    connections: usize,
    /// How many connections are moved per second
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a program that dies with its parent; the demo starts its processes through it
    #[command(hide = true)]
    Leash {
        /// The parent's process id
        parent: u32,
        /// The program
        program: PathBuf,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(Command::Leash { parent, program, arguments }) = options.command {
        let error = process::leash(parent, &program, &arguments);
        eprintln!("cannot become {}: {error}", program.display());
        return ExitCode::FAILURE;
    }
    let plan = Plan { connections: options.connections, rate: options.rate };
    match demo(plan) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the demo could not go on: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the demo and prints its last lines. Says whether every act showed what it should.
fn demo(plan: Plan) -> Result<bool, Error> {
    process::raise_open_files(plan.connections)?;
    let own = std::env::current_exe().map_err(Error::io("looking for the demo's own binary"))?;
    let folder = tempfile::tempdir().map_err(Error::io("making a folder"))?;
    let launcher = Launcher::new(own, folder.path().to_owned());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::io("starting the runtime"))?;
    let screen = Screen::new();
    let mut outcomes = Vec::new();
    // On this thread, and not spawned: the processes die with the thread that started them.
    let played = runtime.block_on(async {
        tokio::select! {
            played = timeout(LIMIT, play(plan, launcher, folder.path(), &screen, &mut outcomes)) => {
                played.unwrap_or(Err(Error::Limit(LIMIT)))
            }
            () = screen.run() => Ok(()),
            asked = interrupted() => asked,
        }
    });
    drop(screen);
    let good = played.is_ok() && outcomes.iter().all(|outcome| outcome.problems().is_empty());
    if !good && !matches!(played, Err(Error::Interrupted)) {
        println!("The logs of all processes are in {}.", folder.keep().display());
    }
    println!();
    for outcome in &outcomes {
        println!("{outcome}");
        for problem in outcome.problems() {
            eprintln!("{problem}");
        }
    }
    played.map(|()| good)
}

/// Returns when the demo is asked to end.
async fn interrupted() -> Result<(), Error> {
    let listening = Error::io("listening for signals");
    let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => return Err(listening(error)),
    };
    tokio::select! {
        _ = interrupt.recv() => Err(Error::Interrupted),
        _ = terminate.recv() => Err(Error::Interrupted),
    }
}

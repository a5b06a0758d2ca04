//! `wspool-operator`: wires the command line to what does the work.

use std::io::{self, BufWriter, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use operator::cli::{Cli, Command};
use operator::cluster::Cluster;
use operator::failure::Failure;
use operator::ownership::{self, Ownership};
use operator::standalone::Standalone;
use operator::{inject, pool, process};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output wanted no more of it.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    process::log_to_stderr(&cli.log)?;
    let input = || io::stdin().lock();
    let output = || BufWriter::with_capacity(1 << 16, io::stdout().lock());
    match cli.command {
        Command::Run(args) => process::runtime()?.block_on(async {
            let shutdown = process::shutdown()?;
            Ok(Cluster::build((*args).into()).await?.run(shutdown).await?)
        }),
        Command::Standalone(args) => process::runtime()?.block_on(async {
            let shutdown = process::shutdown()?;
            Ok(Standalone::build(args.into()).await?.run(shutdown).await?)
        }),
        Command::Owner(files) => Ok(Ownership::read(&files.pool, &files.members)?.answer(input(), output())?),
        Command::Plan(args) => {
            let now = Ownership::read(&args.files.pool, &args.files.members)?;
            let then = now.then(&args.files.pool, &args.to)?;
            Ok(ownership::compare(&now, &then, input(), output())?)
        }
        Command::Inject(args) => Ok(inject::command::run(&args, input(), output(), io::stderr().lock())?),
        Command::Crd => Ok(output().write_all(pool::crd().as_bytes())?),
    }
}

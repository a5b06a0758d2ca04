//! Moves a pool's connections to and fro for a long time, and prints what memory its processes have: `make soak`.

use std::process::ExitCode;
use std::time::Duration;

use bench::soak::{Soak, is_flat, middle_and_end};
use bench::usage::float;
use clap::Parser;

/// Moves 1,000 connections to and fro between three servers, with 20 more that come and go all the time.
#[derive(Debug, Parser)]
struct Cli {
    /// How long, in minutes.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1_440))]
    minutes: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let time = Duration::from_secs(60 * Cli::parse().minutes);
    let soak = Soak::start().await;
    let seen = soak.run(time, |seen| eprintln!("{:.0} s: {} moved", seen.took.as_secs_f64(), seen.moved)).await;
    println!("{} connections moved in {} cycles, {:.0} s\n", seen.moved, seen.cycles, seen.took.as_secs_f64());
    println!("| memory (RSS) | in the second quarter | in the last |\n|---|---:|---:|");
    let mebibytes = |bytes: u64| float(bytes) / f64::from(1 << 20);
    for (name, samples) in &seen.memory {
        let (middle, end) = middle_and_end(samples);
        println!("| {name} | {:.2} MiB | {:.2} MiB |", mebibytes(middle), mebibytes(end));
    }
    let grown: Vec<_> = seen.memory.iter().filter(|(_, samples)| !is_flat(samples)).map(|(name, _)| name).collect();
    if grown.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("these have grown: {grown:?}");
    ExitCode::FAILURE
}

//! Measures messages between servers, and prints a table: `make bench-messages`.

use std::process::ExitCode;

use bench::data_path::cores::Cores;
use bench::messages::{Servers, Way};
use bench::table::{Column, render};
use clap::Parser;
use rand::seq::SliceRandom as _;

/// How many send at once.
const SENDERS: [usize; 2] = [1, 64];

/// Measures messages to the clients of another server: ring-routed, through Redis, and by Socket.IO's Redis adapter.
#[derive(Debug, Parser)]
struct Cli {
    /// How often each way is measured, in shuffled order: half a minute each time.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=4))]
    rounds: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match bench(Cli::parse().rounds).await {
        Ok(table) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(rounds: u32) -> Result<String, String> {
    let mut servers = Servers::start(Cores::claim()?).await;
    let mut columns = Way::ALL.map(|way| (way, Column { head: way.head().to_owned(), rounds: Vec::new() }));
    for _ in 0..rounds {
        // The columns stay in their order.
        let mut order: Vec<_> = columns.iter_mut().collect();
        order.shuffle(&mut rand::rng());
        for (way, column) in order {
            let mut figures = Vec::new();
            for senders in SENDERS {
                figures.extend(servers.measure(*way, senders).await?);
            }
            column.rounds.push(figures);
        }
    }
    Ok(render(&columns.map(|(_, column)| column)))
}

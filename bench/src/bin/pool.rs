//! Measures the operator with pools of many pods, and prints a table: `make bench-pool`.

use bench::round::{self, Size};
use bench::table::{self, Column};
use clap::Parser;
use harness::control_plane::Access;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// The sidecars' own: they are in this process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures wspool-operator beside a real API server, with pools whose sidecars are all in this process.
#[derive(Debug, Parser)]
struct Cli {
    /// The sizes of the pools, in pods.
    #[arg(long, value_delimiter = ',', default_values_t = [50, 200, 500, 1_000])]
    pods: Vec<usize>,
    /// Connections for each pod.
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// How often each size is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

fn main() -> std::io::Result<()> {
    let Cli { pods, connections, rounds } = Cli::parse();
    // Each sidecar has two ports, and connections to them.
    rlimit::increase_nofile_limit(u64::MAX)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut columns: Vec<Column> = Vec::new();
    for size in pods.into_iter().map(|pods| Size { pods, connections }) {
        let mut column = Column { head: format!("{} pods", size.pods), rounds: Vec::new() };
        for round in 1..=rounds {
            let figures = LocalSet::new().block_on(&runtime, round::measure(&Access::shared(), size));
            eprintln!("{} pods, round {round} of {rounds}", size.pods);
            column.rounds.push(figures);
            // What has been measured is shown also when a later round fails.
            eprintln!("{}", table::render(std::slice::from_ref(&column)));
        }
        columns.push(column);
    }
    print!("{}", table::render(&columns));
    Ok(())
}

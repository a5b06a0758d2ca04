//! Measures the data path beside nginx and HAProxy, and prints a table: `make bench`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bench::data_path::cores::Cores;
use bench::data_path::moving::{self, Move};
use bench::data_path::plot;
use bench::data_path::proxy::Kind;
use bench::data_path::report::{self, Report};
use bench::data_path::run::{self, Amount};
use bench::page;
use clap::Parser;
use rand::seq::SliceRandom as _;
use tokio::runtime::{Builder, Runtime};

/// Measures what connections, messages and moves cost in a sidecar, in nginx and in HAProxy, side by side on one core.
#[derive(Debug, Parser)]
struct Cli {
    /// How often each proxy is measured, in shuffled order.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Connections held at once. Each is two files of this process and two of the proxy.
    #[arg(long, default_value_t = 9_000, value_parser = clap::value_parser!(u32).range(1_000..))]
    connections: u32,
    /// Two rounds with fewer connections and shorter times, for a first look. Nothing is written.
    #[arg(long)]
    quick: bool,
    /// Those to measure. Unless all are, nothing is written.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    proxies: Vec<Kind>,
    /// The page with the place where the tables belong (Markdown).
    #[arg(long)]
    page: Option<PathBuf>,
    /// Where to write the picture (SVG).
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// How much is measured.
struct Plan {
    rounds: u32,
    moves: u32,
    amount: Amount,
}

impl Cli {
    fn plan(&self) -> Plan {
        if self.quick {
            let amount = Amount { connections: self.connections.min(2_000), time: Duration::from_millis(300) };
            Plan { rounds: 2, moves: 1, amount }
        } else {
            let amount = Amount { connections: self.connections, time: Duration::from_secs(1) };
            Plan { rounds: self.rounds, moves: self.rounds.div_ceil(3), amount }
        }
    }
}

fn main() -> ExitCode {
    match bench(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(cli: &Cli) -> Result<(), String> {
    let plan = cli.plan();
    let connections = plan.amount.connections;
    raise_open_files(connections)?;
    let cores = Cores::claim()?;
    let setting = page::setting(&[("nginx", "nginx"), ("HAProxy", "haproxy")])?;
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let report = compare(&runtime, cores, &plan, &cli.proxies)?;
    let moves: Result<Vec<Move>, _> =
        (0..plan.moves).map(|_| runtime.block_on(moving::measure(cores, connections))).collect();
    let moves = moves.map_err(|error| format!("a move: {error}"))?;
    let figures = format!(
        "Rounds: {}; connections: {connections}; {setting}.\n\n{}\n{}",
        plan.rounds,
        report.table(),
        report::moves(&moves)
    );
    print!("{figures}");
    let is_whole = !cli.quick && Kind::ALL.iter().all(|kind| cli.proxies.contains(kind));
    if is_whole { write(cli, &figures, &report) } else { Ok(()) }
}

fn raise_open_files(connections: u32) -> Result<(), String> {
    let files = rlimit::increase_nofile_limit(u64::MAX).map_err(|error| format!("files: {error}"))?;
    let needed = 2 * u64::from(connections) + 1_000;
    if files < needed {
        return Err(format!("{needed} open files are needed and {files} allowed: fewer --connections, or ulimit -n"));
    }
    Ok(())
}

/// All rounds, each with every proxy in another order.
fn compare(runtime: &Runtime, cores: Cores, plan: &Plan, proxies: &[Kind]) -> Result<Report, String> {
    let began = Instant::now();
    let mut report = Report::default();
    for round in 1..=plan.rounds {
        let mut kinds = proxies.to_vec();
        kinds.shuffle(&mut rand::rng());
        for kind in kinds {
            let figures = runtime.block_on(run::measure(kind, cores, plan.amount));
            report.add(kind, figures.map_err(|error| format!("{}: {error}", kind.name()))?);
        }
        eprintln!("round {round} of {}, {:.0} s", plan.rounds, began.elapsed().as_secs_f64());
    }
    Ok(report)
}

fn write(cli: &Cli, figures: &str, report: &Report) -> Result<(), String> {
    if let Some(path) = &cli.page {
        page::fill(path, "make bench", figures)?;
    }
    if let Some(path) = &cli.plot {
        page::save(path, &plot::svg(report))?;
    }
    Ok(())
}

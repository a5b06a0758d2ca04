//! Takes three ways to run a pool through the same changes and faults, and prints a table: `make chaos`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bench::chaos::arm::{Arm, Way};
use bench::chaos::report;
use bench::chaos::scenario::{self, Step};
use bench::page;
use clap::{Parser, ValueEnum as _};
use futures_util::future::join_all;
use harness::control_plane::Access;
use harness::helm::Release;

/// No step begins after this, so that all is over within 15 minutes.
const LAST_BEGIN: Duration = Duration::from_secs(12 * 60);

/// Takes wspool behind a Service, wspool with routers, and nginx through the same changes and faults on a whole cluster.
#[derive(Debug, Parser)]
struct Cli {
    /// Clients of each way in.
    #[arg(long, default_value_t = 1_000)]
    clients: usize,
    /// The ways in, side by side.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["service", "router", "nginx"])]
    ways: Vec<Way>,
    /// The steps, in their order. Unless all are taken, nothing is written.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = all())]
    steps: Vec<Step>,
    /// The page with the place where the table belongs (Markdown).
    #[arg(long)]
    page: Option<PathBuf>,
}

fn all() -> Vec<Step> {
    Step::value_variants().to_vec()
}

#[tokio::main]
async fn main() -> Result<ExitCode, String> {
    let Cli { clients, ways, steps, page } = Cli::parse();
    rlimit::increase_nofile_limit(u64::MAX).map_err(|error| format!("files: {error}"))?;
    let began = Instant::now();
    let setting = page::setting(&[("nginx", "nginx")])?;
    let access = Access::shared();
    let release = Release::new(&access, "wspool-system", "wspool");
    let flags = ["--install", "--create-namespace", "--wait", "--timeout=3m"];
    release.upgrade("metricsApi: {enabled: true}", &flags).await.map_err(|error| format!("the chart: {error}"))?;

    let arms = join_all(ways.into_iter().map(|way| Arm::start(&access, way, clients))).await;
    while !arms.iter().all(|arm| arm.crowd.is_complete()) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    eprintln!("{clients} clients are connected in each of {} ways after {} s", arms.len(), began.elapsed().as_secs());
    println!("{}", report::HEAD);
    let (mut rows, mut left) = (Vec::new(), Vec::new());
    for &step in &steps {
        if began.elapsed() > LAST_BEGIN {
            left.push(step.name());
            continue;
        }
        let taken = scenario::take(step, &arms).await;
        for row in &taken {
            println!("{}", report::line(row));
        }
        eprintln!("{}: {} s", step.name(), taken.iter().map(|row| row.took.as_secs()).max().unwrap_or_default());
        rows.extend(taken);
    }
    let goals = report::goals(&rows, report::unclean(&arms));
    println!("\n{goals}");
    if let Some(page) = page.filter(|_| steps == all()) {
        let lines: Vec<String> = rows.iter().map(report::line).collect();
        let minutes = began.elapsed().as_secs().div_ceil(60);
        let left = if left.is_empty() { "none".to_owned() } else { left.join(", ") };
        let figures = format!(
            "Clients of each way in: {clients}; {minutes} minutes, without time for: {left}; {setting}.\n\n{}\n{}\n\n{goals}",
            report::HEAD,
            lines.join("\n")
        );
        page::fill(&page, "make chaos", &figures)?;
    }
    // What was measured is written down first, whatever it is.
    Ok(if goals.are_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

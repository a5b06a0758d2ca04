//! Takes three ways to run a pool through the same changes and faults, and prints a table: `make chaos`.

use std::time::Duration;

use bench::chaos::arm::{Arm, Way};
use bench::chaos::scenario::{self, Row, STEPS};
use clap::Parser;
use futures_util::future::join_all;
use harness::control_plane::Access;
use harness::helm::Release;

/// Takes wspool behind a Service, wspool with routers, and nginx through the same changes and faults on a whole cluster.
#[derive(Debug, Parser)]
struct Cli {
    /// Clients of each way in.
    #[arg(long, default_value_t = 400)]
    clients: usize,
    /// The ways in, side by side.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["service", "router", "nginx"])]
    ways: Vec<Way>,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let Cli { clients, ways } = Cli::parse();
    rlimit::increase_nofile_limit(u64::MAX)?;
    let access = Access::shared();
    let release = Release::new(&access, "wspool-system", "wspool");
    let flags = ["--install", "--create-namespace", "--wait", "--timeout=3m"];
    release.upgrade("{}", &flags).await.unwrap_or_else(|error| panic!("the chart is not installed: {error}"));

    let arms = join_all(ways.into_iter().map(|way| Arm::start(&access, way, clients))).await;
    while arms.iter().any(|arm| arm.crowd.present() < clients) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    eprintln!("{clients} clients are connected in each of {} ways", arms.len());
    println!(
        "| step | way in | breaks per connection, mean (max) | over the minimum | away, p50 / p99 | most handshakes at an \
         app in 100 ms | messages lost, up / down | rooms on two servers | max / mean |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    for step in STEPS {
        for row in scenario::take(step, &arms).await {
            println!("{}", line(&row));
        }
    }
    for arm in &arms {
        let mebibytes = arm.memory().await / (1 << 20);
        println!("{}: {mebibytes} MiB in front of the apps at the end", arm.way.name());
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of clients")]
fn line(Row { step, way, tally, settled }: &Row) -> String {
    let percentile = |percent: usize| {
        let index = (tally.away.len() * percent / 100).min(tally.away.len().saturating_sub(1));
        tally.away.get(index).map_or("-".to_owned(), |away| format!("{:.2} s", away.as_secs_f64()))
    };
    let mean = tally.breaks as f64 / tally.clients as f64;
    let over = match (tally.breaks, tally.changed) {
        (0, _) => "-".to_owned(),
        (breaks, 0) => format!("{breaks} for 0"),
        (breaks, changed) => format!("{:.2}", breaks as f64 / changed as f64),
    };
    format!(
        "| {}{} | {} | {mean:.2} ({}) | {over} | {} / {} | {} | {} / {} | {:.1} s | {:.2} |",
        step.name(),
        if *settled { "" } else { " (not over after 120 s)" },
        way.name(),
        tally.most_breaks,
        percentile(50),
        percentile(99),
        tally.peak,
        tally.lost_up,
        tally.lost_down,
        tally.split.as_secs_f64(),
        tally.imbalance,
    )
}

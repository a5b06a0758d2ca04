//! The table, and what was to be shown.

use std::time::Duration;

use super::arm::{Arm, HANDSHAKES_PER_SECOND, Way};
use super::scenario::Row;

/// Room-seconds that clients see by chance: one hears of its end a little after another is elsewhere.
const BLINK: Duration = Duration::from_millis(50);

/// The first two lines of the table.
pub const HEAD: &str = "| step | way in | breaks per connection, mean (max) | over the minimum | needless moves | away, p50 / p99 | \
                        most handshakes at an app in 100 ms (an app stood still) | messages lost, up / down | rooms on two servers | \
                        max / mean | memory |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|";

/// One line of it.
#[expect(clippy::cast_precision_loss, reason = "counts of clients")]
pub fn line(row: &Row) -> String {
    let Row { step, way, tally, settled, memory, .. } = row;
    let percentile = |percent: usize| {
        let index = (tally.away.len() * percent / 100).min(tally.away.len().saturating_sub(1));
        tally.away.get(index).map_or("-".to_owned(), |away| format!("{:.2} s", away.as_secs_f64()))
    };
    let over = match (tally.breaks, tally.least) {
        (0, _) => "-".to_owned(),
        (breaks, 0) => format!("{breaks} for 0"),
        (breaks, least) => format!("{:.2}", breaks as f64 / least as f64),
    };
    format!(
        "| {}{} | {} | {:.2} ({}) | {over} | {} | {} / {} | {} ({} ms) | {} / {} | {:.2} s | {:.2} | {} MiB |",
        step.name(),
        if *settled { "" } else { " (not over after 120 s)" },
        way.name(),
        tally.breaks as f64 / tally.clients.max(1) as f64,
        tally.most_breaks,
        tally.needless,
        percentile(50),
        percentile(99),
        tally.peak,
        tally.still.as_millis(),
        tally.lost_up,
        tally.lost_down,
        tally.split.as_secs_f64(),
        tally.imbalance,
        memory / (1 << 20),
    )
}

/// What was to be shown, and where it was not.
pub fn goals(rows: &[Row], arms: &[Arm]) -> String {
    let pools = || rows.iter().filter(|row| row.way.is_wspool());
    let calm = || pools().filter(|row| !row.step.is_crash());
    let missed = |rows: &mut dyn Iterator<Item = &Row>| {
        rows.map(|row| format!("{} ({})", row.step.name(), row.way.name())).collect()
    };
    let goals: [(&str, Vec<String>); 5] = [
        ("no needless move but for crashes and the cut link", missed(&mut calm().filter(|row| row.tally.needless > 0))),
        ("no room on two servers but for those", missed(&mut calm().filter(|row| row.tally.split > BLINK))),
        (
            "with the router 1.02 x the necessary breaks at most, but for those",
            missed(&mut calm().filter(|row| row.way == Way::Router && 100 * row.tally.breaks > 102 * row.tally.least)),
        ),
        (
            "1.2 x the rate of handshakes at an app at most",
            missed(&mut pools().filter(|row| 50 * row.tally.peak > 6 * HANDSHAKES_PER_SECOND)),
        ),
        ("pods that drain end in time, with no connection left", unclean(arms)),
    ];
    let line = |(goal, missed): (&str, Vec<String>)| {
        let found = if missed.is_empty() { "met".to_owned() } else { format!("**missed**: {}", missed.join(", ")) };
        format!("| {goal} | {found} |\n")
    };
    format!("| to be shown | |\n|---|---|\n{}", goals.map(line).concat())
}

/// Pods that did not go as they should.
fn unclean(arms: &[Arm]) -> Vec<String> {
    let fault = |arm: &Arm| {
        let gone = arm.departures().into_iter();
        gone.filter_map(|gone| Some(format!("{} ({}): {}", gone.name(), arm.way.name(), gone.fault()?)))
            .collect::<Vec<_>>()
    };
    arms.iter().flat_map(fault).collect()
}

//! The table, and what was to be shown.

use std::fmt;
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
#[derive(Debug)]
pub struct Goals([(&'static str, Vec<String>); 5]);

/// Holds the rows against the goals; `unclean` are the pods that did not go as they should.
pub fn goals(rows: &[Row], unclean: Vec<String>) -> Goals {
    let pools = || rows.iter().filter(|row| row.way.is_wspool());
    let calm = || pools().filter(|row| !row.step.is_crash());
    let missed = |rows: &mut dyn Iterator<Item = &Row>| {
        rows.map(|row| format!("{} ({})", row.step.name(), row.way.name())).collect()
    };
    Goals([
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
        ("pods that drain end in time, with no connection left", unclean),
    ])
}

impl Goals {
    /// Whether all of them were reached.
    pub fn are_met(&self) -> bool {
        self.0.iter().all(|(_, missed)| missed.is_empty())
    }
}

impl fmt::Display for Goals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("| to be shown | |\n|---|---|\n")?;
        for (goal, missed) in &self.0 {
            let found = if missed.is_empty() { "met".to_owned() } else { format!("**missed**: {}", missed.join(", ")) };
            writeln!(f, "| {goal} | {found} |")?;
        }
        Ok(())
    }
}

/// Pods that did not go as they should.
pub fn unclean(arms: &[Arm]) -> Vec<String> {
    let fault = |arm: &Arm| {
        let gone = arm.departures().into_iter();
        gone.filter_map(|gone| Some(format!("{} ({}): {}", gone.name(), arm.way.name(), gone.fault()?)))
            .collect::<Vec<_>>()
    };
    arms.iter().flat_map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Tally;
    use super::super::scenario::Step;
    use super::*;

    fn row(step: Step, way: Way, tally: Tally) -> Row {
        Row { step, way, tally, settled: true, took: Duration::from_secs(20), memory: 1 << 20 }
    }

    /// A tally that just reaches every goal.
    fn good() -> Tally {
        Tally { breaks: 102, least: 100, peak: 12, split: BLINK, ..Tally::default() }
    }

    #[test]
    fn what_just_reaches_every_goal_meets_them_and_nginx_need_not() {
        let bad = Tally { breaks: 900, needless: 300, peak: 80, split: Duration::from_secs(9), ..good() };
        let rows = [row(Step::Grow, Way::Router, good()), row(Step::Grow, Way::Nginx, bad)];
        let goals = goals(&rows, Vec::new());
        assert!(goals.are_met(), "{goals}");
    }

    #[test]
    fn one_row_misses_a_goal_and_is_named() {
        let misses = [
            Tally { needless: 1, ..good() },
            Tally { split: BLINK * 2, ..good() },
            Tally { breaks: 103, ..good() },
            Tally { peak: 13, ..good() },
        ];
        for (index, tally) in misses.into_iter().enumerate() {
            let rows = [row(Step::Shrink, Way::Router, good()), row(Step::Grow, Way::Router, tally)];
            let goals = goals(&rows, Vec::new());
            assert!(!goals.are_met());
            let text = goals.to_string();
            let found = text.lines().nth(2 + index).unwrap();
            let expected = format!("| **missed**: {} ({}) |", Step::Grow.name(), Way::Router.name());
            assert!(found.ends_with(&expected), "{text}");
            assert_eq!(text.matches("missed").count(), 1, "{text}");
        }
        assert!(!goals(&[], vec!["chat-a (Service): 3 were left".into()]).are_met());
    }

    #[test]
    fn a_crash_is_excused_from_all_but_the_peak() {
        let crash = Tally { breaks: 900, needless: 300, split: Duration::from_secs(9), ..good() };
        assert!(goals(&[row(Step::KillPod, Way::Router, crash.clone())], Vec::new()).are_met());
        assert!(!goals(&[row(Step::KillPod, Way::Router, Tally { peak: 13, ..crash })], Vec::new()).are_met());
    }
}

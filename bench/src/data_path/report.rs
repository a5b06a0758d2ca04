//! The figures of many runs as one table.

use std::collections::BTreeMap;

use super::axis::{self, Axis, Goal, Unit};
use super::moving::{self, Move};
use super::proxy::Kind;
use super::run::Figures;

/// The figures of all runs, by proxy.
#[derive(Clone, Debug, Default)]
pub struct Report {
    runs: BTreeMap<Kind, Vec<Figures>>,
}

impl Report {
    /// Adds those of one run.
    pub fn add(&mut self, kind: Kind, figures: Figures) {
        self.runs.entry(kind).or_default().push(figures);
    }

    /// The quartile on the better side: what disturbs a run only ever makes it worse.
    pub fn value(&self, kind: Kind, axis: &Axis) -> Option<f64> {
        let runs = self.runs.get(&kind)?.iter().flatten();
        let mut values: Vec<f64> = runs.filter(|(of, _)| of.name == axis.name).map(|(_, value)| *value).collect();
        values.sort_by(f64::total_cmp);
        if axis.more_is_better() {
            values.reverse();
        }
        values.get(values.len() / 4).copied()
    }

    /// How many times another proxy's figure the sidecar's is.
    pub fn ratio(&self, kind: Kind, other: Kind, axis: &Axis) -> Option<f64> {
        let other = self.value(other, axis).filter(|value| *value > 0.0)?;
        Some(self.value(kind, axis)? / other)
    }

    /// Whether a sidecar reaches the goal of an axis, if there is one.
    pub fn met(&self, axis: &Axis) -> Option<bool> {
        let within = |ratio: f64, goal: f64| if axis.more_is_better() { ratio >= goal } else { ratio <= goal };
        match axis.goal? {
            Goal::AtMost(most) => Some(self.value(Kind::Wspool, axis)? <= most),
            Goal::Times { nginx, haproxy } => {
                let holds = |other: Kind, goal: Option<f64>| match goal {
                    Some(goal) => Some(within(self.ratio(Kind::Wspool, other, axis)?, goal)),
                    None => Some(true),
                };
                Some(holds(Kind::Nginx, nginx)? && holds(Kind::HaProxy, haproxy)?)
            }
        }
    }

    /// As Markdown.
    pub fn table(&self) -> String {
        let heads = Kind::ALL.map(Kind::name).join(" | ");
        let mut lines = vec![
            format!("| | {heads} | ÷ nginx | ÷ HAProxy | goal | |"),
            format!("|---|{}---|---|", "---:|".repeat(Kind::ALL.len() + 2)),
        ];
        for axis in axis::all() {
            let cell = |kind| self.value(kind, &axis).map_or("-".into(), |value| show(value, axis.unit));
            let times =
                |other| self.ratio(Kind::Wspool, other, &axis).map_or("-".into(), |ratio| format!("{ratio:.2}"));
            let met = match self.met(&axis) {
                None => "",
                Some(true) => "met",
                Some(false) => "**missed**",
            };
            lines.push(format!(
                "| {}{} | {} | {} | {} | {} | {met} |",
                axis.name,
                unit(axis.unit),
                Kind::ALL.map(cell).join(" | "),
                times(Kind::Nginx),
                times(Kind::HaProxy),
                goal(&axis),
            ));
        }
        lines.join("\n") + "\n"
    }
}

/// What moves cost, as Markdown: of each figure the median.
pub fn moves(all: &[Move]) -> String {
    let median = |figure: &dyn Fn(&Move) -> f64| {
        let mut values: Vec<f64> = all.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let (held, moved) = all.first().map_or((0, 0), |first| (first.held, first.moved));
    let micros = |figure: &dyn Fn(&Move) -> f64| format!("{} µs", show(median(figure), Unit::Micros));
    let lines = [
        (format!("{} held, moved", thousands(f64::from(held))), thousands(f64::from(moved))),
        ("the sidecar that holds them takes the new placement in".into(), micros(&|of| of.evaluated)),
        (
            format!("all are back, at {} evictions per second, after", thousands(f64::from(moving::PACE))),
            format!("{:.1} s", median(&|of| of.seconds)),
        ),
        ("CPU of both sidecars per connection moved".into(), micros(&|of| of.cpu)),
        ("p50 of echoes of those who stay, before".into(), micros(&|of| of.before.0)),
        ("p50 meanwhile".into(), micros(&|of| of.meanwhile.0)),
        ("p99 before".into(), micros(&|of| of.before.1)),
        ("p99 meanwhile".into(), micros(&|of| of.meanwhile.1)),
    ];
    let lines = lines.map(|(name, value)| format!("| {name} | {value} |\n")).concat();
    format!("| one slot is added beside one | |\n|---|---:|\n{lines}")
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => ", bytes",
        Unit::Micros => ", µs",
        Unit::PerSecond => "",
    }
}

fn goal(axis: &Axis) -> String {
    let sign = if axis.more_is_better() { "≥" } else { "≤" };
    match axis.goal {
        None => String::new(),
        Some(Goal::AtMost(most)) => format!("≤ {}", thousands(most)),
        Some(Goal::Times { nginx, haproxy }) => {
            let parts = [(nginx, "nginx"), (haproxy, "HAProxy")];
            let parts = parts.iter().filter_map(|(goal, name)| goal.map(|goal| format!("{sign} {goal} × {name}")));
            parts.collect::<Vec<_>>().join(", ")
        }
    }
}

fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Micros if value < 100.0 => format!("{value:.2}"),
        _ => thousands(value),
    }
}

/// A whole number with commas.
fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits")).collect();
    let sign = if value <= -0.5 { "-" } else { "" };
    format!("{sign}{}", groups.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(axis: Axis, wspool: &[f64], nginx: &[f64], haproxy: &[f64]) -> Report {
        let mut report = Report::default();
        for (kind, values) in [(Kind::Wspool, wspool), (Kind::Nginx, nginx), (Kind::HaProxy, haproxy)] {
            for value in values {
                report.add(kind, vec![(axis, *value)]);
            }
        }
        report
    }

    #[test]
    fn a_cost_is_judged_by_its_lower_quartile_and_a_rate_by_its_upper_one() {
        let nine: Vec<f64> = (1..=9).map(f64::from).collect();
        let (cost, rate) = (axis::HANDSHAKE, axis::STORM);
        assert_eq!(report(cost, &nine, &[], &[]).value(Kind::Wspool, &cost), Some(3.0));
        assert_eq!(report(rate, &nine, &[], &[]).value(Kind::Wspool, &rate), Some(7.0));
    }

    #[test]
    fn a_goal_is_met_only_beside_both_others() {
        let (_, cost) = axis::SMALL[0];
        assert_eq!(report(cost, &[10.5], &[10.0], &[13.0]).met(&cost), Some(true));
        assert_eq!(report(cost, &[10.6], &[10.0], &[13.0]).met(&cost), Some(false));
        assert_eq!(report(cost, &[10.0], &[10.0], &[11.0]).met(&cost), Some(false));
        let rate = axis::MEDIUM;
        assert_eq!(report(rate, &[33.0], &[10.0], &[19.0]).met(&rate), Some(true));
        assert_eq!(report(rate, &[32.0], &[10.0], &[10.0]).met(&rate), Some(false));
        assert_eq!(report(rate, &[32.0], &[], &[10.0]).met(&rate), None);
    }

    #[test]
    fn numbers_have_commas() {
        let shown = [0.4, 999.0, 1_000.0, 1_234_567.0, -1_200.0].map(thousands);
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567", "-1,200"]);
    }
}

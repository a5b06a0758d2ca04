//! Figures of several rounds, as Markdown: the median, and the range beside it.

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Whole things.
    Count,
    /// Seconds.
    Seconds,
    /// Seconds, shown in millionths.
    Micros,
    /// Bytes, shown in MiB.
    Bytes,
    /// Bytes, shown in KiB.
    KiB,
    /// Hundredths of one core, shown in percent.
    Percent,
}

/// One figure of one round.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// How much, in its unit.
    pub value: f64,
    /// The unit.
    pub unit: Unit,
}

/// The rounds of one column.
#[derive(Clone, Debug)]
pub struct Column {
    /// What is written above it.
    pub head: String,
    /// The figures of each round.
    pub rounds: Vec<Vec<Figure>>,
}

/// A table: one line for each figure, in the order in which they first appear. A figure that a round lacks is 0 there.
pub fn render(columns: &[Column]) -> String {
    let mut names: Vec<(&str, Unit)> = Vec::new();
    // What the first column lacks comes after what it has, and still beside its like.
    for round in columns.iter().flat_map(|column| &column.rounds) {
        let mut place = 0;
        for figure in round {
            let known = names.iter().position(|(name, _)| *name == figure.name);
            if known.is_none() {
                names.insert(place, (&figure.name, figure.unit));
            }
            place = known.unwrap_or(place) + 1;
        }
    }
    let heads: Vec<&str> = columns.iter().map(|column| column.head.as_str()).collect();
    let mut lines = vec![format!("| | {} |", heads.join(" | ")), format!("|---|{}", "---:|".repeat(columns.len()))];
    for (name, unit) in names {
        let cells: Vec<String> = columns.iter().map(|column| cell(column, name, unit)).collect();
        lines.push(format!("| {name} | {} |", cells.join(" | ")));
    }
    lines.join("\n") + "\n"
}

fn cell(column: &Column, name: &str, unit: Unit) -> String {
    let find = |round: &Vec<Figure>| round.iter().find(|figure| figure.name == name).map_or(0.0, |figure| figure.value);
    let mut values: Vec<f64> = column.rounds.iter().map(find).collect();
    values.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (values.first(), values.last()) else { return String::new() };
    let middle = show(values[values.len() / 2], unit);
    let (least, most) = (show(*least, unit), show(*most, unit));
    if least == most { middle } else { format!("{middle} ({least} to {most})") }
}

fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Count => format!("{value:.0}"),
        Unit::Seconds => format!("{value:.2} s"),
        Unit::Micros => format!("{:.0} µs", value * 1e6),
        Unit::KiB => format!("{:.1} KiB", value / 1024.0),
        Unit::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        Unit::Percent => format!("{value:.0} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, value: f64, unit: Unit) -> Figure {
        Figure { name: name.to_owned(), value, unit }
    }

    #[test]
    fn a_cell_has_the_median_and_the_range_unless_all_rounds_agree() {
        let round = |time, writes| vec![figure("time", time, Unit::Seconds), figure("writes", writes, Unit::Count)];
        let rounds = vec![round(3.0, 7.0), round(1.0, 7.0), round(2.0, 7.0)];
        let table = render(&[Column { head: "50 pods".into(), rounds }]);
        assert_eq!(table, "| | 50 pods |\n|---|---:|\n| time | 2.00 s (1.00 s to 3.00 s) |\n| writes | 7 |\n");
    }

    #[test]
    fn a_figure_that_only_some_rounds_have_stands_beside_its_like_and_is_0_in_the_others() {
        let figures = |names: &[&str]| names.iter().map(|name| figure(name, 1.0, Unit::Count)).collect::<Vec<_>>();
        let columns = [["a", "c"].as_slice(), &["a", "b", "c"]]
            .map(|names| Column { head: "x".into(), rounds: vec![figures(names)] });
        let table = render(&columns);
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(lines, ["| a | 1 | 1 |", "| b | 0 | 1 |", "| c | 1 | 1 |"]);
    }
}

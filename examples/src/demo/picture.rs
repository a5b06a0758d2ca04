//! The live picture, as lines of text: a pure function of what is known.

use std::fmt::Write as _;
use std::time::Duration;

use super::ledger::Server;
use super::verdict::{Tally, key};
use super::view::View;

/// The columns beside a bar: the server's name, its connections and a note.
const NAME: usize = 10;
const COUNT: usize = 6;
const NOTE: usize = 12;
/// The longest history of breaks per second that is shown.
const HISTORY: usize = 30;
/// Eighths of a character cell, from empty to full.
const EIGHTHS: [char; 9] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
/// Heights of a character cell.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What is known at one moment.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    /// The act.
    pub heading: &'a str,
    /// What happens in it.
    pub story: &'a str,
    /// Since its beginning.
    pub elapsed: Duration,
    /// The servers, each with a word on what becomes of it.
    pub cast: &'a [(Server, &'static str)],
    /// What the clients saw.
    pub tally: &'a Tally,
    /// What the operator says, where there is one.
    pub view: Option<&'a View>,
}

/// The picture, each line at most `width` characters long.
pub fn lines(scene: &Scene, width: usize) -> Vec<String> {
    let tally = scene.tally;
    let seconds = format!("{:.1} s", scene.elapsed.as_secs_f64());
    let mut lines = vec![
        format!("{:<1$}{seconds}", scene.heading, width.saturating_sub(seconds.len())),
        scene.story.to_owned(),
        String::new(),
    ];
    let room = width.saturating_sub(NAME + COUNT + NOTE + 3);
    let balance = tally.balance();
    for (server, note) in scene.cast {
        let count = balance.get(server).copied().unwrap_or(0);
        let bar = bar(count, tally.fates.len(), room);
        lines.push(format!("{server:<NAME$} {bar:<room$} {count:>COUNT$} {note}"));
    }
    lines.push(format!("{:<NAME$} {:room$} {:>COUNT$}", "away", "", tally.away()));
    lines.push(String::new());
    lines.push(format!(
        "broken {}, untouched {}, {} breaks/s  {}",
        tally.broken(),
        tally.fates.len() - tally.broken(),
        tally.breaks_last_second,
        sparkline(&tally.breaks_per_second)
    ));
    lines.push(scene.view.map_or_else(String::new, operator));
    let mut movers = String::new();
    for (client, from, to) in tally.movers().take(3) {
        let _ = write!(movers, "{}: {from} → {to}   ", key(client)); // A String never refuses.
    }
    lines.push(movers);
    for line in &mut lines {
        *line = line.trim_end().chars().take(width).collect();
    }
    lines
}

/// The same in one plain line.
pub fn line(scene: &Scene) -> String {
    let balance = scene.tally.balance();
    let mut line = format!("{:6.1} s ", scene.elapsed.as_secs_f64());
    for (server, _) in scene.cast {
        let _ = write!(line, " {server} {:<4}", balance.get(server).copied().unwrap_or(0));
    }
    let _ = write!(line, " away {:<3} breaks/s {:<4}", scene.tally.away(), scene.tally.breaks_last_second);
    if let Some(view) = scene.view {
        let _ = write!(line, " {}", operator(view));
    }
    line.trim_end().to_owned()
}

fn operator(view: &View) -> String {
    let (epoch, state) = (view.epoch, view.state.to_lowercase());
    match (view.moving.pending, view.moving.in_flight) {
        (0, 0) => format!("operator: {state}, epoch {epoch}"),
        (pending, in_flight) => format!("operator: {state}, epoch {epoch}, {pending} to move, {in_flight} in flight"),
    }
}

fn bar(count: usize, of: usize, room: usize) -> String {
    let eighths = (count * room * 8).div_ceil(of.max(1));
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8]);
    }
    bar
}

fn sparkline(history: &[u64]) -> String {
    let shown = &history[history.len().saturating_sub(HISTORY)..];
    let most = shown.iter().copied().max().unwrap_or(0).max(1);
    let height = |value: u64| usize::try_from(value * (HEIGHTS.len() as u64 - 1) / most).unwrap_or(0);
    shown.iter().map(|value| HEIGHTS[height(*value)]).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::demo::ledger::{Event, What};

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let places: Vec<_> = (0..1_000).map(|_| Some(Server::from("server-1"))).collect();
        let now = Instant::now();
        let events: Vec<Event> = (0..1_000)
            .flat_map(|client| {
                [What::Left(None), What::Arrived("server-2".into())].map(|what| Event { at: now, client, what })
            })
            .collect();
        let tally = Tally::of(&places, &events, now, now);
        let cast = [("server-1".into(), "left"), ("server-2".into(), "joined")];
        let story = "A story that is told at great length. ".repeat(10);
        for width in [1, 20, 40, 80, 300] {
            let elapsed = Duration::from_secs(100);
            let scene = Scene { heading: "act", story: &story, elapsed, cast: &cast, tally: &tally, view: None };
            for line in lines(&scene, width) {
                assert!(line.chars().count() <= width, "{line:?} is wider than {width}");
            }
        }
    }

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(500, 1_000, 10), "█".repeat(5));
        assert_eq!(bar(1_000, 1_000, 10), "█".repeat(10));
        assert_eq!(bar(0, 1_000, 10), "");
        assert_eq!(bar(1, 1_000, 10), "▏", "one connection is seen");
    }
}

//! The terminal: a picture redrawn in place when it is one, plain lines when it is not.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossterm::cursor::{Hide, MoveToColumn, MoveUp, Show};
use crossterm::queue;
use crossterm::terminal::{BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, size};
use tokio::time::{MissedTickBehavior, interval};

use super::ledger::{Ledger, Mark, Server};
use super::picture::{self, Scene};
use super::verdict::Tally;
use super::view::View;

/// How often the picture is redrawn.
const REDRAW: Duration = Duration::from_millis(100);
/// How often a plain line is printed.
const PROGRESS: Duration = Duration::from_secs(1);
/// The width of a terminal that does not tell its own.
const WIDTH: usize = 80;

/// Where everything is printed.
#[derive(Debug)]
pub struct Screen {
    live: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Lines of the picture that stand on the terminal now.
    drawn: u16,
    act: Option<Act>,
}

#[derive(Debug)]
struct Act {
    heading: String,
    story: String,
    ledger: Arc<Ledger>,
    mark: Mark,
    began: Instant,
    cast: Vec<(Server, &'static str)>,
    view: Option<View>,
}

impl Screen {
    /// Standard output, live when it is a terminal.
    pub fn new() -> Self {
        let live = io::stdout().is_terminal();
        if live {
            // A panic aborts the process, so that nothing is dropped: give the cursor back here too.
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                let _ = queue!(io::stdout(), Show);
                report(panic);
            }));
        }
        Self { live, state: Mutex::default() }
    }

    /// Begins a picture: what the clients see from a mark on.
    pub fn begin(&self, heading: &str, story: &str, ledger: &Arc<Ledger>, mark: &Mark, cast: &[(&str, &'static str)]) {
        if !self.live {
            self.say(&format!("\n{heading}: {story}"));
        }
        self.state().act = Some(Act {
            heading: heading.into(),
            story: story.into(),
            ledger: Arc::clone(ledger),
            mark: mark.clone(),
            began: Instant::now(),
            cast: cast.iter().map(|(server, note)| (Server::from(*server), *note)).collect(),
            view: None,
        });
    }

    /// Says what becomes of a server.
    pub fn note(&self, server: &str, note: &'static str) {
        if let Some(act) = &mut self.state().act {
            act.cast.retain(|(known, _)| **known != *server);
            act.cast.push((server.into(), note));
            act.cast.sort();
        }
    }

    /// Takes the operator's latest word.
    pub fn show(&self, view: &View) {
        if let Some(act) = &mut self.state().act {
            act.view = Some(view.clone());
        }
    }

    /// Ends the picture.
    pub fn end(&self) {
        let mut state = self.state();
        self.print(&mut state, &[], &[]);
        state.act = None;
    }

    /// Prints a line that stays, above the picture.
    pub fn say(&self, line: &str) {
        let mut state = self.state();
        let picture = state.act.as_ref().filter(|_| self.live).map(Act::picture).unwrap_or_default();
        self.print(&mut state, &[line.to_owned()], &picture);
    }

    /// Keeps the picture up to date, for ever.
    pub async fn run(&self) {
        let mut tick = interval(if self.live { REDRAW } else { PROGRESS });
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let mut state = self.state();
            match &state.act {
                None => {}
                Some(act) if self.live => {
                    let picture = act.picture();
                    self.print(&mut state, &[], &picture);
                }
                Some(act) => {
                    let line = act.with_scene(picture::line);
                    self.print(&mut state, &[line], &[]);
                }
            }
        }
    }

    /// Replaces the picture on the terminal by lines that stay and a new picture, in one write.
    fn print(&self, state: &mut State, lines: &[String], picture: &[String]) {
        let mut out = Vec::new();
        let drawn = if self.live { queue_frame(&mut out, state.drawn, lines, picture) } else { None };
        if let Some(drawn) = drawn {
            state.drawn = drawn;
        } else {
            out = lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect();
        }
        // Whoever closed our output does not want to know; the exit code still tells.
        let _ = io::stdout().write_all(&out).and_then(|()| io::stdout().flush());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.end();
    }
}

impl Act {
    fn with_scene<T>(&self, draw: impl FnOnce(&Scene) -> T) -> T {
        let tally = Tally::of(&self.mark.places, &self.ledger.since(&self.mark), self.began, Instant::now());
        draw(&Scene {
            heading: &self.heading,
            story: &self.story,
            elapsed: self.began.elapsed(),
            cast: &self.cast,
            tally: &tally,
            view: self.view.as_ref(),
        })
    }

    fn picture(&self) -> Vec<String> {
        let width = size().map_or(WIDTH, |(columns, _)| usize::from(columns));
        // The last column stays free: some terminals wrap as soon as it is written.
        self.with_scene(|scene| picture::lines(scene, width.saturating_sub(1)))
    }
}

/// One frame: returns the number of lines that the next one has to go up. A `Vec` takes every command.
fn queue_frame(out: &mut Vec<u8>, drawn: u16, lines: &[String], picture: &[String]) -> Option<u16> {
    queue!(out, BeginSynchronizedUpdate, MoveToColumn(0)).ok()?;
    if drawn > 0 {
        queue!(out, MoveUp(drawn)).ok()?;
    }
    queue!(out, Clear(ClearType::FromCursorDown)).ok()?;
    if picture.is_empty() {
        queue!(out, Show).ok()?;
    } else {
        queue!(out, Hide).ok()?;
    }
    for line in lines.iter().chain(picture) {
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    queue!(out, EndSynchronizedUpdate).ok()?;
    u16::try_from(picture.len()).ok()
}

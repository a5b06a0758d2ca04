//! When an eviction does what: pure decisions over a connection's state and the time.
//!
//! ```text
//!  command ──quiet, or cut──► notice ──reply──► FIN ──EOF──► gone
//!     └───── 2 s at most ──────┘ └─ 2 s at most ─┘ └─ 2 s ──┘
//!                                └────── 5 s at most ──────┘ else reset
//! ```

use std::time::{Duration, Instant};

/// How long both ways must be silent before a connection is told.
pub const QUIET: Duration = Duration::from_millis(200);
/// From then on a busy connection is told at the next end of a message, in the middle of what the app writes.
pub const BUSY: Duration = Duration::from_secs(1);
/// From then on also between the fragments of a message.
pub const LAST_CALL: Duration = Duration::from_millis(1_500);
/// When a connection is told at the latest, or reset when its client is in the middle of a frame.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// How long a connection that was closing by itself may take.
pub const FINISH: Duration = Duration::from_secs(5);

/// How long a client has for its reply to our Close.
pub const REPLY: Duration = Duration::from_secs(2);
/// How long we go on reading after our FIN, so that no RST destroys the Close that the client has not read yet.
pub const LINGER: Duration = Duration::from_secs(2);
/// When what is left of a connection that was told is reset.
pub const PART: Duration = Duration::from_secs(5);

/// The state of a connection that is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How long both ways have been silent.
    pub quiet: Duration,
    /// The way to the client.
    pub down: Position,
    /// The way to the app.
    pub up: Position,
    /// Whether either way holds bytes that the other side did not take yet.
    pub pending: bool,
    /// Whether either side has sent Close or FIN.
    pub closing: bool,
}

/// Where a way stands in its stream of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Between messages.
    Message,
    /// Between the fragments of a message.
    Fragment,
    /// In the middle of a frame.
    Frame,
    /// Unknown: the frames are malformed.
    Malformed,
}

/// What to do with a connection that is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go on, and ask again at this time, or when something has changed.
    Wait(Instant),
    /// Tell it now; with a message only when that is allowed here.
    Tell {
        /// Whether a message may go to the client.
        message: bool,
    },
    /// Reset it now.
    Reset,
}

/// Up to where the app's bytes may go to the client before the notice takes their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// No limit: the connection is still waited for.
    Never,
    /// The next end of a message.
    Message,
    /// The next end of a frame.
    Frame,
}

/// Decides for a connection whose eviction was commanded at `since`.
pub fn step(since: Instant, now: Instant, facts: &Facts) -> Step {
    let waited = now.saturating_duration_since(since);
    if facts.closing {
        return if waited >= FINISH { Step::Reset } else { Step::Wait(since + FINISH) };
    }
    let quiet = facts.quiet >= QUIET && !facts.pending;
    if facts.down == Position::Malformed || facts.up == Position::Malformed {
        return if quiet || waited >= DEADLINE { Step::Reset } else { Step::Wait(wake(since, now, facts)) };
    }
    let tell = match facts.down {
        Position::Message => (quiet && facts.up == Position::Message) || (waited >= BUSY && !facts.pending),
        Position::Fragment => waited >= LAST_CALL && !facts.pending,
        Position::Frame | Position::Malformed => false,
    };
    let boundary = matches!(facts.down, Position::Message | Position::Fragment);
    if tell || (boundary && waited >= DEADLINE) {
        Step::Tell { message: facts.down == Position::Message }
    } else if waited >= DEADLINE {
        Step::Reset
    } else {
        Step::Wait(wake(since, now, facts))
    }
}

/// Where the app's bytes may be cut now.
pub fn cut(since: Instant, now: Instant) -> Cut {
    let waited = now.saturating_duration_since(since);
    if waited >= LAST_CALL {
        Cut::Frame
    } else if waited >= BUSY {
        Cut::Message
    } else {
        Cut::Never
    }
}

/// The next time at which something changes by itself.
fn wake(since: Instant, now: Instant, facts: &Facts) -> Instant {
    let quiet = QUIET.checked_sub(facts.quiet).map(|left| now + left);
    let times = [quiet, Some(since + BUSY), Some(since + LAST_CALL), Some(since + DEADLINE)];
    times.into_iter().flatten().filter(|time| *time > now).min().unwrap_or(now)
}

/// What a connection that was told has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parting {
    /// When it was told.
    pub told: Instant,
    /// When our FIN went to the client.
    pub finished: Option<Instant>,
    /// Whether the client has closed its side.
    pub client_gone: bool,
    /// Whether the app has closed, or has been told and has answered.
    pub app_gone: bool,
}

/// What to do with a connection that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartingStep {
    /// Go on, and ask again at this time, or when something has changed.
    Wait(Instant),
    /// Both sides are done.
    End,
    /// Reset what is left.
    Reset,
}

impl Parting {
    /// Whether the client has had its time to reply.
    pub fn overdue(&self, now: Instant) -> bool {
        now >= self.told + REPLY
    }

    /// Decides.
    pub fn step(&self, now: Instant) -> PartingStep {
        let lingered = self.finished.is_some_and(|finished| self.client_gone || now >= finished + LINGER);
        if lingered && self.app_gone {
            return PartingStep::End;
        }
        if now >= self.told + PART {
            return PartingStep::Reset;
        }
        let times = [Some(self.told + REPLY), self.finished.map(|finished| finished + LINGER)];
        let next = times.into_iter().flatten().filter(|time| *time > now).min();
        PartingStep::Wait(next.unwrap_or(self.told + PART).min(self.told + PART))
    }
}

#[cfg(test)]
mod tests;

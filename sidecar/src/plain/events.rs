//! An answer that is a stream of events (`text/event-stream`): a connection like others, which ends after an event.
//!
//! hyper asks for no more of it while the client does not read. So the client's connection looks after it, too
//! ([`Current`]), and breaks when a stream that must end does not.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming};
use tokio::time::Sleep;

use crate::admission::Place;
use crate::eviction::DEADLINE;
use crate::held::Held;
use crate::relay::{Command, Ended, Fate, Hooks as _, Link, Manner};
use crate::sidecar::Sidecar;

/// The body. The app's side goes before the key does.
pub(crate) struct Events {
    body: Incoming,
    stream: Rc<RefCell<Stream>>,
}

/// The stream of events that a client's connection has, if it has one.
#[derive(Default)]
pub(super) struct Current(RefCell<Weak<RefCell<Stream>>>);

/// A stream, and its connection in the registry.
struct Stream {
    link: Arc<Link>,
    position: Position,
    /// From the command to leave.
    deadline: Option<Pin<Box<Sleep>>>,
    over: bool,
    held: Held,
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    /// The last byte was a carriage return: a line feed behind it belongs to the same end of a line.
    after_return: bool,
    line: Line,
    /// Whether an event has begun.
    in_event: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Empty,
    Comment,
    Field,
}

impl Position {
    /// Goes on by one byte; says whether that ends an event.
    fn step(&mut self, byte: u8) -> bool {
        let in_event = self.in_event;
        let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
        match byte {
            b'\n' if after_return => {}
            b'\n' | b'\r' => {
                self.in_event = match std::mem::take(&mut self.line) {
                    Line::Empty => false,
                    Line::Comment => self.in_event,
                    Line::Field => true,
                }
            }
            b':' if self.line == Line::Empty => self.line = Line::Comment,
            _ if self.line == Line::Empty => self.line = Line::Field,
            _ => {}
        }
        in_event && !self.in_event
    }

    fn is_between_events(self) -> bool {
        !self.in_event && self.line == Line::Empty
    }
}

impl Events {
    /// The app's stream, which has this place here. It is the one that `current` looks after from now on.
    pub(super) fn here(body: Incoming, place: Place, current: &Current) -> Self {
        Self::of(body, current, |link| Held::here(place, link))
    }

    /// A peer's stream, likewise.
    pub(super) fn in_transit(body: Incoming, sidecar: &Arc<Sidecar>, current: &Current) -> Self {
        Self::of(body, current, |link| Held::transit(sidecar, link))
    }

    fn of(body: Incoming, current: &Current, register: impl FnOnce(&Arc<Link>) -> Held) -> Self {
        let link = Arc::new(Link::new());
        // Messages of ours are for WebSockets.
        link.shut_mailbox(Fate::Unable);
        let held = register(&link);
        let stream = Stream { link, position: Position::default(), deadline: None, over: false, held };
        let stream = Rc::new(RefCell::new(stream));
        current.0.replace(Rc::downgrade(&stream));
        Self { body, stream }
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut stream = self.stream.borrow_mut();
        stream.obey(cx);
        if stream.over {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(stream.pass(frame)))),
            other => other,
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.stream.borrow().over || self.body.is_end_stream()
    }
}

impl Current {
    /// Whether it must be gone, and is still there.
    pub(super) fn is_stuck(&self, cx: &mut Context<'_>) -> bool {
        let stream = self.0.borrow().upgrade();
        stream.is_some_and(|stream| stream.borrow_mut().obey(cx))
    }
}

impl Stream {
    /// Does what it was told; says whether the time for that has passed.
    fn obey(&mut self, cx: &mut Context<'_>) -> bool {
        match self.link.poll_command(cx) {
            Poll::Ready(Command::Reset) => {
                self.over = true;
                return true;
            }
            Poll::Ready(Command::Evict) => self.deadline = Some(Box::pin(tokio::time::sleep(DEADLINE))),
            Poll::Pending => {}
        }
        let Some(deadline) = &mut self.deadline else { return false };
        let overdue = deadline.as_mut().poll(cx).is_ready();
        if self.position.is_between_events() {
            self.part(Manner::Clean);
        } else if overdue {
            self.part(Manner::Reset);
        }
        overdue && self.over
    }

    /// Ends it, unless it may stay.
    fn part(&mut self, manner: Manner) {
        if self.over {
            return;
        }
        if self.held.confirm().is_some() {
            self.held.record(Ended::Evicted { manner, discarded: 0 });
            self.over = true;
        } else {
            self.deadline = None;
        }
    }

    /// What goes to the client of a frame: all of it, or what ends with the last whole event when it must leave.
    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let Some(bytes) = frame.data_ref() else { return frame };
        self.link.touch();
        let mut whole = None;
        for (at, byte) in bytes.iter().enumerate() {
            if self.position.step(*byte) {
                // Comments keep a connection alive, and say nothing.
                self.link.hear(Some(u8::MAX));
            }
            if self.position.is_between_events() {
                whole = Some(at + 1);
            }
        }
        let Some(whole) = whole.filter(|_| self.deadline.is_some()) else { return frame };
        let kept = bytes.slice(..whole);
        self.part(Manner::Clean);
        if self.over { Frame::data(kept) } else { frame }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(stream: &str) -> Vec<usize> {
        let mut position = Position::default();
        let mut at = Vec::new();
        for (index, byte) in stream.bytes().enumerate() {
            position.step(byte);
            if position.is_between_events() {
                at.push(index + 1);
            }
        }
        at
    }

    #[test]
    fn an_event_ends_with_a_blank_line_however_lines_end() {
        assert!(Position::default().is_between_events());
        assert_eq!(between("data: a\n\ndata: b\n"), [9]);
        assert_eq!(between("data: a\r\rdata: b"), [9]);
        assert_eq!(between("data: a\r\n\r\nid: 1\r\n"), [10, 11]);
    }

    #[test]
    fn events_are_heard_and_comments_are_not() {
        let heard = |stream: &str| {
            let mut position = Position::default();
            stream.bytes().filter(|byte| position.step(*byte)).count()
        };
        assert_eq!(heard("data: a\n\nid: 1\r\n\r\ndata: b\r\rdata: c\n"), 3);
        assert_eq!(heard(":\n\n: still here\r\n\r\n\n"), 0);
        assert_eq!(heard(":\ndata: a\n:\n\n"), 1);
    }

    #[test]
    fn a_comment_is_no_event_and_ends_none() {
        assert_eq!(between(":\n"), [2]);
        assert_eq!(between("data: a\n:\ndata: b\n\n"), [19]);
    }
}

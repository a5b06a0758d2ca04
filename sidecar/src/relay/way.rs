//! One direction of a connection: what is read on one side is written on the other.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;

use crate::buffer::{self, Buffer};
use crate::eviction::{Cut, Position};
use crate::frame::Follower;

/// Reads per wake-up: a side that never stops sending must not starve the other direction.
const ROUNDS: usize = 16;

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) follower: Follower,
    /// What the reading side did not take yet. Nothing is read while there is any, so it is bounded by one read.
    backlog: Option<Box<Backlog>>,
    /// The writing side has closed, or broken.
    ended: bool,
    /// Our FIN has gone to the reading side, or it has broken.
    shut: bool,
}

#[derive(Debug, Default)]
struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

/// Up to where bytes are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// The end of the stream.
    End,
    /// The end of a message.
    Message,
    /// The end of a frame.
    Frame,
    /// The beginning of a Close frame.
    Close,
}

impl From<Cut> for Until {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Never => Self::End,
            Cut::Message => Self::Message,
            Cut::Frame => Self::Frame,
        }
    }
}

/// What came of passing bytes on.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Whether any byte has moved.
    pub(super) moved: bool,
    /// The place asked for was reached: this was read behind it, and neither followed nor passed on.
    pub(super) behind: Option<Vec<u8>>,
    /// The writing side has broken, which is more than having closed.
    pub(super) broken: bool,
}

impl Way {
    /// A way that has these bytes to pass on.
    pub(super) fn new(early: Vec<u8>) -> Self {
        let mut way = Self::default();
        way.follower.feed(&early);
        way.queue(early);
        way
    }

    pub(super) fn position(&self) -> Position {
        if self.follower.malformed() {
            Position::Malformed
        } else if self.follower.between_messages() {
            Position::Message
        } else if self.follower.between_frames() {
            Position::Fragment
        } else {
            Position::Frame
        }
    }

    /// Whether the writing side has closed or broken.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether nothing more can be written to the reading side.
    pub(super) fn shut(&self) -> bool {
        self.shut
    }

    pub(super) fn pending(&self) -> bool {
        self.backlog.is_some()
    }

    /// The reading side has broken. The writing side is still read, and what it writes dropped: closing a socket with
    /// unread bytes would send an RST, which destroys what its peer has not read yet.
    pub(super) fn block(&mut self) {
        self.backlog = None;
        self.shut = true;
    }

    /// The reading side has broken, and the writing side is not waited for.
    pub(super) fn abandon(&mut self) {
        self.block();
        self.ended = true;
    }

    /// Writes `bytes` behind what is pending, as soon as the way is flushed.
    pub(super) fn queue(&mut self, bytes: Vec<u8>) {
        if bytes.is_empty() || self.shut {
            return;
        }
        match &mut self.backlog {
            Some(backlog) => backlog.bytes.extend(bytes),
            None => self.backlog = Some(Box::new(Backlog { bytes, sent: 0 })),
        }
    }

    /// Writes a frame of ours behind what is pending. The caller has seen that this is a place for one.
    pub(super) fn insert(&mut self, cx: &mut Context<'_>, to: &mut TcpStream, frame: &[u8]) {
        if self.pending() {
            self.queue(frame.to_vec());
        } else {
            self.send(cx, to, frame);
        }
    }

    /// Passes on what there is, up to `until`. `look` sees what was read.
    pub(super) fn carry(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        until: Until,
        mut look: impl FnMut(&[u8]),
    ) -> Carried {
        let mut carried = Carried::default();
        for _ in 0..ROUNDS {
            let backlogged = self.pending();
            if self.flush(cx, to).is_pending() || self.ended {
                return carried;
            }
            if self.shut {
                self.discard(cx, from);
                return carried;
            }
            carried.moved |= backlogged;
            let mut buffer = Buffer::take();
            let bytes = match buffer.read(cx, from, buffer::SIZE) {
                Poll::Pending => return carried,
                Poll::Ready(Ok([])) => {
                    self.ended = true;
                    return carried;
                }
                Poll::Ready(Err(_)) => {
                    self.ended = true;
                    carried.broken = true;
                    return carried;
                }
                Poll::Ready(Ok(bytes)) => bytes,
            };
            carried.moved = true;
            look(bytes);
            let reached = match until {
                Until::End => {
                    self.follower.feed(bytes);
                    None
                }
                Until::Message => self.follower.feed_to_message_end(bytes),
                Until::Frame => self.follower.feed_to_frame_end(bytes),
                Until::Close => self.follower.feed_to_close(bytes),
            };
            let (here, behind) = bytes.split_at(reached.unwrap_or(bytes.len()));
            self.send(cx, to, here);
            if reached.is_some() {
                carried.behind = Some(behind.to_vec());
                return carried;
            }
        }
        cx.waker().wake_by_ref();
        carried
    }

    /// Reads what there is and drops it; returns how many bytes came before a Close frame.
    pub(super) fn discard(&mut self, cx: &mut Context<'_>, from: &mut TcpStream) -> u64 {
        let mut dropped = 0;
        for _ in 0..ROUNDS {
            if self.ended {
                return dropped;
            }
            let mut buffer = Buffer::take();
            match buffer.read(cx, from, buffer::SIZE) {
                Poll::Pending => return dropped,
                Poll::Ready(Ok([]) | Err(_)) => self.ended = true,
                Poll::Ready(Ok(bytes)) => dropped += self.drop_bytes(bytes),
            }
        }
        cx.waker().wake_by_ref();
        dropped
    }

    /// Follows bytes that are not passed on; returns how many came before a Close frame.
    pub(super) fn drop_bytes(&mut self, bytes: &[u8]) -> u64 {
        if self.follower.closed() {
            return 0;
        }
        let dropped = self.follower.feed_to_close(bytes).unwrap_or(bytes.len());
        self.follower.feed(&bytes[dropped..]);
        dropped as u64
    }

    /// Writes the backlog. Ready when nothing is left of it.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>, to: &mut TcpStream) -> Poll<()> {
        let Some(backlog) = &mut self.backlog else { return Poll::Ready(()) };
        while backlog.sent < backlog.bytes.len() {
            match write(cx, to, &backlog.bytes[backlog.sent..]) {
                Poll::Ready(Ok(sent)) => backlog.sent += sent,
                Poll::Ready(Err(_)) => {
                    self.block();
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        self.backlog = None;
        Poll::Ready(())
    }

    /// Sends our FIN behind what is pending. Ready when it has gone.
    pub(super) fn finish(&mut self, cx: &mut Context<'_>, to: &mut TcpStream) -> Poll<()> {
        ready!(self.flush(cx, to));
        if !self.shut {
            self.shut = true;
            // It fails when the other side has reset the connection: then there is nobody to tell.
            let _ = SockRef::from(&*to).shutdown(std::net::Shutdown::Write);
        }
        Poll::Ready(())
    }

    /// Writes straight through, and keeps what is not taken.
    fn send(&mut self, cx: &mut Context<'_>, to: &mut TcpStream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match write(cx, to, bytes) {
                Poll::Ready(Ok(sent)) => bytes = &bytes[sent..],
                Poll::Ready(Err(_)) => return self.block(),
                Poll::Pending => return self.queue(bytes.to_vec()),
            }
        }
    }
}

fn write(cx: &mut Context<'_>, to: &mut TcpStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(written),
    }
}

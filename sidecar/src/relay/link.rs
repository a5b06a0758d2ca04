//! What the rest of the process may see and do of a connection that is being relayed.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use ring::settings::NoticeProtocol;

use super::mailbox::{Fate, Mail, Mailbox};
use crate::clock;
use crate::message::Message;

const EVICT: u8 = 1;
const RESET: u8 = 2;

/// A connection's commands and signs of life, shared between its task and the registry.
#[derive(Debug, Default)]
pub struct Link {
    /// The strongest command not yet obeyed.
    command: AtomicU8,
    half_closed: AtomicBool,
    /// The clock's tick when bytes last moved, either way.
    active: AtomicU32,
    /// The clock's tick when a message last passed, either way. Control frames and heartbeats are none.
    spoke: AtomicU32,
    /// The longest payload of a heartbeat that is a message.
    heartbeat: u8,
    /// The clock's tick when it began.
    began: u32,
    /// Whether the mailbox has anything in it: looked at on every wake-up, unlike the mailbox.
    mail: AtomicBool,
    mailbox: Mutex<Option<Box<Mailbox>>>,
    waker: AtomicWaker,
}

/// What a connection has been told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Begin its eviction.
    Evict,
    /// Break at once.
    Reset,
}

impl Link {
    /// The link of a connection that begins now.
    pub fn new() -> Self {
        Self::of(NoticeProtocol::default())
    }

    /// The same, of a client that speaks a protocol: its heartbeats are no messages.
    pub fn of(protocol: NoticeProtocol) -> Self {
        let now = clock::ticks();
        let heartbeat = protocol.heartbeat();
        Self { active: AtomicU32::new(now), spoke: AtomicU32::new(now), heartbeat, began: now, ..Self::default() }
    }

    /// How long it has been there, in steps of [`clock::TICK`].
    pub fn age(&self) -> Duration {
        clock::TICK * clock::ticks_since(self.began)
    }

    /// Puts a message into the client's stream, as soon as there is a place for it. A promised one comes back when there
    /// never will be.
    pub fn post(&self, mail: Mail) -> Option<(Message, Instant)> {
        let refused = self.mailbox(|mailbox| mailbox.post(mail));
        self.waker.wake();
        refused
    }

    /// Takes no messages any more; those whose senders wait have this fate.
    pub fn shut_mailbox(&self, fate: Fate) {
        self.mailbox(|mailbox| mailbox.shut(fate));
    }

    /// Whether it takes no messages any more.
    pub fn takes_no_mail(&self) -> bool {
        let mailbox = self.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        mailbox.as_deref().is_some_and(Mailbox::is_shut)
    }

    /// Takes no messages any more, and gives back what was promised and is not written.
    pub fn reclaim_mail(&self) -> Vec<(Message, Instant)> {
        self.mailbox(Mailbox::reclaim)
    }

    /// Does something with the mailbox. There is none before that.
    fn mailbox<T>(&self, act: impl FnOnce(&mut Mailbox) -> T) -> T {
        let mut mailbox = self.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mailbox = mailbox.get_or_insert_default();
        let outcome = act(mailbox);
        self.mail.store(mailbox.is_waiting(), Ordering::Release);
        outcome
    }

    /// Asks for the connection's eviction. Its deadline runs from the moment its task sees the command.
    pub fn evict(&self) {
        self.command.fetch_max(EVICT, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Resets both sides at once.
    pub fn reset(&self) {
        self.command.store(RESET, Ordering::Release);
        self.waker.wake();
    }

    /// How long, at least, no byte has moved either way, in steps of [`clock::TICK`].
    pub fn quiet(&self) -> Duration {
        clock::TICK * clock::ticks_since(self.active.load(Ordering::Relaxed)).saturating_sub(1)
    }

    /// How many of the clock's ticks no message has passed, either way.
    pub fn silent_ticks(&self) -> u32 {
        clock::ticks_since(self.spoke.load(Ordering::Relaxed))
    }

    /// Whether one side has closed and the other has not. Some never do, so a sweep should reset such a connection when
    /// it has been quiet for long: bytes that can no longer be passed on do not count.
    pub fn half_closed(&self) -> bool {
        self.half_closed.load(Ordering::Relaxed)
    }

    pub(super) fn has_mail(&self) -> bool {
        self.mail.load(Ordering::Acquire)
    }

    /// Ready when the mail has been held for so long since this was first asked.
    pub(super) fn hold_mail(&self, cx: &mut Context<'_>, time: Duration) -> Poll<()> {
        self.mailbox(|mailbox| mailbox.hold(cx, time))
    }

    /// The frame to write next. From here on its message counts as written.
    pub(super) fn next_mail(&self) -> Option<Bytes> {
        self.mailbox(Mailbox::next)
    }

    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// The command to obey. An eviction is taken, so that a second command after a called-off eviction is seen.
    pub(super) fn take_command(&self) -> Option<Command> {
        match self.command.load(Ordering::Acquire) {
            0 => None,
            EVICT => {
                let taken = self.command.compare_exchange(EVICT, 0, Ordering::AcqRel, Ordering::Acquire);
                Some(if taken.is_ok() { Command::Evict } else { Command::Reset })
            }
            _ => Some(Command::Reset),
        }
    }

    /// Waits for a command, where no relay looks for it.
    pub async fn commanded(&self) -> Command {
        std::future::poll_fn(|cx| self.poll_command(cx)).await
    }

    /// The same, for those that are polled.
    pub fn poll_command(&self, cx: &mut Context<'_>) -> Poll<Command> {
        self.register(cx.waker());
        self.take_command().map_or(Poll::Pending, Poll::Ready)
    }

    /// Something has moved.
    pub fn touch(&self) {
        self.active.store(clock::ticks(), Ordering::Relaxed);
    }

    /// In what has just moved, data frames have begun, the longest with a payload of this size.
    pub fn hear(&self, longest: Option<u8>) {
        if longest.is_some_and(|longest| longest > self.heartbeat || self.heartbeat == 0) {
            self.spoke.store(self.active.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    pub(super) fn set_half_closed(&self) {
        self.half_closed.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_that_are_messages_are_known_by_their_length() {
        let long_ago = clock::ticks().wrapping_sub(100);
        let length = |message: &str| Some(u8::try_from(message.len()).expect("a short message"));
        for (protocol, size, counts) in [
            (NoticeProtocol::WebSocket, Some(0), true),
            (NoticeProtocol::WebSocket, None, false),
            (NoticeProtocol::SocketIO, Some(1), false),
            (NoticeProtocol::SocketIO, Some(2), true),
            (NoticeProtocol::SignalR, Some(11), false),
            (NoticeProtocol::SignalR, Some(12), true),
            (NoticeProtocol::GraphQLWS, length(r#"{"type":"pong"}"#), false),
            (NoticeProtocol::GraphQLWS, length(r#"{"id":"1","type":"complete"}"#), true),
            (NoticeProtocol::Discord, length(r#"{"op":1,"d":12345678901}"#), false),
            (NoticeProtocol::Discord, length(r#"{"op":0,"s":1,"t":"A","d":{}}"#), true),
            (NoticeProtocol::Pusher, length(r#"{"event":"pusher:ping","data":{}}"#), false),
            (NoticeProtocol::Pusher, length(r#"{"event":"a","channel":"b","data":""}"#), true),
            (NoticeProtocol::ActionCable, length(r#"{"type":"ping","message":1700000000}"#), false),
            (NoticeProtocol::ActionCable, length(r#"{"identifier":"{\"channel\":\"A\"}","message":1}"#), true),
            (NoticeProtocol::Phoenix, length(r#"[null,"1","phoenix","heartbeat",{}]"#), true),
        ] {
            let link = Link::of(protocol);
            link.spoke.store(long_ago, Ordering::Relaxed);
            link.hear(size);
            assert_eq!(link.silent_ticks() < 100, counts, "{protocol:?} {size:?}");
        }
    }
}

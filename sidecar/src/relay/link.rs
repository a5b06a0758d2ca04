//! What the rest of the process may see and do of a connection that is being relayed.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;

use crate::clock;

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
    waker: AtomicWaker,
}

/// What a connection has been told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Begin its eviction.
    Evict,
    /// Break at once.
    Reset,
}

impl Link {
    /// The link of a connection that begins now.
    pub fn new() -> Self {
        Self { active: AtomicU32::new(clock::ticks()), ..Self::default() }
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

    /// Whether one side has closed and the other has not. Some never do, so a sweep should reset such a connection when
    /// it has been quiet for long: bytes that can no longer be passed on do not count.
    pub fn half_closed(&self) -> bool {
        self.half_closed.load(Ordering::Relaxed)
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

    pub(super) fn touch(&self) {
        self.active.store(clock::ticks(), Ordering::Relaxed);
    }

    pub(super) fn set_half_closed(&self) {
        self.half_closed.store(true, Ordering::Relaxed);
    }
}

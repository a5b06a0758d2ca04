//! An eviction after the client was told: its Close reply, the app's Close, and both sides' ends.

use std::task::Context;
use std::time::Instant;

use super::way::Until;
use super::{Ended, Eviction, Hooks, Manner, Next, Relay};
use crate::eviction::{Parting, PartingStep};
use crate::frame;

/// What has been done for a connection that was told.
#[derive(Debug)]
pub(super) struct Farewell {
    state: Parting,
    app_close_code: u16,
    app: AppSide,
    discarded: u64,
}

/// What the app has been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AppSide {
    /// The client's bytes, still.
    Open,
    /// Its Close, behind them.
    Told,
    /// The end of the client's stream, which broke off in the middle of a frame: a Close would be read as its payload.
    Truncated,
    /// Nothing more: it has closed.
    Closed,
}

impl Farewell {
    pub(super) fn new(told: Instant, app_close_code: u16, discarded: u64) -> Self {
        let state = Parting { told, finished: None, client_gone: false, app_gone: false };
        Self { state, app_close_code, app: AppSide::Open, discarded }
    }
}

impl<H: Hooks> Relay<H> {
    /// After the client was told.
    pub(super) fn part(&mut self, cx: &mut Context<'_>, eviction: &mut Eviction) -> Next {
        let Some(farewell) = &mut eviction.farewell else { return Next::Again };
        let now = Instant::now();
        self.part_from_app(cx, farewell, now);
        self.part_from_client(cx, farewell, now);
        match farewell.state.step(now) {
            PartingStep::Wait(until) => Next::Wait(until),
            PartingStep::End => {
                let manner = if self.up.follower.closed() { Manner::Clean } else { Manner::Unanswered };
                Next::End(Ended::Evicted { manner, discarded: farewell.discarded })
            }
            PartingStep::Reset => {
                self.reset();
                Next::End(self.cut_short(farewell))
            }
        }
    }

    /// How an eviction ends when the sockets have been reset after the client was told.
    pub(super) fn cut_short(&self, farewell: &Farewell) -> Ended {
        if !farewell.state.app_gone {
            self.hooks.app_closed();
        }
        Ended::Evicted { manner: Manner::Reset, discarded: farewell.discarded }
    }

    fn part_from_app(&mut self, cx: &mut Context<'_>, farewell: &mut Farewell, now: Instant) {
        // What it writes has nowhere to go, but it must be able to write, or it would never come to read its Close.
        farewell.discarded += self.down.discard(cx, &mut self.app);
        if self.down.ended() || self.up.shut() {
            self.up.block();
            farewell.app = AppSide::Closed;
        }
        if farewell.app == AppSide::Open {
            farewell.app = self.pass_until_close(cx, farewell, now);
        }
        let gone = match farewell.app {
            AppSide::Open => false,
            AppSide::Told => self.down.follower.closed() && self.up.finish(cx, &mut self.app).is_ready(),
            AppSide::Truncated => self.up.finish(cx, &mut self.app).is_ready(),
            AppSide::Closed => true,
        };
        if gone && !farewell.state.app_gone {
            farewell.state.app_gone = true;
            self.hooks.app_closed();
        }
        // Without an answer yet the Close must still get out.
        let _ = self.up.flush(cx, &mut self.app);
    }

    /// Passes the client's bytes on up to its Close reply, and puts the app's Close in its place. A client that is
    /// overdue is not waited for: its bytes end at the next end of a frame.
    fn pass_until_close(&mut self, cx: &mut Context<'_>, farewell: &Farewell, now: Instant) -> AppSide {
        let overdue = farewell.state.overdue(now);
        let mut behind = Vec::new();
        if !(overdue && self.up.follower.between_frames()) {
            let until = if overdue { Until::Frame } else { Until::Close };
            match self.up.carry(cx, &mut self.client, &mut self.app, until, |_| {}).behind {
                Some(bytes) => behind = bytes,
                None if self.up.ended() => {}
                None => return AppSide::Open,
            }
        }
        if !self.up.follower.between_frames() {
            return AppSide::Truncated;
        }
        self.up.queue(frame::masked_close(farewell.app_close_code, rand::random()));
        self.up.drop_bytes(&behind);
        AppSide::Told
    }

    fn part_from_client(&mut self, cx: &mut Context<'_>, farewell: &mut Farewell, now: Instant) {
        if farewell.app != AppSide::Open {
            self.up.discard(cx, &mut self.client);
        }
        let state = &mut farewell.state;
        state.client_gone = self.up.ended();
        let release = self.up.follower.closed() || state.client_gone || state.overdue(now);
        let flushed = self.down.flush(cx, &mut self.client).is_ready();
        if release && flushed && state.finished.is_none() {
            let _ = self.down.finish(cx, &mut self.client);
            state.finished = Some(now);
        }
    }
}

//! An app that comes back after a drain: its container was restarted, the pod stays.
//!
//! A failed liveness probe runs the preStop hook as a deletion does, and nothing tells the two apart until the app
//! listens again. It may be back sooner than a look at its port finds it gone, so it is known by another socket.

use std::collections::BTreeSet;
use std::io::Error;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::evictor;
use crate::listeners;
use crate::sidecar::Sidecar;

/// How often the app's port is looked at.
const POLL: Duration = Duration::from_millis(500);

/// Calls a drain off once another app listens on `port` than before it. Runs until `stop` turns true.
pub async fn run(sidecar: Arc<Sidecar>, port: u16, mut stop: watch::Receiver<bool>) {
    let mut app = App::default();
    loop {
        match listeners::on(port).map(|sockets| app.is_new(sidecar.drain().is_some(), sockets)) {
            Ok(true) => {
                tracing::info!("the app is back: the drain is called off");
                evictor::call_off_drain(&sidecar).await;
            }
            Ok(false) => {}
            Err(error) => app.complain(&error),
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// What is known of the app.
#[derive(Debug, Default)]
struct App {
    /// The sockets by which it listened last.
    sockets: BTreeSet<u64>,
    complained: bool,
}

impl App {
    /// Takes in who listens now; says whether a drain has outlived the app that it was for. An app with many sockets may
    /// exchange some of them: it is another one when none is left.
    fn is_new(&mut self, draining: bool, sockets: BTreeSet<u64>) -> bool {
        if sockets.is_empty() {
            return false;
        }
        let is_new = draining && !self.sockets.is_empty() && self.sockets.is_disjoint(&sockets);
        self.sockets = sockets;
        is_new
    }

    /// Says once that nothing can be known.
    fn complain(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(%error, "who listens cannot be read: the drain of an app that is restarted is not called off");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each look says, of (draining, sockets).
    fn looks<const N: usize>(looks: [(bool, &[u64]); N]) -> [bool; N] {
        let mut app = App::default();
        looks.map(|(draining, sockets)| app.is_new(draining, sockets.iter().copied().collect()))
    }

    #[test]
    fn an_app_that_was_restarted_during_a_drain_is_new_once() {
        assert_eq!(
            looks([(false, &[1]), (true, &[1]), (true, &[]), (true, &[2]), (true, &[2])])[1..],
            [false, false, true, false]
        );
        assert_eq!(looks([(false, &[1]), (true, &[2])]), [false, true], "between two looks");
    }

    #[test]
    fn one_that_goes_on_or_was_never_seen_is_not() {
        assert_eq!(looks([(false, &[1, 2]), (true, &[2, 3]), (true, &[3, 4])]), [false; 3], "workers come and go");
        assert_eq!(looks([(true, &[]), (true, &[1]), (true, &[1])]), [false; 3]);
        assert_eq!(looks([(false, &[1]), (false, &[]), (false, &[2]), (true, &[2])]), [false; 4], "restarted before");
    }
}

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

/// How often the app's port is looked at during a drain. Each look takes the kernel some milliseconds, which is why there
/// is none at other times.
const POLL: Duration = Duration::from_millis(500);

/// Calls drains off once another app listens on `port` than when they began. Runs until `stop` turns true.
pub async fn run(sidecar: Arc<Sidecar>, port: u16, mut stop: watch::Receiver<bool>) {
    let follow = async {
        loop {
            sidecar.drain_begun.notified().await;
            follow(&sidecar, port).await;
        }
    };
    tokio::select! {
        () = follow => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Looks from the beginning of a drain to its end.
async fn follow(sidecar: &Arc<Sidecar>, port: u16) {
    let mut app = App::default();
    while sidecar.drain().is_some() {
        // Not on this thread, which has peers to tell of the drain just now.
        let looked = tokio::task::spawn_blocking(move || listeners::on(port)).await;
        match looked.map_err(Error::other).flatten().map(|sockets| app.is_new(sockets)) {
            Ok(true) => {
                tracing::info!("the app is back: the drain is called off");
                return evictor::call_off_drain(sidecar).await;
            }
            Ok(false) => {}
            Err(error) => {
                let meaning = "who listens cannot be read: the drain of an app that is restarted is not called off";
                return tracing::warn!(%error, "{meaning}");
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What is known of the app.
#[derive(Debug, Default)]
struct App {
    /// The sockets by which it listened last.
    sockets: BTreeSet<u64>,
}

impl App {
    /// Takes in who listens now; says whether it is another app than before. An app with many sockets may exchange some of
    /// them: it is another one when none is left.
    fn is_new(&mut self, sockets: BTreeSet<u64>) -> bool {
        if sockets.is_empty() {
            return false;
        }
        let is_new = !self.sockets.is_empty() && self.sockets.is_disjoint(&sockets);
        self.sockets = sockets;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each look says.
    fn looks<const N: usize>(looks: [&[u64]; N]) -> [bool; N] {
        let mut app = App::default();
        looks.map(|sockets| app.is_new(sockets.iter().copied().collect()))
    }

    #[test]
    fn an_app_that_was_restarted_during_a_drain_is_new_once() {
        assert_eq!(looks([&[1], &[1], &[], &[2], &[2]]), [false, false, false, true, false]);
        assert_eq!(looks([&[1], &[2]]), [false, true], "between two looks");
    }

    #[test]
    fn one_that_goes_on_or_was_never_seen_is_not() {
        assert_eq!(looks([&[1, 2], &[2, 3], &[3, 4]]), [false; 3], "workers come and go");
        assert_eq!(looks([&[], &[1], &[1]]), [false; 3]);
    }
}

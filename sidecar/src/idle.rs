//! Closing connections that have been silent for too long: one sweep a second over all of them, no timer for each.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::sidecar::Sidecar;

/// How long one direction may go on after the other has ended.
const HALF_CLOSED: Duration = Duration::from_secs(60);

/// Runs until `stop` turns true.
pub async fn run(sidecar: Arc<Sidecar>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => sweep(&sidecar),
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

fn sweep(sidecar: &Sidecar) {
    let mut registry = sidecar.registry();
    let idle = registry.view().settings().limits.idle.0;
    let overdue = |half_closed: bool, quiet: Duration| match half_closed {
        true => quiet > HALF_CLOSED,
        false => !idle.is_zero() && quiet > idle,
    };
    let silent: Vec<_> =
        registry.links().filter(|(_, link)| overdue(link.half_closed(), link.quiet())).map(|(id, _)| id).collect();
    for id in silent {
        registry.cut(id);
    }
}

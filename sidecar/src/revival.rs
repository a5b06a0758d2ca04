//! An app that comes back after a drain: its container was restarted, the pod stays.
//!
//! A failed liveness probe runs the preStop hook as a deletion does, and nothing tells the two apart until the app
//! listens again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::evictor;
use crate::sidecar::Sidecar;

/// How often the app of a draining sidecar is looked at.
const POLL: Duration = Duration::from_millis(500);

/// Calls a drain off once the app has stopped listening and listens again. Runs until `stop` turns true.
pub async fn run(sidecar: Arc<Sidecar>, app: SocketAddr, mut stop: watch::Receiver<bool>) {
    let mut gone = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        if sidecar.drain().is_none() {
            gone = false;
            continue;
        }
        let listens = matches!(timeout(POLL, TcpStream::connect(app)).await, Ok(Ok(_)));
        if gone && listens {
            tracing::info!("the app is back: the drain is called off");
            evictor::call_off_drain(&sidecar).await;
        }
        if !gone && !listens {
            tracing::info!("the app has stopped listening: if it comes back, the drain is called off");
        }
        gone = !listens;
    }
}

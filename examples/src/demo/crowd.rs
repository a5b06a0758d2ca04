//! The clients: real WebSocket connections that come back by themselves and check numbered echoes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::ledger::Ledger;
use super::verdict::key;

/// How long a handshake may take, from the dial to the server's greeting.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// How often a client says its next number.
const SAY: Duration = Duration::from_secs(1);
/// The time between the first connections of two clients.
const APART: Duration = Duration::from_micros(2_500);
/// The most that a client waits before it returns: it comes at once, with a little jitter.
const JITTER: Duration = Duration::from_millis(50);
/// The most that it waits after tries that failed.
const CEILING: Duration = Duration::from_secs(1);

/// All clients; they end when this is dropped.
#[derive(Debug)]
pub struct Crowd {
    /// What they see.
    pub ledger: Arc<Ledger>,
    _clients: JoinSet<()>,
}

#[derive(Deserialize)]
struct Hello {
    server: String,
    user: String,
}

impl Crowd {
    /// Nobody.
    pub fn none() -> Self {
        Self { ledger: Arc::new(Ledger::new(0)), _clients: JoinSet::new() }
    }

    /// Sends so many clients to an address, one after another.
    pub fn enter(clients: usize, entry: SocketAddr) -> Self {
        let ledger = Arc::new(Ledger::new(clients));
        let mut tasks = JoinSet::new();
        let mut wait = Duration::ZERO;
        for client in 0..clients {
            tasks.spawn(live(client, wait, entry, Arc::clone(&ledger)));
            wait += APART;
        }
        Self { ledger, _clients: tasks }
    }
}

/// One client's life: it is always connected, or about to be.
async fn live(client: usize, wait: Duration, entry: SocketAddr, ledger: Arc<Ledger>) {
    sleep(wait).await;
    let mut failures = 0;
    loop {
        match timeout(HANDSHAKE, connect(client, entry)).await {
            Ok(Ok((socket, hello))) => {
                failures = 0;
                ledger.arrived(client, hello.server.into());
                if hello.user != key(client) {
                    ledger.heard(|echoes| echoes.wrong += 1);
                }
                let code = stay(socket, &ledger).await;
                ledger.left(client, code);
            }
            Ok(Err(_)) | Err(_) => failures += 1,
        }
        let most = JITTER.saturating_mul(2_u32.saturating_pow(failures)).min(CEILING);
        sleep(most.mul_f64(rand::random())).await;
    }
}

async fn connect(client: usize, entry: SocketAddr) -> Result<(WebSocketStream<TcpStream>, Hello), tungstenite::Error> {
    let stream = TcpStream::connect(entry).await?;
    stream.set_nodelay(true)?;
    let (mut socket, _) = client_async(format!("ws://{entry}/?user={}", key(client)), stream).await?;
    loop {
        match socket.next().await.ok_or(tungstenite::Error::ConnectionClosed)?? {
            Message::Text(text) => {
                let hello = serde_json::from_str(&text).map_err(|e| std::io::Error::other(e.to_string()))?;
                return Ok((socket, hello));
            }
            Message::Close(_) => return Err(tungstenite::Error::ConnectionClosed),
            _ => {}
        }
    }
}

/// Says 1, 2, 3, ... and checks the echoes until the connection ends. Returns the code of the close frame, if one came.
async fn stay(mut socket: WebSocketStream<TcpStream>, ledger: &Ledger) -> Option<u16> {
    let mut say = interval_at(Instant::now() + SAY.mul_f64(rand::random()), SAY);
    say.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0_u64;
    let mut waiting = false;
    let mut code = None;
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let right = waiting && text.parse() == Ok(number);
                    waiting = false;
                    ledger.heard(|echoes| if right { echoes.right += 1 } else { echoes.wrong += 1 });
                }
                // Its reply goes out with the next read, which also waits for the end.
                Some(Ok(Message::Close(frame))) => code = Some(frame.map_or(1005, |frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            },
            _ = say.tick(), if !waiting && code.is_none() => {
                number += 1;
                waiting = true;
                if socket.send(Message::text(number.to_string())).await.is_err() {
                    break;
                }
            }
        }
    }
    if waiting {
        ledger.heard(|echoes| echoes.unanswered += 1);
    }
    code
}

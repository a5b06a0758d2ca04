//! A wire that is listened to: what servers say to their clients' WebSockets, frame by frame, and when.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::frames::{self, opcode};

const BUFFER: usize = 64 * 1024;

/// A place in front of a sidecar where clients connect; it ends with all its connections when it is dropped.
#[derive(Debug)]
pub struct Tap {
    /// Where it listens.
    pub address: SocketAddr,
    calls: Calls,
    _task: JoinSet<()>,
}

type Calls = Arc<Mutex<Vec<Call>>>;

/// One WebSocket connection.
#[derive(Clone, Debug)]
pub struct Call {
    /// The target of its handshake.
    pub target: String,
    /// When its 101 came.
    pub accepted: Instant,
    /// What the server's side has sent: the first byte of each frame, its payload, and when it came.
    pub frames: Vec<(u8, Vec<u8>, Instant)>,
    /// Whether it has ended.
    pub ended: bool,
}

impl Call {
    /// The code of the server's Close, and when it came.
    pub fn close(&self) -> Option<(u16, Instant)> {
        let (_, payload, at) = self.frames.iter().find(|(first, ..)| first & 0x0f == opcode::CLOSE)?;
        let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
        Some((code, *at))
    }

    /// How many Closes the server's side has sent.
    pub fn closes(&self) -> usize {
        self.frames.iter().filter(|(first, ..)| first & 0x0f == opcode::CLOSE).count()
    }
}

impl Tap {
    /// Listens in front of a sidecar.
    pub async fn start(sidecar: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (calls, mut task) = (Calls::default(), JoinSet::new());
        task.spawn(listen(listener, sidecar, Arc::clone(&calls)));
        Self { address, calls, _task: task }
    }

    /// Every WebSocket connection so far, in the order of their 101s.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.calls).clone()
    }
}

async fn listen(listener: TcpListener, sidecar: SocketAddr, calls: Calls) {
    let mut wires = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    wires.spawn(carry(client, sidecar, Arc::clone(&calls)));
                }
            }
            Some(ended) = wires.join_next() => ended.expect("a wire's task never panics"),
        }
    }
}

/// Carries one connection. Libraries send a handshake in one piece, also behind other requests.
async fn carry(client: TcpStream, sidecar: SocketAddr, calls: Calls) {
    let Ok(server) = TcpStream::connect(sidecar).await else { return };
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let ear = Mutex::new(Ear { target: None, calls, bytes: Vec::new(), call: None });
    let up = async {
        let mut bytes = Vec::with_capacity(BUFFER);
        while from_client.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
            lock(&ear).hear_client(&bytes);
            if to_server.write_all(&bytes).await.is_err() {
                break;
            }
            bytes.clear();
        }
        // A side that breaks ends the way from it, as its FIN would.
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let mut bytes = Vec::with_capacity(BUFFER);
        while from_server.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
            lock(&ear).hear(&bytes);
            if to_client.write_all(&bytes).await.is_err() {
                break;
            }
            bytes.clear();
        }
        lock(&ear).end();
        let _ = to_client.shutdown().await;
    };
    tokio::join!(up, down);
}

/// Hears one connection.
struct Ear {
    /// Of the handshake, once it was sent.
    target: Option<String>,
    calls: Calls,
    bytes: Vec<u8>,
    /// Its place among the calls, from its 101 on.
    call: Option<usize>,
}

impl Ear {
    fn hear_client(&mut self, bytes: &[u8]) {
        if self.target.is_none() {
            let head = String::from_utf8_lossy(bytes).to_ascii_lowercase();
            let asks = head.contains("upgrade: websocket");
            self.target = head.split(' ').nth(1).filter(|_| asks).map(str::to_owned);
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let Some(target) = self.target.clone() else { return };
        let now = Instant::now();
        self.bytes.extend_from_slice(bytes);
        if self.call.is_none() {
            self.call = self.begin(target, now);
        }
        let Some(call) = self.call else { return };
        let mut calls = lock(&self.calls);
        while let Some((first, payload)) = frames::take(&mut self.bytes) {
            calls[call].frames.push((first, payload, now));
        }
    }

    /// Takes the 101 off what was heard, if it is whole.
    fn begin(&mut self, target: String, now: Instant) -> Option<usize> {
        let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        if !self.bytes.starts_with(b"HTTP/1.1 101 ") {
            return None;
        }
        self.bytes.drain(..end + 4);
        let mut calls = lock(&self.calls);
        calls.push(Call { target, accepted: now, frames: Vec::new(), ended: false });
        Some(calls.len() - 1)
    }

    fn end(&self) {
        if let Some(call) = self.call {
            lock(&self.calls)[call].ended = true;
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

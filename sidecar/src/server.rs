//! The client port: one task per connection, from its first byte to its last.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{LocalSet, spawn_local};

use crate::head::{self, HeadLimits};
use crate::sidecar::Sidecar;
use crate::upgrade::Connected;
use crate::{buffer, plain, upgrade};

/// How long to wait when accepting fails, for want of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many connections are accepted before those that were get their turn. More at once would go through their handshakes
/// in step: the app has nothing to do while all wait for it, and then everything.
const ACCEPTED_AT_ONCE: u32 = 16;
/// Memory is released when no connection has come for so long.
const RELEASE_PAUSE: Duration = Duration::from_millis(250);
/// How many of these pauses it waits at most: connections may come all the time.
const RELEASE_PAUSES: u32 = 8;

/// What the connections of a thread share.
struct Port {
    sidecar: Arc<Sidecar>,
    /// One has ended.
    ended: Notify,
}

/// Accepts until `stop` turns true; then ends every connection that is left. `release_memory` is called when connections
/// have come, since their handshakes needed more than they do, and when some have gone.
pub async fn run(sidecar: Arc<Sidecar>, listener: TcpListener, release_memory: fn(), stop: watch::Receiver<bool>) {
    LocalSet::new().run_until(accept(sidecar, listener, release_memory, stop)).await;
}

async fn accept(sidecar: Arc<Sidecar>, listener: TcpListener, release_memory: fn(), mut stop: watch::Receiver<bool>) {
    let port = Rc::new(Port { sidecar, ended: Notify::new() });
    let mut pause = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    // How many have come since the pause began; how many pauses memory has waited for, while it waits.
    let (mut come, mut waited) = (0_u32, None);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => {
                    spawn_local(serve(&port, stream, remote));
                    come = come.wrapping_add(1);
                    if waited.is_none() {
                        waited = Some(0);
                        pause.as_mut().reset(tokio::time::Instant::now() + RELEASE_PAUSE);
                    }
                    if come.is_multiple_of(ACCEPTED_AT_ONCE) {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) => {
                    port.sidecar.metrics.accept_errors.inc();
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = port.ended.notified(), if waited.is_none() => {
                waited = Some(0);
                pause.as_mut().reset(tokio::time::Instant::now() + RELEASE_PAUSE);
            }
            () = pause.as_mut(), if waited.is_some() => {
                waited = waited.filter(|waited| come > 0 && *waited < RELEASE_PAUSES).map(|waited| waited + 1);
                match waited {
                    Some(_) => pause.as_mut().reset(tokio::time::Instant::now() + RELEASE_PAUSE),
                    None => release_memory(),
                }
                come = 0;
            }
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// One connection, counted for as long as its task is there.
struct Serving {
    stage: Stage,
    port: Rc<Port>,
}

/// What only its beginning needs is boxed and goes with it, so that a long life costs little memory: an `async fn` would
/// keep room for both all the time.
enum Stage {
    Beginning(Pin<Box<dyn Future<Output = Option<Connected>>>>),
    Relaying(Connected),
}

fn serve(port: &Rc<Port>, stream: TcpStream, remote: SocketAddr) -> Serving {
    port.sidecar.metrics.tasks.inc();
    let begin = begin(Arc::clone(&port.sidecar), stream, remote);
    Serving { stage: Stage::Beginning(Box::pin(begin)), port: Rc::clone(port) }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.port.sidecar.metrics.tasks.dec();
        self.port.ended.notify_one();
    }
}

impl Future for Serving {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let stage = &mut self.get_mut().stage;
        loop {
            match stage {
                Stage::Beginning(begin) => match ready!(begin.as_mut().poll(cx)) {
                    None => return Poll::Ready(()),
                    Some(connected) => *stage = Stage::Relaying(connected),
                },
                Stage::Relaying(relay) => {
                    let ended = ready!(Pin::new(&mut *relay).poll(cx));
                    relay.hooks().record(ended);
                    return Poll::Ready(());
                }
            }
        }
    }
}

/// The first head says whether it is a WebSocket handshake or anything else.
async fn begin(sidecar: Arc<Sidecar>, mut stream: TcpStream, remote: SocketAddr) -> Option<Connected> {
    let error = match head::read_request(&mut stream, HeadLimits::default()).await {
        Err(error) => error,
        Ok(head) => match head.upgrade() {
            // Boxed, or every handshake would have room for it.
            None => return Box::pin(plain::serve(sidecar, stream, remote, head)).await,
            Some(Ok(_)) => return upgrade::serve(sidecar, stream, remote, head).await,
            Some(Err(error)) => error,
        },
    };
    if let Some(answer) = error.response() {
        sidecar.metrics.bad_request(error.label());
        tracing::debug!(%error, "a request was refused");
        answer_and_close(&mut stream, &answer).await;
    }
    None
}

/// Writes a last answer and closes, so that the client can read it: what it still sends is read and dropped for a
/// moment, since closing with unread bytes resets the connection.
pub async fn answer_and_close(stream: &mut TcpStream, answer: &[u8]) {
    let linger = async {
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        while buffer::read(stream, buffer::SIZE, |_| {}).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    // A client that goes away, or goes on sending, gets no more than this.
    let _ = tokio::time::timeout(Duration::from_secs(2), linger).await;
}

/// A short answer in plain text that ends the connection.
pub fn text_answer(status: http::StatusCode, extra: &str, sentence: &str) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or_default();
    let length = sentence.len() + 1;
    format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n{extra}\r\n{sentence}\n",
        status.as_u16()
    )
    .into_bytes()
}

//! The client port: one task per connection, from its first byte to its last.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};

use crate::head::{self, HeadLimits};
use crate::sidecar::Sidecar;
use crate::upgrade::Connected;
use crate::{buffer, plain, upgrade};

/// How long to wait when accepting fails, for want of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long after a connection has come memory is released.
const RELEASE_PAUSE: Duration = Duration::from_millis(250);

/// Accepts until `stop` turns true; then ends every connection that is left. `release_memory` is called some time after
/// connections have come: their handshakes needed more than they do.
pub async fn run(sidecar: Arc<Sidecar>, listener: TcpListener, release_memory: fn(), stop: watch::Receiver<bool>) {
    LocalSet::new().run_until(accept(sidecar, listener, release_memory, stop)).await;
}

async fn accept(sidecar: Arc<Sidecar>, listener: TcpListener, release_memory: fn(), mut stop: watch::Receiver<bool>) {
    let mut release = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    let mut owes_release = false;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => {
                    spawn_local(serve(Arc::clone(&sidecar), stream, remote));
                    if !std::mem::replace(&mut owes_release, true) {
                        release.as_mut().reset(tokio::time::Instant::now() + RELEASE_PAUSE);
                    }
                }
                Err(error) => {
                    sidecar.metrics.accept_errors.inc();
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = release.as_mut(), if owes_release => {
                release_memory();
                owes_release = false;
            }
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// One connection. What only its beginning needs is boxed and goes with it, so that a long life costs little memory:
/// an `async fn` would keep room for both all the time.
enum Serving {
    Beginning(Pin<Box<dyn Future<Output = Option<Connected>>>>),
    Relaying(Connected),
}

fn serve(sidecar: Arc<Sidecar>, stream: TcpStream, remote: SocketAddr) -> Serving {
    Serving::Beginning(Box::pin(begin(sidecar, stream, remote)))
}

impl Future for Serving {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let serving = self.get_mut();
        loop {
            match serving {
                Self::Beginning(begin) => match ready!(begin.as_mut().poll(cx)) {
                    None => return Poll::Ready(()),
                    Some(connected) => *serving = Self::Relaying(connected),
                },
                Self::Relaying(relay) => {
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
            None => return plain::serve(sidecar, stream, remote, head).await,
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

//! A WebSocket server that knows nothing of us: it greets with its name, echoes, and keeps the guestbook.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

use crate::guestbook::{Guestbook, VisitId};
use crate::until;

/// An app; it ends with all its connections when it is dropped.
#[derive(Debug)]
pub struct App {
    /// Its name, which is also its greeting.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl App {
    /// Starts an app on a free port.
    pub async fn start(name: &str, book: &Guestbook) -> Self {
        Self::start_at(crate::ports::free(), name, book).await
    }

    /// Starts an app where one was before.
    pub async fn start_at(address: SocketAddr, name: &str, book: &Guestbook) -> Self {
        let bind = async || TcpListener::bind(address).await.map_err(|error| error.to_string());
        let listener = until("the app's port is free", bind).await;
        let task = tokio::spawn(serve(listener, name.to_owned(), book.clone()));
        Self { name: name.to_owned(), address, task }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, name: String, book: Guestbook) {
    let mut visits = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    visits.spawn(visit(stream, name.clone(), book.clone()));
                }
            }
            Some(ended) = visits.join_next() => ended.expect("an app's connection never panics"),
        }
    }
}

/// Runs the disconnect handler however the connection ends.
struct Presence {
    book: Guestbook,
    id: VisitId,
    code: Option<u16>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.book.leave(self.id, self.code);
    }
}

async fn visit(stream: TcpStream, name: String, book: Guestbook) {
    let mut presence = None;
    #[allow(clippy::result_large_err, reason = "the library's signature")]
    let on_request = |request: &Request, response: Response| {
        let query = request.uri().query().unwrap_or_default();
        let key = query.split('&').find_map(|pair| pair.strip_prefix("user=")).unwrap_or_default();
        let epoch = request.headers().get("wspool-epoch").and_then(|value| value.to_str().ok());
        let id = book.enter(&name, key, epoch.map(str::to_owned));
        presence = Some(Presence { book: book.clone(), id, code: None });
        Ok(response)
    };
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, on_request).await else { return };
    if socket.send(Message::text(name.as_str())).await.is_ok() {
        let code = echo(&mut socket).await;
        if let Some(presence) = &mut presence {
            presence.code = code;
        }
    }
}

/// Echoes until the end; returns the code of the client's Close.
async fn echo(socket: &mut WebSocketStream<TcpStream>) -> Option<u16> {
    let mut code = None;
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Close(frame) = message {
            code = frame.map(|frame| frame.code.into());
        } else if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            break;
        }
    }
    code
}

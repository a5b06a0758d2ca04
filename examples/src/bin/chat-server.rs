//! A chat server that knows nothing of scaling: rooms in memory, and whoever is in a room hears what is said there.
//!
//! That is what makes it stateful: two people in one room must be on one server. It is served as it is; in a pool with
//! the key `room` (or `user`, for rooms of one) every room stays whole.
//!
//! ```text
//! chat-server --listen 127.0.0.1:3001 --name server-1
//! ws://127.0.0.1:3001/?user=ann&room=kitchen
//! ```
//!
//! The first message says who answers: `{"server":"server-1","user":"ann","room":"kitchen"}`. From then on each text
//! goes to everyone in the room, the speaker included, as it is. Without a room the user is alone in one of their own
//! name, which makes an echo. The text `/stats` is answered with what the connect and disconnect handlers have counted.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Parser;
use futures_util::{SinkExt as _, StreamExt as _};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

/// How many messages a slow listener may lag behind before it misses some.
const BACKLOG: usize = 64;

/// A chat server: rooms in memory, one WebSocket per visitor.
#[derive(Parser)]
struct Options {
    /// Where to listen, `host:port`
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// The name that visitors are told
    #[arg(long, default_value = "server")]
    name: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let listener = TcpListener::bind(options.listen).await?;
    println!("{} listens on {}", options.name, listener.local_addr()?);
    let chat = Arc::new(Chat::new(options.name));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(visit(Arc::clone(&chat), stream))),
            // Out of descriptors, most likely: those who are here stay, and the next one waits.
            Err(error) => {
                eprintln!("cannot accept: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One connection, from its handshake to its disconnect handler.
async fn visit(chat: Arc<Chat>, stream: TcpStream) {
    // Chat lines are small: do not wait for more to send. A socket that refuses has already failed, and says so below.
    let _ = stream.set_nodelay(true);
    let mut visitor = Visitor::default();
    #[allow(clippy::result_large_err, reason = "the library's signature")]
    let read_query = |request: &Request, response: Response| {
        visitor = Visitor::from_query(request.uri().query().unwrap_or_default());
        Ok(response)
    };
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, read_query).await else {
        return; // Not a WebSocket handshake; it has been answered.
    };
    let mut seat = chat.enter(&visitor);
    let mut goodbye = Goodbye::Lost;
    if socket.send(json(&Hello { server: &chat.name, visitor: &visitor })).await.is_ok() {
        goodbye = converse(&chat, &mut seat, &mut socket).await.unwrap_or(Goodbye::Lost);
    }
    chat.leave(&visitor, seat, goodbye);
}

/// Passes messages both ways until the connection ends.
async fn converse(
    chat: &Chat,
    seat: &mut Seat,
    socket: &mut tokio_tungstenite::WebSocketStream<TcpStream>,
) -> tungstenite::Result<Goodbye> {
    let mut goodbye = Goodbye::Lost;
    loop {
        tokio::select! {
            message = socket.next() => match message.transpose()? {
                None => return Ok(goodbye),
                Some(Message::Text(text)) if text == "/stats" => {
                    let stats = *chat.stats();
                    socket.send(json(&stats)).await?;
                }
                Some(Message::Text(text)) => drop(seat.room.send(text)),
                // The library answers it and ends the stream once the answer is out.
                Some(Message::Close(_)) => goodbye = Goodbye::Said,
                Some(_) => {}
            },
            heard = seat.heard.recv() => match heard {
                Ok(text) => socket.send(Message::Text(text)).await?,
                Err(RecvError::Lagged(missed)) => eprintln!("a slow listener missed {missed} messages"),
                Err(RecvError::Closed) => return Ok(goodbye),
            },
        }
    }
}

/// The rooms, and what the handlers have counted.
struct Chat {
    name: String,
    rooms: Mutex<HashMap<String, broadcast::Sender<Utf8Bytes>>>,
    stats: Mutex<Stats>,
}

/// A place in a room.
struct Seat {
    room: broadcast::Sender<Utf8Bytes>,
    heard: broadcast::Receiver<Utf8Bytes>,
}

/// Whether a visitor took their leave with a close frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    Said,
    Lost,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Stats {
    connects: u64,
    disconnects: u64,
    /// Of the disconnects, those that a close frame had announced.
    goodbyes: u64,
}

#[derive(Default, Serialize)]
struct Visitor {
    user: String,
    room: String,
}

#[derive(Serialize)]
struct Hello<'a> {
    server: &'a str,
    #[serde(flatten)]
    visitor: &'a Visitor,
}

impl Chat {
    fn new(name: String) -> Self {
        Self { name, rooms: Mutex::default(), stats: Mutex::default() }
    }

    /// The connect handler.
    fn enter(&self, visitor: &Visitor) -> Seat {
        self.stats().connects += 1;
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let room = rooms.entry(visitor.room.clone()).or_insert_with(|| broadcast::channel(BACKLOG).0);
        Seat { room: room.clone(), heard: room.subscribe() }
    }

    /// The disconnect handler: it runs once for each connection, however that ended.
    fn leave(&self, visitor: &Visitor, seat: Seat, goodbye: Goodbye) {
        drop(seat);
        let mut stats = self.stats();
        stats.disconnects += 1;
        stats.goodbyes += u64::from(goodbye == Goodbye::Said);
        drop(stats);
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        if rooms.get(&visitor.room).is_some_and(|room| room.receiver_count() == 0) {
            rooms.remove(&visitor.room);
        }
    }

    fn stats(&self) -> std::sync::MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visitor {
    fn from_query(query: &str) -> Self {
        let parameter = |name: &str| {
            let value = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(n, _)| *n == name)?.1;
            Some(percent_decode_str(value).decode_utf8_lossy().into_owned()).filter(|value| !value.is_empty())
        };
        let user = parameter("user").unwrap_or_else(|| "guest".into());
        let room = parameter("room").unwrap_or_else(|| user.clone());
        Self { user, room }
    }
}

fn json(value: &impl Serialize) -> Message {
    Message::text(serde_json::to_string(value).expect("strings and numbers always serialize"))
}

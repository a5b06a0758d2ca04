//! The example servers, in Rust and in Node: real processes, the same promises.

use std::process::Stdio;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Long enough for a slow machine: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    url: String,
    _process: Child,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Server {
    async fn rust() -> Self {
        Self::start(Command::new(env!("CARGO_BIN_EXE_chat-server"))).await
    }

    async fn node() -> Self {
        let mut command = Command::new("node");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/node/server.js"));
        Self::start(command).await
    }

    /// Starts a server on a free port, and reads the port from its first line.
    async fn start(mut command: Command) -> Self {
        command.args(["--listen", "127.0.0.1:0", "--name", "server-7"]);
        let mut process = command
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let mut lines = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.expect("a line in time").expect("readable output");
        let line = line.expect("the server ended at once; for Node, run `make test` once");
        let address = line.strip_prefix("server-7 listens on ").expect("the first line says where it listens");
        Self { url: format!("ws://{address}"), _process: process }
    }

    /// Enters with a query, and returns the socket with the server's first message.
    async fn enter(&self, query: &str) -> (Socket, Value) {
        let (mut socket, _) = connect_async(format!("{}/?{query}", self.url)).await.expect("a handshake");
        let hello = serde_json::from_str(&hear(&mut socket).await).expect("a JSON greeting");
        (socket, hello)
    }
}

async fn say(socket: &mut Socket, text: &str) {
    socket.send(Message::text(text)).await.expect("a sent message");
}

async fn hear(socket: &mut Socket) -> String {
    let message = timeout(PATIENCE, socket.next()).await.expect("a message in time");
    message.expect("an open connection").expect("a frame").into_text().expect("a text").to_string()
}

/// Asks until the handlers have counted what is expected: they run after the client has left.
async fn until_stats(socket: &mut Socket, expected: &Value) {
    let asking = async {
        loop {
            say(socket, "/stats").await;
            if serde_json::from_str::<Value>(&hear(socket).await).expect("JSON") == *expected {
                break;
            }
        }
    };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("the handlers never counted {expected}"));
}

/// Makes one test for each server out of one promise.
macro_rules! promises {
    ($($name:ident => $promise:ident;)*) => {
        mod rust {
            $(#[tokio::test] async fn $name() { super::$promise(super::Server::rust().await).await; })*
        }
        mod node {
            $(#[tokio::test] async fn $name() { super::$promise(super::Server::node().await).await; })*
        }
    };
}

promises! {
    the_first_message_says_who_answers_whom => greets;
    a_text_reaches_everyone_in_the_room_and_nobody_else => keeps_rooms_apart;
    handlers_run_once_for_each_connection_and_tell_a_goodbye_from_a_loss => counts_handlers;
}

async fn greets(server: Server) {
    let (_socket, hello) = server.enter("room=k%C3%BCche&user=ann").await;
    assert_eq!(hello, json!({"server": "server-7", "user": "ann", "room": "küche"}));
    let (_socket, hello) = server.enter("user=bob").await;
    assert_eq!(hello, json!({"server": "server-7", "user": "bob", "room": "bob"}));
    let (_socket, hello) = server.enter("user=").await;
    assert_eq!(hello, json!({"server": "server-7", "user": "guest", "room": "guest"}));
}

async fn keeps_rooms_apart(server: Server) {
    let (mut ann, _) = server.enter("user=ann&room=kitchen").await;
    let (mut bob, _) = server.enter("user=bob&room=kitchen").await;
    let (mut eve, _) = server.enter("user=eve&room=cellar").await;
    say(&mut ann, "dinner").await;
    assert_eq!(hear(&mut ann).await, "dinner");
    assert_eq!(hear(&mut bob).await, "dinner");
    say(&mut eve, "alone").await;
    assert_eq!(hear(&mut eve).await, "alone", "eve heard the kitchen");
}

async fn counts_handlers(server: Server) {
    let (mut stays, _) = server.enter("user=ann").await;
    let (mut leaves, _) = server.enter("user=bob").await;
    let (falls, _) = server.enter("user=eve").await;
    until_stats(&mut stays, &json!({"connects": 3, "disconnects": 0, "goodbyes": 0})).await;
    leaves.close(None).await.expect("a close frame sent");
    timeout(PATIENCE, async { while leaves.next().await.is_some() {} }).await.expect("the close was answered");
    drop(leaves);
    until_stats(&mut stays, &json!({"connects": 3, "disconnects": 1, "goodbyes": 1})).await;
    drop(falls);
    until_stats(&mut stays, &json!({"connects": 3, "disconnects": 2, "goodbyes": 1})).await;
}

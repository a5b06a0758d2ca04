//! One WebSocket client.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::wait::within;

/// A connection, greeted by its app.
#[derive(Debug)]
pub struct Client {
    socket: WebSocketStream<TcpStream>,
    /// The app that has greeted it.
    pub server: String,
}

/// How a connection ended: the code and the reason of the Close that the client got; `None` without one.
pub type Goodbye = Option<(u16, String)>;

impl Client {
    /// Connects with a key; panics when it is refused.
    pub async fn connect(entry: SocketAddr, key: &str) -> Self {
        within("a greeting", Self::try_connect(entry, key))
            .await
            .unwrap_or_else(|error| panic!("{key} cannot connect to {entry}: {error}"))
    }

    /// Connects with a key. An answer that is not a 101 is [`Error::Http`].
    pub async fn try_connect(entry: SocketAddr, key: &str) -> Result<Self, Error> {
        Self::open(entry, &format!("/?user={key}")).await
    }

    /// Connects with any path and query.
    pub async fn open(entry: SocketAddr, target: &str) -> Result<Self, Error> {
        let stream = TcpStream::connect(entry).await?;
        stream.set_nodelay(true)?;
        let url = format!("ws://{entry}{target}");
        let (socket, _) = tokio_tungstenite::client_async(url, stream).await?;
        let mut client = Self { socket, server: String::new() };
        match client.socket.next().await {
            Some(Ok(Message::Text(name))) => client.server = name.to_string(),
            Some(Err(error)) => return Err(error),
            other => return Err(Error::Io(std::io::Error::other(format!("greeted with {other:?}")))),
        }
        Ok(client)
    }

    /// The status of an answer that was not a 101, with its body.
    pub async fn refusal(entry: SocketAddr, key: &str) -> (u16, String) {
        match within("an answer", Self::try_connect(entry, key)).await {
            Err(Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                (response.status().as_u16(), String::from_utf8_lossy(body).into_owned())
            }
            other => panic!("{key} was not refused: {other:?}"),
        }
    }

    /// Sends a text.
    pub async fn say(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    /// Sends a message.
    pub async fn send(&mut self, message: Message) {
        within("the message to be taken", self.socket.send(message)).await.expect("an open connection");
    }

    /// The next message.
    pub async fn hear(&mut self) -> Message {
        within("a message", self.socket.next()).await.expect("an open connection").expect("a message")
    }

    /// Panics unless the connection echoes.
    pub async fn check(&mut self) {
        let word = format!("{:x}", rand::random::<u64>());
        self.say(&word).await;
        assert_eq!(self.hear().await, Message::text(word));
    }

    /// Sends a text and waits for it to come back; whether it does.
    pub async fn echoes(&mut self, text: &str) -> bool {
        let sent = self.socket.send(Message::text(text)).await;
        sent.is_ok() && matches!(self.socket.next().await, Some(Ok(echo)) if echo == Message::text(text))
    }

    /// Reads to the end.
    pub async fn goodbye(&mut self) -> Goodbye {
        within("the end of the connection", until_gone(&mut self.socket, |_| {})).await
    }

    /// Listens to the end, however long it takes.
    pub async fn listen(mut self, hear: impl FnMut(&Message)) -> Goodbye {
        until_gone(&mut self.socket, hear).await
    }

    /// Reads to the end, however long it takes.
    pub async fn stay(self) -> Goodbye {
        self.listen(|_| {}).await
    }
}

async fn until_gone(socket: &mut WebSocketStream<TcpStream>, mut hear: impl FnMut(&Message)) -> Goodbye {
    let mut goodbye = None;
    while let Some(Ok(message)) = socket.next().await {
        hear(&message);
        if let Message::Close(Some(frame)) = message {
            goodbye = Some((frame.code.into(), frame.reason.to_string()));
        }
    }
    goodbye
}

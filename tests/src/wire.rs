//! Raw bytes: what a proxy is given, and what comes out of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::wait::{PATIENCE, within};

/// A WebSocket handshake with the key `ann`, byte for byte.
pub const HANDSHAKE: &str = "GET /?user=ann HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// An app's answer to it.
pub const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// How long a reader takes nothing before it is thought to have stopped. One that is only slow is flooded less.
const STALLED: Duration = Duration::from_millis(500);

/// One end of a connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    /// Read and not yet asked for.
    ahead: Vec<u8>,
}

/// An app that a test plays by hand.
#[derive(Debug)]
pub struct Backend {
    listener: TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Backend {
    /// Listens on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        Self { listener, address }
    }

    /// The next connection.
    pub async fn accept(&self) -> Wire {
        let (stream, _) = within("a connection to the app", self.listener.accept()).await.expect("an accepted socket");
        Wire::of(stream)
    }

    /// Both ends of a new connection, the client's first: it comes by a sidecar, and the handshake is over.
    pub async fn ends(&self, sidecar: SocketAddr) -> (Wire, Wire) {
        let mut client = Wire::dial(sidecar).await;
        client.send(HANDSHAKE).await;
        let mut app = self.accept().await;
        app.head().await;
        app.send(SWITCHING).await;
        client.head().await;
        (client, app)
    }
}

impl Wire {
    /// Connects.
    pub async fn dial(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).await.expect("a connection"))
    }

    /// Connects from an address of this machine.
    pub async fn dial_from(own: IpAddr, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(own, 0)).expect("an address of this machine");
        Self::of(socket.connect(address).await.expect("a connection"))
    }

    fn of(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("no delay");
        Self { stream, ahead: Vec::new() }
    }

    /// Writes everything.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("the bytes to be taken", self.stream.write_all(bytes.as_ref())).await.expect("a whole connection");
    }

    /// Writes, and does not mind when the other side has gone.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        within("the bytes to be taken", self.stream.write_all(bytes.as_ref())).await
    }

    /// Sends FIN.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.expect("a connection that can be ended");
    }

    /// Ends the connection with RST, at once.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("a live socket");
    }

    /// Writes until nobody takes any more for a while, or the connection ends; returns how many bytes were taken.
    pub async fn flood(&mut self, with: &[u8]) -> usize {
        let mut taken = 0;
        while let Ok(Ok(written)) = tokio::time::timeout(STALLED, self.stream.write(with)).await {
            taken += written;
        }
        taken
    }

    /// Sends FIN, and does not mind when the other side has gone.
    pub async fn try_finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// What comes next; nothing at the end.
    pub async fn next(&mut self) -> io::Result<Vec<u8>> {
        if self.ahead.is_empty() {
            self.more("anything").await?;
        }
        Ok(std::mem::take(&mut self.ahead))
    }

    /// Reads up to and with a marker.
    pub async fn up_to(&mut self, marker: impl AsRef<[u8]>) -> Vec<u8> {
        let marker = marker.as_ref();
        loop {
            if let Some(at) = self.ahead.windows(marker.len()).position(|bytes| bytes == marker) {
                return self.take(at + marker.len());
            }
            let read = self.more(&String::from_utf8_lossy(marker)).await.expect("a whole connection");
            assert!(read > 0, "the connection ended after {:?}", String::from_utf8_lossy(&self.ahead));
        }
    }

    /// Reads the head of a request or an answer, with the empty line behind it.
    pub async fn head(&mut self) -> String {
        String::from_utf8(self.up_to("\r\n\r\n").await).expect("a head in ASCII")
    }

    /// Reads so many bytes.
    pub async fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.ahead.len() < count {
            let read = self.more(&format!("{count} bytes")).await.expect("a whole connection");
            assert!(read > 0, "the connection ended after {} of {count} bytes", self.ahead.len());
        }
        self.take(count)
    }

    /// Reads to the end; an error when the connection was reset.
    pub async fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.more("the end").await? > 0 {}
        Ok(std::mem::take(&mut self.ahead))
    }

    /// The same as text, whether the connection was closed or reset.
    pub async fn last_words(&mut self) -> String {
        while self.more("the end").await.is_ok_and(|read| read > 0) {}
        String::from_utf8_lossy(&std::mem::take(&mut self.ahead)).into_owned()
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let behind = self.ahead.split_off(count);
        std::mem::replace(&mut self.ahead, behind)
    }

    async fn more(&mut self, what: &str) -> io::Result<usize> {
        self.ahead.reserve(64 * 1024);
        let reading = self.stream.read_buf(&mut self.ahead);
        let Ok(read) = tokio::time::timeout(PATIENCE, reading).await else {
            let text = String::from_utf8_lossy(&self.ahead[..self.ahead.len().min(2_000)]).into_owned();
            panic!("never came: {what}; what did come: {text:?}");
        };
        read
    }
}

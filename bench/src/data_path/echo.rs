//! The app: it accepts any handshake and sends every byte back.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;

use harness::wire::SWITCHING;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::WriteHalf;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::scratch;

const BACKLOG: u32 = 4096;
/// The first byte of a Close frame. Clients' messages begin with another, and are zeros but for that.
const CLOSE: u8 = 0x88;

/// An app that runs until it is dropped, with all its connections.
#[derive(Debug)]
pub struct Echo {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Echo {
    /// Listens on a free port.
    pub fn start() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(harness::ports::free())?;
        let listener = socket.listen(BACKLOG)?;
        Ok(Self { address: listener.local_addr()?, task: tokio::spawn(accept(listener)) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("a connection of a proxy");
                connections.spawn(serve(stream));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Returns when either side has ended the connection, in whatever way.
async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(2048);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    drop(head);
    stream.write_all(SWITCHING.as_bytes()).await?;
    let (mut reader, mut writer) = stream.split();
    loop {
        let read = poll_fn(|cx| scratch::poll_read(cx, &mut reader, |bytes| send_back(&writer, bytes)));
        let Sent { last, left } = read.await??;
        writer.write_all(&left).await?;
        if last {
            return Ok(());
        }
    }
}

struct Sent {
    last: bool,
    /// What the socket did not take at once waits outside of the shared buffer.
    left: Vec<u8>,
}

fn send_back(to: &WriteHalf<'_>, bytes: &[u8]) -> io::Result<Sent> {
    let last = bytes.first().is_none_or(|first| *first == CLOSE);
    let written = match to.try_write(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        written => written?,
    };
    Ok(Sent { last, left: bytes[written..].to_vec() })
}

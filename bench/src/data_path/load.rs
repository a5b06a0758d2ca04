//! The clients: raw sockets, and messages that are zeros in a client's frame.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::scratch;

/// Clients that are in their handshake at once.
const DIALING: usize = 1_000;
/// The first byte of a binary message in one frame.
const BINARY: u8 = 0x82;
/// In the second byte: a mask follows.
const MASKED: u8 = 0x80;

/// A client whose handshake is over.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
}

impl Client {
    /// Connects, with this user for its key.
    pub async fn connect(address: SocketAddr, user: u32) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET /?user=user-{user} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::with_capacity(512);
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if !head.starts_with(b"HTTP/1.1 101 ") {
            return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
        }
        Ok(Self { stream })
    }

    /// Connects many, in the order of their users. None may fail.
    pub async fn connect_all(address: SocketAddr, users: Range<u32>) -> io::Result<Vec<Self>> {
        stream::iter(users.map(|user| Self::connect(address, user))).buffered(DIALING).try_collect().await
    }

    /// Sends a message and waits until it is back.
    pub async fn echo(&mut self, message: &[u8]) -> io::Result<()> {
        let (mut reader, mut writer) = self.stream.split();
        let mut left = message.len();
        let read = async {
            while left > 0 {
                left -= poll_fn(|cx| scratch::poll_read(cx, &mut reader, <[u8]>::len)).await?.min(left);
            }
            Ok(())
        };
        tokio::try_join!(writer.write_all(message), read).map(drop)
    }

    /// The stream, for those who do something else with it.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// A binary message in a client's frame. Its mask is zeros, and so is its payload.
pub fn message(payload: usize) -> Vec<u8> {
    let mut frame = vec![BINARY];
    match payload {
        0..=125 => frame.push(MASKED + u8::try_from(payload).expect("checked")),
        126..=0xffff => {
            frame.push(MASKED + 126);
            frame.extend(u16::try_from(payload).expect("checked").to_be_bytes());
        }
        _ => {
            frame.push(MASKED + 127);
            frame.extend((payload as u64).to_be_bytes());
        }
    }
    frame.resize(frame.len() + 4 + payload, 0);
    frame
}

/// Each client sends its next message as soon as the one before is back; returns how many came back.
pub async fn closed_loop(clients: &mut [Client], payload: usize, time: Duration) -> io::Result<u32> {
    let message = message(payload);
    let until = Instant::now() + time;
    let one = async |client: &mut Client| {
        let mut echoes = 0;
        while Instant::now() < until {
            client.echo(&message).await?;
            echoes += 1;
        }
        Ok::<u32, io::Error>(echoes)
    };
    Ok(try_join_all(clients.iter_mut().map(one)).await?.into_iter().sum())
}

/// Each client sends one message, and gets it back.
pub async fn once_each(clients: &mut [Client], payload: usize) -> io::Result<()> {
    let message = message(payload);
    let message = message.as_slice();
    let echoes = clients.iter_mut().map(|client| client.echo(message));
    stream::iter(echoes).buffer_unordered(16).try_collect().await
}

/// So many messages of each client at a fixed rate for all, by turns, whether those before are back or not; returns how
/// long each was away since it was due, in order of length.
pub async fn open_loop(clients: &mut [Client], payload: usize, rate: u32, each: u32) -> io::Result<Vec<Duration>> {
    let message = message(payload);
    let count = u32::try_from(clients.len()).expect("few clients");
    let began = Instant::now();
    let due = |number: u32| began + Duration::from_secs(1) * number / rate;
    let (readers, writers): (Vec<_>, Vec<_>) = clients.iter_mut().map(|client| client.stream.split()).unzip();
    let send = async {
        for number in 0..each * count {
            // Timers are too coarse: this core has nothing else to do.
            while Instant::now() < due(number) {
                tokio::task::yield_now().await;
            }
            let sent = writers[(number % count) as usize].try_write(&message)?;
            assert_eq!(sent, message.len(), "a socket that takes a small message");
        }
        Ok::<(), io::Error>(())
    };
    let receive = (0..count).zip(readers).map(async |(first, mut reader)| {
        let mut away = Vec::new();
        let mut bytes = 0;
        for turn in 0..each {
            while bytes < message.len() {
                bytes += poll_fn(|cx| scratch::poll_read(cx, &mut reader, <[u8]>::len)).await?;
            }
            bytes -= message.len();
            away.push(due(turn * count + first).elapsed());
        }
        Ok::<Vec<Duration>, io::Error>(away)
    });
    let (away, ()) = tokio::try_join!(try_join_all(receive), send)?;
    let mut away = away.concat();
    away.sort_unstable();
    Ok(away)
}

/// One of sorted durations.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get(sorted.len() * percent / 100).copied().unwrap_or_default()
}

/// Ends connections with RST, all at once.
pub fn reset_all(clients: Vec<Client>) {
    for client in clients {
        // It fails on a connection that is broken already.
        let _ = client.stream.set_zero_linger();
    }
}

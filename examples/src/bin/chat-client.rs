//! A chat client that comes back by itself, as every WebSocket client should.
//!
//! ```text
//! chat-client 'ws://127.0.0.1:8000/?user=ann'              says what you type
//! chat-client 'ws://127.0.0.1:8000/?user=ann' --every 1    says 1, 2, 3, ... once a second
//! ```
//!
//! What makes it a good citizen, wspool or not:
//! - it reconnects after every end that it did not ask for, whatever the close code;
//! - the first try comes soon, later ones back off, and all are jittered, so that a thousand clients do not return in
//!   the same instant;
//! - the back-off is forgotten only after a connection has lasted, so that a server that accepts and drops is spared;
//! - a line that could not be sent is kept and sent again;
//! - silence is not trusted: it pings, and gives up a connection that does not answer.

use std::io::BufRead as _;
use std::time::Duration;

use clap::Parser;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// How long a handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the server is pinged. Two pings without any message in between mean that it is gone.
const PING: Duration = Duration::from_secs(20);
/// A connection that lasted so long starts the back-off anew.
const STABLE: Duration = Duration::from_secs(5);

/// A chat client that reconnects by itself.
#[derive(Parser)]
struct Options {
    /// The server and who we are, for example `ws://127.0.0.1:8000/?user=ann`
    url: String,
    /// Say 1, 2, 3, ... every so many seconds, instead of what is typed
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let options = Options::parse();
    let mut lines = match options.every {
        Some(seconds) => count(Duration::from_secs(seconds)),
        None => typed(),
    };
    let mut unsent = None;
    let mut backoff = Backoff::default();
    loop {
        match timeout(CONNECT_TIMEOUT, connect_async(&options.url)).await {
            Ok(Ok((socket, _))) => {
                let since = Instant::now();
                match talk(socket, &mut lines, &mut unsent).await {
                    End::Finished => return,
                    End::Lost(why) => println!("- {why}"),
                }
                if since.elapsed() >= STABLE {
                    backoff = Backoff::default();
                }
            }
            Ok(Err(error)) => println!("- cannot connect: {error}"),
            Err(_) => println!("- cannot connect: no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        }
        sleep(backoff.next(rand::random())).await;
    }
}

/// Why a connection ended.
enum End {
    /// There is nothing more to say.
    Finished,
    /// It was lost, or closed by the server.
    Lost(String),
}

/// Talks over one connection until it ends.
async fn talk(
    mut socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    lines: &mut mpsc::Receiver<String>,
    unsent: &mut Option<String>,
) -> End {
    let mut ping = interval(PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping.reset();
    let mut heard_since_ping = true;
    loop {
        if let Some(line) = unsent {
            if let Err(error) = socket.send(Message::text(line.as_str())).await {
                return End::Lost(error.to_string());
            }
            *unsent = None;
        }
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => println!("{text}"),
                Some(Ok(Message::Close(Some(frame)))) => {
                    return End::Lost(format!("closed by the server: {} {}", u16::from(frame.code), frame.reason));
                }
                Some(Ok(Message::Close(None))) | None => return End::Lost("closed by the server".into()),
                Some(Ok(_)) => {} // Pings are answered by the library.
                Some(Err(error)) => return End::Lost(error.to_string()),
            },
            line = lines.recv() => {
                if line.is_none() {
                    // Saying goodbye is a courtesy: the process ends either way.
                    let _ = socket.close(None).await;
                    return End::Finished;
                }
                *unsent = line;
            }
            _ = ping.tick() => {
                if !std::mem::take(&mut heard_since_ping) {
                    return End::Lost("the server has fallen silent".into());
                }
                if let Err(error) = socket.send(Message::Ping(Bytes::new())).await {
                    return End::Lost(error.to_string());
                }
                continue;
            }
        }
        heard_since_ping = true;
    }
}

/// How long to wait before the next try: exponential, with full jitter above a floor.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    const FLOOR: Duration = Duration::from_millis(50);
    const FIRST: Duration = Duration::from_millis(500);
    const CEILING: Duration = Duration::from_secs(30);

    /// The next delay. `random` is uniform in 0 to 1.
    fn next(&mut self, random: f64) -> Duration {
        let most = Self::FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(Self::CEILING);
        self.failures += 1;
        Self::FLOOR + most.saturating_sub(Self::FLOOR).mul_f64(random)
    }
}

/// What is typed, line by line. A thread of its own, because reading a terminal blocks.
fn typed() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// 1, 2, 3, ...
fn count(every: Duration) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 1_u64.. {
            tick.tick().await;
            if sender.send(number.to_string()).await.is_err() {
                break;
            }
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_try_comes_within_half_a_second_and_none_later_than_thirty() {
        let mut eager = Backoff::default();
        assert_eq!(eager.next(0.0), Duration::from_millis(50));
        let mut unlucky = Backoff::default();
        let delays: Vec<Duration> = (0..40).map(|_| unlucky.next(1.0)).collect();
        assert_eq!(delays[..3], [500, 1_000, 2_000].map(Duration::from_millis));
        assert!(delays.is_sorted());
        assert_eq!(delays[39], Duration::from_secs(30));
    }

    #[test]
    fn two_clients_do_not_wait_for_the_same_time() {
        assert_ne!(Backoff::default().next(0.25), Backoff::default().next(0.75));
    }
}

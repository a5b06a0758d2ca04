//! Clients that come back by themselves, and send numbered messages.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::ledger::{Life, Stay};

/// How often each sends.
const PERIOD: Duration = Duration::from_secs(2);
/// A connection that returns nothing for so long is given up: the room's messages, the own ones too, are silent.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long a client waits before it connects again, at least and at most, as libraries do.
const BACK_OFF: (u64, u64) = (50, 250);

/// The clients of one arm. They end when it is dropped.
pub struct Crowd {
    lives: Arc<Mutex<Vec<Life>>>,
    /// Clients with a number below this do not come back.
    absent: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Crowd {
    /// So many clients, the first half of them in rooms of ten, the others each with a room of its own; at `entry`.
    pub fn start(count: usize, entry: SocketAddr) -> Self {
        let room = |number: usize| if number < count / 2 { number / 10 } else { number };
        let life = |number| Life { room: room(number), ..Life::default() };
        let lives = Arc::new(Mutex::new((0..count).map(life).collect()));
        let absent = Arc::<AtomicUsize>::default();
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let client = Client { number, room: room(number), entry, lives: Arc::clone(&lives) };
            let absent = Arc::clone(&absent);
            tasks.spawn(async move {
                loop {
                    if number >= absent.load(Ordering::Relaxed) {
                        client.live().await;
                    }
                    sleep(Duration::from_millis(rand::random_range(BACK_OFF.0..BACK_OFF.1))).await;
                }
            });
        }
        Self { lives, absent, _tasks: tasks }
    }

    /// What all have seen so far.
    pub fn lives(&self) -> Vec<Life> {
        lock(&self.lives).clone()
    }

    /// How many are connected.
    pub fn present(&self) -> usize {
        lock(&self.lives).iter().filter(|life| life.stays.last().is_some_and(|stay| stay.left.is_none())).count()
    }

    /// How many connections have ended.
    pub fn breaks(&self) -> usize {
        lock(&self.lives).iter().flat_map(|life| &life.stays).filter(|stay| stay.left.is_some()).count()
    }

    /// From now on so many clients do not come back when their connections end.
    pub fn stay_away(&self, count: usize) {
        self.absent.store(count, Ordering::Relaxed);
    }
}

struct Client {
    number: usize,
    room: usize,
    entry: SocketAddr,
    lives: Arc<Mutex<Vec<Life>>>,
}

impl Client {
    /// One connection, from its beginning to its end.
    async fn live(&self) {
        let Ok(Some((mut socket, server))) = timeout(PATIENCE, self.connect()).await else { return };
        let begin = Instant::now();
        self.note(|life| life.stays.push(Stay { server, from: begin, to: None, left: None }));
        // Not all at once.
        let mut send_at = begin + PERIOD.mul_f64(rand::random());
        let mut heard = begin;
        loop {
            let next = tokio::select! {
                message = socket.next() => message,
                () = tokio::time::sleep_until(send_at.into()) => {
                    let now = Instant::now();
                    if now > heard + PATIENCE {
                        break;
                    }
                    send_at = now + PERIOD;
                    let number = self.note(|life| { life.sent.push(now); life.sent.len() - 1 });
                    let text = format!("{} {number}", self.number);
                    if !matches!(timeout(PATIENCE, socket.send(Message::text(text))).await, Ok(Ok(()))) {
                        break;
                    }
                    continue;
                }
            };
            match next {
                Some(Ok(Message::Text(text))) => {
                    heard = Instant::now();
                    let message =
                        text.split_once(' ').and_then(|(from, n)| Some((from.parse().ok()?, n.parse().ok()?)));
                    if let Some(message) = message {
                        self.note(|life| life.heard.insert(message));
                    }
                }
                Some(Ok(Message::Close(_))) => heard = Instant::now(),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => {
                    heard = Instant::now();
                    break;
                }
            }
        }
        let left = Instant::now();
        self.note(|life| {
            let stay = life.stays.last_mut().expect("its stay");
            (stay.to, stay.left) = (Some(heard), Some(left));
        });
    }

    /// A connection, and the name of the app that greets it.
    async fn connect(&self) -> Option<(WebSocketStream<TcpStream>, String)> {
        let stream = TcpStream::connect(self.entry).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let url = format!("ws://{}/rooms/{room}?room={room}", self.entry, room = self.room);
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.ok()?;
        let Message::Text(greeting) = socket.next().await?.ok()? else { return None };
        let greeting: Value = serde_json::from_str(&greeting).ok()?;
        Some((socket, greeting["server"].as_str()?.to_owned()))
    }

    fn note<T>(&self, write: impl FnOnce(&mut Life) -> T) -> T {
        write(&mut lock(&self.lives)[self.number])
    }
}

fn lock(lives: &Mutex<Vec<Life>>) -> MutexGuard<'_, Vec<Life>> {
    lives.lock().unwrap_or_else(PoisonError::into_inner)
}

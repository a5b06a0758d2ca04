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
const PERIOD: Duration = Duration::from_secs(3);
/// A connection that returns nothing for so long is given up: the room's messages, the own ones too, are silent.
const PATIENCE: Duration = Duration::from_secs(7);
/// How long a client waits before it connects again, at least and at most, as libraries do.
const BACK_OFF: (u64, u64) = (50, 250);

/// Guests come within this time.
const ARRIVAL: Duration = Duration::from_secs(5);

/// The clients of one arm. They end when it is dropped.
pub struct Crowd {
    lives: Arc<Mutex<Vec<Life>>>,
    members: usize,
    wanted: Arc<Wanted>,
    _tasks: JoinSet<()>,
}

/// Which clients are to be there, by their numbers.
struct Wanted {
    /// Those below this do not come back when their connections end.
    from: AtomicUsize,
    /// Those from this on do not come, or go.
    to: AtomicUsize,
}

impl Crowd {
    /// So many clients at `entry`, the first half of them in rooms of ten, the others each with a room of its own. Guests
    /// come when they are invited.
    pub fn start(members: usize, guests: usize, entry: SocketAddr) -> Self {
        let room = |number: usize| if number < members / 2 { number / 10 } else { number };
        let life = |number| Life { room: room(number), ..Life::default() };
        let lives = Arc::new(Mutex::new((0..members + guests).map(life).collect()));
        let wanted = Arc::new(Wanted { from: AtomicUsize::new(0), to: AtomicUsize::new(members) });
        let mut tasks = JoinSet::new();
        for number in 0..members + guests {
            let (lives, wanted) = (Arc::clone(&lives), Arc::clone(&wanted));
            let client = Client { number, room: room(number), entry, lives, wanted };
            tasks.spawn(async move {
                loop {
                    if number >= members && client.is_new() && client.wanted.comes(number) {
                        sleep(ARRIVAL.mul_f64(rand::random())).await;
                    }
                    if client.wanted.comes(number) {
                        client.live().await;
                    }
                    sleep(Duration::from_millis(rand::random_range(BACK_OFF.0..BACK_OFF.1))).await;
                }
            });
        }
        Self { lives, members, wanted, _tasks: tasks }
    }

    /// How many clients there are without guests.
    pub fn members(&self) -> usize {
        self.members
    }

    /// What all have seen so far.
    pub fn lives(&self) -> Vec<Life> {
        lock(&self.lives).clone()
    }

    /// Whether those who are to be there are.
    pub fn is_complete(&self) -> bool {
        let present = |life: &Life| life.stays.last().is_some_and(|stay| stay.left.is_none());
        let lives = lock(&self.lives);
        lives.iter().enumerate().all(|(number, life)| present(life) == self.wanted.comes(number))
    }

    /// How many connections have ended against the will of their clients.
    pub fn breaks(&self) -> usize {
        lock(&self.lives).iter().flat_map(|life| &life.stays).filter(|stay| stay.is_broken()).count()
    }

    /// From now on so many of the members do not come back when their connections end.
    pub fn stay_away(&self, count: usize) {
        self.wanted.from.store(count, Ordering::Relaxed);
    }

    /// The guests come.
    pub fn invite(&self) {
        self.wanted.to.store(usize::MAX, Ordering::Relaxed);
    }

    /// The guests go.
    pub fn dismiss(&self) {
        self.wanted.to.store(self.members, Ordering::Relaxed);
    }
}

impl Wanted {
    fn comes(&self, number: usize) -> bool {
        number >= self.from.load(Ordering::Relaxed) && self.stays(number)
    }

    fn stays(&self, number: usize) -> bool {
        number < self.to.load(Ordering::Relaxed)
    }
}

/// What `tests/node/pod-rooms.js` says first.
struct Greeting {
    /// Its name.
    server: String,
    /// When the connection came there, in milliseconds since 1970.
    at: u64,
    still: Duration,
}

struct Client {
    number: usize,
    room: usize,
    entry: SocketAddr,
    lives: Arc<Mutex<Vec<Life>>>,
    wanted: Arc<Wanted>,
}

impl Client {
    fn is_new(&self) -> bool {
        self.note(|life| life.stays.is_empty())
    }

    /// One connection, from its beginning to its end.
    async fn live(&self) {
        let Ok(Some((mut socket, greeting))) = timeout(PATIENCE, self.connect()).await else { return };
        let begin = Instant::now();
        let Greeting { server, at, still } = greeting;
        self.note(|life| life.stays.push(Stay { still, ..Stay::new(server, at, begin) }));
        // Not all at once.
        let mut send_at = begin + PERIOD.mul_f64(rand::random());
        let mut heard = begin;
        loop {
            let next = tokio::select! {
                message = socket.next() => message,
                () = tokio::time::sleep_until(send_at.into()) => {
                    let now = Instant::now();
                    if !self.wanted.stays(self.number) {
                        let _ = timeout(PATIENCE, socket.close(None)).await;
                        self.note(|life| life.stays.last_mut().expect("its stay").by_choice = true);
                        break;
                    }
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

    /// A connection, and how the app greets it.
    async fn connect(&self) -> Option<(WebSocketStream<TcpStream>, Greeting)> {
        let stream = TcpStream::connect(self.entry).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let url = format!("ws://{}/rooms/{}", self.entry, self.room);
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.ok()?;
        let Message::Text(greeting) = socket.next().await?.ok()? else { return None };
        let greeting: Value = serde_json::from_str(&greeting).ok()?;
        let (at, still) = (greeting["at"].as_u64()?, Duration::from_millis(greeting["still"].as_u64()?));
        let greeting = Greeting { server: greeting["server"].as_str()?.to_owned(), at, still };
        Some((socket, greeting))
    }

    fn note<T>(&self, write: impl FnOnce(&mut Life) -> T) -> T {
        write(&mut lock(&self.lives)[self.number])
    }
}

fn lock(lives: &Mutex<Vec<Life>>) -> MutexGuard<'_, Vec<Life>> {
    lives.lock().unwrap_or_else(PoisonError::into_inner)
}

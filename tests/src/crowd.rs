//! Many WebSocket clients, each of which comes back at once when its connection ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Client, Goodbye};
use crate::wait::until;

/// How long a refused client waits before it tries again.
const RETRY: Duration = Duration::from_millis(20);

/// The clients; they go when it is dropped.
#[derive(Debug, Default)]
pub struct Crowd {
    lives: Arc<Mutex<Vec<Life>>>,
    tasks: JoinSet<()>,
}

/// What one client has seen.
#[derive(Clone, Debug)]
pub struct Life {
    /// Its key.
    pub key: String,
    /// Its connections, in order.
    pub stays: Vec<Stay>,
    /// The texts it has got, without greetings, in order.
    pub heard: Vec<String>,
    /// Handshakes that were not answered with 101, with the answer.
    pub refusals: Vec<String>,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Stay {
    /// The app that has greeted it.
    pub server: String,
    /// When that was.
    pub since: Instant,
    /// When and how it ended.
    pub end: Option<(Instant, Goodbye)>,
}

/// Whether a client comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// At once.
    Returns,
    /// Never.
    StaysAway,
}

impl Crowd {
    /// A client with a key, which uses a random entry each time it connects.
    pub fn join(&mut self, key: &str, entries: &[SocketAddr]) {
        self.join_with(key, entries, Habit::Returns);
    }

    /// So many clients, `user-0` and on, each with a key of its own; waits until they are connected.
    pub async fn join_users(&mut self, count: usize, entries: &[SocketAddr]) {
        for number in 0..count {
            self.join(&format!("user-{number}"), entries);
        }
        self.settled().await;
    }

    /// A client with a habit.
    pub fn join_with(&mut self, key: &str, entries: &[SocketAddr], habit: Habit) {
        let entries = entries.to_vec();
        self.join_by(key, habit, move |_| entries.clone());
    }

    /// A client that looks up each time where it may enter, by its key.
    pub fn join_by(&mut self, key: &str, habit: Habit, entries: impl Fn(&str) -> Vec<SocketAddr> + Send + 'static) {
        let id = {
            let mut lives = self.lock();
            lives.push(Life { key: key.to_owned(), stays: Vec::new(), heard: Vec::new(), refusals: Vec::new() });
            lives.len() - 1
        };
        let (lives, key) = (Arc::clone(&self.lives), key.to_owned());
        self.tasks.spawn(async move {
            let write =
                |note: &mut dyn FnMut(&mut Life)| note(&mut lives.lock().unwrap_or_else(PoisonError::into_inner)[id]);
            loop {
                let open = entries(&key);
                if open.is_empty() {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                let entry = open[rand::random_range(0..open.len())];
                let client = match Client::try_connect(entry, &key).await {
                    Ok(client) => client,
                    Err(error) => {
                        write(&mut |life| life.refusals.push(error.to_string()));
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                };
                write(&mut |life| {
                    life.stays.push(Stay { server: client.server.clone(), since: Instant::now(), end: None });
                });
                let goodbye = client
                    .listen(|message| {
                        if let Message::Text(text) = message {
                            write(&mut |life| life.heard.push(text.to_string()));
                        }
                    })
                    .await;
                let end = Some((Instant::now(), goodbye));
                write(&mut |life| life.stays.last_mut().expect("its stay").end.clone_from(&end));
                if habit == Habit::StaysAway {
                    return;
                }
            }
        });
    }

    /// What each has seen so far.
    pub fn lives(&self) -> Vec<Life> {
        self.lock().clone()
    }

    /// How many clients are connected, by app.
    pub fn present(&self) -> BTreeMap<String, usize> {
        let mut present = BTreeMap::new();
        for server in self.lock().iter().filter_map(Life::server) {
            *present.entry(server.to_owned()).or_default() += 1;
        }
        present
    }

    /// Connections that have ended.
    pub fn breaks(&self) -> usize {
        self.lock().iter().map(Life::breaks).sum()
    }

    /// When the last of them ended.
    pub fn last_break(&self) -> Option<Instant> {
        let lives = self.lock();
        lives.iter().flat_map(|life| &life.stays).filter_map(|stay| stay.end.as_ref()).map(|end| end.0).max()
    }

    /// Waits until every client is connected.
    pub async fn settled(&self) {
        until("every client is connected", async || {
            let away: Vec<_> = self.lives().into_iter().filter(|life| life.server().is_none()).collect();
            if away.is_empty() { Ok(()) } else { Err(format!("{} are not: {:?}", away.len(), away[0])) }
        })
        .await;
    }

    /// Waits until each client is where its key belongs.
    pub async fn at_home(&self, home: impl Fn(&str) -> String) {
        until("every client is at its owner", async || {
            let lives = self.lives();
            let strays: Vec<_> = lives.iter().filter(|life| life.server() != Some(&home(&life.key))).collect();
            match strays.first() {
                None => Ok(()),
                Some(stray) => Err(format!("{} are not: {stray:?} belongs to {}", strays.len(), home(&stray.key))),
            }
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Life>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Life {
    /// The app it is at now.
    pub fn server(&self) -> Option<&str> {
        self.stays.last().filter(|stay| stay.end.is_none()).map(|stay| stay.server.as_str())
    }

    /// How often its connection has ended.
    pub fn breaks(&self) -> usize {
        self.stays.iter().filter(|stay| stay.end.is_some()).count()
    }

    /// How long it was away after each connection, as far as it has come back.
    pub fn absences(&self) -> Vec<Duration> {
        let pairs = self.stays.iter().zip(self.stays.iter().skip(1));
        pairs.filter_map(|(before, after)| Some(after.since.duration_since(before.end.as_ref()?.0))).collect()
    }

    /// What it was told at the end of each connection.
    pub fn goodbyes(&self) -> Vec<Goodbye> {
        self.stays.iter().filter_map(|stay| stay.end.as_ref()).map(|(_, goodbye)| goodbye.clone()).collect()
    }
}

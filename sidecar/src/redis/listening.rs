//! Hearing what is published for the keys that have connections here.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike as _, ClusterInterface as _, EventInterface as _, PubsubInterface as _};
use fred::types::Message as Publication;
use fred::types::cluster::ClusterRouting;
use fred::types::config::Server;
use futures_util::future::try_join_all;
use ring::notice::MessageKind;
use ring::settings::Published;
use ring::wire::RedisHealth;
use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Target;
use super::client::PATIENCE;
use crate::message::Message;
use crate::messages::{self, Published as Letter};
use crate::registry::{Audience, Heard, MARKER};
use crate::sidecar::Sidecar;

/// How often Redis is asked whether it is there.
const ASK: Duration = Duration::from_secs(2);
/// How long after a failure the next attempt is made.
const RETRY: Duration = Duration::from_millis(500);
/// How long changes are gathered: keys come and go together, as in a storm of returning clients.
const GATHER: Duration = Duration::from_millis(2);
/// How many channels one command subscribes to.
const BATCH: usize = 500;

/// Keeps listening; never ends.
pub(super) async fn run(sidecar: &Arc<Sidecar>, target: &Target, client: &Client) {
    let messages = client.message_rx();
    let (connected, errors) = (client.reconnect_rx(), client.error_rx());
    let changed = Arc::new(Notify::new());
    sidecar.registry().watch_audience(Arc::clone(&changed));
    tokio::join!(
        connect(sidecar, client),
        hear(sidecar, target, messages),
        lament(sidecar, errors),
        Subscriptions { sidecar, target, client, present: HashSet::new(), shards: None }.keep(&changed, connected)
    );
}

/// Connects. The client connects again by itself, except after what it takes for final, such as shards that do not know
/// each other yet.
pub(super) async fn connect(sidecar: &Sidecar, client: &Client) {
    loop {
        let mut connection = AbortOnDrop(client.connect());
        if let Ok(Err(error)) = (&mut connection.0).await {
            sidecar.redis.fares(Some(RedisHealth::Down(error.details().to_owned())));
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Ends the client's task with whatever held it.
struct AbortOnDrop(fred::types::ConnectHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Says why Redis is away: commands only find that it does not answer.
async fn lament(sidecar: &Sidecar, mut errors: Receiver<(Error, Option<Server>)>) {
    loop {
        match errors.recv().await {
            Ok((error, _)) => sidecar.redis.fares(Some(RedisHealth::Down(error.details().to_owned()))),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return std::future::pending().await,
        }
    }
}

/// Passes on what is published.
async fn hear(sidecar: &Arc<Sidecar>, target: &Target, mut messages: Receiver<Publication>) {
    loop {
        match messages.recv().await {
            Ok(publication) => take(sidecar, target, &publication),
            Err(RecvError::Lagged(missed)) => sidecar.metrics.messages_dropped("missed", missed),
            Err(RecvError::Closed) => return std::future::pending().await,
        }
    }
}

/// Without a wait: one key's messages would hold up those of all others.
fn take(sidecar: &Arc<Sidecar>, target: &Target, publication: &Publication) {
    let kind = match target.messages {
        Published::Text => MessageKind::Text,
        Published::Binary => MessageKind::Binary,
    };
    let Some(name) = publication.channel.strip_prefix(&*target.prefix) else { return };
    let (key, bytes) = (name.strip_prefix("key:"), publication.value.as_bytes());
    if let Some((key, bytes)) = key.zip(bytes) {
        let heard = sidecar.registry().hear(key, bytes);
        match heard {
            Heard::Message => {}
            Heard::Nothing => return,
            Heard::Last(marker) => return messages::hear(sidecar, key.to_owned(), Letter::Last(marker)),
            Heard::First(marker) => return messages::hear(sidecar, key.to_owned(), Letter::First(marker)),
        }
    }
    let message = bytes.and_then(|bytes| Message::new(kind, bytes).ok());
    let Some(message) = message else {
        tracing::debug!(channel = %publication.channel, "what was published is no message: too long, or not UTF-8");
        return sidecar.metrics.messages_dropped("no_message", 1);
    };
    let Ok(room) = sidecar.messages.room_now(message.size()) else {
        return sidecar.metrics.messages_dropped("no_room", 1);
    };
    if let Some(key) = key {
        return messages::hear(sidecar, key.to_owned(), Letter::Message(message, room));
    }
    let sidecar = Arc::clone(sidecar);
    tokio::spawn(async move {
        let _room = room;
        match sidecar.messages.broadcast_turn().await {
            Ok(turn) => drop(messages::deliver_to_all(&sidecar, &message, turn).await),
            Err(_) => sidecar.metrics.messages_dropped("no_room", 1),
        }
    });
}

/// Which server of a cluster has which hash slots. Servers go by their ids: their own names they need not know.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shards(Vec<(RangeInclusive<u16>, String)>);

impl Shards {
    async fn ask(client: &Client) -> Result<Self, Error> {
        let routing = ClusterRouting::from_cluster_slots(client.cluster_slots().await?, "")?;
        Ok(Self(routing.slots().iter().map(|range| (range.start..=range.end, range.id.to_string())).collect()))
    }

    /// The server of a channel.
    fn of(&self, channel: &str) -> Option<&str> {
        let slot = ClusterRouting::hash_key(channel.as_bytes());
        let range = self.0.partition_point(|(slots, _)| *slots.end() < slot);
        self.0.get(range).filter(|(slots, _)| slots.contains(&slot)).map(|(_, server)| server.as_str())
    }
}

/// The channels that Redis knows we listen to.
struct Subscriptions<'a> {
    sidecar: &'a Arc<Sidecar>,
    target: &'a Target,
    client: &'a Client,
    present: HashSet<String>,
    /// In a cluster: where each channel was when this was last asked, and when that was.
    shards: Option<(Shards, Instant)>,
}

impl Subscriptions<'_> {
    async fn keep(mut self, changed: &Notify, mut connected: Receiver<Server>) {
        let mut whole = true;
        loop {
            let followed = match self.look_at_shards().await {
                Ok(moved) => self.follow(whole || moved).await,
                Err(error) => Err(error),
            };
            match followed {
                Ok(()) => {
                    whole = false;
                    self.sidecar.redis.fares(Some(RedisHealth::Up));
                }
                Err(error) => {
                    whole = true;
                    self.present.clear();
                    self.fails(&error);
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
            tokio::select! {
                () = changed.notified() => tokio::time::sleep(GATHER).await,
                _ = connected.recv() => {
                    // Another connection: nothing of the last one's is left.
                    self.present.clear();
                    self.sidecar.redis.publishes.store(true, Ordering::Relaxed);
                    whole = true;
                }
                () = tokio::time::sleep(ASK) => {}
            }
        }
    }

    fn fails(&self, error: &Error) {
        let known = matches!(self.sidecar.redis.health(), Some(RedisHealth::Down(_)));
        if !known {
            self.sidecar.redis.fares(Some(RedisHealth::Down(error.details().to_owned())));
        }
    }

    /// Looks for channels that have gone to other shards, which forget who listened to them; says whether there are any.
    async fn look_at_shards(&mut self) -> Result<bool, Error> {
        let lately = self.shards.as_ref().is_some_and(|(_, asked)| asked.elapsed() < ASK);
        if !self.client.is_clustered() || lately {
            return Ok(false);
        }
        let shards = Shards::ask(self.client).await?;
        let before = self.shards.replace((shards.clone(), Instant::now()));
        let Some((before, _)) = before.filter(|(before, _)| *before != shards) else { return Ok(false) };
        self.client.sync_cluster().await?;
        let listened = self.present.len();
        self.present.retain(|channel| before.of(channel) == shards.of(channel));
        Ok(self.present.len() < listened)
    }

    /// Subscribes to what has got an audience, and from what has lost it.
    async fn follow(&mut self, whole: bool) -> Result<(), Error> {
        let audience = {
            let mut registry = self.sidecar.registry();
            if whole { registry.whole_audience() } else { registry.audience() }
        };
        let (mut new, mut old) = (Vec::new(), Vec::new());
        match audience {
            Audience::All(keys) => {
                let mut wanted: HashSet<String> = keys.iter().map(|key| self.channel(key)).collect();
                wanted.insert(format!("{}all", self.target.prefix));
                new.extend(wanted.difference(&self.present).cloned());
                old.extend(self.present.difference(&wanted).cloned());
            }
            Audience::Some(keys) => {
                for (key, heard) in keys {
                    let channel = self.channel(&key);
                    if heard != self.present.contains(&channel) {
                        if heard { &mut new } else { &mut old }.push(channel);
                    }
                }
            }
        }
        // A server that hangs is noticed here, and not by its silence. With subscriptions it is asked all the same, and they
        // do not wait.
        if new.is_empty() || self.client.is_clustered() {
            self.client.ping::<()>(None).await?;
        }
        for batch in new.chunks(BATCH) {
            self.tell(batch, true).await?;
            self.present.extend(batch.iter().cloned());
        }
        self.cut(whole).await?;
        for batch in old.chunks(BATCH) {
            self.tell(batch, false).await?;
            for channel in batch {
                self.present.remove(channel);
            }
        }
        self.sidecar.metrics.redis_channels(self.present.len());
        Ok(())
    }

    /// Publishes the markers of keys that are listened to by now. They come behind the subscriptions: on one connection.
    async fn cut(&self, again: bool) -> Result<(), Error> {
        let due = self.sidecar.registry().due_markers(again, |key| self.present.contains(&self.channel(key)));
        let publish = async |(key, marker): &(Arc<str>, String)| {
            let (channel, marker) = (self.channel(key), [MARKER, marker.as_bytes()].concat());
            match self.client.is_clustered() {
                true => self.client.spublish::<(), _, _>(channel, marker.as_slice()).await,
                false => self.client.publish::<(), _, _>(channel, marker.as_slice()).await,
            }
        };
        match try_join_all(due.iter().map(publish)).await {
            Err(error) if error.details().starts_with("NOPERM") => {
                tracing::warn!(%error, "messages that are published while their key moves may be lost");
                self.sidecar.redis.publishes.store(false, Ordering::Relaxed);
                let mut registry = self.sidecar.registry();
                for (key, marker) in due {
                    registry.end_cut_over(&key, &marker);
                }
                Ok(())
            }
            published => published.map(drop),
        }
    }

    fn channel(&self, key: &str) -> String {
        format!("{}key:{key}", self.target.prefix)
    }

    /// Subscribes to channels, or from them.
    async fn tell(&self, channels: &[String], listen: bool) -> Result<(), Error> {
        let client = self.client;
        let all = async {
            if client.is_clustered() {
                // The channels of one command would have to be of one shard.
                let one = async |channel: &String| match listen {
                    true => client.ssubscribe(channel.as_str()).await,
                    false => client.sunsubscribe(channel.as_str()).await,
                };
                try_join_all(channels.iter().map(one)).await.map(drop)
            } else if listen {
                // The client takes a subscription for granted once it is asked for. If it is denied, the command behind
                // it gets the error.
                let (asked, denied) = tokio::join!(client.subscribe(channels.to_vec()), client.ping::<()>(None));
                asked.and(denied)
            } else {
                client.unsubscribe(channels.to_vec()).await
            }
        };
        let silent = || Error::new(ErrorKind::Timeout, "it does not answer");
        tokio::time::timeout(2 * PATIENCE, all).await.unwrap_or_else(|_| Err(silent()))
    }
}

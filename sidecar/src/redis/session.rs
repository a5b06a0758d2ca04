//! Sessions: what an app remembers of a key, for whichever server has it next.
//!
//! Each write says under which placement its server got the key. One from an older placement than the last is refused:
//! that server has lost the key, and does not know it yet. Placements of another pool are not compared: one that is deleted
//! and made again begins anew.

use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike as _, HashesInterface as _, LuaInterface as _};
use fred::types::Value;
use ring::Version;

use crate::sidecar::Sidecar;

/// The longest session, in bytes.
pub const LARGEST: usize = 256 * 1024;
/// How long a session is kept after its last write, where that says nothing.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3_600);
/// How long it may be kept: 30 days.
pub const LONGEST_TTL: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Returns the version that is there already if that is newer than ARGV[1], under the pool's UID ARGV[2].
macro_rules! fenced {
    ($write:literal) => {
        concat!(
            "
local last = redis.call('HMGET', KEYS[1], 'version', 'pool')
local there = last[1]
if there and last[2] == ARGV[2] then
  local term, epoch = string.match(there, '^(%d+)%.(%d+)$')
  local new_term, new_epoch = string.match(ARGV[1], '^(%d+)%.(%d+)$')
  term, epoch, new_term, new_epoch = tonumber(term), tonumber(epoch), tonumber(new_term), tonumber(new_epoch)
  if term > new_term or (term == new_term and epoch > new_epoch) then return there end
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'pool', ARGV[2]",
            $write,
            ")
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return false"
        )
    };
}

/// Writes a session unless a newer placement of its pool has: its version, the pool's UID, its time to live in
/// milliseconds, its content type and its body.
const PUT: &str = fenced!(", 'type', ARGV[4], 'body', ARGV[5]");
/// Forgets a session likewise. Who has forgotten it stays, so that no older placement writes it again.
const DELETE: &str = fenced!("");

/// What is remembered of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The placement under which its writer had the key.
    pub version: Version,
    /// The content type that it was written with.
    pub content_type: String,
    /// The session.
    pub body: Bytes,
}

/// Why a session was not read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The pool has no Redis.
    #[error("this pool keeps no sessions; set spec.redis")]
    NoRedis,
    /// Redis is away.
    #[error("the pool's Redis does not answer ({0}); try again in a moment")]
    Away(String),
    /// A newer placement has written it.
    #[error(
        "the session was written under the newer placement {}; this server has lost the key, and must not write it",
        .0.token()
    )]
    Stale(Version),
}

/// The session of a key.
pub async fn get(sidecar: &Sidecar, key: &str) -> Result<Option<Session>, SessionError> {
    let (client, name) = client(sidecar, key)?;
    let fields: (Option<String>, Option<String>, Option<Bytes>) =
        client.hmget(name, vec!["version", "type", "body"]).await.map_err(away)?;
    let (Some(version), Some(content_type), Some(body)) = fields else { return Ok(None) };
    let version = Version::from_token(&version).unwrap_or_default();
    Ok(Some(Session { version, content_type, body }))
}

/// Writes the session of a key.
pub async fn put(sidecar: &Sidecar, key: &str, session: Session, ttl: Duration) -> Result<(), SessionError> {
    let (client, name) = client(sidecar, key)?;
    let Session { version, content_type, body } = session;
    write(sidecar, client, PUT, name, version, ttl, vec![content_type.into(), Value::Bytes(body)]).await
}

/// Forgets the session of a key.
pub async fn delete(sidecar: &Sidecar, key: &str, version: Version) -> Result<(), SessionError> {
    let (client, name) = client(sidecar, key)?;
    write(sidecar, client, DELETE, name, version, DEFAULT_TTL, Vec::new()).await
}

async fn write(
    sidecar: &Sidecar,
    client: Client,
    script: &'static str,
    name: String,
    version: Version,
    ttl: Duration,
    rest: Vec<Value>,
) -> Result<(), SessionError> {
    let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    let mut values: Vec<Value> = vec![version.token().into(), sidecar.view().pool_uid().to_owned().into(), ttl.into()];
    values.extend(rest);
    let newer: Option<String> = client.eval(script, name, values).await.map_err(away)?;
    match newer {
        None => Ok(()),
        Some(newer) => Err(SessionError::Stale(Version::from_token(&newer).unwrap_or_default())),
    }
}

fn client(sidecar: &Sidecar, key: &str) -> Result<(Client, String), SessionError> {
    let Some((client, prefix)) = sidecar.redis.client().clone() else {
        return Err(match sidecar.redis.health() {
            Some(ring::wire::RedisHealth::Down(why)) => SessionError::Away(why),
            _ => SessionError::NoRedis,
        });
    };
    if !client.is_connected() {
        return Err(SessionError::Away("it is not connected".into()));
    }
    Ok((client, format!("{prefix}session:{key}")))
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn away(error: fred::error::Error) -> SessionError {
    SessionError::Away(error.details().to_owned())
}

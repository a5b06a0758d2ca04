//! The client of the pool's Redis.

use std::path::PathBuf;
use std::time::Duration;

use fred::clients::Client;
use fred::types::Builder;
use fred::types::RespVersion;
use fred::types::config::{Config, ReconnectPolicy, UnresponsiveConfig};

use super::Target;
use crate::tls::{self, TlsError};

/// How long Redis may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// How long after a failure the next attempt is made, at first and at most, in milliseconds.
const RETRY: (u32, u32) = (100, 5_000);
/// How many messages wait for us to take them; those that come before these are lost then.
const WAITING: usize = 8_192;
/// How many commands wait for Redis.
const COMMANDS: usize = 4_096;

/// Why there is nothing to connect to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// The file with the URL.
    #[error("the file with its URL, {0}, cannot be read: {1}")]
    File(PathBuf, String),
    /// What is in that file.
    #[error("its URL cannot be used; write for example redis://user:password@redis:6379/0")]
    Url,
    /// No prefix: the operator writes one.
    #[error("redis.prefix is missing; write what the names of channels begin with, for example wspool:default/chat:")]
    Prefix,
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A client that connects, and connects again, by itself once it is started.
pub(super) fn new(target: &Target) -> Result<Client, Unusable> {
    // What is wrong with a URL is not said in its own words: they may have the password.
    let mut config = Config::from_url(&target.url).map_err(|_| Unusable::Url)?;
    // Messages and answers on one connection.
    config.version = RespVersion::RESP3;
    if config.tls.is_some() {
        config.tls = Some(tls::client(target.ca.as_ref().map(|ca| ca.file.as_path()))?.into());
    }
    let mut builder = Builder::from_config(config);
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = PATIENCE;
            connection.internal_command_timeout = PATIENCE;
            connection.max_command_buffer_len = COMMANDS;
            connection.auto_client_setname = true;
            // A password is corrected on either side.
            connection.reconnect_on_auth_error = true;
            connection.unresponsive =
                UnresponsiveConfig { max_timeout: Some(PATIENCE), interval: Duration::from_secs(1) };
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = PATIENCE;
            performance.broadcast_channel_capacity = WAITING;
        })
        .set_policy(ReconnectPolicy::new_exponential(0, RETRY.0, RETRY.1, 2));
    builder.build().map_err(|_| Unusable::Url)
}

//! Requests to the API server: each with a deadline, a bounded number at once, and never repeated behind our back.

use std::sync::Arc;
use std::time::Duration;

use kube::{Client, Config};
use tokio::sync::Semaphore;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(5);
/// Requests under way at once: an API server that is slow is not made slower.
const AT_ONCE: usize = 16;
/// A watch that is silent for so long is dead: the server sends a bookmark about each minute.
const WATCH_SILENCE: Duration = Duration::from_secs(100);

/// The API server.
#[derive(Clone)]
pub struct Kube {
    client: Client,
    turns: Arc<Semaphore>,
    patience: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {object}: {cause}")]
pub struct AskError {
    verb: &'static str,
    object: String,
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("{0}")]
    Refused(Box<kube::Error>),
    #[error("no answer in {0:?}")]
    Timeout(Duration),
}

impl Kube {
    /// The one that the surroundings lead to: a pod's service account, or a kubeconfig.
    pub async fn infer() -> Result<Self, kube::Error> {
        let config = Config::infer().await.map_err(kube::Error::InferConfig)?;
        Self::new(config)
    }

    /// One by its configuration.
    pub fn new(mut config: Config) -> Result<Self, kube::Error> {
        // A write that is repeated could undo what another replica has done since.
        config.default_retry = false;
        config.connect_timeout = Some(REQUEST);
        config.write_timeout = Some(REQUEST);
        config.read_timeout = Some(WATCH_SILENCE);
        Ok(Self { client: Client::try_from(config)?, turns: Arc::new(Semaphore::new(AT_ONCE)), patience: REQUEST })
    }

    /// The same server for requests that must not wait behind others, nor for long.
    #[must_use]
    pub fn apart(&self, patience: Duration) -> Self {
        Self { client: self.client(), turns: Arc::new(Semaphore::new(AT_ONCE)), patience }
    }

    /// The client that requests are made with.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Makes one request. The verb and the object are for people.
    pub async fn ask<T>(
        &self,
        verb: &'static str,
        object: impl Into<String>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, AskError> {
        let _turn = self.turns.acquire().await.expect("it is never closed");
        let cause = match tokio::time::timeout(self.patience, request).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Cause::Refused(Box::new(error)),
            Err(_) => Cause::Timeout(self.patience),
        };
        Err(AskError { verb, object: object.into(), cause })
    }
}

impl AskError {
    /// Whether the object is not there.
    pub fn is_missing(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether somebody else has written it in between, or has created it.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    fn code(&self) -> Option<u16> {
        match &self.cause {
            Cause::Refused(error) => match error.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Cause::Timeout(_) => None,
        }
    }
}

/// What is there, if anything is.
pub fn if_there<T>(answer: Result<T, AskError>) -> Result<Option<T>, AskError> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

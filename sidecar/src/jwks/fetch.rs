//! Fetching a key set from its issuer.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::VerifyingKey;
use super::key::parse;
use crate::tls::{self, TlsError};

/// How long an answer may take, in all.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest set, in bytes.
const LARGEST: usize = 256 * 1024;

/// Why there is no key set.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No answer.
    #[error("the issuer's server cannot be reached: {0}")]
    Unreachable(String),
    /// Another answer than the set.
    #[error("the issuer's server answered {0}")]
    Status(StatusCode),
    /// Something else than a set.
    #[error("the issuer's server sent no JSON web key set with a key that can be used here")]
    NoKeys,
}

impl FetchError {
    /// Its name in metrics.
    pub(super) const fn label(&self) -> &'static str {
        match self {
            Self::Tls(_) => "tls",
            Self::Unreachable(_) => "unreachable",
            Self::Status(_) => "status",
            Self::NoKeys => "no_keys",
        }
    }
}

/// Fetches a key set. What both signs and checks is left out: it has been published.
pub(super) async fn fetch(uri: &str, ca: Option<&Path>) -> Result<Vec<VerifyingKey>, FetchError> {
    let client = client(ca)?;
    let unreachable = |error: &dyn std::error::Error| {
        let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        FetchError::Unreachable(format!("{error}{cause}"))
    };
    let request = Request::get(uri).header(http::header::ACCEPT, "application/json");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| unreachable(&error))?;
    let fetching = async {
        let response = client.request(request).await.map_err(|error| unreachable(&error))?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body.map_err(|error| FetchError::Unreachable(error.to_string()))?.to_bytes();
        let keys: Vec<_> = parse(&body).ok_or(FetchError::NoKeys)?.into_iter().filter(|key| !key.is_secret()).collect();
        if keys.is_empty() { Err(FetchError::NoKeys) } else { Ok(keys) }
    };
    tokio::time::timeout(TIMEOUT, fetching).await.unwrap_or_else(|silent| Err(unreachable(&silent)))
}

type HttpsClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

fn client(ca: Option<&Path>) -> Result<HttpsClient, TlsError> {
    // Which addresses may go without TLS is a matter of the settings, which have been checked.
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls::client(ca)?).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

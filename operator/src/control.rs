//! The client of sidecars' control ports.
//!
//! Each request has a timeout and is sent once: a placement or a grant that did not arrive is overtaken by the next one,
//! and a grant that is sent twice must not be this client's doing. Where sidecars check who asks, each request is signed.

use std::borrow::Borrow;
use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ring::Placement;
use ring::wire::{Grant, Loads, Placed, PodPin, Problem, Report, Told};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::token::{Covered, Signer};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_millis(500);
/// How long a request may take in all: a placement of thousands of slots is some megabytes.
const REQUEST: Duration = Duration::from_secs(2);
/// The largest answer that is read, in bytes.
const ANSWER: usize = 1024 * 1024;
const WRITABLE: &str = "wire types have string keys and no failing serializers";

/// A client for all sidecars; its connections are kept alive.
#[derive(Clone, Debug)]
pub struct Control {
    client: Client<HttpConnector, Full<Bytes>>,
    signer: Option<Signer>,
}

/// A placement that many sidecars get: what each of them is sent is written only once.
#[derive(Clone, Debug)]
pub struct Written {
    placement: Arc<Placement>,
    json: Box<RawValue>,
}

/// Whom a request is for, and in whose name.
#[derive(Clone, Copy, Debug)]
struct Addressee<'a> {
    address: &'a str,
    uid: &'a str,
    term: u64,
}

/// Why a sidecar gave no report.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nothing listens there: its process is gone, or not there yet.
    #[error("{address} refuses connections")]
    Refused {
        /// The control port.
        address: String,
    },
    /// It cannot be reached, or the connection broke.
    #[error("{address} cannot be reached: {why}")]
    Unreachable {
        /// The control port.
        address: String,
        /// What went wrong.
        why: String,
    },
    /// It did not answer in time.
    #[error("{address} did not answer within {REQUEST:?}")]
    Timeout {
        /// The control port.
        address: String,
    },
    /// It answered with an error.
    #[error("{address} answered {status}: {detail}")]
    Denied {
        /// The control port.
        address: String,
        /// The status.
        status: StatusCode,
        /// What it says.
        detail: String,
    },
    /// The request cannot be signed.
    #[error("no token for {address}: {why}")]
    Unsigned {
        /// The control port.
        address: String,
        /// Why.
        why: String,
    },
    /// It answered with something else than a report.
    #[error("{address} is not a sidecar's control port: {why}")]
    Malformed {
        /// The control port.
        address: String,
        /// What is wrong.
        why: String,
    },
}

impl Written {
    /// Writes it.
    pub fn new(placement: Arc<Placement>) -> Self {
        let json = serde_json::value::to_raw_value(&*placement).expect(WRITABLE);
        Self { placement, json }
    }

    /// What was written.
    pub fn placement(&self) -> &Arc<Placement> {
        &self.placement
    }
}

impl Borrow<Placement> for &Written {
    fn borrow(&self) -> &Placement {
        &self.placement
    }
}

impl Serialize for Written {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(to)
    }
}

impl Default for Control {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(1)
            .retry_canceled_requests(false)
            .build(connector);
        Self { client, signer: None }
    }
}

impl Control {
    /// A client that signs its requests.
    pub fn signed(signer: Signer) -> Self {
        Self { signer: Some(signer), ..Self::default() }
    }

    /// Gives a sidecar its placement.
    pub async fn place<P>(&self, address: &str, placed: &Placed<P>) -> Result<Report, ControlError>
    where
        P: Borrow<Placement> + Serialize,
    {
        let term = placed.placement.borrow().version.term;
        let to = Addressee { address, uid: &placed.target, term };
        self.request(to, Method::PUT, "/v1/placement", body(placed)).await
    }

    /// Permits a sidecar to evict.
    pub async fn grant(&self, address: &str, grant: &Grant) -> Result<Report, ControlError> {
        let to = Addressee { address, uid: &grant.target, term: grant.version.term };
        self.request(to, Method::PUT, "/v1/evictions", body(grant)).await
    }

    /// Tells a sidecar what the slots hold.
    pub async fn tell(&self, address: &str, told: &Told<&Loads>) -> Result<Report, ControlError> {
        let to = Addressee { address, uid: &told.target, term: told.loads.version.term };
        self.request(to, Method::PUT, "/v1/loads", body(told)).await
    }

    /// Keeps everything in a sidecar's pod for a while, or no longer.
    pub async fn pin(&self, address: &str, term: u64, pin: &PodPin) -> Result<Report, ControlError> {
        let to = Addressee { address, uid: &pin.target, term };
        self.request(to, Method::PUT, "/v1/pin", body(pin)).await
    }

    /// Asks a sidecar how it is. The UID is its pod's; `None` where nobody but itself knows it.
    pub async fn status(&self, address: &str, uid: Option<&str>) -> Result<Report, ControlError> {
        // Whoever has yet to learn which terms there were asks in the name of none.
        let to = Addressee { address, uid: uid.unwrap_or_default(), term: 0 };
        self.request(to, Method::GET, "/v1/status", Bytes::new()).await
    }

    async fn request(
        &self,
        to: Addressee<'_>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Report, ControlError> {
        let address = || to.address.to_owned();
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("http://{}{path}", to.address))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(signer) = &self.signer {
            let covered = Covered { uid: to.uid, term: to.term, request: &format!("{method} {path}"), body: &body };
            let token = signer.sign(covered, SystemTime::now());
            let token = token.map_err(|error| ControlError::Unsigned { address: address(), why: error.to_string() })?;
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| ControlError::Unreachable { address: address(), why: error.to_string() })?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| match refused(&error) {
                true => ControlError::Refused { address: address() },
                false => ControlError::Unreachable { address: address(), why: chain(&error) },
            })?;
            let status = response.status();
            let answer = Limited::new(response.into_body(), ANSWER).collect().await;
            let answer = answer
                .map_err(|error| ControlError::Unreachable { address: address(), why: error.to_string() })?
                .to_bytes();
            if status.is_success() {
                let why =
                    |error: serde_json::Error| ControlError::Malformed { address: address(), why: error.to_string() };
                return serde_json::from_slice(&answer).map_err(why);
            }
            let detail = serde_json::from_slice::<Problem>(&answer)
                .map_or_else(|_| String::from_utf8_lossy(&answer).into_owned(), |problem| problem.detail);
            Err(ControlError::Denied { address: address(), status, detail })
        };
        tokio::time::timeout(REQUEST, exchange)
            .await
            .unwrap_or_else(|_| Err(ControlError::Timeout { address: address() }))
    }
}

fn body<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect(WRITABLE).into()
}

fn refused(error: &hyper_util::client::legacy::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        source = error.source();
    }
    false
}

/// An error with its causes: the client's own says only that it failed.
fn chain(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

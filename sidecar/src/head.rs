//! The head of a request, read from its socket and parsed strictly.
//!
//! What two parsers could read in two ways is refused, so that the app behind us never sees another request than the
//! one that was placed. A head that is accepted is passed on byte for byte, but for the headers that are ours.

mod error;
mod raw;
mod rewrite;
mod semantics;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Version};
use tokio::io::AsyncRead;

pub use self::error::HeadError;
pub use self::raw::Fault;
pub(crate) use self::raw::{MAX_FIELDS, RawHead, ReadFault, Span, read};
pub use self::rewrite::Edit;
pub(crate) use self::rewrite::is_ours;
pub(crate) use self::semantics::{lists, parse_length};

/// What a peer may add to the fields that a client sent: `X-Forwarded-For` and ours.
const ADDED_FIELDS: usize = 16;
/// The same in bytes: the longest key is three times as long when it is percent-encoded.
const ADDED_BYTES: usize = 4 * 1024;
/// The most header fields in a request's head.
pub(crate) const MAX_REQUEST_FIELDS: usize = MAX_FIELDS + ADDED_FIELDS;

/// What a client may take for its first head. A head that a peer passes on may be larger by what the peer added:
/// [`RequestHead::check_client`].
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Its size.
    pub max_bytes: usize,
    /// The time from now to its last byte.
    pub timeout: Duration,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { max_bytes: 16 * 1024, timeout: Duration::from_secs(10) }
    }
}

/// The head of a request, with what was read behind it.
#[derive(Clone, Debug)]
pub struct RequestHead {
    raw: RawHead,
    method: std::ops::Range<usize>,
    target: std::ops::Range<usize>,
    /// 0 or 1.
    minor: u8,
}

/// Proof that a request is a complete WebSocket handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgrade(());

/// Reads the first head of a connection. Bytes behind it are kept in the head.
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin), limits: HeadLimits) -> Result<RequestHead, HeadError> {
    let reading = read(stream, Vec::new(), limits.max_bytes + ADDED_BYTES, error::foreign_protocol);
    let raw = tokio::time::timeout(limits.timeout, reading).await.map_err(|_| HeadError::Slow)??;
    let head = RequestHead::parse(raw)?;
    if !head.headers().any(|(name, _)| is_ours(name)) {
        head.check_client(limits)?;
    }
    Ok(head)
}

impl RequestHead {
    fn parse(mut raw: RawHead) -> Result<Self, HeadError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_REQUEST_FIELDS];
        let mut request = httparse::Request::new(&mut headers);
        raw.check_lines()?;
        let status = request.parse(raw.head()).map_err(|error| semantics::parse_error(error, raw.head()))?;
        let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
            return Err(HeadError::RequestLine);
        };
        if status != httparse::Status::Complete(raw.head().len()) || !raw.head().starts_with(method.as_bytes()) {
            return Err(HeadError::RequestLine);
        }
        let method = 0..method.len();
        let target = method.end + 1..method.end + 1 + target.len();
        let spans = request.headers.iter().map(|header| Span::of(raw.head(), header)).collect();
        raw.set_fields(spans);
        let head = Self { raw, method, target, minor };
        semantics::check(&head)?;
        Ok(head)
    }

    /// Refuses what only a peer may send. A header in our name is no proof of a peer: whoever has found out that it is none
    /// asks this, or the next sidecar could not read what is made of the head. Such headers do not count, since they are
    /// not passed on.
    pub fn check_client(&self, limits: HeadLimits) -> Result<(), HeadError> {
        let (mut bytes, mut fields) = (self.raw.head().len(), 0);
        for (name, value) in self.headers() {
            if is_ours(name) {
                bytes = bytes.saturating_sub(name.len() + value.len() + ": \r\n".len());
            } else {
                fields += 1;
            }
        }
        if bytes > limits.max_bytes {
            return Err(HeadError::TooLarge);
        }
        if fields > MAX_FIELDS {
            return Err(Fault::TooManyFields.into());
        }
        Ok(())
    }

    /// The head of a request that hyper has read, if it is a WebSocket handshake. The case of its headers' names is
    /// lost.
    pub fn of_request<B>(request: &Request<B>) -> Option<Self> {
        if request.method() != Method::GET || request.version() != Version::HTTP_11 {
            return None;
        }
        let mut bytes = Vec::with_capacity(1024);
        let target = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        bytes.extend_from_slice(format!("GET {target} HTTP/1.1\r\n").as_bytes());
        for (name, value) in request.headers() {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                bytes.extend_from_slice(part);
            }
        }
        bytes.extend_from_slice(b"\r\n");
        let head = Self::parse(RawHead::whole(bytes)).ok()?;
        head.upgrade().is_some().then_some(head)
    }

    /// Its method.
    pub fn method(&self) -> &str {
        self.text(&self.method)
    }

    /// Its target, as it was sent.
    pub fn target(&self) -> &str {
        self.text(&self.target)
    }

    /// The path of its target: `/` when the target has none.
    pub fn path(&self) -> &str {
        let path = self.path_and_query().split(['?', '#']).next().unwrap_or_default();
        if path.is_empty() { "/" } else { path }
    }

    /// The query of its target, without the question mark.
    pub fn query(&self) -> Option<&str> {
        let (_, query) = self.path_and_query().split_once('?')?;
        query.split('#').next()
    }

    /// Its headers in order, as they were sent.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.raw.fields()
    }

    /// The first value of a header, in any case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.raw.values(name).next()
    }

    /// Whether it is a WebSocket handshake (RFC 6455, section 4.2.1), and a right one. An upgrade to anything else is
    /// plain HTTP to us.
    pub fn upgrade(&self) -> Option<Result<Upgrade, HeadError>> {
        semantics::upgrade(self)
    }

    /// What was read behind the head: from now on it belongs to the caller.
    pub fn take_rest(&mut self) -> Vec<u8> {
        self.raw.take_rest()
    }

    /// Everything that was read.
    pub fn into_bytes(self) -> Bytes {
        self.raw.into_bytes().into()
    }

    /// The target without scheme and authority, which a request to a proxy has.
    fn path_and_query(&self) -> &str {
        let target = self.target();
        match target.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(['/', '?']) => {
                &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]
            }
            _ => target,
        }
    }

    fn text(&self, range: &std::ops::Range<usize>) -> &str {
        std::str::from_utf8(&self.raw.head()[range.clone()]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;

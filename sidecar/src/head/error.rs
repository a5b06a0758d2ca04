//! Why a first head was refused, and what the client is told.

use std::io;

use http::StatusCode;

use super::raw::{Fault, ReadFault};

/// Why a request's head was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The client closed without a word. Not an error: health checks and browsers do it.
    #[error("the connection was closed before a request")]
    Closed,
    /// The client is gone.
    #[error("the connection broke before a request: {0}")]
    Io(io::ErrorKind),
    /// The client closed within the head.
    #[error("the connection was closed within the request's head")]
    Truncated,
    /// The head was not there in time.
    #[error("the request's head took too long")]
    Slow,
    /// The head is larger than allowed.
    #[error("the request's head is too large")]
    TooLarge,
    /// A TLS client.
    #[error("this port speaks HTTP/1.1 without TLS; a TLS hello came")]
    Tls,
    /// An HTTP/2 client that did not ask first.
    #[error("this port speaks HTTP/1.1; an HTTP/2 preface came")]
    Http2,
    /// The lines of the head.
    #[error("the request's head is malformed: {0}")]
    Lines(#[from] Fault),
    /// The first line.
    #[error("the request line is malformed: it is `METHOD target HTTP/1.1`")]
    RequestLine,
    /// The protocol version's form.
    #[error("the protocol version is malformed: it is HTTP/1.1")]
    Version,
    /// The protocol version.
    #[error("this HTTP version is not served here; use HTTP/1.1")]
    UnknownVersion,
    /// CONNECT is for proxies of clients.
    #[error("CONNECT is not served here")]
    Connect,
    /// HTTP/1.1 without a Host.
    #[error("a request has a Host header")]
    HostMissing,
    /// Two Hosts.
    #[error("a request has one Host header, this has several")]
    HostRepeated,
    /// A Host that is none.
    #[error("the Host header is not a host name with an optional port")]
    HostMalformed,
    /// Two lengths, equal or not.
    #[error("a request has one Content-Length, this has several")]
    LengthRepeated,
    /// A length that is not one number.
    #[error("Content-Length is not a number")]
    LengthMalformed,
    /// Both ways to say where the body ends.
    #[error("a request has Content-Length or Transfer-Encoding, not both")]
    LengthAndEncoding,
    /// Anything but `chunked`, or in HTTP/1.0.
    #[error("the only Transfer-Encoding served here is chunked, in HTTP/1.1")]
    Encoding,
    /// A handshake with a body: where WebSocket frames begin would be in doubt.
    #[error("a WebSocket handshake has no body")]
    UpgradeBody,
    /// Another WebSocket version, or none.
    #[error("the WebSocket version served here is 13")]
    WebSocketVersion,
    /// No key.
    #[error("a WebSocket handshake has a Sec-WebSocket-Key")]
    WebSocketKeyMissing,
    /// Two keys.
    #[error("a WebSocket handshake has one Sec-WebSocket-Key, this has several")]
    WebSocketKeyRepeated,
    /// A key that is not 16 bytes in base64.
    #[error("Sec-WebSocket-Key is not 16 bytes in base64")]
    WebSocketKeyMalformed,
}

impl HeadError {
    /// The HTTP status that fits it best; see [`response`](Self::response) for what is sent.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge | Self::Lines(Fault::TooManyFields) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnknownVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Encoding => StatusCode::NOT_IMPLEMENTED,
            Self::WebSocketVersion => StatusCode::UPGRADE_REQUIRED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Its name in metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Io(_) => "broken",
            Self::Truncated => "truncated",
            Self::Slow => "slow",
            Self::TooLarge => "too_large",
            Self::Tls => "tls",
            Self::Http2 => "http2",
            Self::Lines(fault) => fault.label(),
            Self::RequestLine => "request_line",
            Self::Version => "version",
            Self::UnknownVersion => "unknown_version",
            Self::Connect => "connect",
            Self::HostMissing => "host_missing",
            Self::HostRepeated => "host_repeated",
            Self::HostMalformed => "host_malformed",
            Self::LengthRepeated => "length_repeated",
            Self::LengthMalformed => "length_malformed",
            Self::LengthAndEncoding => "length_and_encoding",
            Self::Encoding => "encoding",
            Self::UpgradeBody => "upgrade_body",
            Self::WebSocketVersion => "websocket_version",
            Self::WebSocketKeyMissing => "websocket_key_missing",
            Self::WebSocketKeyRepeated => "websocket_key_repeated",
            Self::WebSocketKeyMalformed => "websocket_key_malformed",
        }
    }

    /// The bytes to answer before closing, in the client's own protocol. `None` when nobody is there to read them.
    pub fn response(&self) -> Option<Vec<u8>> {
        match self {
            Self::Closed | Self::Io(_) => None,
            Self::Tls => Some(TLS_ALERT.to_vec()),
            Self::Http2 => Some(HTTP2_GOAWAY.to_vec()),
            error => {
                let status = error.status();
                let reason = status.canonical_reason().unwrap_or_default();
                let extra = match error {
                    Self::WebSocketVersion => {
                        "Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\nConnection: close, Upgrade\r\n"
                    }
                    // RFC 9110, section 15.5.6, asks for the list.
                    Self::Connect => "Allow: GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS\r\nConnection: close\r\n",
                    _ => "Connection: close\r\n",
                };
                let body = format!("{error}\n");
                let head = format!("HTTP/1.1 {} {reason}\r\n{extra}", status.as_u16());
                let kind = "Content-Type: text/plain; charset=utf-8";
                Some(format!("{head}{kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
            }
        }
    }
}

/// A fatal `handshake_failure` (RFC 8446, section 6), in the record version that every TLS client reads.
const TLS_ALERT: [u8; 7] = [0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x28];

/// Empty SETTINGS, then GOAWAY with `HTTP_1_1_REQUIRED` (RFC 9113, sections 6.5, 6.8 and 7).
const HTTP2_GOAWAY: [u8; 26] = [
    0, 0, 0, 0x4, 0, 0, 0, 0, 0, // SETTINGS, stream 0
    0, 0, 8, 0x7, 0, 0, 0, 0, 0, // GOAWAY, stream 0
    0, 0, 0, 0, 0, 0, 0, 0xd, // last stream 0, HTTP_1_1_REQUIRED
];

/// How an HTTP/2 connection preface begins: the line that no HTTP/1.1 request has.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// Recognises clients of other protocols by their first bytes.
pub(super) fn foreign_protocol(bytes: &[u8]) -> Option<HeadError> {
    if bytes.starts_with(&[0x16, 0x03]) {
        Some(HeadError::Tls)
    } else if bytes.starts_with(HTTP2_PREFACE) {
        Some(HeadError::Http2)
    } else {
        None
    }
}

impl From<ReadFault<Self>> for HeadError {
    fn from(fault: ReadFault<Self>) -> Self {
        match fault {
            ReadFault::Closed => Self::Closed,
            ReadFault::Truncated => Self::Truncated,
            ReadFault::TooLarge => Self::TooLarge,
            ReadFault::Lines(fault) => Self::Lines(fault),
            ReadFault::Io(kind) => Self::Io(kind),
            ReadFault::Foreign(error) => error,
        }
    }
}

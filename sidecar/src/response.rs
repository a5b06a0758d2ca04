//! The answer to a handshake: a 101 that becomes a connection, or anything else, which is passed on and ends it.

mod body;

use std::io;
use std::time::Duration;

use http::StatusCode;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use self::body::Framing;
use crate::head::{Fault, MAX_FIELDS, RawHead, ReadFault, Span, is_ours, lists, parse_length, read};
use crate::server;

/// The largest head of an answer, with the interim ones before it, in bytes.
const MAX_BYTES: usize = 16 * 1024;
/// The largest body that [`collect`] reads, in bytes.
const MAX_COLLECTED: usize = 1024 * 1024;
/// How long either side of an answer's body may stand still.
const STALL: Duration = Duration::from_secs(60);

/// Why an answer could not be read or passed on.
#[derive(Debug, thiserror::Error)]
pub enum ResponseError {
    /// The head was not there in time.
    #[error("the app did not answer the handshake within {0:?}")]
    Slow(Duration),
    /// The app closed first.
    #[error("the app closed the connection instead of answering the handshake")]
    Closed,
    /// The head is larger than allowed.
    #[error("the head of the app's answer is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// The lines of the head.
    #[error("the head of the app's answer is malformed: {0}")]
    Lines(#[from] Fault),
    /// The first line.
    #[error("the app's answer does not begin with a status line")]
    StatusLine,
    /// Where its body ends is in doubt.
    #[error("the app's answer says in two ways, or not rightly, where its body ends")]
    Length,
    /// Its chunks cannot be told apart.
    #[error("the chunks of the app's answer are malformed")]
    Chunks,
    /// The body is larger than can be kept.
    #[error("the body of the app's answer is larger than {MAX_COLLECTED} bytes")]
    BodyTooLarge,
    /// A side stood still for too long.
    #[error("the answer's body stood still for {STALL:?}")]
    Stalled,
    /// A side broke.
    #[error("the connection broke in the middle of the answer: {0}")]
    Io(#[from] io::Error),
}

/// The head of an answer, with what was read behind it.
#[derive(Debug)]
pub struct ResponseHead {
    /// Interim answers that came first, as they were sent.
    interim: Vec<u8>,
    raw: RawHead,
    status: StatusCode,
}

/// Reads the answer to a handshake. Interim answers are kept for the client.
pub async fn read_response(stream: &mut TcpStream, timeout: Duration) -> Result<ResponseHead, ResponseError> {
    let reading = async {
        let mut interim = Vec::new();
        let mut bytes = Vec::new();
        loop {
            let max = MAX_BYTES - interim.len();
            let raw = read(stream, bytes, max, |_| None).await?;
            let mut head = ResponseHead::parse(raw)?;
            if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(ResponseHead { interim, ..head });
            }
            interim.extend(head.for_client());
            bytes = head.raw.take_rest();
        }
    };
    tokio::time::timeout(timeout, reading).await.map_err(|_| ResponseError::Slow(timeout))?
}

impl ResponseHead {
    fn parse(mut raw: RawHead) -> Result<Self, ResponseError> {
        raw.check_lines()?;
        let mut headers = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(raw.head()).map_err(|error| match error {
            httparse::Error::HeaderName => Fault::FieldName.into(),
            httparse::Error::HeaderValue => Fault::FieldValue.into(),
            httparse::Error::TooManyHeaders => Fault::TooManyFields.into(),
            _ => ResponseError::StatusLine,
        })?;
        let code = response.code.and_then(|code| StatusCode::from_u16(code).ok());
        let whole = parsed == httparse::Status::Complete(raw.head().len()) && raw.head().starts_with(b"HTTP/");
        let status = code.filter(|_| whole).ok_or(ResponseError::StatusLine)?;
        let spans = response.headers.iter().map(|header| Span::of(raw.head(), header)).collect();
        raw.set_fields(spans);
        Ok(Self { interim: Vec::new(), raw, status })
    }

    /// Its status: never an interim one.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The first value of a header, in any case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.raw.values(name).next()
    }

    /// Whether an extension was agreed on other than permessage-deflate, which lets messages through that are not
    /// compressed (RFC 7692, section 6).
    pub fn has_unknown_extension(&self) -> bool {
        let listed = self.raw.values("sec-websocket-extensions").flat_map(|value| value.split(|byte| *byte == b','));
        let mut names = listed.map(|item| item.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii());
        names.any(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"permessage-deflate"))
    }

    /// Of a 101: the head as the client gets it, byte for byte but for the headers that are ours; and the app's first
    /// bytes behind it.
    pub fn into_switching(mut self) -> (Vec<u8>, Vec<u8>) {
        let mut head = std::mem::take(&mut self.interim);
        head.extend(self.for_client());
        (head, self.raw.take_rest())
    }

    fn for_client(&self) -> Vec<u8> {
        let mut head = self.raw.copy_lines(|copy, line| {
            if !is_ours(line.name) {
                copy.extend_from_slice(line.bytes);
            }
        });
        head.extend_from_slice(b"\r\n");
        head
    }

    /// The head of an answer that is the last on its connection.
    fn for_client_last(&self) -> Vec<u8> {
        let hop = ["connection", "keep-alive", "proxy-connection"];
        let mut head = self.raw.copy_lines(|copy, line| {
            if !is_ours(line.name) && !hop.iter().any(|name| line.name.eq_ignore_ascii_case(name)) {
                copy.extend_from_slice(line.bytes);
            }
        });
        head.extend_from_slice(b"Connection: close\r\n\r\n");
        head
    }

    /// Where its body ends (RFC 9112, section 6.3; the request was a GET).
    fn framing(&self) -> Result<Framing, ResponseError> {
        if matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Framing::Length(0));
        }
        let mut lengths = self.raw.values("content-length");
        let mut encodings = self.raw.values("transfer-encoding").peekable();
        match (lengths.next(), lengths.next()) {
            (Some(_), Some(_)) => Err(ResponseError::Length),
            (Some(_), None) if encodings.peek().is_some() => Err(ResponseError::Length),
            (Some(length), None) => parse_length(length).map(Framing::Length).ok_or(ResponseError::Length),
            (None, _) if lists(encodings, "chunked") => Ok(Framing::chunked()),
            (None, _) => Ok(Framing::UntilClose),
        }
    }
}

/// Passes an answer on to the client, up to the end of its body, and closes.
pub async fn relay_response(
    head: ResponseHead,
    app: &mut TcpStream,
    client: &mut TcpStream,
) -> Result<(), ResponseError> {
    let mut framing = match head.framing() {
        Ok(framing) => framing,
        Err(error) => {
            let status = StatusCode::BAD_GATEWAY;
            server::answer_and_close(client, &server::text_answer(status, "", &error.to_string())).await;
            return Err(error);
        }
    };
    let mut bytes = head.interim.clone();
    bytes.extend(head.for_client_last());
    let body = framing.take(head.raw.rest())?;
    bytes.extend_from_slice(&head.raw.rest()[..body]);
    in_time(client.write_all(&bytes)).await?;
    bytes.clear();
    while !framing.ended() {
        bytes.reserve(MAX_BYTES);
        let read = in_time(tokio::io::AsyncReadExt::read_buf(app, &mut bytes)).await?;
        if read == 0 {
            if matches!(framing, Framing::UntilClose) {
                break;
            }
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let body = framing.take(&bytes)?;
        in_time(client.write_all(&bytes[..body])).await?;
        bytes.clear();
    }
    server::answer_and_close(client, &[]).await;
    Ok(())
}

/// Reads an answer whole, for a connection on which hyper writes: its head as the client would get it, and its body
/// without any framing.
pub async fn collect(head: ResponseHead, app: &mut TcpStream) -> Result<(Vec<u8>, Vec<u8>), ResponseError> {
    let mut framing = head.framing()?;
    let chunked = matches!(framing, Framing::Chunked(_));
    let mut body = head.raw.rest().to_vec();
    body.truncate(framing.take(&body)?);
    while !framing.ended() {
        let seen = body.len();
        if seen > MAX_COLLECTED {
            return Err(ResponseError::BodyTooLarge);
        }
        body.reserve(MAX_BYTES);
        if in_time(tokio::io::AsyncReadExt::read_buf(app, &mut body)).await? == 0 {
            match framing {
                Framing::UntilClose => break,
                _ => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            }
        }
        let taken = framing.take(&body[seen..])?;
        body.truncate(seen + taken);
    }
    Ok((head.for_client_last(), if chunked { body::unchunk(&body) } else { body }))
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> Result<T, ResponseError> {
    Ok(tokio::time::timeout(STALL, step).await.map_err(|_| ResponseError::Stalled)??)
}

impl From<ReadFault<Self>> for ResponseError {
    fn from(fault: ReadFault<Self>) -> Self {
        match fault {
            ReadFault::Closed | ReadFault::Truncated => Self::Closed,
            ReadFault::TooLarge => Self::TooLarge,
            ReadFault::Lines(fault) => Self::Lines(fault),
            ReadFault::Io(kind) => Self::Io(kind.into()),
            ReadFault::Foreign(error) => error,
        }
    }
}

#[cfg(test)]
mod tests;

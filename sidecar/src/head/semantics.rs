//! What a well-formed head must mean: one host, one length, one key.

use super::raw::Fault;
use super::{HeadError, RequestHead, Upgrade};

/// Gives httparse's errors our names.
pub(super) fn parse_error(error: httparse::Error, head: &[u8]) -> HeadError {
    match error {
        httparse::Error::HeaderName => Fault::FieldName.into(),
        httparse::Error::HeaderValue => Fault::FieldValue.into(),
        httparse::Error::TooManyHeaders => Fault::TooManyFields.into(),
        httparse::Error::Version => {
            let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            match words[..] {
                [_, _, [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']] => HeadError::UnknownVersion,
                [_, _, _] => HeadError::Version,
                _ => HeadError::RequestLine,
            }
        }
        _ => HeadError::RequestLine,
    }
}

/// Refuses a head that two parsers could take for two requests.
pub(super) fn check(head: &RequestHead) -> Result<(), HeadError> {
    if head.method() == "CONNECT" {
        return Err(HeadError::Connect);
    }
    if !(head.target().starts_with('/') || head.target() == "*" || head.target().contains("://")) {
        return Err(HeadError::RequestLine);
    }
    let mut hosts = head.raw.values("host");
    match (hosts.next(), hosts.next()) {
        (None, _) if head.minor == 1 => return Err(HeadError::HostMissing),
        (_, Some(_)) => return Err(HeadError::HostRepeated),
        (Some(host), None) if !host.iter().all(|byte| is_host_byte(*byte)) => return Err(HeadError::HostMalformed),
        _ => {}
    }
    let mut lengths = head.raw.values("content-length");
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(HeadError::LengthRepeated);
    }
    if length.is_some_and(|length| parse_length(length).is_none()) {
        return Err(HeadError::LengthMalformed);
    }
    let mut encodings = head.raw.values("transfer-encoding");
    let Some(encoding) = encodings.next() else { return Ok(()) };
    if length.is_some() {
        return Err(HeadError::LengthAndEncoding);
    }
    if head.minor == 0 || !encoding.eq_ignore_ascii_case(b"chunked") || encodings.next().is_some() {
        return Err(HeadError::Encoding);
    }
    Ok(())
}

/// A Content-Length: digits and nothing else.
pub(crate) fn parse_length(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

/// The characters of `uri-host [ ":" port ]` (RFC 3986, section 3.2.2).
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&byte)
}

/// See [`RequestHead::upgrade`].
pub(super) fn upgrade(head: &RequestHead) -> Option<Result<Upgrade, HeadError>> {
    let handshake = head.method() == "GET"
        && head.minor == 1
        && lists(head.raw.values("connection"), "upgrade")
        && lists(head.raw.values("upgrade"), "websocket");
    handshake.then(|| check_upgrade(head))
}

fn check_upgrade(head: &RequestHead) -> Result<Upgrade, HeadError> {
    let length = head.header("content-length").and_then(parse_length).unwrap_or_default();
    if length > 0 || head.header("transfer-encoding").is_some() {
        return Err(HeadError::UpgradeBody);
    }
    let mut versions = head.raw.values("sec-websocket-version");
    if versions.next() != Some(b"13") || versions.next().is_some() {
        return Err(HeadError::WebSocketVersion);
    }
    let mut keys = head.raw.values("sec-websocket-key");
    match (keys.next(), keys.next()) {
        (None, _) => Err(HeadError::WebSocketKeyMissing),
        (_, Some(_)) => Err(HeadError::WebSocketKeyRepeated),
        (Some(key), None) if !is_websocket_key(key) => Err(HeadError::WebSocketKeyMalformed),
        _ => Ok(Upgrade(())),
    }
}

/// Whether a comma-separated list names a token, in any case.
pub(crate) fn lists<'a>(mut values: impl Iterator<Item = &'a [u8]>, token: &str) -> bool {
    values.any(|value| {
        value.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}

/// 16 bytes are 22 characters and the padding.
fn is_websocket_key(key: &[u8]) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(is_base64)
}

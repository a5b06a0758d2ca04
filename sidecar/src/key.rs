//! The key of a request: the value that says whose connection it is.

use std::borrow::Cow;

use http::Request;
use percent_encoding::percent_decode;
use ring::settings::jwt::JwtFault;
use ring::settings::{KeySource, KeySpec, Trust};

use crate::head::RequestHead;
use crate::token::TokenError;

/// The longest key, in bytes.
pub const KEY_MAX: usize = 1024;

/// A request that a key can be read from.
pub trait KeyInput {
    /// The path of its target.
    fn path(&self) -> &str;
    /// The query of its target, without the question mark.
    fn query(&self) -> Option<&str>;
    /// Every value of a header, in order.
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]>;
}

impl KeyInput for RequestHead {
    fn path(&self) -> &str {
        Self::path(self)
    }

    fn query(&self) -> Option<&str> {
        Self::query(self)
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers().filter(move |(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl<B> KeyInput for Request<B> {
    fn path(&self) -> &str {
        self.uri().path()
    }

    fn query(&self) -> Option<&str> {
        self.uri().query()
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers().get_all(name).into_iter().map(http::HeaderValue::as_bytes)
    }
}

/// Why a value cannot be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is not text.
    #[error("the key in this request is not UTF-8")]
    NotUtf8,
    /// It has a control character in it.
    #[error("the key in this request has a control character in it")]
    Control,
    /// It is longer than [`KEY_MAX`].
    #[error("the key in this request is longer than {KEY_MAX} bytes")]
    TooLong,
    /// It is a claim of a token that proves nothing.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl KeyError {
    /// Its name in metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NotUtf8 => "key_not_utf8",
            Self::Control => "key_control",
            Self::TooLong => "key_too_long",
            Self::Token(error) => error.label(),
        }
    }
}

/// Why a key cannot be read as a pool's settings say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A source without a name.
    #[error("key.from[{index}]: the name of a {kind} is empty")]
    EmptyName {
        /// The source's place in the list.
        index: usize,
        /// What it would name.
        kind: &'static str,
    },
    /// A name that no header or cookie can have.
    #[error("key.from[{index}]: {name:?} cannot be the name of a {kind}")]
    BadName {
        /// The source's place in the list.
        index: usize,
        /// What it would name.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A token cannot be checked as it says.
    #[error("key.jwt{}: {} {}", .0.field, .0.value, .0.want)]
    Jwt(JwtFault),
    /// A claim is the key, and nothing says how its token is checked.
    #[error("key.from[{index}]: a claim needs key.jwt, which says how its token is checked")]
    NoJwt {
        /// The source's place in the list.
        index: usize,
    },
    /// Keys are to be verified, and this source takes what a client writes.
    #[error("key.from[{index}]: key.trust: Verified needs a token from every client; write only jwt sources")]
    Unverified {
        /// The source's place in the list.
        index: usize,
    },
    /// A path template that does not begin with a slash.
    #[error("key.from[{index}]: the path {path:?} does not begin with a slash, as in /rooms/{{key}}")]
    RelativePath {
        /// The source's place in the list.
        index: usize,
        /// The template.
        path: String,
    },
    /// A path template without a place for the key, or with several.
    #[error("key.from[{index}]: the path {path:?} has {count} segments that are {{key}}; one is needed")]
    KeySegments {
        /// The source's place in the list.
        index: usize,
        /// The template.
        path: String,
        /// How many it has.
        count: usize,
    },
}

const KEY_SEGMENT: &str = "{key}";

/// Checks that a key can be read as the settings say.
pub fn check(spec: &KeySpec) -> Result<(), SpecError> {
    for (index, source) in spec.from.iter().enumerate() {
        if spec.trust == Trust::Verified && !matches!(source, KeySource::Jwt(_)) {
            return Err(SpecError::Unverified { index });
        }
        let (kind, name) = match source {
            KeySource::Query(name) => ("query parameter", name),
            KeySource::Header(name) => ("header", name),
            KeySource::Cookie(name) => ("cookie", name),
            KeySource::Subprotocol(prefix) => ("subprotocol", prefix),
            KeySource::Jwt(_) if spec.jwt.is_none() => return Err(SpecError::NoJwt { index }),
            KeySource::Jwt(claim) => ("claim", claim),
            KeySource::Path(path) => {
                check_path(index, path)?;
                continue;
            }
        };
        if name.is_empty() {
            return Err(SpecError::EmptyName { index, kind });
        }
        let token = http::HeaderName::from_bytes(name.as_bytes()).is_ok();
        if !token && !matches!(source, KeySource::Query(_) | KeySource::Jwt(_)) {
            return Err(SpecError::BadName { index, kind, name: name.clone() });
        }
    }
    match spec.jwt.as_ref().and_then(|jwt| jwt.faults().into_iter().next()) {
        Some(fault) => Err(SpecError::Jwt(fault)),
        None => Ok(()),
    }
}

fn check_path(index: usize, path: &str) -> Result<(), SpecError> {
    if !path.starts_with('/') {
        return Err(SpecError::RelativePath { index, path: path.to_owned() });
    }
    let count = path.split('/').filter(|segment| *segment == KEY_SEGMENT).count();
    if count == 1 { Ok(()) } else { Err(SpecError::KeySegments { index, path: path.to_owned(), count }) }
}

/// Reads the key of a request: the sources in order, the first that yields a value that is not empty wins. `claim` reads a
/// claim of the request's token, which it has checked.
pub fn key_of(
    request: &impl KeyInput,
    spec: &KeySpec,
    claim: impl Fn(&str) -> Result<Option<String>, TokenError>,
) -> Result<Option<String>, KeyError> {
    for source in &spec.from {
        let value = match source {
            KeySource::Query(name) => query(request, name),
            KeySource::Header(name) => request.values(name).next().map(Cow::Borrowed),
            KeySource::Cookie(name) => cookie(request, name),
            KeySource::Path(template) => from_path(request.path(), template),
            KeySource::Subprotocol(prefix) => subprotocol(request, prefix).map(|rest| percent_decode(rest).into()),
            KeySource::Jwt(name) => claim(name)?.map(|value| Cow::Owned(value.into_bytes())),
        };
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            return checked(value).map(Some);
        }
    }
    Ok(None)
}

fn checked(value: Cow<'_, [u8]>) -> Result<String, KeyError> {
    if value.len() > KEY_MAX {
        return Err(KeyError::TooLong);
    }
    let key = String::from_utf8(value.into_owned()).map_err(|_| KeyError::NotUtf8)?;
    check_key(&key).map(|()| key)
}

/// Whether a text can be a key.
pub fn check_key(key: &str) -> Result<(), KeyError> {
    if key.len() > KEY_MAX {
        Err(KeyError::TooLong)
    } else if key.chars().any(char::is_control) {
        Err(KeyError::Control)
    } else {
        Ok(())
    }
}

/// A parameter of the query string.
pub(crate) fn query<'a>(request: &'a impl KeyInput, name: &str) -> Option<Cow<'a, [u8]>> {
    request.query().and_then(|query| from_query(query, name))
}

/// A cookie.
pub(crate) fn cookie<'a>(request: &'a impl KeyInput, name: &str) -> Option<Cow<'a, [u8]>> {
    request.values("cookie").find_map(|line| from_cookies(line, name))
}

/// What stands behind the prefix in the first subprotocol that has it.
pub(crate) fn subprotocol<'a>(request: &'a impl KeyInput, prefix: &str) -> Option<&'a [u8]> {
    let offered = request.values("sec-websocket-protocol").flat_map(|line| line.split(|byte| *byte == b','));
    offered.map(<[u8]>::trim_ascii).find_map(|protocol| protocol.strip_prefix(prefix.as_bytes()))
}

/// The first parameter of that name, as HTML forms encode it.
fn from_query<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.into_iter().find(|(found, _)| decode_form(found).as_ref() == name.as_bytes())?;
    Some(decode_form(value))
}

fn decode_form(text: &str) -> Cow<'_, [u8]> {
    if text.contains('+') {
        Cow::Owned(percent_decode(text.replace('+', " ").as_bytes()).collect())
    } else {
        percent_decode(text.as_bytes()).into()
    }
}

/// The cookie of that name (RFC 6265, section 4.2.1). Its value may stand in quotes, which are not part of it here.
fn from_cookies<'a>(line: &'a [u8], name: &str) -> Option<Cow<'a, [u8]>> {
    line.split(|byte| *byte == b';').find_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let value = pair[equals + 1..].trim_ascii();
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        (pair[..equals].trim_ascii() == name.as_bytes()).then(|| Cow::Borrowed(quoted.unwrap_or(value)))
    })
}

/// The segment of the path that the template calls `{key}`. All others must be as in the template, `*` apart, and there
/// must be as many; one slash at the end makes no difference, on either side.
fn from_path<'a>(path: &'a str, template: &str) -> Option<Cow<'a, [u8]>> {
    let mut key = None;
    let mut segments = path.strip_suffix('/').unwrap_or(path).split('/');
    for wanted in template.strip_suffix('/').unwrap_or(template).split('/') {
        let segment = segments.next()?;
        match wanted {
            KEY_SEGMENT => key = Some(segment),
            "*" => {}
            literal if percent_decode(segment.as_bytes()).eq(literal.bytes()) => {}
            _ => return None,
        }
    }
    if segments.next().is_some() { None } else { key.map(|key| percent_decode(key.as_bytes()).into()) }
}

#[cfg(test)]
mod tests;

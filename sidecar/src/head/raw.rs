//! A head of either kind as it stands on the wire: lines that end in CRLF, then an empty one.

use std::io;

use tokio::io::AsyncRead;

use crate::buffer;

/// The most header fields in a head.
pub(crate) const MAX_FIELDS: usize = 128;
/// Enough for most heads at once, in bytes.
const READ: usize = 2 * 1024;

/// What is wrong with a head's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A line ends in LF alone.
    #[error("a line ends in LF without CR")]
    BareLineFeed,
    /// A CR stands without its LF.
    #[error("a CR stands without LF")]
    BareCarriageReturn,
    /// A NUL.
    #[error("it has a NUL in it")]
    Nul,
    /// A field that goes on in the next line.
    #[error("a header is folded over two lines")]
    ObsoleteFold,
    /// White space between a field's name and its colon.
    #[error("there is white space before a header's colon")]
    SpaceBeforeColon,
    /// A field's name that is not a token.
    #[error("a header's name has a character that names cannot have")]
    FieldName,
    /// A field's value with a control character in it.
    #[error("a header's value has a control character in it")]
    FieldValue,
    /// More fields than [`MAX_FIELDS`].
    #[error("it has more than {MAX_FIELDS} headers")]
    TooManyFields,
}

impl Fault {
    /// Its name in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::BareLineFeed => "bare_lf",
            Self::BareCarriageReturn => "bare_cr",
            Self::Nul => "nul",
            Self::ObsoleteFold => "obs_fold",
            Self::SpaceBeforeColon => "space_before_colon",
            Self::FieldName => "header_name",
            Self::FieldValue => "header_value",
            Self::TooManyFields => "too_many_headers",
        }
    }
}

/// Why no head could be read.
#[derive(Debug)]
pub(crate) enum ReadFault<E> {
    /// The stream ended before the first byte.
    Closed,
    /// The stream ended within the head.
    Truncated,
    /// The head is larger than allowed.
    TooLarge,
    Lines(Fault),
    Io(io::ErrorKind),
    /// What the caller's own look at the first bytes found.
    Foreign(E),
}

/// Reads a head, of which `bytes` are there already. `look` sees what there is each time that more has come.
pub(crate) async fn read<E>(
    stream: &mut (impl AsyncRead + Unpin),
    mut bytes: Vec<u8>,
    max: usize,
    look: impl Fn(&[u8]) -> Option<E>,
) -> Result<RawHead, ReadFault<E>> {
    let mut scanned = 0;
    loop {
        if let Some(foreign) = look(&bytes) {
            return Err(ReadFault::Foreign(foreign));
        }
        if let Some(len) = scan(&bytes, &mut scanned).map_err(ReadFault::Lines)?
            && len <= max
        {
            return Ok(RawHead { bytes, len, fields: Vec::new() });
        }
        if bytes.len() >= max {
            return Err(ReadFault::TooLarge);
        }
        let had = bytes.len();
        match buffer::read(stream, READ.max(had), |more| bytes.extend_from_slice(more)).await {
            Ok(0) if had == 0 => return Err(ReadFault::Closed),
            Ok(0) => return Err(ReadFault::Truncated),
            Ok(_) => {}
            Err(error) => return Err(ReadFault::Io(error.kind())),
        }
    }
}

/// Looks for the empty line, from where the last look ended, and returns the length of the head.
pub(super) fn scan(bytes: &[u8], from: &mut usize) -> Result<Option<usize>, Fault> {
    while let Some(byte) = bytes.get(*from) {
        let at = *from;
        match byte {
            0 => return Err(Fault::Nul),
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => return Err(Fault::BareLineFeed),
            b'\n' if bytes[..at].ends_with(b"\r\n\r") => return Ok(Some(at + 1)),
            b'\r' if bytes.get(at + 1).is_some_and(|next| *next != b'\n') => return Err(Fault::BareCarriageReturn),
            // Whether its LF follows is not known yet.
            b'\r' if at + 1 == bytes.len() => return Ok(None),
            _ => {}
        }
        *from += 1;
    }
    Ok(None)
}

/// A head's bytes, where its fields are, and what was read behind it.
#[derive(Clone, Debug)]
pub(crate) struct RawHead {
    bytes: Vec<u8>,
    len: usize,
    fields: Vec<Span>,
}

/// Where a field is in its head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Its name, and its line, begin here.
    start: usize,
    name_len: usize,
    value: usize,
    value_len: usize,
}

impl Span {
    /// The place of a field that was parsed out of `head`.
    pub(crate) fn of(head: &[u8], field: &httparse::Header<'_>) -> Self {
        let offset = |part: *const u8| part.addr() - head.as_ptr().addr();
        Self {
            start: offset(field.name.as_ptr()),
            name_len: field.name.len(),
            // An empty value may not point into the head.
            value: if field.value.is_empty() { 0 } else { offset(field.value.as_ptr()) },
            value_len: field.value.len(),
        }
    }
}

impl RawHead {
    /// A head that was not read from a socket.
    pub(crate) fn whole(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len(), bytes, fields: Vec::new() }
    }

    pub(crate) fn head(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn set_fields(&mut self, fields: Vec<Span>) {
        self.fields = fields;
    }

    /// Finds what a lenient parser would let pass or not tell apart.
    pub(crate) fn check_lines(&self) -> Result<(), Fault> {
        let lines = self.head().split(|byte| *byte == b'\n').skip(1);
        for line in lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).take_while(|line| !line.is_empty()) {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            match name {
                [b' ' | b'\t', ..] => return Err(Fault::ObsoleteFold),
                [.., b' ' | b'\t'] => return Err(Fault::SpaceBeforeColon),
                _ => {}
            }
        }
        Ok(())
    }

    /// The fields in order, as they were sent.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|span| (self.name(*span), self.value(*span)))
    }

    /// Every value of a field, in any case.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.fields().filter(move |(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Copies the first line, then each field's line as `edit` wants it; `edit` also ends the head.
    pub(crate) fn copy_lines(&self, mut edit: impl FnMut(&mut Vec<u8>, Line<'_>)) -> Vec<u8> {
        let head = self.head();
        let first = self.fields.first().map_or(head.len().saturating_sub(2), |field| field.start);
        let mut copy = Vec::with_capacity(head.len() + 256);
        copy.extend_from_slice(&head[..first]);
        for (index, span) in self.fields.iter().enumerate() {
            let end = self.fields.get(index + 1).map_or(head.len() - 2, |next| next.start);
            let name = self.name(*span);
            edit(&mut copy, Line { index, name, value: self.value(*span), bytes: &head[span.start..end] });
        }
        copy
    }

    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.len..]
    }

    pub(crate) fn take_rest(&mut self) -> Vec<u8> {
        self.bytes.split_off(self.len)
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn name(&self, span: Span) -> &str {
        std::str::from_utf8(&self.bytes[span.start..span.start + span.name_len]).unwrap_or_default()
    }

    fn value(&self, span: Span) -> &[u8] {
        &self.bytes[span.value..span.value + span.value_len]
    }
}

/// One field, with its whole line.
pub(crate) struct Line<'a> {
    pub(crate) index: usize,
    pub(crate) name: &'a str,
    pub(crate) value: &'a [u8],
    pub(crate) bytes: &'a [u8],
}

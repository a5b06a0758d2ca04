//! Where a body ends.

use super::ResponseError;

/// How the end of a body is known, and how far away it is.
#[derive(Debug)]
pub(super) enum Framing {
    /// After so many bytes more.
    Length(u64),
    /// After the last chunk and its trailers (RFC 9112, section 7.1).
    Chunked(Chunks),
    /// When the app closes.
    UntilClose,
}

/// What the next byte of a chunked body is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunks {
    /// A digit of a chunk's size, which is `size` so far.
    Size { size: u64, digits: u8 },
    /// Of an extension, up to the end of the line.
    Extension { size: u64 },
    /// The LF behind a chunk's size.
    SizeEnd { size: u64 },
    /// A chunk's, of which so many are left.
    Data { left: u64 },
    /// The CR behind a chunk.
    DataCr,
    /// The LF behind a chunk.
    DataLf,
    /// Of the trailers; `line` is how many bytes of this line there were.
    Trailer { line: u64 },
    /// The LF of a trailer's line, the last one when it was empty.
    TrailerEnd { line: u64 },
    /// Behind the body.
    Ended,
}

impl Framing {
    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunks::Size { size: 0, digits: 0 })
    }

    pub(super) fn ended(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunks::Ended))
    }

    /// Takes what belongs to the body from the start of `bytes`; returns how many those are.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, ResponseError> {
        match self {
            Self::UntilClose => Ok(bytes.len()),
            Self::Length(left) => {
                let taken = clamp(*left, bytes.len());
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunks) => {
                let mut at = 0;
                while at < bytes.len() && *chunks != Chunks::Ended {
                    at += chunks.step(&bytes[at..])?;
                }
                Ok(at)
            }
        }
    }
}

impl Chunks {
    /// Takes the next byte, or all that there is of a chunk.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, ResponseError> {
        let byte = bytes[0];
        let mut taken = 1;
        *self = match (&*self, byte) {
            (Self::Data { left }, _) => {
                taken = clamp(*left, bytes.len());
                match left - taken as u64 {
                    0 => Self::DataCr,
                    left => Self::Data { left },
                }
            }
            (Self::Size { size, digits: digits @ 0..=14 }, digit) if digit.is_ascii_hexdigit() => {
                let value = char::from(digit).to_digit(16).unwrap_or_default();
                Self::Size { size: size * 16 + u64::from(value), digits: digits + 1 }
            }
            (Self::Size { size, digits: 1.. } | Self::Extension { size }, b'\r') => Self::SizeEnd { size: *size },
            (Self::Size { size, digits: 1.. }, b';' | b' ' | b'\t') => Self::Extension { size: *size },
            (Self::Extension { size }, other) if other != b'\n' => Self::Extension { size: *size },
            (Self::SizeEnd { size: 0 }, b'\n') => Self::Trailer { line: 0 },
            (Self::SizeEnd { size }, b'\n') => Self::Data { left: *size },
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size { size: 0, digits: 0 },
            (Self::Trailer { line }, b'\r') => Self::TrailerEnd { line: *line },
            (Self::Trailer { line }, other) if other != b'\n' => Self::Trailer { line: line + 1 },
            (Self::TrailerEnd { line: 0 }, b'\n') => Self::Ended,
            (Self::TrailerEnd { .. }, b'\n') => Self::Trailer { line: 0 },
            _ => return Err(ResponseError::Chunks),
        };
        Ok(taken)
    }
}

/// The data in a whole chunked body, which [`Framing::take`] has found to be well-formed.
pub(super) fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut data = Vec::with_capacity(body.len());
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let digits = body[..end].split(|byte| !byte.is_ascii_hexdigit()).next().unwrap_or_default();
        let size = std::str::from_utf8(digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let chunk = size.filter(|size| *size > 0).and_then(|size| body.get(end + 2..end + 2 + size));
        let Some(chunk) = chunk else { break };
        data.extend_from_slice(chunk);
        body = body.get(end + 2 + chunk.len() + 2..).unwrap_or_default();
    }
    data
}

fn clamp(left: u64, available: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(available)
}

//! WebSocket framing (RFC 6455, section 5.2), as far as a proxy needs it: where frames end, and the few that we write.

use ring::notice::{Message, MessageKind};

/// Opcode of a frame that goes on with a message.
const CONTINUATION: u8 = 0x0;
/// Opcode of a Close frame.
const CLOSE: u8 = 0x8;
/// Opcode of a text frame.
const TEXT: u8 = 0x1;
/// Opcode of a binary frame.
const BINARY: u8 = 0x2;
const FIN: u8 = 0x80;
/// What permessage-deflate sets in the first frame of a message that it has compressed.
const COMPRESSED: u8 = 0x40;
const MASKED: u8 = 0x80;
/// The longest payload of a control frame, in bytes.
const CONTROL_MAX: usize = 125;
/// The longest reason in a Close frame, in bytes.
pub const REASON_MAX: usize = CONTROL_MAX - 2;

/// Follows one direction of a connection from its first byte and knows where its frames end.
///
/// It reads headers and skips payloads, so that its cost does not depend on their size. It is lenient: reserved bits
/// and opcodes may belong to an extension, and a wrong order of fragments is for the endpoints to refuse. Only what
/// leaves the next boundary in doubt is malformed: a 64-bit length with its top bit set, a control frame that is
/// fragmented or longer than 125 bytes. From there on nothing is followed any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Follower {
    /// Bytes of the mask and the payload still to come.
    remaining: u64,
    /// The header as far as it has come, without the mask.
    header: [u8; 10],
    header_len: u8,
    in_message: bool,
    /// The opcode of the last message that has begun; 0 before the first.
    message: u8,
    /// One more than the payload of the longest data frame that has begun since this was asked for, as far as a byte holds
    /// it; 0 when there was none.
    longest: u8,
    closed: bool,
    malformed: bool,
}

impl Follower {
    /// Whether the next byte begins a frame.
    pub fn between_frames(&self) -> bool {
        self.remaining == 0 && self.header_len == 0 && !self.malformed
    }

    /// Whether the next byte begins a message.
    pub fn between_messages(&self) -> bool {
        self.between_frames() && !self.in_message
    }

    /// Whether a Close frame has begun.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// The kind of the last message that has begun.
    pub fn message_kind(&self) -> Option<MessageKind> {
        match self.message {
            TEXT => Some(MessageKind::Text),
            BINARY => Some(MessageKind::Binary),
            _ => None,
        }
    }

    /// The payload of the longest data frame that has begun since this was asked last, in bytes, 254 at most, and of one that
    /// is compressed: it may have been of any length.
    pub fn take_longest(&mut self) -> Option<u8> {
        std::mem::take(&mut self.longest).checked_sub(1)
    }

    /// Whether the bytes can no longer be followed.
    pub fn malformed(&self) -> bool {
        self.malformed
    }

    /// Follows all of `bytes`.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.step(bytes)..];
        }
    }

    /// Follows `bytes` up to the end of the first frame in them and returns where that is; all of them if none ends.
    pub fn feed_to_frame_end(&mut self, bytes: &[u8]) -> Option<usize> {
        self.feed_until(bytes, |follower, _| follower.between_frames())
    }

    /// The same, up to the end of the first message.
    pub fn feed_to_message_end(&mut self, bytes: &[u8]) -> Option<usize> {
        self.feed_until(bytes, |follower, _| follower.between_messages())
    }

    /// Follows `bytes` up to the first byte of a Close frame, which is left, and returns where it is; all of them if
    /// there is none.
    pub fn feed_to_close(&mut self, bytes: &[u8]) -> Option<usize> {
        let begins_close = |follower: &Self, rest: &[u8]| {
            follower.between_frames() && rest.first().is_some_and(|byte| byte & 0x0f == CLOSE)
        };
        if begins_close(self, bytes) {
            return Some(0);
        }
        self.feed_until(bytes, begins_close)
    }

    /// Whether a Close frame begins in what comes next.
    pub fn leads_to_close(mut self, bytes: &[u8]) -> bool {
        self.feed_to_close(bytes).is_some()
    }

    fn feed_until(&mut self, bytes: &[u8], stop: impl Fn(&Self, &[u8]) -> bool) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            at += self.step(&bytes[at..]);
            if stop(self, &bytes[at..]) {
                return Some(at);
            }
        }
        None
    }

    /// Follows `bytes`, which are not empty, up to the end of a header or a payload at most; returns how many.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if self.malformed {
            return bytes.len();
        }
        if self.remaining > 0 {
            let taken = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(bytes.len());
            self.remaining -= taken as u64;
            return taken;
        }
        for (taken, byte) in bytes.iter().enumerate() {
            self.header[usize::from(self.header_len)] = *byte;
            self.header_len += 1;
            if self.header_len >= 2 && self.header_len == self.header_size() {
                self.read_header();
                return taken + 1;
            }
        }
        bytes.len()
    }

    /// The size of a header, without the mask, once its second byte is there.
    fn header_size(&self) -> u8 {
        match self.header[1] & !MASKED {
            126 => 4,
            127 => 10,
            _ => 2,
        }
    }

    fn read_header(&mut self) {
        let [first, second, length @ ..] = self.header;
        let payload = match second & !MASKED {
            126 => u64::from(u16::from_be_bytes([length[0], length[1]])),
            127 => u64::from_be_bytes(length),
            short => u64::from(short),
        };
        let finished = first & FIN != 0;
        let opcode = first & 0x0f;
        if opcode >= CLOSE {
            self.malformed = !finished || payload > CONTROL_MAX as u64;
            self.closed |= opcode == CLOSE;
        } else {
            self.malformed = payload >> 63 != 0;
            self.in_message = !finished;
            let size = if first & COMPRESSED == 0 { u8::try_from(payload).unwrap_or(u8::MAX) } else { u8::MAX };
            let size = size.saturating_add(1);
            self.longest = self.longest.max(size);
            if opcode != CONTINUATION {
                self.message = opcode;
            }
        }
        let mask = if second & MASKED == 0 { 0 } else { 4 };
        self.remaining = if self.malformed { 0 } else { payload + mask };
        self.header_len = 0;
    }
}

/// A message for a client, in one frame.
pub fn message(message: Message<'_>) -> Vec<u8> {
    let Message { kind, payload } = message;
    let opcode = match kind {
        MessageKind::Text => TEXT,
        MessageKind::Binary => BINARY,
    };
    let mut frame = vec![FIN | opcode];
    #[expect(clippy::cast_possible_truncation, reason = "each arm's range fits its type")]
    match payload.len() {
        short @ 0..=125 => frame.push(short as u8),
        medium @ 126..=0xffff => {
            frame.push(126);
            frame.extend((medium as u16).to_be_bytes());
        }
        long => {
            frame.push(127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

/// A Close frame for a client. A reason that is too long is cut at a character.
pub fn close(code: u16, reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(REASON_MAX)];
    #[expect(clippy::cast_possible_truncation, reason = "at most 125")]
    let mut frame = vec![FIN | CLOSE, (2 + reason.len()) as u8];
    frame.extend(code.to_be_bytes());
    frame.extend(reason.as_bytes());
    frame
}

/// A Close frame for a server: a client's frames are masked, with an unpredictable `mask`.
pub fn masked_close(code: u16, mask: [u8; 4]) -> Vec<u8> {
    let [high, low] = code.to_be_bytes();
    vec![FIN | CLOSE, MASKED | 2, mask[0], mask[1], mask[2], mask[3], high ^ mask[0], low ^ mask[1]]
}

#[cfg(test)]
mod tests;
